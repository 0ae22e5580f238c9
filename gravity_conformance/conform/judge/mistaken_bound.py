"""A bound on the rounding errors of an implementation that makes a known mistake.

Guarantee: every term is a count of roundings times a unit roundoff.
"""

import numpy as np

from gravity_core._arrays import FloatInfo
from gravity_core.error_bound import ErrorBound


class MistakenBound:
    """The rounding errors of a mistaken update. They are added to the bound of the right update.

    A mean or a norm in place of the maximum of n elements has n + 1 more roundings. They count
    twice in s·s. The terms of V are at most S, computed with the mistaken coefficients. The
    errors of earlier steps are multiplied by at most max(β, 1 − β), whichever coefficient the
    mistake uses.
    """

    def __init__(self, w: np.ndarray, bound: ErrorBound, stored: FloatInfo, beta: float) -> None:
        self._unit, self._carried = bound.unit, max(beta, 1 - beta)
        self._stored = stored.unit
        self._roundings = bound.ROUNDINGS + 2 * (w.size + 1)
        self.v, self.w = np.zeros(w.shape), np.zeros(w.shape)

    def step(
        self, size: np.ndarray, v: np.ndarray, before: np.ndarray, w: np.ndarray, rate: float
    ) -> None:
        """Advance the bound by one update.

        Args:
            size: S of the update.
            v: V after it.
            before: W before it.
            w: W after it.
            rate: η.
        """
        own = self._roundings * self._unit * size.astype(np.float64)
        if self._stored > self._unit:
            own = own + self._stored * np.abs(v.astype(np.float64))
        self.v = self._carried * self.v + own
        moved = np.abs(before.astype(np.float64)) + np.abs(w.astype(np.float64))
        self.w = self.w + rate * self.v + self._stored * moved
