"""Weights and gradients to feed to an implementation: normal numbers, by seed."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gravity_conformance.drive.session import Arrays

NO_BFLOAT16 = "NumPy needs the package ml_dtypes for bfloat16, and it is not installed"
SHAPES = ((4, 3), (5,), (2, 2, 2))
SCALES = (1.0, 30.0, 0.02)  # of their gradients, so that a maximum over all tensors shows


def normal(
    steps: int,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    scales: Sequence[float] = SCALES,
    dtype: Any = np.float32,
    seed: int = 0,
) -> tuple[Arrays, list[Arrays]]:
    """Return weights, and for every step gradients times `scales`, all from normal numbers."""
    rng = np.random.default_rng(seed)
    weights = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    gradients = [
        [np.asarray(c * rng.standard_normal(s), dtype) for s, c in zip(shapes, scales, strict=True)]
        for _ in range(steps)
    ]
    return weights, gradients


def has_bfloat16() -> bool:
    """Tell whether there are NumPy arrays of bfloat16."""
    try:
        importlib.import_module("ml_dtypes")
    except ModuleNotFoundError:
        return False
    return True
