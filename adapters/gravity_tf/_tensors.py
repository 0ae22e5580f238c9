"""Tensors and variables of Keras's backends: dtypes, shapes, sparse and complex ones, max|G|.

Guarantee: no function here changes a tensor or a variable. `tf` is None on the other backends.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from gravity_core.update import max_abs_grad

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None
if keras.backend.backend() == "jax":
    from jax.core import Tracer
if keras.backend.backend() == "torch":
    from torch import compiler

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


def is_compiling() -> bool:
    """Return whether torch.compile traces the caller."""
    return keras.backend.backend() == "torch" and bool(compiler.is_compiling())


def is_eager() -> bool:
    """Return whether the caller is not traced into a graph of TensorFlow or torch."""
    return bool(tf.executing_eagerly()) if tf else not is_compiling()


def to_numpy(x: Any) -> np.ndarray:
    """Return the numbers of a tensor or a variable; raise if it is traced."""
    # NumPy 2 warns of the copies that Keras's convert_to_numpy makes.
    x = ops.convert_to_tensor(x)
    if keras.backend.backend() == "torch":
        is_bfloat16 = keras.backend.standardize_dtype(x.dtype) == "bfloat16"  # NumPy has none
        x = (x.float() if is_bfloat16 else x).detach().cpu()
    elif tf and not tf.is_symbolic_tensor(x):
        x = x.numpy()  # np.asarray refuses a scalar tensor in bfloat16
    return np.asarray(x)


def known(value: Any) -> Any:
    """Return the value of a number, a tensor or a variable: for one without dimensions, a number.

    Return None if the value is traced, or if only an accelerator has it: reading would wait for it.
    """
    if tf and not tf.executing_eagerly():
        return None
    tensor = ops.convert_to_tensor(value)
    if keras.backend.backend() == "torch":
        try:
            return tensor.tolist() if tensor.is_cpu and not is_compiling() else None
        except RuntimeError:  # it is fake, or inside torch.func
            return None
    has_value = True
    if tf:
        tensor = tf.convert_to_tensor(tensor)  # Keras returns a variable of TensorFlow as it is
        has_value = "CPU" in tensor.device
    elif keras.backend.backend() == "jax":
        has_value = not isinstance(tensor, Tracer)
        has_value = has_value and all(device.platform == "cpu" for device in tensor.devices())
    return to_numpy(tensor)[()] if has_value else None


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


_CASTS = re.compile(r"u?int\d+|b?float\d+(_\w+)?|complex\d+")  # neither bool nor text


def dense(gradient: Any, variable: Any, accumulates: bool = False) -> Any:
    """Return a gradient as a dense tensor, with the sums of duplicate indices.

    Its shape is known then, which that of a traced gradient may not be. Integers are converted to
    the variable's dtype. So are all gradients that are accumulated, because TensorFlow adds none of
    another dtype; others keep theirs, in which they may be clipped and unscaled.

    Raises:
        TypeError: for anything but numbers, and for NumPy's subclasses, such as masked arrays.
        ValueError: unless the gradient has the variable's shape, and is real if the variable is.
        tf.errors.InvalidArgumentError: for an index of a row that does not exist.
    """
    if gradient is None:
        return None
    shape, name = tuple(variable.shape), getattr(variable, "path", variable.name)
    try:
        array = gradient.values if tf and isinstance(gradient, tf.IndexedSlices) else gradient
        if isinstance(array, np.ndarray) and type(array) not in (np.ndarray, np.memmap):
            raise TypeError("the conversion to a tensor would drop the mask of an array")
        if tf and isinstance(gradient, tf.IndexedSlices):
            # The sum drops rows with negative indices.
            message = f"the gradient of {name} must have indices >= 0"
            with tf.control_dependencies(
                [tf.debugging.assert_non_negative(gradient.indices, message)]
            ):
                values = tf.identity(gradient.values)
            gradient = tf.math.unsorted_segment_sum(values, gradient.indices, shape[0])
        elif hasattr(gradient, "to_dense"):  # a tensor of torch; a dense one returns itself
            gradient = gradient.to_dense()
        else:
            gradient = ops.convert_to_tensor(gradient, sparse=False)
        dtype = keras.backend.standardize_dtype(gradient.dtype)
    except (TypeError, ValueError) as error:
        kind = type(gradient).__name__
        raise TypeError(
            f"the gradient of {name} must be a tensor of numbers, got {kind}"
        ) from error
    if not _CASTS.fullmatch(dtype):
        raise TypeError(f"the gradient of {name} must be a tensor of numbers, got dtype {dtype}")
    got = gradient.shape
    if not (got.is_compatible_with(shape) if tf else tuple(got) == shape):
        raise ValueError(
            f"the gradient of {name} must have the variable's shape {shape}, got {tuple(got)}"
        )
    if dtype.startswith("complex") and not stored_dtype(variable).startswith("complex"):
        raise ValueError(f"the gradient of {name} must be real as the variable is, got {dtype}")
    if "int" in dtype or (accumulates and dtype != stored_dtype(variable)):
        gradient = ops.cast(gradient, stored_dtype(variable))
    return tf.ensure_shape(gradient, shape) if tf else gradient


def check_loaded(variables: list[Any], values: list[Any]) -> None:
    """Raise unless each variable of an optimizer can take its new value.

    Args:
        variables: the optimizer's variables.
        values: what has a shape and a dtype: arrays, tensors or the entries of a file.

    Raises:
        ValueError: naming the first variable that cannot, and what it would receive.
    """
    if len(values) != len(variables):
        raise ValueError(f"there must be {len(variables)} values, got {len(values)}")
    for variable, value in zip(variables, values, strict=True):
        shape, dtype = tuple(value.shape), value.dtype
        name = getattr(dtype, "name", str(dtype)).removeprefix("torch.")
        if shape != tuple(variable.shape) or not _CASTS.fullmatch(name):
            raise ValueError(
                f"{variable.path} must be an array of numbers of shape {tuple(variable.shape)}, "
                f"got {name} of shape {shape}"
            )
        own = stored_dtype(variable)
        if name.startswith("complex") and not own.startswith("complex"):
            raise ValueError(f"{variable.path} must be real, got {name}")
        if isinstance(value, np.ma.MaskedArray):
            raise ValueError(f"{variable.path} must be an array without a mask, got {value!r}")
        if name != own:
            check_fits(variable.path, value, own)


def check_fits(name: str, value: Any, dtype: str) -> None:
    """Raise if finite numbers become infinite in a dtype."""
    value = to_numpy(value) if ops.is_tensor(value) else np.asarray(value)
    with np.errstate(over="ignore", invalid="ignore"):
        lost = value[np.isfinite(value) & ~np.isfinite(value.astype(dtype))]
    if lost.size:
        raise ValueError(f"{name} must be finite in {dtype}, got {lost.flat[0].item()!r}")


def is_unchecked(gradient: Any) -> bool:
    """Return whether only a running graph can check a gradient: its shape or its indices."""
    if not tf or tf.executing_eagerly() or not tf.is_tensor(gradient):
        return False
    if isinstance(gradient, tf.IndexedSlices):
        return True
    return not tf.TensorShape(gradient.shape).is_fully_defined()  # Keras gives a tuple


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
    if keras.backend.backend() == "torch":  # its ops.maximum rounds float64 to float32
        return ops.max(ops.abs(gradient))
    if len(shape) < 2 or shape[-1] >= _LANES:
        return max_abs_grad(gradient, xp=ops)
    # Reduce over the rows of a table first, because XLA on the CPU vectorizes this reduction. It
    # does not vectorize a reduction over all axes of (64, 64, 3, 3) or over the flat view. Such a
    # reduction took most of the time of a step. For an odd number of elements, the table has one
    # column, and XLA does not vectorize it either.
    rows = ops.reshape(gradient, (-1, math.gcd(math.prod(shape), _LANES)))
    return ops.max(max_abs_grad(rows, axes=(0,), xp=ops))
