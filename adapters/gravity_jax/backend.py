"""JAX as a backend of ``gravity parity`` (`gravity_conformance.protocol`)."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gravity_conformance.protocol import Mode, Replay, Step, Task, Training
from gravity_jax.transform import gravity


def versions() -> dict[str, str]:
    """Return the versions of jax and optax."""
    return {"jax": jax.__version__, "optax": optax.__version__}


def devices() -> list[str]:
    """Return the number of devices of each kind."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return [f"{number} × {kind}" for kind, number in kinds.items()]


def dtypes() -> tuple[str, ...]:
    """Return the dtypes that it can compute in; float64 by JAX's x64 mode."""
    return ("float32", "float64")


def modes() -> dict[str, Mode]:
    """Return the step run operation by operation, and jitted."""
    return {"eager": Mode("eager"), "jit": Mode("compiled")}


def replay(replay: Replay, mode: str) -> Iterator[Step]:
    """Yield V₀ and W₀, and then V and W after every step."""
    double = replay.weights[0].dtype == np.float64
    optimizer = gravity(**replay.options)

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    if mode == "jit":
        step = jax.jit(step)
    with jax.enable_x64(double):
        params = [jnp.asarray(w) for w in replay.weights]
        state = optimizer.init(params)
    for gradients in [None, *replay.gradients]:
        if gradients is not None:
            with jax.enable_x64(double):  # not around the yield: it is a setting of the thread
                params, state = step(params, state, [jnp.asarray(g) for g in gradients])
        yield Step([np.asarray(v) for v in state[0].velocity], [np.asarray(w) for w in params])


def _logits(params: Any, x: Any) -> Any:
    w1, b1, w2, b2 = params
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def train(task: Task) -> Training:
    """Train with a jitted gradient and optax.apply_updates."""
    optimizer = gravity(**task.options)

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(_logits(params, x), y)
        return losses.mean()

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    with jax.enable_x64(task.weights[0].dtype == np.float64):
        params = [jnp.asarray(w) for w in task.weights]
        state = optimizer.init(params)
        x_train, y_train = jnp.asarray(task.x_train), jnp.asarray(task.y_train)
        losses = []
        for batches in task.epochs:
            batch_losses = []
            for batch in batches:
                params, state, loss = step(params, state, x_train[batch], y_train[batch])
                batch_losses.append(loss)
            losses.append(float(np.mean(batch_losses)))
        predictions = np.asarray(_logits(params, jnp.asarray(task.x_test)).argmax(axis=1))
    return Training(losses, [np.asarray(w) for w in params], predictions)
