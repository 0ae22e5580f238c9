"""gravity_torch.Gravity under torch.compile, and with tensors that have no values."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity  # noqa: E402
from tests.support.limits import HANG  # noqa: E402
from tests.support.torch_helpers import give_gradients, parameters, values  # noqa: E402
from tests.support.torch_reference import Reference, to_numpy  # noqa: E402

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


def test_fake_meta_and_real_tensors_in_turn():
    """The test runs in its own process: a kernel that gets such a tensor may crash it."""
    subprocess.run([sys.executable, "-c", FAKE_AND_REAL_STEPS], check=True, timeout=HANG)


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


@pytest.mark.parametrize("given", [(1, 0), (0, 0)], ids=["a frozen group", "none"])
def test_a_compiled_step_of_groups_without_gradients(given):
    torch._dynamo.reset()
    params = parameters((3,), (2,))
    optimizer = Gravity([{"params": [p]} for p in params] + [{"params": []}])
    plain = parameters((3,), (2,))
    reference = Gravity([{"params": [p]} for p in plain], foreach=False)
    step = torch.compile(optimizer.step, backend="aot_eager")
    for number, has_grad in enumerate((given, (1, 1), given)):
        for ps, take in ((params, step), (plain, reference.step)):
            give_gradients(ps, number)
            for p, keeps in zip(ps, has_grad, strict=True):
                p.grad = p.grad if keeps else None
            take()
    for a, b in zip(values(params), values(plain), strict=True):
        assert (a - b).abs().max() <= 3 * 2 * 15 * 2.0**-24 * 8  # three updates of values below 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_compiled_step_of_0d_parameters(dtype):
    """torch.compile loses writes to 0-d float64 tensors, also in torch's own optimizers."""
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
