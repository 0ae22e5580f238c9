"""The parity run: every installed backend, replayed and trained on the same digits."""

import datetime
import importlib.metadata
import itertools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args

import numpy as np

import gravity_core
from gravity_conformance._guard import ANYTHING, clean, one_line, silenced
from gravity_conformance.drive.driven import Driven, as_backend, read
from gravity_conformance.drive.spec import isolated
from gravity_conformance.parity import digits
from gravity_conformance.parity.grading import Grade, grade
from gravity_conformance.protocol import Backend, Kind, Mode, Replay, Task, Training
from gravity_core.reference import Gravity

GROUP = "gravity.backends"
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


@dataclass(frozen=True)
class Loaded:
    """An imported backend, with its versions, dtypes and modes, which are checked once."""

    backend: Backend
    versions: dict[str, str]
    dtypes: tuple[str, ...]
    modes: dict[str, Mode]

    @property
    def stranger(self) -> Driven | None:
        """The backend, if ``--also`` names it."""
        backend = self.backend
        return backend if isinstance(backend, Driven) and backend.declared is None else None


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


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the backends that installed distributions offer, by name, numpy first.

    Raises:
        ValueError: if two distributions offer different backends under one name.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise ValueError(
                f"the backend {point.name} is offered twice, as {other.value} and {point.value}"
            )
    return dict(sorted(found.items(), key=lambda item: (item[0] != "numpy", item[0])))


def load(names: Sequence[str], report: Report) -> dict[str, Loaded]:
    """Import backends by name. The report gets those that are not installed or fail to import."""
    points = entry_points()
    backends: dict[str, Loaded] = {}
    for name in names:
        try:
            with silenced(2):
                backends[name] = _described(as_backend(points[name].load()))
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", points[name].module.partition(".")[0]):
                report.failures.append(f"{name}: {one_line(error)}")
            else:
                report.not_installed[name] = missing
        except ANYTHING as error:
            report.failures.append(f"{name}: {one_line(error)}")
    return backends


def also(specs: Sequence[str]) -> dict[str, Loaded]:
    """Import the implementations that SPECs name; return them by SPEC.

    Raises:
        SpecError: if one cannot be imported or is of no known kind.
    """
    found = {}
    for spec in specs:
        with silenced(2), isolated():
            found[clean(spec)] = _described(read(spec))
    return found


def _described(backend: Backend) -> Loaded:
    versions, dtypes, modes = backend.versions(), tuple(backend.dtypes()), backend.modes()
    for name, mode in modes.items():
        if not isinstance(mode, Mode) or mode.kind not in get_args(Kind):
            raise ValueError(f"modes() must map names to a Mode, {name} is {mode!r}")
    versions = {str(name): str(version) for name, version in versions.items()}
    return Loaded(backend, versions, dtypes, dict(modes))


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
        platform={"system": platform.system(), "machine": platform.machine(), "cpu": _cpu()},
        date=datetime.date.today().isoformat(),
    )


def run(
    report: Report,
    backends: Mapping[str, Loaded],
    *,
    dtypes: Sequence[str] = DTYPES,
    kinds: Sequence[Kind] = get_args(Kind),
    steps: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Replay and train every backend in every mode and dtype; add the results to the report.

    Args:
        report: from `new_report`; its seed determines W₀, the batch order and V₀.
        backends: by name, as `load` returns them; each must support the dtypes.
        dtypes: of "float32" and "float64".
        kinds: which modes to replay.
        steps: updates; 20 epochs (900) if None.
        progress: called with the current activity, the steps done and the total of steps, 0 and 0
            where it has no steps.
    """
    for name, loaded in backends.items():
        report.versions = loaded.versions | report.versions
        for mode_name, mode in loaded.modes.items():
            if mode.unavailable is not None and mode.kind in kinds:
                report.not_run[f"{name} {mode_name}"] = mode.unavailable
    for dtype in dtypes:
        task = digits.digits_task(
            dtype, seed=report.seed, steps=steps, options={"seed": report.seed}
        )
        progress(f"numpy {dtype} records", 0, 0)
        replay, trained = record(task)
        report.steps = len(replay.gradients)
        for name, loaded in backends.items():
            for mode_name, mode in loaded.modes.items():
                if mode.unavailable is None and mode.kind in kinds:
                    row = ReplayRow(name, mode_name, mode.kind, dtype)
                    _replay(row, loaded, replay, progress)
                    report.replays.append(row)
            if loaded.stranger is not None and loaded.stranger.driver.stateless:
                continue  # a plain function has no gradients of its own
            progress(f"{name} {dtype} trains", 0, 0)
            report.trainings.append(_train(name, dtype, loaded.backend, task, trained))
    compared = {row.backend for row in report.replays}
    for name, loaded in backends.items():
        # A backend may have no mode of the requested kind, but it must have some mode.
        asked = set(kinds) == set(get_args(Kind)) or any(
            mode.kind in kinds for mode in loaded.modes.values()
        )
        if asked and name not in compared:
            report.failures.append(f"{name}: nothing was compared")
        elif name not in compared:
            report.not_run[name] = f"it has no {' or '.join(kinds)} mode"


def _lent(value: Any) -> Any:
    """Return a copy for a backend, with read-only arrays.

    A backend that works in place would otherwise change the input of the others.
    """
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Replay, Task)):
        return type(value)(**{f.name: _lent(getattr(value, f.name)) for f in fields(value)})
    return [_lent(item) for item in value]


def _replay(
    row: ReplayRow, loaded: Loaded, recorded: Replay, progress: Callable[[str, int, int], None]
) -> None:
    stranger, total = loaded.stranger, len(recorded.gradients)
    row.stranger = stranger is not None

    def graded(replay: Replay) -> Grade:
        counter = itertools.count()  # the state before the first step is compared too

        def on_step() -> None:
            done, what = next(counter), f"{row.backend} {row.mode} {row.dtype}"
            # The first step compiles the others.
            compiles = row.kind == "compiled" and not done
            progress(f"{what}: compiling" if compiles else what, done, total)

        steps = iter(loaded.backend.replay(_lent(replay), row.mode))
        return grade(replay, steps, on_step, own_start=row.stranger)

    start, notes = time.perf_counter(), row.notes
    try:
        row.grade = graded(recorded)
        if stranger and not row.grade.v0_identical:
            notes.append("it has its own V₀, and the reference starts from that V₀")
        if row.grade.begun:
            notes.append("it shows V only after a step, so a step with zero gradients comes first")
        if stranger and row.grade.verdict == "divergent" and not stranger.takes_first_step:
            other = graded(replace(recorded, options={**recorded.options, "first_step": 0}))
            if other.verdict == "divergent":
                notes.append("neither t from 1 nor t from 0 fits")
            else:
                row.grade = other
                notes.append("it counts t from 0, as the original Keras code does")
    except ANYTHING as error:
        row.error = one_line(error)
    row.seconds = time.perf_counter() - start


def _train(
    name: str, dtype: str, backend: Backend, task: Task, trained: Sequence[np.ndarray]
) -> TrainingRow:
    row = TrainingRow(name, dtype, images=len(task.y_test))
    start = time.perf_counter()
    try:
        training = backend.train(_lent(task))
        row.seconds = time.perf_counter() - start
        _check_training(training, task)
    except ANYTHING as error:
        row.error = one_line(error)
        return row
    row.losses = [float(loss) for loss in training.losses]
    row.correct = int((training.predictions == task.y_test).sum())
    pairs = zip(training.weights, trained, strict=True)
    row.weight_deviation = float(max(np.abs(w - reference).max() for w, reference in pairs))
    return row


def _check_training(training: Training, task: Task) -> None:
    losses, weights, predictions = training
    if len(losses) != len(task.epochs) or not np.isfinite(losses).all():
        raise ValueError(f"losses must be {len(task.epochs)} finite numbers, got {losses}")
    wanted = [(w.shape, w.dtype) for w in task.weights]
    got = [(np.shape(w), getattr(w, "dtype", None)) for w in weights]
    if got != wanted:
        raise ValueError(f"weights must be arrays {wanted}, got {got}")
    if not all(np.isfinite(w).all() for w in weights):
        raise ValueError("weights must be finite after training")
    labels = np.asarray(predictions)
    if labels.shape != task.y_test.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"predictions must be integers of shape {task.y_test.shape}, got {labels.dtype} "
            f"of shape {labels.shape}"
        )


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
