"""The matrix of array backends, which parametrizes every test that can run on all of them.

    @pytest.mark.parametrize("backend", BACKENDS, ids=str)
    def test_something(backend):
        backend.load()                      # imports the framework or skips with a reason
        got = backend.call(function, numpy_array, ..., static_argument=...)

A framework is imported when a test first needs it. Collecting the tests imports none.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class Backend:
    """A framework in one mode of execution, and the known facts about its arithmetic.

    Attributes:
        name: the name in test ids.
        requires: the modules that must be importable.
        mode: "eager", "function" (tf.function) or "jit".
        exact: whether it gives the bits of NumPy. If not (because of fused multiply-add), it
            must stay inside `gravity_core.ErrorBound`.
        flushes: whether it reads and returns subnormal numbers as zeros.
        drops_nan: whether its max and min ignore NaN.
        no_half: the reason why it lacks float16 and bfloat16; empty if it has them.
    """

    name: str
    requires: tuple[str, ...] = ()
    mode: str = "eager"
    exact: bool = True
    flushes: bool = False
    drops_nan: bool = False
    no_half: str = ""

    def __str__(self) -> str:
        return self.name

    def load(self, dtype: Any = np.float32) -> None:
        """Skip the running test unless the framework is installed and has `dtype`."""
        for module in self.requires:
            pytest.importorskip(module, reason=f"{self.name} needs {module}", exc_type=ImportError)
        if np.dtype(dtype).itemsize < 4 and self.no_half:
            pytest.skip(self.no_half)

    @property
    def xp(self) -> Any:
        return np

    def asarray(self, array: np.ndarray) -> Any:
        return array

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def call(self, function: Callable[..., Any], *arrays: Any, **static: Any) -> Any:
        """Call `function(*arrays, xp=..., **static)` in this mode, from NumPy to NumPy.

        Compiled code is for the shapes and dtypes of the arrays, and for the values of `static`.
        """
        result = self.bare_call(function, *(self.asarray(a) for a in arrays), **static)
        if isinstance(result, tuple):
            return tuple(self.to_numpy(r) for r in result)
        return self.to_numpy(result)

    def bare_call(self, function: Callable[..., Any], *arrays: Any, **static: Any) -> Any:
        return _compiled(self, function, tuple(static.items()))(*arrays)


@functools.cache
def _compiled(backend: Backend, function: Callable[..., Any], static: tuple[Any, ...]) -> Any:
    return backend.compiled(functools.partial(function, xp=backend.xp, **dict(static)))


class Strict(Backend):
    @property
    def xp(self) -> Any:
        return importlib.import_module("array_api_strict")

    def asarray(self, array: np.ndarray) -> Any:
        return self.xp.asarray(array)


class Torch(Backend):
    @property
    def xp(self) -> Any:
        return importlib.import_module("array_api_compat.torch")

    def asarray(self, array: np.ndarray) -> Any:
        torch = importlib.import_module("torch")
        if array.dtype == np.uint32:  # PyTorch has no arithmetic on it
            array = array.view(np.int32)
        if array.dtype.name == "bfloat16":
            return torch.asarray(array.view(np.int16)).view(torch.bfloat16)
        return torch.asarray(array.copy())

    def to_numpy(self, array: Any) -> np.ndarray:
        torch = importlib.import_module("torch")
        if array.dtype == torch.bfloat16:
            return array.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
        return array.numpy()


class Jax(Backend):
    @property
    def xp(self) -> Any:
        return importlib.import_module("jax.numpy")

    @staticmethod
    def _wide(*arrays: Any) -> Any:
        """Return the context that enables the 64-bit types of JAX if an array needs them."""
        if any(np.dtype(a.dtype).itemsize == 8 for a in arrays):
            return importlib.import_module("jax").enable_x64(True)
        return contextlib.nullcontext()

    def asarray(self, array: np.ndarray) -> Any:
        with self._wide(array):
            return self.xp.asarray(array)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return importlib.import_module("jax").jit(function) if self.mode == "jit" else function

    def bare_call(self, function: Callable[..., Any], *arrays: Any, **static: Any) -> Any:
        with self._wide(*arrays):
            return super().bare_call(function, *arrays, **static)


class Keras(Backend):
    """keras.ops on TensorFlow, which does not implement the array-API standard itself."""

    @property
    def xp(self) -> Any:
        return importlib.import_module("keras").ops

    def asarray(self, array: np.ndarray) -> Any:
        if array.dtype == np.uint32:  # keras.ops on TensorFlow cannot shift it
            array = array.view(np.int32)
        return importlib.import_module("tensorflow").constant(array)

    def to_numpy(self, array: Any) -> np.ndarray:
        return array.numpy()

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.mode == "eager":
            return function
        tensorflow = importlib.import_module("tensorflow")
        return tensorflow.function(function, jit_compile=self.mode == "jit", autograph=False)


NUMPY = Backend("numpy")
_STRICT_HALF = "array-api-strict has the dtypes of the standard, without half types"
_KERAS = ("tensorflow", "keras")

BACKENDS = (
    NUMPY,
    Strict("array-api-strict", ("array_api_strict",), no_half=_STRICT_HALF),
    Torch("torch", ("torch",)),
    Jax("jax", ("jax",), flushes=True),
    Jax("jax-jit", ("jax",), "jit", exact=False, flushes=True),
    Keras("keras", _KERAS, flushes=True),
    Keras("keras-function", _KERAS, "function", flushes=True),
    Keras("keras-xla", _KERAS, "jit", exact=False, flushes=True, drops_nan=True),
)


def numpy_dtype(name: str) -> np.dtype:
    """Return the NumPy dtype of that name; skip the test if bfloat16 needs ml_dtypes."""
    if name == "bfloat16":
        reason = "NumPy gets bfloat16 from ml_dtypes"
        return np.dtype(pytest.importorskip("ml_dtypes", reason=reason).bfloat16)
    return np.dtype(name)
