"""Trees of arrays and steps of an optimizer for the tests of gravity_jax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def tree(number, dtype=jnp.float32):
    rng = np.random.default_rng([7, number])
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in {"a": (3, 4), "b": (5,)}.items()}


def stepper(optimizer):
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(optimizer, params, state, numbers, transform=lambda f: f):
    step = transform(stepper(optimizer))
    for number in numbers:
        params, state = step(params, state, tree(number))
    return params, state


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def arrays(values):
    return [np.asarray(x) for x in jax.tree.leaves(values)]


def dtypes_of(values):
    return jax.tree.map(lambda x: (x.dtype, x.weak_type), values)
