"""Training steps in Keras on TensorFlow, as the published runs were made."""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from benchmarks.paper.network import SIZE, layers
from benchmarks.paper.settings import Settings
from gravity_conformance._status import CouldNotError
from gravity_tf import Gravity


class Trainer:
    """A network and its optimizer; `benchmarks.paper.training.Trainer` says what its methods do."""

    def __init__(self, settings: Settings, weights: list[np.ndarray], device: str) -> None:
        if keras.backend.backend() != "tensorflow":
            raise CouldNotError(
                f"--framework keras needs KERAS_BACKEND=tensorflow, got {keras.backend.backend()}"
            )
        self.device = _device(device)
        if (deterministic := _determinism()) is not None:
            deterministic()
        self.model = network(settings, weights)
        self.optimizer = _optimizer(settings)
        self.optimizer.build(self.model.trainable_variables)
        pixels = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
        labels = tf.TensorSpec((None,), tf.int64)
        self._step = tf.function(self._update, input_signature=[pixels, labels])
        self._evaluate = tf.function(self._forward, input_signature=[pixels, labels])

    def step(self, x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
        """Make one update; return the mean loss and the number of right answers before it."""
        loss, right = self._step(x, y)
        return float(loss), int(right)

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
        """Return the mean loss and the number of right answers."""
        loss, right = self._evaluate(x, y)
        return float(loss), int(right)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of all arrays that change in training."""
        variables = [*self.model.variables, *self.optimizer.variables]
        return {f"variable {i}": np.array(v) for i, v in enumerate(variables)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue from what `state` returned."""
        variables = [*self.model.variables, *self.optimizer.variables]
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"variable {i}"])

    def _update(self, x: Any, y: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            loss, right = self._forward(x, y)
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return loss, right

    def _forward(self, x: Any, y: Any) -> tuple[Any, Any]:
        logits = self.model(x)
        losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        right = tf.math.count_nonzero(tf.argmax(logits, 1) == y)
        return tf.reduce_mean(losses), right


def _device(name: str) -> str:
    """Return "cpu" or "gpu". TensorFlow uses the first GPU that it sees."""
    found = tf.config.list_physical_devices("GPU")
    if name == "gpu" and not found:
        raise CouldNotError("--device gpu: TensorFlow finds no GPU")
    if name == "cpu" and found:
        tf.config.set_visible_devices([], "GPU")
    return "gpu" if found and name != "cpu" else "cpu"


def _determinism() -> Any:
    """Return the function that makes TensorFlow's operations deterministic, if it has one."""
    return getattr(tf.config.experimental, "enable_op_determinism", None)


def network(settings: Settings, weights: list[np.ndarray]) -> Any:
    """Return the network with these weights."""
    size = 28 if settings.channels == 1 else SIZE
    policy = "mixed_bfloat16" if settings.mixed_precision else "float32"
    modules = [keras.Input((size, size, settings.channels))]
    if size != SIZE:
        modules.append(keras.layers.Resizing(SIZE, SIZE, dtype=policy))
    for layer in layers(settings.architecture, settings.channels, settings.classes):
        width, is_dense = layer.shape[-1], len(layer.shape) == 2
        if is_dense and not any(isinstance(module, keras.layers.Flatten) for module in modules):
            modules.append(keras.layers.Flatten(dtype=policy))
        # Half types would lose digits of the loss.
        options = {"activation": "relu", "dtype": policy}
        options = {"dtype": "float32"} if layer.last else options
        if is_dense:
            modules.append(keras.layers.Dense(width, **options))
        else:
            modules.append(keras.layers.Conv2D(width, 3, padding="same", **options))
        if layer.pools:
            modules.append(keras.layers.MaxPooling2D(2, dtype=policy))
    model = keras.Sequential(modules)
    model.set_weights(weights)
    return model


def _optimizer(settings: Settings) -> Any:
    values = settings.optimizer_arguments
    if settings.is_momentum:
        return keras.optimizers.SGD(**values)
    if settings.optimizer == "gravity":
        return Gravity(**values)
    return {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[settings.optimizer](
        **values
    )
