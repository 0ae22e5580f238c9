"""Strategies for gradients and velocities: ordinary, zero, subnormal and extreme numbers."""

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tests.support.backends import numpy_dtype

HALF = ("float16", "bfloat16")
FULL = ("float32", "float64")
FEW = max(1, settings.default.max_examples // 5)  # for slow tests


def info(dtype):
    """Return `np.finfo` of a dtype, including bfloat16."""
    if np.dtype(dtype).name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.finfo(dtype)
    return np.finfo(dtype)


def specials(dtype):
    """Return zeros, ones, and numbers at the edges of the range of `dtype`."""
    limits = info(dtype)
    tiny, huge = float(limits.smallest_normal), 0.88 * float(limits.max)  # 3e38 in float32
    sizes = [0.0, float(limits.smallest_subnormal), tiny / 2, tiny, 1e-20, 1e-3, 1.0, 16.0, 300.0]
    sizes += [math.sqrt(tiny), float(limits.max) ** 0.25, math.sqrt(float(limits.max)), huge]
    return [sign * size for size in sizes if size <= huge for sign in (1.0, -1.0)]


def numbers(dtype, limit=None):
    """Draw finite numbers of `dtype` up to `limit` in magnitude, most of ordinary size."""
    huge = 0.88 * float(info(dtype).max) if limit is None else limit
    ordinary = st.floats(-min(8.0, huge), min(8.0, huge))
    edge = st.sampled_from([x for x in specials(dtype) if abs(x) <= huge])
    return st.one_of(ordinary, ordinary, edge, st.floats(-huge, huge))


@st.composite
def tensors(draw, shape, dtype="float32", limit=None):
    """Draw arrays of one shape; large arrays repeat a few values in random order."""
    dtype, size = numpy_dtype(dtype), math.prod(shape)
    small = size <= 24
    values = draw(
        st.lists(numbers(dtype, limit), min_size=size if small else 8, max_size=min(size, 24))
    )
    flat = np.asarray(values, np.float64)
    if not small:
        flat = np.random.default_rng(draw(st.integers(0, 99))).choice(flat, size)
    return flat.astype(dtype).reshape(shape)


def shapes(max_side=5):
    """Draw shapes of 0 to 3 dimensions, including empty ones."""
    return st.lists(st.integers(0, max_side), max_size=3).map(tuple)
