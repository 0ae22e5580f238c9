"""gravity_torch.Gravity as a torch optimizer: training, state, arguments, errors."""

import copy
import io
import itertools
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import gravity_core  # noqa: E402
from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_torch import (  # noqa: E402
    Gravity,
    _items,
    _multi_tensor,
    _single_tensor,
)
from tests.adapters.arguments import BAD_LR  # noqa: E402
from tests.adapters.torch_reference import (  # noqa: E402
    Reference,
    to_numpy,
)


def parameters(*shapes, dtype=torch.float32):
    rng = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.tensor(rng.normal(size=s)).to(dtype)) for s in shapes]


def give_gradients(params, number, scale=1.0):
    rng = np.random.default_rng([2, number])
    for p in params:
        p.grad = torch.tensor(scale * rng.normal(size=tuple(p.shape))).to(p.dtype)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


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
    assert record[0].filename == __file__
    Gravity([p], lr=0.0, velocity_std=0.1)  # no warning
    with pytest.warns(UserWarning, match="lr is 0 at construction") as record:
        groups = Gravity([{"params": [q]} for q in parameters((3,), (3,))], lr=0.0)
    assert len(record) == 1
    groups.add_param_group({"params": parameters((3,))})  # which has been said
    assert [group["velocity_std"] for group in groups.param_groups] == [0.0] * 3


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        *[(torch.float32, x) for x in (1e10, 1e14, 1e16, 3e38, float("nan"), float("inf"))],
        # the square of 1e200 leaves the range of Python's numbers
        *[(torch.float64, x) for x in (1e16, 1e150, 1e200, 1.7e308, float("nan"), float("inf"))],
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [9, _multi_tensor.BLOCK + 8])
@pytest.mark.parametrize(
    "path", [{}, {"foreach": False}, {"capturable": True}, {"fused": True}], ids=str
)
def test_huge_and_non_finite_gradients(path, size, dtype, largest):
    """Where the expanded form of the blocked path would overflow, it must not be taken."""
    (p,) = parameters((size,), dtype=dtype)
    give_gradients([p], 0)
    p.grad[5] = largest
    optimizer = Gravity([p], velocity_std=0.0, **path)
    before = to_numpy(p)
    optimizer.step()
    got = to_numpy(optimizer.state[p]["velocity"])
    with np.errstate(invalid="ignore", over="ignore"):
        expected = gravity_core.update(to_numpy(p.grad), np.zeros_like(got), 1)
    if np.isfinite(largest):
        bound = gravity_core.ErrorBound(got)
        zero = np.zeros_like(got)
        bound.step(to_numpy(p.grad), zero, expected, before, before, t=1, learning_rate=0.1)
        assert (np.abs(got.astype(float) - expected) <= 2 * bound.v).all()
    else:
        assert np.array_equal(got, expected, equal_nan=True)
        assert np.isnan(got[5])


@pytest.mark.parametrize("sizes", [(5, 10), (10, 5), (20_000, 40_000)])
def test_a_state_of_other_shapes_is_refused_before_anything_has_changed(sizes):
    """torch's kernel would read and write beyond the smaller one."""
    (a,), (b,) = parameters((sizes[0],)), parameters((sizes[1],))
    old, new = Gravity([a], lr=0.5), Gravity([b])
    run(old, [a], [0])
    run(new, [b], [0])
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match=rf"velocity must have the shape .*\({sizes[1]},\)"):
        new.load_state_dict(old.state_dict())
    after = new.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["velocity"], before["state"][0]["velocity"])


@pytest.mark.parametrize("sizes", [(5, 10), (10, 5), (20_000, 40_000), (600_000, 500_000)])
@pytest.mark.parametrize(
    "path",
    [
        {},
        {"foreach": False},
        {"fused": True},
        {"capturable": True},
        {"differentiable": True},
        {"fused": True, "capturable": True},
    ],
    ids=str,
)
def test_a_parameter_of_another_size_is_refused_before_anything_moves(path, sizes, monkeypatch):
    """As pruning makes it, which replaces p.data."""
    a, b = (p.requires_grad_(False) for p in parameters((3,), (sizes[0],)))
    optimizer = Gravity([{"params": [a]}, {"params": [b]}], **path)
    run(optimizer, [a, b], [0])
    b.data = torch.ones(sizes[1])
    velocity = optimizer.state[b]["velocity"]
    before = values([a, b]), copy.deepcopy(optimizer.state_dict()["state"])
    message = rf"shape of its parameter.* \({sizes[1]},\).*, got \({sizes[0]},\)"
    optimizer.state[b]["velocity"] = torch.zeros(sizes[1])
    with pytest.raises(ValueError, match=r"p\.grad must have the " + message):
        optimizer.step()
    optimizer.state[b]["velocity"] = velocity
    b.grad = None
    give_gradients([a, b], 1)
    with pytest.raises(ValueError, match="velocity must have the " + message):
        optimizer.step()
    assert_same(values([a, b]), before[0])
    for number, state in optimizer.state_dict()["state"].items():
        assert state["step"] == 1
        assert torch.equal(state["velocity"], before[1][number]["velocity"])
    del optimizer.state[b]  # what its user has to do
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in (a, b)] == [2, 1]


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("what", ["p", "p.grad", "velocity"])
@pytest.mark.parametrize("ours", [torch.float32, torch.complex64], ids=str)
def test_complex_for_real_and_the_reverse_are_refused_before_anything_moves(ours, what, path):
    theirs = torch.float32 if ours.is_complex else torch.complex64
    (a,), (b,) = parameters((3,)), parameters((5000,), dtype=ours)
    optimizer = Gravity([{"params": [a]}, {"params": [b]}], **path)
    run(optimizer, [a, b], [0])
    dtypes = {"p": ours, "p.grad": ours, "velocity": ours} | {what: theirs}
    # As a module that is converted leaves them: .data is replaced, the rest stays as it was.
    with warnings.catch_warnings(action="ignore"):  # the imaginary parts that are dropped
        b.data = b.data.to(dtypes["p"])
        b.grad.data = b.grad.data.to(dtypes["p.grad"])
        state = optimizer.state[b]
        state["velocity"] = state["velocity"].to(dtypes["velocity"])
    before = values([a, b])
    message = rf"{dtypes['p']}, got {dtypes['p.grad']} and {dtypes['velocity']}"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert_same(values([a, b]), before)
    assert [int(optimizer.state[p]["step"]) for p in (a, b)] == [1, 1]


@pytest.mark.parametrize("dtypes", [[torch.float64], [torch.float32, torch.int64]], ids=str)
def test_counters_of_other_dtypes_count(dtypes):
    """As a user may set them."""
    params = parameters((3,), (4,))
    optimizer, other = Gravity(params), Gravity(twins := parameters((3,), (4,)))
    run(optimizer, params, [0])
    for p, dtype in zip(params, itertools.cycle(dtypes)):
        optimizer.state[p]["step"] = optimizer.state[p]["step"].to(dtype)
    run(optimizer, params, [1, 2])
    run(other, twins, range(3))
    assert [float(optimizer.state[p]["step"]) for p in params] == [3.0, 3.0]
    assert_same(values(params), values(twins))


def test_the_default_dtype_is_not_that_of_the_counters():
    params = parameters((3,))
    optimizer = Gravity(params)
    torch.set_default_dtype(torch.float64)
    try:
        run(optimizer, params, range(2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.state[params[0]]["step"].dtype == torch.float32
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.parametrize("ours", [torch.float32, torch.complex64], ids=str)
def test_a_complex_velocity_for_a_real_parameter_and_the_reverse_are_refused(ours):
    theirs = torch.float32 if ours.is_complex else torch.complex64
    (p,) = parameters((3,), dtype=ours)
    optimizer = Gravity([p])
    run(optimizer, [p], [0])
    state = optimizer.__getstate__()
    state["state"] = {p: {"step": torch.tensor(1.0), "velocity": torch.ones(3, dtype=theirs)}}
    with pytest.raises(ValueError, match=rf"\(3,\) {ours}, got \(3,\) {theirs}"):
        Gravity.__new__(Gravity).__setstate__(state)
    if ours.is_complex:  # of the other torch takes the real parts, and warns
        other = parameters((3,), dtype=theirs)
        old = Gravity(other)
        run(old, other, [0])
        with pytest.raises(ValueError, match=rf"\(3,\) {ours}, got \(3,\) {theirs}"):
            optimizer.load_state_dict(old.state_dict())


def test_the_state_of_another_optimizer_is_refused():
    (p,) = parameters((3,))
    other = torch.optim.SGD([p], momentum=0.9)
    run(other, [p], [0])
    with pytest.raises(ValueError, match=r"step and velocity, got \['momentum_buffer'\]"):
        Gravity([p]).load_state_dict(other.state_dict())


def test_an_older_pickle_gets_the_defaults_of_today():
    (p,) = parameters((3,))
    optimizer = Gravity([p])
    run(optimizer, [p], [0])
    state = copy.deepcopy(optimizer.__getstate__())
    for name in ("fused", "first_step", "seed"):
        del state["defaults"][name], state["param_groups"][0][name]
    old = Gravity.__new__(Gravity)
    old.__setstate__(state)
    run(old, old.param_groups[0]["params"], [1])
    run(optimizer, [p], [1])
    assert torch.equal(old.param_groups[0]["params"][0], p)


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
def test_lazily_negated_and_conjugated_tensors(path):
    runs = []
    for lazy in (True, False):
        (p, c) = parameters((5000,), (4,), dtype=torch.complex64)
        p = torch.nn.Parameter(p.detach().real.clone())
        g, gc = torch.linspace(-1, 1, 5000), torch.arange(4) * (1 + 2j)
        p.grad = torch._neg_view(g) if lazy else -g
        c.grad = gc.conj() if lazy else gc.conj().resolve_conj()
        optimizer = Gravity([p, c], **path)
        optimizer.step()
        runs.append(values([p, c]))
    for a, b in zip(*runs, strict=True):
        # one update on each side, of fewer roundings than the bound counts, of values below 8
        assert (a - b).abs().max() <= 2 * gravity_core.ErrorBound.ROUNDINGS * 2.0**-24 * 8
    conjugate = torch.nn.Parameter(torch.ones(4, dtype=torch.complex64).conj())
    conjugate.grad = torch.ones(4, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="conjugated"):
        Gravity([conjugate], **path).step()


def test_the_time_of_a_step_is_linear_in_the_groups(monkeypatch):
    params = parameters(*[(3,)] * 50)
    optimizer = Gravity([{"params": [p]} for p in params])
    run(optimizer, params, [0])
    monkeypatch.setattr(Gravity, "_position", None)  # asked for at first gradients only
    run(optimizer, params, [1])


def test_subclasses_of_parameters_take_the_same_path():
    class Named(torch.nn.Parameter):
        pass

    (p,) = parameters((5000,))
    q = Named(p.detach().clone())
    run(Gravity([p]), [p], range(2))
    run(Gravity([q]), [q], range(2))
    assert torch.equal(p, q)


LARGE_AND_SMALL = pytest.mark.parametrize("size", [4, 200_000])


@LARGE_AND_SMALL
@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize(
    "types", [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)], ids=str
)
def test_a_module_that_changes_its_type_after_a_step(types, path, size):
    (p,) = parameters((size,), dtype=types[0])
    optimizer = Gravity([p], **path)
    run(optimizer, [p], [0])
    p.data, p.grad = p.data.to(types[1]), None
    reference = to_numpy(p), to_numpy(optimizer.state[p]["velocity"])
    run(optimizer, [p], [1])
    # The velocity keeps its type, and W moves by l V as it is rounded to that.
    v = gravity_core.update(to_numpy(p.grad), reference[1], 2)
    w = reference[0] - v.astype(reference[0].dtype) * reference[0].dtype.type(0.1)
    assert np.array_equal(to_numpy(optimizer.state[p]["velocity"]), v)
    assert np.array_equal(to_numpy(p), w)


@LARGE_AND_SMALL
@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
def test_a_default_device_elsewhere_changes_nothing(path, size):
    runs = []
    for device in ("cpu", "meta"):
        params = parameters((size,))
        give_gradients(params, 0)
        optimizer = Gravity(params, **path)
        with torch.device(device):
            optimizer.step()
            optimizer.step()
        assert optimizer.state[params[0]]["step"].device.type == "cpu"
        runs.append(values(params))
    assert_same(*runs)


@LARGE_AND_SMALL
@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
def test_a_graph_from_before_the_step_is_refused_by_autograd(path, size):
    """As after a step of torch's own: its gradients would be those of no weights at all."""
    (p,) = parameters((size,))
    optimizer = Gravity([p], **path)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
def test_autocast_around_a_step_changes_nothing(path, dtype, monkeypatch):
    """It may be to another half type than the parameters': that of GPUs is float16, if not told."""
    runs = []
    for autocast in (None, torch.bfloat16, torch.float16):
        params = parameters((3, 4), (), (5000,), dtype=dtype)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            run(Gravity(params, weight_decay=0.1, **path), params, range(2))
        runs.append(values(params))
    assert_same(*runs[:2])
    assert_same(runs[0], runs[2])


@LARGE_AND_SMALL
@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"capturable": True}], ids=str)
def test_meta_and_fake_tensors_are_stepped(path, size):
    """As memory estimators do, which have no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def steps(device):
        model = torch.nn.Linear(size, 3, device=device)
        optimizer = Gravity(model.parameters(), **path)
        for _ in range(2):
            model(torch.ones(2, size, device=device)).sum().backward()
            optimizer.step()
        return optimizer.state[model.weight]["velocity"].shape

    assert steps("meta") == (3, size)
    with FakeTensorMode():
        assert steps("cpu") == (3, size)


FAKE_AND_REAL_STEPS = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from gravity_torch import Gravity

def steps(device):
    params = [torch.nn.Parameter(torch.ones(n, device=device)) for n in (5000, 2**20, 7)]
    optimizer = Gravity(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert params[0].device.type == device
    return params[0]

for _ in range(2):
    with FakeTensorMode():
        steps("cpu")
    steps("meta")
    assert steps("cpu").isfinite().all()
"""


def test_fake_and_meta_tensors_before_and_after_real_ones():
    """In a process of its own, because kernels that got such tensors would end it."""
    subprocess.run([sys.executable, "-c", FAKE_AND_REAL_STEPS], check=True, timeout=300)


def test_a_count_that_was_stored_as_a_number():
    (p,) = parameters((3,))
    optimizer = Gravity([p])
    run(optimizer, [p], [0])
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = 1
    optimizer.load_state_dict(state)
    run(optimizer, [p], [1])
    assert optimizer.state[p]["step"] == 2


def test_a_group_keeps_the_users_own_keys():
    (p,) = parameters((3,))
    group = {"params": [p], "t": 5}
    optimizer = Gravity([group])
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["t"] == 5
    added = {"params": parameters((3,))}
    optimizer.add_param_group(added)
    assert optimizer.param_groups[1] is added  # as in torch's own optimizers


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


def test_one_compilation_for_ten_steps():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    params = parameters((3, 4), (4,))
    rate = torch.tensor(0.1)
    optimizer = Gravity(params, lr=rate)
    plain = [torch.nn.Parameter(w) for w in values(params)]
    reference = Gravity(plain, lr=0.1, foreach=False)
    step = torch.compile(optimizer.step, backend=counter)
    for number in range(10):
        rate.fill_(0.1 / (number + 1))
        reference.param_groups[0]["lr"] = 0.1 / (number + 1)
        give_gradients(params, number)
        give_gradients(plain, number)
        step()
        reference.step()
    assert counter.frame_count == 1
    for a, b in zip(values(params), values(plain), strict=True):
        assert (a - b).abs().max() <= 10 * 2 * 15 * 2.0**-24 * 8  # ten updates of values below 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_compiled_step_of_single_numbers(dtype):
    """In float64 torch.compile loses what is written to them, in torch's own optimizers, too."""
    torch._dynamo.reset()
    params = parameters((), (3,), dtype=dtype)
    references = [Reference(p, 0.1, 0, i, weight_decay=0.1) for i, p in enumerate(params)]
    optimizer = Gravity(params, weight_decay=0.1)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for number in range(3):
        give_gradients(params, number)
        step()
        for p, reference in zip(params, references, strict=True):
            reference.step(to_numpy(p.grad), 0.1)
            reference.check(p, optimizer.state[p])


@pytest.mark.parametrize("path", [{}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_learning_rate_as_a_tensor(shape, dtype, path):
    numbers, tensors = parameters((5,), ()), parameters((5,), ())
    run(Gravity(numbers, lr=0.125, **path), numbers, range(3))
    run(Gravity(tensors, lr=torch.full(shape, 0.125, dtype=dtype), **path), tensors, range(3))
    assert_same(values(numbers), values(tensors))


@pytest.mark.parametrize("path", [{}, {"foreach": False}], ids=str)
def test_a_whole_number_as_a_tensor_is_a_learning_rate_as_of_adam(path):
    numbers, tensors = parameters((5,)), parameters((5,))
    run(Gravity(numbers, lr=1, **path), numbers, range(2))
    run(Gravity(tensors, lr=torch.tensor(1), **path), tensors, range(2))
    assert_same(values(numbers), values(tensors))


def test_capturable_counts_on_the_device_of_the_parameter():
    (p,) = parameters((5,))
    optimizer = Gravity([p], capturable=True)
    run(optimizer, [p], range(2))
    assert optimizer.state[p]["step"].device == p.device
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("counter", ["t", "step"])
def test_loads_the_checkpoints_of_other_gravity_codes(counter):
    """State ``v``, and the steps counted by the group: the original code, pytorch_optimizer."""
    (p,) = parameters((5,))
    optimizer = Gravity([p])
    run(optimizer, [p], range(7))
    ours = optimizer.state_dict()
    foreign = {
        "state": {0: {"v": ours["state"][0]["velocity"].clone()}},
        "param_groups": [{"lr": 0.1, "alpha": 0.01, "beta": 0.9, counter: 7, "params": [0]}],
    }
    q = torch.nn.Parameter(p.detach().clone())
    resumed = Gravity([q], beta=0.5)
    resumed.load_state_dict(foreign)
    run(optimizer, [p], range(7, 9))
    run(resumed, [q], range(7, 9))
    assert torch.equal(p, q)
    assert counter not in resumed.param_groups[0]


def test_goes_on_from_a_checkpoint_that_pytorch_optimizer_has_made():
    other = pytest.importorskip("pytorch_optimizer", reason="its steps make the checkpoint")
    theirs = parameters((3, 4), (70,))
    their_optimizer = other.Gravity(theirs, lr=0.2, alpha=0.02, beta=0.8)
    run(their_optimizer, theirs, range(5))
    buffer = io.BytesIO()
    torch.save(their_optimizer.state_dict(), buffer)
    buffer.seek(0)
    ours = [torch.nn.Parameter(w) for w in values(theirs)]
    optimizer = Gravity(ours)  # whose lr and so on come from the checkpoint
    optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    references = []
    for i, p in enumerate(ours):
        reference = Reference(p, 0.0, 0, i, beta=0.8)
        reference.steps, reference.v = 5, to_numpy(their_optimizer.state[theirs[i]]["v"])
        reference.check(p, optimizer.state[p], exact=True)
        references.append(reference)
    for number in range(5, 10):
        run(optimizer, ours, [number])
        run(their_optimizer, theirs, [number])
        for reference, p, q in zip(references, ours, theirs, strict=True):
            reference.step(to_numpy(p.grad), 0.2)
            reference.check(p, optimizer.state[p])
            # Theirs is the literal form, whose roundings the bound counts, too.
            step = torch.tensor(float(their_optimizer.param_groups[0]["step"]))
            reference.check(q, {"step": step, "velocity": their_optimizer.state[q]["v"]})


def test_a_state_without_some_options_gets_their_defaults():
    (p,) = parameters((5,))
    state = Gravity([p]).state_dict()
    for name in ("velocity_std", "maximize", "first_step", "fused"):
        del state["param_groups"][0][name]
    optimizer = Gravity([p], lr=0.5)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["velocity_std"] == 0.01 / 0.5
    run(optimizer, [p], [0])


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
    assert torch.equal(p.grad, torch.ones(4))  # gradients are not written to


LAYOUTS = {
    "sparse_coo": (torch.Tensor.to_sparse, "sparse gradients$"),
    "sparse_csr": (torch.Tensor.to_sparse_csr, "sparse gradients$"),
    "mkldnn": (torch.Tensor.to_mkldnn, r"gradients of layout torch\._mkldnn$"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_other_layouts_are_refused_before_anything_moves(layout, groups):
    if layout == "mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without mkldnn")
    convert, message = LAYOUTS[layout]
    dense, other = parameters((4, 2), (4, 2))
    if layout != "sparse_coo":  # which only parameters of their own layout have
        other = torch.nn.Parameter(convert(other.detach()))
    dense.grad, other.grad = torch.ones(4, 2), convert(torch.ones(4, 2))
    split = [{"params": [dense]}, {"params": [other]}]
    optimizer = Gravity([dense, other] if groups == 1 else split)
    before = [p.detach().to_dense().clone() for p in (dense, other)]
    with pytest.raises(RuntimeError, match=f"^Gravity does not support {message}"):
        optimizer.step()
    assert_same([p.detach().to_dense() for p in (dense, other)], before)
    assert all(state["step"] == 0 for state in optimizer.state.values())


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
        Gravity(None, **arguments)  # checked before the parameters are looked at
    (p,) = parameters((2,))
    optimizer = Gravity([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": parameters((3,)), **arguments})
    assert len(optimizer.param_groups) == 1


def test_a_state_made_with_numpys_numbers_loads_with_weights_only():
    params = parameters((3,))
    optimizer = Gravity(params, lr=np.float32(0.1), beta=np.float64(0.9), seed=np.int64(3))
    optimizer.add_param_group({"params": parameters((2,)), "lr": np.float64(0.2)})
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    groups = torch.load(buffer, weights_only=True)["param_groups"]
    assert [group["seed"] for group in groups] == [3, 3]
    assert groups[1]["velocity_std"] == 0.01 / 0.2


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_the_rate_may_be_on_a_gpu_and_a_parameter_not(weight_decay):
    """Fake tensors know which devices go together; there need be no GPU."""
    with torch._subclasses.FakeTensorMode(), torch.no_grad():
        p, grad, velocity = (torch.ones(3) for _ in range(3))
        lr = torch.tensor(0.1, dtype=torch.float64, device="cuda")
        options = _items.Options(lr, 0.9, weight_decay, maximize=False)
        _single_tensor.update_item((p, grad, velocity, 1, None), options)
    assert p.is_cpu
