"""gravity_torch.Gravity on a GPU: no synchronization, few kernels, CUDA graphs, two devices.

The test suite hides GPUs, so that all frameworks compute on the same processor. This command runs
the tests of this file:

    CUDA_VISIBLE_DEVICES=0 python -m pytest tests/adapters/test_torch_cuda.py
"""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")
if not torch.cuda.is_available():
    pytest.skip("no GPU, or CUDA_VISIBLE_DEVICES hides it", allow_module_level=True)

from benchmarks.profiling import kernels  # noqa: E402
from gravity_conformance.parity.grading import grade  # noqa: E402
from gravity_conformance.protocol import Replay, Step  # noqa: E402
from gravity_torch import Gravity  # noqa: E402

# torch warns at every step of a capturable optimizer outside a graph
pytestmark = pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")

FUSED = [{"fused": True}, {"fused": True, "capturable": True}]
PATHS = [{}, {"foreach": False}, {"capturable": True}, *FUSED]
CAPTURABLE = [path for path in PATHS if "capturable" in path]
HAS_NUMBA = importlib.util.find_spec("numba") is not None


def parameters(*shapes, device="cuda"):
    torch.manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(s).to(device)) for s in shapes]
    for p in params:  # drawn on the host, because a GPU has another generator
        p.grad = torch.randn(p.shape).to(device)
    return params


def array(x):
    return x.detach().cpu().numpy().copy()


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stays_inside_the_bound_and_is_exact_where_promised(path, dtype):
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (), (70_001,), (2_000_000,), (7,), (7,)]
    weights = [np.asarray(rng.normal(size=s), dtype) for s in shapes]
    gradients = [
        [np.asarray(rng.normal(size=s) * 10.0**e, dtype) for s in shapes] for e in (-2, 0, 2)
    ]
    params = [torch.nn.Parameter(torch.tensor(w, device="cuda")) for w in weights]
    optimizer = Gravity(params, **path)
    for i, p in enumerate(params):
        optimizer._init_state(p, optimizer.param_groups[0], i)

    def steps():
        for given in [None, *gradients]:
            if given is not None:
                for p, g in zip(params, given, strict=True):
                    p.grad = torch.tensor(g, device="cuda")
                optimizer.step()
            velocities = [array(optimizer.state[p]["velocity"]) for p in params]
            yield Step(velocities, [array(p) for p in params])

    result = grade(Replay(weights, gradients), steps())
    assert result.v0_identical
    verdicts = ["exact"] if path in ({"foreach": False}, *FUSED) else ["exact", "bounded"]
    assert result.verdict in verdicts, result.first_divergence or result.share


@pytest.mark.parametrize("path", [{}, {"capturable": True}, *FUSED], ids=str)
def test_the_host_never_waits(path):
    params = parameters((300, 200), (5,), (), (2_000_000,))
    optimizer = Gravity(params, **path)
    optimizer.step()
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("path", [{}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_number_of_kernels_does_not_grow_with_the_tensors(layout, path):
    # An operation on a list passes at least 64 tensors to a kernel. There are 3 concatenations,
    # 2 copies, 2 operations for the norms, 1 stack, and 3 operations for counters on the GPU.
    operations = 11 if "capturable" in path else 8
    few, many = (len(kernels(optimizer(n, layout, path).step)) for n in (100, 1000))
    assert many - few <= operations * (900 / 64 + 1)  # one kernel for each tensor would be 900


@pytest.mark.parametrize("path", FUSED, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("number", [1, 1000])
def test_a_fused_step_has_at_most_four_kernels(number, layout, path):
    names = kernels(optimizer(number, layout, path).step)
    assert 0 < len(names) <= 4, names


def optimizer(number, layout, path):
    params = parameters(*[(4, 3, 2, 2)] * number)
    for p in params:
        p.data, p.grad.data = (x.to(memory_format=layout) for x in (p.data, p.grad))
    return Gravity(params, **path)


def captured(step, prepare=lambda: None):
    """Return a graph of `step`, after three steps on another stream, as torch documents it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # it computed the gradients
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def assert_same(optimizer, reference):
    for group, other in zip(optimizer.param_groups, reference.param_groups, strict=True):
        for p, q in zip(group["params"], other["params"], strict=True):
            assert torch.equal(p, q)
            for name, value in reference.state[q].items():
                assert torch.equal(optimizer.state[p][name], value)


@pytest.mark.parametrize("path", CAPTURABLE, ids=str)
@pytest.mark.parametrize("lr_on", [None, "cuda"])
def test_a_cuda_graph_replays_the_steps(lr_on, path):
    shapes = (300, 200), (5,), (1000,), ()
    optimizer, reference = (
        Gravity(parameters(*shapes), lr=torch.tensor(0.1, device=lr_on) if lr_on else 0.1, **path)
        for _ in range(2)
    )
    graph = captured(optimizer.step)
    for _ in range(4):
        graph.replay()
    for _ in range(7):
        reference.step()
    assert int(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 7
    assert_same(optimizer, reference)


@pytest.mark.parametrize("path", CAPTURABLE, ids=str)
def test_a_cuda_graph_sees_new_gradients_and_a_new_learning_rate(path):
    rates = [torch.tensor(0.1, device="cuda") for _ in range(2)]
    optimizer, reference = (Gravity(parameters((40, 5), (5,)), lr=lr, **path) for lr in rates)
    graph = captured(optimizer.step)
    for _ in range(3):
        reference.step()
    for number in range(1, 4):
        for each, step, lr in zip(
            (optimizer, reference), (graph.replay, reference.step), rates, strict=True
        ):
            lr.fill_(0.1 / number)
            for p in each.param_groups[0]["params"]:
                p.grad.mul_(-0.3)
            step()
    assert_same(optimizer, reference)


@pytest.mark.parametrize("path", CAPTURABLE, ids=str)
def test_a_cuda_graph_of_training_has_its_own_gradients(path):
    """The gradients are None before the capture, so backward allocates them inside it."""
    x = torch.linspace(-1, 1, 16, device="cuda").reshape(16, 1, 1)
    optimizer, reference = (Gravity(parameters((4, 5), (5,)), **path) for _ in range(2))

    def train(optimizer):
        optimizer.zero_grad(set_to_none=True)
        weight, bias = optimizer.param_groups[0]["params"]
        # No product of matrices: its algorithm may depend on the stream.
        torch.tanh(x * weight + bias).square().mean().backward()
        optimizer.step()

    graph = captured(lambda: train(optimizer), prepare=optimizer.zero_grad)
    for _ in range(4):
        graph.replay()
    for _ in range(7):
        train(reference)
    assert_same(optimizer, reference)


@pytest.mark.parametrize("path", FUSED, ids=str)
def test_a_fused_step_sees_replaced_gradients(path):
    optimizer, reference = (
        Gravity(parameters((40, 5), (5,)), **options) for options in (path, {"foreach": False})
    )
    for number in range(3):
        for each in (optimizer, reference):
            for p in each.param_groups[0]["params"]:
                p.grad = torch.full_like(p, 0.1 * number - 0.1)
            each.step()
    for p, q in zip(
        *(each.param_groups[0]["params"] for each in (optimizer, reference)), strict=True
    ):
        assert torch.equal(p, q)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("lr_on", [None, "cpu", "cuda"])
def test_two_devices_in_one_step(lr_on, path):
    if "fused" in path and not HAS_NUMBA:
        pytest.skip("fused=True on a CPU needs numba")
    near, far = parameters((5,), (200_000,), device="cpu"), parameters((5,), (200_000,))
    lr = torch.tensor(0.1, device=lr_on) if lr_on else 0.1
    optimizer = Gravity([*near, *far], lr, velocity_std=0.0, **path)
    for _ in range(2):
        optimizer.step()
    for p, q in zip(near, far, strict=True):
        # Both sides make two updates of values below 8. The bound counts 11 roundings per update.
        assert (p - q.cpu()).abs().max() <= 2 * 2 * 11 * 2.0**-24 * 8
