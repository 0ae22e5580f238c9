"""Tensors that share memory: every path gives the result of the loop."""

import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import (  # noqa: E402
    Gravity,
    _distributed,
    _fused_cpu,
    _memory,
    _multi_tensor,
    _multi_tensor_gpu,
    _paths,
    _tensors,
)
from tests.support.torch_helpers import assert_same, parameters  # noqa: E402

PATHS = {
    "default": {},
    "default, rate in a tensor": {"lr": torch.tensor(0.1, dtype=torch.float64)},
    "foreach": {"foreach": True},
    "GPU": {"foreach": True},
}
CAPTURABLE = {
    "foreach, capturable": {"foreach": True, "capturable": True},
    "GPU, capturable": {"foreach": True, "capturable": True},
}
DTYPES = [torch.float32, torch.bfloat16, torch.complex64]


def parameter(x):
    return torch.nn.Parameter(x)


def same(dtype):
    w = torch.linspace(-1, 1, 300).to(dtype)
    return [parameter(w), parameter(w)]


def tied(dtype):
    a, b = parameter(torch.linspace(-1, 1, 300).to(dtype)), parameter(torch.zeros(300, dtype=dtype))
    b.data = a.data
    return [a, parameter(torch.ones(300, dtype=dtype)), b]


def overlapping(dtype):
    w = torch.linspace(-1, 1, 600).to(dtype)
    return [parameter(w[:400]), parameter(torch.ones(7, dtype=dtype)), parameter(w[200:])]


def strided(dtype):
    w = torch.linspace(-1, 1, 600).to(dtype).view(20, 30)
    return [parameter(w), parameter(w.t()), parameter(w[:, 3:5])]


def chain(dtype):
    w = torch.linspace(-1, 1, 600).to(dtype)
    return [parameter(w[i : i + 300]) for i in range(0, 300, 60)]


def random(params, optimizer, generator):
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def other_parameters(params, optimizer, generator):
    random(params, optimizer, generator)
    for p, q in zip(params, params[1:] + params[:1], strict=True):
        if p.shape == q.shape:
            p.grad = q.detach()


def own_parameters(params, optimizer, generator):
    for p in params:
        p.grad = p.detach()


def velocities(params, optimizer, generator):
    random(params, optimizer, generator)
    for p in params:
        if p in optimizer.state:
            p.grad = optimizer.state[p]["velocity"]


def one_velocity(params, optimizer, generator):
    random(params, optimizer, generator)
    first, last = params[0], params[-1]
    if first in optimizer.state and first.shape == last.shape:
        optimizer.state[last]["velocity"] = optimizer.state[first]["velocity"]


def the_velocity_is_the_parameter(params, optimizer, generator):
    random(params, optimizer, generator)
    if params[0] in optimizer.state:
        optimizer.state[params[0]]["velocity"] = params[0].data


SHARED = [same, tied, overlapping, strided, chain]
GRADIENTS = [
    *(random, other_parameters, own_parameters, velocities),
    *(one_velocity, the_velocity_is_the_parameter),
]


@pytest.fixture
def low(monkeypatch):
    """Small tensors reach every branch."""
    monkeypatch.setattr(_multi_tensor, "BLOCK", 100)
    monkeypatch.setattr(_multi_tensor_gpu, "CONCATENATED", 1000)
    monkeypatch.setattr(_fused_cpu, "SHARE", 10)
    monkeypatch.setattr(_fused_cpu, "PIECE", 60)


def train(make, dtype, give, options):
    params = make(dtype)
    groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}]
    optimizer = Gravity(groups, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        give(params, optimizer, generator)
        optimizer.step()
    states = [optimizer.state[p] for p in params]
    return [
        x.detach().clone() for p, s in zip(params, states, strict=True) for x in (p, *s.values())
    ]


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", SHARED)
def test_every_path_gives_the_result_of_the_loop(make, dtype, monkeypatch):
    for give in GRADIENTS:
        loop = train(make, dtype, give, {"foreach": False})
        for name, options in PATHS.items():
            with monkeypatch.context() as patch:
                if name == "GPU":
                    patch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
                assert_same(loop, train(make, dtype, give, options))


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("path", CAPTURABLE)
def test_the_paths_with_counters_on_the_device(path, monkeypatch):
    """β̂ is computed on the device, and rounded in another way."""
    options = CAPTURABLE[path]
    for make in SHARED:
        loop = train(make, torch.float32, random, options | {"foreach": False})
        with monkeypatch.context() as patch:
            if path.startswith("GPU"):
                patch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
            found = train(make, torch.float32, random, options)
        for x, y in zip(loop, found, strict=True):
            torch.testing.assert_close(x, y)


def test_gradients_are_those_before_the_step():
    """As in the NumPy reference, which copies them."""
    results = []
    for is_copied in (True, False):
        x, y = parameters((50,), (50,))
        optimizer = Gravity([y, x], foreach=False)
        for _ in range(5):
            y.grad, x.grad = x.detach(), y.detach()
            if is_copied:
                y.grad, x.grad = y.grad.clone(), x.grad.clone()
            optimizer.step()
        results.append([x.detach(), y.detach()])
    assert_same(*results)


def test_shared_memory_is_found_once_per_set_of_addresses(monkeypatch):
    params = parameters(*[(5,)] * 4)
    optimizer = Gravity(params)
    found = []
    monkeypatch.setattr(
        _memory, "_found", lambda *args, own=_memory._found: found.append(1) or own(*args)
    )
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert len(found) == 1
    params[2].data = params[1].data
    optimizer.step()
    assert len(found) == 2


def imaginary(x, conjugated=False):
    """Return a view of every second number, or of these numbers with the other sign."""
    z = torch.view_as_complex(x.view(-1, 2))
    return (z.conj() if conjugated else z).imag


# Views of one memory that have the same address, size and dtype; none is contiguous.
STRIDED = {
    "shares memory now": [lambda x, s=s: x.as_strided((4, 4), (s, 4 * s)) for s in (1, 2)],
    "has another sign now": [imaginary, lambda x: imaginary(x, conjugated=True)],
    "has another sign, and one element": [
        lambda x: imaginary(x[:2]),
        lambda x: imaginary(x[:2], True),
    ],
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", STRIDED)
def test_a_layout_that_changes_at_one_address_is_examined_again(path, case, monkeypatch):
    """`p.data` is replaced by another view of one memory."""
    if path == "GPU":
        monkeypatch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
    results = []
    for options in (PATHS[path], {"foreach": False}):
        memory = torch.linspace(-1, 1, 64)
        p, q = (torch.nn.Parameter(x) for x in (memory[:0], memory[16:32]))
        optimizer = Gravity([p, q], **options)
        for view in STRIDED[case]:
            p.data = view(memory)
            for _ in range(3):
                p.grad, q.grad = torch.full_like(p, 0.3), q.detach().clone()
                optimizer.step()
        results.append(memory)
    assert_same(*results)


def test_elements_that_share_memory_at_an_old_address_are_refused():
    for options in ({}, {"foreach": True}, {"foreach": False}):
        b, w = (torch.nn.Parameter(torch.ones(4, 3).t()) for _ in range(2))
        optimizer = Gravity([b, w], **options)
        b.grad, w.grad = torch.ones(3, 4), torch.ones(3, 4)
        optimizer.step()
        before = b.detach().clone()
        w.data = w.data[:1].expand(3, 4)
        with pytest.raises(ValueError, match="parameter must have memory for each of its elements"):
            optimizer.step()
        assert torch.equal(b, before)
        assert int(optimizer.state[b]["step"]) == 1


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_one_counter_set_by_hand_is_split(options):
    params = parameters((3,), (4,), (5,))
    optimizer = Gravity(params, **options)
    random(params, optimizer, None)
    optimizer.step()
    ours = torch.tensor(10.0)
    for p in params:
        optimizer.state[p]["step"] = ours
    for _ in range(5):
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [15] * 3
    assert ours == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_rate_that_is_a_parameter_counts_as_it_was_before_the_step(dtype, monkeypatch):
    def make(is_shared=True, **options):
        rate, w = parameter(torch.tensor(0.1, dtype=dtype)), parameter(torch.ones(3, dtype=dtype))
        optimizer = Gravity([rate, w], lr=rate.data, velocity_std=0.1, **options)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            if not is_shared:
                optimizer.param_groups[0]["lr"] = rate.item()
            random([rate, w], optimizer, generator)
            optimizer.step()
        return [rate.detach(), w.detach()]

    expected = make(is_shared=False, foreach=False)
    for found in outcomes(make, monkeypatch):
        assert_same(expected, found)


# Layouts, maxima and positions that a fast path may take for others.


def outcomes(make, monkeypatch):
    """Return what each path makes of the same tensors; the loop is the first."""
    results = []
    for options in ({"foreach": False}, {}, {"foreach": True}, {"fused": True}, {"GPU": True}):
        options = dict(options)
        with monkeypatch.context() as patch:
            if options.pop("GPU", False):
                patch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
                options["foreach"] = True
            results.append(make(**options))
    return results


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("size", [(3, 4), (20, 30)], ids=str)
def test_a_transposed_velocity_beside_a_contiguous_parameter(size, monkeypatch):
    def make(**options):
        params = parameters(size, size)
        optimizer = Gravity(params, **options)
        for _ in range(3):
            random(params, optimizer, torch.Generator().manual_seed(3))
            optimizer.step()
            for p in params:
                state = optimizer.state[p]
                state["velocity"] = state["velocity"].t().contiguous().t()
        return [x.detach() for p in params for x in (p, optimizer.state[p]["velocity"])]

    loop, *others = outcomes(make, monkeypatch)
    for other in others:
        assert_same(loop, other)


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("size", [(6, 4), (40, 30)], ids=str)
def test_parameter_gradient_and_velocity_sliced_alike(size, monkeypatch):
    def make(**options):
        generator = torch.Generator().manual_seed(1)
        memory = [torch.randn(size, generator=generator) for _ in range(6)]
        params = [parameter(memory[0][:, ::2]), parameter(memory[3][:, ::2])]
        optimizer = Gravity(params, **options)
        for _ in range(3):
            for i, p in enumerate(params):
                p.grad = memory[3 * i + 1][:, ::2]
                if p in optimizer.state:
                    memory[3 * i + 2][:, ::2] = optimizer.state[p]["velocity"]
                    optimizer.state[p]["velocity"] = memory[3 * i + 2][:, ::2]
            assert params[0].stride() == params[0].grad.stride()
            optimizer.step()
        return memory

    loop, *others = outcomes(make, monkeypatch)
    for other in others:
        assert_same(loop, other)


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("capturable", [False, True])
def test_a_maximum_from_outside_beside_a_tensor_without(capturable, monkeypatch):
    """As a DTensor beside a plain tensor."""

    def shards(params, states):
        return {
            p: _distributed.Shard(p, p.grad, states[p]["velocity"], torch.tensor(maximum))
            for p, maximum in ((params[1], 7.0), (params[2], 3.0))
        }

    monkeypatch.setattr(_distributed, "shards", shards)

    def make(**options):
        params = parameters((5,), (5,), (5,), (5,))
        optimizer = Gravity(params, capturable=capturable, **options)
        for _ in range(2):
            random(params, optimizer, torch.Generator().manual_seed(3))
            optimizer.step()
        return [x.detach() for p in params for x in (p, optimizer.state[p]["velocity"])]

    loop, *others = outcomes(make, monkeypatch)
    for other in others:
        for x, y in zip(loop, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_frozen_parameter_in_an_earlier_group_keeps_its_position(options):
    params = parameters(*[(5,)] * 5)
    groups = [{"params": params[:2]}, {"params": params[2:3]}, {"params": params[3:]}]
    whole, part = Gravity(groups, **options), None
    random(params, whole, torch.Generator())
    whole.step()
    expected = {i: whole.state[p]["velocity"] for i, p in enumerate(params)}
    again = parameters(*[(5,)] * 5)
    part = Gravity(
        [{"params": again[:2]}, {"params": again[2:3]}, {"params": again[3:]}], **options
    )
    random(again, part, torch.Generator())
    for i in (0, 2, 3):
        again[i].requires_grad_(False)
        again[i].grad = None
    part.step()
    for i in (1, 4):
        assert torch.equal(part.state[again[i]]["velocity"], expected[i])
    assert len({tuple(v.tolist()) for v in expected.values()}) == 5


def test_overlaps_within_a_tensor():
    x = torch.zeros(30)
    for size, strides, overlaps in [
        ((3, 4), (4, 1), False),
        ((3, 4), (0, 1), True),
        ((1, 4), (0, 1), False),
        ((0, 4), (0, 0), False),
        ((3, 4), (2, 1), True),
        ((2, 3), (3, 2), False),
        ((3, 4), (1, 3), False),
        ((2, 2, 2), (8, 4, 1), False),
        ((2, 2, 2), (3, 2, 1), True),
    ]:
        assert _tensors.overlaps_itself(x.as_strided(size, strides)) == overlaps
