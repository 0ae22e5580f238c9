"""The report of a parity run: tables for a terminal and for Markdown, parity.json, parity.png.

Guarantee: files are complete or absent. They are written to a temporary folder and moved.
"""

import contextlib
import json
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gravity_conformance._output import finite, markdown_table
from gravity_conformance.parity.run import Report

FILES = ("parity.json", "parity.md", "parity.png")

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


def markdown(report: Report) -> str:
    """Return both tables and the notes as Markdown, for the README."""
    tables = (
        ("Recorded gradients, replayed", REPLAY_HEADER, replay_rows(report)),
        ("Own gradients", TRAINING_HEADER, training_rows(report)),
    )
    lines = []
    for title, header, rows in tables:
        lines += [f"**{title}**", "", *markdown_table(header, rows), ""]
    return "\n".join(lines + [f"- {note}" for note in [LEGEND, *notes(report)]]) + "\n"


def write(report: Report, directory: Path) -> list[Path]:
    """Write parity.json, parity.md and parity.png into `directory`; return their paths."""
    text = json.dumps(finite(report.to_json()), indent=1, ensure_ascii=False, allow_nan=False)
    writers: tuple[Callable[[Path], Any], ...] = (
        lambda path: path.write_text(text + "\n", encoding="utf-8"),
        lambda path: path.write_text(markdown(report), encoding="utf-8"),
        lambda path: draw(report, path),
    )
    # All files are written before the first is moved. Nothing interrupts the moves.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".parity-") as scratch:
        for name, writer in zip(FILES, writers, strict=True):
            writer(Path(scratch, name))
        with _uninterrupted():
            for name in FILES:
                os.replace(Path(scratch, name), directory / name)
    return [directory / name for name in FILES]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _label(name: str) -> str:
    """Return a name for a legend: short, without mathematics, and not hidden by an underscore."""
    short = name if len(name) <= 40 else f"…{name[-39:]}"
    return short.replace("$", r"\$").replace("_", "\u200b_", 1 if short.startswith("_") else 0)


def draw(report: Report, path: Path) -> None:
    """Draw, for each dtype, the loss curves and the deviation of W under its certified bound."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row.dtype for row in report.trainings))
    rows = len(dtypes) or 1  # subplots needs at least one row
    figure = Figure(figsize=(14, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False)
    for (left, right), dtype in zip(axes, dtypes, strict=False):
        styles = ("-", "--", "-.", ":")
        trained = [row for row in report.trainings if row.dtype == dtype and row.losses]
        for i, training in enumerate(trained):
            epochs = range(1, len(training.losses) + 1)
            # The curves overlap, so each is thinner than the one below it.
            style = styles[i % len(styles)]
            width = 1.2 + 1.6 * (len(trained) - 1 - i)
            left.semilogy(epochs, training.losses, style, lw=width, label=_label(training.backend))
        left.set(title=f"Own gradients, {dtype}", xlabel="epoch", ylabel="training loss")
        left.xaxis.get_major_locator().set_params(integer=True)

        bound: list[float] = []
        for row in (row for row in report.replays if row.dtype == dtype and row.grade):
            assert row.grade is not None
            bound = bound or row.grade.bound
            deviation = [d if d > 0 else math.nan for d in row.grade.deviation]
            label = f"{_label(row.backend)} {row.mode}: {row.grade.verdict}"
            right.semilogy(range(1, len(deviation) + 1), deviation, lw=1, label=label)
        right.semilogy(range(1, len(bound) + 1), bound, "k", lw=2, label="certified bound")
        right.set(
            title=f"Replayed gradients, {dtype}",
            xlabel="step",
            ylabel="max |W − reference| (exact: no line)",
        )
        for axis in (left, right):
            axis.grid(alpha=0.3)
            if axis.get_lines():
                axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110, format="png")
