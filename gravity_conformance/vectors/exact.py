"""Gravity in exact arithmetic: rational numbers, rounded once to a floating-point format.

Guarantee: this module computes with rational numbers only and shares no code with the
implementations that the vectors test. A value is a `Fraction`, or the float NaN, ∞ or −∞.
Only the quantiles of V₀ are irrational; mpmath computes them to 40 digits.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

Value = Fraction | float
Words = tuple[int, int]


class Format(NamedTuple):
    """A binary floating-point format: bits of precision, smallest and largest exponent."""

    precision: int
    emin: int
    emax: int

    @property
    def unit(self) -> Fraction:
        """u, the unit roundoff: the largest relative error of rounding to nearest."""
        return Fraction(1, 2**self.precision)

    @property
    def smallest_normal(self) -> Fraction:
        """The smallest normal number; smaller ones are subnormal."""
        return Fraction(2) ** self.emin

    @property
    def max(self) -> Fraction:
        """The largest finite number."""
        return (2 - 2 * self.unit) * Fraction(2) ** self.emax


FORMATS = {
    "float16": Format(11, -14, 15),
    "bfloat16": Format(8, -126, 127),
    "float32": Format(24, -126, 127),
    "float64": Format(53, -1022, 1023),
}


def working_dtype(dtype: str) -> str:
    """Return the working dtype: float32 for the half types."""
    return dtype if dtype == "float64" else "float32"


def is_finite(x: Value) -> bool:
    """Return whether `x` is finite."""
    return isinstance(x, Fraction)


def round_to(x: Value, dtype: str) -> Value:
    """Return the number of `dtype` nearest to `x`, ties to even; ±∞ beyond its range."""
    if not isinstance(x, Fraction) or not x:
        return x
    form = FORMATS[dtype]
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    quantum = Fraction(2) ** (max(exponent, form.emin) - form.precision + 1)
    rounded = round(x / quantum) * quantum
    if abs(rounded) <= form.max:
        return rounded
    return math.inf if x > 0 else -math.inf


def multiply(a: Value, b: Value) -> Value:
    """Return a · b, by the rules of IEEE 754 if a factor is not finite."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a * b
    return _sign(a) * _sign(b)


def add(a: Value, b: Value) -> Value:
    """Return a + b."""
    if isinstance(a, Fraction):
        return a + b if isinstance(b, Fraction) else b
    return a if isinstance(b, Fraction) else a + b


def divide(a: Value, b: Value) -> Value:
    """Return a / b for b ≠ 0; a finite number over an infinity is 0."""
    if isinstance(b, Fraction):
        return multiply(a, 1 / b)
    if math.isnan(b) or not isinstance(a, Fraction):
        return math.nan
    return Fraction(0)


def _sign(x: Value) -> float:
    return x if isinstance(x, float) else float((x > 0) - (x < 0))


def coefficients(t: int, beta: Fraction) -> tuple[Fraction, Fraction]:
    """Return (β̂, 1 − β̂), β̂ = (β t + 1) / (t + 2)."""
    old = (beta * t + 1) / (t + 2)
    return old, 1 - old


def max_abs(g: Sequence[Value]) -> Value:
    """Return max|G|; NaN if an element is NaN, 0 for an empty tensor."""
    if any(math.isnan(x) for x in g):
        return math.nan
    return max((-x if x < 0 else x for x in g), default=Fraction(0))


def max_step_grad(g: Sequence[Value]) -> Value:
    """Return m = 1 / max|G|; ∞ for a gradient of zeros."""
    largest = max_abs(g)
    return divide(Fraction(1), largest) if largest else math.inf


def gradient_term(g: Sequence[Value]) -> list[Value]:
    """Return ζ = G / (1 + (G / m)²)."""
    largest, one = max_abs(g), Fraction(1)
    scaled = [multiply(x, largest) for x in g]
    return [divide(x, add(one, multiply(s, s))) for x, s in zip(g, scaled, strict=True)]


class Tensor:
    """V and W of one weight tensor over several steps, with bounds on their rounding errors.

    The bounds are those of `gravity_core.ErrorBound`, whose docstring derives them, evaluated
    in exact arithmetic. For the half types, V has the roundings of float32 and one to the half
    type, and all roundings of W are to the half type. `ErrorBound` adds the rounding of a
    reference that is rounded, too; the expected values here are exact.

    Args:
        dtype: the dtype in which V and W are stored.
        v: V before the first step.
        w: W before the first step.
    """

    ROUNDINGS = 11

    def __init__(self, dtype: str, v: Sequence[Value], w: Sequence[Value]) -> None:
        self.dtype = dtype
        self.v = list(v)
        """V after the steps so far."""
        self.w = list(w)
        """W after the steps so far."""
        self.zeta: list[Value] = []
        """ζ of the last step."""
        self.error_v = [Fraction(0) for _ in v]
        """Bound on the error of V."""
        self.error_w = [Fraction(0) for _ in w]
        """Bound on the error of W."""

    def step(
        self, g: Sequence[Value], t: int, rate: Fraction, beta: Fraction, decay: Fraction
    ) -> None:
        """Make one step: V ← β̂ V + (1 − β̂) ζ, W ← (1 − η λ) W − η V."""
        old, new = coefficients(t, beta)
        self.zeta = gradient_term(g)
        v, w = self.v, self.w
        self.v = [
            add(multiply(old, x), multiply(new, z)) for x, z in zip(v, self.zeta, strict=True)
        ]
        self.w = [
            add(multiply(1 - rate * decay, x), multiply(-rate, y))
            for x, y in zip(w, self.v, strict=True)
        ]
        for i, absolute in enumerate(self.underflow_and_overflow(g)):
            scale = old * _size(v[i]) + new * _size(self.zeta[i])
            self._advance_v(i, old, scale, absolute)
            self._advance_w(i, _size(w[i]), rate, decay)

    def underflow_and_overflow(self, g: Sequence[Value]) -> list[Fraction]:
        """Return the largest error that underflow and overflow cause in each element of ζ and V."""
        form, largest = FORMATS[working_dtype(self.dtype)], _size(max_abs(g))
        # 3 max^(−3/4), rounded up
        overflow = 3 * Fraction(2) ** (-3 * (form.emax + 1) // 4) * (1 + form.unit)
        return [
            8 * form.smallest_normal + (overflow if (2 * _size(x) * largest) ** 2 > form.max else 0)
            for x in g
        ]

    def _advance_v(self, i: int, old: Fraction, scale: Fraction, absolute: Fraction) -> None:
        before = self.error_v[i]
        gamma = _gamma(self.ROUNDINGS + 1, working_dtype(self.dtype))
        after = old * before + gamma * (scale + 2 * old * before) + absolute
        if self._is_half:
            after += FORMATS[self.dtype].unit * (_size(self.v[i]) + after) + self._underflow
        self.error_v[i] = after

    def _advance_w(self, i: int, w: Fraction, rate: Fraction, decay: Fraction) -> None:
        before, size = self.error_w[i], _size(self.v[i]) + 2 * self.error_v[i]
        w += 2 * before
        move, shrink = rate * size, rate * decay * w
        after = _size(self.w[i]) + 2 * before + move + shrink
        self.error_w[i] = (
            (1 + rate * decay) * before
            + rate * self.error_v[i]
            + _gamma(5, self.dtype) * shrink
            + _gamma(4 if rate * decay else 2, self.dtype) * after
            + (3 + size + rate * decay + (rate + decay) * w) * self._underflow
        )

    @property
    def _is_half(self) -> bool:
        return self.dtype != working_dtype(self.dtype)

    @property
    def _underflow(self) -> Fraction:
        """The largest underflow error of one operation on W: a flush, or a subnormal's rounding."""
        form = FORMATS[self.dtype]
        flush = FORMATS[working_dtype(self.dtype)].smallest_normal
        return flush + (form.unit * form.smallest_normal if self._is_half else 0)


def _gamma(k: int, dtype: str) -> Fraction:
    """Return γ_k = k u / (1 − k u)."""
    u = FORMATS[dtype].unit
    return k * u / (1 - k * u)


def _size(x: Value) -> Fraction:
    return abs(x) if isinstance(x, Fraction) else Fraction(0)


def relative_bound(x: Value, roundings: int, dtype: str) -> Fraction:
    """Return the largest error of a computed `x` after that many roundings."""
    return _gamma(roundings + 1, dtype) * _size(x)


def tolerance(exact: Value, bound: Fraction, dtype: str) -> float:
    """Return the tolerance of a result around `exact` rounded to `dtype`.

    It is `bound` plus the rounding error of the expected value, rounded up to four digits. It is 0
    if the expected value is not finite.
    """
    expected = round_to(exact, dtype)
    if not (isinstance(exact, Fraction) and isinstance(expected, Fraction)):
        return 0.0
    x = bound + abs(expected - exact)
    if not x:
        return 0.0
    exponent = 0  # x = 1234.5 · 10^exponent
    while x * Fraction(10) ** -exponent < 1000:
        exponent -= 1
    while x * Fraction(10) ** -exponent >= 10_000:
        exponent += 1
    return float(f"{math.ceil(x / Fraction(10) ** exponent)}e{exponent}")


# V₀, from the Threefry paper and the definition in gravity_core/velocity.py.

_MASK = 0xFFFFFFFF


def threefry(key: Words, counter: Words) -> Words:
    """Return the Threefry-2x32 hash of `counter`, 20 rounds: rotate, add, inject the key."""
    keys = (*key, 0x1BD11BDA ^ key[0] ^ key[1])
    x, y = (counter[0] + keys[0]) & _MASK, (counter[1] + keys[1]) & _MASK
    for n in range(20):
        bits = (13, 15, 26, 6, 17, 29, 16, 24)[n % 8]
        x = (x + y) & _MASK
        y = (((y << bits) | (y >> (32 - bits))) & _MASK) ^ x
        if n % 4 == 3:
            i = n // 4 + 1
            x, y = (x + keys[i % 3]) & _MASK, (y + keys[(i + 1) % 3] + i) & _MASK
    return x, y


def tensor_key(seed: int, index: int) -> Words:
    """Return the key of tensor `index`: threefry(seed's high and low word, (0, index))."""
    return threefry((seed >> 32, seed & _MASK), (0, index))


def halfword(key: Words, element: int) -> int:
    """Return k of an element: one of the four halfwords of the hash of its block."""
    block = element // 4
    y = threefry(key, (block >> 32, block & _MASK))[element % 4 // 2]
    return y >> 16 * (element % 2) & 0xFFFF


@functools.cache
def quantile(k: int) -> Fraction:
    """Return z = Φ⁻¹((k + ½) / 65 536), to 40 digits, rounded once to float32."""
    import mpmath

    with mpmath.workdps(40):
        z = mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(2 * k + 1 - 65_536) / 65_536)
        sign, mantissa, exponent, _ = z._mpf_
    exact = (-1) ** sign * int(mantissa) * Fraction(2) ** int(exponent)
    rounded = round_to(exact, "float32")
    assert isinstance(rounded, Fraction)
    return rounded


def initial_velocity(k: int, std: Fraction, dtype: str) -> Value:
    """Return V₀ = σ z in `dtype`; for the half types the product is rounded to float32 first."""
    working = working_dtype(dtype)
    return round_to(round_to(multiply(round_to(std, working), quantile(k)), working), dtype)
