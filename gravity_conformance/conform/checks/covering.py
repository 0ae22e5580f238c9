"""Rows of factors in which every pair of values occurs together, found by a greedy search."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_TRIED = 12  # rows, of which the one with the most new pairs is taken

Row = dict[str, Any]


def covering(
    rng: np.random.Generator, factors: Mapping[str, Sequence[Any]], strength: int = 2
) -> list[Row]:
    """Return rows with a value for each factor; the first rows have the most new pairs.

    Args:
        rng: draws what the pairs leave open.
        factors: name → its values.
        strength: how many factors have all their combinations; 2 means pairs.
    """
    names, sizes = list(factors), [len(values) for values in factors.values()]
    chosen = list(itertools.combinations(range(len(names)), min(strength, len(names))))
    left = {
        (places, values): None
        for places in chosen
        for values in itertools.product(*(range(sizes[k]) for k in places))
    }
    rows = []
    while left:
        first = next(itertools.islice(left, int(rng.integers(len(left))), None))
        best: list[int] = []
        most: list[Any] = []
        for _ in range(_TRIED):
            row = [int(rng.integers(n)) for n in sizes]
            for k, value in zip(*first, strict=True):
                row[k] = value
            every = [(places, tuple(row[k] for k in places)) for places in chosen]
            new = [combination for combination in every if combination in left]
            if len(new) > len(most):
                best, most = row, new
        for combination in most:
            del left[combination]
        rows.append({name: factors[name][k] for name, k in zip(names, best, strict=True)})
    return rows
