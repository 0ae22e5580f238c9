"""How far honest roundings may take a mistaken update from the simulation of the same mistake.

Guarantee: every number here is a count of roundings times a unit roundoff.
"""

import numpy as np

from gravity_core._arrays import FloatInfo
from gravity_core.error_bound import ErrorBound


class MistakenBound:
    """The roundings of a mistaken update, to be added to the bound of the right one.

    A mean or a norm in place of the maximum of n elements has n + 1 more roundings, which count
    twice in s·s. Everything that is added is at most S, with the mistaken coefficients. The
    errors of earlier steps are carried on by a coefficient of at most max(β, 1 − β), whichever
    the mistake took.
    """

    def __init__(self, w: np.ndarray, bound: ErrorBound, stored: FloatInfo, beta: float) -> None:
        self._unit, self._carried = bound.unit, max(beta, 1 - beta)
        self._stored = stored.unit
        self._roundings = bound.ROUNDINGS + 2 * (w.size + 1)
        self.v, self.w = np.zeros(w.shape), np.zeros(w.shape)

    def step(
        self, size: np.ndarray, v: np.ndarray, before: np.ndarray, w: np.ndarray, rate: float
    ) -> None:
        """Advance by one update of size S to V, and from W `before` to `w`."""
        own = self._roundings * self._unit * size.astype(np.float64)
        if self._stored > self._unit:
            own = own + self._stored * np.abs(v.astype(np.float64))
        self.v = self._carried * self.v + own
        moved = np.abs(before.astype(np.float64)) + np.abs(w.astype(np.float64))
        self.w = self.w + rate * self.v + self._stored * moved
