"""The Gravity update, as pure functions of arrays.

One step for one weight tensor W with gradient G, velocity V and learning rate η
(Bahrami and Pouriyan Zadeh, 2021, arXiv 2101.09192, Algorithm 1):

    t  ← t + 1                         the first update has t = 1
    β̂  = (β t + 1) / (t + 2)           weight of the old velocity   `coefficients`
    m  = 1 / max|G|                    the max-step gradient        `max_step_grad`
    ζ  = G / (1 + (G / m)²)            the gradient term            `gradient_term`
    V  ← β̂ V + (1 − β̂) ζ               the velocity                 `update`
    W  ← W − η V                       left to the optimizer

The functions take arrays of any array-API library (NumPy, PyTorch, JAX, CuPy, …), eager or
compiled, and change nothing in place. `xp` is the array namespace; use ``keras.ops`` for
TensorFlow. float16 and bfloat16 are computed in float32 and rounded once, at the end.
"""

from typing import Any

from gravity_core import _arrays
from gravity_core._arrays import Array, cast
from gravity_core.coefficients import checked_step, coefficients
from gravity_core.hyperparameters import BETA, check_number


def max_abs_grad(grad: Array, *, axes: tuple[int, ...] | None = None, xp: Any = None) -> Array:
    """Return max|G|, which scales the step of a weight tensor.

    Args:
        grad: G, not empty, of any shape and real floating dtype.
        axes: None for one maximum, a 0-d array. For a stack of weight tensors in one array, a
            tuple of axes to reduce; they keep length 1.
        xp: the array namespace; inferred from `grad` if None.

    Raises:
        ValueError: for an empty gradient.

    Example:
        >>> import numpy as np
        >>> max_abs_grad(np.asarray([[0.5, -4.0], [1.0, 2.0]]), axes=(1,)).tolist()
        [[4.0], [2.0]]
    """
    xp = _arrays.namespace(xp, grad=grad)
    if 0 in grad.shape:
        raise ValueError(f"grad must not be empty, got shape {tuple(grad.shape)}")
    dtype = _arrays.working_dtype(xp, grad=grad)
    if axes == ():
        return abs(cast(grad, dtype, xp))  # libraries differ in a reduction over no axes
    kept = {} if axes is None else {"axis": axes, "keepdims": True}  # paddle lacks keepdims
    # Not max(abs(grad)): XLA fuses abs into the reduction and then vectorizes neither.
    # The outer abs turns −0 into 0. It costs little, because few numbers are left.
    return abs(cast(xp.maximum(xp.max(grad, **kept), -xp.min(grad, **kept)), dtype, xp))


def max_step_grad(grad: Array, *, xp: Any = None) -> Array:
    """Return m = 1 / max|G|, the gradient at which the step is largest.

    Arguments and errors are as in `max_abs_grad`.

    Returns:
        m, a 0-d array. It is inf where 1 / max|G| overflows, for example if all gradients are 0.
        m has the unit of 1/G, so Gravity is not invariant under a scaling of the loss.

    Source: arXiv 2101.09192, "max-step gradient".

    Example:
        >>> import numpy as np
        >>> float(max_step_grad(np.asarray([0.5, -4.0])))
        0.25
    """
    xp = _arrays.namespace(xp, grad=grad)
    with _arrays.quiet(xp, divide="ignore", over="ignore"):  # m = inf, see Returns
        return 1.0 / max_abs_grad(grad, xp=xp)


def gradient_term(grad: Array, *, max_abs: Array | None = None, xp: Any = None) -> Array:
    """Return ζ = G / (1 + (G / m)²) with m = 1 / max|G|, elementwise.

    For |G| ≪ m, ζ ≈ G: Gravity is gradient descent. |ζ| is largest at |G| = m, where it is m/2.
    Beyond m it falls off. The product form s = G · max|G|, ζ = G / (1 + s·s) does not divide by
    max|G|, so a gradient of zeros gives no NaN. Above max|G| ≈ 4e9 in float32, s·s may overflow.
    ζ is then 0; the exact value is at most about 1e-29.

    Args:
        grad: G, the gradient of one weight tensor; any shape, real floating dtype.
        max_abs: max|G|, broadcasting with `grad`. Pass it if `grad` is a shard of a tensor or a
            stack of tensors; if None, it is computed from `grad`.
        xp: the array namespace; inferred from `grad` if None.

    Returns:
        ζ, in the shape of `grad`; float32 for float16 and bfloat16 gradients.
        One NaN or infinity makes all of ζ NaN or 0 (docs/numerics.md has an exception under XLA).

    Source: arXiv 2101.09192, "gradient term".

    Example:
        >>> import numpy as np
        >>> gradient_term(np.asarray([0.0, 1.0, -2.0])).tolist()
        [0.0, 0.2, -0.11764705882352941]
    """
    xp = _arrays.namespace(xp, grad=grad)
    if max_abs is not None:
        check_number("max_abs", max_abs)
    grad = cast(grad, _arrays.working_dtype(xp, grad=grad), xp)
    if 0 in grad.shape:
        return grad
    # s·s overflows or underflows, and G may not be finite.
    with _arrays.quiet(xp, over="ignore", under="ignore", invalid="ignore"):
        s = grad * (max_abs_grad(grad, xp=xp) if max_abs is None else max_abs)
        return grad / (1.0 + s * s)  # not s**2: a power need not be correctly rounded


def update(
    grad: Array, v: Array, t: Any, *, beta: Any = BETA, max_abs: Array | None = None, xp: Any = None
) -> Array:
    """Return the next velocity, V ← β̂ V + (1 − β̂) ζ; the weights then move by −η V.

    Args:
        grad: G, the gradient of one weight tensor; any shape, real floating dtype.
        v: V, the velocity, in the shape of `grad`; real floating dtype.
        t: the step, 1 at the first update of Algorithm 1. For an integer, the coefficients are
            computed in float64. For an array (a traced counter), they are computed in its own
            dtype if that is floating, else in that of V.
        beta: β in [0, 1]; 1 averages over the whole history.
        max_abs: max|G| of the whole tensor, as in `gradient_term`.
        xp: the array namespace; inferred from `grad` and `v` if None.

    Returns:
        The new V, in the dtype of `v`; empty for an empty tensor.

    Raises:
        ValueError: if β lies outside [0, 1], t is negative, or the shapes differ.
        TypeError: for integer or complex arrays, arrays of an unknown library, subclasses of
            NumPy's, or a t that is no number.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> import numpy as np
        >>> update(np.asarray([1.0, -2.0]), np.zeros(2), t=1).round(4).tolist()
        [0.0733, -0.0431]
    """
    xp = _arrays.namespace(xp, grad=grad, v=v)
    dtype = _arrays.working_dtype(xp, grad=grad, v=v)
    _arrays.check_same_shape(grad=grad, v=v)
    old, new = coefficients(_arrays.float_counter(checked_step(t), dtype, xp), beta)
    zeta = gradient_term(cast(grad, dtype, xp), max_abs=max_abs, xp=xp)
    v_next = cast(old, dtype, xp) * cast(v, dtype, xp) + cast(new, dtype, xp) * zeta
    _arrays.check_same_shape(v=v, **{"the new V, after t, beta and max_abs,": v_next})
    result = cast(v_next, v.dtype, xp)
    wanted, got = map(_arrays.dtype_name, (v.dtype, result.dtype))
    if got != wanted:  # t, beta, max_abs or xp is of another library
        raise TypeError(f"V must stay {wanted}, but t, beta, max_abs or xp makes it {got}")
    return result
