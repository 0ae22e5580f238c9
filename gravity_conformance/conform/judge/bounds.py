"""How far honest roundings may take a run from a simulated one: a right run, or a mistaken one.

Guarantee: every number here is a count of roundings times a unit roundoff, or an underflow.
"""

from typing import Any

import numpy as np

from gravity_core.error_bound import ErrorBound


class HalfBound(ErrorBound):
    """The bound of a half type: V is computed in float32 and rounded once to the half type.

    W may be computed in either. `gravity_conformance.vectors.exact.Tensor` has the same
    bound in exact arithmetic.

    Args:
        w: the weights before the first step; their shape counts.
        info: the eps, smallest_normal and max of the half type.
    """

    def __init__(self, w: np.ndarray, info: Any) -> None:
        super().__init__(w, np.finfo(np.float32))
        self._half = float(info.eps) / 2
        self._lost = self._half * float(info.smallest_normal)  # by rounding to a subnormal number

    def step(
        self,
        grad: np.ndarray,
        v: np.ndarray,
        v_next: np.ndarray,
        w: np.ndarray,
        w_next: np.ndarray,
        *,
        t: int,
        learning_rate: float,
        beta: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        """Advance the bound by one update: that of float32, and what the half type adds."""
        w_size = np.abs(w.astype(np.float64)) + 2 * self.w
        super().step(
            grad,
            v,
            v_next,
            w,
            w_next,
            t=t,
            learning_rate=learning_rate,
            beta=beta,
            weight_decay=weight_decay,
        )
        rounding = self._half * (np.abs(v_next.astype(np.float64)) + self.v) + self._lost
        self.v = self.v + rounding
        size, decay = np.abs(v_next.astype(np.float64)) + 2 * self.v, learning_rate * weight_decay
        shrink = decay * w_size
        after = np.abs(w_next.astype(np.float64)) + 2 * self.w + learning_rate * size + shrink
        self.w = (
            self.w
            + learning_rate * rounding
            + 5 * self._half / (1 - 5 * self._half) * shrink
            + (4 if decay else 2) * self._half / (1 - 4 * self._half) * after
            + (3 + size + decay + (learning_rate + weight_decay) * w_size) * self._lost
        )


class MistakenBound:
    """What the roundings of a mistaken update add, which the bound of the right one cannot know.

    A mean or a norm in place of the maximum of n elements has n + 1 roundings more, which count
    twice in s·s; everything that is added is at most S, with the mistaken coefficients, and is
    carried on by a coefficient that is at most max(β, 1 − β), whichever of them was taken.
    """

    def __init__(self, w: np.ndarray, bound: ErrorBound, info: Any, beta: float) -> None:
        self._unit, self._carried = bound.unit, max(beta, 1 - beta)
        self._stored = float(info.eps) / 2
        self._roundings = bound.ROUNDINGS + 2 * (w.size + 1)
        self.v, self.w = np.zeros(w.shape), np.zeros(w.shape)

    def step(
        self, size: np.ndarray, v: np.ndarray, before: np.ndarray, w: np.ndarray, rate: float
    ) -> None:
        """Advance by one update of size S, that leads to V and from W `before` to `w`."""
        own = self._roundings * self._unit * size.astype(np.float64)
        if self._stored > self._unit:
            own = own + self._stored * np.abs(v.astype(np.float64))
        self.v = self._carried * self.v + own
        moved = np.abs(before.astype(np.float64)) + np.abs(w.astype(np.float64))
        self.w = self.w + rate * self.v + self._stored * moved
