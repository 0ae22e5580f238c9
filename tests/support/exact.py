"""Gravity in exact rational numbers, and the bound for chains of rounded operations.

The code is independent of gravity_core and follows the formulas of Algorithm 1.
"""

from fractions import Fraction

import numpy as np


def gamma(k, dtype):
    """Return γ_k = k u / (1 − k u), the relative error bound of k roundings."""
    u = float(np.finfo(dtype).eps) / 2
    return k * u / (1 - k * u)


def fractions(array):
    """Return the exact values of a floating array, flat."""
    return [Fraction(x) for x in np.asarray(array, np.float64).ravel().tolist()]


def coefficients(t, beta):
    """Return (β̂, 1 − β̂)."""
    old = (Fraction(beta) * t + 1) / (t + 2)
    return old, 1 - old


def zeta(g):
    """Return ζ = G / (1 + (G / m)²), m = 1 / max|G|."""
    max_abs = max(map(abs, g), default=Fraction(0))
    return [x / (1 + (x * max_abs) ** 2) for x in g]


def velocity(g, v, t, beta):
    """Return V ← β̂ V + (1 − β̂) ζ."""
    old, new = coefficients(t, beta)
    return [old * x + new * z for x, z in zip(v, zeta(g), strict=True)]


def weights(w, v, learning_rate, weight_decay=0):
    """Return W ← W − η λ W − η V."""
    lr, decay = Fraction(learning_rate), Fraction(weight_decay)
    return [x - lr * decay * x - lr * y for x, y in zip(w, v, strict=True)]


def assert_within(computed, exact, bound):
    """Compare |computed − exact| with the bound, elementwise and without rounding."""
    limits = fractions(np.broadcast_to(bound, np.shape(computed)))
    for i, (c, e, limit) in enumerate(zip(fractions(computed), exact, limits, strict=True)):
        error = abs(c - e)
        assert error <= limit, f"element {i}: error {float(error)}, bound {float(limit)}"
