"""Ranges and messages of hyper-parameters, which every adapter uses."""

import inspect
import math
import re
import warnings
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gravity_core import Gravity
from gravity_core import hyperparameters as hp
from gravity_core.velocity import initial_velocity, normal_quantiles
from tests.support import exact

NOT_NUMBERS = ["0.1", None, [], 1j, float("nan")]
HUGE = 10**309
NOT_FINITE = [float("inf"), -float("inf"), HUGE]
BAD = {
    "learning_rate": [*NOT_NUMBERS, *NOT_FINITE, -5e-324, -1],
    "alpha": [*NOT_NUMBERS, *NOT_FINITE, -5e-324],
    "beta": [*NOT_NUMBERS, *NOT_FINITE, -5e-324, math.nextafter(1, 2), np.float32(1.5)],
    "weight_decay": [*NOT_NUMBERS, *NOT_FINITE, -5e-324],
    "velocity_std": [x for x in [*NOT_NUMBERS, *NOT_FINITE, -5e-324, 7.87e37] if x is not None],
    "seed": [*NOT_NUMBERS, *NOT_FINITE, -1, 2**64, 0.0, 1.5],
    "first_step": [*NOT_NUMBERS, *NOT_FINITE, -1, 2, 1.0],
}
GOOD = {
    "learning_rate": [0, 0.0, 5e-324, 0.1, 1e308, np.float32(0.1), Fraction(1, 10)],
    "alpha": [0, 0.01, 1e308],
    "beta": [0, 0.0, 0.9, 1, 1.0, np.float64(0.5)],
    "weight_decay": [0, 0.01, 1e308],
    "velocity_std": [None, 0, 0.1, 7.86e37],
    "seed": [0, 1, 2**64 - 1, np.uint64(2**64 - 1), np.int32(7)],
    "first_step": [0, 1, np.int64(1)],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in BAD for v in BAD[n]])
def test_bad_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
        hp.validate(**{name: value})
    shown = "an integer of 1027 bits" if value is HUGE else repr(value)
    assert str(caught.value).endswith(f", got {shown}")
    with pytest.raises(ValueError, match=r"^their_name must be "):
        hp.validate(names={name: "their_name"}, **{name: value})
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Gravity(**{name: value})


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in GOOD for v in GOOD[n]])
def test_good_values_pass(name, value):
    (number,) = hp.validate(**{name: value}).values()
    assert number == (None if value is None else pytest.approx(float(value), rel=1e-7))
    assert type(number) in (int, float, type(None))


def test_the_first_bad_value_is_reported():
    with pytest.raises(ValueError, match=r"^beta must"):
        hp.validate(alpha=0.1, beta=2, learning_rate=-1)


def test_every_argument_of_the_optimizer_has_a_rule():
    assert set(inspect.signature(Gravity).parameters) == set(BAD) == set(GOOD) == set(hp._RULES)


def test_the_defaults_equal_the_papers():
    assert (hp.LEARNING_RATE, hp.ALPHA, hp.BETA) == (0.1, 0.01, 0.9)
    defaults = {n: p.default for n, p in inspect.signature(Gravity).parameters.items()}
    assert defaults == {
        "learning_rate": 0.1,
        "alpha": 0.01,
        "beta": 0.9,
        "weight_decay": 0.0,
        "velocity_std": None,
        "seed": 0,
        "first_step": 1,
    }


@given(alpha=st.floats(0, 1e6), learning_rate=st.floats(1e-6, 1e6))
def test_velocity_std_is_alpha_over_the_learning_rate(alpha, learning_rate):
    got, want = hp.velocity_std(learning_rate, alpha), Fraction(alpha) / Fraction(learning_rate)
    tiny = float(np.finfo(np.float64).smallest_subnormal)
    exact.assert_within(got, [want], exact.gamma(1, np.float64) * float(want) + tiny)


@given(std=st.floats(0, 1e300), learning_rate=st.floats(0, 1))
def test_velocity_std_overrides_the_quotient(std, learning_rate):
    assert hp.velocity_std(learning_rate, 0.01, std) == std


def test_a_zero_learning_rate_starts_from_rest_with_one_warning():
    for names, name in ((None, "learning_rate"), ({"learning_rate": "lr"}, "lr")):
        with pytest.warns(UserWarning, match=f"^{name} is 0") as caught:
            assert hp.velocity_std(0.0, names=names) == 0.0
        assert [str(warning.message) for warning in caught] == [
            f"{name} is 0 at construction, so alpha / {name} is undefined and the velocity starts "
            "from rest; pass velocity_std to choose its standard deviation"
        ]


def test_a_first_rate_that_differs_gives_one_warning():
    """σ = 0.02 / 0.5 = 0.04 was drawn, and 0.02 / 8 = 0.0025 fits."""
    for names, name in ((None, "learning_rate"), ({"learning_rate": "lr"}, "lr")):
        with pytest.warns(UserWarning, match=f"^{name} is 8") as caught:
            hp.warn_of_first_rate(0.5, 8.0, 0.02, names=names)
        assert [str(warning.message) for warning in caught] == [
            f"{name} is 8 at the first step, but the standard deviation of V_0 was derived from "
            "0.5, its value at construction: 0.04; pass velocity_std=0.0025 for one that fits, or "
            f"construct with that {name}"
        ]


@pytest.mark.parametrize("of", ["velocity_std", "warn_of_first_rate"])
def test_a_warning_names_the_file_of_the_caller(of):
    """It names the caller of the function that calls, an optimizer; beyond the two is pytest."""
    arguments = {"velocity_std": (0.0,), "warn_of_first_rate": (1.0, 20.0, 1.0)}[of]

    def optimizer():
        getattr(hp, of)(*arguments)

    with pytest.warns(UserWarning, match="^learning_rate is") as caught:
        optimizer()
    assert caught[0].filename == __file__


def test_no_warning_if_sigma_is_defined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hp.velocity_std(0.0, alpha=0.0) == 0.0
        assert hp.velocity_std(0.0, 0.01, 0.2) == 0.2


@pytest.mark.parametrize("learning_rate", [5e-324, 1e-311])
def test_a_quotient_that_overflows_is_refused(learning_rate):
    with pytest.raises(ValueError, match=f"^learning_rate must not .* got {learning_rate!r}"):
        hp.velocity_std(learning_rate, 0.01)
    assert math.isfinite(hp.velocity_std(learning_rate, 0.01, 1.0))


@pytest.mark.parametrize("value", [True, "0.1", b"0.1", None, [0.1], 1j])
def test_values_that_are_not_numbers_are_refused(value):
    with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0, got"):
        hp.validate(learning_rate=value)


@pytest.mark.parametrize("written", [0.3, 0.1, 0.07, 1e-5, 0.0])
def test_the_written_decimal_is_recovered_from_float32(written):
    assert hp.as_float(np.float32(written)) == written
    assert hp.as_float(np.asarray(written, np.float32)) == written
    assert hp.velocity_std(np.float32(0.3), 0.01) == 0.01 / 0.3


@pytest.mark.parametrize("number", [Fraction, Decimal, np.float64])
def test_numbers_of_the_standard_library(number):
    assert hp.as_float(number("0.3")) == 0.3
    assert hp.velocity_std(number("0.5"), number("0.25")) == 0.5


@pytest.mark.parametrize("learning_rate", [5e-324, 1e-300, 1e-41])
def test_a_v0_that_overflows_float32_is_refused(learning_rate):
    with pytest.raises(ValueError, match="learning_rate must not be so small that alpha"):
        hp.velocity_std(learning_rate)
    with pytest.raises(ValueError, match=r"^lr must not be so small that alpha / lr "):
        hp.velocity_std(learning_rate, names={"learning_rate": "lr"})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_the_largest_v0_is_finite_and_a_larger_one_is_not(dtype):
    name, z = np.dtype(dtype).name, normal_quantiles().max()

    def largest(std):
        with np.errstate(over="ignore"):
            return (np.float32(std) * z).astype(dtype)

    std = hp.largest_velocity_std(name)
    assert np.isfinite(largest(std))
    assert not np.isfinite(largest(1.01 * std))  # std has three digits, rounded down
    hp.check_velocity_std(std, name)
    for over in (1.001 * std, float("inf")):
        message = rf"^velocity_std must be in \[0, {std:g}\] for V_0 in {name}, got {over!r}$"
        with pytest.raises(ValueError, match=message.replace("+", r"\+")):
            hp.check_velocity_std(over, name)


def test_the_message_names_the_origin_of_sigma():
    given = {"learning_rate": 1e-7, "alpha": 0.01, "names": {"learning_rate": "lr"}}
    with pytest.raises(ValueError, match=r"^lr must not .* overflows float16 .* got 1e-07$"):
        hp.check_velocity_std(0.01 / 1e-7, "float16", **given)
    with pytest.raises(ValueError, match=r"^velocity_std must be in .* got 20000.0$"):
        hp.check_velocity_std(2e4, "float16", **given)
    hp.check_velocity_std(2e4, "float64", **given)
    with pytest.raises(ValueError, match=r"^std must be in .* V_0 in float32, got 1e\+38$"):
        hp.check_velocity_std(1e38, names={"velocity_std": "std"})


@pytest.mark.parametrize("dtype", [np.float16, np.complex64, np.float32])
def test_the_reference_refuses_an_overflowing_v0(dtype):
    w = np.ones(1000, dtype)
    half = dtype is np.float16
    for optimizer, message in (
        (Gravity(1e-7), "learning_rate must not be so small .* float16 .* got 1e-07"),
        (Gravity(velocity_std=2e4), r"velocity_std must be in \[0, 15100\] .* got 20000.0"),
        # Equal to alpha / learning_rate, but given.
        (Gravity(5e-7, velocity_std=0.01 / 5e-7), "^velocity_std must be in "),
    ):
        if not half:
            optimizer.step([w.copy()], [w])
            continue
        with pytest.raises(ValueError, match=message):
            optimizer.step([np.ones(3, np.float32), w], [np.ones(3, np.float32), w])
        assert optimizer.velocity is None
        assert optimizer.count == 0
        assert (w == 1).all()


NO_NUMBERS = [
    np.asarray(True),
    np.bool_(True),
    np.asarray(0.1j),
    np.complex64(0.1),
    np.asarray(0.1, ml_dtypes.float8_e4m3fn),
    np.asarray("0.1"),
]


@pytest.mark.parametrize("name", ["learning_rate", "alpha", "beta", "velocity_std", "seed"])
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_arrays_of_non_real_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
        hp.validate(**{name: value})
    assert str(caught.value).endswith(f", got {value!r}")


@pytest.mark.parametrize(
    "value", [np.asarray(1), np.uint8(1), np.asarray(0.5, ">f4"), ml_dtypes.bfloat16(0.5)], ids=repr
)
def test_arrays_of_one_real_number_pass(value):
    hp.validate(learning_rate=value, alpha=value, beta=value, velocity_std=value)


def significant_digits(number):
    return len(Decimal(repr(number)).normalize().as_tuple().digits)


@given(st.floats(0, width=32))
@example(999999995904.0)  # it stands for 1e12, whose repr is longer
def test_a_float32_stands_for_a_decimal_that_rounds_to_it(number):
    got = hp.as_float(np.float32(number))
    assert np.float32(got) == number
    assert significant_digits(got) <= min(significant_digits(number), 9)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_a_number_of_a_half_type_has_its_exact_value(kind):
    assert hp.as_float(kind(0.3)) == float(kind(0.3))


@pytest.mark.parametrize("name", ["learning_rate", "alpha", "beta", "weight_decay", "velocity_std"])
@pytest.mark.parametrize("kind", [np.float32, np.asarray, Fraction, Decimal, np.longdouble])
def test_a_number_means_the_same_at_every_entrance(name, kind):
    given = kind(0.3 if kind in (np.float32, np.asarray) else "0.3")
    assert hp.validate(**{name: given}) == {name: 0.3}
    optimizer = Gravity(**{name: given})
    assert getattr(optimizer, name) == 0.3
    if name in ("learning_rate", "alpha"):
        assert optimizer.velocity_std == Gravity(**{name: 0.3}).velocity_std
    setattr(optimizer, name, 0.5)
    setattr(optimizer, name, given)
    assert getattr(optimizer, name) == 0.3
    v = [x.tobytes() for x in (initial_velocity((9,), np.float64, std=s) for s in (given, 0.3))]
    assert v[0] == v[1]


@pytest.mark.parametrize(
    "value",
    [np.asarray([0.5]), [0.5], Decimal("sNaN"), np.longdouble("1e400"), np.ma.masked],
)
def test_only_one_number_is_a_number(value):
    for name in ("learning_rate", "alpha", "beta", "weight_decay", "velocity_std"):
        with pytest.raises(ValueError, match=f"^{name} must be .* number .* got"):
            Gravity(**{name: value})


@pytest.mark.parametrize(
    "value", [10**30, Decimal("0.5"), Fraction(1, 2), np.longdouble(0.5), -0.0]
)
def test_numbers_of_every_kind_become_floats(value):
    (number,) = hp.validate(learning_rate=value).values()
    assert (type(number), number) == (float, float(value))
    assert math.copysign(1, number) == 1  # alpha / -0.0 would be -inf


@pytest.mark.parametrize("value", [10**5000, Fraction(10**5000, 3)], ids=["integer", "fraction"])
def test_numbers_too_long_to_print_are_refused_by_their_kind(value):
    with pytest.raises(ValueError, match=r"^learning_rate must be .* got an? (integer|Fraction)"):
        hp.validate(learning_rate=value)


@pytest.mark.parametrize("options", [{"legacy": "1.13"}, {"precision": 2, "floatmode": "fixed"}])
def test_print_options_change_no_number(options):
    with np.printoptions(**options):
        assert hp.as_float(np.float32(0.6369617)) == 0.6369617


def test_a_refused_quotient_leaves_the_given_sigma():
    optimizer = Gravity(alpha=1e308, velocity_std=0.5)
    with pytest.raises(ValueError, match="alpha / learning_rate"):
        optimizer.velocity_std = None
    optimizer.learning_rate = 10.0  # this would warn if σ came from the first rate
    optimizer.step([np.ones(3)], [np.ones(3)])
    assert optimizer.velocity_std == 0.5


@pytest.mark.parametrize("integer", [0, 3, 2**70, np.uint8(7), np.asarray(5)], ids=repr)
def test_an_integer_of_every_kind_becomes_a_python_integer(integer):
    number = hp.checked_integer("steps", integer)
    assert (type(number), number) == (int, int(integer))


@pytest.mark.parametrize("value", [-1, -2, True, 1.0, "1", None, np.asarray(True), [1]], ids=repr)
def test_what_is_no_natural_number_is_named(value):
    message = re.escape(f"steps must be an integer >= 0, got {value!r}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        hp.checked_integer("steps", value)


def test_an_integer_of_too_many_bits_is_named():
    assert hp.checked_integer("index", 2**32 - 1, 32) == 2**32 - 1
    for value in (2**32, -1):
        message = re.escape(f"index must be an integer in [0, 2**32), got {value}")
        with pytest.raises(ValueError, match=f"^{message}$"):
            hp.checked_integer("index", value, 32)


class Symbol:
    """A number whose value is unknown, as of a compiler."""

    def __index__(self):
        raise AssertionError("the value must not be asked for")


@pytest.mark.parametrize(
    "number",
    [3, 0.5, Fraction(1, 2), np.float32(1), np.ones(2), Symbol(), SimpleNamespace(dtype="int32")],
    ids=lambda number: type(number).__name__,
)
def test_real_numbers_and_arrays_of_them_pass(number):
    hp.check_number("t", number)


@pytest.mark.parametrize("value", [None, "1", True, 1j, Decimal(1), [1.0], np.asarray(True)])
@pytest.mark.parametrize("requirement", [(), ("an integer >= 0",)])
def test_what_is_no_real_number_is_named(value, requirement):
    with pytest.raises(TypeError) as caught:
        hp.check_number("t", value, *requirement)
    (wanted,) = requirement or ("a real number",)
    assert str(caught.value) == f"t must be {wanted}, got {value!r}"


def test_a_subclass_of_an_array_is_no_number():
    with pytest.raises(TypeError, match=r"^t must be a numpy.ndarray or numpy.memmap, got rec"):
        hp.check_number("t", np.ones(2).view(np.recarray))


@pytest.mark.parametrize("bits", [1023, 1024, 1025])
def test_an_integer_that_no_float64_holds_is_shown_by_its_length(bits):
    number = 2 ** (bits - 1)
    assert hp.shown(number) == (f"an integer of {bits} bits" if bits > 1023 else str(number))


def test_an_array_of_one_number_is_that_number():
    assert hp.as_float(np.asarray([0.3], np.float32)) == 0.3
