"""Tensors and variables of Keras's backends: dtypes, shapes, sparse and complex ones, max|G|.

Guarantee: no function here changes a tensor or a variable. `tf` is None on the other backends.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from gravity_core.update import max_abs_grad

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None

_LANES = 64  # largest number of columns of the table in `max_abs`; measured


def stored_dtype(variable: Any) -> str:
    """Return the name of a variable's dtype.

    JAX without x64 holds a float64 variable in float32, whatever the variable says.
    """
    value = variable if tf else ops.convert_to_tensor(variable)
    name: str = keras.backend.standardize_dtype(value.dtype)
    return name


def working_dtype(dtype: str) -> str:
    """Return the dtype to compute in: float64 for double precision, else float32."""
    return "float64" if dtype in ("float64", "complex128") else "float32"


def as_reals(array: Any) -> Any:
    """Return a tensor or the value of a variable; a complex one as pairs of reals."""
    array = ops.convert_to_tensor(array)
    complex_ = keras.backend.standardize_dtype(array.dtype).startswith("complex")
    return ops.view_as_real(array) if complex_ else array


def from_reals(array: Any, dtype: str) -> Any:
    """Return the inverse of `as_reals`, in the given dtype."""
    if not dtype.startswith("complex"):
        return ops.cast(array, dtype)
    real, imaginary = array[..., 0], array[..., 1]
    if tf:
        return tf.complex(real, imaginary)
    # keras.ops.view_as_complex returns complex64 only.
    return ops.cast(real, dtype) + 1j * ops.cast(imaginary, dtype)


def positions(variables: list[Any]) -> Callable[[Any], int]:
    """Return a function that finds the position of one of these variables."""
    positions: dict[int, int] = {}
    for position, variable in enumerate(variables):
        same = [variable]
        if tf:
            # Instead of its own variable, Keras may pass TensorFlow's or that of a replica.
            value = variable.value if isinstance(variable, keras.Variable) else variable
            same += [value, *tf.distribute.get_strategy().experimental_local_results(value)]
        positions |= dict.fromkeys(map(id, same), position)
    return lambda variable: positions[id(variable)]


def dense(gradient: Any, variable: Any) -> Any:
    """Return a gradient as a dense tensor, with the sums of duplicate indices.

    Its shape is known then, which that of a traced gradient may not be.

    Raises:
        ValueError: unless the gradient has the variable's shape, and is real if the variable is.
    """
    if gradient is None:
        return None
    shape = tuple(variable.shape)
    if tf and isinstance(gradient, tf.IndexedSlices):
        gradient = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, shape[0])
    elif hasattr(gradient, "to_dense"):  # a tensor of torch; a dense one returns itself
        gradient = gradient.to_dense()
    else:
        gradient = ops.convert_to_tensor(gradient, sparse=False)
    got, name = gradient.shape, getattr(variable, "path", variable.name)
    if not (got.is_compatible_with(shape) if tf else tuple(got) == shape):
        raise ValueError(
            f"the gradient of {name} must have the variable's shape {shape}, got {tuple(got)}"
        )
    dtype = keras.backend.standardize_dtype(gradient.dtype)
    if dtype.startswith("complex") and not stored_dtype(variable).startswith("complex"):
        raise ValueError(f"the gradient of {name} must be real as the variable is, got {dtype}")
    return tf.ensure_shape(gradient, shape) if tf else gradient


def check_moves(variable: Any) -> None:
    """Raise unless a variable is floating, with at least 16 bits, or complex."""
    dtype = stored_dtype(variable)
    if dtype not in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128"):
        name = getattr(variable, "path", variable.name)
        raise TypeError(f"{name} must be floating (of 16 bits or more) or complex, got {dtype}")


def max_abs(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Return max|G| of a gradient of that shape; None if it has no elements."""
    if 0 in shape:
        return None
    if len(shape) < 2 or shape[-1] >= _LANES:
        return max_abs_grad(gradient, xp=ops)
    # Reduce over the rows of a table first, because XLA on the CPU vectorizes this reduction. It
    # does not vectorize a reduction over all axes of (64, 64, 3, 3) or over the flat view. Such a
    # reduction took most of the time of a step. For an odd number of elements, the table has one
    # column, and XLA does not vectorize it either.
    rows = ops.reshape(gradient, (-1, math.gcd(math.prod(shape), _LANES)))
    return ops.max(max_abs_grad(rows, axes=(0,), xp=ops))
