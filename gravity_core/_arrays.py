"""Helpers that the array-API standard lacks: namespace of an array, dtype names, casts.

Guarantee: this module imports no framework; namespaces are passed in as ``xp``.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

Array = Any
Namespace = Any

# float96 or float128 is NumPy's long double, depending on the platform. Oracles compute in it.
_WIDTH = {
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "float64": 64,
    "float96": 96,
    "float128": 128,
}


def namespace(xp: Namespace | None, **arrays: Array) -> Namespace:
    """Return `xp`, or the array-API namespace of the named arrays.

    Raises:
        TypeError: for arrays of an unknown library, and for subclasses of NumPy's.
    """
    # JAX has a subclass of its own, for constants of what it traces. A namespace may be any object.
    is_numpy = xp is None or getattr(xp, "__name__", None) in ("numpy", "array_api_compat.numpy")
    for name, array in arrays.items():
        if isinstance(array, np.ndarray if is_numpy else (np.ma.MaskedArray, np.matrix)):
            check_plain(name, array)
    if xp is not None:
        return xp
    try:
        return array_api_compat.array_namespace(*arrays.values())
    except TypeError as error:
        kinds = ", ".join(f"{name} {type(array).__name__}" for name, array in arrays.items())
        raise TypeError(
            f"cannot tell the array namespace of {kinds}: pass arrays of one array-API library, "
            "or xp= (keras.ops for TensorFlow tensors)"
        ) from error


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any library, such as float32."""
    # The name of a NumPy dtype does not depend on its byte order, as its str does. Elsewhere str
    # gives "torch.float32" or "array_api_strict.float32".
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


def float_name(array: Array, argument: str, *, long_double: bool = False) -> str:
    """Return the dtype's name: float16, bfloat16, float32, float64, or a long double if allowed.

    Raises:
        TypeError: for every other dtype; the message names `argument`.
    """
    name = dtype_name(array.dtype)
    if name not in _WIDTH or (_WIDTH[name] > 64 and not long_double):
        raise TypeError(
            f"{argument} must be a real floating-point array (float16, bfloat16, float32 or "
            f"float64; view complex as pairs of reals), got dtype {array.dtype}"
        )
    return name


class FloatInfo(NamedTuple):
    """The limits of a floating-point dtype.

    Attributes:
        name: the name of the dtype.
        width: its number of bits.
        unit: u, the unit roundoff: the greatest relative error of rounding to nearest.
        smallest_normal: the smallest normal number; smaller ones are subnormal.
        max: the largest finite number.
    """

    name: str
    width: int
    unit: float
    smallest_normal: float
    max: float


def float_info(dtype: Any, argument: str = "dtype") -> FloatInfo:
    """Return the limits of a dtype of any library; `dtype` may also be its name.

    Raises:
        TypeError: if it is not a real floating-point dtype; the message names `argument`.
    """
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    if name not in _WIDTH:
        raise TypeError(f"{argument} must be float16, bfloat16, float32 or float64, got {dtype!r}")
    if name == "bfloat16":
        # NumPy has no bfloat16.
        return FloatInfo(name, 16, 2.0**-8, 2.0**-126, (2 - 2.0**-7) * 2.0**127)
    info = np.finfo(name)
    limits = (float(info.eps) / 2, float(info.smallest_normal), float(info.max))
    return FloatInfo(name, _WIDTH[name], *limits)


def working_dtype(xp: Namespace, **arrays: Array) -> Any:
    """Return the dtype to compute in: the widest among the arrays, at least float32."""
    dtype, width = getattr(xp, "float32", "float32"), 32  # keras.ops takes dtypes by name
    for argument, array in arrays.items():
        own = _WIDTH[float_name(array, argument, long_double=True)]
        if own >= width:
            dtype, width = array.dtype, own
    return dtype


def cast(array: Array, dtype: Any, xp: Namespace) -> Array:
    """Return `array` in `dtype`; the same object if it already has that dtype.

    A Python number is returned unchanged; its product with an array rounds it once.
    """
    if not hasattr(array, "dtype") or array.dtype == dtype:
        return array
    if isinstance(array, np.generic):  # 0-d NumPy arithmetic returns scalars
        array = np.asarray(array)
    if hasattr(xp, "astype"):
        return xp.astype(array, dtype)
    return xp.cast(array, dtype)  # keras.ops


def float_counter(t: Any, dtype: Any, xp: Namespace) -> Any:
    """Return `t`. An integer array is cast to `dtype`, because its arithmetic would truncate."""
    is_array = hasattr(t, "dtype") and not isinstance(t, Integral)
    return cast(t, dtype, xp) if is_array and "float" not in dtype_name(t.dtype) else t


def quiet(xp: Namespace, **kinds: Any) -> AbstractContextManager[Any]:
    """Return `numpy.errstate` for libraries that compute with NumPy; the others never warn."""
    # torch.compile cannot trace through numpy.errstate.
    return nullcontext() if getattr(xp, "__name__", "").endswith("torch") else np.errstate(**kinds)


def listed(argument: str, values: Any, entries: str = "arrays, one for each tensor") -> list[Any]:
    """Return a list of what may be iterated over, except for arrays, text and mappings.

    The rows of an array, for example, would be taken for tensors, each with its own max|G| and V₀.

    Raises:
        TypeError: for everything else; the message names `argument` and what its `entries` are.
    """
    is_one = hasattr(values, "dtype") or isinstance(values, (Mapping, str, bytes, bytearray))
    if is_one or not isinstance(values, Iterable):
        raise TypeError(f"{argument} must be a list of {entries}, got {type(values).__name__}")
    return list(values)


def check_plain(argument: str, array: Any) -> None:
    """Raise TypeError unless `array` is a NumPy array, or one that is mapped from a file.

    Other subclasses have operations of their own: a masked array skips elements, and the product of
    two matrices is no elementwise one.
    """
    if type(array) not in (np.ndarray, np.memmap):
        kind = type(array).__name__
        raise TypeError(f"{argument} must be a numpy.ndarray or numpy.memmap, got {kind}")


def check_same_shape(**arrays: Array) -> None:
    """Raise ValueError unless all arrays have the same shape; unknown dimensions match any."""
    (first, reference), *others = ((name, tuple(a.shape)) for name, a in arrays.items())
    for name, shape in others:
        if len(shape) != len(reference) or any(
            a != b and None not in (a, b) for a, b in zip(shape, reference, strict=True)
        ):
            raise ValueError(f"{name} must have the shape of {first}, {reference}, got {shape}")
