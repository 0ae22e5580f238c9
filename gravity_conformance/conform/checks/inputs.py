"""Weights and gradients for the checks: normally distributed numbers from a seed."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gravity_conformance.drive.session import Arrays

NO_BFLOAT16 = "NumPy needs the package ml_dtypes for bfloat16, and it is not installed"
SHAPES = ((4, 3), (5,), (2, 2, 2))
SCALES = (1.0, 30.0, 0.02)  # of the gradients; they differ, so a maximum over all tensors is caught


def normal(
    steps: int,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    scales: Sequence[float] = SCALES,
    dtype: Any = np.float32,
    seed: int = 0,
) -> tuple[Arrays, list[Arrays]]:
    """Return normally distributed weights, and gradients of every step, multiplied by `scales`."""
    rng = np.random.default_rng(seed)
    weights = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    gradients = [
        [np.asarray(c * rng.standard_normal(s), dtype) for s, c in zip(shapes, scales, strict=True)]
        for _ in range(steps)
    ]
    return weights, gradients


def has_bfloat16() -> bool:
    """Tell whether NumPy has bfloat16, which the package ml_dtypes adds."""
    try:
        importlib.import_module("ml_dtypes")
    except ModuleNotFoundError:
        return False
    return True
