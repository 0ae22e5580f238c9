"""The state of an optimizer as NumPy arrays, to move a run from one framework to another.

Guarantees: every `State` is valid, cannot be changed, and shares no memory with an optimizer. A
file holds no pickled objects, is written completely or not at all, and restores every bit. Saving
and loading need a megabyte beside the state, and a kilobyte for each velocity. Nothing that a file
asks for exceeds its own size.

A file is an .npz archive. ``header`` is a string of JSON: ``{"format": "gravity-state",
"version": 1, "t": …, "dtypes": […], "hyperparameters": {…}}``. ``velocity_0``, ``velocity_1``, …
are the velocities in parameter order. The archive stores them, it does not compress them. NumPy
has no bfloat16, so a bfloat16 velocity is stored in uint16: the upper 16 bits of its float32
numbers.
"""

import functools
import json
import operator
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from gravity_core import _files, _npz
from gravity_core import hyperparameters as hp
from gravity_core._arrays import listed
from gravity_core._json import loads

_FORMAT, _VERSION = "gravity-state", 1
_STORED = {
    "float16": "f2",
    "bfloat16": "u2",
    "float32": "f4",
    "float64": "f8",
    "complex64": "c8",
    "complex128": "c16",
}
"""The dtypes of velocities, each with its letter and number in a file."""
_LARGEST_T = 2**128 - 1  # a float, and a few digits of JSON
_LONGEST_HEADER = 2**20  # characters, and some more for each velocity


@dataclass(frozen=True, init=False, repr=False, eq=False)
class State:
    """The complete state of an optimizer, without the weights.

    The next update uses β̂ for t + first_step. A run that is exported after n updates and imported
    into another framework therefore continues as if it had not moved.

    Args:
        t: the number of updates so far, an integer in [0, 2**128); or one integer per velocity if
            they differ (PyTorch counts, for each parameter, the steps in which it had a gradient).
        velocities: V of each parameter, in parameter order. They are copied.
        hyperparameters: named like the arguments of `gravity_core.Gravity`. The learning rate is
            that of the next step. Missing ones take their defaults; a missing velocity_std is
            alpha / learning_rate.
        dtypes: names of the velocities' dtypes (float16, bfloat16, float32, float64, complex64,
            complex128). Pass them if they differ from the arrays' dtypes: a bfloat16 velocity may
            be passed as float32.

    Nothing can be assigned to a state or its parts. `copy.copy` and `copy.deepcopy` return the same
    state; `dataclasses.replace` makes another one.

    Attributes:
        t: an int if all tensors have had the same number of updates, else a tuple.
        velocities: read-only arrays. A bfloat16 velocity is held in float32, exactly.
        dtypes: the name of each velocity's dtype.
        hyperparameters: a read-only mapping of all of them, the keyword arguments of
            `gravity_core.Gravity`.

    Raises:
        ValueError: naming the argument and the value received.
        TypeError: for an unknown hyper-parameter, or for velocities that are no list of plain
            arrays.

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
    hyperparameters: Mapping[str, Any]

    def __init__(
        self,
        t: int | Sequence[int],
        velocities: Sequence[np.ndarray],
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        dtypes: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(hyperparameters, Mapping | None):
            raise TypeError(
                f"hyperparameters must be a mapping, got {type(hyperparameters).__name__}"
            )
        arrays = [
            _plain(f"velocities[{i}]", v) for i, v in enumerate(listed("velocities", velocities))
        ]
        if dtypes is None:
            dtypes = [v.dtype.name for v in arrays]
        dtypes = listed("dtypes", dtypes, "names, one for each velocity")
        if len(dtypes) != len(arrays):
            raise ValueError(
                f"dtypes must be one name per velocity, {len(arrays)}, got {_shown(dtypes)}"
            )
        copies = [
            _copied(f"velocities[{i}]", v, name)
            for i, (v, name) in enumerate(zip(arrays, dtypes, strict=True))
        ]
        self._set(t, copies, dtypes, hyperparameters or {}, stacklevel=5)

    def _set(
        self,
        t: Any,
        velocities: Sequence[np.ndarray],
        dtypes: Sequence[str],
        hyperparameters: Mapping[str, Any],
        *,
        stacklevel: int = 2,
    ) -> None:
        """Set all fields, or raise ValueError or TypeError for the first that is wrong."""
        for i, (v, name) in enumerate(zip(velocities, dtypes, strict=True)):
            _check_velocity(f"velocities[{i}]", v, name)
        fields = {
            "t": _checked_t(t, len(velocities)),
            "velocities": tuple(velocities),
            "dtypes": tuple(dtypes),
            "hyperparameters": _checked_hyperparameters(hyperparameters, stacklevel),
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    def _check_again(self) -> None:
        """Raise if somebody has changed a field in spite of all, by `object.__setattr__`."""
        self._set(self.t, self.velocities, self.dtypes, self.hyperparameters)

    def __copy__(self) -> "State":
        """Return the same state, which nobody can change."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        """Return the same state, which nobody can change."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickle call the constructor: an array that it restores can be written to."""
        make = functools.partial(type(self), dtypes=self.dtypes)
        return make, (self.t, self.velocities, dict(self.hyperparameters))

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

        The fields are checked again, too. Every import begins with this method.

        Args:
            parameters: the expected shape and dtype name of each velocity.
            largest_t: the largest value that the optimizer's counter can hold.
        """
        self._check_again()
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
        t = max(self.t, default=0) if isinstance(self.t, tuple) else self.t
        if largest_t is not None and t > largest_t:
            raise ValueError(f"t must be at most {largest_t}, the limit of this optimizer, got {t}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file to `path`.

        It replaces an existing file once it is complete and on the disk. A symbolic link stays, and
        the file that it names is written. An existing file keeps its permissions. What saves of the
        same file left when they were killed (``.gravity-…``) is removed.

        Raises:
            OSError: if the file cannot be written, or is not a regular one. An existing file is
                unchanged then.
            ValueError: if `path` cannot be the name of a file, or a field was changed in spite of
                all.
            TypeError: if `path` is no path.
        """
        self._check_again()
        _files.write({_files.as_text(path): self._write})

    def _write(self, file: BinaryIO) -> None:
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "t": self.t,
            "dtypes": self.dtypes,
            "hyperparameters": dict(self.hyperparameters),
        }
        text = np.asarray(json.dumps(header))
        arrays = {"header": (text.dtype, text.shape, _npz.parts(text))}
        for i, (v, name) in enumerate(zip(self.velocities, self.dtypes, strict=True)):
            half = name == "bfloat16"
            dtype, numbers = np.dtype(np.uint16) if half else v.dtype, _npz.parts(v)
            arrays[f"velocity_{i}"] = dtype, v.shape, map(_upper, numbers) if half else numbers
        _npz.write(file, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "State":
        """Read a file written by `save`.

        The header and the sizes of all arrays are checked before an array is read. An archive that
        compresses its arrays, as numpy.savez_compressed does, is refused: a small file would ask
        for any amount of memory.

        Raises:
            OSError: if the file cannot be opened, or is not a regular one.
            ValueError: if the file is not valid. The message names the file, the field and the
                value. Also if `path` cannot be the name of a file.
            TypeError: if `path` is no path.
            MemoryError: if the state does not fit into the memory.
        """
        path = _files.as_text(path)
        with _files.open_regular(path) as file:
            try:
                state = cls.__new__(cls)
                state._set(*_read(file))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {error}") from error
        return state

    def __repr__(self) -> str:
        """Return t, first_step and the velocities' dtypes and shapes."""
        kinds = [f"{n}{v.shape}" for n, v in zip(self.dtypes, self.velocities, strict=True)]
        return f"State(t={self.t}, first_step={self.first_step}, velocities=[{', '.join(kinds)}])"


def _shown(value: Any) -> str:
    """Return a value for a message, cut to a few words."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a very large {type(value).__name__}"


def _checked_t(t: Any, tensors: int) -> int | tuple[int, ...]:
    many = isinstance(t, (list, tuple))
    try:
        given = [n for n in (t if many else [t]) if hp.may_be_a_number(n) and not np.ndim(n)]
        counts = tuple(map(operator.index, given))
    except TypeError:
        counts = ()
    if len(counts) != (len(t) if many else 1) or min(counts, default=0) < 0:
        raise ValueError(f"t must be an integer >= 0, or one for each velocity, got {_shown(t)}")
    if max(counts, default=0) > _LARGEST_T:
        raise ValueError(f"t must be below 2**128, got {_shown(t)}")
    if many and len(counts) != tensors:
        raise ValueError(
            f"t must be one number, or one for each of {tensors} velocities, got {_shown(t)}"
        )
    if many and len(set(counts)) > 1:
        return counts
    return counts[0] if counts else 0


def _plain(field: str, v: Any) -> np.ndarray:
    if isinstance(v, np.ndarray) and type(v) not in (np.ndarray, np.memmap):  # masks are lost
        raise TypeError(f"{field} must be a plain array, got {type(v).__name__}")
    return np.asarray(v)


def _held(name: str) -> str:
    return "float32" if name == "bfloat16" else name


def _copied(field: str, v: np.ndarray, name: Any) -> np.ndarray:
    """Return a copy in the dtype that `State` holds, in C order and the native byte order."""
    _check_name(field, name)
    if v.dtype.name not in (name, _held(name)):
        raise ValueError(f"{field} must be an array of {_held(name)}, got {v.dtype}")
    return _frozen(np.array(v, dtype=_held(name), order="C"))


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be made writable again, as a read-only array can."""
    return np.asarray(array.data.toreadonly())


def _check_name(field: str, name: Any) -> None:
    if not isinstance(name, str) or name not in _STORED:
        raise ValueError(
            f"{field} must have a dtype among {', '.join(_STORED)}, got {_shown(name)}"
        )


def _check_velocity(field: str, v: Any, name: Any) -> None:
    _check_name(field, name)
    if not isinstance(v, np.ndarray) or v.dtype != _held(name) or v.flags.writeable:
        raise ValueError(f"{field} must be a read-only array of {_held(name)}, got {_shown(v)}")
    if name == "bfloat16" and any((p.view(np.uint32) & 0xFFFF).any() for p in _npz.parts(v)):
        raise ValueError(f"{field} must be exact in bfloat16, got other float32 numbers")


def _upper(numbers: np.ndarray) -> np.ndarray:
    """Return the bits of bfloat16 numbers that are held in float32."""
    return (numbers.view(np.uint32) >> 16).astype(np.uint16)


def _from_upper(bits: np.ndarray) -> np.ndarray:
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _checked_hyperparameters(values: Mapping[str, Any], stacklevel: int) -> Mapping[str, Any]:
    if unknown := [name for name in values if name not in hp.DEFAULTS]:
        raise TypeError(
            f"hyperparameters must be among {', '.join(hp.DEFAULTS)}, got {_shown(unknown[0])}"
        )
    given = hp.DEFAULTS | dict(values)
    hp.validate(**given)
    given["velocity_std"] = hp.velocity_std(
        given["learning_rate"], given["alpha"], given["velocity_std"], stacklevel=stacklevel
    )
    whole = ("seed", "first_step")
    return MappingProxyType(
        {n: operator.index(v) if n in whole else hp.as_float(v) for n, v in given.items()}
    )


def _read(file: BinaryIO) -> tuple[Any, list[np.ndarray], list[str], dict[str, Any]]:
    """Return t, the velocities, their dtypes and the hyper-parameters of a file."""
    stored = _npz.read(file)
    header = _checked_header(file, stored)
    names = [f"velocity_{i}" for i in range(len(header["dtypes"]))]
    if set(names) != set(stored) - {"header"}:
        raise ValueError(
            f"there must be one velocity for each of the {len(names)} dtypes, "
            f"got {_shown(list(stored))}"
        )
    for i, (name, dtype) in enumerate(zip(names, header["dtypes"], strict=True)):
        _check_name(f"velocities[{i}]", dtype)
        if stored[name].kind != _STORED[dtype]:
            raise ValueError(
                f"{name} must be stored as {_STORED[dtype]} for {dtype}, got {stored[name].kind}"
            )
    velocities = []
    for name, dtype in zip(names, header["dtypes"], strict=True):
        array = np.empty(stored[name].shape, _held(dtype))
        _npz.fill(file, stored[name], array, _from_upper if dtype == "bfloat16" else None)
        velocities.append(_frozen(array))
    return header["t"], velocities, header["dtypes"], header["hyperparameters"]


def _checked_header(file: BinaryIO, stored: Mapping[str, _npz.Stored]) -> dict[str, Any]:
    if "header" not in stored:
        raise ValueError("header must be a string of JSON, got None")
    text = _npz.text(file, stored["header"], _LONGEST_HEADER + 64 * len(stored))
    header = loads(text)
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"header must have format {_FORMAT!r}, got {text[:80]!r}")
    if type(header.get("version")) is not int or header["version"] != _VERSION:
        raise ValueError(
            f"version must be {_VERSION} for this release, got {_shown(header.get('version'))}"
        )
    for field, kind, name in (
        ("t", (int, list), "an integer or a list"),
        ("dtypes", list, "a list"),
        ("hyperparameters", dict, "an object"),
    ):
        if not isinstance(header.get(field), kind):
            raise ValueError(
                f"{field} in the header must be {name}, got {_shown(header.get(field))}"
            )
    given = header["hyperparameters"]
    if missing := [name for name in hp.DEFAULTS if given.get(name) is None]:
        raise ValueError(f"hyperparameters must contain {missing[0]}, got {_shown(given)}")
    return header
