"""gravity_torch.Gravity as a torch optimizer: training, state, arguments, errors."""

import copy
import io
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import gravity_core  # noqa: E402
from gravity_core.conformance.digits import digits_task  # noqa: E402
from gravity_torch import Gravity  # noqa: E402


def parameters(*shapes, dtype=torch.float32):
    rng = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.tensor(rng.normal(size=s)).to(dtype)) for s in shapes]


def give_gradients(params, number):
    rng = np.random.default_rng([2, number])
    for p in params:
        p.grad = torch.tensor(rng.normal(size=tuple(p.shape))).to(p.dtype)


def run(optimizer, params, numbers):
    for number in numbers:
        give_gradients(params, number)
        optimizer.step()


def values(params):
    return [p.detach().clone() for p in params]


def assert_same(a, b):
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_trains_a_module_on_the_digits():
    task = digits_task("float32", seed=0, steps=450, options={})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = Gravity(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=450)
    x, y = torch.tensor(task.x_train), torch.tensor(task.y_train).long()
    for batch in (torch.tensor(b) for epoch in task.epochs for b in epoch):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        scheduler.step()
    predicted = model(torch.tensor(task.x_test)).argmax(dim=1).numpy()
    assert (predicted == task.y_test).mean() > 0.9


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_equals_the_numpy_optimizer(path, dtype):
    params = parameters((3, 4), (), (0,), (70_000,), dtype=dtype)
    reference = [p.detach().numpy().copy() for p in params]
    optimizer = Gravity(params, weight_decay=0.01, seed=5, **path)
    numpy_optimizer = gravity_core.Gravity(weight_decay=0.01, seed=5)
    for number in range(4):
        give_gradients(params, number)
        numpy_optimizer.step(reference, [p.grad.numpy() for p in params])
        optimizer.step()
    for p, w in zip(params, reference, strict=True):
        assert p.detach().numpy().tobytes() == w.tobytes()


def test_bfloat16_is_computed_in_float32_and_rounded_once():
    (p,) = parameters((1000,), dtype=torch.bfloat16)
    optimizer = Gravity([p], foreach=False)
    give_gradients([p], 0)
    v0 = gravity_core.initial_velocity((1000,), std=optimizer.param_groups[0]["velocity_std"])
    wide = p.detach().float().numpy()
    v = gravity_core.update(p.grad.float().numpy(), torch.tensor(v0).bfloat16().float().numpy(), 1)
    v = torch.tensor(v).bfloat16()
    expected = torch.tensor(wide - np.float32(0.1) * v.float().numpy()).bfloat16()
    optimizer.step()
    assert torch.equal(optimizer.state[p]["velocity"], v)
    assert torch.equal(p.detach(), expected)


def test_complex_parameters_are_pairs_of_reals():
    (p,) = parameters((5, 3), dtype=torch.complex64)
    real = torch.nn.Parameter(torch.view_as_real(p.detach()).clone())
    optimizer, real_optimizer = Gravity([p]), Gravity([real])
    for number in range(3):
        give_gradients([p], number)
        real.grad = torch.view_as_real(p.grad).clone()
        optimizer.step()
        real_optimizer.step()
    assert torch.equal(torch.view_as_real(p.detach()), real.detach())


def test_strided_parameters_equal_contiguous_ones():
    (p,) = parameters((6, 8))
    strided = torch.nn.Parameter(p.detach().t().contiguous().t())
    assert not strided.is_contiguous()
    for kind in ({"foreach": False}, {"foreach": True}):
        pair = [torch.nn.Parameter(x.detach().clone()) for x in (p, strided)]
        for x in pair:
            run(Gravity([x], **kind), [x], range(3))
        assert torch.equal(*values(pair))


@pytest.mark.parametrize("way", ["state_dict", "file", "deepcopy", "pickle"])
def test_resumes_bit_for_bit(way):
    params = parameters((3, 4), (4,))
    optimizer = Gravity(params, seed=3)
    run(optimizer, params, range(5))
    copies = [torch.nn.Parameter(w) for w in values(params)]
    if way == "deepcopy":
        copies, resumed = copy.deepcopy((params, optimizer))
    elif way == "pickle":
        copies, resumed = pickle.loads(pickle.dumps((params, optimizer)))
    else:
        resumed = Gravity(copies, lr=0.5, seed=99)  # all of which the state overrides
        state = copy.deepcopy(optimizer.state_dict())  # torch shares the tensors else
        if way == "file":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        resumed.load_state_dict(state)
    run(optimizer, params, range(5, 10))
    run(resumed, copies, range(5, 10))
    assert_same(values(params), values(copies))


def test_global_random_numbers_are_neither_used_nor_moved():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        params = parameters((100,))
        run(Gravity(params), params, range(2))
        assert torch.equal(torch.get_rng_state(), before)
        results.append(values(params))
    assert_same(*results)


def test_seed_and_position_choose_the_velocity():
    a, b = parameters((50,), (50,))
    b.data.copy_(a.data)
    optimizer = Gravity([{"params": [a]}, {"params": [b]}], seed=1)
    run(optimizer, [a, b], [0])
    va, vb = (optimizer.state[p]["velocity"] for p in (a, b))
    assert not torch.equal(va, vb)


def test_late_parameters_and_gradients_start_at_their_own_first_step():
    early, late, added = parameters((4,), (4,), (4,))
    optimizer = Gravity([early, late])
    run(optimizer, [early], range(3))
    assert late not in optimizer.state
    optimizer.add_param_group({"params": [added], "lr": 0.5})
    assert optimizer.param_groups[1]["velocity_std"] == 0.01 / 0.5
    run(optimizer, [early, late, added], [3])
    assert [int(optimizer.state[p]["step"]) for p in (early, late, added)] == [4, 1, 1]


def test_the_velocity_keeps_the_first_learning_rate():
    (p,) = parameters((1000,))
    optimizer = Gravity([p], lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0  # a warm-up from 0
    before = p.detach().clone()
    run(optimizer, [p], [0])
    assert torch.equal(p.detach(), before)
    assert optimizer.state[p]["velocity"].abs().max() < 1


def test_learning_rate_zero_starts_from_rest_and_says_so_once():
    (p,) = parameters((4,))
    with pytest.warns(UserWarning, match="lr is 0 at construction") as record:
        optimizer = Gravity([p], lr=0.0)
    assert len(record) == 1
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not optimizer.state[p]["velocity"].any()
    Gravity([p], lr=0.0, velocity_std=0.1)  # no warning


def test_maximize_and_closure():
    (p,) = parameters((4,))
    (q,) = (torch.nn.Parameter(p.detach().clone()),)
    p.grad, q.grad = torch.ones(4), -torch.ones(4)
    up, down = Gravity([p], maximize=True), Gravity([q])
    assert up.step(lambda: 7.0) == 7.0
    down.step()
    assert torch.equal(p, q)
    assert torch.equal(p.grad, torch.ones(4))  # gradients are not written to


def test_sparse_gradients_are_refused_before_anything_moves():
    dense, sparse = parameters((4,), (4,))
    dense.grad, sparse.grad = torch.ones(4), torch.ones(4).to_sparse()
    optimizer = Gravity([dense, sparse])
    before = values([dense, sparse])
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert_same(values([dense, sparse]), before)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -0.1}, "lr must be a finite number >= 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be a finite number >= 0, got nan"),
        ({"alpha": -1}, "alpha must be a finite number >= 0, got -1"),
        ({"beta": 1.5}, r"beta must be a number in \[0, 1\], got 1.5"),
        ({"weight_decay": -1}, "weight_decay must be a finite number >= 0, got -1"),
        ({"velocity_std": -1}, "velocity_std must be None or a finite number >= 0, got -1"),
        ({"seed": 0.5}, r"seed must be an integer in \[0, 2\*\*64\), got 0.5"),
        ({"first_step": 2}, "first_step must be 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Gravity(None, **arguments)  # checked before the parameters are looked at
    (p,) = parameters((2,))
    optimizer = Gravity([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": parameters((3,)), **arguments})
    assert len(optimizer.param_groups) == 1
