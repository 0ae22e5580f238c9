"""Which NumPy arrays share memory, found in n log n from the bounds of their memory.

Guarantee: no function here changes an array. Two views of one array may be taken for sharing memory
if only their bounds overlap, as `numpy.may_share_memory` takes them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

Spans = tuple[list[int], list[int]]
"""The first bytes, sorted, and for each the largest end so far (one past the last byte)."""


def spans(arrays: Sequence[np.ndarray]) -> Spans:
    """Return the memory of some arrays, for `meets`; empty ones have none."""
    bounds = sorted(_bounds(a) for a in arrays if a.size)
    return [low for low, _ in bounds], list(accumulate((high for _, high in bounds), max))


def meets(array: np.ndarray, *memory: Spans) -> bool:
    """Return whether an array may share memory with one of those of `memory`.

    Example:
        >>> w = np.ones(4)
        >>> meets(w[1:2], spans([w])), meets(w[1:2], spans([w[2:]]))
        (True, False)
    """
    if not array.size:
        return False
    low, high = _bounds(array)
    for starts, ends in memory:
        last = bisect_left(starts, high)  # the spans before it start before the array ends
        if last and ends[last - 1] > low:
            return True
    return False


def _bounds(array: np.ndarray) -> tuple[int, int]:
    if not array.flags.forc:
        return np.lib.array_utils.byte_bounds(array)
    low: int = array.__array_interface__["data"][0]  # several times faster
    return low, low + array.nbytes


def overlaps_itself(array: np.ndarray) -> bool:
    """Return whether two elements of an array may be in one place, as those of a broadcast are.

    Example:
        >>> windows = np.lib.stride_tricks.sliding_window_view(np.ones(4), 2)
        >>> overlaps_itself(windows), overlaps_itself(np.ones((3, 4))[::-1, ::2].T)
        (True, False)
    """
    if array.flags.forc or not array.size:
        return False
    extent = array.itemsize
    for stride, length in sorted(
        (abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)
    ):
        if length > 1:
            if stride < extent:
                return True
            extent += stride * (length - 1)
    return False
