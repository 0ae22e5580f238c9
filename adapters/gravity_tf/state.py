"""Export and import of a `gravity_tf.Gravity` run, as `gravity_core.State`."""

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from gravity_core import State
from gravity_core import hyperparameters as hp
from gravity_tf._rates import check_rate_fits
from gravity_tf._tensors import stored_dtype
from gravity_tf.optimizer import Gravity


def export_state(optimizer: Gravity) -> State:
    """Return a copy of the state and the hyper-parameters.

    A schedule is exported as the learning rate of the next step. A state holds neither exclusions
    from weight decay, of which a warning tells, nor clipping, moving averages and other options of
    the base class.

    Args:
        optimizer: a built `Gravity`, or a `keras.optimizers.LossScaleOptimizer` around one.

    Raises:
        TypeError: for another optimizer.
        ValueError: if the optimizer is not built, or has accumulated only some of the gradients of
            the next update.

    Example:
        >>> w = keras.Variable([1.0, 1.0])
        >>> optimizer = Gravity(learning_rate=0.2)
        >>> optimizer.apply([ops.ones(2)], [w])
        >>> export_state(optimizer)
        State(t=1, first_step=1, velocities=[float32(2,)])
    """
    optimizer = _unwrapped(optimizer)
    velocities = _velocities(optimizer)
    every = optimizer.gradient_accumulation_steps or 1
    # int() of a variable fails under a distribution strategy of TensorFlow.
    count, rest = divmod(int(ops.convert_to_numpy(_variable(optimizer, "iteration"))), every)
    if rest:
        raise ValueError(
            f"optimizer must be between two updates, got {rest} of {every} gradients accumulated"
        )
    if optimizer.has_exclusions and optimizer.weight_decay:
        warnings.warn(
            "exclude_from_weight_decay was called, but a State has one weight_decay for all "
            "variables; exclude them again where the run goes on",
            stacklevel=2,
        )
    values = {name: getattr(optimizer, name) for name in hp.DEFAULTS}
    return State(
        count,
        [ops.convert_to_numpy(ops.cast(v, _numpy_dtype(v))) for v in velocities],
        values
        | {
            "learning_rate": hp.as_float(ops.convert_to_numpy(values["learning_rate"])),
            "weight_decay": optimizer.weight_decay or 0.0,  # Keras has None for no decay
        },
        dtypes=[stored_dtype(v) for v in velocities],
    )


def import_state(optimizer: Gravity, state: State) -> None:
    """Replace the optimizer's state and hyper-parameters with those of `state`.

    A learning rate schedule stays, and continues at the state's t. Import before the first step,
    because a traced function keeps the hyper-parameters that it was traced with. With `use_ema`,
    set the weights before: the moving averages start from them. Accumulated gradients are dropped.

    Args:
        optimizer: a built `Gravity`, or a `keras.optimizers.LossScaleOptimizer` around one, which
            keeps its scale. The variables must be in the state's order.
        state: a state from any framework.

    Raises:
        TypeError: for another optimizer or another state.
        ValueError: if the optimizer is not built, or the state does not fit. The optimizer is
            unchanged then.

    Example:
        >>> import numpy as np
        >>> optimizer = Gravity()
        >>> optimizer.build([keras.Variable([1.0, 1.0])])
        >>> import_state(optimizer, State(10, [np.zeros(2, np.float32)], {"learning_rate": 0.2}))
        >>> int(optimizer.iterations), float(optimizer.learning_rate)
        (10, 0.20000000298023224)
    """
    optimizer = _unwrapped(optimizer)
    velocities = _velocities(optimizer)
    if not isinstance(state, State):
        raise TypeError(f"state must be a gravity_core.State, got {type(state).__name__}")
    every = optimizer.gradient_accumulation_steps or 1
    iteration = _variable(optimizer, "iteration")
    largest = int(np.iinfo(stored_dtype(iteration)).max) // every
    state.check([(tuple(v.shape), stored_dtype(v)) for v in velocities], largest_t=largest)
    values = hp.validate(**state.hyperparameters)
    rate, decay = values.pop("learning_rate"), values.pop("weight_decay")
    own_rate = _variable(optimizer, "learning_rate")  # None for a schedule or a callable
    if own_rate is not None:
        check_rate_fits(rate, stored_dtype(own_rate))
    # Make every new value first: what can fail does so before the first assignment.
    new = [(iteration, state.count * every)]
    for own, v in zip(velocities, state.velocities, strict=True):
        new.append((own, ops.cast(ops.convert_to_tensor(v), stored_dtype(own))))
    for own in _named(optimizer, "_gradient_accumulator"):
        new.append((own, ops.zeros(own.shape, stored_dtype(own))))
    # At t = 0 Keras starts the averages from the weights, at other t from what they are.
    if averages := _named(optimizer, "_average"):
        both = zip(optimizer._weights(), optimizer._velocities, strict=True)
        moved = [w for w, v in both if v is not None]
        # Copies: JAX refuses to donate a buffer that the average and the weight share.
        new += zip(averages, map(ops.copy, moved), strict=True)
    for name, value in values.items():
        setattr(optimizer, name, value)
    optimizer.weight_decay = decay or None
    if own_rate is not None:
        optimizer.learning_rate = rate  # after velocity_std, which no rate then contradicts
    for variable, value in new:
        variable.assign(value)


def _unwrapped(optimizer: Any) -> Gravity:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, Gravity):
        raise TypeError(
            "optimizer must be a gravity_tf.Gravity, or a LossScaleOptimizer around one, "
            f"got {type(optimizer).__name__}"
        )
    if not optimizer.built:
        raise ValueError("optimizer must be built: call optimizer.build(variables) first")
    return optimizer


def _velocities(optimizer: Gravity) -> list[Any]:
    return [v for v in optimizer._velocities if v is not None]


def _named(optimizer: Gravity, suffix: str) -> list[Any]:
    """Return the variables that the base class made for those of the model."""
    return [v for v in optimizer.variables if v.name.endswith(suffix)]


def _variable(optimizer: Gravity, name: str) -> Any:
    """Return the base class's variable with that name, or None. No public attribute holds it."""
    return next((v for v in optimizer.variables if v.name == name), None)


def _numpy_dtype(v: Any) -> str:
    """Return the dtype of V in NumPy, which has no bfloat16."""
    return "float32" if stored_dtype(v) == "bfloat16" else stored_dtype(v)
