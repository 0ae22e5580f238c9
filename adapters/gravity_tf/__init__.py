"""Gravity for TensorFlow and Keras 3: `gravity_tf.Gravity`, a `keras.optimizers.Optimizer`.

Guarantee: importing this package imports keras with its configured backend (TensorFlow by default,
or the value of KERAS_BACKEND), and no framework beyond those that Keras imports.
"""

from gravity_tf.optimizer import Gravity
from gravity_tf.state import export_state, import_state

__all__ = ["Gravity", "export_state", "import_state"]
