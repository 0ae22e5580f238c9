"""Try cases that a seed chooses, and count what came of each."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Case(NamedTuple):
    """One fault: its kind, what tells it from others, and what tries it and returns the outcome."""

    kind: str
    name: str
    attempt: Callable[[], str]


def repeat(
    cases: Iterator[Case],
    *,
    seconds: float | None = None,
    most: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Counter[str]:
    """Try cases until the time or the number is up.

    Args:
        cases: the cases, usually without end.
        seconds: the time, or None for no limit.
        most: the number of cases, or None for no limit.
        clock: what measures the time.

    Returns:
        how often each kind had each outcome, such as ``{"gradient of integers: refused": 7}``.

    Raises:
        AssertionError: with the name of the case, for the first one that broke a promise.
    """
    counts: Counter[str] = Counter()
    end = math.inf if seconds is None else clock() + seconds
    for case in itertools.islice(cases, most):
        try:
            outcome = case.attempt()
        except AssertionError as broken:
            raise AssertionError(f"{case.kind}, {case.name}: {broken}") from broken
        counts[f"{case.kind}: {outcome}"] += 1
        if clock() > end:
            break
    return counts
