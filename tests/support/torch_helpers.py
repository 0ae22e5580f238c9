"""Parameters, gradients and small models for the tests of gravity_torch."""

import numpy as np
import pytest
import torch
from torch import nn


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


SHAPES = ((3, 4), (4,), (4,), ())
LR = 0.1  # the rate at construction
PATHS = pytest.mark.parametrize("path", [{}, {"foreach": False}], ids=["default", "plain"])
U = 2.0**-24  # unit roundoff of float32


def network(dtype=torch.float32):
    """Return a small network with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def backward(model, number):
    """Give the model the gradients of batch `number`."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 4, generator=generator).to(next(model.parameters()).dtype)
    model.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    return loss


def train(model, optimizer, numbers):
    for number in numbers:
        backward(model, number)
        optimizer.step()


def velocities(optimizer):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [optimizer.state[p]["velocity"].clone() for p in params]


def assert_same_training(model, optimizer, other_model, other_optimizer):
    """Assert that both runs continue with the same bits."""
    for m, o in ((model, optimizer), (other_model, other_optimizer)):
        train(m, o, range(100, 103))
    assert_same(values(model.parameters()), values(other_model.parameters()))
    assert_same(velocities(optimizer), velocities(other_optimizer))


def learning_rate(tensor):
    return torch.tensor(LR, dtype=torch.float64) if tensor else LR
