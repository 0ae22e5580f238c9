"""β̂ and 1 − β̂: accurate to a few roundings, and the weights of an average."""

import math
import re
import sys
from decimal import Decimal
from fractions import Fraction
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_core import beta_hat, coefficients
from gravity_core.coefficients import checked_step
from gravity_core.update import update
from tests.support import exact

betas = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.9, 0.999, 1 - 2.0**-53, 1.0]))
steps = st.one_of(st.integers(0, 100), st.integers(0, 2**52))  # t + 2 is exact

# β̂ has a product, a sum and a quotient; 1 − β̂ also has the difference 1 − β.
OLD, NEW = exact.gamma(3, np.float64), exact.gamma(4, np.float64)


@given(t=steps, beta=betas)
def test_both_against_rational_arithmetic(t, beta):
    computed = coefficients(t, beta)
    want = exact.coefficients(t, beta)
    exact.assert_within(computed, want, [OLD * float(want[0]), NEW * float(want[1])])
    assert beta_hat(t, beta) == computed[0]


@given(t=steps, beta=betas)
def test_the_coefficients_add_up_to_one(t, beta):
    old, new = coefficients(t, beta)
    assert abs(old + new - 1) <= OLD * old + NEW * new + exact.gamma(1, np.float64)


@given(t=steps, beta=betas)
def test_beta_hat_lies_between_one_half_and_beta(t, beta):
    low, high = sorted((0.5, beta))
    assert low * (1 - OLD) <= beta_hat(t, beta) <= high * (1 + OLD)


@given(t=st.integers(0, 10**4), later=st.integers(1, 10**4), beta=betas)
def test_beta_hat_moves_monotonically_from_one_half_to_beta(t, later, beta):
    """β̂ = β + (1 − 2β) / (t + 2) rises for β ≥ 1/2 and falls for β ≤ 1/2."""
    first, then = beta_hat(t, beta), beta_hat(t + later, beta)
    roundings = OLD * (first + then)
    direction = 1 if beta >= 0.5 else -1
    assert (then - first) * direction >= -roundings
    exact_move = exact.coefficients(t + later, beta)[0] - exact.coefficients(t, beta)[0]
    if abs(exact_move) > roundings:
        assert (then - first) * direction > 0


@given(beta=betas)
def test_coefficients_at_the_limits(beta):
    assert coefficients(0, beta) == (0.5, 0.5)
    far = 2**52
    gap = exact.gamma(1, np.float64)  # |1 − 2β| / (t + 2) ≤ 1 / t = 2⁻⁵²
    assert abs(beta_hat(far, beta) - beta) <= 2 * gap + OLD


@given(t=st.integers(0, 1000), beta=betas)
def test_the_complement_keeps_its_digits_where_float32_would_lose_them(t, beta):
    old, new = (np.float32(c) for c in coefficients(t, beta))
    want = exact.coefficients(t, beta)[1]
    # The conversion to float32 adds a rounding.
    slack = exact.gamma(1, np.float32) + 2 * NEW
    exact.assert_within(new, [want], float(want) * slack + float(np.finfo(np.float32).tiny))
    # β̂ + (1 − β̂) = 1. Float64 and float32 round both terms, by at most 2 u in all, and the sum.
    assert old + new == pytest.approx(1, abs=exact.gamma(3, np.float32), rel=0)


@pytest.mark.parametrize("integer", [int, np.int32, np.int64, np.uint8], ids=lambda i: i.__name__)
def test_integers_of_every_kind_give_python_floats(integer):
    got = coefficients(integer(3))
    assert got == coefficients(3)
    assert [type(c) for c in got] == [float, float]


@pytest.mark.parametrize("number", [Fraction, Decimal, np.float16, np.float32, np.float64])
def test_a_beta_of_every_kind_gives_python_floats(number):
    """A NumPy scalar would widen float32 arrays, and a Decimal does not multiply them."""
    got = coefficients(6, number("0.75"))
    assert got == (5.5 / 8, 2.5 / 8)
    assert [type(c) for c in got] == [float, float]


@pytest.mark.parametrize("t", [3.0, np.float32(3), np.longdouble(3), Fraction(3), np.asarray(3)])
def test_a_step_may_be_any_number_of_integral_value(t):
    assert coefficients(t, 0.5) == (0.5, 0.5)


def test_an_array_of_betas_gives_arrays_of_its_dtype():
    for got, want in zip(
        coefficients(2, np.asarray([0.5, 1], np.float32)), ([0.5, 0.75], [0.5, 0.25]), strict=True
    ):
        assert (got.dtype, got.tolist()) == (np.float32, want)


class Symbol:
    """An integer that a compiler has not fixed, as torch.SymInt: it has no dtype."""

    def __index__(self):
        raise AssertionError("the value must not be asked for")


@pytest.mark.parametrize("t", [Symbol(), SimpleNamespace(dtype="float32")], ids=["index", "dtype"])
def test_a_step_whose_value_is_unknown_is_returned_unchanged(t):
    assert checked_step(t) is t


@pytest.mark.parametrize("largest", [sys.float_info.max, int(sys.float_info.max)])
def test_the_largest_step_is_that_of_float64(largest):
    assert coefficients(largest, 0.5) == (0.5, 0.5)
    with pytest.raises(ValueError, match=r"^t must fit float64, got an integer of 1024 bits$"):
        coefficients(int(largest) + 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(t=st.integers(0, 10**6), beta=betas)
def test_arrays_give_arrays_of_their_dtype(dtype, t, beta):
    got = coefficients(np.asarray([t], dtype), beta)
    want = exact.coefficients(t, beta)
    k = exact.gamma(4, dtype)  # below, one more for β or 1 − β
    for c, e in zip(got, want, strict=True):
        assert c.dtype == dtype
        exact.assert_within(c, [e], float(e) * (k + 2 * exact.gamma(1, dtype)))


@pytest.mark.parametrize(
    ("t", "beta", "message"),
    [
        (-1, 0.9, "t must be an integer >= 0, got -1"),
        (np.int32(-2), 0.9, "t must be an integer >= 0, got -2"),
        (float("inf"), 0.9, "t must be an integer >= 0, got inf"),
        (float("nan"), 0.9, "t must be an integer >= 0, got nan"),
        (math.copysign(float("nan"), -1), 0.9, "t must be an integer >= 0, got nan"),
        (-5e-324, 0.9, "t must be an integer >= 0, got -5e-324"),
        (1.5, 0.9, "t must be an integer >= 0, got 1.5"),
        (Fraction(7, 2), 0.9, r"t must be an integer >= 0, got Fraction\(7, 2\)"),
        (-(10**400), 0.9, "t must be an integer >= 0, got an integer of 1329 bits"),
        (np.longdouble("1e400"), 0.9, "t must be an integer >= 0, got inf"),
        (np.asarray(-5), 0.9, r"t must be an integer >= 0, got array\(-5\)"),
        (np.asarray([3, -1]), 0.9, r"t must be an integer >= 0, got array\(\[ 3, -1\]\)"),
        (np.asarray(0.5), 0.9, r"t must be an integer >= 0, got array\(0.5\)"),
        (np.asarray(math.nan), 0.9, r"t must be an integer >= 0, got array\(nan\)"),
        (np.asarray(math.inf), 0.9, r"t must be an integer >= 0, got array\(inf\)"),
        (1, np.asarray(2.0), r"beta must be a number in \[0, 1\], got array\(2.\)"),
        (1, np.asarray([0.5, -1]), r"beta must be a number in \[0, 1\], got .*-1.0"),
        (1, np.asarray([0.5, math.nan]), r"beta must be a number in \[0, 1\], got .*nan"),
        (1, 10**400, r"beta must be a number in \[0, 1\], got an integer of 1329 bits"),
        (10**400, 0.9, "t must fit float64, got an integer of 1329 bits"),
        (1, -0.1, r"beta must be a number in \[0, 1\], got -0.1"),
        (1, math.nextafter(1, 2), r"beta must be a number in \[0, 1\], got 1.0000000000000002"),
        (1, "0.9", r"beta must be a number in \[0, 1\], got '0.9'"),
        (1, None, r"beta must be a number in \[0, 1\], got None"),
        (1, float("nan"), r"beta must be a number in \[0, 1\], got nan"),
        (1, np.float32(2), r"beta must be a number in \[0, 1\], got .*2.0"),
    ],
    ids=count(),
)
def test_bad_arguments_are_named_with_their_value(t, beta, message):
    array = np.ones(2)
    with pytest.raises(ValueError, match=message):
        update(array, array, t, beta=beta)
    with pytest.raises(ValueError, match=message):
        coefficients(t, beta)
    with pytest.raises(ValueError, match=message):
        beta_hat(t, beta)


NO_NUMBERS = ["1", b"1", True, np.bool_(True), np.asarray(True), np.asarray("1"), None, 1j]


@pytest.mark.parametrize("t", [*NO_NUMBERS, Decimal(1)], ids=repr)
def test_a_step_that_is_no_number_is_refused(t):
    for function in (coefficients, beta_hat):
        with pytest.raises(TypeError, match=f"t must be an integer >= 0, got {re.escape(repr(t))}"):
            function(t)


@pytest.mark.parametrize("t", [np.int8(126), np.uint8(254), np.int64(2**62)], ids=repr)
def test_an_array_of_integers_does_not_wrap_around(t):
    expected = tuple(map(float, coefficients(int(t))))
    assert tuple(map(float, coefficients(np.asarray(t)))) == expected
    (column,) = coefficients(np.asarray([t]))[0]
    assert column == expected[0]


class Counter:
    """An array of another library, whose integers have 32 bits."""

    dtype = "int32"

    def __init__(self, value):
        self.value = np.asarray(value, np.int32)

    def __add__(self, other):
        return self.value + other

    def __rmul__(self, other):
        return other * self.value


@pytest.mark.parametrize("value", [0, 7, 2**31 - 1])
def test_a_counter_of_another_library_does_not_wrap_around(value):
    assert tuple(map(float, coefficients(Counter(value)))) == coefficients(value)


@pytest.mark.parametrize("beta", [np.asarray(0.5, np.float32), np.asarray([], np.float32)])
def test_arrays_of_beta_keep_their_dtype_and_shape(beta):
    for coefficient in coefficients(2.0, beta):
        assert (coefficient.dtype, coefficient.shape) == (np.float32, beta.shape)


def test_the_value_of_a_beta_of_another_library_is_not_asked_for():
    class Traced(Counter):
        dtype = "float32"

        def __mul__(self, other):
            return self.value * other

        def __rsub__(self, other):
            return other - self.value

    assert beta_hat(2, Traced(3)) == 7 / 4  # out of range, which only its library can tell


def test_a_subclass_of_an_array_is_no_beta():
    with pytest.raises(TypeError, match=r"^beta must be a numpy.ndarray or numpy.memmap, got rec"):
        coefficients(1, np.ones(2).view(np.recarray))


@pytest.mark.parametrize("t", [np.asarray([101], np.int8), np.asarray(101, np.uint8)], ids=repr)
def test_an_array_of_integers_computes_in_float64_whatever_beta_is(t):
    beta = np.asarray(0.9, np.float16)
    for coefficient, want in zip(
        coefficients(t, beta), coefficients(101, float(beta)), strict=True
    ):
        assert (coefficient.dtype, coefficient.shape) == (np.float64, t.shape)
        assert float(coefficient.reshape(())) == pytest.approx(want, rel=NEW, abs=0)
