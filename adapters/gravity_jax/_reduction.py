"""max|G| of every gradient: `gravity_core.update.max_abs_grad` in fewer kernels and passes.

Guarantee: values and derivatives equal those of the core's expression, and no gradient is gathered.
If the program is known to use one device, NaN propagates. If not, the core's own expression runs,
and XLA reduces it over the devices.
"""

import functools
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

from gravity_core.update import max_abs_grad

# At every call, XLA's CPU client allocates the scalars of each reduction again. That costs more
# than reading a short gradient, so small gradients of one size are stacked and reduced together.
# The stacks are short: XLA compiles equal kernels only once, but the kernels that use the first and
# the second maximum of a stack differ.
SMALL = 2**14  # largest number of elements of a small gradient
TOGETHER = 4  # gradients per stack

Arrays = tuple[jax.Array, ...]
Layers = tuple[int, ...]
Pair = tuple[Any, Any]


def largest_magnitudes(grads: Arrays, stacked: Layers) -> list[Any]:
    """Return max|G| of every gradient, as a scalar or as one value per layer that broadcasts.

    Args:
        grads: the gradients, real and not empty.
        stacked: for each gradient, how many leading axes count layers.
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
    # JAX's reduction of two operands has no derivative.
    _, derivative = jax.jvp(lambda grads: _over_devices(grads, stacked), primals, tangents)
    return _maxima(*primals, stacked), derivative


def _on_one_device(grads: Arrays) -> bool:
    """Return whether no gradient can be sharded, as far as this is known when tracing.

    The types and the context show a mesh, but jit(in_shardings=…) is not visible. If no mesh is
    visible, a traced gradient may be sharded over all devices.
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
    # XLA on the CPU needs at least two kernels for max|G|, but only one for the pair (max, min).
    # That kernel is slow for half types, and for several short axes; so flatten to one axis.
    rows = grad.reshape(*grad.shape[:layers], -1)
    if jnp.finfo(rows.dtype).bits < 32:
        return max_abs_grad(rows, axes=(layers,), xp=jnp)[..., 0]
    zero = rows.dtype.type(0)
    high, low = jax.lax.reduce((rows, rows), (zero, zero), _high_and_low, (layers,))
    return abs(jax.lax.max(high, -low))


def _high_and_low(a: Pair, b: Pair) -> Pair:
    return jax.lax.max(a[0], b[0]), jax.lax.min(a[1], b[1])
