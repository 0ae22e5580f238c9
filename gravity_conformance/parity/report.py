"""The report of a parity run: tables and notes for people, parity.json and parity.md."""

import json
from collections.abc import Sequence
from pathlib import Path

from gravity_conformance import _output
from gravity_conformance._output import Line, Part, Table, finite, markdown_table
from gravity_conformance._status import COULD_NOT, DIFFERS, RIGHT, CouldNotError
from gravity_conformance.parity.run import Report
from gravity_core import _files
from gravity_core._json import loads

PICTURE = "parity.png"
TITLE = "gravity parity"  # of the picture
FILES = ("parity.json", "parity.md", PICTURE)

Rows = list[list[str]]

REPLAY_HEADER = [
    "backend", "mode", "dtype", "V₀", "grade", "worst u·S", "of bound", "bound on W", "seconds",
]  # fmt: skip
TRAINING_HEADER = [
    "backend", "dtype", "test accuracy", "final loss", "max |W − NumPy|", "seconds",
]  # fmt: skip
LEGEND = (
    "worst u·S: largest rounding error of one update of V in units of u·S, where u is the unit "
    "roundoff and S = |β̂V| + |(1 − β̂)ζ| (certified: at most 11); "
    "of bound: largest deviation of V or W, as a fraction of its certified bound; "
    "bound on W: the largest certified bound on W after the last step"
)


def replay_rows(report: Report) -> Rows:
    """Return the rows of the table on recorded gradients."""
    rows = []
    for row in report.replays:
        start, end = [row.backend, row.mode, row.dtype], f"{row.seconds:.1f}"
        if row.grade is None:
            rows.append([*start, "–", "error", "–", "–", "–", end])
            continue
        g = row.grade
        v0 = "same" if g.v0_identical else "own" if row.stranger else "differs"
        measured = [f"{g.worst:.2f}", f"{g.share:.3f}", f"{g.bound[-1]:.1e}" if g.bound else "–"]
        rows.append([*start, v0, g.verdict, *measured, end])
    return rows


def training_rows(report: Report) -> Rows:
    """Return the rows of the table on own gradients."""
    rows = []
    for row in report.trainings:
        if row.error is not None:
            rows.append([row.backend, row.dtype, "error", "–", "–", f"{row.seconds:.1f}"])
            continue
        accuracy = f"{100 * row.correct / row.images:.2f} % ({row.correct}/{row.images})"
        loss = f"{row.losses[-1]:.6f}" if row.losses else "–"
        deviation = f"{row.weight_deviation:.1e}"
        rows.append([row.backend, row.dtype, accuracy, loss, deviation, f"{row.seconds:.1f}"])
    return rows


def notes(report: Report) -> list[str]:
    """Return notes on errors, divergences and backends that did not run."""
    lines = [
        f"{row.backend} {row.mode} {row.dtype}: {message}"
        for row in report.replays
        if (message := row.error or (row.grade and row.grade.first_divergence))
    ]
    for note in dict.fromkeys(note for row in report.replays for note in row.notes):
        noted = [row for row in report.replays if note in row.notes]
        for name in dict.fromkeys(row.backend for row in noted):
            dtypes = dict.fromkeys(row.dtype for row in noted if row.backend == name)
            every = {row.dtype for row in report.replays if row.backend == name}
            only = "" if dtypes.keys() == every else f" {', '.join(dtypes)}"
            lines.append(f"{name}{only}: {note}")
    lines += [f"{r.backend} {r.dtype} training: {r.error}" for r in report.trainings if r.error]
    lines += _differing_accuracies(report)
    flushing = dict.fromkeys(r.backend for r in report.replays if r.grade and r.grade.flushed)
    if flushing:
        lines.append(
            f"{', '.join(flushing)}: numbers below the smallest normal number are flushed to "
            "zero and count as equal"
        )
    lines += [f"{name}: not run, {reason}" for name, reason in report.not_run.items()]
    lines += [
        f"{name}: not installed (no {missing})" for name, missing in report.not_installed.items()
    ]
    return lines + report.failures


def _differing_accuracies(report: Report) -> list[str]:
    """Explain, if possible, test accuracies of a dtype that differ by more than one image."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in report.trainings):
        rows = [r for r in report.trainings if r.dtype == dtype and r.error is None]
        own = {
            r.backend
            for r in report.replays
            if r.dtype == dtype and r.stranger and not (r.grade and r.grade.v0_identical)
        }
        best = max((r.correct for r in rows if r.backend not in own), default=0)
        for row in rows:
            if best - row.correct <= 1:
                continue
            replays = [r for r in report.replays if (r.backend, r.dtype) == (row.backend, dtype)]
            more = best - row.correct
            start = f"{row.backend} {dtype}: it misclassifies {more} more images than the best"
            if row.backend in own and any(r.grade for r in replays):
                lines.append(f"{start}; it starts from its own V₀")
            elif replays and all(r.passed for r in replays):
                lines.append(
                    f"{start}; its optimizer agrees on recorded gradients, so its own gradients "
                    f"differ (the final weights differ by {row.weight_deviation:.1e})"
                )
            else:
                lines.append(f"{start}; its optimizer also disagrees on recorded gradients")
    return lines


def tables(report: Report) -> list[Table]:
    """Return both tables."""
    replayed = f"Recorded gradients, replayed for {report.steps} steps"
    return [
        Table(REPLAY_HEADER, replay_rows(report), replayed, keys=3),
        Table(TRAINING_HEADER, training_rows(report), "Own gradients", keys=2),
    ]


def verdict(report: Report) -> str:
    """Return the last line of the report."""
    return "every backend present is exact or bounded" if report.passed else "FAILED"


def parts(report: Report, paths: Sequence[Path]) -> list[Part]:
    """Return the report for a terminal; `paths` are the files that were written."""
    return [
        *(table for table in tables(report) if table.rows),
        *(Line(f"• {note}") for note in [LEGEND, *notes(report)]),
        *(Line(f"wrote {path}") for path in paths),
        Line(f"parity: {verdict(report)}", "good" if report.passed else "bad"),
    ]


def status(report: Report) -> int:
    """Return 0 if all passed, 1 if something is wrong, and 2 if nothing could be compared."""
    if report.passed:
        return RIGHT
    return DIFFERS if any(row.grade for row in report.replays) else COULD_NOT


def markdown(report: Report) -> str:
    """Return both tables and the notes as Markdown, for the README."""
    lines = []
    for table in tables(report):
        title = table.title.partition(" for ")[0]
        lines += [f"**{title}**", "", *markdown_table(table.header, table.rows), ""]
    return "\n".join(lines + [f"- {note}" for note in [LEGEND, *notes(report)]]) + "\n"


def as_json(report: Report) -> str:
    """Return the report as JSON; NaN and infinities are strings."""
    values = finite(report.to_json())
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def check_folder(out: Path) -> None:
    """Raise if a folder holds files of the names of a report that no earlier run has written.

    Raises:
        CouldNotError: naming the folder and the file.
    """
    for name in FILES:
        if (out / name).is_file() and not _is_ours(out / name):
            raise CouldNotError(
                f"--out must be a new folder or that of an earlier report, got {str(out)!r}, which "
                f"holds {name!r}; --force writes there all the same"
            )


def _is_ours(path: Path) -> bool:
    """Tell whether a run has written a file of the name of a report's."""
    try:
        with _files.open_regular(path) as file:
            data = file.read()
        if path.suffix != ".json":
            marks = {".md": LEGEND.encode("utf-8"), ".png": f"Title\0{TITLE}".encode()}
            return marks[path.suffix] in data
        content = loads(data.decode("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"gravity", "replays", "trainings"} <= content.keys()


def write(report: Report, directory: Path) -> list[Path]:
    """Write parity.json and parity.md into `directory`, remove its parity.png, return the paths.

    The picture comes later, from `plots`. Without it, that of an earlier run must not stay.
    """
    texts = {"parity.json": as_json(report), "parity.md": markdown(report), PICTURE: None}
    _output.write({directory / name: text for name, text in texts.items()})
    return [directory / name for name, text in texts.items() if text is not None]
