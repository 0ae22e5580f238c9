"""Match the tests that a port failed with the known mistakes.

Guarantee: a mistake matches if exactly these tests fail with it, or if fewer than half as many
tests disagree with it as tell it from any other mistake.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gravity_conformance.explain.table import FAILS, NON_FINITE, Table


@dataclass(frozen=True)
class Match:
    """Mistakes that agree equally well with the results.

    Attributes:
        names: the mistakes; they are none if every mistake agrees as badly as no mistake.
        where: the tests in which they were sought, as booleans.
        disagree: the tests among them in which they disagree with the results, as booleans.
    """

    names: list[str]
    where: np.ndarray
    disagree: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether the mistakes make exactly these tests fail."""
        return bool(self.names) and not self.disagree.any()


def matches(table: Table, observed: np.ndarray) -> list[Match]:
    """Return the mistakes that explain the results, for each dtype in which they differ.

    Infinities and NaN are tried with the other tests, and then left out: what becomes of them is
    often a mistake of its own.

    Args:
        table: the tests that were run.
        observed: FAILS or PASSES for each of them.
    """
    failed = observed == FAILS
    everywhere = np.ones(len(table.tests), bool)
    broken = np.isin(table.dtypes, table.dtypes[failed])
    finite = np.asarray([vector.file != NON_FINITE for vector in table.tests])
    kinds = [everywhere, finite] if (failed & finite).any() else [everywhere]
    for where in kinds:
        for some in (where, where & broken):
            if (found := nearest(table, observed, some)).exact:
                return [found]
        dtypes = dict.fromkeys(table.dtypes[failed & where].tolist())
        each = [nearest(table, observed, where & (table.dtypes == dtype)) for dtype in dtypes]
        if all(match.exact for match in each):
            return each
    near = nearest(table, observed, kinds[-1] & broken)
    # A mistake is not known where it is as near to another one.
    radius = [table.distance(name, near.where) / 2 for name in near.names]
    return [near] if near.names and near.disagree.sum() < min(radius) else []


def nearest(
    table: Table, observed: np.ndarray, where: np.ndarray, names: Sequence[str] | None = None
) -> Match:
    """Return the mistakes that disagree with the results in the fewest tests.

    Args:
        table: the tests that were run.
        observed: FAILS or PASSES for each of them.
        where: the tests that count.
        names: the mistakes among which to choose; all that agree better than none if None.
    """
    found, disagree = list[str](), where
    fewest = int((where & (observed == FAILS)).sum()) if names is None else len(observed) + 1
    for mistake in table.mistakes:
        if names is not None and mistake.name not in names:
            continue
        these = table.disagreements(mistake.name, observed, where)
        if (count := int(these.sum())) < fewest:
            fewest, found, disagree = count, [mistake.name], these
        elif count == fewest and found:
            found.append(mistake.name)
    return Match(found, where, disagree)
