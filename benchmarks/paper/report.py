"""Our runs beside the published ones, at the same epochs: tables and the figure.

Guarantee: the mislabelled run is marked wherever it is shown, and no comparison uses it.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.labels import spread
from benchmarks.paper.published import (
    DATASETS,
    OPTIMIZERS,
    Run,
    comparisons,
    counts,
    published,
)
from benchmarks.paper.settings import Settings
from benchmarks.paper.training import ABOUT, HISTORY
from gravity_conformance import _drawing
from gravity_conformance._output import Line, Table, finite, plain
from gravity_conformance._status import CouldNotError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"gravity": "#1f5fa8", "adam": "#c8501e", "rmsprop": "#2b7a4b"}
_CONTROLS = {"alpha0": "#6d4a9c", "he": "#a3195b", "noise": "#8a6d00"}
_MUTED = "#66727f"
_Label = tuple[float, float, str, str]  # where a curve ends: epoch, error; its name and colour
_EPOCHS = (1, 2, 5, 10, 20, 50, 100)
_ERRORS = (0.5, 1, 2, 5, 10, 20, 30, 50, 70, 100)  # in per cent
_FEW_ERRORS = (0.5, 1, 2, 5, 10, 20, 50, 100)
MARK = "*"  # of the mislabelled run


@dataclasses.dataclass(frozen=True)
class Ours:
    """A run of ours, complete or not.

    Attributes:
        settings: of the run.
        starts: the machine and the versions, for each time that it was started or continued.
        history: the lines of `history.csv`.
    """

    settings: Settings
    starts: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, float]]

    @property
    def published(self) -> Run:
        """The published run of the same data set, network and optimizer."""
        settings = self.settings
        return published()[settings.dataset, settings.architecture, settings.optimizer]

    @property
    def last(self) -> Mapping[str, float]:
        """The last line of the history."""
        return self.history[-1]


def collected(folder: Path) -> list[Ours]:
    """Return the runs in a folder that have at least one line, in the order of the pages.

    Raises:
        CouldNotError: naming a file that cannot be read.
    """
    found = []
    for path in sorted(folder.glob(f"*/{HISTORY}")):
        try:
            about = json.loads((path.parent / ABOUT).read_text(encoding="utf-8"))
            with path.open(encoding="utf-8", newline="") as file:
                rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
            run = Ours(Settings(**about["settings"]), about["starts"], rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CouldNotError(f"{path.parent} cannot be read: {error!r}") from error
        if rows:
            found.append(run)
    return ordered(found)


def ordered(runs: Sequence[Ours]) -> list[Ours]:
    """Return runs in the order of the published ones, controls after their Gravity."""
    places = {key: place for place, key in enumerate(published())}
    return sorted(
        runs,
        key=lambda run: (places[run.published.key], run.settings.ablation or "", run.settings.name),
    )


def as_json(runs: Sequence[Ours]) -> str:
    """Return runs as the content of docs/paper.json."""
    content = [finite(dataclasses.asdict(run)) for run in runs]
    return json.dumps({"runs": content}, indent=1) + "\n"


def from_json(path: Path) -> list[Ours]:
    """Return the runs that `as_json` wrote."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return [
        Ours(
            Settings(**run["settings"]),
            run["starts"],
            [{name: float(value) for name, value in line.items()} for line in run["history"]],
        )
        for run in runs
    ]


def published_table() -> Table:
    """Return the thirty published runs with what is known of each."""
    ahead = comparisons(published().values())
    rows = []
    for run in published().values():
        best = f"{run.best_val_accuracy:.2%}"
        if run.optimizer in ahead.get((run.dataset, run.architecture), []):
            best += " (highest)"
        rows.append(
            (
                f"{DATASETS[run.dataset][0]}, {run.architecture.upper()}",
                OPTIMIZERS[run.optimizer] + (MARK if run.is_mislabelled else ""),
                f"{run.learning_rate:g}",
                best,
                f"{run.final_val_accuracy:.2%}",
                f"{run.min_train_loss:.2g}",
                f"{run.loss[0]:.3f}",
                str(run.output_units),
            )
        )
    header = (
        *("run", "optimizer", "rate", "best test accuracy", "final", "lowest training loss"),
        *("loss of epoch 1", "outputs"),
    )
    return Table(header, rows, keys=2)


def reason() -> str:
    """Return which run is mislabelled, and how its numbers show it."""
    runs = list(published().values())
    (run,) = (run for run in runs if run.is_mislabelled)
    others = [
        other.loss[0] for other in runs if other.dataset == run.dataset and not other.is_mislabelled
    ]
    title = f"{DATASETS[run.dataset][0]}, {run.architecture.upper()}, {OPTIMIZERS[run.optimizer]}"
    units, classes = run.output_units, run.classes
    return (
        f"The run “{title}” ({run.best_val_accuracy:.2%}) was trained on the {units} coarse "
        f"labels, not on the {classes} fine ones: the network saved with it has {units} outputs. "
        f"Its loss fits that: in the first epoch it is {run.loss[0]:.3f} on average, where equal "
        f"probabilities give ln {units} = {math.log(units):.3f}. The other {len(others)} runs on "
        f"the fine labels begin at {min(others):.2f} to {max(others):.2f} "
        f"(ln {classes} = {math.log(classes):.3f})."
    )


def counted() -> str:
    """Return in how many comparisons each optimizer is ahead."""
    runs = list(published().values())
    won, ties = counts(runs)
    names = ", ".join(f"{OPTIMIZERS[name]} in {number}" for name, number in won.items())
    tied = f", and {ties} are ties" if ties else ""
    return (
        f"{len(comparisons(runs))} comparisons remain without the mislabelled run. The best test "
        f"accuracy is highest for {names}{tied}."
    )


def ours_table(runs: Sequence[Ours]) -> Table:
    """Return our runs, each beside the published one after as many epochs."""
    rows = []
    for run in runs:
        settings, theirs, last = run.settings, run.published, run.last
        epoch = int(last["epoch"])
        published_then = "–"
        if not (settings.ablation or theirs.is_mislabelled) and 0 < epoch <= theirs.epochs:
            published_then = f"{theirs.val_accuracy[epoch - 1]:.2%}"
        rows.append(
            (
                f"{DATASETS[settings.dataset][0]}, {settings.architecture.upper()}",
                settings.title + (MARK if theirs.is_mislabelled else ""),
                settings.framework + (", bfloat16" if settings.mixed_precision else ""),
                str(settings.seed),
                f"{last['epoch']:.4g}",
                f"{last['loss']:.4f}",
                f"{last['val_accuracy']:.2%}",
                published_then,
            )
        )
    header = (
        *("run", "optimizer", "framework", "seed", "epochs", "training loss"),
        *("test accuracy", "published, same epoch"),
    )
    return Table(header, rows, keys=2)


def as_text(runs: Sequence[Ours]) -> str:
    """Return the report."""
    parts: list[Line | Table] = [
        published_table(),
        Line(f"{MARK} {reason()} It is counted nowhere."),
        Line(counted()),
    ]
    if runs:
        table = ours_table(runs)
        parts += [
            table._replace(title="Our runs; a published accuracy is that after as many epochs.")
        ]
    else:
        parts.append(Line("There is no run of ours yet."))
    return plain(parts)


def figure(runs: Sequence[Ours]) -> "Figure":
    """Draw the test error of every published run over the epochs, and ours over it."""
    drawn, panels = _drawing.figure((8.6, 12), len(DATASETS), 2)
    for row, dataset in zip(panels, DATASETS, strict=True):
        labels = []
        for axes, architecture in zip(row, ("vgg16", "vgg19"), strict=True):
            key = dataset, architecture
            theirs = [run for run in published().values() if run.key[:2] == key]
            mine = [run for run in runs if run.published.key[:2] == key]
            labels.append(_panel(axes, theirs, mine))
            axes.set(
                xscale="log",
                yscale="log",
                xlim=(1, 600),  # room for the labels
                title=f"{DATASETS[dataset][0]}, {architecture.upper()}",
            )
            axes.minorticks_off()
            axes.set_xticks(_EPOCHS, [str(epoch) for epoch in _EPOCHS])
        low, high = zip(*(axes.get_ylim() for axes in row), strict=True)
        for axes, texts in zip(row, labels, strict=True):
            errors = _ERRORS if max(high) < 20 * min(low) else _FEW_ERRORS
            axes.set_yticks(errors, [f"{error:g} %" for error in errors])
            axes.set_ylim(0.95 * min(low), max(high))  # room for the label of two lines
            _label(axes, *texts)
        row[0].set_ylabel("test error")
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    return drawn


def _panel(
    axes: "Axes", theirs: Sequence[Run], mine: Sequence[Ours]
) -> tuple[list[_Label], list[_Label]]:
    """Draw the curves of one data set and network; return the labels of the published and ours."""
    published, again = [], []
    for run in theirs:
        errors = [100 - 100 * accuracy for accuracy in run.val_accuracy]
        colour, text = COLOURS[run.optimizer], OPTIMIZERS[run.optimizer]
        style: dict[str, Any] = {"lw": 1.1, "alpha": 0.75}
        if run.is_mislabelled:
            style["ls"] = (0, (1.5, 1.5))
            text, colour = f"{text}{MARK}\n(coarse labels)", _MUTED
        axes.plot(range(1, run.epochs + 1), errors, color=colour, **style)
        published.append((run.epochs, errors[-1], text, colour))
    for own in mine:
        settings = own.settings
        colour = _CONTROLS.get(settings.ablation or "", COLOURS[settings.optimizer])
        lines = [line for line in own.history if line["epoch"] >= 1]
        epochs = [line["epoch"] for line in lines]
        errors = [100 - 100 * line["val_accuracy"] for line in lines]
        axes.plot(epochs, errors, color=colour, lw=2.4, marker="o", ms=3.5)
        if lines:
            again.append((epochs[-1], errors[-1], f"{settings.title}, again", colour))
    return published, again


def _label(axes: "Axes", published: Sequence[_Label], again: Sequence[_Label]) -> None:
    """Write names beside the ends of the published curves, and above the ends of ours."""
    low, high = axes.get_ylim()

    def places(labels: Sequence[_Label], above: float) -> list[float]:
        ends = [math.log(end / low) / math.log(high / low) for _, end, *_ in labels]
        edge = 0.05  # no text lies on the frame
        return [edge + x for x in spread([end + above - edge for end in ends], 0.075, 1 - 2 * edge)]

    for place, (_, _, text, colour) in zip(places(published, 0), published, strict=True):
        axes.text(0.73, place, text, transform=axes.transAxes, color=colour, va="center", size=9)
    for place, (epoch, end, text, colour) in zip(places(again, 0.16), again, strict=True):
        axes.annotate(
            text,
            xy=(epoch, end),
            xytext=(1.3 * epoch, place),
            textcoords=("data", "axes fraction"),
            color=colour,
            va="center",
            size=9,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5)},
        )
