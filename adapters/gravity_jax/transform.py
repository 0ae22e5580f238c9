"""Gravity as optax gradient transformations.

Guarantees: the state holds arrays only; V₀ needs no random key and has the same bits
under jit as outside (where the learning rate is traced, as far as float32 gives its σ);
the math is `gravity_core.update` with ``xp=jax.numpy``. Outside jit the step gives the
bits of the NumPy reference (subnormal numbers apart, which XLA flushes to zero, and
weight decay, which optax rounds elsewhere); under jit it stays inside the certified bound.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from gravity_core import hyperparameters as hp
from gravity_core.update import update as gravity_update
from gravity_core.velocity import fold_in, normal_blocks, normal_quantiles, tensor_key

_CHUNK = 16_384  # blocks of V₀ drawn at a time


class ScaleByGravityState(NamedTuple):
    """State of `scale_by_gravity`.

    Attributes:
        count: updates made so far, an int32 scalar.
        velocity: V, in the structure of the parameters.
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
) -> optax.GradientTransformation:
    """Replace gradients by the Gravity velocity.

        V₀ ~ N(0, σ²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ

    max|G| is taken over each array of the parameter tree.

    Args:
        beta: β in [0, 1].
        velocity_std: σ, finite and >= 0. None gives that of the defaults of `gravity`, 0.01 / 0.1.
        seed: an integer in [0, 2**64); a traced integer works too.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        velocity_dtype: floating dtype of V; None takes that of each parameter, which complex
            ones keep.

    Returns:
        The corresponding `optax.GradientTransformation`, with state `ScaleByGravityState`.

    Raises:
        ValueError: naming the argument and the value received.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> transform = scale_by_gravity()
        >>> state = transform.init({"w": jnp.ones(3)})
        >>> updates, state = transform.update({"w": jnp.ones(3)}, state)
        >>> int(state.count), updates["w"].shape
        (1, (3,))
    """
    std = hp.velocity_std(hp.LEARNING_RATE, hp.ALPHA) if velocity_std is None else velocity_std
    _validate(beta=beta, velocity_std=std, seed=seed, first_step=first_step)
    if velocity_dtype is not None and not jnp.issubdtype(velocity_dtype, jnp.floating):
        raise ValueError(f"velocity_dtype must be a floating dtype or None, got {velocity_dtype!r}")

    def init_fn(params: optax.Params) -> ScaleByGravityState:
        leaves, structure = jax.tree.flatten(params)
        velocity = [
            _initial_velocity(leaf, std, seed, index, velocity_dtype)
            for index, leaf in enumerate(leaves)
        ]
        return ScaleByGravityState(
            count=jnp.zeros([], jnp.int32), velocity=jax.tree.unflatten(structure, velocity)
        )

    def update_fn(
        updates: optax.Updates, state: ScaleByGravityState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByGravityState]:
        del params
        updates = jax.tree.map(jnp.asarray, updates)
        # Outside jit the coefficients come from the host, in float64.
        count = state.count if _is_traced(state.count) else int(state.count)
        step = functools.partial(_next_velocity, t=count + first_step, beta=beta)
        velocity = jax.tree.map(step, updates, state.velocity)
        updates = jax.tree.map(lambda g, v: v.astype(g.dtype), updates, velocity)
        return updates, ScaleByGravityState(optax.safe_increment(state.count), velocity)

    return optax.GradientTransformation(init_fn, update_fn)


def gravity(
    learning_rate: optax.ScalarOrSchedule = hp.LEARNING_RATE,
    alpha: ArrayLike = hp.ALPHA,
    beta: ArrayLike = hp.BETA,
    *,
    weight_decay: ArrayLike = hp.WEIGHT_DECAY,
    mask: Any = None,
    velocity_std: ArrayLike | None = None,
    seed: ArrayLike = hp.SEED,
    first_step: ArrayLike = hp.FIRST_STEP,
    velocity_dtype: DTypeLike | None = None,
) -> optax.GradientTransformation:
    """The Gravity optimizer (Bahrami and Pouriyan Zadeh, 2021).

        V₀ ~ N(0, (α/l)²);  t ← t + 1;  β̂ = (β t + 1)/(t + 2)
        ζ = G/(1 + (G max|G|)²);  V ← β̂ V + (1 − β̂) ζ;  W ← W − l (V + λ W)

    Args:
        learning_rate: l, a number >= 0 or an optax schedule. The standard deviation of V₀ is
            alpha / l with l at step 0, whatever it becomes later.
        alpha: α, finite and >= 0.
        beta: β in [0, 1].
        weight_decay: λ, finite and >= 0; decoupled.
        mask: as in `optax.add_decayed_weights`: which parameters decay.
        velocity_std: standard deviation of V₀, overriding alpha / l.
        seed: an integer in [0, 2**64). V₀ depends on it and on each leaf's position, so
            transformations of parts of one model (`optax.partition`) want a seed each.
        first_step: t of the first update: 1 (Algorithm 1) or 0 (the original Keras code).
        velocity_dtype: floating dtype of V; None takes that of each parameter, which complex
            ones keep.

    Returns:
        The corresponding `optax.GradientTransformation`.

    Raises:
        ValueError: naming the argument and the value received.

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
    nominal = learning_rate(0) if callable(learning_rate) else learning_rate
    _validate(
        learning_rate=nominal, alpha=alpha, weight_decay=weight_decay, velocity_std=velocity_std
    )
    transforms = [
        scale_by_gravity(
            beta,
            velocity_std=_velocity_std(nominal, alpha, velocity_std),
            seed=seed,
            first_step=first_step,
            velocity_dtype=velocity_dtype,
        )
    ]
    # By its type, too: the state must have one structure, whether or not a value is traced.
    if not (isinstance(weight_decay, (int, float)) and weight_decay == 0):
        transforms.append(optax.add_decayed_weights(weight_decay, mask))
    return optax.chain(*transforms, optax.scale_by_learning_rate(learning_rate))


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _validate(**values: Any) -> None:
    hp.validate(**{name: value for name, value in values.items() if not _is_traced(value)})


def _velocity_std(learning_rate: Any, alpha: Any, velocity_std: Any) -> Any:
    if velocity_std is not None:
        return velocity_std
    if _is_traced(learning_rate) or _is_traced(alpha):
        at_rest = learning_rate == 0
        return jnp.where(at_rest, 0, alpha / jnp.where(at_rest, 1, learning_rate))
    return hp.velocity_std(learning_rate, alpha, stacklevel=4)


def _as_reals(array: jax.Array) -> jax.Array:
    return jnp.stack([array.real, array.imag], axis=-1) if jnp.iscomplexobj(array) else array


def _as_complex(pairs: jax.Array) -> Any:
    return jax.lax.complex(pairs[..., 0], pairs[..., 1])


def _next_velocity(grad: jax.Array, v: jax.Array, *, t: Any, beta: Any) -> Any:
    v_next = gravity_update(_as_reals(grad), _as_reals(v), t, beta=beta, xp=jnp)
    return _as_complex(v_next) if jnp.iscomplexobj(v) else v_next


def _initial_velocity(param: Any, std: Any, seed: Any, index: int, dtype: DTypeLike | None) -> Any:
    own, shape = jnp.result_type(param), jnp.shape(param)
    is_complex = jnp.issubdtype(own, jnp.complexfloating)
    dtype = own if dtype is None or is_complex else jnp.dtype(dtype)
    if is_complex:
        real = jnp.zeros((), dtype).real.dtype
        return _as_complex(_scaled_normal(_key(seed, index), std, (*shape, 2), real))
    return _scaled_normal(_key(seed, index), std, shape, dtype)


def _key(seed: Any, index: int) -> tuple[jax.Array, jax.Array]:
    if _is_traced(seed):
        wide = jnp.dtype(seed.dtype).itemsize == 8
        hi = (seed >> 32 if wide else jnp.zeros_like(seed)).astype(jnp.uint32)
        return fold_in((hi, seed.astype(jnp.uint32)), jnp.asarray(index, jnp.uint32), xp=jnp)
    k0, k1 = tensor_key(int(seed), index)
    return jnp.asarray(k0), jnp.asarray(k1)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _scaled_normal(
    key: tuple[jax.Array, jax.Array], std: Any, shape: tuple[int, ...], dtype: Any
) -> Any:
    size = math.prod(shape)
    if size > 2**34:  # the counters' low words end here
        raise ValueError(f"params must have at most 2**34 elements each, got shape {shape}")
    wide = jnp.promote_types(dtype, jnp.float32)
    quantiles = jnp.asarray(normal_quantiles())
    length = min(_CHUNK, -(-size // 4))

    def chunk(first: jax.Array) -> Any:
        block = first + jnp.arange(length, dtype=jnp.uint32)
        z = normal_blocks(key, (jnp.zeros_like(block), block), quantiles, xp=jnp)
        return (z.astype(wide) * jnp.asarray(std, wide)).astype(dtype)

    # One after the other, so that no array of indices has the tensor's size.
    firsts = jnp.arange(0, -(-size // 4), max(1, length), dtype=jnp.uint32)
    return jax.lax.map(chunk, firsts).reshape(-1)[:size].reshape(shape)
