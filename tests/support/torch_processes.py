"""Process groups for the tests of gravity_torch, and the model that each process trains."""

import torch
from torch import nn

from tests.support.processes import Processes


class ProcessGroups:
    """One process group of each size, started at its first use."""

    def __init__(self):
        self.by_size = {}

    def run(self, world, function, *arguments):
        processes = self.by_size.get(world)
        if processes is None or not all(p.is_alive() for p in processes.processes):
            processes = self.by_size[world] = Processes(world)
        return processes.run(function, *arguments)


def model_and_data():
    """Return the same network and batches in every process, regardless of its random state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)
        )
        return model, torch.randn(4, 8, 5)


def train(model, optimizer, batches, scale=1.0):
    for x in batches:
        optimizer.zero_grad()
        (scale * (model(x) - 1).square().mean()).backward()
        optimizer.step()


def weights(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def assert_same(*runs):
    for arrays in zip(*runs, strict=True):
        assert len({(a.shape, a.tobytes()) for a in arrays}) == 1


# FSDP2


def gradient_scale(world):
    """Return 1, or `world` if gloo returns sums in place of the means that FSDP2 requests.

    Older versions of torch have this bug (github.com/pytorch/pytorch/issues/162338).
    """
    mean = torch.zeros(1)
    torch.distributed.reduce_scatter_tensor(mean, torch.ones(world), torch.distributed.ReduceOp.AVG)
    return mean.item()
