"""V₀ ~ N(0, σ²) from a seed: the same bits in every framework, device and language.

    key of a tensor   fold_in((hi32(seed), lo32(seed)), index)
    element i         block j = i // 4 of the counter-based generator Threefry-2x32-20:
                      (y0, y1) = threefry(key, (hi32(j), lo32(j)));
                      k = [y0 low, y0 high, y1 low, y1 high][i % 4], halfwords
    V₀                σ z,  z = Φ⁻¹((k + ½) / 65 536)

i counts the elements of the whole tensor in C order. index is the tensor's position among the
optimizer's parameters, from 0. The recipe needs integer operations, a gather and one product. So
every process of a distributed job can compute its own slice, and all of them agree to the last bit.
z has only 65 536 possible values. Its Kolmogorov distance from the normal distribution is 7.6e-6,
and |z| ≤ 4.33; both are harmless for V₀.

The functions run on uint32 arrays, or on int32 arrays that wrap around. (PyTorch has no arithmetic
on uint32; TensorFlow cannot gather with uint32 indices.) Every right shift is masked, so both give
the same bits.

Source: Salmon, Moraes, Dror and Shaw, 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gravity_core._arrays import Array, float_name, namespace
from gravity_core.hyperparameters import (
    NORMAL_LEVELS,
    SEED,
    check_velocity_std,
    checked_integer,
    largest_velocity_std,
    shown,
    validate,
)

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # constant of the key schedule, from the Threefry paper
_CHUNK = 16_384  # blocks per chunk: the scratch arrays fit the cache

Words = tuple[Array, Array]


def _rotate_left(x: Array, bits: int, xp: Any) -> Array:
    low = (1 << bits) - 1
    return xp.bitwise_left_shift(x, bits) | (xp.bitwise_right_shift(x, 32 - bits) & low)


def threefry2x32(key: Words, counter: Words, *, xp: Any = None) -> Words:
    """Return the Threefry-2x32 hash (20 rounds) of each counter under `key`.

    Args:
        key: two arrays of 32-bit words, uint32 or int32, that broadcast with the counters.
        counter: two arrays of 32-bit words of the same dtype.
        xp: the array namespace; inferred from `counter` if None.

    Returns:
        Two arrays of 32-bit words, in the counters' shape and dtype.

    Source: Salmon et al. 2011; `jax.random` uses the same hash.

    Example:
        >>> zero = np.zeros(1, np.uint32)
        >>> [hex(int(y[0])) for y in threefry2x32((zero, zero), (zero, zero))]
        ['0x6b200159', '0x99ba4efe']
    """
    xp = namespace(xp, counter=counter[0])
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x0, x1 = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = x0 ^ _rotate_left(x1, bits, xp)
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + (group + 1)
    return x0, x1


def fold_in(key: Words, number: Array, *, xp: Any = None) -> Words:
    """Return the key for stream `number` under `key`: threefry(key, (0, number)).

    For Threefry keys it equals the key data of `jax.random.fold_in`. Arguments are as in
    `threefry2x32`.
    """
    return threefry2x32(key, (number ^ number, number), xp=xp)


def tensor_key(seed: int = SEED, index: int = 0) -> Words:
    """Return the key of the tensor at position `index`, as two uint32 arrays of shape (1,).

    Args:
        seed: an integer in [0, 2**64).
        index: the tensor's position among the optimizer's parameters, from 0.

    Raises:
        ValueError: if either is outside its range.

    Example:
        >>> [hex(int(word[0])) for word in tensor_key(0, 0)]
        ['0x6b200159', '0x99ba4efe']
    """
    seed = validate(seed=seed)["seed"]
    index = checked_integer("index", index, bits=32)
    # Arrays of one element: NumPy warns when a uint32 scalar wraps around, not when an array does.
    hi, lo, stream = (np.asarray([n & 0xFFFFFFFF], np.uint32) for n in (seed >> 32, seed, index))
    return fold_in((hi, lo), stream)


@functools.cache
def normal_quantiles() -> np.ndarray:
    """Return the 65,536 values z_k = Φ⁻¹((k + ½) / 65 536), float64 rounded once to float32.

    Example:
        >>> z = normal_quantiles()
        >>> z.shape, z.dtype.name, float(z[0]) == -float(z[-1])
        ((65536,), 'float32', True)
    """
    inv_cdf = statistics.NormalDist().inv_cdf
    z = np.asarray([inv_cdf((k + 0.5) / NORMAL_LEVELS) for k in range(NORMAL_LEVELS)], np.float32)
    z.flags.writeable = False  # all callers share one table
    return z


def normal_blocks(key: Words, block: Words, quantiles: Array, *, xp: Any = None) -> Array:
    """Return four standard normal numbers for each block counter.

    Args:
        key: as returned by `tensor_key`, in the dtype of `block`.
        block: (hi32(j), lo32(j)), two 1-D arrays of n 32-bit words.
        quantiles: `normal_quantiles()` as an array of the same library.
        xp: the array namespace; inferred from `block` if None.

    Returns:
        float32 array of shape (4 n,): z of the elements 4 j to 4 j + 3 of each block.
    """
    xp = namespace(xp, block=block[0])
    y0, y1 = threefry2x32(key, block, xp=xp)
    halfwords = [
        half for y in (y0, y1) for half in (y & 0xFFFF, xp.bitwise_right_shift(y, 16) & 0xFFFF)
    ]
    return xp.take(quantiles, xp.reshape(xp.stack(halfwords, axis=-1), (-1,)), axis=0)


def element_halfwords(key: Words, element: Words, *, xp: Any = None) -> Array:
    """Return the halfword k of each given element; z is ``normal_quantiles()[k]``.

    A shard of a tensor uses this to draw its own slice of V₀. It hashes four times as often as
    `normal_blocks`. Every operation is elementwise, so a compiler may split it over devices along
    any axis.

    Args:
        key: as returned by `tensor_key`, in the dtype of `element`.
        element: (hi32(i), lo32(i)), two arrays of 32-bit words in one shape. i counts the
            elements in C order over the whole tensor.
        xp: the array namespace; inferred from `element` if None.

    Returns:
        k in [0, 65 536), in the shape and dtype of `element`.
    """
    xp = namespace(xp, element=element[0])
    hi, lo = element
    shift = xp.bitwise_right_shift
    low_block = (shift(lo, 2) & 0x3FFFFFFF) | xp.bitwise_left_shift(hi & 3, 30)
    y0, y1 = threefry2x32(key, (shift(hi, 2) & 0x3FFFFFFF, low_block), xp=xp)
    y = xp.where(lo & 2 == 0, y0, y1)
    return xp.where(lo & 1 == 0, y, shift(y, 16)) & 0xFFFF


def normal_elements(key: Words, element: Words, quantiles: Array, *, xp: Any = None) -> Array:
    """Return the standard normal number of each given element.

    Args:
        key: as in `element_halfwords`.
        element: as in `element_halfwords`.
        quantiles: `normal_quantiles()` as an array of the same library.
        xp: the array namespace; inferred from `element` if None.

    Returns:
        float32 array in the shape of `element`.

    Example:
        >>> key, i = tensor_key(), np.arange(6, dtype=np.uint32)
        >>> z = normal_elements(key, (np.zeros_like(i), i), normal_quantiles())
        >>> [(a, b, bool((z == chunk).all())) for a, b, chunk in standard_normal(0, 6)]
        [(0, 6, True)]
    """
    xp = namespace(xp, element=element[0])
    k = element_halfwords(key, element, xp=xp)
    return xp.reshape(xp.take(quantiles, xp.reshape(k, (-1,)), axis=0), k.shape)


def standard_normal(
    start: int,
    stop: int,
    *,
    seed: int = SEED,
    index: int = 0,
    asarray: Callable[[np.ndarray], Array] = np.asarray,
    xp: Any = None,
) -> Iterator[tuple[int, int, Array]]:
    """Yield z for the elements [start, stop) of tensor `index`, in chunks.

    No array of the tensor's size is allocated.

    Args:
        start: the first element, counted in C order over the whole, unsharded tensor.
        stop: one past the last element.
        seed: an integer in [0, 2**64).
        index: the tensor's position among the optimizer's parameters, from 0.
        asarray: moves a small NumPy array (float32, or uint32 words) to the caller's library and
            device.
        xp: the array namespace; inferred from the result of `asarray` if None.

    Yields:
        (a, b, z), where z is a float32 array for the elements a to b − 1.

    Example:
        >>> [(a, b, z.shape) for a, b, z in standard_normal(3, 10)]
        [(3, 10, (7,))]
    """
    quantiles = asarray(normal_quantiles())
    k0, k1 = (asarray(word) for word in tensor_key(seed, index))
    first, end = start // 4, -(-stop // 4)
    while first < end:
        # Chunks end at multiples of _CHUNK, so the high word is constant within a chunk.
        last = min(end, (first // _CHUNK + 1) * _CHUNK)
        lo = np.arange(first, last).astype(np.uint32)
        hi = np.full_like(lo, first >> 32)
        z = normal_blocks((k0, k1), (asarray(hi), asarray(lo)), quantiles, xp=xp)
        a, b = max(start, 4 * first), min(stop, 4 * last)
        yield a, b, z[a - 4 * first : b - 4 * first]
        first = last


def initial_velocity(
    shape: tuple[int, ...],
    dtype: Any = np.float32,
    *,
    std: float,
    seed: int = SEED,
    index: int = 0,
) -> np.ndarray:
    """Return V₀ = σ z of one tensor as a NumPy array.

    Args:
        shape: the shape of the weight tensor.
        dtype: float16, bfloat16 (ml_dtypes), float32 or float64, or a complex type. σ z is
            computed in this dtype; for the half types, in float32 and rounded once. A complex
            number is a pair of normal reals.
        std: σ ≥ 0, as returned by `gravity_core.hyperparameters.velocity_std`.
        seed: an integer in [0, 2**64).
        index: the tensor's position among the optimizer's parameters, from 0.

    Raises:
        ValueError: if shape, std, seed or index is outside its range, or V₀ would overflow the
            dtype.
        TypeError: for a dtype that is not floating.

    Source: arXiv 2101.09192, Algorithm 1 (V₀). The module docstring defines the generator.

    Example:
        >>> initial_velocity((2, 2), std=0.1).shape
        (2, 2)
        >>> float(np.abs(initial_velocity((1000,), std=0.1)).max()) < 0.1 * 4.33
        True
    """
    given = validate(velocity_std=std, names={"velocity_std": "std"})["velocity_std"]
    if given is None:
        raise ValueError(f"std must be a number in [0, {largest_velocity_std():g}], got None")
    try:
        sizes = tuple(shape)
    except TypeError:
        raise ValueError(f"shape must be a tuple of integers, got {shown(shape)}") from None
    v = np.empty([checked_integer("each size in shape", n) for n in sizes], dtype)
    reals = v.reshape(-1)
    reals = reals.view(reals.real.dtype)  # a complex number is a pair
    name = float_name(reals, "dtype")
    check_velocity_std(given, name, names={"velocity_std": "std"})
    scale = np.float64(given) if name == "float64" else np.float32(given)
    for a, b, z in standard_normal(0, reals.size, seed=seed, index=index):
        reals[a:b] = z * scale
    return v
