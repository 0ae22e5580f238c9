"""A certified running bound on the rounding errors of an implementation.

Guarantee: an implementation with correctly rounded operations stays inside `ErrorBound` around the
exact update. Two such implementations differ by at most twice the bound.
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
        info: the limits of the dtype of the operations.
    """
    # If |s| > √max / 2, s·s may overflow. The computed ζ is then 0, and the exact ζ is at most
    # |s|^(−3/2).
    with np.errstate(over="ignore"):
        near_overflow = g * g.max(initial=0.0) > 0.5 * info.max**0.5
    # Each of eight operations and inputs may be flushed to zero.
    return np.asarray(8 * info.smallest_normal + near_overflow * 3 * info.max**-0.75)


class ErrorBound:
    """A running bound on |computed − exact| for V and W of one tensor.

    The sequence of gradients is given. An implementation is inside the bound if it evaluates the
    update through s = G · max|G| or G / m, with at most `ROUNDINGS` correctly rounded operations
    on each path from an input to V. The operations may be fused. The bound is:

        e_V ← β̂ e_V + γ_k S,      S = |β̂ V| + |(1 − β̂) ζ|,  k = ROUNDINGS
        e_W ← (1 + η λ) e_W + η e_V + (the roundings of W − η λ W − η V)

    with γ_k = k u / (1 − k u) and u the unit roundoff. Two implementations therefore
    differ by at most twice the bound. Every operation also adds the smallest normal number,
    because JAX and TensorFlow flush subnormal numbers to zero. If s·s is near overflow, the
    largest value that ζ can then have is added.

    These are the k roundings on a path from an input to V:

    - five in ζ: one in s, which counts twice in s·s, one in s·s, one in 1 + s·s, and one in the
      quotient;
    - four in a coefficient, evaluated from its closed form in working precision: its constant,
      the product, the sum and the quotient (t + 2 is exact, in float32 up to t = 2²⁴);
    - one in the product with the coefficient, and one in the sum.

    One more rounding, k + 1, covers the errors of second order.

    The half types are computed in float32 and rounded once. This adds u |V| to e_V, with u of the
    half type. W may be computed in either dtype, so its roundings use the same u.

    Args:
        w: the weights before the first step; only their shape and dtype are used.
        stored: the dtype of V and W, or its name, such as "bfloat16". If None, it is the dtype
            of `w`.
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
        own = stored is None
        self._stored = float_info(w.dtype if own else stored, "w" if own else "stored")
        if computed is None:
            computed = self._stored.name if self._stored.width > 16 else "float32"
        self._computed = float_info(computed, "computed")
        self.v = np.zeros(w.shape)
        """Bound on the error of V after the steps so far, float64, >= 0."""
        self.w = np.zeros(w.shape)
        """Bound on the error of W after the steps so far, float64, >= 0."""
        self.scale = np.zeros(w.shape)
        """S of the last step, float64. An error of V, divided by u S, is a number of roundings."""

    @property
    def unit(self) -> float:
        """u, the unit roundoff of the dtype of the operations."""
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

        The arrays are of NumPy, real, of the shape of W.

        Raises:
            TypeError: for anything but an array of real floating-point numbers.
            ValueError: for an array of another shape, or a number out of its range. The bound is
                unchanged then.
        """
        numbers = hp.validate(learning_rate=learning_rate, beta=beta, weight_decay=weight_decay)
        learning_rate, weight_decay = numbers["learning_rate"], numbers["weight_decay"]
        old, new = coefficients(t, numbers["beta"])
        names, arrays = ("grad", "v", "v_next", "w", "w_next"), (grad, v, v_next, w, w_next)
        g, v_size, v_next_size, w_size, w_next_size = map(self._size, names, arrays)
        scale = old * v_size + new * np.abs(gradient_term(g))
        # S uses the reference's V. The computed V may differ from it by twice the bound.
        local = _gamma(self.ROUNDINGS + 1, self.unit) * (scale + 2 * old * self.v)
        v_error = old * self.v + local + absolute_error(g, self._computed)
        # One operation on W may be flushed to zero.
        tiny, unit = self._computed.smallest_normal, max(self._stored.unit, self.unit)
        if self._rounded_once:
            # Rounding a subnormal number changes it by up to half of the smallest one.
            tiny = tiny + unit * self._stored.smallest_normal
            # Solve e_V = e + u (|V| + 2 e_V) + tiny for e_V; e is the error of the computation.
            v_error = (v_error + unit * v_next_size + tiny) / (1 - 2 * unit)

        size = v_next_size + 2 * v_error
        w_size = w_size + 2 * self.w
        move = learning_rate * size
        decay = learning_rate * weight_decay
        shrink = decay * w_size
        after = w_next_size + 2 * self.w + move + shrink
        w_error = (
            (1 + decay) * self.w
            + learning_rate * v_error
            # η λ W has up to five roundings. η V has two, and the sum has one. Two units of
            # `after` cover these three, because it includes η V and the sum. With decay there is
            # one more sum, which may round η V again.
            + _gamma(5, unit) * shrink
            + _gamma(4 if decay else 2, unit) * after
            # η, λ and W may be flushed to zero, too.
            + (3 + size + decay + (learning_rate + weight_decay) * w_size) * tiny
        )
        self.scale, self.v, self.w = scale, v_error, w_error

    def _size(self, name: str, x: np.ndarray) -> np.ndarray:
        """Return the absolute values of an array in float64; raise unless it fits W."""
        if not isinstance(x, (np.ndarray, np.generic)):
            raise TypeError(f"{name} must be a NumPy array, got {type(x).__name__}")
        float_info(x.dtype, name)
        if x.shape != self.w.shape:
            raise ValueError(f"{name} must have the shape of w, {self.w.shape}, got {x.shape}")
        return np.asarray(np.abs(x.astype(np.float64)))


def _gamma(k: int, unit: float) -> float:
    """Return γ_k = k u / (1 − k u), the relative error of k roundings."""
    return k * unit / (1 - k * unit)
