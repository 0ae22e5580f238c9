"""Code of a user of gravity_jax, and mistakes that a type checker must find."""

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

from gravity_core import State
from gravity_jax import ScaleByGravityState, export_state, gravity, scale_by_gravity

optimizer: optax.GradientTransformation = optax.chain(
    optax.clip_by_global_norm(1.0),
    gravity(optax.cosine_decay_schedule(0.1, 10), weight_decay=0.01, stacked={"w": 1}),
)
params = {"w": jnp.ones((2, 3))}
state = optimizer.init(params)
updates, state = optimizer.update(params, state, params)
exported: State = export_state(state, learning_rate=0.1)
scale_by_gravity(jnp.asarray(0.9), seed=jnp.asarray(3), velocity_dtype=jnp.bfloat16)
count: jax.Array = ScaleByGravityState(jnp.zeros([], jnp.int32), params).count
gravity(lr=0.1)  # type: ignore[call-arg]
