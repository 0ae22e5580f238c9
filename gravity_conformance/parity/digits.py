"""The training task of ``gravity parity``: handwritten digits, and a perceptron in NumPy.

scikit-learn includes the 1,797 images of 8 × 8 pixels (the test part of the UCI data set "Optical
Recognition of Handwritten Digits"), so nothing is downloaded.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gravity_conformance.protocol import Task

HIDDEN = 128
BATCH = 32
EPOCHS = 20
TRAIN = 1440  # 45 full batches; the other 357 images are the test set


def digits_task(dtype: str, *, seed: int, steps: int | None, options: Mapping[str, Any]) -> Task:
    """Return the task: a fixed split of the images, and W₀ and the batch order from `seed`.

    It has `steps` updates, or 20 epochs if `steps` is None.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x / 16.0).astype(dtype)[order], y[order].astype(np.int32)

    rng = np.random.default_rng(seed)
    sizes = [x.shape[1], HIDDEN, 10]
    weights = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        w = rng.standard_normal((fan_in, fan_out)) * np.sqrt(2 / fan_in)
        weights += [w.astype(dtype), np.zeros(fan_out, dtype)]

    per_epoch = TRAIN // BATCH
    remaining = EPOCHS * per_epoch if steps is None else steps
    epochs = []
    while remaining > 0:
        epochs.append(rng.permutation(TRAIN).reshape(per_epoch, BATCH)[:remaining])
        remaining -= per_epoch
    return Task(weights, x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], epochs, options)


def logits(weights: Sequence[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Return relu(x @ W1 + b1) @ W2 + b2."""
    w1, b1, w2, b2 = weights
    return np.asarray(np.maximum(x @ w1 + b1, 0) @ w2 + b2)


def loss_and_gradients(
    weights: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """Return the mean cross-entropy of a batch and its gradients, by manual back-propagation."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    z = hidden @ w2 + b2
    z = z - z.max(axis=1, keepdims=True)
    log_probability = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    rows = np.arange(len(y))
    loss = -log_probability[rows, y].mean()

    d_z = np.exp(log_probability)
    d_z[rows, y] -= 1
    d_z /= len(y)
    d_hidden = (d_z @ w2.T) * (hidden > 0)
    return float(loss), [x.T @ d_hidden, d_hidden.sum(axis=0), hidden.T @ d_z, d_z.sum(axis=0)]
