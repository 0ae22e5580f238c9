"""The report of `gravity conform`: as text, as JSON, and as one page of HTML."""

import html
import io
import json
import math
import re

import gravity_core
from gravity_conformance._output import POLICY, finite, markdown_table
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.conform.runner import Report, Result
from gravity_conformance.mutations import MUTATIONS

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
        says = (check.function.__doc__ or "").strip()
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


def verdict(report: Report) -> str:
    """Return the last line of the report."""
    if report.error is not None:
        return f"could not run: {report.error}"
    if report.status == 0:
        return "conforms"
    counts = {
        outcome: sum(result.outcome == outcome for result in report.results)
        for outcome in ("differs", "error")
    }
    parts = [f"{n} of {len(report.results)} checks: {what}" for what, n in counts.items() if n]
    text = "does not conform, " if report.status == 1 else "could not run, "
    return "; ".join([text + ", ".join(parts), *report.diagnoses])


def head(report: Report) -> str:
    """Return the first line: the implementation, and the versions that it ran with."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return f"{report.spec} ({report.kind or 'unknown kind'}), {versions or 'nothing was run'}"


def text(report: Report) -> str:
    """Return the report for a terminal."""
    lines = [head(report), ""]
    table = [HEADER, *rows(report)]
    widths = [max(len(row[k]) for row in table) for k in range(3)]
    for row in table if report.results else []:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        lines.append("  ".join([*cells, row[3]]).rstrip())
    lines += ["", LEGEND] if report.results else []
    if report.printed:
        lines.append(f"the implementation printed {report.printed} bytes, which are not shown")
    return "\n".join([*lines, f"conform: {verdict(report)}"]) + "\n"


def markdown(report: Report) -> str:
    """Return the report as Markdown, as docs/conformance.md shows it."""
    table = "\n".join(markdown_table(HEADER, rows(report)))
    return f"{head(report)}:\n\n{table}\n\n**{verdict(report)}**\n"


def as_json(report: Report) -> str:
    """Return the report as JSON; NaN and infinities are strings."""
    return json.dumps(finite(report.to_json()), indent=1, ensure_ascii=False) + "\n"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>gravity conform: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .3rem .7rem; text-align: left;
vertical-align: top; border-bottom: 1px solid #ccc }}
.pass {{ color: #060 }} .differs, .error {{ color: #a00; font-weight: bold }} .not {{ color: #666 }}
svg {{ max-width: 100%; height: auto }}
</style></head><body>
<h1>gravity conform</h1><p>{head}</p><p class="{mood}">{verdict}</p>
<table><thead><tr>{header}</tr></thead><tbody>
{rows}
</tbody></table><p>{legend}</p>
{plots}
<p>gravity {version}; made by <code>{command}</code></p></body></html>
"""


def page(report: Report, command: str) -> str:
    """Return the report as one self-contained page; `command` reproduces it."""
    cells = []
    for row in rows(report):
        kind = row[1].split()[0]
        inner = "".join(
            f'<td class="{kind}">{html.escape(cell)}</td>'
            if k == 1
            else f"<td>{html.escape(cell)}</td>"
            for k, cell in enumerate(row)
        )
        cells.append(f"<tr>{inner}</tr>")
    plots = [
        f"<h2>{html.escape(result.title)}</h2>\n{_svg(result.plot)}"
        for result in report.results
        if result.plot
    ]
    return _PAGE.format(
        policy=html.escape(POLICY),
        title=html.escape(report.spec),
        head=html.escape(head(report)),
        mood="pass" if report.status == 0 else "differs",
        verdict=html.escape(verdict(report)),
        header="".join(f"<th>{name}</th>" for name in HEADER),
        rows="\n".join(cells),
        legend=LEGEND,
        plots="\n".join(plots),
        version=gravity_core.__version__,
        command=html.escape(command),
    )


def _svg(plot: dict[str, list[float]]) -> str:
    """Draw W along a trajectory, and its deviation under the certified bound."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Keep text as text, and give the same ids in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gravity"}):
        figure = Figure(figsize=(11, 4), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2)
        for i in range(3):
            path, exact = plot[f"implementation {i}"], plot[f"reference {i}"]
            steps = range(1, len(path) + 1)
            left.plot(steps, exact, lw=4, alpha=0.35, color=f"C{i}", label=f"reference, tensor {i}")
            left.plot(steps, path, lw=1, color=f"C{i}", label=f"implementation, tensor {i}")
        left.set(title="first element of W", xlabel="step")
        steps = range(1, len(plot["bound"]) + 1)
        shown = [d if 0 < d < math.inf else math.nan for d in plot["deviation"]]
        right.semilogy(steps, shown, lw=1, label="implementation")
        right.semilogy(steps, plot["bound"], "k", lw=2, label="certified bound")
        right.set(title="max |W − exact|", xlabel="step")
        for axis in (left, right):
            axis.grid(alpha=0.3)
            axis.legend(fontsize="small")
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]  # HTML allows no XML declaration here,
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing)  # and needs no XML namespaces
    return drawing.replace(" xlink:href=", " href=")
