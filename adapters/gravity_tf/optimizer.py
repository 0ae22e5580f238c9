"""Gravity as a Keras 3 optimizer; since TensorFlow 2.16, ``tf.keras`` is Keras 3.

Guarantees:

- V₀ needs no random state and is the same on every replica.
- The math is `gravity_core.update` with ``xp=keras.ops``. For float32 and float64 variables of
  TensorFlow, TensorFlow's momentum kernel does the last part, because it is faster. The tests
  compare both ways with the NumPy reference.
- On TensorFlow's CPU, eager and in tf.function, a step has the bits of the NumPy reference. There
  are two exceptions: TensorFlow flushes subnormal numbers to zero, and Keras rounds weight decay at
  another point of the step. TensorFlow must be built without fused multiply-add, as the x86-64
  wheels are.
- Under XLA, on GPUs and on the other backends of Keras, a step stays inside the certified bound.

Keras stores a constant learning rate in the dtype `keras.config.floatx()`. For float64 variables,
set floatx to float64. On TensorFlow, the schedules of Keras compute in float32 for any floatx.
"""

import contextlib
import math
import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from gravity_core import hyperparameters as hp
from gravity_core.coefficients import coefficients
from gravity_core.update import gradient_term, max_abs_grad, update
from gravity_core.velocity import initial_velocity

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None

_LANES = 64  # largest number of columns of the table in `_max_abs`; measured


@keras.saving.register_keras_serializable(package="gravity")
class Gravity(keras.optimizers.Optimizer):  # type: ignore[misc]  # keras has no stubs
    """Optimizer that implements the Gravity algorithm (Bahrami and Pouriyan Zadeh, 2021).

        V₀ ~ N(0, (α/η)²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ;  W ← W − η V

    max|G| is the maximum over one variable's gradient.

    Args:
        learning_rate: η, a number >= 0, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments. The standard deviation of V₀ is alpha / η with η at
            construction. Later values do not affect it. If that η is the small start of a warm-up,
            pass velocity_std. Like every Keras optimizer, this one refuses a tensor or a variable:
            pass a callable that returns its value.
        alpha: α, finite and >= 0.
        beta: β in [0, 1].
        velocity_std: standard deviation of V₀, used instead of alpha / η. It must be >= 0 and small
            enough that V₀ does not overflow the variables' dtype.
        seed: an integer in [0, 2**64). V₀ depends on the seed and on the variable's position, so
            the replicas of a distributed job start alike. If several optimizers train parts of one
            model, give each its own seed.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        name: name of the optimizer.
        **kwargs: the other arguments of every Keras optimizer: `weight_decay`, `clipnorm`,
            `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor` and `gradient_accumulation_steps`.

    Raises:
        ValueError: naming the argument and the value received.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer=Gravity(learning_rate=0.1), loss="mse")
        >>> x, y = keras.ops.eye(4), keras.ops.ones((4, 1))
        >>> history = model.fit(x, y, epochs=2, verbose=0)
        >>> int(model.optimizer.iterations)
        2
    """

    def __init__(
        self,
        learning_rate: Any = hp.LEARNING_RATE,
        alpha: float = hp.ALPHA,
        beta: float = hp.BETA,
        *,
        velocity_std: float | None = None,
        seed: int = hp.SEED,
        first_step: int = hp.FIRST_STEP,
        name: str = "gravity",
        **kwargs: Any,
    ) -> None:
        nominal = _nominal(learning_rate)
        decay = kwargs.get("weight_decay")
        hp.validate(
            learning_rate=nominal,
            alpha=alpha,
            beta=beta,
            weight_decay=hp.WEIGHT_DECAY if decay is None else decay,
            velocity_std=velocity_std,
            seed=seed,
            first_step=first_step,
        )
        if isinstance(learning_rate, numbers.Real):
            learning_rate = float(learning_rate)  # the only number type that Keras accepts
        if decay is not None:
            # On TensorFlow, Keras calls tf.cast, which rounds a plain float to float32 first, but
            # not an np.float64. An np.float64 is a float, so json can write it.
            kwargs["weight_decay"] = np.float64(decay)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.velocity_std = hp.velocity_std(nominal, alpha, velocity_std)
        self._first_rate = hp.as_float(nominal)
        self.seed = int(seed)
        self.first_step = int(first_step)
        # t of the current step inside `apply`, None outside. Computing t again for every variable
        # took a tenth of the time of an eager step with many small variables.
        self._t: Any = None

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next step; assign a number, a schedule or a callable.

        Raises:
            ValueError: if the assigned number is negative or not finite.
        """
        value = super().learning_rate
        return np.float64(value) if isinstance(value, float) else value  # for tf.cast, see __init__

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if isinstance(value, (numbers.Real, np.ndarray, np.generic)):
            hp.validate(learning_rate=value)
        keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def build(self, variables: list[Any]) -> None:
        """Create one velocity variable for each of the model's variables.

        Raises:
            ValueError: if V₀ would overflow the dtype of a variable. The optimizer is then
                unchanged.
        """
        if self.built:
            return
        for variable in variables:
            hp.check_velocity_std(
                self.velocity_std,
                keras.backend.standardize_dtype(variable.dtype),
                learning_rate=self._first_rate,
                alpha=self.alpha,
            )
        # Build outside any tf.function. Inside, V₀ would be a constant of the graph, and a graph is
        # limited to 2 GB.
        with tf.init_scope() if tf else contextlib.nullcontext():
            super().build(variables)
            self._velocities: list[Any] = [
                None
                if getattr(variable, "overwrite_with_gradient", False)
                else self.add_variable_from_reference(
                    variable, name="velocity", initializer=self._initializer(index)
                )
                for index, variable in enumerate(variables)
            ]
        # Examples in Keras's documentation call this private method, but a release may remove it.
        if not hasattr(self, "_get_variable_index"):
            self._get_variable_index = _positions(variables)

    def _initializer(self, index: int) -> Any:
        def draw(shape: tuple[int, ...], dtype: Any = None) -> Any:
            # Draw on the host. This needs no random op, and gives the same V₀ in every graph.
            name = keras.backend.standardize_dtype(dtype)
            v = initial_velocity(
                tuple(shape),
                _working_dtype(name),
                std=self.velocity_std,
                seed=self.seed,
                index=index,
            )
            return ops.cast(v, name)

        return draw

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the variables from their gradients, like every Keras optimizer.

        `tf.IndexedSlices` are converted to dense tensors first.
        """
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        # Keras's list of variables is private. Use the velocities, which have the same shapes.
        variables = trainable_variables or (self._velocities if self.built else [])
        if tf:
            # V also moves in rows without a gradient, so make every gradient dense. If `grads` is
            # longer than `variables`, pass on the rest: the base class raises or ignores it.
            grads = [*map(_dense, grads, variables), *grads[len(variables) :]]
        self._t = self._counter()
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._t = None

    def _counter(self) -> Any:
        t = self.iterations + self.first_step
        # TensorFlow computes the coefficients in float64. JAX and torch devices may lack it.
        return ops.cast(t, "float64") if tf else t

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable from its gradient."""
        velocity = self._velocities[self._get_variable_index(variable)]
        gradient = _shaped(ops.cast(gradient, variable.dtype), variable)
        t = self._counter() if self._t is None else self._t
        name = keras.backend.standardize_dtype(variable.dtype)
        dtype = _working_dtype(name)
        step = self._step_by_kernel if tf and name == dtype else self._step_by_ops
        step(gradient, variable, velocity, ops.cast(learning_rate, dtype), t)

    def _step_by_ops(self, gradient: Any, variable: Any, velocity: Any, lr: Any, t: Any) -> None:
        v = ops.convert_to_tensor(velocity)
        max_abs = _max_abs(gradient, variable.shape)
        v = update(gradient, v, t, beta=self.beta, max_abs=max_abs, xp=ops)
        self.assign(velocity, v)
        w = ops.cast(ops.convert_to_tensor(variable), lr.dtype)
        self.assign(variable, ops.cast(w - ops.cast(v, lr.dtype) * lr, variable.dtype))

    def _step_by_kernel(self, gradient: Any, variable: Any, velocity: Any, lr: Any, t: Any) -> None:
        # The momentum kernel V ← V β̂ + G, W ← W − V η saves four passes over memory.
        old, new = (ops.cast(c, lr.dtype) for c in coefficients(t, self.beta))
        zeta = gradient_term(gradient, max_abs=_max_abs(gradient, variable.shape), xp=ops)
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle, accum=velocity.handle, lr=lr, grad=new * zeta, momentum=old
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with the σ in use as `velocity_std`."""
        config: dict[str, Any] = super().get_config()
        return config | {
            "alpha": self.alpha,
            "beta": self.beta,
            "velocity_std": self.velocity_std,
            "seed": self.seed,
            "first_step": self.first_step,
        }


def _nominal(learning_rate: Any) -> Any:
    """Return the learning rate at step 0; σ is computed from it."""
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        start = ops.convert_to_tensor(0, dtype="int")  # a tensor, as Keras passes it
        learning_rate = learning_rate(start)
    elif callable(learning_rate):
        learning_rate = learning_rate()
    else:
        return learning_rate
    value = ops.convert_to_numpy(learning_rate)
    return hp.as_float(value) if hp.may_be_a_number(value) else value


def _working_dtype(dtype: str) -> str:
    """Return the dtype to compute in: float64 for double precision, else float32."""
    return "float64" if dtype == "float64" else "float32"


def _positions(variables: list[Any]) -> Callable[[Any], int]:
    """Return a function that finds the position of one of these variables."""
    positions: dict[int, int] = {}
    for position, variable in enumerate(variables):
        same = [variable]
        if tf:
            # Instead of its own variable, Keras may pass TensorFlow's or that of a replica.
            value = variable.value if isinstance(variable, keras.Variable) else variable
            same += [value, *tf.distribute.get_strategy().experimental_local_results(value)]
        positions |= dict.fromkeys(map(id, same), position)
    return lambda variable: positions[id(variable)]


def _dense(gradient: Any, variable: Any) -> Any:
    """Return a gradient of TensorFlow as a dense tensor."""
    if variable is None or not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def _shaped(gradient: Any, variable: Any) -> Any:
    """Return a gradient with its variable's shape, which a traced gradient may not know."""
    shape, got = tuple(variable.shape), gradient.shape
    if not (got.is_compatible_with(shape) if tf else tuple(got) == shape):
        name = getattr(variable, "path", variable.name)
        raise ValueError(
            f"the gradient of {name} must have the variable's shape {shape}, got {tuple(got)}"
        )
    return tf.ensure_shape(gradient, shape) if tf else gradient


def _max_abs(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Return max|G| of a gradient of that shape; None if it has no elements."""
    if 0 in shape:
        return None
    if len(shape) < 2 or shape[-1] >= _LANES:
        return max_abs_grad(gradient, xp=ops)
    # Reduce over the rows of a table first, because XLA on the CPU vectorizes this reduction. It
    # does not vectorize a reduction over all axes of (64, 64, 3, 3) or over the flat view. Such a
    # reduction took most of the time of a step. For an odd number of elements, the table has one
    # column, and XLA does not vectorize it either.
    rows = ops.reshape(gradient, (-1, math.gcd(math.prod(shape), _LANES)))
    return ops.max(max_abs_grad(rows, axes=(0,), xp=ops))
