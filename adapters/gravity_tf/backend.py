"""TensorFlow as a backend of ``gravity parity`` (`gravity_conformance.protocol`)."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from gravity_conformance.protocol import Mode, Replay, Step, Task, Training
from gravity_tf.optimizer import Gravity

if keras.backend.backend() != "tensorflow":
    raise RuntimeError(f"Keras runs on {keras.backend.backend()} here, not on TensorFlow")


def versions() -> dict[str, str]:
    """Return the versions of tensorflow and keras."""
    return {"tensorflow": tf.__version__, "keras": keras.__version__}


def devices() -> list[str]:
    """Return the number of devices of each kind."""
    kinds = Counter(device.device_type for device in tf.config.list_physical_devices())
    return [f"{number} × {kind}" for kind, number in kinds.items()]


def dtypes() -> tuple[str, ...]:
    """Return the dtypes that it can compute in; float64 by Keras's floatx."""
    return ("float32", "float64")


def modes() -> dict[str, Mode]:
    """Return the step run eagerly, as a graph, and by XLA."""
    return {"eager": Mode("eager"), "function": Mode("compiled"), "xla": Mode("compiled")}


@contextlib.contextmanager
def _floatx(dtype: np.dtype) -> Iterator[None]:
    # Keras keeps the learning rate in floatx and layers in the policy, whatever the weights' dtype.
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype.name)
    keras.config.set_dtype_policy(dtype.name)
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def replay(replay: Replay, mode: str) -> Iterator[Step]:
    """Yield V₀ and W₀, and then V and W after every step."""
    dtype = replay.weights[0].dtype
    with _floatx(dtype):
        variables = [keras.Variable(w, dtype=dtype.name) for w in replay.weights]
        optimizer = Gravity(**replay.options)
        optimizer.build(variables)

    def step(gradients: list[tf.Tensor]) -> None:
        optimizer.apply(gradients, variables)

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")

    def state() -> Step:
        velocities = [v.numpy() for v in optimizer._velocities]
        return Step(velocities, [w.numpy() for w in variables])

    yield state()
    for gradients in replay.gradients:
        step([tf.constant(g) for g in gradients])
        yield state()


def train(task: Task) -> Training:
    """Train a Keras model with its compiled train step."""
    features, hidden = task.weights[0].shape
    with _floatx(task.weights[0].dtype):
        model = keras.Sequential(
            [
                keras.Input((features,)),
                keras.layers.Dense(hidden, activation="relu"),
                keras.layers.Dense(task.weights[2].shape[1]),
            ]
        )
        model.set_weights(task.weights)
        model.compile(
            optimizer=Gravity(**task.options),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        losses = []
        for batches in task.epochs:
            order = batches.reshape(-1)
            history = model.fit(
                task.x_train[order],
                task.y_train[order],
                batch_size=batches.shape[1],
                shuffle=False,
                verbose=0,
            )
            losses.append(float(history.history["loss"][0]))
        predictions = model.predict(task.x_test, verbose=0).argmax(axis=1)
        return Training(losses, model.get_weights(), predictions)
