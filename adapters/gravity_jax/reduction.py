"""max|G| of every gradient: `gravity_core.update.max_abs_grad`, in fewer kernels and passes.

Guarantee: the numbers and the derivatives are those of the core's expression. On one device NaN
propagates; in a program for several the core's own expression runs, which XLA reduces over them.
"""

import functools
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from gravity_core.update import max_abs_grad
from gravity_jax.velocity import working_dtype

# XLA's CPU client allocates the scalars of each reduction's computation anew at every call, which
# costs more than to read a short gradient. Few at a time, because equal kernels are compiled once,
# and a kernel that takes the second maximum of an array is another than one that takes the first.
SMALL = 2**14  # elements: gradients of one size up to it are stacked and reduced together,
TOGETHER = 4  # so many at a time

Arrays = tuple[jax.Array, ...]
Layers = tuple[int, ...]
Pair = tuple[Any, Any]


def largest_magnitudes(grads: Arrays, stacked: Layers) -> list[Any]:
    """Return max|G| of every gradient, a scalar; of a stack that of each layer, broadcasting.

    Args:
        grads: the G, real and not empty.
        stacked: for every one how many leading axes count layers.
    """
    return [
        jnp.expand_dims(largest, tuple(range(layers, grad.ndim))) if layers else largest
        for largest, grad, layers in zip(_maxima(grads, stacked), grads, stacked, strict=True)
    ]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _maxima(grads: Arrays, stacked: Layers) -> list[Any]:
    on_mesh = not all(jax.typeof(grad).sharding.mesh.empty for grad in grads)
    maxima = _over_devices if on_mesh else _maxima_p.bind
    return list(maxima(*grads, stacked=stacked))


@_maxima.defjvp
def _derivative(stacked: Layers, primals: Any, tangents: Any) -> Any:
    # Neither the primitive nor JAX's reduction of several arrays has a derivative.
    return jax.jvp(lambda grads: _over_devices(*grads, stacked=stacked), primals, tangents)


def _over_devices(*grads: jax.Array, stacked: Layers) -> list[Any]:
    return [
        max_abs_grad(grad, axes=tuple(range(n, grad.ndim)) if n else None, xp=jnp).reshape(
            grad.shape[:n]
        )
        for grad, n in zip(grads, stacked, strict=True)
    ]


def _on_one_device(*grads: jax.Array, stacked: Layers) -> list[Any]:
    maxima: list[Any] = [None] * len(grads)
    alike = defaultdict(list)
    for i, (grad, layers) in enumerate(zip(grads, stacked, strict=True)):
        known = isinstance(grad.size, int)  # and no symbol, as jax.export may have it
        if known and grad.size <= SMALL and not layers:
            alike[grad.size, grad.dtype].append(i)
        else:
            maxima[i] = _in_one_pass(grad.reshape(*grad.shape[:layers], -1))
    for group in alike.values():
        for start in range(0, len(group), TOGETHER):
            chosen = group[start : start + TOGETHER]
            together = _in_one_pass(jnp.stack([grads[i].reshape(-1) for i in chosen]))
            for i, largest in zip(chosen, together, strict=True):
                maxima[i] = largest
    return maxima


def _in_one_pass(rows: jax.Array) -> Any:
    # XLA on CPU makes two kernels or more of each maximum, and one of this pair; but its loop over
    # half numbers is slow.
    axis = rows.ndim - 1
    if jnp.finfo(rows.dtype).bits < 32:
        return max_abs_grad(rows, axes=(axis,), xp=jnp)[..., 0]
    zero = rows.dtype.type(0)
    high, low = jax.lax.reduce((rows, rows), (zero, zero), _high_and_low, (axis,))
    return abs(jax.lax.max(high, -low))


def _high_and_low(a: Pair, b: Pair) -> Pair:
    return jax.lax.max(a[0], b[0]), jax.lax.min(a[1], b[1])


# A primitive, because only when a program is lowered is it known for how many devices: with
# jit(in_shardings=…) no mesh is in sight before. Stacks, and pairs, of shards would be gathered.
_maxima_p = Primitive("gravity_maxima")
_maxima_p.multiple_results = True


def _outside_jit(*grads: jax.Array, stacked: Layers) -> list[Any]:
    # One by one: each may be on a device of its own.
    return [_on_one_device(g, stacked=(n,))[0] for g, n in zip(grads, stacked, strict=True)]


def _types(*grads: Any, stacked: Layers) -> list[Any]:
    return [
        jax.core.ShapedArray(grad.shape[:n], working_dtype(grad.dtype))
        for grad, n in zip(grads, stacked, strict=True)
    ]


def _batched(grads: Any, axes: Any, *, stacked: Layers) -> Any:
    grads = [
        grad if axis is None else jnp.moveaxis(grad, axis, 0)
        for grad, axis in zip(grads, axes, strict=True)
    ]
    layers = tuple(n + (axis is not None) for n, axis in zip(stacked, axes, strict=True))
    return _maxima_p.bind(*grads, stacked=layers), [None if axis is None else 0 for axis in axes]


def _lowered(context: Any, *grads: Any, stacked: Layers) -> Any:
    program = context.module_context.axis_context
    on_one = isinstance(program, mlir.ShardingContext) and program.num_devices == 1
    rule = mlir.lower_fun(_on_one_device if on_one else _over_devices, multiple_results=True)
    return rule(context, *grads, stacked=stacked)


_maxima_p.def_impl(_outside_jit)
_maxima_p.def_abstract_eval(_types)
batching.primitive_batchers[_maxima_p] = _batched
mlir.register_lowering(_maxima_p, _lowered)
