"""Weights and gradients for the checks, generated from a seed.

Guarantee: an implementation cannot be fitted to them, because the user can change the seed.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gravity_conformance.drive.session import Arrays

NO_BFLOAT16 = "NumPy needs the package ml_dtypes for bfloat16, and it is not installed"
SHAPES = ((4, 3), (5,), (2, 2, 2))
SCALES = (1.0, 30.0, 0.02)  # of the gradients; they differ, so a maximum over all tensors is caught


class Level(NamedTuple):
    """How thorough the checks are.

    Attributes:
        top: a sweep has lengths on both sides of every power of two up to 2^top.
        tensors: the number of tensors in a sweep.
        traced: the same for a step that is not compiled, of a kind that users compile. Such a
            framework compiles every operation for every shape.
        repeats: the number of sweeps.
        listed: the number of tensors in a long list.
        vocabulary: the rows of one tensor of 768 columns, as of a language model.
        rows: the number of combinations, and for a kind that users compile; None means all.
        halves: the same for each half type.
        strength: the number of factors of which all combinations occur.
        steps: the number of steps of a long trajectory, if t cannot be set, and if it can.
    """

    top: int
    tensors: int
    traced: int
    repeats: int
    listed: int
    vocabulary: int
    rows: tuple[int | None, int | None]
    halves: tuple[int | None, int | None]
    strength: int
    steps: tuple[int, int]


# A counter in float16 stops at 2048, one in bfloat16 at 256.
LEVELS = {
    "quick": Level(11, 24, 5, 1, 35, 64, (8, 4), (8, 4), 2, (300, 20)),
    "default": Level(17, 200, 10, 1, 1_030, 5_600, (None, 30), (20, 8), 2, (2_200, 1_100)),
    "thorough": Level(
        20, 400, 100, 5, 2_060, 30_522, (None, None), (None, None), 3, (2_200, 2_200)
    ),
}


def normal(
    steps: int,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    scales: Sequence[float] = SCALES,
    dtype: Any = np.float32,
    seed: int | Sequence[int] = 0,
) -> tuple[Arrays, list[Arrays]]:
    """Return normally distributed weights, and gradients of every step, multiplied by `scales`."""
    rng = np.random.default_rng(seed)
    weights = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    gradients = [
        [np.asarray(c * rng.standard_normal(s), dtype) for s, c in zip(shapes, scales, strict=True)]
        for _ in range(steps)
    ]
    return weights, gradients


def sweep(rng: np.random.Generator, top: int, tensors: int) -> list[tuple[int, ...]]:
    """Return shapes on both sides of every power of two up to 2^top, in a random order.

    An implementation may treat blocks, tails of vectors, numbers of axes, equal lengths or long
    lists of tensors in a way of their own. From the default level on, shapes of layers as people
    have them, one vector of 2²⁰ + 1 elements, and many lengths that leave every rest of a division
    are added. If there are more than `tensors` shapes, the greatest, one of each number of axes (as
    far as half of `tensors` allows) and others by chance remain.
    """
    lengths = sorted({2**k + d for k in range(1, top + 1) for d in (-1, 0, 1)})
    lengths += [int(n) | 1 for n in np.exp2(rng.uniform(3, top, 8))]
    axes = [tuple(rng.integers(1, 7, n).tolist()) for n in (2, 2, 3, 4, 5, 5, 6)]
    axes += [(1, 9), (9, 1), (1, 1, 1, 1, 1), (2, 1, 3, 1, 2, 1, 2), (2,) * 8, (2,) * 10]
    if top >= LEVELS["default"].top:
        long = int(rng.integers(1_001, 3_000))
        axes += [(long, 8), (8, long), (300, 301), (64, 32, 3, 3), (3, 3, 32, 64), (64, 32, 1, 1)]
        axes += [(20, 30, 40), (4, 8, 16, 32), (2**20 + 1,)]
        for least, number in ((1_100, 64), (2**17, 16)):
            lengths += (least + rng.integers(64, size=number)).tolist()
    shapes = [*((n,) for n in lengths), *axes, *[(6,)] * 8]
    order = rng.permutation(len(shapes)).tolist()
    greatest = max(order, key=lambda i: int(np.prod(shapes[i])))
    of_axes = {len(shapes[i]): i for i in order} | {len(shapes[greatest]): greatest}
    first = list(dict.fromkeys([greatest, *of_axes.values()]))[: tensors // 2]
    kept = {*first, *[i for i in order if i not in first][: tensors - len(first)]}
    return [shapes[i] for i in order if i in kept]


def patterned(
    rng: np.random.Generator, steps: int, shapes: Sequence[tuple[int, ...]], dtype: Any = np.float32
) -> tuple[Arrays, list[Arrays]]:
    """Return weights and gradients in which max|G| has every sign, place and size.

    In the first step, the last element of every gradient is the greatest; in the second one, one of
    the last 16, mostly of the last few. In the others, the place is random. A gradient may have one
    sign, one element that is not 0, or elements of many orders of magnitude. Some weights are all 1
    or all 0, as in a layer that is new.
    """
    weights = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    gradients = []
    for step in range(steps):
        grads = []
        for shape in shapes:
            g = np.asarray(rng.standard_normal(shape) * 10 ** rng.uniform(-1, 1))
            kind = int(rng.integers(5))
            many = g * 10 ** rng.uniform(-6, 3, shape)
            g = (g, -np.abs(g), np.abs(g), 0 * g, many)[kind]
            nearest = int(2 ** rng.uniform(0, 4)) if step else 1  # to the end
            place = max(g.size - nearest, 0) if step < 2 else int(rng.integers(g.size))
            sign = -1 if kind == 1 else 1 if kind == 2 else rng.choice([-1, 1])
            g.flat[place] = sign * (3 * np.max(np.abs(g)) or 1.0)
            grads.append(np.asarray(g, dtype))
        gradients.append(grads)
    for w in weights:
        if not rng.integers(8):
            w[...] = rng.integers(2)
    return weights, gradients


def to_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert an array; bfloat16 numbers, truncated, are float32 with the last 16 bits 0."""
    if dtype != "bfloat16":
        return np.asarray(array, dtype)
    bits = np.asarray(array, np.float32).view(np.uint32)
    return np.asarray(bits & np.uint32(0xFFFF0000)).view(np.float32)


def has_bfloat16() -> bool:
    """Tell whether NumPy has bfloat16, which the package ml_dtypes adds."""
    try:
        importlib.import_module("ml_dtypes")
    except ModuleNotFoundError:
        return False
    return True
