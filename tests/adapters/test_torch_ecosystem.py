"""gravity_torch.Gravity under the rest of torch: what works with torch.optim.SGD works with it."""

import copy
import inspect
import io
import os
import pickle
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
from tests.adapters.test_torch import (  # noqa: E402
    assert_same,
    give_gradients,
    parameters,
    run,
    values,
)

# Of older versions of torch (2.8, say), inside themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]

SHAPES = ((3, 4), (4,), (4,), ())
LR = 0.1  # of the optimizers, when they are constructed
PATHS = pytest.mark.parametrize("path", [{}, {"foreach": False}], ids=["default", "plain"])
U = 2.0**-24  # unit roundoff of float32


def network(dtype=torch.float32):
    """Return a small network, the same one each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def backward(model, number):
    """Give the model the gradients of batch `number`."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 4, generator=generator).to(next(model.parameters()).dtype)
    model.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    return loss


def train(model, optimizer, numbers):
    for number in numbers:
        backward(model, number)
        optimizer.step()


def velocities(optimizer):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [optimizer.state[p]["velocity"].clone() for p in params]


def assert_same_training(model, optimizer, other_model, other_optimizer):
    """Both go on alike, bit for bit."""
    for m, o in ((model, optimizer), (other_model, other_optimizer)):
        train(m, o, range(100, 103))
    assert_same(values(model.parameters()), values(other_model.parameters()))
    assert_same(velocities(optimizer), velocities(other_optimizer))


# Learning-rate schedulers.

SCHEDULES = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: min(n / 4, 1.0)),  # warm-up from 0
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 7], gamma=0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=1e-3, total_iters=6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.CosineAnnealingLR(o, T_max=8)],
        milestones=[4],
    ),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2.0),  # down to 0
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=4), lr_scheduler.ExponentialLR(o, gamma=0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.0, 0.3, step_size_up=3, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=4),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=12, cycle_momentum=False),
}
# Whatever torch has, so that a scheduler that is new there fails until it is covered here.
NAMES = sorted(
    name
    for name, c in vars(lr_scheduler).items()
    if inspect.isclass(c) and issubclass(c, lr_scheduler.LRScheduler)
    if name not in ("LRScheduler", "_LRScheduler")
)
STEPS = 12


def advance(scheduler):
    on_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    scheduler.step(1.0) if on_plateau else scheduler.step()


def rates(name, lr):
    """Return the learning rates that torch's own SGD gets from the schedule."""
    p = nn.Parameter(torch.zeros(1))
    p.grad = torch.zeros(1)
    sgd = torch.optim.SGD([p], lr=lr)
    scheduler = SCHEDULES[name](sgd)
    result = []
    for _ in range(STEPS):
        result.append(copy.deepcopy(sgd.param_groups[0]["lr"]))
        sgd.step()
        advance(scheduler)
    assert len({float(rate) for rate in result}) > 1
    return result


def learning_rate(tensor):
    return torch.tensor(LR, dtype=torch.float64) if tensor else LR


@PATHS
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_scheduler_is_the_same_as_rates_set_by_hand(name, tensor, path):
    params, by_hand = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = Gravity(params, lr=learning_rate(tensor), **path)
    scheduler = SCHEDULES[name](optimizer)
    other = Gravity(by_hand, lr=learning_rate(tensor), **path)
    for number, rate in enumerate(rates(name, learning_rate(tensor))):
        run(optimizer, params, [number])
        advance(scheduler)
        other.param_groups[0]["lr"] = rate
        run(other, by_hand, [number])
    assert_same(values(params), values(by_hand))


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_loop_under_a_scheduler_has_the_bits_of_numpy(name):
    params = parameters(*SHAPES)
    w = [p.numpy().copy() for p in values(params)]
    v = [
        gravity_core.initial_velocity(x.shape, x.dtype, std=0.01 / LR, index=i)
        for i, x in enumerate(w)
    ]
    optimizer = Gravity(params, lr=LR, foreach=False)
    scheduler = SCHEDULES[name](optimizer)
    for number, rate in enumerate(rates(name, LR)):
        run(optimizer, params, [number])
        advance(scheduler)
        for i, p in enumerate(params):
            v[i] = gravity_core.update(p.grad.numpy(), v[i], number + 1)
            w[i] = np.asarray(w[i] - rate * v[i])
    assert_same(values(params), [torch.from_numpy(x) for x in w])


@PATHS
@pytest.mark.parametrize("name", NAMES)
def test_scheduler_and_optimizer_resume(name, path):
    runs = []
    for stop in (None, 5):
        params = parameters(*SHAPES)
        optimizer = Gravity(params, **path)
        scheduler = SCHEDULES[name](optimizer)
        for number in range(STEPS):
            if number == stop:
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                buffer.seek(0)
                schedule = copy.deepcopy(scheduler.state_dict())  # may hold functions
                params = [nn.Parameter(w) for w in values(params)]
                optimizer = Gravity(params, **path)
                scheduler = SCHEDULES[name](optimizer)
                scheduler.load_state_dict(schedule)
                optimizer.load_state_dict(torch.load(buffer, weights_only=True))
            run(optimizer, params, [number])
            advance(scheduler)
        runs.append(values(params))
    assert_same(*runs)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=12),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.3),
    ],
    ids=["OneCycleLR", "CyclicLR"],
)
def test_there_is_no_momentum_to_cycle(schedule):
    """As with torch's own optimizers that have none: pass cycle_momentum=False."""
    for optimizer in (Gravity(parameters((2,))), torch.optim.Adagrad(parameters((2,)))):
        with pytest.raises(ValueError, match="optimizer must support momentum"):
            schedule(optimizer)


def test_schedule_by_hand_reaches_every_group():
    a, b = parameters((3,), (3,))
    optimizer = Gravity([{"params": [a], "lr": 0.3}, {"params": [b]}])
    before = values([a, b])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    run(optimizer, [a, b], [0])
    assert_same(values([a, b]), before)
    for group in optimizer.param_groups:
        group["lr"] = 0.2
    run(optimizer, [a, b], [1])
    for p, w, v in zip((a, b), before, velocities(optimizer), strict=True):
        assert (p.detach() - (w - 0.2 * v)).abs().max() <= 4 * U * w.abs().max().clamp(min=1)


# torch's recipe for a compiled step with a scheduler; Dynamo imports what warns of torch.jit.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["LambdaLR", "OneCycleLR"])
def test_compiled_step_with_a_scheduler_compiles_once(name):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    params, plain = parameters(*SHAPES), parameters(*SHAPES)
    optimizer, other = Gravity(params, lr=torch.tensor(LR)), Gravity(plain, foreach=False)
    schedulers = [SCHEDULES[name](o) for o in (optimizer, other)]

    @torch.compile(fullgraph=False, backend=counter)
    def step():
        optimizer.step()
        schedulers[0].step()

    for number in range(10):
        give_gradients(params, number)
        give_gradients(plain, number)
        step()
        other.step()
        schedulers[1].step()
    assert counter.frame_count == 1
    for a, b in zip(values(params), values(plain), strict=True):
        # Ten updates on both sides of values below 8; a float32 learning rate is one more rounding.
        assert (a - b).abs().max() <= 10 * 2 * (gravity_core.ErrorBound.ROUNDINGS + 1) * U * 8


# Mixed precision.


def test_gradient_scaler_leaves_the_bits_of_the_unscaled_run():
    """A scale of a power of two is exact, and a step with an inf is skipped as if it never was."""
    model, other = network(), network()
    optimizer, plain = Gravity(model.parameters()), Gravity(other.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(6):
        if number == 3:
            model.zero_grad()
            scaler.scale(model(torch.full((1, 4), 1.0)).sum() * float("inf")).backward()
            before = values(model.parameters())
            scaler.step(optimizer)
            scaler.update()
            assert_same(values(model.parameters()), before)
            assert scaler.get_scale() == 2.0**9
        model.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        scaler.scale(model(x).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    train(other, plain, range(6))
    assert_same_training(model, optimizer, other, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(dtype):
    task = digits_task("float32", seed=0, steps=180, options={})
    x, y = torch.tensor(task.x_train), torch.tensor(task.y_train).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = Gravity(model.parameters())
    # The float16 gradients of the first steps overflow with this scale.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, enabled=dtype == torch.float16)
    losses, skipped = [], 0
    for batch in (torch.tensor(b) for epoch in task.epochs for b in epoch):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            output = model(x[batch])
            loss = nn.functional.cross_entropy(output.float(), y[batch])
        assert output.dtype == dtype
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
        losses.append(loss.item())
    assert (skipped > 0) == (dtype == torch.float16)
    assert optimizer.state[model[0].weight]["step"] == len(losses) - skipped
    assert all(v.dtype == torch.float32 for v in velocities(optimizer))
    assert np.mean(losses[-45:]) < 0.7 * np.mean(losses[:45])


# Averages of the weights.


def test_averages_of_the_weights_do_not_disturb_the_run():
    model, other = network(), network()
    optimizer, plain = Gravity(model.parameters()), Gravity(other.parameters())
    scheduler = swa_utils.SWALR(optimizer, swa_lr=0.03, anneal_epochs=4)
    mean = swa_utils.AveragedModel(model)
    moving = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.75))
    by_hand, history = None, []
    for number in range(8):
        plain.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        train(model, optimizer, [number])
        train(other, plain, [number])
        scheduler.step()
        for average in (mean, moving):
            average.update_parameters(model)
        now = [w.double() for w in values(model.parameters())]
        history.append(now)
        by_hand = by_hand or now
        by_hand = [0.75 * a + 0.25 * w for a, w in zip(by_hand, now, strict=True)]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03)
    assert_same(values(model.parameters()), values(other.parameters()))
    averages = [torch.stack(ws).mean(dim=0) for ws in zip(*history, strict=True)]
    for average, expected in ((mean, averages), (moving, by_hand)):
        for a, e in zip(average.parameters(), expected, strict=True):
            # Each of eight updates of the average rounds a difference, a product and a sum.
            assert (a - e).abs().max() <= 8 * 4 * U * max(1.0, e.abs().max())


def test_batch_normalization_of_an_average():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimizer = Gravity(model.parameters())
    average = swa_utils.AveragedModel(model)
    for batch in x.split(16):
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
    swa_utils.update_bn(x.split(16), average)
    with torch.no_grad():
        inputs = average.module[0](x)
    # The sum of 64 values rounds 64 times at most, in either order.
    bound = 2 * 64 * U * inputs.abs().max()
    assert (average.module[1].running_mean - inputs.mean(dim=0)).abs().max() <= bound
    assert (model[1].running_mean - inputs.mean(dim=0)).abs().max() > bound


# The step inside of the backward pass.


def test_optimizer_in_backward_equals_the_ordinary_run():
    """From rest, because an optimizer of one parameter each would draw another V₀."""
    model, other = network(), network()
    plain = Gravity(other.parameters(), velocity_std=0.0)
    optimizers = {p: Gravity([p], velocity_std=0.0) for p in model.parameters()}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    for number in range(5):
        backward(model, number)
        assert all(p.grad is None for p in model.parameters())
    train(other, plain, range(5))
    assert_same(values(model.parameters()), values(other.parameters()))


def test_optimizers_of_one_parameter_want_a_seed_each():
    """Alike they start tensors of one shape alike; the ordinary optimizer never does."""
    pairs = {}
    for kind, seeds in {"same": (0, 0), "own": (0, 1)}.items():
        params = parameters((50,), (50,))
        optimizers = [Gravity([p], seed=seed) for p, seed in zip(params, seeds, strict=True)]
        for optimizer, p in zip(optimizers, params, strict=True):
            p.grad = torch.zeros_like(p)
            optimizer.step()
        pairs[kind] = [
            optimizer.state[p]["velocity"] for optimizer, p in zip(optimizers, params, strict=True)
        ]
    assert torch.equal(*pairs["same"])
    assert not torch.equal(*pairs["own"])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # when imported
def test_torchs_own_optimizer_in_backward():
    from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers

    model, other = network(), network()
    _apply_optimizer_in_backward(Gravity, model.parameters(), {"velocity_std": 0.0})
    for number in range(5):
        backward(model, number)
    train(other, Gravity(other.parameters(), velocity_std=0.0), range(5))
    assert_same(values(model.parameters()), values(other.parameters()))
    steps = [o.state[o.param_groups[0]["params"][0]] for o in _get_in_backward_optimizers(model)]
    assert [int(state["step"]) for state in steps] == [5] * 4


# torch.func.


def test_functional_gradients_equal_those_of_backward():
    model, other = network(), network()
    optimizer, plain = Gravity(model.parameters()), Gravity(other.parameters())
    params = dict(model.named_parameters())  # the optimizer changes them in place

    def loss(params, x):
        return torch.func.functional_call(model, params, (x,)).square().sum()

    for number in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        for name, grad in torch.func.grad(loss)(params, x).items():
            params[name].grad = grad
        optimizer.step()
    train(other, plain, range(5))
    assert_same(values(model.parameters()), values(other.parameters()))


@pytest.mark.parametrize("stacked", [True, False])
def test_an_ensemble_in_one_tensor_shares_one_maximum(stacked):
    """One max|G| per tensor: members of a stack depend on each other.

    `stack_module_state` makes the stack; as slices, which are the same memory, they do not.
    """
    members = [network() for _ in range(3)]
    stack, _ = torch.func.stack_module_state(members)
    stack = {name: w.detach() for name, w in stack.items()}
    first = stack["0.weight"]
    params = [first] if stacked else list(first)
    optimizer = Gravity(params, velocity_std=0.0, foreach=False)

    def loss(params, x):
        return torch.func.functional_call(members[0], params, (x,)).square().sum()

    x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    x *= torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    grads = torch.func.vmap(torch.func.grad(loss))(stack, x)["0.weight"]
    for p, g in zip(params, [grads] if stacked else grads, strict=True):
        p.grad = g.clone()
    before = first.clone()
    optimizer.step()

    def one(g):
        return gravity_core.update(g.numpy(), np.zeros(g.shape, np.float32), 1)

    ensemble, separate = one(grads), np.stack([one(g) for g in grads])
    assert not np.array_equal(ensemble, separate)
    expected = ensemble if stacked else separate
    assert_same([first], [before - torch.from_numpy(expected) * LR])


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
    """Also into an optimizer that has not stepped: it steps with a learning rate of 0 first."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = network()
    optimizer = two_groups(model, tensor, seed=3, weight_decay=0.1, **path)
    train(model, optimizer, range(4))
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] / 2  # as a scheduler does; V₀ keeps the first
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
def test_set_optimizer_state_dict_into_an_optimizer_that_has_not_stepped(flat):
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


def test_a_checkpoint_before_the_first_step_counts_one():
    """What makes the state for it is a step with a rate and gradients of 0, which torch counts."""
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
    # Sorted inside of the step: the order of a hook here and one everywhere is torch's affair.
    assert sorted(calls[:2]) == ["before", "before all"]
    assert sorted(calls[2:4]) == ["after", "after all"]
    assert calls[4:] == ["saving", "saved", "loading", "loaded"]


def test_state_dict_hooks_translate_a_format():
    """A run that keeps its velocity under another name on disk, by hooks on both sides."""

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


# Parameters and groups.


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
    """A group with the option beside one without, as two optimizers would."""
    for_all_groups = {"differentiable", "fused"}  # autograd's mode; tests/adapters/test_torch.py
    assert set(OPTIONS) | for_all_groups == set(Gravity(parameters((1,))).defaults)
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
    if option not in ("foreach", "capturable"):  # the same formula another way
        assert not torch.equal(in_one[0], without[0])


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_groups_copied_into_another_optimizer(way):
    params = parameters((3, 4), (4,))
    optimizer = Gravity([{"params": [params[0]], "beta": 0.5}, {"params": [params[1]]}], seed=3)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # a warm-up that begins
    groups = way(optimizer.param_groups)
    other = Gravity(groups)
    copies = [p for group in groups for p in group["params"]]
    for o, ps in ((optimizer, params), (other, copies)):
        run(o, ps, [0])
        for group in o.param_groups:
            group["lr"] = 0.3
        run(o, ps, range(1, 4))
    assert_same(values(params), values(copies))


def test_a_shared_parameter_is_one():
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


def test_frozen_parameters_stay_and_keep_the_places_of_the_others():
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
def test_gradients_of_zero_are_not_gradients_of_none(path):
    """A zero gradient lets V decay and W move on by it, as momentum does; None does nothing."""
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


# Moving a model.


def test_a_state_takes_the_type_of_the_parameters_that_it_is_loaded_for():
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
def test_a_state_goes_to_the_device_of_the_parameters(capturable):
    """`meta` stands for another device; the counter goes along where the device counts."""
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
def test_a_module_changes_its_type_before_the_first_step(dtype, path):
    model, other = network(), network(dtype)
    optimizer = Gravity(model.parameters(), **path)
    model.to(dtype)
    assert_same_training(model, optimizer, other, Gravity(other.parameters(), **path))
    assert all(v.dtype == dtype for v in velocities(optimizer))


# The habits of users.


def test_closure_runs_with_gradients_and_its_loss_comes_back():
    model, other = network(), network()
    optimizer, plain = Gravity(model.parameters()), Gravity(other.parameters())
    for number in range(3):

        def closure(number=number):
            assert torch.is_grad_enabled()
            return backward(model, number)

        with torch.no_grad():
            loss = optimizer.step(closure)
        expected = backward(other, number)
        plain.step()
        assert torch.equal(loss, expected)
    assert_same(values(model.parameters()), values(other.parameters()))


def test_repr_shows_the_options():
    optimizer = Gravity([{"params": parameters((2,)), "beta": 0.5}, {"params": parameters((2,))}])
    text = repr(optimizer)
    assert text.startswith("Gravity (")
    assert "Parameter Group 1" in text
    for group in optimizer.param_groups:
        for name, value in group.items():
            assert name == "params" or f"    {name}: {value}\n" in text


class Clipped(Gravity):
    """A user's own: another default, an argument of its own, a step with something before it."""

    def __init__(self, params, lr=0.3, *, largest=0.1, **options):
        super().__init__(params, lr, **options)
        self.largest = largest

    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_value_(params, self.largest)
        return super().step(closure)


def test_a_subclass_of_a_user():
    model, other = network(), network()
    optimizer, plain = Clipped(model.parameters()), Gravity(other.parameters(), 0.3)
    lr_scheduler.ConstantLR(optimizer, factor=1.0)  # wraps the step
    for number in range(3):
        backward(model, number)
        optimizer.step()
        backward(other, number)
        for p in other.parameters():
            p.grad.clamp_(-0.1, 0.1)
        plain.step()
    assert_same(values(model.parameters()), values(other.parameters()))
    # torch pickles an optimizer's groups, state and defaults, but no attributes of a subclass.
    copied = pickle.loads(pickle.dumps(optimizer))
    assert isinstance(copied, Clipped)
    assert copied.param_groups[0]["velocity_std"] == 0.01 / 0.3
    assert_same(velocities(copied), velocities(optimizer))


class Several(torch.optim.Optimizer):
    """The wrapper for several optimizers as frameworks have it: groups and state of all in one."""

    def __init__(self, **optimizers):
        self.optimizers = optimizers
        super().__init__([g for o in optimizers.values() for g in o.param_groups], {})
        self.param_groups = [g for o in optimizers.values() for g in o.param_groups]

    def step(self, closure=None):
        for optimizer in self.optimizers.values():
            optimizer.step()

    def state_dict(self):
        return {name: o.state_dict() for name, o in self.optimizers.items()}

    def load_state_dict(self, state_dict):
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])


def test_beside_another_optimizer_under_a_wrapper():
    def make():
        model = network()
        return model, Several(
            gravity=Gravity(model[0].parameters()), sgd=torch.optim.SGD(model[2].parameters(), 0.1)
        )

    (model, optimizer), (other, resumed) = make(), make()
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    train(model, optimizer, range(2))
    scheduler.step()
    assert optimizer.optimizers["gravity"].param_groups[0]["lr"] == 0.05
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(2, 5))
    train(other, resumed, range(2, 5))
    assert_same(values(model.parameters()), values(other.parameters()))


# All together: a convolutional network on the digits, interrupted and taken up by another process.


def train_on_digits(first, last, state=None):
    """Run batches `first` to `last` from a state; return the state and the averaged accuracy."""
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
    for batch in batches[first:last]:
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


def test_training_taken_up_by_another_process(tmp_path):
    before, after = tmp_path / "before.pt", tmp_path / "after.pt"
    torch.save(train_on_digits(0, 200)[0], before)
    expected, accuracy = train_on_digits(0, 450)
    assert accuracy > 0.9
    numbers = f"200, 450, {torch.get_num_threads()}"
    code = f"import {__name__} as t; t.resume_on_digits({str(before)!r}, {str(after)!r}, {numbers})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=300)
    got, expected = flattened(torch.load(after, weights_only=True)), flattened(expected)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(got[name], value), name
