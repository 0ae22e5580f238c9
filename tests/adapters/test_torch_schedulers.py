"""gravity_torch.Gravity under every learning-rate scheduler of torch."""

import copy
import inspect
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from torch import nn  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

import gravity_core  # noqa: E402
from gravity_torch import Gravity  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    LR,
    PATHS,
    SHAPES,
    U,
    assert_same,
    give_gradients,
    learning_rate,
    parameters,
    run,
    values,
    velocities,
)

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
# All schedulers of torch, so that a new one fails until it is covered here.
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


@PATHS
@pytest.mark.parametrize("tensor", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_equals_rates_set_by_hand(name, tensor, path):
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
def test_the_plain_loop_with_a_scheduler_has_the_bits_of_numpy(name):
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
    """Pass cycle_momentum=False, as for torch's own optimizers without momentum."""
    for optimizer in (Gravity(parameters((2,))), torch.optim.Adagrad(parameters((2,)))):
        with pytest.raises(ValueError, match="optimizer must support momentum"):
            schedule(optimizer)


def test_rates_set_by_hand_reach_every_group():
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


# torch's recipe for a compiled step with a scheduler. Dynamo imports code that warns of torch.jit.
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
        # Both sides make ten updates of values below 8. The float32 learning rate adds a rounding.
        assert (a - b).abs().max() <= 10 * 2 * (gravity_core.ErrorBound.ROUNDINGS + 1) * U * 8
