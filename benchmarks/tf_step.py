"""The steps of gravity_tf.Gravity and of Keras's Adam, both as graphs of TensorFlow."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from benchmarks.shapes import Shape, gradients
from gravity_tf import Gravity


def pin(threads: int) -> None:
    """Set TensorFlow's number of threads, which is possible only before its first operation."""
    threading = tf.config.threading
    if threading.get_intra_op_parallelism_threads() != threads:
        threading.set_intra_op_parallelism_threads(threads)
        threading.set_inter_op_parallelism_threads(threads)


def contenders(
    shapes: list[Shape], threads: int, *, jit_compile: bool = False
) -> dict[str, Callable[[], Any]]:
    """Return Adam, SGD with momentum and Gravity, each as one compiled step."""
    pin(threads)
    grads = [tf.constant(g) for g in gradients(shapes)]
    optimizers = {
        "keras.optimizers.Adam()": keras.optimizers.Adam(),
        "keras.optimizers.SGD(momentum)": keras.optimizers.SGD(0.1, momentum=0.9),
        "gravity_tf.Gravity()": Gravity(),
    }

    def step(optimizer: Any) -> Callable[[], Any]:
        variables = [keras.Variable(tf.zeros(s)) for s in shapes]
        optimizer.build(variables)
        # The gradients are arguments, because the compiler would fold constants.
        compiled = tf.function(
            lambda grads: optimizer.apply(grads), jit_compile=jit_compile, autograph=False
        )
        return lambda: compiled(grads)

    return {name: step(optimizer) for name, optimizer in optimizers.items()}
