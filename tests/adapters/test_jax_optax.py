"""gravity_jax inside optax's wrappers, with injected and traced hyper-parameters."""

import types

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

from gravity_conformance.parity.grading import grade, reference  # noqa: E402
from gravity_conformance.protocol import Replay, Step  # noqa: E402
from gravity_core import ErrorBound  # noqa: E402
from gravity_jax import gravity, scale_by_gravity  # noqa: E402
from tests.support.jax_helpers import (  # noqa: E402
    arrays,
    assert_same,
    run,
    stepper,
    tree,
)


@pytest.mark.parametrize("stacked", [None, {"a": 1, "b": 0}, lambda g: {"a": g["a"].ndim, "b": 0}])
def test_map_params_reaches_the_velocity_only(stacked):
    optimizer = gravity(weight_decay=0.1, mask={"a": True, "b": False}, stacked=stacked)
    state = optimizer.init(tree(0))
    mapped = optax.tree.map_params(optimizer, lambda v: v + 1, state)
    assert_same(mapped[0].velocity, jax.tree.map(lambda v: v + 1, state[0].velocity))
    assert_same(mapped[0].count, state[0].count)


def test_multi_steps_averages_gradients():
    # With eight binary places the mean of two is exact in every order of operations.
    first, second = (jax.tree.map(lambda g: jnp.round(g * 256) / 256, tree(n)) for n in (1, 2))
    mean = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
    params, multi = tree(0), optax.MultiSteps(gravity(), every_k_schedule=2)
    replay = Replay(arrays(params), [arrays(mean)])
    state, step = multi.init(params), jax.jit(stepper(multi))
    steps = [Step(arrays(state.inner_opt_state[0].velocity), arrays(params))]
    for gradients in (first, second):
        params, state = step(params, state, gradients)
    steps.append(Step(arrays(state.inner_opt_state[0].velocity), arrays(params)))
    assert int(state.inner_opt_state[0].count) == 1
    result = grade(replay, iter(steps))
    assert result.verdict in ("exact", "bounded"), result.first_divergence


def test_apply_every_accumulates_updates():
    params = tree(0)
    optimizer = optax.chain(gravity(), optax.apply_every(2))
    once, state = run(optimizer, params, optimizer.init(params), [1])
    assert_same(once, params)
    twice, _ = run(optimizer, once, state, [2])
    assert not np.array_equal(twice["a"], params["a"])


def test_masked_leaves_the_rest_alone():
    params = {**tree(0), "steps": jnp.zeros([], jnp.int32)}
    optimizer = optax.masked(gravity(), {"a": True, "b": False, "steps": False})
    state = optimizer.init(params)
    updates, _ = optimizer.update(params, state, params)
    alone = {"a": params["a"]}
    expected, _ = gravity().update(alone, gravity().init(alone), alone)
    assert_same(updates["a"], expected["a"])
    assert updates["b"] is params["b"]
    assert updates["steps"] is params["steps"]


def test_partition_equals_two_optimizers():
    params, labels = tree(0), {"a": "first", "b": "second"}
    optimizer = optax.partition({"first": gravity(seed=1), "second": gravity(0.5, seed=2)}, labels)
    updates, _ = optimizer.update(tree(1), optimizer.init(params), params)
    for name, part in (("a", gravity(seed=1)), ("b", gravity(0.5, seed=2))):
        w, g = {name: params[name]}, {name: tree(1)[name]}
        assert_same(updates[name], part.update(g, part.init(w), w)[0][name])


def test_apply_if_finite_skips_the_step():
    params = tree(0)
    optimizer = optax.apply_if_finite(gravity(), max_consecutive_errors=3)
    state = optimizer.init(params)
    bad = {**tree(1), "b": jnp.full(5, jnp.nan)}
    updates, after = jax.jit(optimizer.update)(bad, state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))
    assert_same(after.inner_state, state.inner_state)


def test_lookahead_pulls_back_the_fast_weights():
    params = optax.LookaheadParams.init_synced(tree(0))
    optimizer = optax.lookahead(gravity(), sync_period=2, slow_step_size=0.5)
    state = optimizer.init(params)
    for number in (1, 2):
        updates, state = jax.jit(optimizer.update)(tree(number), state, params)
        params = optax.apply_updates(params, updates)
    replay = Replay(arrays(tree(0)), [arrays(tree(1)), arrays(tree(2))])
    *_, last = reference(replay)
    fast_bound = grade(replay, reference(replay)).bound[-1]  # for any two runs of the fast weights
    for got, start, fast in zip(arrays(params.slow), replay.weights, last.weights, strict=True):
        half_way = (fast.astype(np.float64) - start) / 2
        # slow + (fast − slow)/2, with one rounding of each sum
        rounded = 2.0**-24 * (np.abs(half_way) + np.abs(got))
        assert (np.abs(got - (start + half_way)) <= fast_bound / 2 + rounded).all()


def test_injected_hyperparameters_may_be_traced():
    options = {"learning_rate": 0.25, "velocity_std": 0.5, "seed": 5, "first_step": 0}
    params = tree(0)
    injected, plain = optax.inject_hyperparams(gravity)(**options), gravity(**options)
    state = jax.jit(injected.init)(params)
    assert_same(state.inner_state[0].velocity, plain.init(params)[0].velocity)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    updates, _ = jax.jit(injected.update)(tree(1), state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 0.5},
        {"mask": {"a": True, "b": False}},
        {"mask": lambda p: {"a": True, "b": False}, "weight_decay": 0.5},
    ],
    ids=["none", "zero", "decay", "mask", "mask function"],
)
def test_a_plain_checkpoint_restores_under_injection(options):
    plain, params = gravity(**options), tree(0)
    optimizer = optax.inject_hyperparams(gravity, static_args="mask")(**options)
    whole = run(plain, params, plain.init(params), (1, 2, 3), jax.jit)
    params, state = run(plain, params, plain.init(params), (1, 2), jax.jit)
    injected = optimizer.init(params)
    assert jax.tree.structure(injected.inner_state) == jax.tree.structure(state)
    params, state = run(optimizer, params, injected._replace(inner_state=state), (3,), jax.jit)
    # Only the last update differs: its hyper-parameters are traced, which adds up to five roundings
    # of β̂ and 1 − β̂. W has one each of η, η λ, two products and two sums.
    u, (own, *_), (expected, *_) = 2.0**-24, state.inner_state, whole[1]
    assert int(own.count) == int(expected.count) == 3
    for key, v in expected.velocity.items():
        bound = 2 * (ErrorBound.ROUNDINGS + 5) * u * 2 * np.abs(v).max()
        assert np.allclose(own.velocity[key], v, rtol=0, atol=bound)
        w = whole[0][key]
        bound = 0.1 * bound + 2 * 6 * u * np.abs(w).max()
        assert np.allclose(params[key], w, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", -1.0, r"learning_rate must be a finite number >= 0, got .*-1\."),
        ("beta", 2.0, r"beta must be a number in \[0, 1\], got .*2\."),
        ("weight_decay", np.nan, "weight_decay must be a finite number >= 0, got .*nan"),
    ],
)
def test_an_injected_value_is_checked_where_it_is_known(name, value, message):
    optimizer, params = optax.inject_hyperparams(gravity)(), tree(0)
    state = optimizer.init(params)
    state.hyperparams[name] = jnp.asarray(value)
    with pytest.raises(ValueError, match=message):
        optimizer.update(tree(1), state, params)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (jnp.asarray(0.1j), "learning_rate must be a real number, got dtype complex64"),
        (jnp.asarray(True), "learning_rate must be a real number, got dtype bool"),
        (jnp.asarray([0.1]), r"learning_rate must be a scalar, got shape \(1,\)"),
    ],
)
def test_a_traced_value_is_checked_for_shape_and_dtype(value, message):
    optimizer, params = optax.inject_hyperparams(gravity)(), tree(0)
    state = optimizer.init(params)
    state.hyperparams["learning_rate"] = value
    with pytest.raises(ValueError, match=message):
        jax.jit(optimizer.update)(tree(1), state, params)


def contents(node):
    """Return what the closures of a transformation hold: code, arrays and other values."""
    if isinstance(node, types.FunctionType):
        return [node.__code__, *contents([c.cell_contents for c in node.__closure__ or ()])]
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        return [x for child in node for x in contents(child)]
    return [type(node) if isinstance(node, (jax.Array, np.ndarray)) else node]


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.5}, {"velocity_std": 0.0, "stacked": 1}]
)
@pytest.mark.parametrize("schedule", [jnp.asarray, lambda x: optax.linear_schedule(x, x / 2, 9)])
def test_transformations_of_two_learning_rates_differ_in_arrays_only(options, schedule):
    # Equinox and optimistix compile a solver once if its closures are equal apart from arrays.
    one, two = (gravity(schedule(jnp.asarray(rate)), **options) for rate in (0.1, 0.2))
    assert contents(one) == contents(two)


# float32 represents these numbers and α / η exactly.
EXACT = {
    "learning_rate": 3 / 8,
    "alpha": 3 / 64,
    "beta": 29 / 32,
    "weight_decay": 5 / 32,
    "velocity_std": 9 / 16,
    "seed": 5,
    "first_step": 0,
}


def graded(step, params, state, velocity_of, options):
    """Grade four steps with the gradients `tree(1)` to `tree(4)`."""
    gradients = [tree(number) for number in range(1, 5)]
    steps = [Step(arrays(velocity_of(state)), arrays(params))]
    replay = Replay(arrays(params), [arrays(g) for g in gradients], options)
    for g in gradients:
        params, state = step(params, state, g)
        steps.append(Step(arrays(velocity_of(state)), arrays(params)))
    return grade(replay, iter(steps))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("without", [None, "velocity_std"])
def test_injecting_all_hyperparameters_equals_the_plain_call(without, transform):
    options = {name: number for name, number in EXACT.items() if name != without}
    optimizer = optax.inject_hyperparams(gravity)(**options)
    state = transform(optimizer.init)(tree(0))
    assert state.hyperparams.keys() == options.keys()
    result = graded(
        transform(stepper(optimizer)), tree(0), state, lambda s: s.inner_state[0].velocity, options
    )
    assert result.v0_identical
    assert result.verdict in ("exact", "bounded"), result.first_divergence


def test_a_traced_weight_decay_equals_the_plain_call():
    @jax.jit
    def step(decay, *values):
        return stepper(gravity(**{**EXACT, "weight_decay": decay}))(*values)

    def with_decay(*values):
        return step(EXACT["weight_decay"], *values)

    state = gravity(**EXACT).init(tree(0))
    result = graded(with_decay, tree(0), state, lambda s: s[0].velocity, EXACT)
    assert result.verdict in ("exact", "bounded"), result.first_divergence


@pytest.mark.filterwarnings("error")
def test_an_injected_schedule_may_decay_to_zero_silently():
    params = tree(0)
    optimizer = optax.inject_hyperparams(gravity)(optax.linear_schedule(0.1, 0.0, 2))
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(tree(1), state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))


def test_an_injected_warm_up_from_zero_warns_once():
    params = tree(0)
    optimizer = optax.inject_hyperparams(gravity)(optax.linear_schedule(0.0, 0.1, 2))
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction") as record:
        state = optimizer.init(params)
    assert len(record) == 1
    for _ in range(2):  # without a warning, which would be an error
        _, state = optimizer.update(tree(1), state, params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_injected_hyperparameters_give_half_weights_a_float32_sigma(dtype):
    make = optax.inject_hyperparams(gravity, static_args="velocity_dtype")
    optimizer = make(0.1, velocity_dtype=jnp.float32)
    w = jnp.ones(100, dtype)
    with jax.numpy_dtype_promotion("strict"):
        eager = optimizer.init(w).inner_state[0].velocity
        traced = jax.jit(optimizer.init)(w).inner_state[0].velocity
    # one rounding each of a quotient and a product, on both sides
    assert (np.abs(eager - traced) <= 4 * 2.0**-24 * np.abs(eager)).all()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_injected_hyperparameters_with_complex_weights(transform):
    optimizer = optax.inject_hyperparams(gravity, hyperparam_dtype=jnp.float32)(0.1)
    w = g = jnp.asarray([1 + 2j, 0.5j], jnp.complex64)
    state = optimizer.init(w)
    steps = [as_pairs(state, w)]
    w, state = transform(stepper(optimizer))(w, state, g)
    steps.append(as_pairs(state, w))
    # The hyper-parameters in float32; an eager init computes σ from the given numbers.
    options = {"learning_rate": float(np.float32(0.1)), "beta": float(np.float32(0.9))}
    options["velocity_std"] = 0.01 / 0.1
    result = grade(Replay(steps[0].weights, [steps[0].weights], options), iter(steps))
    assert result.v0_identical
    assert result.verdict in ("exact", "bounded"), result.first_divergence


def as_pairs(state, w):
    """Return one complex tensor and its velocity as pairs of reals, as the update treats them."""
    velocity = state.inner_state[0].velocity
    return Step(*([np.stack([x.real, x.imag], axis=-1)] for x in (velocity, w)))


def test_scale_by_gravity_returns_the_velocity():
    params = tree(0)
    transform = scale_by_gravity(velocity_std=0.5, seed=2)
    updates, state = transform.update(tree(1), transform.init(params))
    assert_same(updates, state.velocity)
