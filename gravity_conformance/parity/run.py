"""The parity run: every installed backend, replayed and trained on the same digits."""

import contextlib
import datetime
import itertools
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args

import numpy as np

import gravity_core
from gravity_conformance._guard import one_line
from gravity_conformance.parity import digits
from gravity_conformance.parity.connection import (
    Connection,
    FailedError,
    NotInstalledError,
    Speaker,
    connect,
    entry_points,
)
from gravity_conformance.parity.grading import Grade, grade
from gravity_conformance.protocol import Kind, Replay, Step, Task, Training
from gravity_core.reference import Gravity

DTYPES = ("float32", "float64")


@dataclass
class ReplayRow:
    """The graded replay of one backend, mode and dtype; `error` is the reason if it failed.

    A stranger is an implementation that ``--also`` names. Its V₀ may differ from the reference's.
    """

    backend: str
    mode: str
    kind: Kind
    dtype: str
    seconds: float = 0.0
    error: str | None = None
    grade: Grade | None = None
    stranger: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the replay is exact or bounded, and V₀ is the reference's or a stranger's."""
        grade = self.grade
        if grade is None or grade.verdict == "divergent":
            return False
        return grade.v0_identical or self.stranger


@dataclass
class TrainingRow:
    """The training of one backend and dtype with its own gradients; `error` if it failed."""

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
    """The results of a run; `to_json` gives the content of parity.json."""

    steps: int
    seed: int
    versions: dict[str, str]
    platform: dict[str, str]
    date: str = ""
    command: str = "gravity parity"
    """The command line that reproduces this report."""
    replays: list[ReplayRow] = field(default_factory=list)
    trainings: list[TrainingRow] = field(default_factory=list)
    not_installed: dict[str, str] = field(default_factory=dict)
    """Backend → the missing package."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Backend and mode → why it cannot run on this machine."""
    failures: list[str] = field(default_factory=list)
    """The reasons why the run did not pass, apart from rows that did not pass."""

    @property
    def passed(self) -> bool:
        """Whether something was compared, and every backend present is exact or bounded."""
        rows = [row.passed for row in self.replays]
        trained = [row.error is None for row in self.trainings]
        return bool(rows) and all(rows + trained) and not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"gravity": gravity_core.__version__, "passed": self.passed} | asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Report":
        """Return the report that `to_json` wrote; its infinities and NaN may be strings."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        known["replays"] = [
            ReplayRow(**row | {"grade": row["grade"] and _grade(row["grade"])})
            for row in values["replays"]
        ]
        known["trainings"] = [TrainingRow(**row) for row in values["trainings"]]
        return cls(**known)


def _grade(values: Mapping[str, Any]) -> Grade:
    """Return a grade from JSON, in which infinity and NaN are strings."""
    numbers = {name: float(values[name]) for name in ("worst", "share")}
    curves = {name: [float(x) for x in values[name]] for name in ("deviation", "bound")}
    return Grade(**dict(values) | numbers | curves)


def imported(name: str, process: Speaker, report: Report) -> Connection | None:
    """Return the connection with a backend once it is imported.

    The report gets a backend that is not installed or fails to import.
    """
    try:
        return connect(process)
    except NotInstalledError as error:
        missing = error.module.partition(".")[0]
        if missing not in ("", entry_points()[name].module.partition(".")[0]):
            report.not_installed[name] = missing
            return None
        report.failures.append(f"{name}: {error}")
    except FailedError as error:
        report.failures.append(f"{name}: {error}")
    return None


def record(task: Task) -> tuple[Replay, list[np.ndarray]]:
    """Train in NumPy; return the recorded gradients and the final weights."""
    weights = [w.copy() for w in task.weights]
    optimizer = Gravity(**task.options)
    gradients = []
    for batch in (batch for batches in task.epochs for batch in batches):
        _, g = digits.loss_and_gradients(weights, task.x_train[batch], task.y_train[batch])
        gradients.append(g)
        optimizer.step(weights, g)
    return Replay(task.weights, gradients, task.options), weights


def new_report(seed: int) -> Report:
    """Return an empty report for this machine."""
    return Report(
        steps=0,
        seed=seed,
        versions={"python": platform.python_version()},
        platform={"system": platform.system(), "machine": platform.machine(), "cpu": cpu_name()},
        date=datetime.date.today().isoformat(),
    )


def run(
    report: Report,
    backends: Mapping[str, Connection],
    *,
    dtypes: Sequence[str] = DTYPES,
    kinds: Sequence[Kind] = get_args(Kind),
    steps: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Replay and train every backend in every mode and dtype; add the results to the report.

    They work side by side: while the states of one are graded, another starts or trains.

    Args:
        report: from `new_report`; its seed determines W₀, the batch order and V₀.
        backends: by name, as `imported` returns them; each must support the dtypes.
        dtypes: of "float32" and "float64".
        kinds: which modes to replay.
        steps: updates; 20 epochs (900) if None.
        progress: called with the current activity, the steps done and the total of steps, 0 and 0
            where it has no steps.
    """
    for name, backend in backends.items():
        report.versions = backend.versions | report.versions
        for mode_name, mode in backend.modes.items():
            if mode.unavailable is not None and mode.kind in kinds:
                report.not_run[f"{name} {mode_name}"] = mode.unavailable
    for dtype in dtypes:
        task = digits.digits_task(
            dtype, seed=report.seed, steps=steps, options={"seed": report.seed}
        )
        progress(f"numpy {dtype} records", 0, 0)
        replay, trained = record(task)
        report.steps = len(replay.gradients)
        turns = [_Turn(name, backend, dtype, kinds) for name, backend in backends.items()]
        for turn, following in itertools.zip_longest(turns, turns[1:]):
            turn.ask(replay, task)
            if following is not None:  # it starts meanwhile, but only one holds more memory
                following.ask(replay, task)
            for row in turn.rows:
                _replay(row, turn.backend, replay, progress)
                report.replays.append(row)
            turn.ask_training(task)
        for turn in turns:
            if not turn.backend.stateless:
                progress(f"{turn.name} {dtype} trains", 0, 0)
                report.trainings.append(_train(turn.name, dtype, turn.backend, task, trained))
    compared = {row.backend for row in report.replays}
    for name, backend in backends.items():
        # A backend may have no mode of the requested kind, but it must have some mode.
        asked = set(kinds) == set(get_args(Kind)) or any(
            mode.kind in kinds for mode in backend.modes.values()
        )
        if asked and name not in compared:
            report.failures.append(f"{name}: nothing was compared")
        elif name not in compared:
            report.not_run[name] = f"it has no {' or '.join(kinds)} mode"


class _Turn:
    """What a backend does for one dtype. It is asked once for all, so that it never waits."""

    def __init__(self, name: str, backend: Connection, dtype: str, kinds: Sequence[Kind]) -> None:
        self.name, self.backend, self._asked = name, backend, False
        self.rows = [
            ReplayRow(name, mode_name, mode.kind, dtype, stranger=backend.stranger)
            for mode_name, mode in backend.modes.items()
            if mode.unavailable is None and mode.kind in kinds
        ]

    def ask(self, replay: Replay, task: Task) -> None:
        """Ask for all replays, unless that was done, and for the training."""
        if not self._asked:
            self.backend.record(replay)
            # A stranger's next replay depends on the last.
            if not self.backend.stranger:
                for row in self.rows:
                    self.backend.ask(row.mode, replay.options)
                self.backend.train(task)
        self._asked = True

    def ask_training(self, task: Task) -> None:
        """Ask a stranger for its training."""
        if self.backend.stranger and not self.backend.stateless:
            self.backend.train(task)


def _replay(
    row: ReplayRow,
    backend: Connection,
    recorded: Replay,
    progress: Callable[[str, int, int], None],
) -> None:
    total, notes, seconds = len(recorded.gradients), row.notes, list[float]()

    def graded(replay: Replay) -> Grade:
        counter = itertools.count()  # the state before the first step is compared too

        def on_step() -> None:
            done, what = next(counter), f"{row.backend} {row.mode} {row.dtype}"
            # The first step compiles the others.
            compiles = row.kind == "compiled" and not done
            progress(f"{what}: compiling" if compiles else what, done, total)

        if row.stranger:
            backend.ask(row.mode, replay.options)
        states = backend.states(replay, seconds)
        try:
            with np.errstate(all="ignore"):  # a backend may yield any number
                return grade(replay, states, on_step, own_start=row.stranger)
        except ValueError:
            _drop(states)
            raise

    try:
        row.grade = graded(recorded)
        if row.stranger and not row.grade.v0_identical:
            notes.append("it has its own V₀, and the reference starts from that V₀")
        if row.grade.begun:
            notes.append("it shows V only after a step, so a step with zero gradients comes first")
        if row.stranger and row.grade.verdict == "divergent" and not backend.takes_first_step:
            other = graded(replace(recorded, options={**recorded.options, "first_step": 0}))
            if other.verdict == "divergent":
                notes.append("neither t from 1 nor t from 0 fits")
            else:
                row.grade = other
                notes.append("it counts t from 0, as the original Keras code does")
    except (FailedError, ValueError) as error:
        row.error = str(error) if isinstance(error, FailedError) else one_line(error)
    row.seconds = sum(seconds)


def _drop(states: Iterator[Step]) -> None:
    """Read the states that were not graded, because other answers follow them."""
    with contextlib.suppress(FailedError):
        for _ in states:
            pass


def _train(
    name: str, dtype: str, backend: Connection, task: Task, trained: Sequence[np.ndarray]
) -> TrainingRow:
    row = TrainingRow(name, dtype, images=len(task.y_test))
    try:
        training, row.seconds = backend.trained(task)
        _check_training(training, task)
    except FailedError as error:
        row.error = str(error)
        return row
    row.losses = training.losses
    row.correct = int((training.predictions == task.y_test).sum())
    pairs = zip(training.weights, trained, strict=True)
    row.weight_deviation = float(max(np.abs(w - reference).max() for w, reference in pairs))
    return row


def _check_training(training: Training, task: Task) -> None:
    losses, weights, predictions = training
    if len(losses) != len(task.epochs) or not np.isfinite(losses).all():
        raise FailedError(
            f"ValueError: losses must be {len(task.epochs)} finite numbers, got {losses}"
        )
    if not all(np.isfinite(w).all() for w in weights):
        raise FailedError("ValueError: weights must be finite after training")
    if predictions.shape != task.y_test.shape or predictions.dtype.kind != "i":
        raise FailedError(f"ValueError: predictions must be integers of shape {task.y_test.shape}")


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
