"""The report of `gravity conform`: as text, as JSON, and as one page of HTML."""

import json
import math
from html import escape
from typing import TYPE_CHECKING

from gravity_conformance import _drawing, _html
from gravity_conformance._output import Line, Part, Table, finite, markdown_table, plain
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.conform.mending import mends
from gravity_conformance.conform.runner import Report, Result
from gravity_conformance.conform.verdict import sentence as verdict
from gravity_conformance.mutations import MUTATIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = ("check", "result", "worst u·S", "what was found")
LEGEND = (
    "worst u·S: largest error of one update in units of u·S, where u is the unit roundoff and S is "
    "the sum of the absolute values of the added terms; "
    "an element differs if its error exceeds the certified bound of gravity_core.ErrorBound"
)


def listing() -> str:
    """Return the checks and the known mistakes as text."""
    width = max(map(len, CHECKS))
    lines = ["checks (--only):"]
    for name, check in CHECKS.items():
        says = (check.function.__doc__ or check.title).strip()  # -OO drops docstrings
        lines.append(f"  {name.ljust(width)}  {says}")
    mistakes = dict.fromkeys(variant.description for variant in MUTATIONS)
    return "\n".join([*lines, "", "known mistakes:", *(f"  {m}" for m in mistakes)]) + "\n"


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table, without its header."""
    return [(r.title, r.outcome, _worst(r), _found(r)) for r in report.results]


def _worst(result: Result) -> str:
    return "–" if result.worst is None else f"{result.worst:.3g}"


def _found(result: Result) -> str:
    diagnosis = result.diagnosis and f"diagnosis: {result.diagnosis}"
    return "; ".join(part for part in (diagnosis, result.note, result.first) if part)


def head(report: Report) -> str:
    """Return the first line: the implementation, and the versions that it ran with."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return f"{report.spec} ({report.kind or 'unknown kind'}), {versions or 'nothing was run'}"


def parts(report: Report) -> list[Part]:
    """Return the report for a terminal."""
    said = f"the implementation printed {report.printed} bytes, which are not shown"
    return [
        Line(head(report)),
        *([_table(report), Line(LEGEND), Line(_inputs(report))] if report.results else [Line("")]),
        *([Line(said)] if report.printed else []),
        *([Line(_unseen(report))] if report.unseen else []),
        _verdict(report, f"conform: {verdict(report)}"),
        *(Line(f'to mend "{mistake}": {mend}') for mistake, mend in mends(report.diagnoses)),
    ]


def _inputs(report: Report) -> str:
    return f"inputs generated from seed {report.seed}, {report.level} level"


def _unseen(report: Report) -> str:
    return f"not judged, because no check ran these lines: {report.unseen}"


def _table(report: Report) -> Table:
    return Table(HEADER, rows(report), long=True)


def _verdict(report: Report, words: str) -> Line:
    return Line(words, "good" if report.status == 0 else "bad")


def text(report: Report) -> str:
    """Return the report as plain text."""
    return plain(parts(report))


def markdown(report: Report) -> str:
    """Return the report as Markdown, as docs/conformance.md shows it."""
    table = "\n".join(markdown_table(HEADER, rows(report)))
    lines = [f"- To mend *{mistake}*: {mend}" for mistake, mend in mends(report.diagnoses)]
    mending = "\n" + "\n".join(lines) + "\n" if lines else ""
    return f"{head(report)}:\n\n{table}\n\n**{verdict(report)}**\n{mending}"


def as_json(report: Report) -> str:
    """Return the report as JSON; NaN and infinities are strings."""
    return json.dumps(finite(report.to_json()), indent=1, ensure_ascii=False) + "\n"


def page(report: Report, command: str) -> str:
    """Return the report as one self-contained page; `command` reproduces it."""
    found = [
        f"<b>To mend {escape(mistake)}</b>: {escape(mend)}"
        for mistake, mend in mends(report.diagnoses)
    ]
    body = [
        "<h1>gravity conform</h1>",
        _html.paragraph(Line(head(report))),
        _html.paragraph(_verdict(report, verdict(report))),
        _html.bullets(found),
        *([_html.table(_table(report))] if report.results else []),
        _html.paragraph(Line(LEGEND)),
        _html.paragraph(Line(_inputs(report))),
        *([_html.paragraph(Line(_unseen(report)))] if report.unseen else []),
    ]
    for k, result in enumerate(result for result in report.results if result.plot):
        body += [f"<h2>{escape(result.title)}</h2>", _html.plots(drawings(result.plot, f"p{k}"))]
    return _html.page(f"gravity conform: {report.spec}", [*body, _html.origin(command)])


def drawings(plot: dict[str, list[float]], prefix: str) -> list[str]:
    """Draw W along a trajectory, its difference from the exact W, and that under its bound.

    Args:
        plot: the curves of a result.
        prefix: of the ids in the drawings.
    """
    result: list[str] = []
    with _drawing.clean():
        for draw in (_weights, _differences, _deviation):
            figure, axes = _drawing.figure((4.4, 3.4))
            axis = axes[0, 0]
            draw(axis, plot)
            axis.set_xlabel("step")
            _drawing.legend_below(figure, axis)
            result.append(_drawing.svg(figure, axis.get_title(), f"{prefix}-{len(result)}"))
    return result


def _weights(axis: "Axes", plot: dict[str, list[float]]) -> None:
    for i in range(3):
        path, exact = plot[f"implementation {i}"], plot[f"reference {i}"]
        steps = range(1, len(path) + 1)
        axis.plot(steps, exact, lw=4, alpha=0.35, color=f"C{i}")
        axis.plot(steps, path, lw=1, color=f"C{i}", label=f"tensor {i}")
    axis.set_title("first element of W (thick: exact)")


def _differences(axis: "Axes", plot: dict[str, list[float]]) -> None:
    for i in range(3):
        pairs = zip(plot[f"implementation {i}"], plot[f"reference {i}"], strict=True)
        differences = [a - b for a, b in pairs]
        axis.plot(range(1, len(differences) + 1), differences, lw=1, label=f"tensor {i}")
    axis.set_title("first element of W − exact")


def _deviation(axis: "Axes", plot: dict[str, list[float]]) -> None:
    steps = range(1, len(plot["bound"]) + 1)
    shown = [d if 0 < d < math.inf else math.nan for d in plot["deviation"]]
    axis.semilogy(steps, shown, lw=1, label="implementation")
    axis.semilogy(steps, plot["bound"], "k", lw=2, label="certified bound")
    axis.set_title("max |W − exact|")
