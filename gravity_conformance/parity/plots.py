"""The plots of a parity run: losses, their differences, and deviations under their bound."""

import itertools
import math
from typing import TYPE_CHECKING

from gravity_conformance import _drawing
from gravity_conformance.parity.report import TITLE
from gravity_conformance.parity.run import Report, TrainingRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# So that curves on top of each other show each other.
_STYLES = ("-", "--", "-.", ":")


def picture(report: Report) -> bytes:
    """Return all plots as one PNG file: a column for each dtype."""
    dtypes = _dtypes(report)
    with _drawing.clean():
        columns = max(len(dtypes), 1)
        curves = max(len([row for row in report.replays if row.dtype == d]) for d in [*dtypes, ""])
        height = max(3.5, 0.25 * curves)  # for the legends
        figure, axes = _drawing.figure((7 * columns, len(PLOTS) * height), len(PLOTS), columns)
        for row, draw in zip(axes, PLOTS, strict=True):
            for axis, dtype in zip(row, dtypes, strict=False):
                draw(axis, report, dtype)
                if axis.get_legend_handles_labels()[0]:
                    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return _drawing.png(figure, TITLE)


def drawings(report: Report) -> list[str]:
    """Return the plots as SVG elements, each readable on a phone."""
    result: list[str] = []
    with _drawing.clean():
        for dtype, draw in itertools.product(_dtypes(report), PLOTS):
            curves = len(report.replays if draw is deviations else _trained(report, dtype))
            figure, axes = _drawing.figure((4.4, 3.0 + 0.1 * curves))
            axis = axes[0, 0]
            draw(axis, report, dtype)
            _drawing.legend_below(figure, axis)
            result.append(_drawing.svg(figure, axis.get_title(), f"p{len(result)}"))
    return result


def losses(axis: "Axes", report: Report, dtype: str) -> None:
    """Draw the loss curves of the training with own gradients."""
    trained = _trained(report, dtype)
    for i, training in enumerate(trained):
        epochs = range(1, len(training.losses) + 1)
        # The curves coincide, so each is thinner than the one below it.
        width, style = 1.2 + 1.6 * (len(trained) - 1 - i), _STYLES[i % len(_STYLES)]
        name = _drawing.label(training.backend)
        axis.semilogy(epochs, training.losses, style, lw=width, label=name)
    axis.set(title=f"Own gradients, {dtype}", xlabel="epoch", ylabel="training loss")
    axis.locator_params(axis="x", integer=True)


def loss_differences(axis: "Axes", report: Report, dtype: str) -> None:
    """Draw the differences of the loss curves, which no plot of the curves themselves shows."""
    trained = _trained(report, dtype)
    numpy = (row for row in trained if row.backend == "numpy")
    first = next(numpy, trained[0] if trained else None)
    for i, training in enumerate(trained):
        if first is None or training is first:
            continue
        differences = [a - b for a, b in zip(training.losses, first.losses, strict=True)]
        style = _STYLES[i % len(_STYLES)]
        epochs = range(1, len(differences) + 1)
        # The colour of its curve among the losses.
        name = _drawing.label(training.backend)
        axis.plot(epochs, differences, style, color=f"C{i % 10}", lw=1.5, label=name)
    axis.axhline(0, color="0.5", lw=0.8)
    name = "NumPy" if first is None or first.backend == "numpy" else _drawing.label(first.backend)
    axis.set(title=f"Own gradients, {dtype}: difference", xlabel="epoch", ylabel=f"loss − {name}'s")
    axis.locator_params(axis="x", integer=True)


def deviations(axis: "Axes", report: Report, dtype: str) -> None:
    """Draw the deviation of W from the reference, under its certified bound."""
    bound: list[float] = []
    for row in (row for row in report.replays if row.dtype == dtype and row.grade):
        assert row.grade is not None
        bound = bound or row.grade.bound
        deviation = [d if d > 0 else math.nan for d in row.grade.deviation]
        name = f"{_drawing.label(row.backend)} {_drawing.label(row.mode)}: {row.grade.verdict}"
        axis.semilogy(range(1, len(deviation) + 1), deviation, lw=1, label=name)
    axis.semilogy(range(1, len(bound) + 1), bound, "k", lw=2, label="certified bound")
    axis.set(
        title=f"Replayed gradients, {dtype}",
        xlabel="step",
        ylabel="max |W − reference| (exact: no line)",
    )


PLOTS = (losses, loss_differences, deviations)


def _dtypes(report: Report) -> list[str]:
    trained = [row.dtype for row in report.trainings]
    return list(dict.fromkeys(trained + [row.dtype for row in report.replays]))


def _trained(report: Report, dtype: str) -> list[TrainingRow]:
    return [row for row in report.trainings if row.dtype == dtype and row.losses]
