"""The kernels of `fused=True` on a CPU: selection, memory, threads and processes."""

import ctypes
import os
import re
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")
pytest.importorskip("numba", reason="fused=True needs numba")

import gravity_torch  # noqa: E402
from gravity_core._install import install  # noqa: E402
from gravity_torch import (  # noqa: E402
    Gravity,
    _fused,
    _fused_cpu,
    _multi_tensor,
    _numba_kernels,
    _paths,
)
from gravity_torch._items import Batch  # noqa: E402
from gravity_torch._memory import Checks  # noqa: E402
from tests.support.programs import printed_words  # noqa: E402

DTYPES = [
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.complex64, torch.complex128),
]
SHAPES = [(), (0,), (3, 4), (7,), (1030,), (300, 5)]


def parameters(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def run(params, steps=3, **options):
    """Step with gradients of several sizes, and return W, V and the counters."""
    generator = torch.Generator().manual_seed(1)
    optimizer = Gravity(params, **options)
    for number in range(steps):
        for p in params:
            grad = torch.randn(p.shape, generator=generator) * 10.0 ** (number - 1)
            p.grad = torch.empty_like(p).copy_(grad)
        optimizer.step()
    states = [optimizer.state[p] for p in params]
    tensors = [p.detach() for p in params], *([s[key] for s in states] for key in sorted(states[0]))
    return [x.clone() for xs in tensors for x in xs]


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.fixture
def taken(monkeypatch):
    """Return a list that grows with the number of tensors that the kernels update."""
    numbers, own = [], _fused_cpu.prepare

    def prepare(table, *args):
        update = own(table, *args)
        return lambda: numbers.append(len(table.rows)) or update()

    monkeypatch.setattr(_fused_cpu, "prepare", prepare)
    return numbers


@pytest.fixture
def threads():
    """Return a function that sets the number of torch's threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}], ids=str)
def test_the_kernels_have_the_bits_of_the_loop(taken, dtype, options):
    loop = run(parameters(*SHAPES, dtype=dtype), foreach=False, **options)
    assert not taken
    for choice in ({}, {"fused": True}, {"fused": True, "capturable": True}):
        assert same(run(parameters(*SHAPES, dtype=dtype), **choice, **options), loop)
        assert taken == [len(SHAPES)] * 3
        taken.clear()


@pytest.mark.parametrize(
    ("p", "grad", "velocity", "fits"),
    [
        (torch.bfloat16, torch.bfloat16, torch.float32, True),
        (torch.float16, torch.float32, torch.float32, True),
        (torch.float32, torch.bfloat16, torch.float16, True),
        (torch.float64, torch.float64, torch.float32, False),
    ],
)
def test_mixed_dtypes_that_are_computed_in_one(taken, p, grad, velocity, fits):
    results = []
    for foreach in (False, None):
        (param,) = parameters((50,), dtype=p)
        optimizer = Gravity([param], weight_decay=0.1, foreach=foreach)
        for _ in range(2):
            param.grad_dtype = grad if hasattr(param, "grad_dtype") else None
            try:
                param.grad = torch.linspace(-2, 2, 50).to(grad)
            except RuntimeError:
                pytest.skip("this torch has no gradients of another dtype")
            optimizer.step()
            state = optimizer.state[param]
            state["velocity"] = state["velocity"].to(velocity)
        results.append([param.detach(), state["velocity"], state["step"]])
    assert same(*results)
    assert len(taken) == (2 if fits else 1)  # the first V has the dtype of the parameter


@pytest.mark.parametrize("kind", ["strided", "expanded", "negated", "transposed"])
def test_a_gradient_of_another_layout_goes_the_other_way_alone(taken, kind):
    def step(**options):
        params = parameters((6, 4), (5,))
        optimizer = Gravity(params, **options)
        for _ in range(2):
            grad = torch.arange(24.0).reshape(6, 4) - 10
            params[0].grad = {
                "strided": torch.stack([grad, grad], dim=-1)[..., 0],
                "expanded": torch.ones(1, 1).expand(6, 4),
                "negated": torch.complex(grad, grad).conj().imag,
                "transposed": grad.mT.contiguous().mT,
            }[kind]
            params[1].grad = torch.ones(5)
            optimizer.step()
        return [x for p in params for x in (p.detach(), *optimizer.state[p].values())]

    assert same(step(fused=True), step(foreach=False))
    assert taken == [1, 1]


def test_one_order_of_elements_needs_no_contiguous_one(taken):
    def channels_last():
        (p,) = parameters((2, 3, 4, 5))
        return [torch.nn.Parameter(p.detach().to(memory_format=torch.channels_last))]

    assert same(run(channels_last(), fused=True), run(channels_last(), foreach=False))
    assert taken == [1] * 3


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_number_of_threads_changes_no_bits(monkeypatch, threads, count):
    shapes = [(700,), (5,), (90_001,), (), (64, 64)]
    for dtype in DTYPES[:4]:
        loop = run(parameters(*shapes, dtype=dtype), foreach=False)
        monkeypatch.setattr(_fused_cpu, "SHARE", 100)
        monkeypatch.setattr(_fused_cpu, "PIECE", 3000)
        threads(count)
        assert same(run(parameters(*shapes, dtype=dtype), fused=True), loop)


def test_parameters_that_share_memory_are_updated_one_after_the_other(monkeypatch, threads):
    def views():
        whole = parameters((4000,))[0].detach()
        return [torch.nn.Parameter(whole[:3000]), torch.nn.Parameter(whole[1000:])]

    loop = run(views(), foreach=False)
    monkeypatch.setattr(_fused_cpu, "SHARE", 10)
    threads(4)
    assert same(run(views(), fused=True), loop)


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 5000])
def test_no_kernel_writes_outside_the_tensors(monkeypatch, threads, dtype, size):
    monkeypatch.setattr(_fused_cpu, "SHARE", 64)
    threads(2)
    guarded = [torch.full((size + 128,), 7.0, dtype=dtype) for _ in range(3)]
    p, grad, velocity = (x[64:-64] for x in guarded)
    counters = torch.full((3,), 5.0)
    group = Gravity([torch.nn.Parameter(p)], weight_decay=0.01).param_groups[0]
    batch = Batch(group, [p], [grad], [velocity], [counters[1]])
    plan = _paths.plan([batch], {}, Checks())
    assert plan.kernels
    assert not plan.others
    _paths.update(plan)
    for x in guarded:
        assert (x[:64] == 7).all()
        assert (x[-64:] == 7).all()
    assert (grad == 7).all()
    assert (p != 7).all()
    assert (velocity != 7).all()
    assert counters.tolist() == [5, 6, 5]


def test_no_operations_are_fused_by_the_compiler():
    for function in (_numba_kernels.float32, _numba_kernels.float64, _numba_kernels.half):
        code = _numba_kernels.cfunc("void(voidptr)")(function).inspect_llvm()
        assert "fdiv" in code
        for word in ("fmuladd", "llvm.fma", "contract", " fast ", "reassoc"):
            assert word not in code


def bits_of_every_half(dtype):
    return torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_widened_and_rounded_as_torch_does(dtype):
    """With η = 0, W is read and rounded unchanged; with G = 0, V becomes β̂ V."""
    every = bits_of_every_half(dtype)
    finite = every[every.isfinite()]
    p = torch.nn.Parameter(finite.clone())
    optimizer = Gravity([p], lr=0.1, velocity_std=0.0, beta=0.5, fused=True)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state[p]
    assert torch.equal(p, finite)
    state["velocity"].copy_(finite)
    optimizer.step()
    expected = (finite.float() * np.float32((0.5 * 2 + 1) / 4)).to(dtype)
    assert torch.equal(state["velocity"], expected)
    infinite = torch.nn.Parameter(every[every.isinf() | every.isnan()])
    infinite.grad = torch.zeros_like(infinite)
    before = infinite.detach().clone()
    Gravity([infinite], velocity_std=0.0, fused=True).step()
    assert torch.equal(infinite.isnan(), before.isnan())
    assert torch.equal(infinite[before.isinf()], before[before.isinf()])


def test_a_number_above_the_largest_float16_becomes_infinite():
    """Those below 2¹⁷ have the exponent of NaN, if it is not set apart."""
    p = torch.nn.Parameter(torch.full((100,), 60_000, dtype=torch.float16))
    optimizer = Gravity([p], lr=2e5, velocity_std=0.0, fused=True)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    velocity = optimizer.state[p]["velocity"].copy_(torch.linspace(-1, 1, 100))
    optimizer.step()
    exact = 60_000 - velocity.float() * np.float32(2e5)
    assert (exact.abs() > 2**17).any()
    assert ((exact > 65_520) & (exact < 2**17)).any()
    assert torch.equal(p, exact.half())


def test_a_replaced_gradient_velocity_or_parameter_is_seen(taken):
    def step(**options):
        (p,) = parameters((10,))
        optimizer = Gravity([p], **options)
        for number in range(4):
            p.grad = torch.full((10,), 0.5 + number)
            optimizer.step()
            if number == 1:
                optimizer.state[p]["velocity"] = torch.ones(10)
            if number == 2:
                p.data = torch.ones(10)
                del optimizer.state[p]
        return [p.detach(), *optimizer.state[p].values()]

    assert same(step(fused=True), step(foreach=False))
    assert taken == [1] * 4


def test_the_kernels_hold_no_tensor():
    import gc
    import weakref

    (p,) = parameters((10,))
    optimizer = Gravity([p], fused=True)
    p.grad = torch.ones(10)
    optimizer.step()
    held = [weakref.ref(x) for x in (p.grad, *optimizer.state[p].values())]
    p.grad = None
    optimizer.state.clear()
    gc.collect()
    assert [x() for x in held] == [None] * 3


@pytest.mark.parametrize("name", ["velocity", "step"])
def test_another_state_in_the_memory_of_the_old_one_is_seen(taken, name):
    """The allocator gives the address of a freed tensor to the next one that fits there."""

    def step(**options):
        (p,) = parameters((64,))
        memory = torch.zeros(64)
        optimizer = Gravity([p], **options)
        p.grad = torch.linspace(-1, 1, 64)
        optimizer.step()
        state = optimizer.state[p]
        state["velocity"] = memory.copy_(state["velocity"])
        state["step"] = (counter := torch.zeros(2).fill_(1.0))[0]
        optimizer.step()
        if name == "velocity":
            state["velocity"] = memory.view(torch.bfloat16)[:64].fill_(0.5)
        else:
            state["step"] = counter.view(torch.float64)[0].fill_(2.0)
        optimizer.step()
        return [p.detach(), *(state[key].clone() for key in sorted(state)), memory[32:]]

    assert same(step(), step(foreach=False))
    assert len(taken) == (3 if name == "velocity" else 2)


def test_more_than_one_thread_is_on_torchs_team_only(monkeypatch, threads):
    """Without GOMP_parallel, in a child of a fork, and for few elements there is one thread."""
    used = []

    def team(kernel, call, count, flags):
        used.append(count)
        own(kernel, call, count, flags)

    if (own := _fused_cpu._team()) is None:
        pytest.skip("this torch has no GOMP_parallel")
    threads(2)
    monkeypatch.setattr(_fused_cpu, "_team", lambda: team)
    run(parameters((10,)), fused=True)
    assert not used
    large = [(3 * _fused_cpu.SHARE,)]
    loop = run(parameters(*large), foreach=False)
    assert same(run(parameters(*large), fused=True), loop)
    assert used
    for module, name, value in (
        (_fused, "is_forked", True),
        (_fused_cpu, "_team", lambda: None),
    ):
        used.clear()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert same(run(parameters(*large), fused=True), loop)
        assert not used


def test_a_library_without_the_entry_is_no_error(monkeypatch):
    for error in (OSError, AttributeError):

        def missing(path, error=error):
            raise error(path)

        monkeypatch.setattr(ctypes, "CDLL", missing)
        assert _fused_cpu._team.__wrapped__() is None


TWO_THREADS = """
import threading, torch
from tests.adapters import test_torch_fused as t

torch.set_num_threads(2)
shapes = [(300_000,)] * 3
expected = t.run(t.parameters(*shapes), steps=5, fused=True)
results = []
work = lambda: results.append(t.run(t.parameters(*shapes), steps=5, fused=True))
threads = [threading.Thread(target=work) for _ in range(4)]
[x.start() for x in threads]
[x.join() for x in threads]
print(*[t.same(x, expected) for x in results])
"""
# The child makes no other operation of torch: with several threads, those wait for ever.
FORK = """
import os, warnings, torch
from tests.adapters import test_torch_fused as t

warnings.simplefilter("ignore")  # Python's own about threads and fork
torch.set_num_threads(2)
(p,), (q,) = (t.parameters((600_000,)) for _ in range(2))
optimizers = [t.Gravity([x], fused=True) for x in (p, q)]
p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
for optimizer in optimizers:
    optimizer.step()
read, write = os.pipe()
if not os.fork():
    optimizers[0].step()
    os.write(write, p.detach().numpy().tobytes()[-1000:])
    os._exit(0)
optimizers[1].step()
print(os.read(read, 1000) == q.detach().numpy().tobytes()[-1000:])
"""
READ_ONLY = """
from tests.adapters import test_torch_fused as t
print(t.same(t.run(t.parameters((9,)), fused=True), t.run(t.parameters((9,)), foreach=False)))
"""
LAZY = """
import sys, torch, gravity_torch
p = torch.nn.Parameter(torch.ones(3))
optimizers = [gravity_torch.Gravity([p], **x) for x in ({}, {"fused": True}, {"foreach": True})]
p.grad = torch.ones(3)
optimizers[2].step()
print("numba" in sys.modules)
optimizers[0].step()
print("numba" in sys.modules, {"jax", "tensorflow"} & {*sys.modules} == set())
"""


def test_steps_in_several_python_threads():
    assert printed_words(TWO_THREADS) == ["True"] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_step_in_a_forked_process():
    assert printed_words(FORK) == ["True"]


def test_a_folder_for_the_cache_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    printed = printed_words(READ_ONLY, NUMBA_CACHE_DIR=str(file / "folder"))
    assert printed == ["True"]


def test_numba_is_imported_at_the_first_step_that_needs_it():
    assert printed_words(LAZY) == ["False", "True", "True"]


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("_fused_cpu", "_numba_kernels"):
        monkeypatch.delitem(sys.modules, f"gravity_torch.{name}")
        monkeypatch.delattr(gravity_torch, name)
    _fused.runner.cache_clear()
    yield
    _fused.runner.cache_clear()


@pytest.mark.usefixtures("without_numba")
def test_without_numba_the_default_is_foreach(monkeypatch):
    called = []

    def multi_tensor(items, *args):
        called.append(len(items))
        _multi_tensor.multi_tensor(items, *args)

    loop = run(parameters(*SHAPES), foreach=False)
    monkeypatch.setattr(_paths, "multi_tensor", multi_tensor)
    assert same(run(parameters(*SHAPES)), loop)
    assert called == [len(SHAPES)] * 3
    with pytest.raises(RuntimeError, match=re.escape(f"numba: {install('torch')}")):
        run(parameters((3,)), fused=True)


def test_a_parameter_that_cannot_be_fused(taken):
    """The default updates it by foreach; fused=True is refused before anything moves."""
    (good,), other = parameters((3,)), torch.nn.Parameter(torch.ones(3, device="meta"))
    groups = [{"params": [good]}, {"params": [parameters((3,))[0], other]}]
    message = r"^`fused=True` requires all the params .* but torch.float32 and meta$"
    with pytest.raises(RuntimeError, match=message):
        Gravity(groups, fused=True)
    optimizer = Gravity(groups)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    assert taken == [2]
    before = good.detach().clone()
    optimizer.param_groups[1]["fused"] = True
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert taken == [2]
    assert torch.equal(good, before)
    assert optimizer.state[good]["step"] == 1


def test_the_kernels_are_all_that_a_step_calls():
    """No operation of torch is made for a parameter or its counter, but for the profiler's two."""
    from tests.support.torch_reference import Calls

    params = parameters(*[(5,)] * 20)
    optimizer = Gravity(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    with Calls() as calls:
        optimizer.step()
    assert calls.number <= 2
    assert [int(optimizer.state[p]["step"]) for p in params] == [2] * 20


def test_functional_tensors_do_not_reach_a_kernel():
    wrapped = torch._to_functional_tensor(torch.ones(3))
    group = Gravity([torch.ones(3, requires_grad=True)]).param_groups[0]
    batch = Batch(group, [wrapped], [wrapped], [wrapped], [torch.tensor(0.0)])
    plan = _paths.plan([batch], {}, Checks())
    assert not plan.kernels
    assert len(plan.others) == 1
