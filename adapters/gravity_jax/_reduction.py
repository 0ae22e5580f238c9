"""max|G| of every gradient, like `gravity_core.update.max_abs_grad` but with fewer kernels.

Guarantee: values and derivatives equal those of `max_abs_grad`, and no gradient is gathered. If the
program is known to use one device, NaN propagates. Otherwise `max_abs_grad` itself runs, and XLA
reduces it over the devices.
"""

import functools
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

from gravity_core.update import max_abs_grad

# At every call, XLA's CPU client allocates the scalars of each reduction again. That costs more
# than reading a short gradient, so small gradients of one size are stacked and reduced together.
# The stacks are short, because XLA compiles one kernel for the gradients at each position in a
# stack. It shares a kernel only between gradients at the same position.
SMALL = 2**14  # largest number of elements of a small gradient
TOGETHER = 4  # gradients per stack

Arrays = tuple[jax.Array, ...]
Layers = tuple[int, ...]
Pair = tuple[Any, Any]


def largest_magnitudes(grads: Arrays, stacked: Layers) -> list[Any]:
    """Return max|G| of every gradient, as a scalar or as one value per layer that broadcasts.

    Args:
        grads: the gradients, real and not empty.
        stacked: for each gradient, the number of leading axes that index layers.
    """
    return [
        jnp.expand_dims(largest, tuple(range(layers, grad.ndim))) if layers else largest
        for largest, grad, layers in zip(_maxima(grads, stacked), grads, stacked, strict=True)
    ]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _maxima(grads: Arrays, stacked: Layers) -> list[Any]:
    if not _on_one_device(grads):
        return _over_devices(grads, stacked)
    if any(isinstance(grad, jax.core.Tracer) for grad in grads):
        return _together(grads, stacked)
    # Outside jit, each gradient may be on another device, so they cannot be stacked.
    return [_in_one_pass(grad, n) for grad, n in zip(grads, stacked, strict=True)]


@_maxima.defjvp
def _derivative(stacked: Layers, primals: Any, tangents: Any) -> Any:
    # JAX cannot differentiate a reduction of two operands. Differentiate the plain form instead.
    _, derivative = jax.jvp(lambda grads: _over_devices(grads, stacked), primals, tangents)
    return _maxima(*primals, stacked), derivative


def _on_one_device(grads: Arrays) -> bool:
    """Return True only if it is certain, when tracing, that no gradient is sharded.

    The types and the context show a mesh. They do not show jit(in_shardings=…), so a traced
    gradient without a visible mesh may be sharded over all devices.
    """
    meshes = [jax.typeof(grad).sharding.mesh for grad in grads]
    size = max((mesh.size for mesh in [*meshes, jax.sharding.get_abstract_mesh()]), default=0)
    if size or jax.device_count() == 1:
        return size <= 1
    return not any(isinstance(grad, jax.core.Tracer) or len(grad.devices()) > 1 for grad in grads)


def _over_devices(grads: Arrays, stacked: Layers) -> list[Any]:
    return [
        max_abs_grad(grad, axes=tuple(range(n, grad.ndim)) if n else None, xp=jnp).reshape(
            grad.shape[:n]
        )
        for grad, n in zip(grads, stacked, strict=True)
    ]


def _together(grads: Arrays, stacked: Layers) -> list[Any]:
    maxima: list[Any] = [None] * len(grads)
    alike = defaultdict(list)
    for i, (grad, layers) in enumerate(zip(grads, stacked, strict=True)):
        known = isinstance(grad.size, int)  # jax.export may have a symbolic size
        if known and grad.size <= SMALL and not layers:
            alike[grad.size, grad.dtype].append(i)
        else:
            maxima[i] = _in_one_pass(grad, layers)
    for group in alike.values():
        for start in range(0, len(group), TOGETHER):
            chosen = group[start : start + TOGETHER]
            stack = jnp.stack([grads[i].reshape(-1) for i in chosen])
            for i, largest in zip(chosen, _in_one_pass(stack, 1), strict=True):
                maxima[i] = largest
    return maxima


def _in_one_pass(grad: jax.Array, layers: int) -> Any:
    # On the CPU, XLA needs at least two kernels for max|G|, but only one for the pair (max, min).
    # The single kernel is slow over several short axes, so flatten them. It is also slow for half
    # types, so those use `max_abs_grad`.
    rows = grad.reshape(*grad.shape[:layers], -1)
    if jnp.finfo(rows.dtype).bits < 32:
        return max_abs_grad(rows, axes=(layers,), xp=jnp)[..., 0]
    zero = rows.dtype.type(0)
    high, low = jax.lax.reduce((rows, rows), (zero, zero), _high_and_low, (layers,))
    return abs(jax.lax.max(high, -low))


def _high_and_low(a: Pair, b: Pair) -> Pair:
    return jax.lax.max(a[0], b[0]), jax.lax.min(a[1], b[1])
