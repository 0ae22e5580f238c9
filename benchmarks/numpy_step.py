"""The step of the NumPy optimizer beside torch's fused Adam."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import gravity_core
from benchmarks.shapes import Shape, gradients
from benchmarks.torch_step import parameters


def contenders(shapes: list[Shape], threads: int) -> dict[str, Callable[[], Any]]:
    """Return the NumPy optimizer and the update written straight, after torch's fused Adam."""
    torch.set_num_threads(threads)
    grads = gradients(shapes)
    adam = torch.optim.Adam(parameters(shapes), fused=True)
    weights = [np.zeros(s, np.float32) for s in shapes]
    optimizer = gravity_core.Gravity()
    straight_w = [np.zeros(s, np.float32) for s in shapes]
    straight_v = [np.zeros(s, np.float32) for s in shapes]

    def straight() -> None:
        for i, g in enumerate(grads):
            straight_v[i] = gravity_core.update(g, straight_v[i], 1)
            straight_w[i] = straight_w[i] - 0.1 * straight_v[i]

    return {
        "torch.optim.Adam(fused=True)": adam.step,
        "gravity_core.Gravity": lambda: optimizer.step(weights, grads),
        "gravity_core.update, straight": straight,
    }
