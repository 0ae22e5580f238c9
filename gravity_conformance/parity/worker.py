"""The program of the process that runs one backend.

It answers the messages of a `Connection`:

    {"record": Replay}                       keeps the gradients
    {"replay": mode, "options": {…}}         {"event": "state", …} for each, {"event": "replayed"}
    {"train": Task}                          {"event": "trained", …}
    {"devices": True}                        {"event": "devices", …}

First comes {"event": "described", …} or {"event": "missing", …}. What the backend raises is
{"event": "error", "message": …} in place of an answer.

Guarantee: what leaves this process are the bytes of plain arrays, which no subclass can disguise.
"""

import binascii
import importlib.metadata
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np

from gravity_conformance._guard import one_line
from gravity_conformance._worker import ANYTHING, Inbox, Tell, serve
from gravity_conformance.drive.driven import Driven, as_backend, read
from gravity_conformance.drive.spec import SpecError
from gravity_conformance.protocol import Backend, Kind, Mode, Replay, Task


def main() -> None:
    """Run the backend of the job."""
    serve(_serve)


def _serve(job: dict[str, Any], inbox: Inbox, tell: Tell) -> None:
    try:
        backend = _load(job)
        description = describe(backend)
    except SpecError as error:
        tell("error", message=str(error))
    except ModuleNotFoundError as error:
        tell("missing", module=error.name or "", message=one_line(error))
    except ANYTHING as error:
        tell("error", message=one_line(error))
    else:
        tell("described", **description)
        answer(backend, inbox, tell)


def _load(job: Mapping[str, Any]) -> Backend:
    if "spec" in job:
        return read(job["spec"])
    return as_backend(importlib.metadata.EntryPoint(**job["point"]).load())


def describe(backend: Backend) -> dict[str, Any]:
    """Return what a backend says of itself, in values of JSON.

    Raises:
        ValueError: if its modes are no modes.
    """
    versions, dtypes, modes = backend.versions(), tuple(backend.dtypes()), backend.modes()
    for name, mode in modes.items():
        if not isinstance(mode, Mode) or mode.kind not in get_args(Kind):
            raise ValueError(f"modes() must map names to a Mode, {name} is {mode!r}")
        if not isinstance(name, str):  # as text, it could be equal to another
            raise ValueError(f"modes() must map names to a Mode, got the name {name!r}")
    stranger = backend if isinstance(backend, Driven) and backend.declared is None else None
    return {
        "versions": {str(name): str(version) for name, version in versions.items()},
        "dtypes": [str(dtype) for dtype in dtypes],
        "modes": {
            str(name): [mode.kind, None if mode.unavailable is None else str(mode.unavailable)]
            for name, mode in modes.items()
        },
        "stranger": stranger is not None,
        "stateless": stranger is not None and stranger.driver.stateless,
        "takes_first_step": stranger is None or stranger.takes_first_step,
    }


def answer(backend: Backend, inbox: Inbox, tell: Tell) -> None:
    """Answer the messages, one after the other, for as long as the process lives."""
    recorded: Replay | None = None
    while (message := inbox()) is not None:
        try:
            match message:
                case {"record": Replay() as recorded}:
                    pass
                case {"replay": str(mode), "options": dict(options)}:
                    assert recorded is not None
                    _replay(backend, replace(recorded, options=options), mode, tell)
                case {"train": Task() as task}:
                    recorded = None  # its memory is free for the training
                    _train(backend, task, tell)
                case {"devices": True}:
                    devices = getattr(backend, "devices", list)
                    tell("devices", names=[str(name) for name in devices()])
        except ANYTHING as error:
            tell("error", message=one_line(error))


def _replay(backend: Backend, replay: Replay, mode: str, tell: Tell) -> None:
    spent, start = 0.0, time.perf_counter()
    wanted = [(w.shape, w.dtype) for w in replay.weights]
    states = iter(backend.replay(_lent(replay), mode))
    # One more than there must be shows that there are too many.
    for index, state in enumerate(itertools.islice(states, len(replay.gradients) + 2)):
        velocity = _plain(f"velocity after step {index}", state.velocity, wanted)
        weights = _plain(f"weights after step {index}", state.weights, wanted)
        spent += time.perf_counter() - start
        tell("state", begun=int(state.begun), arrays=_encoded(velocity + weights))
        start = time.perf_counter()
    tell("replayed", seconds=spent + time.perf_counter() - start)


def _train(backend: Backend, task: Task, tell: Tell) -> None:
    start = time.perf_counter()
    losses, weights, predictions = backend.train(_lent(task))
    seconds = time.perf_counter() - start
    wanted = [(w.shape, w.dtype) for w in task.weights]
    labels = np.asarray(predictions)
    if labels.shape != task.y_test.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"predictions must be integers of shape {task.y_test.shape}, got {labels.dtype} "
            f"of shape {labels.shape}"
        )
    tell(
        "trained",
        seconds=seconds,
        losses=[float(loss) for loss in losses],
        weights=_encoded(_plain("weights", weights, wanted)),
        predictions=[int(label) for label in labels],
    )


def _lent(value: Any) -> Any:
    """Return a copy for a backend, with read-only arrays.

    A backend that works in place would otherwise change the input of its next mode.
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


def _plain(name: str, arrays: Any, wanted: Sequence[tuple[Any, Any]]) -> list[np.ndarray]:
    """Return the arrays of a backend.

    Raises:
        ValueError: unless they are plain arrays of the wanted shapes and dtypes.
    """
    found = list(arrays)
    kinds = [(np.shape(a), getattr(a, "dtype", None)) for a in found]
    if kinds != wanted:
        raise ValueError(f"{name} must be arrays {wanted}, got {kinds}")
    for array in found:
        if type(array) is not np.ndarray:
            raise ValueError(f"{name} must be plain NumPy arrays, got {type(array).__name__}")
    return found


def _encoded(arrays: Sequence[np.ndarray]) -> str:
    data = b"".join([array.tobytes() for array in arrays])
    return binascii.b2a_base64(data, newline=False).decode("ascii")
