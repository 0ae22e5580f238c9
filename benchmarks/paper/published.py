"""The thirty published runs, what is known of each, and who is ahead.

`derived` makes docs/published.json from the two published tables; all else here reads that file.
Guarantee: a mislabelled run is in no comparison and in no count.
"""

import csv
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gravity_conformance._status import CouldNotError

KEPT = Path(__file__).resolve().parents[2] / "docs" / "published.json"

# Our name of each data set, its name in the published tables, and its classes.
DATASETS = {
    "mnist": ("MNIST", 10),
    "fashion-mnist": ("Fashion MNIST", 10),
    "cifar10": ("CIFAR10", 10),
    "cifar100-coarse": ("CIFAR100 (Coarse)", 20),
    "cifar100-fine": ("CIFAR100 (Fine)", 100),
}
# The published runs, in the order of the pages: Gravity first.
OPTIMIZERS = {"gravity": "Gravity", "adam": "Adam", "rmsprop": "RMSprop"}
# The units of the last layer in the model configuration that was saved with a run, where they are
# not the classes of its data set.
UNITS = {("cifar100-fine", "vgg19", "gravity"): 20}


@dataclasses.dataclass(frozen=True)
class Run:
    """One published run.

    Attributes:
        dataset: a key of DATASETS.
        architecture: "vgg16" or "vgg19".
        optimizer: a key of OPTIMIZERS.
        learning_rate: η.
        batch_size: the number of images in a step.
        epochs: how often the training set was shown.
        output_units: units of the last layer, as saved with the run.
        best_val_accuracy: the highest accuracy on the test set after an epoch.
        final_val_accuracy: the one after the last epoch.
        best_train_accuracy: the highest accuracy on the training set.
        min_train_loss: the lowest loss on the training set.
        min_val_loss: the lowest loss on the test set.
        loss: the training loss of each epoch.
        val_accuracy: the accuracy on the test set after each epoch.
    """

    dataset: str
    architecture: str
    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int
    output_units: int
    best_val_accuracy: float
    final_val_accuracy: float
    best_train_accuracy: float
    min_train_loss: float
    min_val_loss: float
    loss: tuple[float, ...]
    val_accuracy: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the run."""
        return self.dataset, self.architecture, self.optimizer

    @property
    def classes(self) -> int:
        """The classes of its data set."""
        return DATASETS[self.dataset][1]

    @property
    def is_mislabelled(self) -> bool:
        """Whether the saved network does not fit the data set that the run is published under."""
        return self.output_units != self.classes


@functools.cache
def published(path: Path = KEPT) -> Mapping[tuple[str, str, str], Run]:
    """Return the runs by data set, architecture and optimizer, in the order of the pages."""
    runs = [Run(**run) for run in json.loads(path.read_text(encoding="utf-8"))["runs"]]
    runs = [
        dataclasses.replace(run, loss=tuple(run.loss), val_accuracy=tuple(run.val_accuracy))
        for run in runs
    ]
    return {run.key: run for run in runs}


def comparisons(runs: Iterable[Run]) -> dict[tuple[str, str], list[str]]:
    """Return which optimizers have the highest best test accuracy, for each data set and network.

    A comparison with a mislabelled run is left out. Several optimizers are a tie.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.architecture), []).append(run)
    ahead = {}
    for key, group in groups.items():
        if not any(run.is_mislabelled for run in group):
            best = max(run.best_val_accuracy for run in group)
            ahead[key] = [run.optimizer for run in group if run.best_val_accuracy == best]
    return ahead


def counts(runs: Iterable[Run]) -> tuple[dict[str, int], int]:
    """Return in how many comparisons each optimizer alone is ahead, and the number of ties."""
    ahead = comparisons(runs).values()
    alone = Counter(names[0] for names in ahead if len(names) == 1)
    return {name: alone[name] for name in OPTIMIZERS}, sum(len(names) > 1 for names in ahead)


def derived(results: Path, histories: Path) -> dict[str, Any]:
    """Return the content of docs/published.json from the published tables.

    Raises:
        CouldNotError: if a table cannot be read, or if the two do not agree.
    """
    names = {title: name for name, (title, _) in DATASETS.items()}
    keys = {title: name for name, title in OPTIMIZERS.items()}
    try:
        curves: dict[tuple[str, str, str], list[dict[str, str]]] = {}
        for row in _rows(histories):
            key = names[row["dataset"]], row["architecture"], keys[row["optimizer"]]
            curves.setdefault(key, []).append(row)
        runs = {}
        for row in _rows(results):
            key = names[row["dataset"]], row["architecture"], keys[row["optimizer"]]
            runs[key] = _run(key, row, curves[key])
    except (OSError, KeyError, ValueError) as error:
        raise CouldNotError(f"the published tables cannot be read: {error!r}") from error
    ordered = [
        runs[dataset, architecture, optimizer]
        for dataset in DATASETS
        for architecture in ("vgg16", "vgg19")
        for optimizer in OPTIMIZERS
    ]
    return {
        "source": "the published runs of arXiv 2101.09192, derived from their results and "
        "histories by `python -m benchmarks.paper published`; output_units are those of the "
        "model configuration saved with each run",
        "runs": [dataclasses.asdict(run) for run in ordered],
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _run(
    key: tuple[str, str, str], row: Mapping[str, str], curve: Sequence[Mapping[str, str]]
) -> Run:
    accuracies = tuple(float(point["val_accuracy"]) for point in curve)
    run = Run(
        *key,
        learning_rate=float(row["learning_rate"]),
        batch_size=int(row["batch_size"]),
        epochs=int(row["epochs"]),
        output_units=UNITS.get(key, DATASETS[key[0]][1]),
        best_val_accuracy=float(row["best_val_accuracy"]),
        final_val_accuracy=float(row["final_val_accuracy"]),
        best_train_accuracy=float(row["best_train_accuracy"]),
        min_train_loss=float(row["min_train_loss"]),
        min_val_loss=float(row["min_val_loss"]),
        loss=tuple(float(point["loss"]) for point in curve),
        val_accuracy=accuracies,
    )
    epochs = [int(point["epoch"]) for point in curve]
    if epochs != list(range(1, run.epochs + 1)) or (
        (max(accuracies), accuracies[-1]) != (run.best_val_accuracy, run.final_val_accuracy)
    ):
        raise ValueError(f"the history of {' '.join(key)} is not that of its result")
    return run


def as_text(report: Mapping[str, Any]) -> str:
    """Return the JSON with one run on a line."""
    runs = ",\n".join(json.dumps(run) for run in report["runs"])
    return f'{{"source": {json.dumps(report["source"])},\n"runs": [\n{runs}\n]}}\n'
