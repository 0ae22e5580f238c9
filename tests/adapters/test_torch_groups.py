"""Parameters and parameter groups of gravity_torch.Gravity."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from torch import nn  # noqa: E402

import gravity_core  # noqa: E402
from gravity_torch import Gravity  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    LR,
    PATHS,
    U,
    assert_same,
    backward,
    give_gradients,
    network,
    parameters,
    run,
    train,
    values,
    velocities,
)


def test_named_parameters_resume_in_another_order():
    model, other = network(), network()
    optimizer = Gravity(model.named_parameters())
    resumed = Gravity(reversed(list(other.named_parameters())), seed=7)
    train(model, optimizer, range(3))
    names = [name for name, _ in model.named_parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    assert state["param_groups"][0]["param_names"] == names
    assert resumed.param_groups[0]["param_names"] == names[::-1]

    def by_name(optimizer, state_dict):
        (saved,) = state_dict["param_groups"]
        keys = dict(zip(saved["param_names"], saved["params"], strict=True))
        wanted = optimizer.param_groups[0]["param_names"]
        group = saved | {"params": [keys[name] for name in wanted], "param_names": wanted}
        return state_dict | {"param_groups": [group]}

    resumed.register_load_state_dict_pre_hook(by_name)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    train(model, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert_same(values(model.parameters()), values(other.parameters()))


OPTIONS = {
    "lr": 0.2,
    "alpha": 0.02,
    "beta": 0.5,
    "weight_decay": 0.1,
    "velocity_std": 0.3,
    "seed": 4,
    "first_step": 0,
    "foreach": False,
    "maximize": True,
    "capturable": True,
}


@pytest.mark.parametrize("option", [*OPTIONS, "all"])
def test_every_option_per_group(option):
    """A group with the option and a group without it step like two optimizers."""
    tested_elsewhere = {"differentiable", "fused"}  # test_torch.py, test_torch_paths.py
    assert set(OPTIONS) | tested_elsewhere == set(Gravity(parameters((1,))).defaults)
    options = OPTIONS if option == "all" else {option: OPTIONS[option]}
    runs = []
    for together in (True, False, None):
        special, plain, placeholder = parameters((3, 4), (5,), (1,))
        if together is None:
            optimizers = [Gravity([special, plain])]
        elif together:
            optimizers = [Gravity([{"params": [special], **options}, {"params": plain}])]
        else:
            optimizers = [Gravity([special], **options), Gravity([placeholder, plain])]
        for number in range(3):
            give_gradients([special, plain], number)
            for optimizer in optimizers:
                optimizer.step()
        runs.append(values([special, plain]))
    in_one, in_two, without = runs
    assert_same(in_one, in_two)
    assert torch.equal(in_one[1], without[1])
    if option not in ("foreach", "capturable"):  # these use the same formula on another path
        assert not torch.equal(in_one[0], without[0])


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_groups_copied_into_another_optimizer(way):
    params = parameters((3, 4), (4,))
    optimizer = Gravity([{"params": [params[0]], "beta": 0.5}, {"params": [params[1]]}], seed=3)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # a warm-up starts
    groups = way(optimizer.param_groups)
    other = Gravity(groups)
    copies = [p for group in groups for p in group["params"]]
    for o, ps in ((optimizer, params), (other, copies)):
        run(o, ps, [0])
        for group in o.param_groups:
            group["lr"] = 0.3
        run(o, ps, range(1, 4))
    assert_same(values(params), values(copies))


def test_a_shared_parameter_is_updated_once():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    optimizer = Gravity(model.parameters())
    (p,) = optimizer.param_groups[0]["params"]
    before = p.detach().clone()
    nn.functional.cross_entropy(model(torch.arange(6)), torch.arange(6)).backward()
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    v = optimizer.state[p]["velocity"]
    assert (p.detach() - (before - LR * v)).abs().max() <= 4 * U * before.abs().max()
    with pytest.raises(ValueError, match="some parameters appear in more than one"):
        optimizer.add_param_group({"params": [model[1].weight]})


def test_frozen_parameters_stay_and_keep_their_index():
    model, other = network(), network()
    model[0].requires_grad_(False)
    frozen = values(model[0].parameters())
    optimizer, plain = Gravity(model.parameters()), Gravity(other.parameters())
    for m, o in ((model, optimizer), (other, plain)):
        o.zero_grad()
        m[2](torch.ones(3, 5)).square().sum().backward()
        o.step()
    assert_same(values(model[0].parameters()), frozen)
    assert set(optimizer.state) == set(model[2].parameters())
    assert_same(values(model.parameters()), values(other.parameters()))
    model[0].requires_grad_(True)
    train(model, optimizer, [0])
    assert [int(optimizer.state[p]["step"]) for p in model.parameters()] == [1, 1, 2, 2]


@PATHS
def test_zero_gradients_differ_from_missing_gradients(path):
    """With a zero gradient, V decays and W moves by η V. Without a gradient, nothing changes."""
    (p,) = parameters((3, 4))
    optimizer = Gravity([p], **path)
    run(optimizer, [p], range(2))
    w, v = p.detach().clone(), velocities(optimizer)[0]
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(p.detach(), w)
    give_gradients([p], 0)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is not None
    optimizer.step()
    expected = gravity_core.update(np.zeros((3, 4), np.float32), v.numpy(), 3)
    got = optimizer.state[p]["velocity"]
    assert np.array_equal(got.numpy(), expected)  # a product, rounded once
    assert (p.detach() - (w - LR * got)).abs().max() <= 4 * U * w.abs().max()


def test_gradient_clipping():
    model, other = network(), network()
    optimizer, plain = Gravity(model.parameters()), Gravity(other.parameters())
    for number in range(4):
        backward(model, number)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm > 0.5
        optimizer.step()
        backward(other, number)
        for p in other.parameters():
            p.grad = p.grad * (0.5 / (norm + 1e-6)).clamp(max=1.0)
        plain.step()
    assert_same(values(model.parameters()), values(other.parameters()))


def test_parametrizations():
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.orthogonal(model[2])
    optimizer = Gravity(model.parameters())
    before = values(model.parameters())
    losses = [backward(model, 0).item()]
    for _ in range(20):
        optimizer.step()
        losses.append(backward(model, 0).item())
    assert losses[-1] < losses[0]
    assert not any(map(torch.equal, before, values(model.parameters())))
