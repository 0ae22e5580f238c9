"""The leaves that Gravity accepts as parameters and gradients.

Guarantee: an error names the leaf by its place in the tree and says what was received.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gravity_core import hyperparameters as hp

MISSING = (
    "is missing: a parameter without a gradient needs zeros, or optax.masked around the "
    "transformation"
)


def as_array(leaf: Any) -> Any:
    """Return the array of a `jax.Ref` or of a leaf that has `__jax_array__`, else the leaf."""
    if isinstance(leaf, jax.Ref):
        return leaf[...]
    return jnp.asarray(leaf) if hasattr(leaf, "__jax_array__") else leaf


def is_traced(value: Any) -> bool:
    """Return whether a JAX transformation traces `value`."""
    return isinstance(value, jax.core.Tracer)


def moves(leaf: Any) -> bool:
    """Return whether a leaf is floating or complex: Gravity never moves the others."""
    return bool(jnp.issubdtype(jax.typeof(leaf).dtype, jnp.inexact))


def velocity_dtype(name: str, param: Any, dtype: DTypeLike | None) -> Any:
    """Return the dtype of a parameter's velocity.

    Args:
        name: the place of the parameter.
        param: the parameter, or a `jax.ShapeDtypeStruct`.
        dtype: the dtype for real floating parameters. None means their own.

    Raises:
        TypeError: unless the parameter is floating, complex, integer or boolean. optax cannot
            multiply integers of 2 or 4 bits.
    """
    own = _dtype(param)
    if own == jnp.bool_:
        return own
    if own is not None and jnp.issubdtype(own, jnp.integer) and jnp.iinfo(own).bits >= 8:
        return own
    _check_inexact(name, param, own)
    if dtype is None or jnp.issubdtype(own, jnp.complexfloating):
        dtype = own
    return jax.dtypes.canonicalize_dtype(dtype)


def gradient(name: str, grad: Any, v: jax.Array) -> Any:
    """Return a gradient as an array.

    For a parameter that does not move, return its update: zeros, or None if the gradient is None.

    Raises:
        TypeError: for a gradient that is neither floating nor complex, unless the parameter is an
            integer or boolean.
        ValueError: for a gradient that is missing or does not fit its velocity.
    """
    if grad is None:
        if moves(v):
            raise ValueError(f"{name} {MISSING}")
        return None
    dtype = None if isinstance(grad, jax.ShapeDtypeStruct) else _dtype(grad)
    if dtype is None or moves(v):
        _check_inexact(name, grad, dtype)
    if jnp.shape(grad) != v.shape or jnp.iscomplexobj(grad) != jnp.iscomplexobj(v):
        raise ValueError(
            f"{name} must have the shape of its parameter, and both must be real or both complex: "
            f"expected {v.shape} {v.dtype}, got {jnp.shape(grad)} {dtype}"
        )
    return canonical(jnp.asarray(grad)) if moves(v) else jnp.zeros_like(v)


def checked_count(count: Any) -> Any:
    """Return the count of a state as an int32 scalar; a Python int may come from a checkpoint.

    Raises:
        TypeError: for anything but an int32 or a Python int.
        ValueError: unless it is a scalar >= 0 that fits int32. The value of a traced count is
            unknown.
    """
    # jit makes a weak int32 of an int, and under x64 a weak int64.
    is_weak = is_traced(count) and count.weak_type and jnp.issubdtype(count.dtype, jnp.integer)
    is_int = isinstance(count, int) or is_weak
    is_array = isinstance(count, (jax.Array, np.ndarray, np.generic)) and count.dtype == jnp.int32
    if not hp.may_be_a_number(count) or not (is_int or is_array):
        raise TypeError(f"count must be an int32 scalar, got {count!r}")
    if shape := jnp.shape(count):
        raise ValueError(
            f"count must be a scalar, the count of one optimizer, got shape {shape} (jax.vmap "
            "updates an ensemble, and jax.tree.map(lambda x: x[i], opt_state) is member i)"
        )
    if not is_traced(count) and not 0 <= int(count) <= jnp.iinfo(jnp.int32).max:
        raise ValueError(f"count must be an integer in [0, 2**31), got {int(count)}")
    return jnp.asarray(count, jnp.int32) if is_int else count


def check_velocity(name: str, v: Any, param: Any) -> None:
    """Raise a TypeError unless a state's velocity is an array that can move its parameter.

    Args:
        name: the place of the velocity.
        v: the velocity.
        param: the parameter, or None if it is not known. Then an integer velocity passes, because
            an integer parameter has one.
    """
    if not isinstance(v, (jax.Array, np.ndarray, np.generic)):
        raise TypeError(f"{name} must be an array, got {v!r}")
    if moves(v) or (param is not None and moves(as_array(param))):
        _check_inexact(name, v, _dtype(v))


def canonical(array: Any) -> Any:
    """Return an array in a dtype that JAX computes in: one made under x64 may be used outside."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return array if array.dtype == dtype else jnp.asarray(array, dtype)


def _dtype(leaf: Any) -> Any:
    try:
        return jax.typeof(leaf).dtype
    except TypeError:  # not an array
        return None


def _check_inexact(name: str, leaf: Any, dtype: Any) -> None:
    # Refuse float8: JAX promotes it to no other dtype, so optax.apply_updates could not add it.
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 16:
        received = repr(leaf) if dtype is None else f"dtype {dtype}"
        raise TypeError(
            f"{name} must be a floating or complex array of at least 16 bits (optax.masked can "
            f"leave out other leaves), got {received}"
        )
