"""Every path of gravity_torch.Gravity against the NumPy reference, element by element."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import gravity_core  # noqa: E402
import gravity_torch  # noqa: E402
from gravity_torch import _fused_cpu, _multi_tensor, _multi_tensor_gpu, _paths, _tensors  # noqa: E402
from tests.support.torch_reference import Reference, to_numpy  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
# The options of each path, and the attributes that are patched for it.
GPU = [(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)]
PATHS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "loop": ({"foreach": False}, []),
    "default": ({}, []),
    "foreach": ({"foreach": True}, []),
    "foreach and capturable": ({"foreach": True, "capturable": True}, []),
    "fused": ({"fused": True}, []),
    "fused and capturable": ({"fused": True, "capturable": True}, []),
    "GPU": ({"foreach": True}, GPU),
    "GPU and capturable": ({"foreach": True, "capturable": True}, GPU),
}
# These replace thresholds of thousands of elements, so that small tensors reach every branch. Their
# order is that of the real thresholds.
THRESHOLDS = [
    (_multi_tensor, "BLOCK", 100),
    (_multi_tensor_gpu, "CONCATENATED", 100),
    (_fused_cpu, "SHARE", 10),
    (_fused_cpu, "PIECE", 60),
]
SHAPES = [(), (0,), (2, 0), (1,), (3,), (7,), (3, 4), (23,), (5, 6), (2, 3, 4, 5), (100,), (333,)]
LAYOUTS = ["contiguous", "transposed", "strided", "expanded"]


class Kind(NamedTuple):
    """Some parameters of one shape and dtype; the memory layouts of these and their gradients."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    number: int = 1
    layout: str = "contiguous"
    grad_layout: str = "contiguous"


class Group(NamedTuple):
    kinds: list[Kind]
    options: dict[str, Any] = {}  # noqa: RUF012
    lr_dtype: torch.dtype | None = None  # the dtype of a tensor learning rate


class Step(NamedTuple):
    exponent: int  # the gradients are about 10**exponent
    lrs: tuple[float, float, float]  # one for each group
    missing: int = 0  # every n-th parameter has no gradient; 0: all have one


def laid_out(values, layout):
    """Return the values in a memory layout; an expanded tensor repeats the first value."""
    if layout == "transposed":
        return values.mT.contiguous().mT if values.ndim > 1 else values
    if layout == "strided":
        return torch.stack([values, values], dim=-1)[..., 0]
    if layout == "expanded" and values.numel():
        return values.flatten()[0].expand(values.shape)
    return values


def values(rng, shape, dtype, scale=1.0):
    real, imaginary = (torch.tensor(scale * rng.normal(size=shape)) for _ in range(2))
    return (torch.complex(real, imaginary) if dtype.is_complex else real).to(dtype)


def is_exact(path, dtype):
    """Return whether V and W must have the bits of the reference.

    With capturable, foreach and the GPU path compute β̂ on the device.
    """
    rounds_alike = path not in ("foreach and capturable", "GPU and capturable")
    return rounds_alike and dtype.to_real() in (torch.float32, torch.float64)


def check(path, groups, steps, seed=0):
    """Step parameters on a path and in the reference, and compare them after every step."""
    rng = np.random.default_rng(seed)
    arguments, patches = PATHS[path]
    members, param_groups = [], []
    for index, (kinds, options, lr_dtype) in enumerate(groups):
        lr = steps[0].lrs[index]
        own = [
            (torch.nn.Parameter(laid_out(values(rng, k.shape, k.dtype), k.layout)), k)
            for k in kinds
            for _ in range(k.number)
        ]
        std = 0.01 / lr if lr else 0.02  # a rate of 0 would start from rest and warn
        given = {"lr": lr if lr_dtype is None else torch.tensor(lr, dtype=lr_dtype)}
        given["velocity_std"] = None if lr else std
        param_groups.append({"params": [p for p, _ in own], **given, **options})
        for p, kind in own:
            reference = Reference(p, std, seed=7, index=len(members), **options)
            members.append((p, kind, index, reference))
    with pytest.MonkeyPatch.context() as patch:
        for where in patches:
            patch.setattr(*where)
        optimizer = gravity_torch.Gravity(param_groups, seed=7, **arguments)
        for exponent, lrs, missing in steps:
            rates = []
            for group, lr in zip(optimizer.param_groups, lrs, strict=False):
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
                # A float32 stands for its shortest decimal, which is how NumPy writes it.
                rates.append(float(str(np.asarray(group["lr"])[()])))
            grads = {}
            for i, (p, kind, group, reference) in enumerate(members):
                p.grad = None
                if missing and i % missing == 0:
                    continue
                grad = laid_out(
                    values(rng, kind.shape, kind.dtype, 10.0**exponent), kind.grad_layout
                )
                p.grad, grads[p] = grad, to_numpy(grad)
                reference.step(grads[p], rates[group])
            optimizer.step()
            for p, _, _, reference in members:
                if p in grads:  # gradients are not modified
                    assert to_numpy(p.grad).tobytes() == grads[p].tobytes()
                if reference.steps:
                    reference.check(p, optimizer.state[p], exact=is_exact(path, p.dtype))
                else:
                    assert p not in optimizer.state


kinds = st.builds(
    Kind,
    st.sampled_from(SHAPES),
    st.sampled_from(DTYPES),
    st.integers(1, 5),
    st.sampled_from(LAYOUTS[:-1]),
    st.sampled_from(LAYOUTS),
)
group_options = st.fixed_dictionaries(
    {},
    optional={
        "beta": st.sampled_from([0.0, 0.5, 1.0]),
        "weight_decay": st.sampled_from([0.01, 0.3]),
        "maximize": st.booleans(),
        "first_step": st.sampled_from([0, 1]),
    },
)
lr_dtypes = st.sampled_from([None, torch.float32, torch.float64])
lists = st.lists(
    st.builds(Group, st.lists(kinds, min_size=1, max_size=4), group_options, lr_dtypes),
    min_size=1,
    max_size=3,
)
rates = st.sampled_from([0.0, 0.001, 0.1, 2.0])
sequences = st.lists(
    st.builds(Step, st.integers(-3, 2), st.tuples(rates, rates, rates), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)

# Every kind in every dtype at once, with enough tensors for several batches and a partial one.
EVERYTHING = [
    Group(
        [Kind(s, d, 9 if s == (7,) else 2, k, g) for s in SHAPES for d in DTYPES], options, lr_dtype
    )
    for options, k, g, lr_dtype in (
        ({}, "contiguous", "contiguous", None),
        (
            {"weight_decay": 0.1, "maximize": True, "beta": 0.5},
            "transposed",
            "transposed",
            torch.float32,
        ),
        ({"weight_decay": 0.1, "first_step": 0}, "strided", "expanded", torch.float64),
    )
]
STEPS = [Step(0, (0.1, 0.3, 0.1), 7), Step(-2, (0.0, 0.2, 0.1)), Step(1, (0.1, 2.0, 0.1), 3)]


@pytest.fixture
def low_thresholds(monkeypatch):
    for threshold in THRESHOLDS:
        monkeypatch.setattr(*threshold)


@pytest.mark.filterwarnings("ignore:lr is .* at the first step:UserWarning")
@pytest.mark.usefixtures("low_thresholds")
@pytest.mark.parametrize("path", PATHS)
def test_every_path_has_the_bits_of_the_reference_or_stays_inside_the_bound(path):
    @example(EVERYTHING, STEPS, 0)
    @given(lists, sequences, st.integers(0, 2**32))
    def stays_inside(groups, steps, seed):
        check(path, groups, steps, seed)

    stays_inside()


@pytest.mark.parametrize("path", ["loop", "default", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_tensors_above_the_real_thresholds(path, dtype):
    """The real thresholds apply, so kernels are vectorized and use several threads."""
    kinds = [
        Kind((3, 4), dtype, 3),
        Kind((5000,), dtype, 2 * (_multi_tensor.BLOCK // 5000) + 3),
        Kind((300, 500), dtype, 1, "transposed", "transposed"),
        Kind((_multi_tensor.BLOCK + 1,), dtype, 1),
        Kind((4 * _fused_cpu.SHARE + 1,), dtype, 1),
    ]
    options = {"weight_decay": 0.1, "maximize": True}
    check(path, [Group(kinds), Group(kinds[::2], options)], STEPS)


@given(st.permutations(range(4)), st.lists(st.sampled_from([0, 1, 2, 3]), min_size=4, max_size=4))
@example([2, 0, 3, 1], [3, 3, 1, 3])
@example([2, 0, 3, 1], [3, 3, 2, 3])
def test_is_dense_agrees_with_preserve_format(order, cuts):
    """Cut 0 expands a dimension, 1 takes one element of it, 2 takes every other element."""
    x = torch.empty(2, 3, 4, 5).permute(order)
    for dim, cut in enumerate(cuts):
        if cut == 0:
            x = x.narrow(dim, 0, 1).expand(*(2 if d == dim else -1 for d in range(4)))
        elif cut < 3:
            cut_off = slice(1) if cut == 1 else slice(None, None, 2)
            x = x[(slice(None),) * dim + (cut_off,)]
    kept = torch.empty_like(x, memory_format=torch.preserve_format).stride() == x.stride()
    assert _tensors.is_dense(x) == (kept or x.is_contiguous())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", ["loop", "foreach", "fused"])
def test_every_path_has_the_bits_of_the_reference_in_half_types(path, dtype):
    """The bound would allow W to be computed in the half type. Every path uses float32."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(1000, generator=generator).to(dtype))
    weights = [to_numpy(p)]
    options = {"weight_decay": 0.1, "velocity_std": 0.1}
    optimizer = gravity_torch.Gravity([p], **PATHS[path][0], **options)
    reference = gravity_core.Gravity(**options)
    for _ in range(30):
        p.grad = torch.randn(1000, generator=generator).to(dtype)
        optimizer.step()
        reference.step(weights, [to_numpy(p.grad)])
        assert to_numpy(p).tobytes() == weights[0].tobytes()
        v = to_numpy(optimizer.state[p]["velocity"])
        assert v.tobytes() == reference.velocity[0].tobytes()
