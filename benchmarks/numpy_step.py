"""The step of the NumPy optimizer and of torch's fused Adam."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import gravity_core
from benchmarks.shapes import Shape, gradients
from benchmarks.torch_step import parameters


def contenders(shapes: list[Shape], threads: int) -> dict[str, Callable[[], Any]]:
    """Return the steps of torch's fused Adam, the NumPy optimizer and the plain update."""
    torch.set_num_threads(threads)
    grads = gradients(shapes)
    adam = torch.optim.Adam(parameters(shapes), fused=True)
    weights = [np.zeros(s, np.float32) for s in shapes]
    optimizer = gravity_core.Gravity()
    plain_w = [np.zeros(s, np.float32) for s in shapes]
    plain_v = [np.zeros(s, np.float32) for s in shapes]

    def plain() -> None:
        for i, g in enumerate(grads):
            plain_v[i] = gravity_core.update(g, plain_v[i], 1)
            plain_w[i] = plain_w[i] - 0.1 * plain_v[i]

    return {
        "torch.optim.Adam(fused=True)": adam.step,
        "gravity_core.Gravity": lambda: optimizer.step(weights, grads),
        "gravity_core.update": plain,
    }
