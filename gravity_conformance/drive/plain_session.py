"""The sessions of plain functions of NumPy arrays."""

import importlib
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.drive.session import LATE, Arrays, Session, Setup, repeats

# The returned arrays that must not change later.
_KEPT = 4  # steps
_KEPT_SMALL = 64  # steps, if all arrays of a step have no more than
_SMALL = 2**10  # elements
_LARGEST = 2**22  # elements of each; of those with more than _WHOLE, a few are compared
_WHOLE = 2**16


class PlainSession(Session):
    """A function (w, v, g, t, lr, beta) -> (w, v) of NumPy arrays; V is 0 at first."""

    stateless: ClassVar[bool] = True
    strides: ClassVar[bool] = True
    ways: ClassVar[tuple[str, ...]] = ("rolled_back",)

    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Keep the state for the function."""
        self.setup, options = setup, setup.options
        self._beta, self._first = float(options["beta"]), int(options["first_step"])
        self._keywords = setup.arguments.keywords(options)
        names = [setup.dtype_of(w, i) for i, w in enumerate(weights)]
        self._dtypes = [_bfloat16() if name == "bfloat16" else np.dtype(name) for name in names]
        self._t = self._first
        self._w = self._cast(weights)
        self._v = [np.zeros_like(w) for w in self._w]
        # The gradients of the step before, by the id of the array.
        self._before: dict[int, tuple[np.ndarray, bytes]] = {}
        self._reuses = False
        # What the last steps returned: a user may keep it, for an average of W or a way back.
        small = sum(w.size for w in weights) <= _SMALL
        length = _KEPT_SMALL if small else _KEPT
        self._returned: deque[list[tuple[str, np.ndarray, bytes]]] = deque(maxlen=length)

    def step(self, grads: Sequence[np.ndarray], lr: Any = None) -> Arrays:
        """Call the function for each tensor."""
        given_rate: Any = self.setup.options["learning_rate"] if lr is None else lr
        left, before = [], list(self._before.values())
        # Every other step gives the gradients in the memory of the step before, in one array for
        # all gradients of a shape.
        own_memory = self.setup.strided or self.setup.packed
        self._before, self._reuses = {}, bool(before) and not (self._reuses or own_memory)
        held = [self._held(arrays) for arrays in (self._w, self._v, grads)]
        kept: dict[Any, np.ndarray] = {}
        returned: list[tuple[str, np.ndarray, bytes]] = []
        for i, g in enumerate(grads):
            dtype, rate = self._dtypes[i], given_rate
            t: Any = self._t
            beta: Any = self._beta
            if self.setup.array_rate:
                rate = np.asarray(rate, dtype)
            elif dtype == np.float64 and self._t % 2:  # as of a schedule by NumPy
                rate = np.float64(rate)
            if self.setup.rates_by:  # as from np.arange and np.linspace
                t, beta, rate = np.int64(t), np.float64(beta), np.float64(rate)
            given_dtype = g.dtype if g.dtype == np.float16 else dtype
            w, v, own = (arrays[i] for arrays in held)
            own = own if own.dtype == given_dtype and self.setup.packed else own.astype(given_dtype)
            given = [self._laid(x, i + 3 * k) for k, x in enumerate((w, v, own))]
            if self._reuses:
                shared = kept.setdefault((g.shape, given_dtype), before[i][0])
                shared[...], given[2] = given[2], shared
            contents = [x.tobytes() for x in given[:2]]
            result = self.setup.found(*given, t, rate, beta, **self._keywords)
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                raise TypeError(f"it must return (w, v), got {type(result).__name__}")
            for name, x in zip("wv", result, strict=True):
                if _is_array(x) and any(np.may_share_memory(x, y) for y in given):
                    self.fault = f"returned {name} in the memory of an argument"
            for name, content, array in zip("wv", contents, given[:2], strict=True):
                if content != array.tobytes():
                    self.fault = f"overwrote {name}"
            w, v = map(_array, result)
            returned += [(n, x, _content(x)) for n, x in (("w", w), ("v", v)) if _is_array(x)]
            if self._w[i].dtype.name == "bfloat16" and getattr(w, "dtype", None) == np.float32:
                w = w.astype(dtype)  # in NumPy, a Python float times bfloat16 is float32
            self._w[i], self._v[i] = w, v
            left.append(_readable(_array(given[2].copy())))
            self._before[id(given[2])] = given[2], given[2].tobytes()
        if not self._reuses and any(g.tobytes() != data for g, data in before):
            self.fault = LATE
        for name, array, content in itertools.chain(*self._returned):
            if _content(array) != content:
                self.fault = f"overwrote {name} that an earlier step returned"
        self._returned.append(returned)
        self._t += 1
        return left

    def _cast(self, arrays: Sequence[np.ndarray]) -> Arrays:
        """Return copies of arrays in the dtypes of the weights."""
        return [x.astype(dtype) for x, dtype in zip(arrays, self._dtypes, strict=True)]

    def _held(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return views of one buffer in place of the arrays, if the setup is packed."""
        if not self.setup.packed:
            return arrays
        buffer = np.concatenate([x.reshape(-1) for x in arrays])
        ends = np.cumsum([x.size for x in arrays]).tolist()
        places = zip(arrays, [0, *ends], ends, strict=False)
        return [buffer[start:end].reshape(x.shape) for x, start, end in places]

    def _laid(self, array: np.ndarray, place: int) -> np.ndarray:
        """Return an array itself, or a copy; `place` chooses how a strided one lies in memory."""
        if self.setup.swapped:
            return array.astype(array.dtype.newbyteorder())
        if not self.setup.strided or not array.ndim:
            return array
        return _LAYOUTS[place % len(_LAYOUTS)](array)

    def assign(self, weights: Arrays) -> None:
        """Keep other W for the function."""
        self._w = self._cast(weights)

    def weights(self) -> Arrays:
        """Return W, as the function returned it."""
        return [_readable(w) for w in self._w]

    def velocity(self) -> Arrays | None:
        """Return V, as the function returned it."""
        return [_readable(v) for v in self._v]

    def reloaded(self) -> "PlainSession":
        """Return this session. The caller keeps V and t, so nothing needs to be saved."""
        return self

    def rolled_back(self) -> "PlainSession":
        """Make a step, and write the numbers from before it into the arrays that it returned."""
        before = [x.copy() for x in self._w], [x.copy() for x in self._v]
        self.step([np.ones_like(w) for w in self._w])
        self._t -= 1
        self._returned.clear()  # the user writes into these
        for arrays, olds in zip((self._w, self._v), before, strict=True):
            for i, old in enumerate(olds):
                if arrays[i].flags.writeable:
                    arrays[i][...] = old
                else:
                    arrays[i] = old
        return self

    def begin(self, velocity: Arrays, count: int) -> None:
        """Set V, and set t to its value after `count` steps."""
        self._v, self._t = self._cast(velocity), self._first + count


def _array(x: Any) -> Any:
    """Return a result as an array in the machine's byte order; a wrong one stays as it is."""
    if isinstance(x, np.generic):  # arithmetic on 0-d arrays gives scalars
        return np.asarray(x)
    swapped = isinstance(x, np.ndarray) and not x.dtype.isnative
    return x.astype(x.dtype.newbyteorder("=")) if swapped else x


def _is_array(x: Any) -> bool:
    return type(x) is np.ndarray and x.size <= _LARGEST


def _content(array: np.ndarray) -> bytes:
    """Return the bytes of an array; of a large one, those of some elements."""
    return array.reshape(-1)[:: max(1, array.size // _WHOLE)].tobytes()


def _expanded(array: np.ndarray) -> np.ndarray:
    """Return one row that stands for all, if they are equal; it cannot be written to."""
    return np.broadcast_to(array[:1].copy(), array.shape) if repeats(array) else array.copy()


def _kept(array: np.ndarray) -> np.ndarray:
    """Return a reversed copy that cannot be written to, as an array of JAX or of a file."""
    reversed_ = array[::-1].copy()[::-1]
    reversed_.flags.writeable = False
    return reversed_


_LAYOUTS = (
    lambda x: x.copy(order="F"),
    lambda x: np.stack([x, x + 1], axis=-1)[..., 0],
    _kept,
    _expanded,
)


def _bfloat16() -> np.dtype:
    dtype: np.dtype = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    return dtype


def _readable(array: Any) -> Any:
    """Return a bfloat16 array as float32, and any other object unchanged."""
    named = getattr(getattr(array, "dtype", None), "name", None)
    return array.astype(np.float32) if named == "bfloat16" else array
