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
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from gravity_core import hyperparameters as hp
from gravity_core.coefficients import coefficients
from gravity_core.update import gradient_term, update
from gravity_core.velocity import initial_velocity
from gravity_tf._rates import (
    CallableRate,
    check_known_rate,
    check_rate_fits,
    checked_number,
    checked_rate,
    exact,
    is_schedule,
    is_tensor,
)
from gravity_tf._tensors import (
    as_reals,
    check_loaded,
    check_moves,
    dense,
    from_reals,
    is_eager,
    is_unchecked,
    known,
    max_abs,
    positions,
    stored_dtype,
    to_numpy,
    working_dtype,
)

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


@keras.saving.register_keras_serializable(package="gravity")
class Gravity(keras.optimizers.Optimizer):  # type: ignore[misc]  # keras has no stubs
    """Optimizer that implements the Gravity algorithm (Bahrami and Pouriyan Zadeh, 2021).

        V₀ ~ N(0, (α/η)²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ;  W ← W − η V

    max|G| is the maximum over one variable's gradient.

    Args:
        learning_rate: η, a number >= 0, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments. The standard deviation of V₀ is alpha / η with both at
            construction. Later values do not affect it. If that η is the small start of a warm-up,
            or another one will be assigned before the first step, pass velocity_std. If the first
            step's η is more than ten times larger, one warning says so. Like every Keras
            optimizer, this one refuses a tensor or a variable: pass a callable that returns its
            value.
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

    velocity_std: Any  # None may be assigned, and stands for alpha / η

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
        nominal = checked_rate(learning_rate)
        decay = kwargs.get("weight_decay")
        values = hp.validate(
            learning_rate=learning_rate if nominal is None else nominal,
            alpha=alpha,
            beta=beta,
            weight_decay=hp.WEIGHT_DECAY if decay is None else decay,
            velocity_std=velocity_std,
            seed=seed,
            first_step=first_step,
        )
        # Keras takes a float, and refuses a tensor, which may change later.
        if not (is_tensor(learning_rate) or callable(learning_rate)):
            learning_rate = values["learning_rate"]
            check_rate_fits(learning_rate, keras.config.floatx())
        rate = _asked(learning_rate)
        super().__init__(learning_rate=rate, name=name, **kwargs)
        self._first_rate = values["learning_rate"]
        self._has_first_schedule = is_schedule(rate)
        self._callable_rate = rate if isinstance(rate, CallableRate) else None
        self._has_compared = False  # whether `_compare_rates` has warned
        self.has_exclusions = False  # whether `exclude_from_weight_decay` was called
        self.alpha = alpha
        self.beta = beta
        self.velocity_std = velocity_std
        self.seed = seed
        self.first_step = first_step

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; hyper-parameters are checked and converted as in the constructor.

        Raises:
            ValueError: naming the hyper-parameter and the value received.
        """
        no_decay = name == "weight_decay" and value is None
        if name in hp.DEFAULTS and name != "learning_rate" and not no_decay:
            value = hp.validate(**{name: value})[name]
            if name == "velocity_std":
                std = hp.velocity_std(self._first_rate, self.alpha, value, stacklevel=4)
                self._derives_std, value = value is None, std
        super().__setattr__(name, value)

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the next step; assign a number, a schedule or a callable.

        Raises:
            ValueError: if the number that is assigned, or that a callable returns, is negative,
                not finite, or overflows the dtype that Keras stores a number in.
        """
        value = super().learning_rate
        return value if is_tensor(value) else checked_number(value)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        rate = checked_rate(value)
        new = value if rate is None or callable(value) else rate
        own = super().learning_rate if new is rate else None
        if isinstance(own, keras.Variable):  # else the base class refuses a number
            check_rate_fits(rate, stored_dtype(own))
        if self.built:
            self._compare_rates(rate)  # which raises where warnings are errors
        new = _asked(new)
        keras.optimizers.Optimizer.learning_rate.fset(self, new)
        self._has_first_schedule = False
        self._callable_rate = new if isinstance(new, CallableRate) else None

    @property
    def weight_decay(self) -> Any:
        """The decoupled weight decay, >= 0; None for none."""
        return exact(self._decay)

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self._decay = value  # `__setattr__` has checked it

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Exclude variables from weight decay, as in every Keras optimizer; a `State` has none."""
        super().exclude_from_weight_decay(var_list, var_names)
        self.has_exclusions = True

    def _compare_rates(self, rate: float | None) -> None:
        """Warn once if the first step's rate is far above the one that σ was derived from."""
        if self._has_compared or not self._derives_std or rate is None or self.alpha == 0:
            return
        if not 0 < 10 * self._first_rate < rate:
            return
        with tf.init_scope() if tf else contextlib.nullcontext():
            has_started = to_numpy(self.iterations).any()
        if not has_started:
            hp.warn_of_first_rate(self._first_rate, rate, self.alpha, stacklevel=4)
        self._has_compared = True

    def build(self, variables: list[Any]) -> None:
        """Create one velocity variable for each of the model's variables.

        Raises:
            TypeError: for a variable that is neither floating nor complex. The optimizer is then
                unchanged, as it is after the next error.
            ValueError: if V₀ would overflow the dtype of a variable.
        """
        if self.built:
            return
        for variable in variables:
            check_moves(variable)
            rate = self._first_rate if self._derives_std else None
            hp.check_velocity_std(
                self.velocity_std, stored_dtype(variable), learning_rate=rate, alpha=self.alpha
            )
        # Build outside any tf.function. Inside, V₀ would be a constant of the graph, and a graph is
        # limited to 2 GB.
        with tf.init_scope() if tf else contextlib.nullcontext():
            if self._derives_std:  # else do not call a callable
                self._compare_rates(checked_rate(super().learning_rate))
            # Before anything is built, because this is long, and may fail or be interrupted.
            drawn = [
                None
                if getattr(variable, "overwrite_with_gradient", False)
                else self._draw(index, tuple(variable.shape), stored_dtype(variable))
                for index, variable in enumerate(variables)
            ]
            super().build(variables)
            velocities: list[Any] = []
            for index, variable in enumerate(variables):
                v, drawn[index] = drawn[index], None  # its memory is free in the next turn
                if v is not None:
                    numbers = _constant(v, stored_dtype(variable))
                    v = self.add_variable_from_reference(variable, "velocity", numbers)
                velocities.append(v)
            self._velocities = velocities
            # A function, because the checkpoints of TensorFlow follow lists of variables.
            own = list(variables)
            self._weights: Callable[[], list[Any]] = lambda: own
        # Examples in Keras's documentation call this private method, but a release may remove it.
        if not hasattr(self, "_get_variable_index"):
            self._get_variable_index = positions(variables)

    def _draw(self, index: int, shape: tuple[int, ...], name: str) -> np.ndarray:
        """Draw V₀ on the host: without a random op, and the same in every graph."""
        return initial_velocity(
            shape,
            name if name.startswith("complex") else working_dtype(name),
            std=self.velocity_std,
            seed=self.seed,
            index=index,
        )

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the variables from their gradients, like every Keras optimizer.

        Sparse gradients are converted to dense tensors first; duplicates are summed.

        Raises:
            ValueError: for a gradient that has another shape than its variable, or is complex where
                the variable is real. Also for a learning rate that is negative or not finite and
                for a negative t, where the host has their values. No variable has changed then.
            TypeError: for a gradient that is no tensor of numbers, or is a masked array; likewise.
        """
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        variables = trainable_variables or (self._weights() if self.built else [])
        grads = list(grads)
        is_late = list(map(is_unchecked, grads))
        # V also moves in rows without a gradient, so make every gradient dense. If `grads` is
        # longer than `variables`, pass on the rest: the base class raises or ignores it.
        accumulates = bool(self.gradient_accumulation_steps)
        pairs = zip(grads, variables, strict=False)
        grads = [*(dense(g, v, accumulates) for g, v in pairs), *grads[len(variables) :]]
        late = list(itertools.compress(grads, is_late))
        count = known(self.iterations)
        if count is not None and count < 0:
            raise ValueError(f"iteration must be an integer >= 0, got {count}")
        # To ask a callable again would skip values of an iterator, and it may fail in mid-step.
        # While gradients accumulate, Keras needs no rate; for an update it asks before any move.
        asked = self._callable_rate if is_eager() else None
        with asked.asked_once() if asked else contextlib.nullcontext():
            if not self._callable_rate or (asked and not accumulates):
                check_known_rate(self.learning_rate)
            # What a running graph has to check it checks before anything moves.
            with tf.control_dependencies(late) if tf else contextlib.nullcontext():
                super().apply(grads, trainable_variables)

    def load_own_variables(self, store: Any) -> None:
        """Replace the optimizer's variables with those of a file; Keras calls this method.

        Raises:
            ValueError: for a variable that is missing, has another shape or kind of dtype, has a
                mask or overflows, or for a t or a learning rate out of its range. No variable has
                changed then.
        """
        if len(store.keys()) == len(self.variables):  # else the base class warns, and skips them
            names = [str(i) for i in range(len(self.variables))]
            if missing := [name for name in names if name not in store.keys()]:  # noqa: SIM118
                raise ValueError(f"the stored variables must be {names}, {missing[0]} is missing")
            self._check_loaded([_as_array(store[name]) for name in names])
        super().load_own_variables(store)

    def set_weights(self, weights: Any) -> None:
        """Replace the optimizer's variables with a list of arrays.

        Raises:
            ValueError: as `load_own_variables`.
        """
        weights = list(map(_as_array, weights))
        if self.built:  # else the base class raises
            self._check_loaded(weights)
        super().set_weights(weights)

    def _check_loaded(self, values: list[Any]) -> None:
        check_loaded(self.variables, values)
        for variable, value in zip(self.variables, values, strict=True):
            if variable.name == "learning_rate":
                hp.validate(learning_rate=np.asarray(value))
            elif variable.name == "iteration":
                count, dtype = np.asarray(value), stored_dtype(variable)
                is_integer = float(count).is_integer()
                if not (is_integer and 0 <= int(count) <= np.iinfo(dtype).max):
                    raise ValueError(
                        f"iteration must be an integer >= 0 that fits {dtype}, got {count!r}"
                    )

    def _counter(self) -> Any:
        """Return t, as an integer where the host has it."""
        count = self.iterations
        number = known(count)
        if number is not None:
            return int(number) + self.first_step
        # TensorFlow computes the coefficients in float64. JAX and torch devices may lack it.
        return (ops.cast(count, "float64") if tf else count) + self.first_step

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable from its gradient."""
        velocity = self._velocities[self._get_variable_index(variable)]
        name = stored_dtype(variable)
        gradient = ops.cast(gradient, name)
        t = self._counter()
        dtype = working_dtype(name)
        step = self._step_by_kernel if tf and name == dtype else self._step_by_ops
        step(gradient, variable, velocity, ops.cast(learning_rate, dtype), t)

    def _step_by_ops(self, gradient: Any, variable: Any, velocity: Any, lr: Any, t: Any) -> None:
        name = stored_dtype(variable)
        g, v, w = map(as_reals, (gradient, velocity, variable))
        v = update(g, v, t, beta=self.beta, max_abs=max_abs(g, tuple(w.shape)), xp=ops)
        self.assign(velocity, from_reals(v, name))
        w = ops.cast(w, lr.dtype) - ops.cast(v, lr.dtype) * lr
        self.assign(variable, from_reals(w, name))

    def _step_by_kernel(self, gradient: Any, variable: Any, velocity: Any, lr: Any, t: Any) -> None:
        # The momentum kernel V ← V β̂ + G, W ← W − V η saves four passes over memory.
        old, new = (ops.cast(exact(c), lr.dtype) for c in coefficients(t, self.beta))
        zeta = gradient_term(gradient, max_abs=max_abs(gradient, variable.shape), xp=ops)
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle, accum=velocity.handle, lr=lr, grad=new * zeta, momentum=old
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments.

        `velocity_std` is None if the learning rate gives the σ in use again, so a copy with another
        learning rate has its own σ. Otherwise it is the σ in use, for example after the learning
        rate was changed.
        """
        config: dict[str, Any] = super().get_config()
        derives = self._has_first_schedule
        if self._callable_rate is not None:
            function = self._callable_rate.function
            config["learning_rate"] = keras.saving.serialize_keras_object(function)
        elif isinstance(rate := super().learning_rate, keras.Variable):
            derives = bool(to_numpy(rate) == np.asarray(self._first_rate, stored_dtype(rate)))
            if derives:
                config["learning_rate"] = self._first_rate  # not rounded to Keras's dtype
        derives = derives and self._derives_std and self._first_rate > 0
        derives = derives and self.velocity_std == self.alpha / self._first_rate
        return config | {
            "alpha": self.alpha,
            "beta": self.beta,
            "velocity_std": None if derives else self.velocity_std,
            "seed": self.seed,
            "first_step": self.first_step,
        }


def _asked(rate: Any) -> Any:
    """Return a learning rate for Keras: a callable as a `CallableRate`, anything else as it is."""
    return CallableRate(rate) if callable(rate) and not is_schedule(rate) else rate


def _as_array(value: Any) -> Any:
    return value if hasattr(value, "shape") else np.asarray(value)


def _constant(v: np.ndarray, name: str) -> Callable[..., Any]:
    """Return an initializer of a variable that has these numbers, in the dtype with a name."""
    return lambda shape, dtype=None: ops.cast(v, name)
