"""Ranges and messages: one place for every adapter."""

import inspect
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_core import Gravity
from gravity_core import hyperparameters as hp
from tests.core import exact

NOT_NUMBERS = ["0.1", None, [], 1j, float("nan")]
NOT_FINITE = [float("inf"), -float("inf"), 10**309]
BAD = {
    "learning_rate": [*NOT_NUMBERS, *NOT_FINITE, -1e-300, -1],
    "alpha": [*NOT_NUMBERS, *NOT_FINITE, -0.01],
    "beta": [*NOT_NUMBERS, *NOT_FINITE, -0.1, 1.1, np.float32(1.5)],
    "weight_decay": [*NOT_NUMBERS, *NOT_FINITE, -0.01],
    "velocity_std": [x for x in [*NOT_NUMBERS, *NOT_FINITE, -0.01, 1e39] if x is not None],
    "seed": [*NOT_NUMBERS, *NOT_FINITE, -1, 2**64, 0.0, 1.5],
    "first_step": [*NOT_NUMBERS, *NOT_FINITE, -1, 2, 1.0],
}
GOOD = {
    "learning_rate": [0, 0.0, 5e-324, 0.1, 1e308, np.float32(0.1), Fraction(1, 10)],
    "alpha": [0, 0.01, 1e308],
    "beta": [0, 0.0, 0.9, 1, 1.0, np.float64(0.5)],
    "weight_decay": [0, 0.01, 1e308],
    "velocity_std": [None, 0, 0.1, 6e37],
    "seed": [0, 1, 2**64 - 1, np.uint64(2**64 - 1), np.int32(7)],
    "first_step": [0, 1, np.int64(1)],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in BAD for v in BAD[n]])
def test_bad_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
        hp.validate(**{name: value})
    assert str(caught.value).endswith(f", got {value!r}")
    with pytest.raises(ValueError, match=r"^their_name must be "):
        hp.validate(names={name: "their_name"}, **{name: value})
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Gravity(**{name: value})


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in GOOD for v in GOOD[n]])
def test_good_values_pass(name, value):
    assert hp.validate(**{name: value}) is None


def test_the_first_bad_value_is_reported_and_good_ones_before_it_are_not():
    with pytest.raises(ValueError, match=r"^beta must"):
        hp.validate(alpha=0.1, beta=2, learning_rate=-1)


def test_every_argument_of_the_optimizer_has_a_rule():
    assert set(inspect.signature(Gravity).parameters) == set(BAD) == set(GOOD) == set(hp._RULES)


def test_defaults_are_those_of_the_paper():
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


def test_a_learning_rate_of_zero_starts_from_rest_with_one_warning():
    with pytest.warns(UserWarning, match=r"^lr is 0 .* pass velocity_std") as caught:
        assert hp.velocity_std(0.0, names={"learning_rate": "lr"}) == 0.0
    assert len(caught) == 1


def test_no_warning_where_nothing_is_undefined():
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
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="learning_rate must be a finite number >= 0, got"):
        hp.validate(learning_rate=value)


@pytest.mark.parametrize("written", [0.3, 0.1, 0.07, 1e-5, 0.0])
def test_the_number_that_was_written_is_read_from_float32(written):
    assert hp.as_float(np.float32(written)) == written
    assert hp.as_float(np.asarray(written, np.float32)) == written
    assert hp.velocity_std(np.float32(0.3), 0.01) == 0.01 / 0.3


@pytest.mark.parametrize("learning_rate", [5e-324, 1e-300, 1e-41])
def test_a_first_velocity_that_would_overflow_float32_is_refused(learning_rate):
    with pytest.raises(ValueError, match="learning_rate must not be so small that alpha"):
        hp.velocity_std(learning_rate)
