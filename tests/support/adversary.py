"""The worst correct implementation: every operation is off by a whole unit roundoff.

It uses exact rational numbers and no code of gravity_core. Each operation that the derivation of
`ErrorBound` counts is multiplied by 1 + u or 1 − u, whichever moves the result in the requested
direction. Correct rounding cannot reach this in all operations at once.
"""

from fractions import Fraction

import numpy as np

ORDERS = ("in turn", "together", "factor")  # orders of the operations of weight decay


def sign(x):
    return (x > 0) - (x < 0)


class Adversary:
    """Computes one update at a time. With `flushes`, every subnormal number becomes zero."""

    def __init__(self, dtype, *, flushes=False):
        info = np.finfo(dtype)
        self.unit = Fraction(float(info.eps)) / 2
        self.max = Fraction(float(info.max))
        self.tiny = Fraction(float(info.smallest_normal)) if flushes else 0

    def flushed(self, x):
        return x if abs(x) >= self.tiny else Fraction(0)

    def rounded(self, x, direction):
        """Round as far as possible towards `direction` · ∞; a direction of 0 does not round."""
        return self.flushed(x + direction * self.unit * abs(x))

    def coefficient(self, constant, t, direction):
        """Return (constant · t + 1) / (t + 2) with four roundings; t + 2 is exact."""
        product = self.rounded(self.rounded(Fraction(constant), direction) * t, direction)
        return self.rounded(self.rounded(product + 1, direction) / (t + 2), direction)

    def zeta(self, x, max_abs, direction):
        """Return ζ with five roundings; the rounding of s enters the square twice."""
        larger = direction * sign(x)
        s = self.rounded(x * max_abs, -direction)
        square = self.rounded(s * s, -larger)
        if square > self.max:
            return Fraction(0)
        return self.rounded(x / self.rounded(1 + square, -larger), direction)

    def velocity(self, g, v, t, beta, direction):
        g, v = ([self.flushed(x) for x in xs] for xs in (g, v))
        max_abs, beta = max(map(abs, g)), Fraction(beta)
        result = []
        for x, y in zip(g, v, strict=True):
            old = self.coefficient(beta, t, direction * sign(y)) * y
            zeta = self.zeta(x, max_abs, direction)
            new = self.coefficient(1 - beta, t, direction * sign(x)) * zeta
            total = self.rounded(old, direction) + self.rounded(new, direction)
            result.append(self.rounded(total, direction))
        return result

    def weights(self, w, v, learning_rate, weight_decay, order, direction):
        return [
            self._weight(self.flushed(x), y, learning_rate, weight_decay, order, direction)
            for x, y in zip(w, v, strict=True)
        ]

    def _weight(self, w, v, learning_rate, weight_decay, order, direction):
        def lr(against):
            return self.rounded(Fraction(learning_rate), -direction * sign(against))

        move = self.rounded(lr(v) * v, -direction)
        if not weight_decay:
            return self.rounded(w - move, direction)
        decay = lr(w) * self.rounded(Fraction(weight_decay), -direction * sign(w))
        decay = self.rounded(decay, -direction * sign(w))
        if order == "factor":
            kept = self.rounded(self.rounded(1 - decay, direction * sign(w)) * w, direction)
            return self.rounded(kept - move, direction)
        shrink = self.rounded(decay * w, -direction)
        if order == "together":
            return self.rounded(w - self.rounded(shrink + move, -direction), direction)
        return self.rounded(self.rounded(w - shrink, direction) - move, direction)
