"""gravity_torch.diagnose."""

import copy

import numpy as np
import pytest

import gravity_core

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity, diagnose  # noqa: E402
from tests.support.torch_helpers import assert_same, give_gradients, network, values  # noqa: E402


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_the_rows_are_those_of_the_parameters_with_a_gradient(dtype):
    model = network().to(dtype)
    first, *rest = model.named_parameters()
    last = rest.pop()[1]
    optimizer = Gravity(
        [{"params": [first], "first_step": 0}, {"params": rest}, {"params": [("last", last)]}],
        lr=torch.tensor(0.1),
    )
    params = list(model.parameters())
    give_gradients(params, 0, scale=10.0)
    params[1].grad = None
    optimizer.step()
    before = values(params), copy.deepcopy(optimizer.state_dict())
    rows = diagnose(optimizer)
    assert [row.name for row in rows] == ["0.weight", "2.weight", "last"]
    first = params[0].grad
    parts = torch.view_as_real(first) if first.is_complex() else first
    assert rows[0].max_abs_grad == parts.abs().max()
    assert [round(row.v0_move, 4) for row in rows] == [0.0192, 0.0283, 0.0283]
    assert all("take the mean of the loss" in row.advice for row in rows)
    after = values(params), optimizer.state_dict()
    assert_same(before[0], after[0])
    for i, state in before[1]["state"].items():
        assert_same(state.values(), after[1]["state"][i].values())


def test_replaced_parameters_have_no_names():
    model = torch.nn.Linear(3, 2)
    optimizer = Gravity(model.named_parameters())
    optimizer.param_groups[0]["params"] = [model.weight]
    model.weight.grad = torch.ones(2, 3)
    assert [row.name for row in diagnose(optimizer)] == ["0 (2, 3)"]


def test_a_fine_tuning_with_v0():
    """V₀ moves every weight by 0.028, more than the weights of a wide layer."""
    model = torch.nn.Linear(2000, 2)
    for std, advised in ((None, True), (0.0, False)):
        optimizer = Gravity(model.parameters(), lr=0.01, velocity_std=std)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.1)
        table = str(diagnose(optimizer))
        assert ("pass velocity_std=0" in table) == advised
        assert "0 (2, 2000)" in table
        head = "tensor max|G| beyond m V0 moves rms W advice"
        assert table.splitlines()[0].split() == head.split()


def row(weight, grad, **options):
    p = torch.nn.Parameter(torch.tensor(weight))
    p.grad = torch.tensor(grad)
    (found,) = diagnose(Gravity([p], lr=0.1, **options))
    return found


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
    move = row([1.0], [0.5], **options).v0_move
    # All terms have one sign, so their roundings add up at most. `diagnose` sums 1000 products of
    # β̂. The products after the 300th are below 0.9**n.
    roundings = 300 * (gravity_core.ErrorBound.ROUNDINGS + 2) * 2.0**-53
    np.testing.assert_allclose(w, -move * v0, rtol=roundings + 10 * 0.9**300)


def test_the_numbers():
    grad = np.full(100, 0.01, np.float32)
    grad[0] = -4.0
    grad[1:5] = 0.3  # beyond m = 1/4
    found = row(WEIGHT, grad)
    assert found.max_abs_grad == 4.0
    assert found.share_beyond == 0.05
    assert found.rms_weight == 0.5
    # c = 2.83 has two decimals.
    assert found.v0_move == pytest.approx(0.1 * 0.1 * 2.83, abs=0.1 * 0.1 * 0.005)
    assert "mean of the loss" in found.advice


ADVICE = [
    (WEIGHT, 0.1, {}, ""),
    (WEIGHT, np.nan, {}, "not finite"),
    (WEIGHT, np.inf, {}, "not finite"),
    (WEIGHT / 10, 0.1, {}, "velocity_std=0"),
    (WEIGHT / 10, 0.1, {"velocity_std": 0.0}, ""),
    (0 * WEIGHT, 0.1, {}, ""),  # a bias that starts at 0
    (WEIGHT, 1e-5, {"velocity_std": 0.0}, "raise the learning rate"),
    (WEIGHT[:0], 0.1, {}, ""),
    (WEIGHT * 1j, 0.1j, {}, ""),
]


@pytest.mark.parametrize(("weight", "value", "options", "advice"), ADVICE)
def test_the_advice(weight, value, options, advice):
    found = row(weight, np.full_like(weight, value), **options)
    assert bool(found.advice) == bool(advice)
    assert advice in found.advice


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda p, group: group.update(lr=-1),
            ValueError,
            "lr must be a finite number >= 0, got -1",
        ),
        (lambda p, group: group.pop("alpha"), ValueError, "alpha must be in each parameter group"),
        (
            lambda p, group: setattr(p, "grad", torch.ones(3).to_sparse()),
            RuntimeError,
            "Gravity does not support sparse gradients",
        ),
    ],
)
def test_what_a_step_refuses_is_refused(change, error, message):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Gravity([p])
    p.grad = torch.ones(3)
    change(p, optimizer.param_groups[0])
    for use in (optimizer.step, lambda: diagnose(optimizer)):
        with pytest.raises(error, match=message):
            use()


def test_parameters_without_values_are_refused():
    p = torch.nn.Parameter(torch.ones(3, device="meta"))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="the parameter must have values, got a tensor on meta"):
        diagnose(Gravity([p]))


def test_gradients_near_the_largest_half():
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    w.grad = torch.tensor([300.0, 1e-4], dtype=torch.float16)
    (row,) = diagnose(Gravity([w]))
    assert (row.max_abs_grad, row.share_beyond) == (300.0, 0.5)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_beside_zeros(value):
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.tensor([value, 0.0])
    (row,) = diagnose(Gravity([w]))
    assert row.advice == "the gradient is not finite: skip such steps"
