"""gravity_torch.Gravity as a torch optimizer: training, state, arguments, errors."""

import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import gravity_core  # noqa: E402
from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_torch import (  # noqa: E402
    Gravity,
    _items,
    _multi_tensor,
    _multi_tensor_gpu,
    _paths,
    _single_tensor,
)
from tests.support.arguments import BAD_LR  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    DTYPES,
    assert_same,
    give_gradients,
    parameters,
    run,
    values,
)
from tests.support.torch_reference import (  # noqa: E402
    Calls,
    to_numpy,
)


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


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_loop_has_the_bits_of_the_numpy_optimizer(decay, dtype):
    params = parameters((3, 4), (), (0,), (70_000,), dtype=dtype)
    reference = [to_numpy(p) for p in params]
    optimizer = Gravity(params, weight_decay=decay, seed=5, foreach=False)
    numpy_optimizer = gravity_core.Gravity(weight_decay=decay, seed=5)
    for number in range(4):
        give_gradients(params, number)
        numpy_optimizer.step(reference, [to_numpy(p.grad) for p in params])
        optimizer.step()
    for p, w in zip(params, reference, strict=True):
        assert to_numpy(p).tobytes() == w.tobytes()


def test_the_global_random_state_is_neither_used_nor_advanced():
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


def test_late_parameters_and_gradients_have_their_own_first_step():
    early, late, added = parameters((4,), (4,), (4,))
    optimizer = Gravity([early, late])
    run(optimizer, [early], range(3))
    assert late not in optimizer.state
    optimizer.add_param_group({"params": [added], "lr": 0.5})
    assert optimizer.param_groups[1]["velocity_std"] == 0.01 / 0.5
    run(optimizer, [early, late, added], [3])
    assert [int(optimizer.state[p]["step"]) for p in (early, late, added)] == [4, 1, 1]


def test_v0_uses_the_first_learning_rate():
    (p,) = parameters((1000,))
    optimizer = Gravity([p], lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0  # a warm-up from 0
    before = p.detach().clone()
    run(optimizer, [p], [0])
    assert torch.equal(p.detach(), before)
    assert optimizer.state[p]["velocity"].abs().max() < 1


def test_a_zero_learning_rate_starts_from_rest_and_warns_once():
    (p,) = parameters((4,))
    with pytest.warns(UserWarning, match="lr is 0 at construction") as record:
        optimizer = Gravity([p], lr=0.0)
    assert len(record) == 1
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not optimizer.state[p]["velocity"].any()
    assert record[0].filename == __file__
    Gravity([p], lr=0.0, velocity_std=0.1)  # no warning
    with pytest.warns(UserWarning, match="lr is 0 at construction") as record:
        groups = Gravity([{"params": [q]} for q in parameters((3,), (3,))], lr=0.0)
    assert len(record) == 1
    groups.add_param_group({"params": parameters((3,))})  # the warning was given before
    assert [group["velocity_std"] for group in groups.param_groups] == [0.0] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counters", ["host", "device"])
@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.1}])
def test_the_gpu_path_has_the_bits_of_the_plain_loop(counters, dtype, options, monkeypatch):
    """The path runs on the CPU here; test_torch_cuda.py runs it on a GPU."""
    monkeypatch.setattr(_multi_tensor_gpu, "CONCATENATED", 1000)
    options = _items.Options(0.1, 0.9, options.get("weight_decay"), "maximize" in options)
    runs = []
    gpu = functools.partial(_multi_tensor_gpu.multi_tensor_gpu, lengths=_multi_tensor_gpu.Lengths())
    for path in (_single_tensor.single_tensor, gpu):
        params = parameters((3, 4), (), (700,), (700,), (1,), (30, 50), (7,), dtype=dtype)
        params[0] = torch.nn.Parameter(params[0].detach().t().contiguous().t())
        velocities = values(params)
        for step in range(3):
            give_gradients(params, step)
            ts = [step + i % 2 for i in range(len(params))]
            if counters == "device":
                ts = [torch.tensor(float(t), dtype=torch.float64) for t in ts]
            maxima = [torch.tensor(2.0).to(dtype) if i == 6 else None for i in range(7)]
            with torch.no_grad():
                path(
                    [
                        (p, p.grad, v, t, m)
                        for p, v, t, m in zip(params, velocities, ts, maxima, strict=True)
                    ],
                    options,
                )
        runs.append(values(params) + velocities)
    assert_same(*runs)


def test_tensors_on_an_accelerator_take_the_gpu_path(monkeypatch):
    """Meta tensors stand in for those of a GPU. Mixed dtypes and fake tensors take other paths."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    taken = []
    monkeypatch.setattr(_multi_tensor, "multi_tensor_gpu", lambda items, *_: taken.extend(items))
    near, far, mixed = torch.ones(3), torch.ones(3, device="meta"), torch.ones(3, device="meta")
    with FakeTensorMode():
        fake = torch.ones(3, device="cuda")
    items = [(x, x.clone(), x.clone(), 1, None) for x in (near, far, fake)]
    items.append((mixed, mixed.clone(), mixed.double(), 1, None))
    options = _items.Options(0.1, 0.9, None, maximize=False)
    with torch.no_grad():
        _multi_tensor.multi_tensor(items, options, _multi_tensor_gpu.Lengths())
    assert [item[0] is far for item in taken] == [True]
    assert (near != 1).all()


def test_the_time_of_a_step_is_linear_in_the_groups(monkeypatch):
    params = parameters(*[(3,)] * 50)
    optimizer = Gravity([{"params": [p]} for p in params])
    run(optimizer, params, [0])
    monkeypatch.setattr(Gravity, "_position", None)  # called for first gradients only
    run(optimizer, params, [1])


def test_differentiates_through_velocity_weights_and_learning_rate():
    torch.manual_seed(0)
    start = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def two_steps(w, v, g, lr):
        p = w.clone()
        optimizer = Gravity([p], lr=lr, weight_decay=0.1, differentiable=True)
        optimizer.state[p] = {"step": torch.tensor(0.0), "velocity": v.clone()}
        for scale in (1.0, 0.5):
            p.grad = scale * g
            optimizer.step()
        return p, optimizer.state[p]["velocity"]

    assert torch.autograd.gradcheck(two_steps, (*start, rate))


@pytest.mark.parametrize("path", [{}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_learning_rate_as_a_tensor(shape, dtype, path):
    numbers, tensors = parameters((5,), ()), parameters((5,), ())
    run(Gravity(numbers, lr=0.125, **path), numbers, range(3))
    run(Gravity(tensors, lr=torch.full(shape, 0.125, dtype=dtype), **path), tensors, range(3))
    assert_same(values(numbers), values(tensors))


@pytest.mark.parametrize("path", [{}, {"foreach": False}], ids=str)
def test_an_integer_tensor_is_a_valid_learning_rate(path):
    numbers, tensors = parameters((5,)), parameters((5,))
    run(Gravity(numbers, lr=1, **path), numbers, range(2))
    run(Gravity(tensors, lr=torch.tensor(1), **path), tensors, range(2))
    assert_same(values(numbers), values(tensors))


def test_half_precision_under_the_gradient_scaler():
    (p,) = parameters((5,))
    optimizer, scaler = Gravity([p]), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = p.detach().clone()
    for bad in (float("nan"), 1.0):
        optimizer.zero_grad()
        scaler.scale((p * torch.tensor([1.0, bad, 1, 1, 1])).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(p.detach(), before) == (bad != 1.0)
    assert optimizer.state[p]["step"] == 1


def test_maximize_and_closure():
    (p,) = parameters((4,))
    (q,) = (torch.nn.Parameter(p.detach().clone()),)
    p.grad, q.grad = torch.ones(4), -torch.ones(4)
    up, down = Gravity([p], maximize=True), Gravity([q])
    assert up.step(lambda: 7.0) == 7.0
    down.step()
    assert torch.equal(p, q)
    assert torch.equal(p.grad, torch.ones(4))  # gradients are not modified


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fused": True, "foreach": True}, "`fused` and `foreach` cannot be `True` together"),
        ({"fused": True, "differentiable": True}, "`fused` does not support `differentiable`"),
    ],
)
def test_options_that_exclude_each_other(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        Gravity(None, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"lr": torch.tensor(-1.0)}, "lr must be a finite number >= 0"),
        ({"lr": torch.tensor(0.1j)}, r"lr must be a finite .*, got tensor\(0.\+0.1000j\)"),
        ({"lr": torch.tensor(True)}, r"lr must be a finite .*, got tensor\(True\)"),
        ({"lr": torch.tensor(0.1).to(torch.float8_e4m3fn)}, r"lr must .* got .*float8_e4m3fn\)"),
        ({"lr": np.asarray(True)}, r"lr must be a finite .*, got array\(True\)"),
        ({"alpha": torch.tensor(True)}, r"alpha must be a finite .*, got tensor\(True\)"),
        *BAD_LR,
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Gravity(None, **arguments)  # the arguments are checked before the parameters
    (p,) = parameters((2,))
    optimizer = Gravity([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": parameters((3,)), **arguments})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
def test_the_number_of_calls_on_a_gpu_does_not_grow_with_the_tensors(layout, options, monkeypatch):
    """On a GPU, each call launches a kernel. Views launch none; a list may need several."""
    monkeypatch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
    few, many = (calls_of_a_step(number, layout, options) for number in (10, 100))
    assert 0 < many == few


def calls_of_a_step(number, layout, options):
    params = parameters(*[(4, 3, 2, 2)] * number)
    if layout == "channels_last":
        for p in params:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    optimizer = Gravity(params, foreach=True, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[params[0]]["velocity"].stride() == params[0].stride()
    with Calls() as calls:
        optimizer.step()
    return calls.number


def test_the_gpu_path_reads_nothing_from_the_device():
    """Reading a fake tensor raises an error. On a GPU, the host would wait for the device."""
    lengths, options = _multi_tensor_gpu.Lengths(), _items.Options(0.1, 0.9, 0.1, maximize=True)
    with torch._subclasses.FakeTensorMode(), torch.no_grad():
        items = [
            (torch.ones(3), torch.ones(3), torch.ones(3), torch.ones((), dtype=torch.float64), m)
            for m in (None, None, torch.ones(()), torch.ones(()))
        ]
        _multi_tensor_gpu.multi_tensor_gpu(items, options, lengths)


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_the_rate_may_be_on_a_gpu_with_a_parameter_on_the_cpu(weight_decay):
    """Fake tensors check the devices of an operation without a GPU."""
    with torch._subclasses.FakeTensorMode(), torch.no_grad():
        p, grad, velocity = (torch.ones(3) for _ in range(3))
        lr = torch.tensor(0.1, dtype=torch.float64, device="cuda")
        options = _items.Options(lr, 0.9, weight_decay, maximize=False)
        _single_tensor.update_item((p, grad, velocity, 1, None), options)
    assert p.is_cpu
