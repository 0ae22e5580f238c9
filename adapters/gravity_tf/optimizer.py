"""Gravity as a Keras 3 optimizer, which is what ``tf.keras`` is since TensorFlow 2.16.

Guarantees: V₀ needs no random state and is the same on every replica. The math is that of
`gravity_core.update` with ``xp=keras.ops``; float32 and float64 variables of TensorFlow end it
with TensorFlow's kernel of momentum, which is faster (both are tested against the reference). On
TensorFlow's CPU, eager and in tf.function, the step gives the bits of the NumPy reference
(subnormal numbers apart, which TensorFlow flushes to zero, and weight decay, which Keras rounds
elsewhere), where TensorFlow is built without fused multiply-add, as its x86-64 wheels are; under
XLA, on GPUs and on the other backends of Keras it stays inside the certified bound. Keras keeps
a learning rate that is a number in `keras.config.floatx()`, which should therefore be float64 for
float64 variables; on TensorFlow its schedules compute in float32 whatever floatx is.
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

_LANES = 64  # columns of the table in `_max_abs`, by measurement


@keras.saving.register_keras_serializable(package="gravity")
class Gravity(keras.optimizers.Optimizer):  # type: ignore[misc]  # keras has no stubs
    """Optimizer that implements the Gravity algorithm (Bahrami and Pouriyan Zadeh, 2021).

        V₀ ~ N(0, (α/l)²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ;  W ← W − l V

    max|G| is taken over each variable.

    Args:
        learning_rate: l, a number >= 0, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments. The standard deviation of V₀ is alpha / l with
            l at construction, whatever it becomes later: where that is a small start of a
            warm-up, give velocity_std. A tensor or a variable is refused, as
            of every Keras optimizer: a callable can return its value at each step.
        alpha: α, finite and >= 0.
        beta: β in [0, 1].
        velocity_std: standard deviation of V₀, overriding alpha / l; >= 0, and such that V₀
            does not overflow the variables' dtype.
        seed: an integer in [0, 2**64). V₀ depends on it and on the variable's position, so
            the replicas of a distributed job start alike, and optimizers of parts of one
            model want a seed each.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        name: name of the optimizer.
        **kwargs: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`,
            `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor` and
            `gradient_accumulation_steps`, as of every Keras optimizer.

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
            learning_rate = float(learning_rate)  # all that Keras takes as a number
        if decay is not None:
            # Keras's backend of TensorFlow casts it by tf.cast, which takes a plain float
            # through float32. np.float64 is a float, too, also to json.
            kwargs["weight_decay"] = np.float64(decay)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.velocity_std = hp.velocity_std(nominal, alpha, velocity_std)
        self._first_rate = hp.as_float(nominal)
        self.seed = int(seed)
        self.first_step = int(first_step)
        # t of the step that `apply` is taking, and None outside `apply`. Computing it again for
        # every variable took a tenth of an eager step of many small variables.
        self._t: Any = None

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next step; a number, a schedule or a callable can be assigned.

        Raises:
            ValueError: if a number is assigned that is negative or not finite.
        """
        value = super().learning_rate
        return np.float64(value) if isinstance(value, float) else value  # as for weight_decay

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if isinstance(value, (numbers.Real, np.ndarray, np.generic)):
            hp.validate(learning_rate=value)
        keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def build(self, variables: list[Any]) -> None:
        """Create one velocity variable for each of the model's variables.

        Raises:
            ValueError: if V₀ would overflow the dtype of a variable; nothing has then changed.
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
        # In a tf.function V₀ would be a constant of its graph, which has a limit of 2 GB.
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
        # Keras's own example calls this private method, which a release may remove.
        if not hasattr(self, "_get_variable_index"):
            self._get_variable_index = _positions(variables)

    def _initializer(self, index: int) -> Any:
        def draw(shape: tuple[int, ...], dtype: Any = None) -> Any:
            # On the host: it needs no random op, and is constant however the graph is built.
            name = keras.backend.standardize_dtype(dtype)
            v = initial_velocity(
                tuple(shape), _wide(name), std=self.velocity_std, seed=self.seed, index=index
            )
            return ops.cast(v, name)

        return draw

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the variables from their gradients; arguments and errors as of every optimizer.

        `tf.IndexedSlices` count as the dense tensors that they stand for.
        """
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        # Keras keeps its list of variables private; the velocities have the same shapes.
        variables = trainable_variables or (self._velocities if self.built else [])
        if tf:
            # V moves in the rows without a gradient, too, and duplicate rows count as their sum.
            # What one list has more than the other is kept for the base class: it raises where the
            # variables are its own, and stops at the shorter list where they are given.
            grads = [*map(_dense, grads, variables), *grads[len(variables) :]]
        self._t = self._counter()
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._t = None

    def _counter(self) -> Any:
        t = self.iterations + self.first_step
        # The coefficients are then the host's; devices of JAX and torch may have no float64.
        return ops.cast(t, "float64") if tf else t

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable from its gradient."""
        velocity = self._velocities[self._get_variable_index(variable)]
        gradient = _shaped(ops.cast(gradient, variable.dtype), variable)
        t = self._counter() if self._t is None else self._t
        name = keras.backend.standardize_dtype(variable.dtype)
        step = self._step_by_kernel if tf and name == _wide(name) else self._step_by_ops
        step(gradient, variable, velocity, ops.cast(learning_rate, _wide(name)), t)

    def _step_by_ops(self, gradient: Any, variable: Any, velocity: Any, lr: Any, t: Any) -> None:
        v = ops.convert_to_tensor(velocity)
        max_abs = _max_abs(gradient, variable.shape)
        v = update(gradient, v, t, beta=self.beta, max_abs=max_abs, xp=ops)
        self.assign(velocity, v)
        w = ops.cast(ops.convert_to_tensor(variable), lr.dtype)
        self.assign(variable, ops.cast(w - ops.cast(v, lr.dtype) * lr, variable.dtype))

    def _step_by_kernel(self, gradient: Any, variable: Any, velocity: Any, lr: Any, t: Any) -> None:
        # TensorFlow's kernel of momentum, V ← V β̂ + G, W ← W − V l, saves four passes over memory.
        old, new = (ops.cast(c, lr.dtype) for c in coefficients(t, self.beta))
        zeta = gradient_term(gradient, max_abs=_max_abs(gradient, variable.shape), xp=ops)
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle, accum=velocity.handle, lr=lr, grad=new * zeta, momentum=old
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments; `velocity_std` as it was fixed at construction."""
        config: dict[str, Any] = super().get_config()
        return config | {
            "alpha": self.alpha,
            "beta": self.beta,
            "velocity_std": self.velocity_std,
            "seed": self.seed,
            "first_step": self.first_step,
        }


def _nominal(learning_rate: Any) -> Any:
    """Return the learning rate at step 0, by which V₀ is scaled."""
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        start = ops.convert_to_tensor(0, dtype="int")  # as Keras passes it, not a Python number
        learning_rate = learning_rate(start)
    elif callable(learning_rate):
        learning_rate = learning_rate()
    else:
        return learning_rate
    value = ops.convert_to_numpy(learning_rate)
    return hp.as_float(value) if hp.may_be_a_number(value) else value


def _wide(dtype: str) -> str:
    """Return the dtype in which variables of `dtype` are computed."""
    return "float64" if dtype == "float64" else "float32"


def _positions(variables: list[Any]) -> Callable[[Any], int]:
    """Return what finds the position of one of these variables."""
    positions: dict[int, int] = {}
    for position, variable in enumerate(variables):
        every = [variable]
        if tf:
            # Keras passes TensorFlow's variable in place of its own, and each replica its own part.
            value = variable.value if isinstance(variable, keras.Variable) else variable
            every += [value, *tf.distribute.get_strategy().experimental_local_results(value)]
        positions |= dict.fromkeys(map(id, every), position)
    return lambda variable: positions[id(variable)]


def _dense(gradient: Any, variable: Any) -> Any:
    """Return the tensor that a gradient of TensorFlow stands for."""
    if variable is None or not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def _shaped(gradient: Any, variable: Any) -> Any:
    """Return a gradient with its variable's shape, which one that is traced may not know yet."""
    shape, got = tuple(variable.shape), gradient.shape
    if not (got.is_compatible_with(shape) if tf else tuple(got) == shape):
        name = getattr(variable, "path", variable.name)
        raise ValueError(f"the gradient of {name} must have its shape {shape}, got {tuple(got)}")
    return tf.ensure_shape(gradient, shape) if tf else gradient


def _max_abs(gradient: Any, shape: tuple[int, ...]) -> Any:
    """Return max|G| of a gradient of that shape; None where it has no elements."""
    if 0 in shape:
        return None
    if len(shape) < 2 or shape[-1] >= _LANES:
        return max_abs_grad(gradient, xp=ops)
    # XLA on the CPU vectorises neither a reduction over all of (64, 64, 3, 3) nor one over its flat
    # view, which it sees through, and took most of a step for it; that over a table's rows it does.
    # Of an odd number of elements the table has one column, and is not vectorised either.
    rows = ops.reshape(gradient, (-1, math.gcd(math.prod(shape), _LANES)))
    return ops.max(max_abs_grad(rows, axes=(0,), xp=ops))
