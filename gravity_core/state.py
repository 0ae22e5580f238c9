"""The state of an optimizer as NumPy arrays, to move a run from one framework to another.

Guarantees: every `State` is valid and shares no memory with an optimizer. A file holds no pickled
objects, is written completely or not at all, and restores every bit.

A file is an .npz archive. ``header`` is a string of JSON: ``{"format": "gravity-state",
"version": 1, "t": …, "dtypes": […], "hyperparameters": {…}}``. ``velocity_0``, ``velocity_1``, …
are the velocities in parameter order. NumPy has no bfloat16, so a bfloat16 velocity is stored in
uint16: the upper 16 bits of its float32 numbers.
"""

import json
import operator
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gravity_core import hyperparameters as hp
from gravity_core._json import loads

_FORMAT, _VERSION = "gravity-state", 1
_DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


class State:
    """The complete state of an optimizer, without the weights.

    The next update uses β̂ for t + first_step. A run that is exported after n updates and imported
    into another framework therefore continues as if it had not moved.

    Args:
        t: the number of updates so far, an integer >= 0; or one integer per velocity if they differ
            (PyTorch counts, for each parameter, the steps in which it had a gradient).
        velocities: V of each parameter, in parameter order. They are copied.
        hyperparameters: named like the arguments of `gravity_core.Gravity`. The learning rate is
            that of the next step. Missing ones take their defaults; a missing velocity_std is
            alpha / learning_rate.
        dtypes: names of the velocities' dtypes (float16, bfloat16, float32, float64, complex64,
            complex128). Pass them if they differ from the arrays' dtypes: a bfloat16 velocity may
            be passed as float32.

    Attributes:
        t: an int if all tensors have had the same number of updates, else a tuple.
        velocities: read-only arrays. A bfloat16 velocity is held in float32, exactly.
        dtypes: the name of each velocity's dtype.
        hyperparameters: all of them, as keyword arguments for `gravity_core.Gravity`.

    Raises:
        ValueError: naming the argument and the value received.
        TypeError: for an unknown hyper-parameter.

    Example:
        >>> state = State(30, [np.zeros((2, 3)), np.ones(3)], {"learning_rate": 0.5})
        >>> state
        State(t=30, first_step=1, velocities=[float64(2, 3), float64(3,)])
        >>> state.hyperparameters["velocity_std"]
        0.02
    """

    t: int | tuple[int, ...]
    velocities: tuple[np.ndarray, ...]
    dtypes: tuple[str, ...]
    hyperparameters: dict[str, Any]

    def __init__(
        self,
        t: int | Sequence[int],
        velocities: Sequence[np.ndarray],
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        dtypes: Sequence[str] | None = None,
    ) -> None:
        arrays = [np.asarray(v) for v in velocities]
        if dtypes is None:
            dtypes = [v.dtype.name for v in arrays]
        if len(dtypes) != len(arrays):
            raise ValueError(
                f"dtypes must be one name per velocity, {len(arrays)}, got {list(dtypes)!r}"
            )
        self.dtypes = tuple(dtypes)
        self.velocities = tuple(
            _checked_velocity(f"velocities[{i}]", v, name)
            for i, (v, name) in enumerate(zip(arrays, dtypes, strict=True))
        )
        self.t = _checked_t(t, len(arrays))
        self.hyperparameters = _checked_hyperparameters(hyperparameters or {})

    @property
    def first_step(self) -> int:
        """The t of the first update: 1 as in Algorithm 1, or 0 as in the original Keras code."""
        return int(self.hyperparameters["first_step"])

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of updates of each tensor."""
        return self.t if isinstance(self.t, tuple) else (self.t,) * len(self.velocities)

    @property
    def count(self) -> int:
        """The number of updates, for an optimizer that has one counter.

        Raises:
            ValueError: if the tensors have had different numbers of updates.
        """
        if isinstance(self.t, tuple):
            raise ValueError(
                "t must be one number because this optimizer has one counter for all tensors, "
                f"got {self.t}"
            )
        return self.t

    def check(
        self, parameters: Sequence[tuple[tuple[int, ...], str]], *, largest_t: int | None = None
    ) -> None:
        """Raise ValueError unless the velocities match the parameters in number, shape and dtype.

        Args:
            parameters: the expected shape and dtype name of each velocity.
            largest_t: the largest value that the optimizer's counter can hold.
        """
        if len(parameters) != len(self.velocities):
            raise ValueError(
                f"velocities must be one per parameter, {len(parameters)}, "
                f"got {len(self.velocities)}"
            )
        for i, (wanted, v) in enumerate(zip(parameters, self.velocities, strict=True)):
            if wanted != (v.shape, self.dtypes[i]):
                raise ValueError(
                    f"velocities[{i}] must be {wanted[1]} of shape {wanted[0]}, as its parameter "
                    f"requires, got {self.dtypes[i]} of shape {v.shape}"
                )
        if largest_t is not None and (t := max(self.counts, default=0)) > largest_t:
            raise ValueError(f"t must be at most {largest_t}, the limit of this optimizer, got {t}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file to `path`. It replaces an existing file once it is complete."""
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "t": self.t,
            "dtypes": self.dtypes,
            "hyperparameters": self.hyperparameters,
        }
        arrays = {
            f"velocity_{i}": v if name != "bfloat16" else (_bits(v) >> 16).astype(np.uint16)
            for i, (v, name) in enumerate(zip(self.velocities, self.dtypes, strict=True))
        }
        target = Path(path)
        # Write in a temporary folder: a temporary file would not have the usual permissions.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gravity-") as scratch:
            whole = Path(scratch, "state.npz")
            with whole.open("wb") as file:
                np.savez(file, header=np.asarray(json.dumps(header)), **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "State":
        """Read a file written by `save`.

        Raises:
            OSError: if the file cannot be opened.
            ValueError: if the file is not valid. The message names the file, the field and the
                value.
        """
        try:
            arrays = _read(path)
            header = _checked_header(arrays.pop("header", None))
            names = [f"velocity_{i}" for i in range(len(header["dtypes"]))]
            if sorted(names) != sorted(arrays):
                raise ValueError(
                    f"there must be one velocity for each of the {len(names)} dtypes, "
                    f"got {sorted(arrays)}"
                )
            velocities = [
                _as_stored(name, arrays[name], dtype)
                for name, dtype in zip(names, header["dtypes"], strict=True)
            ]
            return cls(header["t"], velocities, header["hyperparameters"], dtypes=header["dtypes"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def __repr__(self) -> str:
        """Return t, first_step and the velocities' dtypes and shapes."""
        kinds = [f"{n}{v.shape}" for n, v in zip(self.dtypes, self.velocities, strict=True)]
        return f"State(t={self.t}, first_step={self.first_step}, velocities=[{', '.join(kinds)}])"


def _bits(v: np.ndarray) -> np.ndarray:
    return v.view(np.uint32)


def _checked_t(t: Any, tensors: int) -> int | tuple[int, ...]:
    many = isinstance(t, (list, tuple))
    try:
        counts = tuple(operator.index(n) for n in (t if many else [t]) if not isinstance(n, bool))
    except TypeError:
        counts = ()
    if len(counts) != (len(t) if many else 1) or min(counts, default=0) < 0:
        raise ValueError(f"t must be an integer >= 0, or one for each velocity, got {t!r}")
    if many and len(counts) != tensors:
        raise ValueError(f"t must be one number, or one for each of {tensors} velocities, got {t}")
    if many and len(set(counts)) > 1:
        return counts
    return counts[0] if counts else 0


def _checked_velocity(field: str, v: np.ndarray, name: Any) -> np.ndarray:
    if name not in _DTYPES:
        raise ValueError(f"{field} must have a dtype among {', '.join(_DTYPES)}, got {name!r}")
    held = "float32" if name == "bfloat16" else name
    if v.dtype.name not in (name, held):
        raise ValueError(f"{field} must be an array of {held}, got {v.dtype}")
    v = np.array(v, dtype=held, order="C")  # also converts to the native byte order
    if name == "bfloat16" and (_bits(v) & 0xFFFF).any():
        raise ValueError(f"{field} must be exact in bfloat16, got other float32 numbers")
    v.flags.writeable = False
    return v


def _checked_hyperparameters(values: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := [name for name in values if name not in hp.DEFAULTS]:
        raise TypeError(
            f"hyperparameters must be among {', '.join(hp.DEFAULTS)}, got {unknown[0]!r}"
        )
    given = hp.DEFAULTS | dict(values)
    hp.validate(**given)
    given["velocity_std"] = hp.velocity_std(
        given["learning_rate"], given["alpha"], given["velocity_std"], stacklevel=4
    )
    whole = ("seed", "first_step")
    return {n: operator.index(v) if n in whole else hp.as_float(v) for n, v in given.items()}


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("must be an .npz file, got another kind of file or an incomplete one")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                if len(set(archive.files)) < len(archive.files):
                    raise ValueError(f"an array appears twice: {sorted(archive.files)}")
                return {name: np.asarray(archive[name]) for name in archive.files}
        except Exception as error:  # a damaged archive can make zipfile raise almost anything
            raise ValueError(f"must be an .npz file without pickled objects: {error}") from error


def _checked_header(array: np.ndarray | None) -> dict[str, Any]:
    if array is None or array.dtype.kind != "U" or array.ndim:
        raise ValueError(f"header must be a string of JSON, got {array!r}")
    header = loads(str(array))
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"header must have format {_FORMAT!r}, got {str(array)[:80]!r}")
    if type(header.get("version")) is not int or header["version"] != _VERSION:
        raise ValueError(
            f"version must be {_VERSION} for this release, got {header.get('version')!r}"
        )
    for field, kind, name in (
        ("t", (int, list), "an integer or a list"),
        ("dtypes", list, "a list"),
        ("hyperparameters", dict, "an object"),
    ):
        if not isinstance(header.get(field), kind):
            raise ValueError(f"{field} in the header must be {name}, got {header.get(field)!r}")
    if missing := [name for name in hp.DEFAULTS if name not in header["hyperparameters"]]:
        raise ValueError(
            f"hyperparameters must contain {missing[0]}, got {header['hyperparameters']}"
        )
    return header


def _as_stored(field: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """Return a velocity in the form that `State` takes."""
    if dtype != "bfloat16":
        return array
    if array.dtype != np.uint16:
        raise ValueError(f"{field} must be uint16, the bits of bfloat16, got {array.dtype}")
    return (array.astype(np.uint32) << 16).view(np.float32)
