"""Gravity as optax gradient transformations.

Guarantees:

- The state holds arrays only.
- V₀ needs no random key. It has the same bits inside and outside jit and on any mesh. (If the
  learning rate is traced, σ = α/η is computed in float32.)
- The math is gravity_core's, with ``xp=jax.numpy``.
- Outside jit, a step has the bits of the NumPy reference, with two exceptions: XLA flushes
  subnormal numbers to zero, and optax rounds weight decay at another point of the step.
- Under jit, a step stays inside the certified bound.
"""

import functools
import itertools
import warnings
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from gravity_core import hyperparameters as hp
from gravity_core.coefficients import coefficients
from gravity_core.update import gradient_term
from gravity_jax._leaves import (
    as_array,
    canonical,
    check_velocity,
    checked_count,
    gradient,
    is_traced,
    moves,
)
from gravity_jax._leaves import velocity_dtype as dtype_of_velocity
from gravity_jax._reduction import largest_magnitudes
from gravity_jax._structure import leaves_up_to, named_leaves, stacked_axes
from gravity_jax._velocity import check_velocity_std, initial_velocity, working_dtype


class ScaleByGravityState(NamedTuple):
    """State of `scale_by_gravity`.

    Attributes:
        count: the number of updates so far, an int32 scalar.
        velocity: V, with the tree structure of the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in optax's own states
    velocity: optax.Updates


def scale_by_gravity(
    beta: ArrayLike = hp.BETA,
    *,
    velocity_std: ArrayLike | None = None,
    seed: ArrayLike = hp.SEED,
    first_step: ArrayLike = hp.FIRST_STEP,
    velocity_dtype: DTypeLike | None = None,
    stacked: Any = None,
    axis_name: Hashable | None = None,
) -> optax.GradientTransformation:
    """Replace gradients with the Gravity velocity.

        V₀ ~ N(0, σ²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ

    max|G| is the maximum over each array of the parameter tree, or over each layer of a `stacked`
    array. Under jit, V₀ and V take the sharding of the parameters, and max|G| covers all shards.
    Boolean parameters and integers of 8 bits or more are accepted, and stay as they are.

    Args:
        beta: β in [0, 1].
        velocity_std: σ, >= 0 and small enough that V₀ does not overflow. None means 0.01 / 0.1,
            the default of `gravity`.
        seed: an integer in [0, 2**64); it may be traced.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        velocity_dtype: dtype of V: float16, bfloat16, float32 or float64. None means the dtype of
            each parameter. The velocity of a complex parameter always has the parameter's dtype.
        stacked: as in `gravity`.
        axis_name: as in `gravity`.

    Returns:
        The corresponding `optax.GradientTransformation`, with state `ScaleByGravityState`.

    Raises:
        ValueError: naming the argument and the value received, or the shape of a traced value.
            `update` also raises it for a gradient that is missing, superfluous or of another shape.
        TypeError: from `init` and `update`, for a parameter or a gradient that is no array of
            numbers. The messages about parameters and gradients name the place in the tree.
            From `update`, also for a state whose count or velocity has a wrong dtype.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> transform = scale_by_gravity()
        >>> state = transform.init({"w": jnp.ones(3)})
        >>> updates, state = transform.update({"w": jnp.ones(3)}, state)
        >>> int(state.count), updates["w"].shape
        (1, (3,))
    """
    std = hp.velocity_std(hp.LEARNING_RATE, hp.ALPHA) if velocity_std is None else velocity_std
    numbers = _numbers(beta=beta, velocity_std=std, seed=seed, first_step=first_step)
    beta, std, seed, first_step = numbers.values()
    if is_traced(seed) and not jnp.issubdtype(jnp.result_type(seed), jnp.integer):
        raise ValueError(
            f"seed must be an integer in [0, 2**64), got dtype {jnp.result_type(seed)}"
        )
    _check_velocity_dtype(velocity_dtype)
    if not isinstance(axis_name, Hashable):
        raise ValueError(f"axis_name must be a name or a tuple of names, got {axis_name!r}")

    def init_fn(params: optax.Params) -> ScaleByGravityState:
        if axis_name is not None and _is_inside(axis_name):  # a shard does not know its place in V₀
            raise ValueError(
                "init must be called outside the shard_map or pmap over axis_name, on whole "
                f"parameters, got a call inside the axis {axis_name!r}"
            )
        leaves, structure = named_leaves(params, "params")
        velocity = [
            initial_velocity(leaf, std, seed, i, dtype_of_velocity(name, leaf, velocity_dtype))
            for i, (name, leaf) in enumerate(leaves)
        ]
        state = ScaleByGravityState(
            count=jnp.zeros([], jnp.int32), velocity=jax.tree.unflatten(structure, velocity)
        )
        if velocity:  # optax.tree.map_params calls init with a placeholder that has no leaves
            stacked_axes(stacked, state.velocity, state.velocity)  # raise before `update`
        return state

    def update_fn(
        updates: optax.Updates, state: ScaleByGravityState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByGravityState]:
        if axis_name is not None and not _is_inside(axis_name):
            raise ValueError(
                "update must be called inside a shard_map or pmap over axis_name, "
                f"got a call outside the axis {axis_name!r}"
            )
        count = checked_count(as_array(state.count))
        velocities, structure = named_leaves(state.velocity, "")
        fits = params is not None and jax.tree.structure(params) == structure
        owners = jax.tree.leaves(params) if fits else [None] * len(velocities)
        for (place, v), param in zip(velocities, owners, strict=True):
            check_velocity("velocity" + place, v, param)
        named = [("updates" + place, canonical(v)) for place, v in velocities]
        grads = [
            gradient(name, grad, v)
            for (name, v), grad in zip(named, leaves_up_to(state.velocity, updates), strict=True)
        ]
        axes = stacked_axes(stacked, updates, state.velocity)
        moving = [i for i, (_, v) in enumerate(named) if moves(v)]
        pairs = [(grads[i], named[i][1]) for i in moving]
        # Compute all maxima before the velocities, so that one pmax serves all tensors. Compute the
        # coefficients once per dtype.
        max_abs = _max_abs(pairs, [axes[i] for i in moving])
        if axis_name is not None:
            max_abs = jax.lax.pmax(max_abs, axis_name)  # one collective for all tensors
        dtypes = [working_dtype(grad.dtype, v.dtype) for grad, v in pairs]
        weights = {d: _coefficients(count, first_step, beta, d) for d in set(dtypes)}
        velocity, new = [v for _, v in named], list(grads)
        for i, pair, largest, dtype in zip(moving, pairs, max_abs, dtypes, strict=True):
            velocity[i] = _next_velocity(*pair, largest, *weights[dtype])
            new[i] = velocity[i].astype(grads[i].dtype)
            if new[i] is velocity[i] and not is_traced(new[i]):
                new[i] = jnp.copy(new[i])  # the caller may donate the updates and keep the state
        return jax.tree.unflatten(structure, new), ScaleByGravityState(
            count=optax.safe_increment(count),
            velocity=jax.tree.unflatten(structure, velocity),
        )

    return optax.GradientTransformation(init_fn, update_fn)


def gravity(
    learning_rate: optax.ScalarOrSchedule = hp.LEARNING_RATE,
    alpha: ArrayLike = hp.ALPHA,
    beta: ArrayLike = hp.BETA,
    *,
    weight_decay: optax.ScalarOrSchedule = hp.WEIGHT_DECAY,
    mask: Any = None,
    velocity_std: ArrayLike | None = None,
    seed: ArrayLike = hp.SEED,
    first_step: ArrayLike = hp.FIRST_STEP,
    velocity_dtype: DTypeLike | None = None,
    stacked: Any = None,
    axis_name: Hashable | None = None,
) -> optax.GradientTransformation:
    """The Gravity optimizer (Bahrami and Pouriyan Zadeh, 2021).

        V₀ ~ N(0, (α/η)²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ;  W ← W − η (V + λ W)

    Boolean parameters and integers of 8 bits or more are accepted, and stay as they are.

    Args:
        learning_rate: η, a number >= 0 or an optax schedule. The standard deviation of V₀ is
            alpha / η with η at step 0. Later values do not affect it. If that η is the small start
            of a warm-up, pass velocity_std; a UserWarning says so where a schedule grows more than
            tenfold in its first ten steps.
        alpha: α, finite and >= 0.
        beta: β in [0, 1].
        weight_decay: λ, finite and >= 0, or an optax schedule; decoupled.
        mask: which parameters decay, as in `optax.add_decayed_weights`.
        velocity_std: standard deviation of V₀, used instead of alpha / η. It must be >= 0 and small
            enough that V₀ does not overflow its dtype, which `init` checks.
        seed: an integer in [0, 2**64). V₀ depends on the seed and on each leaf's position. If
            several transformations train parts of one model (`optax.partition`), give each its own
            seed.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        velocity_dtype: dtype of V: float16, bfloat16, float32 or float64. None means the dtype of
            each parameter. The velocity of a complex parameter always has the parameter's dtype.
        stacked: for arrays that stack several layers, the number of leading axes that index
            layers. Each layer then has its own max|G|. Pass an integer, a pytree of integers that
            is a prefix of the parameters (None in it means 0), or a callable that returns one of
            these for the updates (in `init`, for V₀). An axis that indexes layers must not be
            sharded over `axis_name`, because the reduction would mix layers.
        axis_name: the axes of a shard_map or pmap over which weights are sharded; max|G| is reduced
            over them. Call `init` outside, on whole parameters, and `update` inside.

    Returns:
        The corresponding `optax.GradientTransformation`.

    Raises:
        ValueError: naming the argument and the value received, or the shape of a traced value.
            `update` also raises it for a gradient that is missing, superfluous or of another shape.
        TypeError: from `init` and `update`, for a parameter or a gradient that is no array of
            numbers. The messages about parameters and gradients name the place in the tree.
            From `update`, also for a state whose count or velocity has a wrong dtype.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> optimizer = gravity(learning_rate=0.1)
        >>> loss = lambda w: jnp.sum(w**2)
        >>> w = jnp.asarray([0.3, -0.2])
        >>> state = optimizer.init(w)
        >>> for _ in range(100):
        ...     updates, state = optimizer.update(jax.grad(loss)(w), state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> bool(loss(w) < 1e-4)
        True
    """
    numbers = _numbers(
        learning_rate=value_at(0, learning_rate),
        alpha=alpha,
        weight_decay=value_at(0, weight_decay),
        velocity_std=velocity_std,
        beta=beta,
        seed=seed,
        first_step=first_step,
    )
    nominal, alpha, decay_rate, velocity_std, beta, seed, first_step = numbers.values()
    # Equinox compares transformations by the contents of their closures. So these hold values, no
    # functools.partial, which equals only itself, and a derived σ as an array, which is traced.
    options: dict[str, Any] = {
        "beta": beta,
        "seed": seed,
        "first_step": first_step,
        "velocity_dtype": velocity_dtype,
        "stacked": stacked,
        "axis_name": axis_name,
    }
    if callable(learning_rate) and velocity_std is None:
        _warn_of_warm_up(nominal, learning_rate, alpha)
    learning_rate = _checked("learning_rate", learning_rate, nominal)
    weight_decay = _checked("weight_decay", weight_decay, decay_rate)
    # optax.inject_hyperparams constructs the optimizer again in every update. The learning rate may
    # be 0 by then, so let only `init` compute σ and warn.
    injected = isinstance(learning_rate, jax.Array) or isinstance(alpha, jax.Array)
    fixed_std = None if injected else _velocity_std(nominal, alpha, velocity_std)
    origin = {"learning_rate": nominal, "alpha": alpha} if velocity_std is None else {}

    def init_fn(params: optax.Params) -> optax.OptState:
        std = _velocity_std(nominal, alpha, velocity_std) if injected else fixed_std
        for name, leaf in named_leaves(params, "params")[0]:
            dtype = dtype_of_velocity(name, leaf, velocity_dtype)
            if moves(leaf) and 0 not in jnp.shape(leaf):  # an empty V₀ cannot overflow
                check_velocity_std(std, dtype, **origin)
        return scale_by_gravity(velocity_std=std, **options).init(params)

    decay = optax.add_decayed_weights(weight_decay, mask)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        # Keep the structure of the state, for optax.inject_hyperparams, which traces weight_decay.
        decay = optax.GradientTransformation(decay.init, _unchanged)
    chain = optax.chain(
        optax.GradientTransformation(init_fn, scale_by_gravity(velocity_std=0, **options).update),
        decay,
        optax.scale_by_learning_rate(learning_rate),
    )

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = chain.update(updates, state, params)  # no part of it takes more
        # The sum of an integer and a floating update, even 0, would be rounded.
        exact = jax.tree.map(
            lambda v, u: u if u is None or moves(v) else jnp.zeros_like(v),
            state[0].velocity,
            updates,
        )
        return exact, state

    return optax.GradientTransformationExtraArgs(chain.init, update_fn)


def _unchanged(
    updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
) -> tuple[optax.Updates, optax.OptState]:
    del params
    return updates, state


def value_at(step: int, value: Any) -> Any:
    """Return a schedule's value as a concrete number, also inside jit, and a number as it is."""
    if not callable(value):
        return value
    with jax.ensure_compile_time_eval():
        return value(jnp.asarray(step, jnp.int32))


def _checked(name: str, given: Any, number: Any) -> Any:
    """Return a schedule whose values are checked in every update, or the number."""
    if not callable(given):
        return number
    return lambda count: _numbers(**{name: given(count)})[name]


def _warn_of_warm_up(first: Any, learning_rate: Any, alpha: Any) -> None:
    """Warn if the learning rate grows more than tenfold before V₀ has faded, in some ten steps."""
    try:
        later = value_at(10, learning_rate)
        if any(map(is_traced, (first, later, alpha))):
            return
        first, later = (hp.validate(learning_rate=rate)["learning_rate"] for rate in (first, later))
    except Exception:  # a table of fewer steps has none; an update with a wrong rate says so
        return
    if 0 < 10 * first < later and hp.as_float(alpha) > 0:
        warnings.warn(
            f"learning_rate grows from {first:g} to {later:g} in ten steps, but the velocity "
            f"starts with the standard deviation alpha / {first:g}; pass velocity_std, for example "
            "alpha divided by the largest learning rate",
            UserWarning,
            stacklevel=3,
        )


def _numbers(**values: Any) -> dict[str, Any]:
    """Return hyper-parameters as Python numbers, and arrays of JAX as they are, once checked."""
    known = {name: value for name, value in values.items() if not is_traced(value)}
    for name, value in values.items():
        if is_traced(value) and jnp.shape(value):
            raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
        if is_traced(value) and not hp.may_be_a_number(value):
            raise ValueError(f"{name} must be a real number, got dtype {value.dtype}")
    numbers = hp.validate(**known)
    return {n: v if isinstance(v, jax.Array) else numbers[n] for n, v in values.items()}


def _velocity_std(learning_rate: Any, alpha: Any, velocity_std: Any) -> Any:
    if velocity_std is not None:
        return velocity_std
    if is_traced(learning_rate) or is_traced(alpha):
        # Widen them: optax.inject_hyperparams may pass them in the half dtype of the weights.
        learning_rate, alpha = jnp.asarray(learning_rate, float), jnp.asarray(alpha, float)
        at_rest = learning_rate == 0
        return jnp.where(at_rest, 0, alpha / jnp.where(at_rest, 1, learning_rate))
    return np.asarray(hp.velocity_std(learning_rate, alpha, stacklevel=4))


def _is_inside(axis_name: Hashable) -> bool:
    """Return whether the caller runs inside a shard_map or pmap (or vmap) of this axis."""
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True


def _check_velocity_dtype(dtype: Any) -> None:
    try:
        if isinstance(dtype, (jax.Array, np.ndarray, np.generic)):
            raise TypeError  # NumPy takes the dtype of an array
        name = None if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = "no dtype"
    # In fewer bits, V₀ would be NaN or 0.
    if name not in (None, "float16", "bfloat16", "float32", "float64"):
        raise ValueError(
            f"velocity_dtype must be a floating dtype of 16 to 64 bits or None, got {dtype!r}"
        )


def _parts(array: jax.Array) -> list[jax.Array]:
    """Return the real and imaginary parts to update; stacking them would copy."""
    return [array.real, array.imag] if jnp.iscomplexobj(array) else [array]


def _max_abs(pairs: list[tuple[jax.Array, jax.Array]], stacked: list[int]) -> list[Any]:
    """Return max|G| of every gradient, or of each of its layers; None for an empty gradient."""
    parts = [_parts(grad) if grad.size else [] for grad, _ in pairs]
    layers = tuple(n for n, own in zip(stacked, parts, strict=True) for _ in own)
    found = iter(largest_magnitudes(tuple(itertools.chain(*parts)), layers))
    return [
        functools.reduce(jnp.maximum, (next(found) for _ in own)).astype(
            working_dtype(grad.dtype, v.dtype)
        )
        if own
        else None
        for (grad, v), own in zip(pairs, parts, strict=True)
    ]


def _coefficients(count: Any, first_step: Any, beta: Any, dtype: Any) -> tuple[Any, Any]:
    """Return (β̂, 1 − β̂), computed on the host in float64, or under jit in `dtype`."""
    if isinstance(beta, jax.Array):
        beta = beta.astype(dtype)
    if is_traced(count) or isinstance(first_step, jax.Array):
        # The largest int32 + 1 is a uint32.
        t = jnp.asarray(count, jnp.uint32) + jnp.asarray(first_step, jnp.uint32)
        return coefficients(t.astype(dtype), beta)
    return coefficients(int(count) + first_step, beta)


def _next_velocity(
    grad: jax.Array, v: jax.Array, max_abs: jax.Array | None, old: Any, new: Any
) -> Any:
    """Return β̂ V + (1 − β̂) ζ, like `gravity_core.update`."""
    dtype = working_dtype(grad.dtype, v.dtype)
    parts = [
        old * past.astype(dtype) + new * gradient_term(g.astype(dtype), max_abs=max_abs, xp=jnp)
        for g, past in zip(_parts(grad), _parts(v), strict=True)
    ]
    result = jax.lax.complex(*parts) if len(parts) == 2 else parts[0]
    return result.astype(v.dtype)
