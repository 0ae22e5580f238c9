"""The weights that a run starts from, in NumPy, so that both frameworks start alike.

Kernels are in Keras's layout. They are drawn from U(−b, b); biases are zero.

- Glorot: b = √(6 / (fan in + fan out)), as the published runs.
- He: b = √(6 / fan in).
- Noise: Glorot, and what V₀ alone adds to each weight in the end; see benchmarks/drift.py.
"""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.drift import drift
from benchmarks.paper.network import Layer
from gravity_core import initial_velocity


def initial_weights(layers: Sequence[Layer], seed: int, *, he: bool = False) -> list[np.ndarray]:
    """Return kernel and bias of each layer, in order, as float32.

    The random numbers are the same for Glorot and He: only b differs.
    """
    draw = np.random.Generator(np.random.Philox(seed)).uniform
    weights = []
    for layer in layers:
        *window, fan_in, fan_out = layer.shape
        field = math.prod(window)
        bound = math.sqrt(6 / (field * (fan_in if he else fan_in + fan_out)))
        weights.append((bound * draw(-1, 1, layer.shape)).astype(np.float32))
        weights.append(np.zeros(layer.shape[-1], np.float32))
    return weights


def with_noise(
    weights: Sequence[np.ndarray], seed: int, *, alpha: float, beta: float, first_step: int
) -> list[np.ndarray]:
    """Return the weights moved by what Gravity's V₀ of this seed alone adds to them.

    η cancels out: −η (α/η) z = −α z.
    """
    scale = -alpha * drift(beta, first_step)
    return [
        (w + scale * initial_velocity(w.shape, std=1.0, seed=seed, index=index)).astype(np.float32)
        for index, w in enumerate(weights)
    ]
