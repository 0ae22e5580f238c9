"""V₀ of one parameter as a JAX array: the numbers of `gravity_core.velocity`, shard by shard.

Guarantee: V₀ takes the sharding of its parameter, inside and outside jit. Every operation is
elementwise, so each device draws its own shard and holds nothing more. The bits are the same as in
every other framework, for any sharding.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gravity_core import hyperparameters as hp
from gravity_core.velocity import element_halfwords, fold_in, normal_quantiles, tensor_key

Words = tuple[Any, Any]


def check_velocity_std(std: Any, dtype: Any, **origin: Any) -> None:
    """Raise if V₀ would overflow its dtype; a traced σ cannot be checked.

    Args:
        std: σ >= 0.
        dtype: the dtype of V₀, floating or complex.
        **origin: `learning_rate` and `alpha`, if σ is alpha / learning_rate.

    Raises:
        ValueError: naming the argument and the value received.
    """
    if not isinstance(std, jax.core.Tracer):
        hp.check_velocity_std(hp.as_float(std), jnp.finfo(dtype).dtype.name, **origin)


def initial_velocity(param: ArrayLike, std: Any, seed: Any, index: int, dtype: Any) -> Any:
    """Return V₀ = σ z in the shape and sharding of a parameter.

    Args:
        param: the parameter, or a `jax.ShapeDtypeStruct`; its values are not used.
        std: σ >= 0, which may be traced.
        seed: an integer in [0, 2**64), which may be traced.
        index: the parameter's position among the leaves of the tree, from 0.
        dtype: the dtype of V₀. If it is neither floating nor complex, V₀ is 0.

    Raises:
        ValueError: for an axis of more than 2**32 elements, or if V₀ would overflow.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.zeros_like(param, dtype=dtype)
    shape = jnp.shape(param)
    if any(isinstance(n, int) and n > 2**32 for n in shape):  # jax.export may have symbols
        raise ValueError(f"an axis must have at most 2**32 elements, got shape {shape}")
    if 0 in shape:
        if isinstance(param, jax.core.Tracer):
            return param.astype(dtype)  # jit sees a mesh of explicit axes only through `param`
        return jnp.zeros_like(param, dtype=dtype)
    if isinstance(param, jax.ShapeDtypeStruct):
        param = jnp.zeros_like(param)  # on the devices of its sharding
    check_velocity_std(std, dtype)
    if not isinstance(std, jax.core.Tracer):
        std = np.asarray(hp.as_float(std))  # the number that it stands for in every framework
    # Pass NumPy arrays: in a job of several processes, jit accepts equal ones from each process.
    return _scaled_normal(param, _key(seed, index), normal_quantiles(), std, dtype=dtype)


def working_dtype(*dtypes: Any) -> Any:
    """Return the dtype to compute in: float64 if any dtype has double precision, else float32."""
    return jnp.float64 if any(jnp.finfo(dtype).bits == 64 for dtype in dtypes) else jnp.float32


def _key(seed: Any, index: int) -> Words:
    if not isinstance(seed, jax.core.Tracer):
        k0, k1 = tensor_key(int(seed), index)
        return k0[0], k1[0]
    wide = jnp.dtype(seed.dtype).itemsize == 8
    hi = (seed >> 32 if wide else jnp.zeros_like(seed)).astype(jnp.uint32)
    return fold_in((hi, seed.astype(jnp.uint32)), jnp.asarray(index, jnp.uint32), xp=jnp)


@functools.partial(jax.jit, static_argnames="dtype")
def _scaled_normal(param: jax.Array, key: Words, quantiles: Any, std: Any, *, dtype: Any) -> Any:
    param, quantiles = jnp.asarray(param), jnp.asarray(quantiles)  # for jax.disable_jit
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    real, wide = jnp.finfo(dtype).dtype, working_dtype(dtype)
    parts = []
    for element in _element_indices(param, 2 if is_complex else 1):
        k = element_halfwords(key, element, xp=jnp)
        # On a mesh with explicit axes, JAX cannot infer the sharding of a gather's result.
        z = quantiles.at[k].get(mode="promise_in_bounds", out_sharding=jax.typeof(k).sharding)
        parts.append((z.astype(wide) * jnp.asarray(std, wide)).astype(real))
    return jax.lax.complex(*parts) if is_complex else parts[0]


def _element_indices(param: jax.Array, parts: int) -> list[Words]:
    """Return the 64-bit C-order indices of the real parts of each element.

    `parts` is 2 for complex elements, else 1.
    """
    # Zeros with the parameter's sharding, which XLA carries through these comparisons. XLA folds
    # simpler forms such as zeros_like, and then draws all of V₀ on every device.
    x = param.real
    hi = lo = ((x == x) & (x != x)).astype(jnp.uint32)
    sharding = jax.typeof(param).sharding
    for axis, length in enumerate(param.shape):
        i = jax.lax.broadcasted_iota(jnp.uint32, param.shape, axis, out_sharding=sharding)
        hi, lo = _times_plus(hi, lo, length, i)
    return [_times_plus(hi, lo, parts, np.uint32(part)) for part in range(parts)]


def _times_plus(hi: jax.Array, lo: jax.Array, n: int, i: Any) -> tuple[jax.Array, jax.Array]:
    """Return (hi, lo) · n + i for 64-bit integers in two words; JAX may have no 64-bit integers."""
    # With jax.export, n may be a symbol, which has % and // but no bit operations.
    n0, n1 = jnp.asarray(n % 2**16, jnp.uint32), jnp.asarray(n // 2**16, jnp.uint32)
    n_low = (n1 << 16) | n0
    a0, a1 = lo & 0xFFFF, lo >> 16
    middle = a1 * n0 + (a0 * n0 >> 16)
    carry = a1 * n1 + (middle >> 16) + ((a0 * n1 + (middle & 0xFFFF)) >> 16)
    lo = lo * n_low + i
    return hi * n_low + carry + (lo < i).astype(jnp.uint32), lo
