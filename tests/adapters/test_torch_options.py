"""Options that arrive in the groups of gravity_torch.Gravity after its construction."""

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity, export_state  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    assert_same,
    give_gradients,
    parameters,
    run,
    values,
)

PATHS = pytest.mark.parametrize(
    "path", [{}, {"foreach": True}, {"foreach": False}, {"capturable": True}], ids=str
)
WRONG = [
    ("lr", -1.0, "lr must be a finite number >= 0, got -1.0"),
    ("lr", math.nan, "lr must be a finite number >= 0, got nan"),
    ("lr", math.inf, "lr must be a finite number >= 0, got inf"),
    ("lr", "0.1", "lr must be a finite number >= 0, got '0.1'"),
    ("lr", None, "lr must be a finite number >= 0, got None"),
    ("lr", torch.tensor(-1.0), "lr must be a finite number >= 0, got .*-1.0"),
    ("lr", torch.tensor([0.1, 0.2]), "Tensor lr must be 1-element"),
    ("lr", torch.tensor(True), "lr must be a finite number >= 0, got tensor"),
    ("lr", torch.tensor([0.1]).to_sparse(), "lr must be dense, got layout torch.sparse_coo"),
    ("alpha", torch.tensor([0.1]).to_sparse(), "alpha must be dense, got layout torch.sparse_coo"),
    ("beta", 2.0, r"beta must be a number in \[0, 1\], got 2.0"),
    ("beta", math.nan, r"beta must be a number in \[0, 1\], got nan"),
    ("alpha", -1, "alpha must be a finite number >= 0, got -1"),
    ("weight_decay", -0.1, "weight_decay must be a finite number >= 0, got -0.1"),
    ("velocity_std", math.nan, "velocity_std must be None or a number in .*, got nan"),
    ("seed", -1, r"seed must be an integer in \[0, 2\*\*64\), got -1"),
    ("first_step", 2, "first_step must be 0 .* got 2"),
    ("maximize", "yes", "maximize must be True or False, got 'yes'"),
    ("maximize", None, "maximize must be True or False, got None"),
    ("maximize", 2, "maximize must be True or False, got 2"),
    ("capturable", math.nan, "capturable must be True or False, got nan"),
    ("foreach", "no", "foreach must be None, True or False, got 'no'"),
    ("fused", 3, "fused must be None, True or False, got 3"),
]


@PATHS
@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_wrong_value_is_refused_before_anything_moves(path, name, value, message):
    """It arrives in the last group, at a step that creates a state, or at a later one."""
    params, late = parameters((3,), (4,)), parameters((2,))
    optimizer = Gravity([{"params": [p]} for p in [*params, *late]], **path)
    with pytest.raises(ValueError, match=message):
        Gravity(parameters((3,)), **{name: value})
    run(optimizer, params, [0])
    group = optimizer.param_groups[2]
    right, group[name] = group[name], value
    give_gradients([*params, *late], 1)
    before = copy.deepcopy(optimizer.state_dict()["state"]), values([*params, *late])
    for _ in range(2):  # the second step has nothing new to check
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        with pytest.raises(ValueError, match=message):
            export_state(optimizer, group=2)
    after = optimizer.state_dict()["state"], values([*params, *late])
    assert after[0].keys() == before[0].keys()
    for i, state in before[0].items():
        assert_same(state.values(), after[0][i].values())
    assert_same(before[1], after[1])
    group[name] = right
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in [*params, *late]] == [2, 2, 1]


@PATHS
def test_a_tensor_that_is_filled_with_a_wrong_value(path):
    (p,) = parameters((3,))
    lr = torch.tensor(0.1)
    optimizer = Gravity([p], lr=lr, **path)
    for wrong in (-1.0, math.nan):
        lr.fill_(0.1)
        run(optimizer, [p], [0])
        before = values([p])
        lr.fill_(wrong)
        with pytest.raises(ValueError, match="lr must be a finite number >= 0"):
            optimizer.step()
        assert_same(before, values([p]))


RIGHT = [
    ("maximize", np.True_, True),
    ("maximize", 1, True),
    ("capturable", np.bool_(True), True),
    ("foreach", np.False_, False),
    ("beta", np.float64(0.5), 0.5),
    ("lr", 1, 1.0),
    ("lr", np.float64(0.25), 0.25),
    ("weight_decay", np.float32(0.5), 0.5),
    ("first_step", np.int64(0), 0),
]


@PATHS
@pytest.mark.parametrize(("name", "value", "plain"), RIGHT)
def test_a_value_of_another_type_counts_as_the_plain_one(path, name, value, plain):
    if name == "foreach" and path.get("foreach"):
        path = {}
    runs = []
    for given in (value, plain):
        params = parameters((3, 4), (4,))
        optimizer = Gravity(params, **path)
        run(optimizer, params, [0])
        if name == "capturable":  # counters do not move
            params = parameters((3, 4), (4,))
            optimizer = Gravity(params, **path)
        optimizer.param_groups[0][name] = given
        run(optimizer, params, [1, 2])
        runs.append(values(params))
        found = optimizer.param_groups[0][name]
        assert (type(found), found) == (type(plain), plain)
        (group,) = Gravity(parameters((3,)), **{name: given}).param_groups
        assert (type(group[name]), group[name]) == (type(plain), plain)
    assert_same(*runs)


def test_options_are_checked_when_they_change(monkeypatch):
    from gravity_torch import _options

    calls = []
    checked = _options.checked
    monkeypatch.setattr(_options, "checked", lambda *x, **y: calls.append(1) or checked(*x, **y))
    params = parameters((3,), (4,))
    optimizer = Gravity([{"params": [p]} for p in params])
    run(optimizer, params, [0])
    calls.clear()
    for number in range(1, 4):
        for group in optimizer.param_groups:
            group["lr"] *= 0.5  # a plain number has a quicker check
        run(optimizer, params, [number])
    assert not calls
    optimizer.param_groups[1]["beta"] = 0.5
    run(optimizer, params, [4, 5])
    assert calls == [1]
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": parameters((2,))})
    run(optimizer, params, [6])
    assert optimizer.state[params[1]]["step"] == 7


def test_a_rate_on_another_device_is_not_read():
    """A meta tensor stands for one on an accelerator: reading its value raises an error."""
    from gravity_torch._options import check_changes

    group = dict(Gravity(parameters((3,))).param_groups[0])
    for lr in (torch.tensor(0.1, device="meta"), torch.ones(1, device="meta")):
        group["lr"] = lr
        (before,) = [check_changes([group], [])]
        group["beta"] = np.float64(0.25)
        check_changes([group], before)
        assert group["lr"] is lr
        assert type(group["beta"]) is float
    for lr, message in (
        (torch.ones(2, device="meta"), "Tensor lr must be 1-element"),
        (torch.tensor(True, device="meta"), "lr must be a finite number"),
    ):
        group["lr"] = lr
        with pytest.raises(ValueError, match=message):
            check_changes([group], before)


def test_a_rate_inside_torch_func_is_not_read():
    def loss(lr):
        p = torch.ones(3, dtype=torch.float64, requires_grad=True).clone()
        p.grad = torch.full((3,), 0.5, dtype=torch.float64)
        optimizer = Gravity([p], differentiable=True, foreach=False, velocity_std=0.1)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        return p.sum()

    lr = torch.tensor(0.1, dtype=torch.float64)
    derivative = torch.func.grad(loss)(lr)
    h = 2.0**-10  # the loss is linear in lr
    assert abs(derivative - (loss(lr + h) - loss(lr)) / h) < 1e-9
