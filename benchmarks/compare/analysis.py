"""What the runs say: medians, intervals, ties, steps to the target, sensitivity to the rate.

Every number comes from the fresh seeds, but for the sensitivity, which comes from tuning.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from benchmarks.compare.problems import VALUE, Problem
from benchmarks.compare.protocol import EVALUATIONS, Study, mean_score, settled

Json = dict[str, Any]
CONFIDENCE = 0.95
RESAMPLES = 5000
FLOOR = 1e-16  # smaller values of a function count as this, in comparisons
ENOUGH = 0.9  # of the best progress: a rate with it works
FACTORS = [float(f"{10 ** (k / 10):.3g}") for k in range(11)]  # of the performance profile


def interval(values: Sequence[float]) -> list[float]:
    """Return the bootstrap interval of the median (percentile method).

    Example:
        >>> interval([2.0, 2.0, 2.0])
        [2.0, 2.0]
    """
    found = bootstrap(
        (np.asarray(values),),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [float(found.low), float(found.high)]


def tie(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two optimizers tie, from their errors for the same seeds in the same order.

    They tie if the interval of the median of the differences contains 0.

    Example:
        >>> tie([1.0, 2.0, 3.0], [1.1, 1.9, 3.0]), tie([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
        (True, False)
    """
    low, high = interval(np.subtract(one, other).tolist())
    return low <= 0 <= high


def compared(one: Sequence[float], other: Sequence[float], measure: str) -> str:
    """Return how one optimizer does beside another: "better", "worse", or "tie".

    Example:
        >>> compared([0.1, 0.2], [0.2, 0.3], "nats"), compared([1e-20, 1e-18], [1e-17, 0.0], VALUE)
        ('better', 'tie')
    """
    one, other = judged(one, measure), judged(other, measure)
    if tie(one, other):
        return "tie"
    return "better" if _median(np.subtract(one, other).tolist()) < 0 else "worse"


def judged(errors: Sequence[float], measure: str) -> list[float]:
    """Return the errors as they are compared.

    Values of a function below FLOOR are rounding errors: none of them is better than another.
    """
    return [max(error, FLOOR) if measure == VALUE else error for error in errors]


def progress(error: float, start: float, best: float, *, measure: str) -> float:
    """Return the share of the way from the start to the best error, in [0, 1].

    Values of a function count by their logarithms.

    Example:
        >>> progress(0.25, 1.0, 0.0, measure="wrong answers")
        0.75
        >>> progress(1e-2, 1.0, 1e-4, measure=VALUE)
        0.5
    """
    if measure == VALUE:
        error, start, best = (math.log10(max(x, FLOOR)) for x in (error, start, best))
    if start <= best:
        return 1.0
    return min(1.0, max(0.0, (start - error) / (start - best)))


def steps_to(target: float, run: Json, steps: int) -> int | None:
    """Return the steps at the first evaluation with at most the target; None for a miss."""
    for number, error in enumerate(run["curve"]):
        if error is not None and error <= target:
            return round(steps * number / EVALUATIONS)
    return None


def summary(runs: Sequence[Json], target: float, steps: int) -> Json:
    """Return the statistics of the runs with one rate.

    "steps_to_target" is a median that counts misses as infinite; it is None where it is infinite.
    """
    errors = [settled(run["test"], run["start"])[0] for run in runs]
    lower, median, upper = np.quantile(errors, (0.25, 0.5, 0.75)).tolist()
    needed = [steps_to(target, run, steps) for run in runs]
    middle = _median([math.inf if n is None else n for n in needed])
    return {
        "median": median,
        "quartiles": [lower, upper],
        "interval": interval(errors),
        "errors": errors,
        "diverged": sum(None in run["validation"] for run in runs),
        "reached": sum(n is not None for n in needed),
        "of": len(runs),
        "steps_to_target": None if math.isinf(middle) else middle,
    }


def _median(values: Sequence[float]) -> float:
    """Return the median; of two middle values of which one is infinite, infinity."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def curve(runs: Sequence[Json]) -> Json:
    """Return the median and the quartiles of the error on validation, at each evaluation."""
    errors = np.asarray([[settled([e], run["start"][:1])[0] for e in run["curve"]] for run in runs])
    names = ("lower", "median", "upper")
    found = np.quantile(errors, (0.25, 0.5, 0.75), axis=0)
    return {name: _rounded(row) for name, row in zip(names, found, strict=True)}


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def problem_report(problem: Problem, cells: Mapping[str, Json]) -> Json:
    """Return the report on a problem: a result for each optimizer, the best one, and its ties.

    The best one has the least median; the mean decides between equal ones.
    "progress" compares with the best tuned optimizer, also for the runs that are not tuned.
    """
    steps = next(iter(cells.values()))["steps"]
    results: dict[str, Json] = {}
    for name, cell in cells.items():
        sensitivity = [[t["rate"], mean_score(t["runs"])[0]] for t in cell["tuning"]]
        results[name] = {
            "rate": cell["rate"],
            "at_edge": cell["at_edge"],
            "tuned": summary(cell["tuned"], problem.target, steps),
            "untuned": summary(cell["untuned"], problem.target, steps),
            "curve": curve(cell["tuned"]),
            "start": _median([run["start"][0] for run in cell["tuned"]]),
            "sensitivity": sensitivity,
        }
    errors = {name: judged(r["tuned"]["errors"], problem.measure) for name, r in results.items()}
    best = min(errors, key=lambda name: (_median(errors[name]), math.fsum(errors[name])))
    least = min(error for r in results.values() for _, error in r["sensitivity"])
    for name, result in results.items():
        start = result["start"]
        for found in (result["tuned"], result["untuned"]):
            found["progress"] = progress(
                found["median"], start, results[best]["tuned"]["median"], measure=problem.measure
            )
        result["ties_with_best"] = tie(errors[name], errors[best])
        result["decades"] = _decades(result["sensitivity"], start, least, problem.measure)
    return {
        "title": problem.title,
        "measure": problem.measure,
        "target": problem.target,
        "steps": steps,
        "small": problem.small,
        "best": best,
        "results": results,
    }


def _decades(
    sensitivity: Sequence[Sequence[float]], start: float, least: float, measure: str
) -> float:
    """Return how many decades of learning rates make nearly all of the best progress.

    The best is that of all optimizers in tuning. Each rate stands for the distance between its
    neighbours.
    """
    rates = [math.log10(rate) for rate, _ in sensitivity]
    width = (rates[-1] - rates[0]) / (len(rates) - 1)
    works = [progress(e, start, least, measure=measure) >= ENOUGH for _, e in sensitivity]
    return round(width * sum(works), 2)


def profile(problems: Mapping[str, Json], optimizers: Sequence[str]) -> Json:
    """Return the performance profile (Dolan and Moré, 2002).

    For each factor: the share of the problems on which an optimizer needs at most so many times the
    steps of the fastest to the target. A problem that nobody solves counts as one that is missed.
    """
    shares = {}
    for name in optimizers:
        ratios = []
        for report in problems.values():
            needed = {
                other: result["tuned"]["steps_to_target"]
                for other, result in report["results"].items()
                if result["tuned"]["steps_to_target"] is not None
            }
            own = needed.get(name)
            ratios.append(math.inf if own is None else max(own, 1) / max(min(needed.values()), 1))
        shares[name] = [sum(r <= factor for r in ratios) / len(ratios) for factor in FACTORS]
    return {"factors": FACTORS, "shares": shares}


def study_report(study: Study, problem: Problem, cells: Mapping[str, Json]) -> Json:
    """Return the report on a study: for each optimizer and setting, two summaries."""
    results = {}
    for name, cell in cells.items():
        results[name] = [
            {
                "rate": found["rate"],
                "at_edge": found["at_edge"],
                "tuned": summary(found["tuned"], problem.target, cell["steps"]),
                "ordinary": summary(found["ordinary"], problem.target, cell["steps"]),
            }
            for found in cell["cells"]
        ]
    return {
        "title": study.title,
        "problem": problem.title,
        "measure": problem.measure,
        "settings": list(study.settings),
        "ordinary": study.ordinary,
        "results": results,
    }
