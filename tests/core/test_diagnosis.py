"""The numbers and the advice of gravity_core.diagnosis."""

import numpy as np
import pytest

import gravity_core
from gravity_core.diagnosis import Diagnosis, row, v0_factor

USUAL = {"learning_rate": 0.1, "beta": 0.9, "velocity_std": 0.1, "first_step": 1}
WEIGHT = np.full(100, 0.5, np.float32)


@pytest.mark.parametrize("first_step", [0, 1])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_way_of_a_weight_by_v0_alone(beta, first_step):
    options = {"beta": beta, "first_step": first_step, "velocity_std": 1.0}
    optimizer = gravity_core.Gravity(0.1, **options)
    (w,), zero = [np.zeros(1000)], np.zeros(1000)
    for _ in range(300):
        optimizer.step([w], [zero])
    (v0,) = [gravity_core.initial_velocity(w.shape, w.dtype, std=1.0)]
    np.testing.assert_allclose(w, -0.1 * v0_factor(beta, first_step) * v0, rtol=1e-9)


def test_the_numbers():
    grad = np.full(100, 0.01, np.float32)
    grad[0] = -4.0
    grad[1:5] = 0.3  # beyond m = 1/4
    found = row("w", WEIGHT, grad, **USUAL)
    assert found.max_abs_grad == 4.0
    assert found.share_beyond == 0.05
    assert found.rms_weight == 0.5
    assert found.v0_move == pytest.approx(0.1 * 0.1 * 2.83, rel=1e-3)
    assert "mean of the loss" in found.advice


ADVICE = [
    (WEIGHT, 0.1, {}, ""),
    (WEIGHT, np.nan, {}, "not finite"),
    (WEIGHT, np.inf, {}, "not finite"),
    (WEIGHT / 10, 0.1, {}, "velocity_std=0"),
    (WEIGHT / 10, 0.1, {"velocity_std": 0.0}, ""),
    (0 * WEIGHT, 0.1, {}, ""),  # a bias that starts at 0
    (WEIGHT, 0.1, {"learning_rate": 5e-6, "velocity_std": 0.0}, "raise the learning rate"),
    (WEIGHT[:0], 0.1, {}, ""),
    (WEIGHT * 1j, 0.1j, {}, ""),
]


@pytest.mark.parametrize(("weight", "value", "options", "advice"), ADVICE)
def test_the_advice(weight, value, options, advice):
    found = row("w", weight, np.full_like(weight, value), **USUAL | options)
    assert bool(found.advice) == bool(advice)
    assert advice in found.advice


def test_the_table():
    rows = tuple(row(name, WEIGHT, WEIGHT / 5, **USUAL) for name in ("a", "b"))
    head, *lines = str(Diagnosis(rows)).splitlines()
    assert head.split()[0] == "tensor"
    assert [line.split() for line in lines] == [
        ["a", "0.1", "0.0%", "0.028", "0.5"],
        ["b", "0.1", "0.0%", "0.028", "0.5"],
    ]
