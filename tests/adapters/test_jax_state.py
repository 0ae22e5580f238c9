"""gravity_jax.export_state and import_state: states that other libraries wrap or transform."""

from typing import NamedTuple

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

from gravity_core import State  # noqa: E402
from gravity_core import hyperparameters as hp  # noqa: E402
from gravity_jax import export_state, gravity, import_state, scale_by_gravity  # noqa: E402
from tests.support.jax_helpers import assert_same, run, stepper, tree  # noqa: E402


@jax.tree_util.register_pytree_node_class
class Box:
    """A node around an array with a name, as the variables of flax nnx."""

    def __init__(self, array, name="state"):
        self.array, self.name = array, name

    def tree_flatten(self):
        return (self.array,), self.name

    @classmethod
    def tree_unflatten(cls, name, children):
        return cls(*children, name)


def unbox(tree):
    is_box = lambda x: isinstance(x, Box)  # noqa: E731
    return jax.tree.map(lambda x: x.array if is_box(x) else x, tree, is_leaf=is_box)


RATE = optax.linear_schedule(0.25, 0.0, 10)
MADE = {
    "plain": lambda: gravity(0.25),
    "alone": lambda: scale_by_gravity(),
    "scheduled": lambda: gravity(RATE, weight_decay=RATE),
    "injected": lambda: optax.inject_hyperparams(gravity)(RATE),
    "chained": lambda: optax.chain(optax.clip(1.0), optax.masked(gravity(RATE), True)),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_import_keeps_the_wrapper_of_every_leaf(make):
    optimizer, params = make(), tree(0)
    params, state = run(optimizer, params, optimizer.init(params), (1, 2))
    boxed = jax.tree.map(Box, state)
    moved = import_state(jax.tree.map(Box, optimizer.init(params)), export_state(boxed))
    assert jax.tree.structure(moved) == jax.tree.structure(boxed)
    # the counts of schedules follow, so the run goes on with the same bits
    step = stepper(optimizer)
    assert_same(step(params, unbox(moved), tree(3)), step(params, state, tree(3)))


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_an_imported_state_can_be_donated(make):
    optimizer, params = make(), tree(0)
    exported = export_state(run(optimizer, params, optimizer.init(params), (1, 2))[1])
    kept, given = (import_state(optimizer.init(params), exported) for _ in range(2))
    expected = jax.jit(optimizer.update)(tree(3), kept, params)
    assert_same(jax.jit(optimizer.update, donate_argnums=1)(tree(3), given, params), expected)


def test_a_schedule_gets_an_array_as_in_an_update():
    rate = lambda count: 0.1 * jnp.exp(-count.astype(jnp.float32))  # noqa: E731
    optimizer, params = gravity(rate, weight_decay=rate), tree(0)
    _, state = run(optimizer, params, optimizer.init(params), (1, 2))
    exported = export_state(state, learning_rate=rate, weight_decay=rate).hyperparameters
    first, last = (hp.as_float(rate(jnp.int32(count))) for count in (0, 2))
    assert exported["learning_rate"] == exported["weight_decay"] == last
    assert exported["velocity_std"] == 0.01 / first


def test_an_ensemble_is_exported_member_by_member():
    params = jax.tree.map(lambda x: jnp.stack([x, x]), tree(0))
    state = jax.vmap(lambda seed, p: gravity(seed=seed).init(p))(jnp.arange(2), params)
    message = r"count must be a scalar, the count of one optimizer, got shape \(2,\)"
    with pytest.raises(ValueError, match=message):
        export_state(state)
    for seed in range(2):
        member = jax.tree.map(lambda x: x[seed], state)  # noqa: B023
        exported = export_state(member, seed=seed)
        for v, expected in zip(
            exported.velocities,
            jax.tree.leaves(gravity(seed=seed).init(tree(0))[0].velocity),
            strict=True,
        ):
            assert np.array_equal(v, expected)
    whole = State(3, [np.asarray(v) for v in jax.tree.leaves(state[0].velocity)])
    with pytest.raises(ValueError, match=message):
        import_state(state, whole)


def test_a_state_without_values_is_refused():
    state = gravity().init(tree(0))
    message = "opt_state must hold arrays with values, outside jit, got "
    with pytest.raises(ValueError, match=message + "ShapeDtypeStruct"):
        export_state(jax.eval_shape(gravity().init, tree(0)))
    with pytest.raises(ValueError, match=message + ".*Tracer"):
        jax.jit(lambda state: export_state(state) and None)(state)
    exported = export_state(state)
    with pytest.raises(ValueError, match=message + ".*Tracer"):
        jax.jit(lambda state: import_state(state, exported))(state)


def test_a_state_of_numpy_arrays_is_taken():
    optimizer, params = gravity(), tree(0)
    params, state = run(optimizer, params, optimizer.init(params), (1, 2))
    held = jax.device_get(state)
    exported = export_state(held)
    assert_same(import_state(held, exported), state)


def test_integer_parameters_have_no_exported_velocity():
    params = {"n": jnp.arange(3), **tree(0)}
    optimizer = gravity()
    state = optimizer.init(params)
    exported = export_state(state)
    assert [v.shape for v in exported.velocities] == [(3, 4), (5,)]
    assert_same(import_state(optimizer.init(params), exported), state)


class Clipped(NamedTuple):
    """The state of a transformation of the user's own."""

    count: jax.Array


def test_import_keeps_the_counts_of_others():
    clipping = optax.GradientTransformation(
        lambda params: Clipped(jnp.zeros([], jnp.int32)),
        lambda updates, state, params=None: (updates, state),
    )
    optimizer = optax.chain(clipping, gravity(RATE))
    state = optimizer.init(tree(0))
    moved = import_state(state, State(5, export_state(state).velocities))
    assert (int(moved[0].count), export_state(moved).t) == (0, 5)


def test_a_count_that_is_too_large_is_refused_without_parameters():
    state = gravity(0.25).init({})
    with pytest.raises(ValueError, match="t must be at most"):
        import_state(state, State(2**31, []))
