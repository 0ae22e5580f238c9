"""The networks, as functions of a list of weights, and a run on their data."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks.compare import datasets
from benchmarks.compare.datasets import Data
from benchmarks.compare.optimizers import OPTIMIZERS, Tensors, started

Shape = tuple[int, ...]
Weights = list[torch.Tensor]
CHUNK = 2500  # examples that are evaluated at a time


class Network(NamedTuple):
    """A network.

    Attributes:
        shapes: of its weights. Those of one dimension are biases, and start at 0.
        forward: the outputs for the weights and a batch of inputs.
        ones: the positions of the weights of one dimension that start at 1.
    """

    shapes: list[Shape]
    forward: Callable[[Weights, torch.Tensor], torch.Tensor]
    ones: tuple[int, ...] = ()


def glorot(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Uniform with a variance of 2 / (fan in + fan out), Keras's default."""
    return torch.nn.init.xavier_uniform_(torch.empty(shape), generator=generator)


def he(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Normal with a variance of 2 / (fan in)."""
    return torch.nn.init.kaiming_normal_(torch.empty(shape), generator=generator)


Initial = Callable[[Shape, torch.Generator], torch.Tensor]


def mlp(*widths: int) -> Network:
    """Linear layers with ReLU between them."""
    shapes: list[Shape] = []
    for inputs, outputs in itertools.pairwise(widths):
        shapes += [(outputs, inputs), (outputs,)]

    def forward(weights: Weights, x: torch.Tensor) -> torch.Tensor:
        for i in range(0, len(weights), 2):
            x = F.linear(x if i == 0 else x.relu(), weights[i], weights[i + 1])
        return x

    return Network(shapes, forward)


def convnet() -> Network:
    """Two convolutions with pooling, for the digits."""
    shapes = [(8, 1, 3, 3), (8,), (16, 8, 3, 3), (16,), (10, 64), (10,)]

    def forward(weights: Weights, x: torch.Tensor) -> torch.Tensor:
        a, b, c, d, e, f = weights
        x = F.max_pool2d(F.conv2d(x.view(-1, 1, 8, 8), a, b, padding=1).relu(), 2)
        x = F.max_pool2d(F.conv2d(x, c, d, padding=1).relu(), 2)
        return F.linear(x.flatten(1), e, f)

    return Network(shapes, forward)


def next_character(vocabulary: int, context: int = 8, size: int = 16, hidden: int = 128) -> Network:
    """Predict a character from those before it: embeddings, and one hidden layer."""
    tail = mlp(context * size, hidden, vocabulary)

    def forward(weights: Weights, x: torch.Tensor) -> torch.Tensor:
        return tail.forward(weights[1:], F.embedding(x, weights[0]).flatten(1))

    return Network([(vocabulary, size), *tail.shapes], forward)


def transformer(
    vocabulary: int, context: int = 64, size: int = 64, heads: int = 4, blocks: int = 2
) -> Network:
    """A small causal transformer with normalisation before each part."""
    block: list[Shape] = [
        *[(size,), (size,), (3 * size, size), (size, size)],
        *[(size,), (size,), (4 * size, size), (4 * size,), (size, 4 * size), (size,)],
    ]
    shapes: list[Shape] = [(vocabulary, size), (context, size), *blocks * block]
    shapes += [(size,), (size,), (vocabulary, size)]
    starts = [2 + len(block) * i for i in range(blocks)]
    ones = [position for start in starts for position in (start, start + 4)] + [len(shapes) - 3]

    def attention(x: torch.Tensor, joint: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        q, k, v = (
            part.view(n, length, heads, -1).transpose(1, 2)
            for part in F.linear(x, joint).chunk(3, 2)
        )
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(found.transpose(1, 2).reshape(n, length, size), out)

    def forward(weights: Weights, x: torch.Tensor) -> torch.Tensor:
        x = F.embedding(x, weights[0]) + weights[1]
        for start in starts:
            a, b, joint, out, c, d, e, f, g, h = weights[start : start + len(block)]
            x = x + attention(F.layer_norm(x, (size,), a, b), joint, out)
            x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, (size,), c, d), e, f)), g, h)
        scale, shift, head = weights[-3:]
        return F.linear(F.layer_norm(x, (size,), scale, shift), head)

    return Network(shapes, forward, tuple(ones))


class Measure(NamedTuple):
    """What is minimised, and what is reported; both of outputs and targets."""

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    error: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _wrong(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(-1) != y).double().mean()


def _nats(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


classes = Measure(F.cross_entropy, _wrong)
nats = Measure(_nats, _nats)
squares = Measure(F.mse_loss, F.mse_loss)


class Training:
    """One run of a network. The seed decides the initial weights and the batches.

    Args:
        network: what is trained.
        data: its splits.
        measure: the loss and the error of a batch.
        batch_size: examples of a batch, which come in a new order in each epoch.
        seed: any integer from 0.
        initial: the distribution of the initial weights of two dimensions and more.
        weights: initial weights that take its place.
        loss_scale: multiplies the loss that is differentiated.
        corrupt: the share of the batches whose inputs are a thousand times too large.
        unit: the error of the loss is divided by it.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        measure: Measure,
        batch_size: int,
        seed: int,
        *,
        initial: Initial = glorot,
        weights: torch.Tensor | None = None,
        loss_scale: float = 1.0,
        corrupt: float = 0.0,
        unit: float = 1.0,
    ) -> None:
        torch.set_num_threads(1)  # the runs share the cores
        self._forward, self._data, self._measure = network.forward, data, measure
        self._scale, self._corrupt, self._unit = loss_scale, corrupt, unit
        self._generator = torch.Generator().manual_seed(seed)
        if weights is None:
            weights = torch.cat([w.flatten() for w in self._initial(network, initial)])
        flat = weights.clone()
        parts = flat.split([math.prod(shape) for shape in network.shapes])
        self.weights = Tensors(
            flat,
            [
                part.view(shape).detach().requires_grad_()
                for part, shape in zip(parts, network.shapes, strict=True)
            ],
        )
        self._batches = self._endless(batch_size)

    def _initial(self, network: Network, initial: Initial) -> Iterator[torch.Tensor]:
        for position, shape in enumerate(network.shapes):
            if len(shape) > 1:
                yield initial(shape, self._generator)
            else:
                yield torch.full(shape, float(position in network.ones))

    def _endless(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        x, y = self._data.train
        size = min(size, len(x))
        while True:
            order = torch.randperm(len(x), generator=self._generator)
            for chosen in order.split(size)[: len(x) // size]:
                inputs = x[chosen]
                if self._corrupt and torch.rand((), generator=self._generator) < self._corrupt:
                    inputs = 1000 * inputs
                yield inputs, y[chosen]

    def gradient(self) -> tuple[float, Tensors]:
        """Return the loss of the next batch, and its gradient."""
        x, y = next(self._batches)
        loss = self._measure.loss(self._forward(self.weights.parts, x), y)
        scaled = loss if self._scale == 1 else self._scale * loss
        parts = list(torch.autograd.grad(scaled, self.weights.parts))
        return loss.item(), Tensors(torch.cat([g.flatten() for g in parts]), parts)

    def score(self, split: str) -> tuple[float, float]:
        """Return the error and the loss of a split, "validation" or "test"."""
        x, y = getattr(self._data, split)
        totals = [0.0, 0.0]
        with torch.no_grad():
            for inputs, targets in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
                outputs = self._forward(self.weights.parts, inputs)
                for i, function in enumerate((self._measure.error, self._measure.loss)):
                    totals[i] += function(outputs, targets).item() * len(inputs)
        error, loss = (total / len(x) for total in totals)
        return error / self._unit, loss


TRAINED = mlp(64, 512, 512, 10)


@functools.cache
def trained() -> torch.Tensor:
    """Return the weights of TRAINED after ten epochs of the digits with Adam."""
    run = Training(TRAINED, datasets.digits(), classes, 32, seed=0)
    step = started(OPTIMIZERS["adam"].make, run.weights, 1e-3, 0)
    for _ in range(330):
        step(run.gradient()[1])
    return run.weights.flat
