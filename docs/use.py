r"""Write the numbers of docs/compare.json into docs/should-i-use-gravity.md and the README.

    python -m benchmarks.compare --data-dir data
    python -m benchmarks.compare report compare --json docs/compare.json --plots docs/images/compare
    python docs/use.py

A claim in words is here with the condition that makes it true: if a new run refutes it, this
script ends with the claim, and nothing is written.
"""

import json
import math
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from sections import write_section

from benchmarks.compare.analysis import compared
from benchmarks.compare.plots import shown

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "should-i-use-gravity.md"
REPORT = ROOT / "docs" / "compare.json"
RIVALS = ("sgd", "momentum", "momentum-clip", "rmsprop", "adam", "adam-clip", "adamw")
NARROW = "\u202f"  # a space at which no line breaks
OUTLIERS = ("corrupt-batches", "heavy-tailed")
STEEP = ("diabetes-raw", "walls", "rosenbrock")
PARTS = ("gravity-t0", "alpha-0", "beta-fixed", "m-infinite", "momentum", "momentum-noise")


def written(error: float, measure: str) -> str:
    """Return an error as a text in which no line breaks."""
    return shown(error, measure).replace(" ", NARROW)


class Comparison:
    """The report of benchmarks.compare, as sentences and tables."""

    def __init__(self, report: Json) -> None:
        """Take a report that has all cells.

        Raises:
            SystemExit: if a cell is missing.
        """
        if report["missing"]:
            raise SystemExit(f"docs/compare.json lacks {', '.join(report['missing'])}")
        self.report = report
        self.problems: dict[str, Json] = report["problems"]

    def title(self, name: str) -> str:
        """Return the name of an optimizer in tables."""
        return str(self.report["optimizers"][name]["title"])

    def error(self, problem: str, name: str, key: str = "tuned") -> str:
        """Return the median error on test as text."""
        found = self.problems[problem]
        return written(found["results"][name][key]["median"], found["measure"])

    def beside(self, other: str, name: str = "gravity") -> dict[str, list[str]]:
        """Return the problems on which an optimizer is better than another, ties, or is worse."""
        found: dict[str, list[str]] = {"better": [], "tie": [], "worse": []}
        for key, problem in self.problems.items():
            one, two = (problem["results"][n]["tuned"]["errors"] for n in (name, other))
            found[compared(one, two, problem["measure"])].append(key)
        return found

    def tied_best(self, name: str) -> list[str]:
        """Return the problems on which an optimizer has the least error, or ties with it."""
        return [
            key
            for key, problem in self.problems.items()
            if problem["results"][name]["ties_with_best"]
        ]

    def factor(self, other: str) -> tuple[float, float, float]:
        """Return Gravity's best rate over the best rate of another: quartiles over the problems.

        Rates at an edge of their range, and problems that either does not learn, do not count.
        """
        ratios = []
        for problem in self.problems.values():
            one, two = problem["results"]["gravity"], problem["results"][other]
            learns = min(one["tuned"]["progress"], two["tuned"]["progress"]) > 0.5
            if learns and not (one["at_edge"] or two["at_edge"]):
                ratios.append(math.log10(one["rate"] / two["rate"]))
        ratios.sort()
        half = len(ratios) // 2
        low, high = median(ratios[:half]), median(ratios[-half:])
        return 10**low, 10 ** median(ratios), 10**high


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table of a page."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def against(found: Comparison, names: tuple[str, ...]) -> str:
    """Return on how many problems Gravity is better than others."""
    rows = []
    for name in names:
        sides = found.beside(name)
        rows.append([found.title(name), *(str(len(problems)) for problems in sides.values())])
    return table(["Gravity beside", "better", "tie", "worse"], rows)


def errors(found: Comparison, names: tuple[str, ...], key: str = "tuned") -> str:
    """Return the median error of optimizers on each problem; a star ties with the best of all."""
    rows = []
    for problem, report in found.problems.items():
        cells = []
        for name in names:
            star = "\\*" if key == "tuned" and report["results"][name]["ties_with_best"] else ""
            cells.append(found.error(problem, name, key) + star)
        rows.append([f"{report['title']}: {report['measure']}", *cells])
    header = [found.title(name) for name in names]
    if key == "untuned":
        defaults = (found.report["optimizers"][name]["default"] for name in names)
        header = [f"{title}, {rate:g}" for title, rate in zip(header, defaults, strict=True)]
    return table(["problem", *header], rows)


def rates(found: Comparison) -> str:
    """Return by what to multiply another optimizer's rate."""
    rows = []
    for name in ("sgd", "momentum", "adam"):
        low, middle, high = found.factor(name)
        rows.append([found.title(name), _short(middle), f"{_short(low)} to {_short(high)}"])
    return table(["rate of", "times", "middle half of the problems"], rows)


def _short(factor: float) -> str:
    return f"{factor:.0f}" if factor >= 10 else f"{factor:.1f}"


def loss_scale(found: Comparison) -> str:
    """Return the errors of the study of the loss's factor, with the rate of factor 1."""
    study = found.report["studies"]["loss-scale"]
    rows = []
    for name in ("gravity", *RIVALS):
        cells = [written(r["ordinary"]["median"], study["measure"]) for r in study["results"][name]]
        rows.append([found.title(name), *cells])
    at = study["settings"].index(100)
    best = {name: runs[at]["tuned"]["median"] for name, runs in study["results"].items()}
    gravity, momentum = (written(best[name], study["measure"]) for name in ("gravity", "momentum"))
    sentence = claimed(
        best["gravity"] > 3 * best["momentum"],
        f"With a rate of its own for a factor of 100, momentum SGD comes to {momentum}. For "
        f"Gravity no rate mends it: the best comes to {gravity}.",
    )
    grid = table(["factor of the loss", *(f"{s:g}" for s in study["settings"])], rows)
    return f"{grid}\n\n{sentence}"


def claimed(holds: bool, words: str) -> str:
    """Return a claim in words, if it holds.

    Raises:
        SystemExit: if the report refutes it.
    """
    if not holds:
        raise SystemExit(f"docs/compare.json refutes: {words}")
    return words


def _counts(other: str, sides: dict[str, list[str]]) -> str:
    better, tie, worse = (len(problems) for problems in sides.values())
    return f"better than {other} on {better}, ties with it on {tie}, and is worse on {worse}"


def answer(found: Comparison) -> list[str]:
    """Return the short answer, as sentences."""
    number = len(found.problems)
    momentum, clip, adam = map(found.beside, ("momentum", "momentum-clip", "adam"))
    best = found.tied_best("gravity")
    return [
        f"On {number} problems, each optimizer at its best rate, Gravity is "
        f"{_counts('momentum SGD', momentum)}. It is {_counts('Adam', adam)}. It has the least "
        f"error of all, or ties with it, on {len(best)}.",
        claimed(
            {*OUTLIERS} <= {*momentum["better"]} & {*adam["better"]}
            and not {*OUTLIERS} & {*clip["better"]},
            "It is better than both where gradients have outliers: corrupt batches and Cauchy "
            "noise. Momentum SGD with clipping does as well or better there.",
        ),
        claimed(
            {*STEEP} <= {*momentum["worse"]} & {*adam["worse"]},
            "It hardly moves where gradients are large: targets that are not standardised, steep "
            "walls, Rosenbrock.",
        ),
    ]


def summary(found: Comparison) -> str:
    """Return the lines of the README."""
    return "\n".join(f"- {sentence}" for sentence in answer(found))


def what_parts_do(found: Comparison) -> str:
    """Return what the variants show, as sentences."""
    number = len(found.problems)
    kick, average = (found.beside(name) for name in ("alpha-0", "beta-fixed"))
    cap = found.beside("m-infinite")
    sentences = [
        claimed(
            min(len(kick["tie"]), len(average["tie"])) >= number - 2,
            "On these problems the kick and the growing average make hardly a difference: Gravity "
            f"ties with α = 0 on {len(kick['tie'])} of {number}, and with β̂ = β on "
            f"{len(average['tie'])}.",
        ),
        claimed(
            {*OUTLIERS} <= {*cap["better"]} and "diabetes-raw" in cap["worse"],
            "The division by $1 + (G \\max|G|)^2$ does: with it Gravity is better on "
            f"{_titles(found, cap['better'])}, and worse on {_titles(found, cap['worse'])}.",
        ),
    ]
    return " ".join(sentences)


def _titles(found: Comparison, problems: list[str]) -> str:
    titles = [f"“{found.problems[name]['title']}”" for name in problems]
    return " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)


def sections(found: Comparison) -> dict[str, str]:
    """Return the sections of the page."""
    return {
        "answer": "\n".join(f"- {sentence}" for sentence in answer(found)),
        "against": against(found, RIVALS),
        "errors": errors(found, ("gravity", "sgd", "momentum", "momentum-clip", "adam")),
        "parts": f"{what_parts_do(found)}\n\n{against(found, PARTS)}",
        "part-errors": errors(found, ("gravity", *PARTS)),
        "untuned": errors(found, ("gravity", "sgd", "momentum", "rmsprop", "adam"), "untuned"),
        "rates": rates(found),
        "loss-scale": loss_scale(found),
        "made": made(found),
    }


def made(found: Comparison) -> str:
    """Return how the numbers were made."""
    report = found.report
    day = date.fromisoformat(report["date"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    full, small = (report["protocol"][key] for key in ("full", "small"))
    smaller = [p["title"] for p in found.problems.values() if p["small"]]
    return "\n\n".join(
        [
            f"- **Rates.** {full['rates']} learning rates, one in each of as many equal parts of "
            f"four decades, from {full['tuning_seeds']} seeds each. The one with the least mean "
            "error on validation wins. While it is at an edge, the range grows. Nothing but the "
            "rate is tuned.\n"
            f"- **Report.** The winner is trained from {full['seeds']} fresh seeds. The tables "
            "have the median error on test.\n"
            "- **Ties.** Two optimizers tie if the bootstrap interval "
            f"({report['protocol']['confidence']:.0%}) of the median difference between their "
            "errors from the same seeds contains 0.\n"
            f"- **The smaller protocol** ({small['rates']} rates, {small['tuning_seeds']} seed for "
            f"tuning, {small['seeds']} for the report): {', '.join(smaller)}.",
            f"Made on {day.day} {day:%B %Y} with `{report['command']}` on {report['cpu']}, "
            f"with {versions}, Python {report['python']}.",
        ]
    )


def main() -> None:
    """Write all sections."""
    found = Comparison(json.loads(REPORT.read_text(encoding="utf-8")))
    for name, content in sections(found).items():
        write_section(PAGE, name, content)
    write_section(ROOT / "README.md", "use", summary(found))


if __name__ == "__main__":
    main()
