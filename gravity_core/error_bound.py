"""How far rounding may take an implementation from the exact update: a certified running bound.

Guarantee: any implementation that evaluates the update with honest roundings stays inside
`ErrorBound`; two of them are at most twice the bound apart.
"""

from typing import Any

import numpy as np

from gravity_core import hyperparameters as hp
from gravity_core.coefficients import coefficients
from gravity_core.update import gradient_term


def absolute_error(g: np.ndarray, info: Any) -> np.ndarray:
    """Return what underflow and overflow may take from one update of V, whatever its roundings.

    Args:
        g: |G|, float64.
        info: `numpy.finfo` of the dtype that is computed in, or what has its max and
            smallest_normal.
    """
    # |s| > √max / 2: s·s may overflow, and ζ, then 0, is at most |s|^(−3/2).
    with np.errstate(over="ignore"):
        near_overflow = g * g.max(initial=0.0) > 0.5 * float(info.max) ** 0.5
    # Eight operations and inputs, each of which may be flushed to zero.
    return np.asarray(
        8 * float(info.smallest_normal) + near_overflow * 3 * float(info.max) ** -0.75
    )


class ErrorBound:
    """A running bound on |computed − exact| for V and W of one tensor.

    For a given sequence of gradients, any implementation that evaluates the update through
    s = G · max|G| or G / m, with at most `ROUNDINGS` correctly rounded operations on the way
    from an input to V, fused or not, stays inside:

        e_V ← β̂ e_V + γ_k S,      S = |β̂ V| + |(1 − β̂) ζ|,  k = ROUNDINGS
        e_W ← (1 + l λ) e_W + l e_V + (the roundings of W − l λ W − l V)

    with γ_k = k u / (1 − k u) and u the unit roundoff. Two implementations therefore
    differ by at most twice the bound. Every operation also adds the smallest normal number,
    because JAX and TensorFlow flush subnormal numbers to zero; and where s·s comes near
    overflow, the largest value that ζ can then have.

    The k roundings of V, along a path from an input to it: five in ζ (one in s, which
    counts twice in s·s, one in s·s, one in 1 + s·s, one in the quotient), four in a
    coefficient evaluated from its closed form in working precision (its constant, the
    product, the sum, the quotient; t + 2 is exact, in float32 up to t = 2²⁴), the product
    with it, and the sum. Rounding errors of second order are covered by k + 1.

    Args:
        w: the weights before the first step; their shape and dtype count.
        info: `numpy.finfo` of the dtype that is computed in, if it is not that of `w`; for
            bfloat16, of which NumPy has none, any object with its eps, smallest_normal and max.

    Example:
        >>> from gravity_core import update
        >>> bound = ErrorBound(np.zeros(2, np.float32))
        >>> g, v, w = (np.asarray(x, np.float32) for x in ([1, -2], [0, 0], [0, 0]))
        >>> v_next = update(g, v, 1)
        >>> bound.step(g, v, v_next, w, w - np.float32(0.1) * v_next, t=1, learning_rate=0.1)
        >>> bool((bound.v < 1e-6).all()), bool((bound.w < 1e-7).all())
        (True, True)
    """

    ROUNDINGS = 11

    def __init__(self, w: np.ndarray, info: Any = None) -> None:
        self._info = np.finfo(w.dtype) if info is None else info
        self.unit = float(self._info.eps) / 2
        self.v = np.zeros(w.shape)
        """Bound on the error of V after the steps so far, float64, >= 0."""
        self.w = np.zeros(w.shape)
        """Bound on the error of W after the steps so far, float64, >= 0."""
        self.scale = np.zeros(w.shape)
        """S of the last step, float64: an error of V divided by u S is a count of roundings."""

    def _gamma(self, k: int) -> float:
        return k * self.unit / (1 - k * self.unit)

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
        beta: float = hp.BETA,
        weight_decay: float = hp.WEIGHT_DECAY,
    ) -> None:
        """Advance the bound by one update of the reference trajectory.

        Args:
            grad: G of this step.
            v: V before it.
            v_next: V after it.
            w: W before it.
            w_next: W after it.
            t: the step.
            learning_rate: l of this step.
            beta: β.
            weight_decay: λ.
        """
        old, new = coefficients(t, beta)
        g = np.abs(grad.astype(np.float64))
        w_size = np.abs(w.astype(np.float64)) + 2 * self.w
        self.scale = old * np.abs(v.astype(np.float64)) + new * np.abs(gradient_term(g))
        absolute = absolute_error(g, self._info)
        # The computed V may be off by twice the bound from the reference's, which S is made of.
        local = self._gamma(self.ROUNDINGS + 1) * (self.scale + 2 * old * self.v)
        self.v = old * self.v + local + absolute

        size = np.abs(v_next.astype(np.float64)) + 2 * self.v
        move = learning_rate * size
        decay = learning_rate * weight_decay
        shrink = decay * w_size
        after = np.abs(w_next.astype(np.float64)) + 2 * self.w + move + shrink
        self.w = (
            (1 + decay) * self.w
            + learning_rate * self.v
            # l λ W has up to five roundings. l V has two and the sum one, all of them below
            # `after`; with decay there is one sum more, and l V may be rounded with it.
            + self._gamma(5) * shrink
            + self._gamma(4 if decay else 2) * after
            # l, λ and W themselves may be flushed, too
            + (3 + size + decay + (learning_rate + weight_decay) * w_size)
            * float(self._info.smallest_normal)
        )
