"""TensorFlow as a backend of ``gravity parity`` (`gravity_conformance.protocol`)."""

from collections import Counter
from typing import Literal

import keras
import tensorflow as tf

from gravity_tf.optimizer import Gravity

__all__ = ["devices", "kind", "optimizer"]

if keras.backend.backend() != "tensorflow":
    raise RuntimeError(f"Keras runs on {keras.backend.backend()} here, not on TensorFlow")

optimizer = Gravity
kind: Literal["keras"] = "keras"


def devices() -> list[str]:
    """Return the number of devices of each kind."""
    kinds = Counter(device.device_type for device in tf.config.list_physical_devices())
    return [f"{number} × {kind}" for kind, number in kinds.items()]
