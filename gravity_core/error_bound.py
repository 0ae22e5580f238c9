"""How far rounding may take an implementation from the exact update: a certified running bound.

Guarantee: any implementation that evaluates the update with honest roundings stays inside
`ErrorBound`; two of them are at most twice the bound apart.
"""

from typing import Any

import numpy as np

from gravity_core import hyperparameters as hp
from gravity_core._arrays import FloatInfo, float_info
from gravity_core.coefficients import coefficients
from gravity_core.update import gradient_term


def absolute_error(g: np.ndarray, info: FloatInfo) -> np.ndarray:
    """Return the part of the bound on V that underflow and overflow in one update can cause.

    Args:
        g: |G|, float64.
        info: the limits of the dtype that is computed in.
    """
    # |s| > √max / 2: s·s may overflow, and ζ, then 0, is at most |s|^(−3/2).
    with np.errstate(over="ignore"):
        near_overflow = g * g.max(initial=0.0) > 0.5 * info.max**0.5
    # Eight operations and inputs, each of which may be flushed to zero.
    return np.asarray(8 * info.smallest_normal + near_overflow * 3 * info.max**-0.75)


class ErrorBound:
    """A running bound on |computed − exact| for V and W of one tensor.

    For a given sequence of gradients, any implementation that evaluates the update through
    s = G · max|G| or G / m, with at most `ROUNDINGS` correctly rounded operations on the way
    from an input to V, fused or not, stays inside:

        e_V ← β̂ e_V + γ_k S,      S = |β̂ V| + |(1 − β̂) ζ|,  k = ROUNDINGS
        e_W ← (1 + η λ) e_W + η e_V + (the roundings of W − η λ W − η V)

    with γ_k = k u / (1 − k u) and u the unit roundoff. Two implementations therefore
    differ by at most twice the bound. Every operation also adds the smallest normal number,
    because JAX and TensorFlow flush subnormal numbers to zero; and where s·s comes near
    overflow, the largest value that ζ can then have.

    The k roundings of V, along a path from an input to it: five in ζ (one in s, which
    counts twice in s·s, one in s·s, one in 1 + s·s, one in the quotient), four in a
    coefficient evaluated from its closed form in working precision (its constant, the
    product, the sum, the quotient; t + 2 is exact, in float32 up to t = 2²⁴), the product
    with it, and the sum. Rounding errors of second order are covered by k + 1.

    The half types are computed in float32 and rounded once, which adds u |V| to e_V with the
    u of the half type. W may be computed in either dtype, so its roundings have that u, too.

    Args:
        w: the weights before the first step; their shape and dtype count.
        stored: the dtype of V and W, as a dtype or by name, such as "bfloat16"; that of `w` if
            None.
        computed: the dtype of the operations. If None, it is float32 for the half types and
            `stored` for the others.

    Raises:
        TypeError: for a dtype that is not a real floating-point one.

    Example:
        >>> from gravity_core import update
        >>> bound = ErrorBound(np.zeros(2, np.float32))
        >>> g, v, w = (np.asarray(x, np.float32) for x in ([1, -2], [0, 0], [0, 0]))
        >>> v_next = update(g, v, 1)
        >>> bound.step(g, v, v_next, w, w - np.float32(0.1) * v_next, t=1, learning_rate=0.1)
        >>> bool((bound.v < 1e-6).all()), bool((bound.w < 1e-7).all())
        (True, True)
        >>> half = ErrorBound(w, stored="float16")
        >>> half.step(g, v, v_next, w, w - np.float32(0.1) * v_next, t=1, learning_rate=0.1)
        >>> bool((half.v > 1e-6).all()), bool((half.v < 1e-3).all())
        (True, True)
    """

    ROUNDINGS = 11

    def __init__(self, w: np.ndarray, *, stored: Any = None, computed: Any = None) -> None:
        self._stored = float_info(w.dtype if stored is None else stored, "stored")
        if computed is None:
            computed = self._stored.name if self._stored.width > 16 else "float32"
        self._computed = float_info(computed, "computed")
        self.v = np.zeros(w.shape)
        """Bound on the error of V after the steps so far, float64, >= 0."""
        self.w = np.zeros(w.shape)
        """Bound on the error of W after the steps so far, float64, >= 0."""
        self.scale = np.zeros(w.shape)
        """S of the last step, float64: an error of V divided by u S is a count of roundings."""

    @property
    def unit(self) -> float:
        """u, the unit roundoff of the dtype that is computed in."""
        return self._computed.unit

    @property
    def _rounded_once(self) -> bool:
        return self._stored.width < self._computed.width

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
            learning_rate: η of this step.
            beta: β.
            weight_decay: λ.
        """
        old, new = coefficients(t, beta)
        g = np.abs(grad.astype(np.float64))
        w_size = np.abs(w.astype(np.float64)) + 2 * self.w
        self.scale = old * np.abs(v.astype(np.float64)) + new * np.abs(gradient_term(g))
        # The computed V may be off by twice the bound from the reference's, which S is made of.
        local = _gamma(self.ROUNDINGS + 1, self.unit) * (self.scale + 2 * old * self.v)
        self.v = old * self.v + local + absolute_error(g, self._computed)
        v_size = np.abs(v_next.astype(np.float64))
        # One operation on W may be flushed to zero.
        tiny, unit = self._computed.smallest_normal, self._stored.unit
        if self._rounded_once:
            # A number below the smallest normal one loses up to half of the smallest number.
            tiny = tiny + unit * self._stored.smallest_normal
            # The e_V that solves e_V = e + u (|V| + 2 e_V) + tiny, e that of the computation.
            self.v = (self.v + unit * v_size + tiny) / (1 - 2 * unit)

        size = v_size + 2 * self.v
        move = learning_rate * size
        decay = learning_rate * weight_decay
        shrink = decay * w_size
        after = np.abs(w_next.astype(np.float64)) + 2 * self.w + move + shrink
        self.w = (
            (1 + decay) * self.w
            + learning_rate * self.v
            # η λ W has up to five roundings. η V has two and the sum one, all of them below
            # `after`; with decay there is one sum more, and η V may be rounded with it.
            + _gamma(5, unit) * shrink
            + _gamma(4 if decay else 2, unit) * after
            # η, λ and W themselves may be flushed, too
            + (3 + size + decay + (learning_rate + weight_decay) * w_size) * tiny
        )


def _gamma(k: int, unit: float) -> float:
    """Return γ_k = k u / (1 − k u), the relative error of k roundings."""
    return k * unit / (1 - k * unit)
