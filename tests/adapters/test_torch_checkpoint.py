"""gravity_torch.Gravity in checkpoints: torch.distributed.checkpoint, hooks, dtypes, devices."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler, swa_utils  # noqa: E402
from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import gravity_core  # noqa: E402
from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_torch import Gravity  # noqa: E402
from tests.support.limits import HANG  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    LR,
    PATHS,
    assert_same,
    assert_same_training,
    learning_rate,
    network,
    parameters,
    train,
    values,
    velocities,
)

# Checkpoints: torch.distributed.checkpoint in one process.

ONE_PROCESS = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def two_groups(model, tensor=False, **options):
    groups = [
        {"params": model[0].parameters(), "lr": learning_rate(tensor)},
        {"params": model[2].parameters(), "lr": learning_rate(tensor), "beta": 0.5},
    ]
    return Gravity(groups, **options)


@ONE_PROCESS
@PATHS
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
def test_distributed_checkpoint_in_one_process(tmp_path, tensor, flat, path):
    """If an optimizer has not stepped, torch first makes a step with a learning rate of 0."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = network()
    optimizer = two_groups(model, tensor, seed=3, weight_decay=0.1, **path)
    train(model, optimizer, range(4))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] / 2  # a scheduler does this; V₀ uses the first rate
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.save({"model": model.state_dict(), "optimizer": saved}, checkpoint_id=tmp_path)

    fresh = network()
    resumed = two_groups(fresh, tensor)
    state = {
        "model": fresh.state_dict(),
        "optimizer": get_optimizer_state_dict(fresh, resumed, options=options),
    }
    dcp.load(state, checkpoint_id=tmp_path)
    fresh.load_state_dict(state["model"])
    set_optimizer_state_dict(fresh, resumed, state["optimizer"], options=options)
    for old, new in zip(optimizer.param_groups, resumed.param_groups, strict=True):
        assert isinstance(new["lr"], torch.Tensor) == tensor
        assert {k: v for k, v in new.items() if k != "params"} == {
            k: v for k, v in old.items() if k != "params"
        }
    assert_same_training(model, optimizer, fresh, resumed)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_set_optimizer_state_dict_before_the_first_step(flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, fresh = network(), network()
    model[0].bias.requires_grad_(False)
    fresh[0].bias.requires_grad_(False)
    optimizer, resumed = two_groups(model, seed=3), two_groups(fresh)
    train(model, optimizer, range(4))
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    fresh.load_state_dict(model.state_dict())
    set_optimizer_state_dict(fresh, resumed, state, options=options)
    for m, o in ((model, optimizer), (fresh, resumed)):
        train(m, o, range(4, 7))
        assert m[0].bias not in o.state
    assert_same(values(model.parameters()), values(fresh.parameters()))


def test_a_checkpoint_before_the_first_step_counts_as_a_step():
    """torch creates the state by a step with lr = 0 and zero gradients. This step counts."""
    model = network()
    before = values(model.parameters())
    optimizer = Gravity(model.parameters(), foreach=False)
    get_optimizer_state_dict(model, optimizer)
    adam_model = network()
    adam = torch.optim.Adam(adam_model.parameters())
    get_optimizer_state_dict(adam_model, adam)
    steps = {int(s["step"]) for o in (optimizer, adam) for s in o.state.values()}
    assert steps == {1}
    assert_same(values(model.parameters()), before)
    for i, (w, v) in enumerate(zip(before, velocities(optimizer), strict=True)):
        v0 = gravity_core.initial_velocity(w.shape, np.float32, std=0.01 / LR, index=i)
        assert np.array_equal(v.numpy(), gravity_core.update(np.zeros_like(v0), v0, 1))


# Hooks.


def test_hooks_around_the_step_and_the_state_dict():
    (p,) = parameters((3,))
    optimizer = Gravity([p])
    calls = []

    def note(name, result=None):
        def hook(self, *_):
            assert self is optimizer
            calls.append(name)
            return result

        return hook

    optimizer.register_step_pre_hook(note("before", ((optimizer, lambda: 7.0), {})))
    optimizer.register_step_post_hook(note("after"))
    optimizer.register_state_dict_pre_hook(note("saving"))
    optimizer.register_state_dict_post_hook(
        lambda _, state: calls.append("saved") or state | {"note": "kept"}
    )
    optimizer.register_load_state_dict_pre_hook(note("loading"))
    optimizer.register_load_state_dict_post_hook(note("loaded"))
    everywhere = [
        register_optimizer_step_pre_hook(note("before all")),
        register_optimizer_step_post_hook(note("after all")),
    ]
    try:
        p.grad = torch.ones(3)
        assert optimizer.step() == 7.0  # the closure that the hook gave
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
    finally:
        for handle in everywhere:
            handle.remove()
    assert state["note"] == "kept"
    # Sorted, because torch does not define the order of a local and a global hook.
    assert sorted(calls[:2]) == ["before", "before all"]
    assert sorted(calls[2:4]) == ["after", "after all"]
    assert calls[4:] == ["saving", "saved", "loading", "loaded"]


def test_state_dict_hooks_translate_a_format():
    """Hooks on both sides store the velocity under another name."""

    def renamed(state_dict, old, new):
        state = {
            key: {new if name == old else name: x for name, x in values.items()}
            for key, values in state_dict["state"].items()
        }
        return state_dict | {"state": state}

    model, other = network(), network()
    optimizer, resumed = Gravity(model.parameters()), Gravity(other.parameters())
    optimizer.register_state_dict_post_hook(lambda _, s: renamed(s, "velocity", "speed"))
    resumed.register_load_state_dict_pre_hook(lambda _, s: renamed(s, "speed", "velocity"))
    train(model, optimizer, range(3))
    other.load_state_dict(model.state_dict())
    state = optimizer.state_dict()
    assert "speed" in state["state"][0]
    resumed.load_state_dict(copy.deepcopy(state))
    assert_same_training(model, optimizer, other, resumed)


def test_a_hook_unpacks_a_format():
    """The format has none of the keys of a state_dict."""
    model, other = network(), network()
    optimizer, resumed = Gravity(model.parameters()), Gravity(other.parameters())
    resumed.register_load_state_dict_pre_hook(lambda _, packed: packed["optimizer"])
    train(model, optimizer, range(3))
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict({"version": 2, "optimizer": optimizer.state_dict()})
    assert_same_training(model, optimizer, other, resumed)


# Changing the dtype or device of a model.


def test_a_loaded_state_takes_the_dtype_of_the_parameters():
    model, wide = network(), network(torch.float64)
    results = []
    for cls, name in ((Gravity, "velocity"), (torch.optim.Adam, "exp_avg")):
        optimizer, resumed = cls(model.parameters()), cls(wide.parameters())
        train(model, optimizer, range(3))
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        state = resumed.state[wide[0].weight]
        assert torch.equal(state[name], optimizer.state[model[0].weight][name].double())
        results.append((state[name].dtype, state["step"].dtype, int(state["step"])))
        train(wide, resumed, [3])
        assert state[name].dtype == torch.float64
    assert results[0] == results[1] == (torch.float64, torch.float32, 3)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_state_moves_to_the_device_of_the_parameters(capturable):
    """`meta` stands for another device. The counter moves only if it is `capturable`."""
    model, elsewhere = network(), network().to("meta")
    optimizer = Gravity(model.parameters(), capturable=capturable)
    train(model, optimizer, [0])
    resumed = Gravity(elsewhere.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    state = resumed.state[elsewhere[0].weight]
    assert state["velocity"].device.type == "meta"
    assert state["step"].device.type == ("meta" if capturable else "cpu")


@PATHS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_changes_its_dtype_before_the_first_step(dtype, path):
    model, other = network(), network(dtype)
    optimizer = Gravity(model.parameters(), **path)
    model.to(dtype)
    assert_same_training(model, optimizer, other, Gravity(other.parameters(), **path))
    assert all(v.dtype == dtype for v in velocities(optimizer))


# A convolutional network on the digits, interrupted and resumed by another process.


def train_on_digits(first, last, state=None, saved=None):
    """Train on batches `first` to `last` − 1; return the state and the average's accuracy.

    `saved` is a pair: the index of a batch, and a file to store the state before that batch.
    """
    task = digits_task("float32", seed=0, steps=last, options={})
    x, y = torch.tensor(task.x_train).view(-1, 1, 8, 8), torch.tensor(task.y_train).long()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten()
    )
    model.append(nn.Linear(256, 10))
    optimizer = Gravity(model.parameters())
    scheduler = lr_scheduler.SequentialLR(
        optimizer,
        [
            lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=20),
            lr_scheduler.CosineAnnealingLR(optimizer, T_max=430),
        ],
        milestones=[20],
    )
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.95))
    parts = {"model": model, "scheduler": scheduler, "optimizer": optimizer, "average": average}
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    batches = [torch.tensor(b) for epoch in task.epochs for b in epoch]
    for index in range(first, last):
        if saved and index == saved[0]:
            torch.save({name: part.state_dict() for name, part in parts.items()}, saved[1])
        batch = batches[index]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
    predicted = average(torch.tensor(task.x_test).view(-1, 1, 8, 8)).argmax(dim=1).numpy()
    accuracy = float((predicted == task.y_test).mean())
    return {name: part.state_dict() for name, part in parts.items()}, accuracy


def resume_on_digits(before, after, first, last, threads):
    torch.set_num_threads(threads)
    state, _ = train_on_digits(first, last, torch.load(before, weights_only=True))
    torch.save(state, after)


def flattened(tree):
    if isinstance(tree, dict):
        return {f"{k}.{n}": v for k, t in tree.items() for n, v in flattened(t).items()}
    if isinstance(tree, list):
        return flattened(dict(enumerate(tree)))
    return {"": tree}


@pytest.mark.slow
def test_another_process_resumes_the_training(tmp_path):
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    expected, accuracy = train_on_digits(0, 450, saved=(300, before))
    assert accuracy > 0.9
    numbers = f"300, 450, {torch.get_num_threads()}"
    code = f"import {__name__} as t; t.resume_on_digits({str(before)!r}, {str(after)!r}, {numbers})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=root, env=environment, check=True, timeout=HANG)
    got, expected = flattened(torch.load(after, weights_only=True)), flattened(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(got[name], value), name
