"""Gravity as a Keras 3 optimizer, which is what ``tf.keras`` is since TensorFlow 2.16.

Guarantees: V₀ needs no random state and is the same on every replica; the math is
`gravity_core.update` with ``xp=keras.ops``; on TensorFlow, eager and in tf.function, the
step gives the bits of the NumPy reference (subnormal numbers apart, which TensorFlow
flushes to zero, and weight decay, which Keras rounds elsewhere); under XLA it stays inside
the certified bound. Keras keeps the learning rate in `keras.config.floatx()`, which should
therefore be float64 for float64 variables.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from gravity_core import hyperparameters as hp
from gravity_core.update import update
from gravity_core.velocity import initial_velocity


@keras.saving.register_keras_serializable(package="gravity")
class Gravity(keras.optimizers.Optimizer):  # type: ignore[misc]  # keras has no stubs
    """Optimizer that implements the Gravity algorithm (Bahrami and Pouriyan Zadeh, 2021).

        V₀ ~ N(0, (α/l)²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ;  W ← W − l V

    max|G| is taken over each variable.

    Args:
        learning_rate: l, a number >= 0, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments. The standard deviation of V₀ is alpha / l with
            l at construction, whatever it becomes later.
        alpha: α, finite and >= 0.
        beta: β in [0, 1].
        velocity_std: standard deviation of V₀, overriding alpha / l; finite and >= 0.
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
        >>> history = model.fit(np.eye(4), np.ones((4, 1)), epochs=2, verbose=0)
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
        if not callable(learning_rate):
            learning_rate = float(learning_rate)
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.velocity_std = hp.velocity_std(nominal, alpha, velocity_std)
        self.seed = int(seed)
        self.first_step = int(first_step)

    def build(self, variables: list[Any]) -> None:
        """Create one velocity variable for each of the model's variables."""
        if self.built:
            return
        super().build(variables)
        self._velocities: list[Any] = []
        for index, variable in enumerate(variables):
            velocity: Any = None
            if not self._overwrite_variable_with_gradient(variable):
                velocity = self.add_variable_from_reference(
                    variable, name="velocity", initializer=self._initializer(index)
                )
            self._velocities.append(velocity)

    def _initializer(self, index: int) -> Any:
        def draw(shape: tuple[int, ...], dtype: Any = None) -> Any:
            # On the host: it needs no random op, and is constant however the graph is built.
            name = keras.backend.standardize_dtype(dtype)
            wide = np.float64 if name == "float64" else np.float32
            v = initial_velocity(
                tuple(shape), wide, std=self.velocity_std, seed=self.seed, index=index
            )
            return ops.cast(v, name)

        return draw

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable from its gradient."""
        velocity = self._velocities[self._get_variable_index(variable)]
        # IndexedSlices become dense here, duplicates summed before the maximum is taken.
        gradient = ops.cast(ops.convert_to_tensor(gradient), variable.dtype)
        t = self.iterations + self.first_step
        if keras.backend.backend() == "tensorflow":
            t = ops.cast(t, "float64")  # as the host has it; JAX and torch devices may have none
        v = update(gradient, ops.convert_to_tensor(velocity), t, beta=self.beta, xp=ops)
        self.assign(velocity, v)
        wide = "float64" if variable.dtype == "float64" else "float32"
        move = ops.cast(v, wide) * ops.cast(learning_rate, wide)
        weights = ops.cast(ops.convert_to_tensor(variable), wide)
        self.assign(variable, ops.cast(weights - move, variable.dtype))

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
        return hp.as_float(ops.convert_to_numpy(learning_rate(0)))
    if callable(learning_rate):
        return hp.as_float(ops.convert_to_numpy(learning_rate()))
    return learning_rate
