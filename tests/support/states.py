"""States for the tests, and their files with parts replaced."""

import json

import numpy as np

from gravity_core import State

HYPERPARAMETERS = {
    "learning_rate": 0.3,
    "alpha": 0.02,
    "beta": 0.8,
    "weight_decay": 0.1,
    "velocity_std": 0.5,
    "seed": 2**64 - 1,
    "first_step": 0,
}
DTYPES = ["float16", "float32", "float64", "complex64", "complex128"]


def same(a, b):
    """Return whether two states have the same bits."""
    return (
        (a.t, a.dtypes, a.hyperparameters) == (b.t, b.dtypes, b.hyperparameters)
        and [v.shape for v in a.velocities] == [v.shape for v in b.velocities]
        and [v.dtype for v in a.velocities] == [v.dtype for v in b.velocities]
        and [v.tobytes() for v in a.velocities] == [v.tobytes() for v in b.velocities]
    )


def bfloat16(shape, seed=0):
    """Return numbers of bfloat16 as float32."""
    words = np.random.default_rng(seed).integers(0, 2**16, shape, dtype=np.uint32)
    return np.asarray(words << 16).view(np.float32)


def one_of_each():
    values = np.random.default_rng(0).normal(size=(3, 2))
    return State(
        [7, 7, 7, 0, 7, 3, 7, 7],
        [
            *(values.astype(d) for d in DTYPES),
            bfloat16((5,)),
            np.zeros((0, 4), np.float32),
            np.asarray(np.nan, np.float64),
        ],
        HYPERPARAMETERS,
        dtypes=[*DTYPES, "bfloat16", "float32", "float64"],
    )


def write(path, state, changes=None, **arrays):
    """Write the file of a state with parts of it replaced."""
    whole = {f"velocity_{i}": v for i, v in enumerate(state.velocities)} | arrays
    good = {
        "format": "gravity-state",
        "version": 1,
        "t": state.t,
        "dtypes": state.dtypes,
        "hyperparameters": dict(state.hyperparameters),
    }
    text = changes if isinstance(changes, str) else json.dumps(good | (changes or {}))
    with path.open("wb") as file:
        np.savez(file, **({"header": np.asarray(text)} | whole))


GOOD = State(3, [np.ones(2), np.float32([1.0])], HYPERPARAMETERS)
