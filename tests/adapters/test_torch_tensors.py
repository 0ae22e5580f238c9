"""gravity_torch.Gravity on every kind of tensor: dtypes, layouts, devices, values, modes."""

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import gravity_core  # noqa: E402
from gravity_torch import Gravity, _multi_tensor, _multi_tensor_gpu, _paths  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    DTYPES,
    assert_same,
    give_gradients,
    parameters,
    run,
    values,
)
from tests.support.torch_reference import to_numpy  # noqa: E402


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


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        *[(torch.float32, x) for x in (1e10, 1e14, 1e16, 3e38, float("nan"), float("inf"))],
        # the square of 1e200 overflows Python's floats
        *[(torch.float64, x) for x in (1e16, 1e150, 1e200, 1.7e308, float("nan"), float("inf"))],
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [9, _multi_tensor.BLOCK + 8])
@pytest.mark.parametrize(
    "path", [{}, {"foreach": False}, {"capturable": True}, {"fused": True}], ids=str
)
def test_huge_and_non_finite_gradients(path, size, dtype, largest):
    """No path may compute a form of the update that would overflow where this one does not."""
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
        "GPU",
    ],
    ids=str,
)
def test_a_parameter_of_another_size_is_refused_before_any_change(path, sizes, monkeypatch):
    """Pruning replaces p.data, and so may change its size."""
    if path == "GPU":
        monkeypatch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
        path = {"foreach": True}
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
    del optimizer.state[b]  # the user's remedy
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in (a, b)] == [2, 1]


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize("what", ["p", "p.grad", "velocity"])
@pytest.mark.parametrize("ours", [torch.float32, torch.complex64], ids=str)
def test_mixing_real_and_complex_is_refused_before_any_change(ours, what, path):
    theirs = torch.float32 if ours.is_complex else torch.complex64
    (a,), (b,) = parameters((3,)), parameters((5000,), dtype=ours)
    optimizer = Gravity([{"params": [a]}, {"params": [b]}], **path)
    run(optimizer, [a, b], [0])
    dtypes = {"p": ours, "p.grad": ours, "velocity": ours} | {what: theirs}
    # Converting a module replaces .data and leaves the rest unchanged.
    with warnings.catch_warnings(action="ignore"):  # torch warns that it drops the imaginary parts
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


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
def test_lazily_negated_and_conjugated_tensors(path):
    runs = []
    for lazy in (True, False):
        (p, c) = parameters((5000,), (4,), dtype=torch.complex64)
        p = torch.nn.Parameter(p.detach().real.clone())
        g, gc = torch.linspace(-1, 1, 5000) * 1j, torch.arange(4) * (1 + 2j)
        p.grad = g.conj().imag if lazy else -g.imag
        c.grad = gc.conj() if lazy else gc.conj().resolve_conj()
        optimizer = Gravity([p, c], **path)
        optimizer.step()
        runs.append(values([p, c]))
    for a, b in zip(*runs, strict=True):
        # Both sides make one update of values below 8, with the roundings of the bound.
        assert (a - b).abs().max() <= 2 * gravity_core.ErrorBound.ROUNDINGS * 2.0**-24 * 8
    conjugate = torch.nn.Parameter(torch.ones(4, dtype=torch.complex64).conj())
    conjugate.grad = torch.ones(4, dtype=torch.complex64)
    with pytest.raises(ValueError, match="conjugated"):
        Gravity([conjugate], **path).step()


def negated(values):
    """Return a contiguous tensor whose numbers are those of its memory with the other sign."""
    values = torch.as_tensor(values)
    memory = torch.complex(torch.zeros_like(values), -values).conj().imag
    x = memory.as_strided(values.shape, (1,))  # every second number: 0, −v₀, 0, …
    assert x.is_contiguous()
    assert x.is_neg()
    return x


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize(
    "path",
    [{}, *({name: True} for name in ("foreach", "fused", "capturable")), {"foreach": False}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("what", ["p", "p.grad", "velocity"])
def test_contiguous_tensors_of_another_sign(path, dtype, what):
    """After a step, so that all addresses are known."""
    runs = []
    for lazy in (True, False):
        (p,) = parameters((6,), dtype=dtype)
        optimizer = Gravity([p], **path)
        p.grad = torch.ones(6, dtype=dtype)
        optimizer.step()
        replaced = negated(torch.arange(6, dtype=dtype))
        chosen = replaced if lazy else replaced.resolve_neg()
        if what == "p":
            p.data = chosen
        elif what == "p.grad":
            p.grad = chosen
        else:
            optimizer.state[p]["velocity"] = chosen
        optimizer.step()
        runs.append([p.detach().clone(), optimizer.state[p]["velocity"].clone()])
    assert all(torch.equal(a.resolve_neg(), b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_counter_of_another_sign_counts(path):
    (p,) = parameters((6,))
    optimizer = Gravity([p], **path)
    p.grad = torch.ones(6)
    optimizer.step()
    optimizer.state[p]["step"] = torch.tensor(-7j).conj().imag
    optimizer.step()
    optimizer.step()
    assert optimizer.state[p]["step"] == 9


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_a_sign_that_changes_at_one_address(path):
    z = torch.ones(4, dtype=torch.complex64) * (1 + 1j)
    p = torch.nn.Parameter(z.imag.as_strided((4,), (1,)).detach())
    optimizer = Gravity([p], velocity_std=0, **path)
    p.grad = torch.ones(4)
    optimizer.step()
    p.data = z.conj().imag.as_strided((4,), (1,))
    before = p.detach().clone()
    optimizer.step()
    assert (p.detach() < before).all()


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
def test_a_module_changes_its_dtype_after_a_step(types, path, size):
    (p,) = parameters((size,), dtype=types[0])
    optimizer = Gravity([p], **path)
    run(optimizer, [p], [0])
    p.data, p.grad = p.data.to(types[1]), None
    reference = to_numpy(p), to_numpy(optimizer.state[p]["velocity"])
    run(optimizer, [p], [1])
    # The velocity keeps its dtype, and W moves by η V, rounded to that dtype.
    v = gravity_core.update(to_numpy(p.grad), reference[1], 2)
    w = reference[0] - v.astype(reference[0].dtype) * reference[0].dtype.type(0.1)
    assert np.array_equal(to_numpy(optimizer.state[p]["velocity"]), v)
    assert np.array_equal(to_numpy(p), w)


@LARGE_AND_SMALL
@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}], ids=str)
def test_another_default_device_changes_nothing(path, size):
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
def test_autograd_refuses_a_graph_from_before_the_step(path, size):
    """The gradients would mix old and new weights. torch's own optimizers refuse it, too."""
    (p,) = parameters((size,))
    optimizer = Gravity([p], **path)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"fused": True}, "GPU"], ids=str)
def test_autocast_around_a_step_changes_nothing(path, dtype, monkeypatch):
    """Autocast may use another half type than the parameters; its default on GPUs is float16."""
    if path == "GPU":
        monkeypatch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
        path = {"foreach": True}
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
    """Memory estimators step such tensors, which have no values."""
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


LAYOUTS = {
    "sparse_coo": (torch.Tensor.to_sparse, "sparse gradients$"),
    "sparse_csr": (torch.Tensor.to_sparse_csr, "sparse gradients$"),
    "mkldnn": (torch.Tensor.to_mkldnn, r"gradients of layout torch\._mkldnn$"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_other_layouts_are_refused_before_any_change(layout, groups):
    if layout == "mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without mkldnn")
    convert, message = LAYOUTS[layout]
    dense, other = parameters((4, 2), (4, 2))
    if layout != "sparse_coo":  # a gradient of these layouts needs a parameter of the same layout
        other = torch.nn.Parameter(convert(other.detach()))
    dense.grad, other.grad = torch.ones(4, 2), convert(torch.ones(4, 2))
    split = [{"params": [dense]}, {"params": [other]}]
    optimizer = Gravity([dense, other] if groups == 1 else split)
    before = [p.detach().to_dense().clone() for p in (dense, other)]
    with pytest.raises(RuntimeError, match=f"^Gravity does not support {message}"):
        optimizer.step()
    assert_same([p.detach().to_dense() for p in (dense, other)], before)
    assert all(state["step"] == 0 for state in optimizer.state.values())
