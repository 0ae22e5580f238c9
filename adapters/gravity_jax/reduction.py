"""max|G| of one gradient: `gravity_core.update.max_abs_grad`, in one pass where that is faster.

Guarantee: the bits and the derivatives are those of the core's expression, and NaN propagates.
On a mesh the core's own runs, which XLA reduces over devices.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gravity_core.update import max_abs_grad

Pair = tuple[Any, Any]


def largest_magnitude(grad: jax.Array, stacked: int) -> Any:
    """Return max|G|, a scalar; for a stack that of each layer, with the layer's axes of length 1.

    Args:
        grad: G, real and not empty.
        stacked: how many leading axes count layers.
    """
    # XLA on CPU makes two kernels or more of each maximum of a vector, and one of this pair. But
    # its loop is slow over half numbers and over more than two axes, and on a mesh the pair is
    # gathered, not reduced.
    in_one = (
        grad.ndim - stacked in (1, 2)
        and jnp.finfo(grad.dtype).bits >= 32
        and jax.typeof(grad).sharding.mesh.empty
    )
    return (_in_one_pass if in_one else _in_two_passes)(grad, stacked)


def _in_two_passes(grad: jax.Array, stacked: int) -> Any:
    axes = tuple(range(stacked, grad.ndim)) if stacked else None
    return max_abs_grad(grad, axes=axes, xp=jnp)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _in_one_pass(grad: jax.Array, stacked: int) -> jax.Array:
    axes = tuple(range(stacked, grad.ndim))
    zero = grad.dtype.type(0)
    high, low = jax.lax.reduce((grad, grad), (zero, zero), _high_and_low, axes)
    largest = abs(jax.lax.max(high, -low))
    return jnp.expand_dims(largest, axes) if stacked else largest


def _high_and_low(a: Pair, b: Pair) -> Pair:
    return jax.lax.max(a[0], b[0]), jax.lax.min(a[1], b[1])


@_in_one_pass.defjvp
def _derivative(stacked: int, primals: Any, tangents: Any) -> Any:
    # XLA's reductions of several arrays have no derivative in JAX.
    return jax.jvp(functools.partial(_in_two_passes, stacked=stacked), primals, tangents)
