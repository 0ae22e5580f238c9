"""The NumPy optimizer as a backend: `gravity_core.Gravity`, and back-propagation by hand."""

from collections.abc import Iterator

import array_api_compat
import numpy as np

from gravity_conformance.parity import digits
from gravity_conformance.protocol import Mode, Replay, Step, Task, Training
from gravity_core.reference import Gravity


def versions() -> dict[str, str]:
    """Return the versions of numpy and array-api-compat."""
    return {"numpy": np.__version__, "array-api-compat": array_api_compat.__version__}


def dtypes() -> tuple[str, ...]:
    """Return the dtypes that it can compute in."""
    return ("float32", "float64")


def modes() -> dict[str, Mode]:
    """Return its one mode, the blocked update in place."""
    return {"blocked": Mode("eager")}


def replay(replay: Replay, mode: str) -> Iterator[Step]:
    """Yield V₀ and W₀, and then V and W after every step."""
    weights = [w.copy() for w in replay.weights]
    optimizer = Gravity(**replay.options)
    optimizer.init(weights)
    assert optimizer.velocity is not None
    yield Step([v.copy() for v in optimizer.velocity], [w.copy() for w in weights])
    for gradients in replay.gradients:
        optimizer.step(weights, gradients)
        yield Step([v.copy() for v in optimizer.velocity], [w.copy() for w in weights])


def train(task: Task) -> Training:
    """Train by hand-written back-propagation."""
    weights = [w.copy() for w in task.weights]
    optimizer = Gravity(**task.options)
    losses = []
    for batches in task.epochs:
        batch_losses = []
        for batch in batches:
            x, y = task.x_train[batch], task.y_train[batch]
            loss, gradients = digits.loss_and_gradients(weights, x, y)
            optimizer.step(weights, gradients)
            batch_losses.append(loss)
        losses.append(float(np.mean(batch_losses)))
    return Training(losses, weights, digits.logits(weights, task.x_test).argmax(axis=1))
