"""The kernels of `fused=True` for GPUs, without a GPU: Triton's interpreter runs them on the CPU.

Triton's compiler makes PTX, the assembly language of NVIDIA's GPUs, on any machine, so tests also
read which instructions a GPU would execute. What only a GPU can show is in test_torch_cuda.py.
"""

import collections
import contextlib
import functools
import importlib
import os
import re
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from tests.support.guarded import Guarded, assert_same_bits, normal, real  # noqa: E402
from tests.support.triton_processes import (  # noqa: E402
    compiling,
    interpreted,
    skip_module_without_triton,
)

skip_module_without_triton()

from gravity_torch._items import Options  # noqa: E402
from gravity_torch._single_tensor import single_tensor  # noqa: E402

CPU = torch.device("cpu")
REAL = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DTYPES = [*REAL, torch.complex64, torch.complex128]
MIXED = [
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float16, torch.float32, torch.float32),
    (torch.float32, torch.bfloat16, torch.float16),
]
# With `limits`, a block has 16 numbers (8 in float64), and a chunk 48.
SIZES = [0, 1, 15, 16, 17, 32, 33, 47, 48, 49, 64, 65, 101]


@contextlib.contextmanager
def limits(block_bytes=64, chunk=48, counters=4):
    """Make blocks and chunks short, so that small tensors have several."""
    from gravity_torch import _fused_cuda

    numbers = {"SHORTEST": chunk, "LONGEST": chunk, "COUNTERS": counters}
    with mock.patch.multiple(_fused_cuda, BLOCK_BYTES=block_bytes, **numbers):
        yield _fused_cuda


def compare(
    dtypes,
    gradients,
    *,
    velocities=None,
    weights=None,
    options=None,
    first_step=1,
    capturable=False,
    shifts=(0, 0, 0),
    maxima=None,
    lr=None,
    updates=1,
):
    """Update by the kernels and by the core; compare the bits, and what must not change."""
    from gravity_torch import _fused_cuda

    options = Options(0.1, 0.9, 0.03, maximize=False) if options is None else options
    generator = torch.Generator().manual_seed(7)
    p_type, grad_type, velocity_type = dtypes
    steps = Guarded(torch.arange(len(gradients)).float() % 5)
    tensors, items, rows = [], [], []
    for i, g in enumerate(gradients):
        g = g.to(grad_type)
        w = normal(len(g), p_type, generator) if weights is None else weights[i].clone()
        v = normal(len(g), velocity_type, generator) if velocities is None else velocities[i]
        guarded = [Guarded(x, shift) for x, shift in zip((w, g, v), shifts, strict=True)]
        max_abs = None if maxima is None else maxima[i]
        items.append([real(w), real(g), real(v.clone()), i % 5 + first_step, max_abs])
        address = 0 if max_abs is None else max_abs.data_ptr()
        row = [*(x.address for x in guarded), steps.address + 4 * i, len(g), address]
        tensors.append(guarded)
        rows.append(row)
    table = np.array(rows, np.int64).reshape(-1, 6)
    given = table.copy()
    options = options._replace(first_step=first_step)
    on_device = options if lr is None else options._replace(lr=lr)
    with np.errstate(all="ignore"):  # as on a GPU
        for number in range(updates):
            single_tensor([(*x[:3], x[3] + number, x[4]) for x in items], options)
            _fused_cuda.prepare_group(dtypes, table, CPU, on_device, capturable, {})()
    assert (table == given).all()
    assert_same_bits(steps.numbers(), torch.arange(len(gradients)) % 5 + float(updates))
    for (p, grad, velocity), (w, g, v, *_) in zip(tensors, items, strict=True):
        assert_same_bits(real(p.numbers()), w)
        assert_same_bits(real(velocity.numbers()), v)
        assert_same_bits(real(grad.numbers()), g)
    for x in [steps, *(x for guarded in tensors for x in guarded)]:
        x.assert_intact()


def gradients(sizes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = [0.01, 1.0, 30.0]
    return [normal(n, dtype, generator, scales[i % 3]) for i, n in enumerate(sizes)]


PLAIN = Options(0.1, 0.9, None, maximize=False)
DECAYING = Options(0.3, 1.0, 0.07, maximize=True)
AT_REST = Options(0.0, 0.0, 0.5, maximize=False)


@pytest.mark.parametrize(
    ("options", "capturable"), [(PLAIN, True), (DECAYING, False), (DECAYING, True)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@interpreted
def test_the_bits_are_those_of_the_core(dtype, options, capturable):
    numbers = gradients(SIZES, dtype)
    with limits():
        compare([dtype] * 3, numbers, options=options, capturable=capturable, updates=2)


@pytest.mark.parametrize("capturable", [False, True])
@interpreted
def test_the_smallest_learning_rate_and_beta(capturable):
    with limits():
        compare([torch.float32] * 3, gradients([60]), options=AT_REST, capturable=capturable)


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("first_step", [0, 1])
@interpreted
def test_mixed_dtypes_are_computed_in_float32(dtypes, first_step):
    with limits():
        compare(dtypes, gradients(SIZES), first_step=first_step)


@pytest.mark.parametrize("shifts", [(4, 0, 0), (0, 4, 0), (0, 0, 4), (8, 12, 4)], ids=str)
@interpreted
def test_addresses_that_are_no_multiples_of_16(shifts):
    with limits():
        compare([torch.float32] * 3, gradients(SIZES), shifts=shifts)
        compare([torch.bfloat16] * 3, gradients(SIZES), shifts=[s // 2 for s in shifts])


@interpreted
def test_tensors_of_the_usual_blocks_and_chunks():
    from gravity_torch import _fused_cuda

    n = _fused_cuda.SHORTEST
    compare([torch.float32] * 3, gradients([3, n - 1, n + 1, 3 * n]))
    compare([torch.bfloat16] * 3, gradients([n + 1, 3]))


SPECIAL = {
    "zeros": [0.0, -0.0],
    "nan": [float("nan"), 1.0, -2.0],
    "inf": [float("inf"), 1.0],
    "negative": [-float("inf"), -1.0],
    "nan and inf": [float("inf"), -float("nan")],
    "huge": [-3e38, 0.0, 1.0, 3e38],
    "subnormal": [1e-40, -3e-45, 1e-39],
    "tiny": [1e-320, -5e-324, 1e-310],
    "both ends": [1e-45, 3e38, -1e-38, 1e5],
}


@pytest.mark.parametrize("dtype", REAL, ids=str)
@interpreted
def test_special_gradients_velocities_and_weights(dtype):
    special = [torch.tensor(x, dtype=torch.float64).to(dtype) for x in SPECIAL.values()]
    ordinary = [torch.linspace(-2, 3, len(x)).to(dtype) for x in special]
    with limits():
        compare([dtype] * 3, special)
        compare([dtype] * 3, ordinary, velocities=special)
        compare([dtype] * 3, ordinary, weights=special)
        # One number of a special kind, in each of the blocks of a longer gradient.
        for place in 0, 70, 99:
            long = gradients([100] * len(special), dtype)
            for x, numbers in zip(long, special, strict=True):
                x[place] = numbers[0]
            compare([dtype] * 3, long)


@interpreted
def test_every_nan_stays_nan():
    """Rounding the bits of this one as a number's would give −0."""
    numbers = [torch.tensor([2**31 - 1, 0], dtype=torch.int32).view(torch.float32)]
    compare((torch.bfloat16, torch.float32, torch.bfloat16), numbers)
    compare((torch.float16, torch.float32, torch.float16), numbers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@interpreted
def test_every_half_is_widened_and_rounded_once(dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    zeros = torch.zeros(2**16, dtype=dtype)
    for velocity, weight in ((every, zeros), (every, every), (zeros, every)):
        for lr in 0.0, 0.7:
            options = Options(lr, 0.9, None, maximize=False)
            given = {"velocities": [velocity], "weights": [weight]}
            compare([dtype] * 3, [zeros], options=options, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@interpreted
def test_a_maximum_from_outside(dtype):
    """Some tensors are shards, whose max|G| is that of the whole gradient."""
    working = torch.float64 if dtype == torch.float64 else torch.float32
    given = [70.0, None, 0.5, float("nan"), None]
    maxima = [None if x is None else torch.tensor(x, dtype=working) for x in given]
    sizes = [100, 100, 5, 20, 0]
    with limits() as fused_cuda:
        compare([dtype] * 3, gradients(sizes, dtype), maxima=maxima)
        maxima = [torch.tensor(float(i), dtype=working) for i in range(5)]
        with mock.patch.object(fused_cuda.kernels, "find", None):  # nothing to find
            compare([dtype] * 3, gradients(sizes, dtype), maxima=maxima)


@pytest.mark.parametrize("capturable", [False, True])
@interpreted
def test_a_learning_rate_in_a_tensor(capturable):
    options = Options(0.3, 0.9, 0.07, maximize=False)
    with limits():
        for dtype in torch.float32, torch.float64:
            lr = torch.tensor(0.3, dtype=torch.float64)
            numbers = gradients([40, 3], dtype)
            compare([dtype] * 3, numbers, options=options, lr=lr, capturable=capturable)


@interpreted
def test_a_learning_rate_on_the_device_is_read_by_the_kernels():
    """The host must not wait for it."""
    lr = torch.tensor(0.3, dtype=torch.float64)
    refuse = mock.Mock(side_effect=AssertionError("the host reads a tensor"))
    with limits(), mock.patch.multiple(torch.Tensor, item=refuse, __float__=refuse):
        run(table_of([5, 100]), options=Options(lr, 0.9, 0.1, maximize=False), capturable=True)


@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    dtype=st.sampled_from(REAL),
    exponent=st.integers(-44, 38),
    shift=st.sampled_from([0, 0, 8]),
    seed=st.integers(0, 99),
    capturable=st.booleans(),
)
@settings(max_examples=15)
@interpreted
def test_any_sizes_and_values(sizes, dtype, exponent, shift, seed, capturable):
    generator = torch.Generator().manual_seed(seed)
    numbers = [normal(n, dtype, generator, 10.0 ** (exponent * i / 5)) for i, n in enumerate(sizes)]
    with limits():
        compare([dtype] * 3, numbers, shifts=[shift] * 3, capturable=capturable)


@interpreted
def test_an_optimizer_runs_these_kernels_group_by_group():
    """CPU tensors stand for those of a GPU."""
    from gravity_torch import Gravity, _fused

    def train(**options):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(normal(n, torch.float32, generator)) for n in (5, 70, 0, 1)]
        params.append(torch.nn.Parameter(params[0].detach().double()))
        groups = [
            {"params": params[:2], "weight_decay": 0.1, "lr": 0.3},
            {"params": params[2:], "maximize": True, "beta": 0.5, "first_step": 0},
        ]
        optimizer = Gravity(groups, **options)
        for number in range(3):
            for p in params[: 4 + number]:
                p.grad = normal(p.numel(), p.dtype, generator, 10.0 ** (number - 1))
            optimizer.step()
        return [x for p in params for x in (p.detach(), *optimizer.state[p].values())]

    with mock.patch.dict(_fused._COMPILERS, cpu=("triton", "_fused_cuda")):
        _fused.runner.cache_clear()
        fused = train(fused=True)
        assert _fused.runner("cpu").__name__ == "gravity_torch._fused_cuda"
    _fused.runner.cache_clear()
    for x, y in zip(fused, train(foreach=False), strict=True):
        assert_same_bits(x, y)


# The host's part.


def table_of(sizes, dtype=torch.float32):
    """Return a table, and the tensors whose addresses it has."""
    tensors = [[torch.ones(n, dtype=dtype) for _ in range(3)] for n in sizes]
    steps = torch.zeros(len(sizes))
    rows = [
        [*(x.data_ptr() for x in xs), steps[i].data_ptr(), n, 0]
        for i, (xs, n) in enumerate(zip(tensors, sizes, strict=True))
    ]
    return np.array(rows, np.int64).reshape(-1, 6), (tensors, steps)


def run(
    table_and_tensors,
    dtype=torch.float32,
    options=PLAIN,
    capturable=False,
    keep=None,
):
    from gravity_torch import _fused_cuda

    table, tensors = table_and_tensors
    keep = {} if keep is None else keep
    _fused_cuda.prepare_group([dtype] * 3, table, CPU, options, capturable, keep)()
    return tensors


class Launches:
    """Stands for the kernels, and notes their launches."""

    def __init__(self, kernels):
        self.notes = []
        self.columns = kernels

    def __getattr__(self, name):
        if name not in ("count", "find", "update"):
            return getattr(self.columns, name)

        launch = mock.MagicMock()
        launch.__getitem__.side_effect = lambda grid: functools.partial(self._note, name, grid)
        return launch

    def _note(self, name, grid, *args, **options):
        self.notes.append((name, grid, options))


@pytest.mark.parametrize("number", [1, 500])
@interpreted
def test_the_launches_do_not_grow_with_the_tensors(number):
    """Besides the one upload. No kernel is fused, which would change the bits."""
    from gravity_torch import _fused_cuda

    for capturable, sizes, names in (
        (False, [3], ["find", "update"]),
        (True, [3], ["count", "find", "update"]),
        (True, [0], ["count"]),
        (False, [0], []),
    ):
        launches = Launches(_fused_cuda.kernels)
        with mock.patch.object(_fused_cuda, "kernels", launches):
            run(table_of(sizes * number), capturable=capturable)
        assert [name for name, *_ in launches.notes] == names
        assert all(options["enable_fp_fusion"] is False for *_, options in launches.notes)
        for name, grid, _ in launches.notes:
            assert grid == ((number + 127) // 128 if name == "count" else number,)


@interpreted
def test_an_old_triton_is_refused():
    """Its quotients are not the reference's."""
    import triton

    from gravity_torch import _triton_kernels

    with (
        mock.patch.object(triton, "__version__", "3.5.1"),
        pytest.raises(ImportError, match=r"before version 3\.6"),
    ):
        importlib.reload(_triton_kernels)


@interpreted
def test_no_tensors():
    run(table_of([]))
    run(table_of([]), capturable=True)


@interpreted
def test_the_host_counts_where_the_counters_are():
    """Far apart, close together, in any order, and at addresses that are no multiples of 4."""
    from gravity_torch import _fused_cuda

    guarded = [Guarded(torch.tensor([1.0 + i]), shift) for i, shift in enumerate((0, 1, 6, 3))]
    addresses = np.array([x.address for x in guarded])[[2, 0, 3, 1]]
    counters, places = _fused_cuda._on_host(addresses)
    assert counters[places].tolist() == [3, 1, 4, 2]
    counters[places] += np.float32(1)
    assert [x.numbers().item() for x in guarded] == [2, 3, 4, 5]
    for x in guarded:
        x.assert_intact()


@interpreted
def test_a_step_that_fails_counts_nothing():
    from gravity_torch import _fused_cuda

    table = table_of([3])
    error = RuntimeError("out of memory")
    for name in "_upload", "_launch":
        with (
            mock.patch.object(_fused_cuda, name, side_effect=error),
            pytest.raises(RuntimeError, match="out of memory"),
        ):
            run(table)
    _, (((p, _, velocity),), steps) = table
    assert steps.item() == 0
    assert (p == 1).all()
    assert (velocity == 1).all()


@pytest.mark.parametrize("dtype", REAL, ids=str)
@interpreted
def test_chunks_cover_each_element_once(dtype):
    """For tensors of any size, a terabyte too; whole blocks are the aligned ones."""
    from gravity_torch import _fused_cuda

    k = _fused_cuda.kernels
    block = _fused_cuda.BLOCK_BYTES // dtype.itemsize
    for sizes in ([5, 0, block, 10**6], [2**33 + 5, 3], [1000] * 1000, [10**7] * 3, [10**9]):
        rows = np.zeros((len(sizes), k.ROW.value), np.int64)
        rows[:, k.SIZE] = sizes
        rows[:, k.P] = 4096
        rows[-1, k.VELOCITY] = 4096 + dtype.itemsize
        tensor, start, length, whole = _fused_cuda._chunks(rows, block).T
        assert (tensor[1:] >= tensor[:-1]).all()
        for i, size in enumerate(sizes if len(sizes) < 9 else []):
            own = tensor == i
            ends = np.cumsum(length[own])
            assert (start[own] == ends - length[own]).all()
            assert ends[-1:].tolist() == [size] * (size > 0)
        assert length.min() > 0
        assert length.max() <= _fused_cuda.LONGEST
        assert (start * dtype.itemsize % 16 == 0).all()
        assert (start % block == 0).all()
        aligned = tensor != len(sizes) - 1
        assert (whole == length // block * block * aligned).all()
        # Enough programs to keep a GPU busy, and no more than that takes.
        total, programs = sum(sizes), _fused_cuda.PROGRAMS
        assert len(tensor) >= min(programs, total // _fused_cuda.SHORTEST) / 2
        assert len(tensor) <= max(programs, total / _fused_cuda.LONGEST) + len(sizes)


@interpreted
def test_a_tensor_of_more_than_two_billion_elements():
    """Only the last chunk is updated; the system gives memory only to what is touched."""
    from gravity_torch import _fused_cuda

    size = 2**31 + 2**16 + 77
    try:
        tensors = [torch.empty(size, dtype=torch.bfloat16) for _ in range(3)]
    except RuntimeError:
        pytest.skip("the system does not promise 13 GB")
    step, ends = torch.zeros(1), [x[-1000:].fill_(1) for x in tensors]
    own = _fused_cuda._chunks
    row = [*(x.data_ptr() for x in tensors), step.data_ptr(), size, 0]
    expected = torch.ones(77, dtype=torch.bfloat16)
    item = expected.clone(), expected.clone(), expected.clone(), 1, None
    single_tensor([item], PLAIN)
    with mock.patch.object(_fused_cuda, "_chunks", lambda *args: own(*args)[-1:]):
        run((np.array([row], np.int64), None), torch.bfloat16)
    for end, x in zip(ends, (item[0], expected, item[2]), strict=True):
        assert_same_bits(end[-77:], x)
        assert (end[:-77] == 1).all()


@interpreted
def test_what_a_captured_step_reads_lives_on_and_is_allocated_before():
    from gravity_torch import _fused_cuda

    made, capturing = [], mock.Mock(return_value=False)

    def new(size):
        made.append(torch.empty(size, dtype=torch.int64))
        return made[-1]

    keep = {}
    with (
        mock.patch.object(_fused_cuda, "_new_pinned", new),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", capturing),
    ):
        assert _fused_cuda._pinned(10, 1, False, keep) is made[-1]
        assert not keep  # a step that no graph can contain leaves nothing
        for size in 10, 20, 20, 20:
            assert len(_fused_cuda._pinned(size, 1, True, keep)) == size
        _fused_cuda._pinned(5, 2, True, keep)
        assert [len(x) for x in keep.values()] == [20, 5]
        spare, number = keep[1], len(made)
        capturing.return_value = True
        first = _fused_cuda._pinned(15, 1, True, keep)
        assert len(first) == 15
        assert len(made) == number
        second = _fused_cuda._pinned(15, 1, True, keep)  # another graph
        capturing.return_value = False
        later = [_fused_cuda._pinned(15, 1, True, keep) for _ in range(3)]
    addresses = [x.data_ptr() for x in (first, second, *later)]
    assert first.data_ptr() == spare.data_ptr()
    assert len(set(addresses)) == 5
    assert [x.data_ptr() for x in keep["captured"]] == addresses[:2]


# What the compiler makes of the kernels.

# The profile `thorough` has the older and the newer ones, too.
ARCHITECTURES = [80, 90, 100] if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else [90]
# Bytes an element that `find` reads, and that `update` reads and writes.
BYTES = {torch.float32: (4, 20), torch.float64: (8, 40), torch.bfloat16: (2, 10)}


def ptx(name, arch, dtype):
    """Return the instructions of a kernel, as it is launched, and the elements of a block."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gravity_torch import _fused_cuda

    launches = Launches(_fused_cuda.kernels)
    with mock.patch.object(_fused_cuda, "kernels", launches):
        run(table_of([5], dtype), dtype, DECAYING, capturable=True)
    options = {launched: options for launched, _, options in launches.notes}[name]
    compiled = {key: options.pop(key) for key in ("num_warps", "enable_fp_fusion")}
    kernel = getattr(_fused_cuda.kernels, name)
    signature = dict.fromkeys(kernel.arg_names, "i32") | {"table": "*i64"}
    signature |= dict.fromkeys(options, "constexpr")
    source = ASTSource(kernel, signature, constexprs=options)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=compiled)
    return made.asm["ptx"], options["block"] // compiled["num_warps"] // 32


def arithmetic(code):
    names = "add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|ex2|lg2|tanh|sin|cos"
    return collections.Counter(re.findall(rf"\b((?:{names})\.[\w.]*f(?:16|32|64)\w*)\b", code))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
@compiling
def test_a_gpu_rounds_each_operation(dtype, arch):
    """Without .rn, the assembler might fuse a product and a sum.

    The assembler makes several instructions of a division, fused ones among them, but the result of
    div.rn is the correctly rounded one.
    """
    width = 64 if dtype == torch.float64 else 32
    code, elements = ptx("update", arch, dtype)
    found = arithmetic(code)
    assert all(re.fullmatch(r"(add|sub|mul|div)\.rn\.f(32|64|32x2)", name) for name in found), found
    assert found[f"div.rn.f{width}"] == 2 * elements  # in whole blocks, and in the rest
    assert ".ftz" not in code
    assert "approx" not in code
    assert ("cvt.rn.bf16" in code) == (dtype == torch.bfloat16)
    assert not arithmetic(ptx("find", arch, dtype)[0])
    found = arithmetic(ptx("count", arch, dtype)[0])
    assert all(re.fullmatch(r"(add|sub|mul|div)\.rn\.f(32|64)", name) for name in found), found
    assert found["div.rn.f64"] == 2


def bytes_each(code, kind, elements):
    """Return how many bytes of an element are moved 16 at a time, by instructions of a kind."""
    return 16 * len(re.findall(rf"\b{kind}\.global\.(?:v4\.b32|v2\.b64)\b", code)) / elements


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
@compiling
def test_whole_blocks_are_moved_16_bytes_at_a_time(dtype, arch):
    """24 bytes an element in float32. The rest is moved one element at a time."""
    size = dtype.itemsize
    for kernel, loads, stores in (("find", 1, 0), ("update", 3, 2)):
        code, elements = ptx(kernel, arch, dtype)
        assert bytes_each(code, "ld", elements) == loads * size
        assert bytes_each(code, "st", elements) == stores * size
        assert (loads + stores) * size == BYTES[dtype][kernel == "update"]
        masked = re.findall(r"@%p\d+ (?:ld|st)\.global\S*\.(?:v\d\.)?b(\d+)", code)
        assert masked.count(str(8 * size)) >= (loads + stores) * elements
        wide = re.findall(r"\.global\S*\.v\d\.b", code)
        assert len(wide) == (loads + stores) * size * elements / 16
