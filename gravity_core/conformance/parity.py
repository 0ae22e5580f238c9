"""The parity run: every installed backend, replayed and trained on the same digits."""

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import gravity_core
from gravity_core.conformance import digits
from gravity_core.conformance.grading import Grade, grade
from gravity_core.conformance.protocol import Backend, Kind, Replay, Task
from gravity_core.reference import Gravity

GROUP = "gravity.backends"
DTYPES = ("float32", "float64")


@dataclass
class ReplayRow:
    """One backend, mode and dtype: the recorded gradients, graded. `error` if it failed."""

    backend: str
    mode: str
    kind: Kind
    dtype: str
    seconds: float = 0.0
    error: str | None = None
    grade: Grade | None = None

    @property
    def passed(self) -> bool:
        """Whether it is exact or bounded, from a V₀ that has the reference's bits."""
        grade = self.grade
        return grade is not None and grade.v0_identical and grade.verdict != "divergent"


@dataclass
class TrainingRow:
    """One backend and dtype: training with its own gradients. `error` if it failed."""

    backend: str
    dtype: str
    seconds: float = 0.0
    error: str | None = None
    losses: list[float] = field(default_factory=list)
    correct: int = 0
    images: int = 0
    weight_deviation: float = 0.0


@dataclass
class Report:
    """Every figure of a run; `asdict` of it, and whether all passed, is parity.json."""

    steps: int
    seed: int
    versions: dict[str, str]
    platform: dict[str, str]
    replays: list[ReplayRow] = field(default_factory=list)
    trainings: list[TrainingRow] = field(default_factory=list)
    not_installed: dict[str, str] = field(default_factory=dict)
    """Backend → what is missing."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Backend and mode → why it cannot run on this machine."""
    failures: list[str] = field(default_factory=list)
    """What kept the run from passing, apart from rows that did not pass."""

    @property
    def passed(self) -> bool:
        """Whether something was compared, and every backend present is exact or bounded."""
        rows = [row.passed for row in self.replays]
        trained = [row.error is None for row in self.trainings]
        return bool(rows) and all(rows + trained) and not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {"gravity": gravity_core.__version__, "passed": self.passed} | asdict(self)


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the backends that installed distributions offer, by name, numpy first."""
    found = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    return dict(sorted(found.items(), key=lambda item: (item[0] != "numpy", item[0])))


def load(names: Sequence[str], report: "Report") -> dict[str, Backend]:
    """Import backends by name; what is not installed or fails to import goes into the report."""
    points = entry_points()
    backends: dict[str, Backend] = {}
    for name in names:
        try:
            with _quiet_stderr():
                backends[name] = points[name].load()
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", points[name].module.partition(".")[0]):
                report.failures.append(f"{name}: {_one_line(error)}")
            else:
                report.not_installed[name] = missing
        except Exception as error:  # a stranger's backend may raise anything
            report.failures.append(f"{name}: {_one_line(error)}")
    return backends


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    # By file descriptor: TensorFlow's libraries write before their log level can be set.
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def record(task: Task) -> tuple[Replay, list[np.ndarray]]:
    """Train in NumPy; return the gradients on the way and the weights at the end."""
    weights = [w.copy() for w in task.weights]
    optimizer = Gravity(**task.options)
    gradients = []
    for batch in (batch for batches in task.epochs for batch in batches):
        _, g = digits.loss_and_gradients(weights, task.x_train[batch], task.y_train[batch])
        gradients.append(g)
        optimizer.step(weights, g)
    return Replay(task.weights, gradients, task.options), weights


def new_report(seed: int) -> Report:
    """Return a report of nothing yet, on this machine."""
    return Report(
        steps=0,
        seed=seed,
        versions={"python": platform.python_version()},
        platform={"system": platform.system(), "machine": platform.machine(), "cpu": _cpu()},
    )


def run(
    report: Report,
    backends: Mapping[str, Backend],
    *,
    dtypes: Sequence[str] = DTYPES,
    kinds: Sequence[Kind] = ("eager", "compiled"),
    steps: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Replay and train every backend in every mode and dtype; add the results to the report.

    Args:
        report: as `new_report` makes it; its seed is that of W₀, the batch order and V₀.
        backends: by name.
        dtypes: of "float32" and "float64"; each backend must support them.
        kinds: which modes to replay.
        steps: updates; 20 epochs (900) if None.
        progress: called with what is under way, the steps done and the steps in all.
    """
    for name, backend in backends.items():
        report.versions |= backend.versions()
        for mode_name, mode in backend.modes().items():
            if mode.unavailable is not None and mode.kind in kinds:
                report.not_run[f"{name} {mode_name}"] = mode.unavailable
    for dtype in dtypes:
        task = digits.digits_task(
            dtype, seed=report.seed, steps=steps, options={"seed": report.seed}
        )
        replay, trained = record(task)
        report.steps = len(replay.gradients)
        for name, backend in backends.items():
            for mode_name, mode in backend.modes().items():
                if mode.unavailable is None and mode.kind in kinds:
                    row = ReplayRow(name, mode_name, mode.kind, dtype)
                    _replay(row, backend, replay, progress)
                    report.replays.append(row)
            progress(f"{name} {dtype} trains", 0, report.steps)
            report.trainings.append(_train(name, dtype, backend, task, trained))


def _replay(
    row: ReplayRow, backend: Backend, replay: Replay, progress: Callable[[str, int, int], None]
) -> None:
    total = len(replay.gradients)
    done = -1  # the state before the first step is compared too

    def on_step() -> None:
        nonlocal done
        done += 1
        progress(f"{row.backend} {row.mode} {row.dtype}", done, total)

    start = time.perf_counter()
    try:
        row.grade = grade(replay, backend.replay(replay, row.mode), on_step)
    except Exception as error:  # a stranger's backend may raise anything; it is its result
        row.error = _one_line(error)
    row.seconds = time.perf_counter() - start


def _train(
    name: str, dtype: str, backend: Backend, task: Task, trained: Sequence[np.ndarray]
) -> TrainingRow:
    row = TrainingRow(name, dtype, images=len(task.y_test))
    start = time.perf_counter()
    try:
        losses, weights, predictions = backend.train(task)
        row.seconds = time.perf_counter() - start
        row.losses = [float(loss) for loss in losses]
        row.correct = int((np.asarray(predictions) == task.y_test).sum())
        pairs = zip(weights, trained, strict=True)
        row.weight_deviation = float(max(np.abs(w - reference).max() for w, reference in pairs))
    except Exception as error:  # as above
        row.error = _one_line(error)
    return row


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
