"""The backends of a parity run, each in a process of its own, and the talk with them.

Guarantee: a backend cannot end, delay without limit or change the run, and what it sends is read as
numbers. `worker` is the program of its process.
"""

import binascii
import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gravity_conformance._guard import clean, clean_names
from gravity_conformance._process import EndedError, Event, Process
from gravity_conformance.protocol import Mode, Replay, Step, Task, Training

GROUP = "gravity.backends"
TIMEOUT = 300.0
PROGRAM = "gravity_conformance.parity.worker"


class FailedError(Exception):
    """A backend raised an exception, ended its process or is late; the message is one line."""


class NotInstalledError(FailedError):
    """A backend needs a module that is not installed."""

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module


class Speaker(Protocol):
    """The part of `_process.Process` that a connection needs."""

    def send(self, message: Any) -> None:
        """Send a message, without waiting."""

    def event(self) -> Event:
        """Return the next event, or raise EndedError."""

    def close(self) -> None:
        """End the process."""


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the backends that installed distributions offer, by name, numpy first.

    Raises:
        ValueError: if two distributions offer different backends under one name.
    """
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            name = clean(point.name)
            raise ValueError(
                f"the backend {name} is offered twice, as {other.value} and {point.value}"
            )
    return clean_names(sorted(found.items(), key=lambda item: (item[0] != "numpy", item[0])))


@contextlib.contextmanager
def processes(
    names: Sequence[str], specs: Sequence[str] = (), timeout: float = TIMEOUT
) -> Iterator[dict[str, Speaker]]:
    """Start a process for every backend and every SPEC; yield them by clean name; end them all.

    They import their frameworks side by side.
    """
    points = entry_points()
    jobs: list[tuple[str, Event]] = []
    for name in names:
        point = points[name]
        jobs.append((name, {"point": {"name": name, "value": point.value, "group": GROUP}}))
    jobs += [(spec, {"spec": spec}) for spec in dict.fromkeys(specs)]
    with contextlib.ExitStack() as stack:
        found: dict[str, Speaker] = {}
        for name, job in clean_names(jobs).items():
            found[name] = process = Process(PROGRAM, job, timeout)
            stack.callback(process.close)
        yield found


@dataclass
class Connection:
    """A backend in its process.

    Attributes:
        process: its process.
        versions: of its libraries.
        dtypes: that it supports.
        modes: in which it can replay, by clean name.
        stranger: whether a SPEC names it.
        stateless: whether it is a plain function, which has no gradients of its own.
        takes_first_step: whether the caller can choose t of the first step.
    """

    process: Speaker
    versions: dict[str, str]
    dtypes: tuple[str, ...]
    modes: dict[str, Mode]
    stranger: bool
    stateless: bool
    takes_first_step: bool
    _own_names: dict[str, str] = field(default_factory=dict)
    """Those that the backend gave its modes, by clean name."""
    _lost: str = ""

    def record(self, replay: Replay) -> None:
        """Send gradients, for the replays that follow."""
        self.process.send({"record": replay})

    def ask(self, mode: str, options: Mapping[str, Any]) -> None:
        """Ask for a replay, whose answer `states` returns."""
        self.process.send({"replay": self._own_names[mode], "options": dict(options)})

    def states(self, replay: Replay, seconds: list[float]) -> Iterator[Step]:
        """Yield the states of the next replay that was asked for.

        Its time, without that of grading, is added to `seconds`.

        Raises:
            FailedError: if it fails.
        """
        while True:
            match self._event():
                case {"event": "state", "begun": int(begun), "arrays": str(arrays)}:
                    found = _decoded(arrays, [*replay.weights, *replay.weights])
                    half = len(replay.weights)
                    yield Step(found[:half], found[half:], begun)
                case {"event": "replayed", "seconds": float(spent)}:
                    seconds.append(spent)
                    return

    def train(self, task: Task) -> None:
        """Ask for a training, whose result `trained` returns."""
        self.process.send({"train": task})

    def trained(self, task: Task) -> tuple[Training, float]:
        """Return the result of the training that was asked for, and the seconds that it took.

        Raises:
            FailedError: if it failed.
        """
        while True:
            match self._event():
                case {
                    "event": "trained",
                    "seconds": float(seconds),
                    "losses": list(losses),
                    "weights": str(weights),
                    "predictions": list(predictions),
                }:
                    found = _decoded(weights, task.weights)
                    return Training(losses, found, np.asarray(predictions)), seconds

    def devices(self) -> list[str]:
        """Return the devices that it sees.

        Raises:
            FailedError: if it cannot list them.
        """
        self.process.send({"devices": True})
        while True:
            match self._event():
                case {"event": "devices", "names": list(names)}:
                    return [clean(str(name)) for name in names]

    def _event(self) -> Event:
        if self._lost:
            raise FailedError(f"not run: {self._lost}")
        try:
            event = self.process.event()
        except EndedError as error:
            self._lost = str(error)
            self.process.close()  # it may be late and run on
            raise FailedError(self._lost) from None
        match event:
            case {"event": "error", "message": str(message)}:
                raise FailedError(clean(message))
            case {"event": "missing", "module": str(module), "message": str(message)}:
                raise NotInstalledError(clean(message), clean(module))
        return event


def connect(process: Speaker) -> Connection:
    """Return the connection with a backend, once it is imported.

    Raises:
        NotInstalledError: if it needs a package that is missing.
        FailedError: if it cannot be imported, or describes itself wrongly.
    """
    connection = Connection(process, {}, (), {}, False, False, False)
    while True:
        match connection._event():
            case {
                "event": "described",
                "versions": dict(versions),
                "dtypes": list(dtypes),
                "modes": dict(modes),
                "stranger": bool(stranger),
                "stateless": bool(stateless),
                "takes_first_step": bool(takes_first_step),
            }:
                connection.versions = clean_names((n, clean(v)) for n, v in versions.items())
                connection.dtypes = tuple(map(clean, dtypes))
                connection.modes = clean_names((n, _mode(mode)) for n, mode in modes.items())
                connection._own_names = clean_names((name, name) for name in modes)
                connection.stranger, connection.stateless = stranger, stateless
                connection.takes_first_step = takes_first_step
                return connection


def _mode(described: Sequence[Any]) -> Mode:
    kind, unavailable = described
    return Mode(kind, None if unavailable is None else clean(unavailable))


def _decoded(text: str, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return arrays with the shapes and dtypes of others from the bytes that `worker` encoded."""
    data = binascii.a2b_base64(text)
    if len(data) != sum(array.nbytes for array in like):
        raise FailedError(f"it sent {len(data)} bytes of arrays in place of those of its weights")
    found, begin = [], 0
    for array in like:
        part = np.frombuffer(data, array.dtype, array.size, begin)
        found.append(part.reshape(array.shape))
        begin += array.nbytes
    return found
