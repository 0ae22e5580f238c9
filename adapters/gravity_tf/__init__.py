"""Gravity for TensorFlow and Keras 3: `gravity_tf.Gravity`, a `keras.optimizers.Optimizer`.

Guarantee: importing this package imports keras with the backend that it is configured
for (TensorFlow unless KERAS_BACKEND says otherwise), and nothing beyond what that brings.
"""

from gravity_tf.optimizer import Gravity
from gravity_tf.state import export_state, import_state

__all__ = ["Gravity", "export_state", "import_state"]
