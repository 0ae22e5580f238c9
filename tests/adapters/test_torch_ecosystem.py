"""gravity_torch.Gravity with other parts of torch, as a replacement for torch.optim.SGD."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from torch import nn  # noqa: E402
from torch.optim import lr_scheduler, swa_utils  # noqa: E402

import gravity_core  # noqa: E402
from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_torch import Gravity  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    LR,
    U,
    assert_same,
    assert_same_training,
    backward,
    network,
    parameters,
    train,
    values,
    velocities,
)

# Older versions of torch (such as 2.8) give these warnings in their own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]


# Mixed precision.


def test_gradient_scaler_gives_the_bits_of_the_unscaled_run():
    """A power of two scales exactly, and a skipped step with an inf leaves no trace."""
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


def test_weight_averaging_does_not_affect_the_run():
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


# The step inside the backward pass.


def test_optimizer_in_backward_equals_the_ordinary_run():
    """Both runs start from rest, because separate optimizers would draw another V₀."""
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


def test_an_optimizer_per_parameter_needs_a_seed_per_parameter():
    """With the same seed, tensors of equal shape start with equal V₀."""
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


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from the import below
def test_apply_optimizer_in_backward_of_torch():
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
    """Members of a stack share one max|G|, and so depend on each other.

    `stack_module_state` makes the stack. Slices of it share its memory and have their own maxima.
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


# Common patterns in users' code.


def test_the_closure_runs_with_gradients_and_its_loss_is_returned():
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
    """A user's subclass with another default, a new argument, and work before the step."""

    def __init__(self, params, lr=0.3, *, largest=0.1, **options):
        super().__init__(params, lr, **options)
        self.largest = largest

    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_value_(params, self.largest)
        return super().step(closure)


def test_a_users_subclass():
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
    # torch pickles the groups, state and defaults of an optimizer, but no attributes of a subclass.
    copied = pickle.loads(pickle.dumps(optimizer))
    assert isinstance(copied, Clipped)
    assert copied.param_groups[0]["velocity_std"] == 0.01 / 0.3
    assert_same(velocities(copied), velocities(optimizer))


class Several(torch.optim.Optimizer):
    """A wrapper around several optimizers, as in other libraries. It has all their groups."""

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


def test_a_wrapper_around_several_optimizers():
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
