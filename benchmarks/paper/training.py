"""Train, and write what a run needs to go on bit for bit after any interruption.

The folder of a run has

- `run.json`: its settings, and for each start the machine and the versions,
- `history.csv`: a line per epoch, and one for a part of an epoch at the end,
- `checkpoint.npz`: the weights, the optimizer's state, and the position in the data.

Guarantee: checkpoint and history are written together, whole or not at all. All that is random is
a function of the seed: the initial weights, V₀, and the order of the data in each epoch. So the
seed and the number of steps are the whole random state.
"""

import dataclasses
import json
import math
import os
import platform
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.data import Images
from benchmarks.paper.settings import BATCH, Settings
from benchmarks.step import versions
from gravity_conformance._status import CouldNotError
from gravity_conformance.parity.run import cpu_name
from gravity_core import _files

CHECKPOINT, HISTORY, ABOUT = "checkpoint.npz", "history.csv", "run.json"
_META = "position"  # the name of the checkpoint's array that holds the position, as JSON
_TESTED = 500  # images at a time
COLUMNS = (
    *("epoch", "steps", "loss", "accuracy", "val_loss", "val_accuracy"),
    *("seconds", "cpu_seconds"),
)


class Trainer(Protocol):
    """What a framework does for a run.

    Images are float32 arrays in [0, 1] of shape (n, height, width, channels), labels int64.
    """

    device: Any

    def step(self, x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
        """Make one update; return the mean loss and the number of right answers before it."""

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
        """Return the mean loss and the number of right answers."""

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of all arrays that change in training."""

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue from what `state` returned."""


@dataclasses.dataclass
class Position:
    """Where a run is, and what it has counted in the current epoch.

    Attributes:
        steps: the number of updates so far.
        seen: the number of images in this epoch so far.
        loss: the sum of their losses.
        right: the number of right answers to them.
        seconds: the time that this epoch has taken.
        cpu_seconds: the time of all processors in it.
        history: the lines of the epochs that are complete.
        starts: where and with which versions the run was started and continued.
    """

    steps: int = 0
    seen: int = 0
    loss: float = 0.0
    right: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Listener(Protocol):
    """Who shows the progress."""

    def step(self, steps: int, loss: float) -> None:
        """Take the number of updates and the loss of the last one."""

    def epoch(self, line: dict[str, float]) -> None:
        """Take a line of the history."""


def train(
    folder: Path,
    settings: Settings,
    trainer: Trainer,
    images: Images,
    listener: Listener,
    *,
    epochs: int,
    steps: int | None,
    every: int,
) -> list[dict[str, float]]:
    """Train up to a number of epochs or steps in all; return the history.

    Args:
        folder: of the run. If it has a checkpoint, training continues from there.
        settings: of the run.
        trainer: at the start of the run.
        images: the data.
        listener: hears of each step and each epoch.
        epochs: the number of epochs in all.
        steps: the number of updates in all; None for no other limit.
        every: the number of updates from one checkpoint to the next.

    Raises:
        CouldNotError: if the folder has a checkpoint that cannot be read or is of another run.
    """
    length = math.ceil(len(images.y_train) / BATCH)
    end = min(epochs * length, math.inf if steps is None else steps)
    at = _restored(folder, settings, trainer)
    if at.steps < end:
        _describe(folder, settings, trainer, at)
    clock = _clock()
    order: np.ndarray | None = None
    while at.steps < end:
        epoch, index = divmod(at.steps, length)
        if index == 0 or order is None:
            order = order_of(settings.seed, epoch, len(images.y_train))
        chosen = order[index * BATCH : (index + 1) * BATCH]
        loss, right = trainer.step(pixels(images.x_train[chosen]), images.y_train[chosen])
        at.steps += 1
        at.seen += len(chosen)
        at.loss += loss * len(chosen)
        at.right += right
        listener.step(at.steps, loss)
        complete = index == length - 1
        if not (complete or at.steps == end or at.steps % every == 0):
            continue
        line = None
        if complete or at.steps == end:
            line = {"epoch": at.steps / length, **_averages(at), **_tested(trainer, images)}
        wall, cpu = clock()
        at.seconds, at.cpu_seconds = at.seconds + wall, at.cpu_seconds + cpu
        if line is not None:
            line |= {"seconds": at.seconds, "cpu_seconds": at.cpu_seconds}
        if complete and line is not None:
            at = Position(at.steps, history=[*at.history, line], starts=at.starts)
        _save(folder, settings, trainer, at, [line] if line and not complete else [])
        if line is not None:
            listener.epoch(line)
    return at.history


def order_of(seed: int, epoch: int, number: int) -> np.ndarray:
    """Return the order of the images in an epoch, counted from 0."""
    return np.random.default_rng([seed, epoch]).permutation(number)


def pixels(images: np.ndarray) -> np.ndarray:
    """Return images of bytes as float32 in [0, 1], with an axis of channels."""
    scaled = images.astype(np.float32) / np.float32(255)
    return scaled if scaled.ndim == 4 else scaled[..., np.newaxis]


def _averages(at: Position) -> dict[str, float]:
    return {"steps": at.steps, "loss": at.loss / at.seen, "accuracy": at.right / at.seen}


def _tested(trainer: Trainer, images: Images) -> dict[str, float]:
    """Return loss and accuracy on the test set."""
    total, right, number = 0.0, 0, len(images.y_test)
    for start in range(0, number, _TESTED):
        x, y = images.x_test[start : start + _TESTED], images.y_test[start : start + _TESTED]
        loss, answers = trainer.evaluate(pixels(x), y)
        total += loss * len(y)
        right += answers
    return {"val_loss": total / number, "val_accuracy": right / number}


def _clock() -> Callable[[], tuple[float, float]]:
    """Return a function that tells the seconds, and the processors', since its last call."""
    before = time.perf_counter(), time.process_time()

    def since() -> tuple[float, float]:
        nonlocal before
        now = time.perf_counter(), time.process_time()
        passed = now[0] - before[0], now[1] - before[1]
        before = now
        return passed

    return since


def _save(
    folder: Path,
    settings: Settings,
    trainer: Trainer,
    at: Position,
    partial: Sequence[dict[str, float]],
) -> None:
    position = {"settings": dataclasses.asdict(settings), **dataclasses.asdict(at)}
    arrays = {_META: np.array(json.dumps(position)), **trainer.state()}
    table = as_csv([*at.history, *partial])
    _files.write(
        {
            folder / CHECKPOINT: lambda file: np.savez(file, allow_pickle=False, **arrays),
            folder / HISTORY: lambda file: file.write(table.encode()),
        }
    )


def as_csv(history: Sequence[dict[str, float]]) -> str:
    """Return the lines of a history as CSV; reading them returns the same numbers."""
    rows = [",".join(COLUMNS), *(",".join(repr(line[c]) for c in COLUMNS) for line in history)]
    return "\n".join(rows) + "\n"


def _restored(folder: Path, settings: Settings, trainer: Trainer) -> Position:
    """Restore the arrays of the checkpoint, and return its position; without one, the start."""
    path = folder / CHECKPOINT
    if not path.exists():
        return Position()
    try:
        with _files.open_regular(path) as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        position = json.loads(str(arrays.pop(_META)))
        found = position.pop("settings")
        at = Position(**position)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CouldNotError(
            f"{path} cannot be read: {error}; without it, the run starts again"
        ) from error
    if found != dataclasses.asdict(settings):
        raise CouldNotError(f"{path} is of another run: {found}")
    trainer.restore(arrays)
    return at


def _describe(folder: Path, settings: Settings, trainer: Trainer, at: Position) -> None:
    """Note the machine and the versions of this start, and write run.json."""
    path = folder / ABOUT
    start = {
        "steps": at.steps,
        "device": str(trainer.device),
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "versions": versions(),
    }
    at.starts.append(start)
    about = {"settings": dataclasses.asdict(settings), "starts": at.starts}
    text = json.dumps(about, indent=1) + "\n"
    _files.write({path: lambda file: file.write(text.encode())})
