"""gravity_jax under JAX's transformations, inside optax's wrappers, and in other libraries."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402

from gravity_conformance.parity.grading import grade, reference  # noqa: E402
from gravity_conformance.protocol import Replay, Step  # noqa: E402
from gravity_core import ErrorBound, coefficients  # noqa: E402
from gravity_jax import ScaleByGravityState, gravity, scale_by_gravity  # noqa: E402

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]


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


def as_steps(start, velocities, weights):
    """Return what `grade` compares, from V₀, W₀ and the stacked states of all steps."""
    states = [start, *zip(velocities, weights, strict=True)]
    return (Step([np.asarray(v)], [np.asarray(w)]) for v, w in states)


# JAX's transformations


def test_a_thousand_steps_in_a_scan_and_a_vmap_stay_inside_the_bound():
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(3, 20)).astype(np.float32)
    scales = 10.0 ** rng.uniform(-3, 1, size=(3, 1000, 1))
    gradients = (rng.normal(size=(3, 1000, 20)) * scales).astype(np.float32)
    optimizer = gravity(0.02, beta=0.99, velocity_std=0.5)

    def train(w, gradients):
        def step(carry, g):
            w, state = stepper(optimizer)(*carry, g)
            return (w, state), (state[0].velocity, w)

        state = optimizer.init(w)
        _, states = jax.lax.scan(step, (w, state), gradients)
        return state[0].velocity, states

    starts, (velocities, all_weights) = jax.jit(jax.vmap(train))(weights, gradients)
    options = {"learning_rate": 0.02, "beta": 0.99, "velocity_std": 0.5}
    for member in range(3):
        replay = Replay([weights[member]], [[g] for g in gradients[member]], options)
        start = starts[member], weights[member]
        result = grade(replay, as_steps(start, velocities[member], all_weights[member]))
        assert result.v0_identical
        assert result.verdict in ("exact", "bounded"), result.first_divergence


def test_vmap_over_hyper_parameters_and_seeds():
    def velocity(lr, seed):
        optimizer = gravity(lr, seed=seed, weight_decay=0.1)
        params = tree(0)
        return run(optimizer, params, optimizer.init(params), range(1, 3))[1][0].velocity

    many = jax.vmap(velocity)(jnp.asarray([0.1, 0.5]), jnp.asarray([1, 2], jnp.uint32))
    for i, (lr, seed) in enumerate([(0.1, 1), (0.5, 2)]):
        one = jax.jit(velocity)(jnp.float32(lr), jnp.uint32(seed))
        for x, y in zip(*map(jax.tree.leaves, (many, one)), strict=True):
            # two updates on either way, each of the bound's roundings and one for the weight decay,
            # of values below max|V| + max|ζ|, where a normal gradient has |ζ| <= |G| < 5
            units = 2 * 2 * (ErrorBound.ROUNDINGS + 1)
            assert np.abs(x[i] - y).max() <= units * 2.0**-24 * (np.abs(y).max() + 5)


def test_the_step_is_traced_once_and_init_fits_it():
    traced = []
    optimizer = gravity(optax.cosine_decay_schedule(0.1, 10), weight_decay=0.01)

    @jax.jit
    def step(params, state, gradients):
        traced.append(1)
        return stepper(optimizer)(params, state, gradients)

    params = {**tree(0), "half": jnp.ones(3, jnp.bfloat16)}
    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state, params)
    assert len(traced) == 1


@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64, jnp.complex128])
@pytest.mark.parametrize("velocity_dtype", [None, jnp.bfloat16, jnp.float32, jnp.float64])
def test_types_are_the_same_before_and_after_in_cond_and_scan(dtype, velocity_dtype):
    double = (jnp.float64, jnp.complex128)
    with jax.enable_x64(dtype in double or velocity_dtype in double):
        assert_types_are_kept_in_cond_and_scan(dtype, velocity_dtype)


def assert_types_are_kept_in_cond_and_scan(dtype, velocity_dtype):
    optimizer = gravity(velocity_dtype=velocity_dtype)
    params = tree(0, dtype)
    state = optimizer.init(params)
    kept = velocity_dtype is None or jnp.issubdtype(dtype, jnp.complexfloating)
    assert state[0].velocity["a"].dtype == (dtype if kept else velocity_dtype)
    carry = params, state

    def step(carry, take):
        new = jax.lax.cond(take, lambda c: stepper(optimizer)(*c, params), lambda c: c, carry)
        return new, None

    after, _ = jax.lax.scan(step, carry, jnp.asarray([True, False, True]))
    assert dtypes_of(after) == dtypes_of(carry)
    assert int(after[1][0].count) == 2
    updates, _ = optimizer.update(params, state, params)
    assert updates["a"].dtype == dtype


def test_donated_buffers_are_reused():
    optimizer, params = gravity(), tree(0)
    gradients, state = tree(1), optimizer.init(params)
    step = jax.jit(stepper(optimizer), donate_argnums=(0, 1))
    memory = step.lower(params, state, gradients).compile().memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves((params, state)))
    assert memory.alias_size_in_bytes == size
    step(params, state, gradients)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, state)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_donated_step_needs_no_memory_of_the_size_of_a_tensor(dtype):
    optimizer = gravity(velocity_dtype=jnp.float32)
    params = [jax.ShapeDtypeStruct(s, dtype) for s in [(2**18,), (2**9, 2**9), (2**8, 2**8, 3, 3)]]
    arguments = params, jax.eval_shape(optimizer.init, params), params
    step = jax.jit(stepper(optimizer), donate_argnums=(0, 1))
    memory = step.lower(*arguments).compile().memory_analysis()
    assert memory.alias_size_in_bytes > 2**18
    assert memory.temp_size_in_bytes < 2**18 // 10


def test_init_under_transformations():
    params, optimizer = tree(0), gravity(seed=9)
    plain = optimizer.init(params)
    assert_same(jax.jit(optimizer.init)(params), plain)
    shapes = jax.eval_shape(optimizer.init, params)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, plain)
    assert dtypes_of(shapes) == dtypes_of(plain)
    pair = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], jax.vmap(optimizer.init)(pair))
        assert_same(one, plain)


_ENSEMBLES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from gravity_jax import gravity

optimizer = gravity(0.1)
mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))
split = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, PartitionSpec("x", None)))
for params in [*map(jnp.ones, [(3, 4), (2, 3, 4), (3, 70_000)]), split]:
    for transform in (lambda f: f, jax.jit):
        state = transform(jax.vmap(optimizer.init))(params)
        jax.block_until_ready(transform(jax.vmap(optimizer.update))(params, state, params))
"""


@pytest.mark.parametrize("devices", ["1", "8"])
def test_the_compiler_prints_no_error_about_an_ensemble(devices):
    """XLA prints one where it cannot finish simplifying a program, and goes on."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    environment["JAX_NUM_CPU_DEVICES"] = devices
    command = [sys.executable, "-c", _ENSEMBLES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stderr) == (0, "")


def test_init_of_shapes_outside_jit_is_that_of_arrays():
    """As `optax.adam` has it: a state of arrays."""
    params = {**tree(0), "half": jnp.ones(7, jnp.bfloat16), "empty": jnp.ones((0, 3))}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state = gravity(seed=9).init(shapes)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert_same(state, gravity(seed=9).init(params))


@pytest.mark.parametrize(
    ("spec", "shape"), [("b, 4", (5, 4)), ("3, b, 2*b", (3, 5, 10)), ("b, c", (5, 70_001))]
)
@pytest.mark.parametrize("stacked", [0, 1])
def test_axes_of_any_length_are_exported(spec, shape, stacked):
    optimizer = gravity(0.1, seed=9, stacked=stacked)

    def step(w):
        state = optimizer.init(w)
        return state[0].velocity, optimizer.update(w, state, w)[0]

    open_shape = jax.ShapeDtypeStruct(export.symbolic_shape(spec), jnp.float32)
    w = np.ones(shape, np.float32)
    velocity, updates = export.export(jax.jit(step))(open_shape).call(w)
    expected_velocity, expected_updates = step(w)
    assert np.array_equal(velocity, expected_velocity)
    # −l V: the bound's roundings on either way, l's own and the product's, of l S, where |ζ| <= 1
    units = 2 * (ErrorBound.ROUNDINGS + 2)
    size = 0.1 * (np.abs(velocity).max() + 1)
    assert np.abs(updates - expected_updates).max() <= units * 2.0**-24 * size


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_no_nan_is_made_on_the_way(transform):
    params = {"zero": jnp.zeros(4), "huge": jnp.full(4, 3e38), "mixed": jnp.asarray([3e38, 0, 1])}
    optimizer = gravity()
    with jax.debug_nans(True):
        state = transform(optimizer.init)(params)
        for _ in range(2):
            updates, state = transform(optimizer.update)(params, state)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_nothing_needs_jit():
    params = {"array": jnp.ones((2, 3)), "numpy": np.ones(3, np.float32), "number": 0.5}
    optimizer = gravity()
    plain = optimizer.init(params)
    with jax.disable_jit():
        state = optimizer.init(params)
        updates, _ = optimizer.update(params, state, params)
    assert_same(state, plain)
    assert_same(updates, optimizer.update(params, plain, params)[0])


def test_strict_promotion_of_types_and_ranks():
    injected = optax.inject_hyperparams(gravity, static_args=("velocity_dtype", "stacked"))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in DTYPES:
            # optax casts injected numbers to the parameters' dtype, complex ones included
            make = gravity if dtype == jnp.complex64 else injected
            for velocity_dtype in (None, jnp.float32):
                optimizer = make(0.1, velocity_dtype=velocity_dtype, stacked={"a": 1, "b": 0})
                params = tree(0, dtype)
                state = jax.jit(optimizer.init)(params)
                jax.jit(optimizer.update)(params, state, params)


def test_x64_keeps_every_dtype():
    with jax.enable_x64(True):
        params = {"single": jnp.ones(3, jnp.float32), "double": jnp.ones(3, jnp.float64)}
        optimizer = gravity(0.1)
        state = optimizer.init(params)
        before = dtypes_of(state)
        for transform in (lambda f: f, jax.jit):
            updates, state = transform(optimizer.update)(params, state, params)
            assert dtypes_of(state) == before
            assert updates["single"].dtype == jnp.float32
            assert updates["double"].dtype == jnp.float64
        assert state[0].count.dtype == jnp.int32


@pytest.mark.parametrize("gradient", [0.0, 0.6875])
def test_hyper_gradients(gradient):
    """d W₁/d(l, β, α) of one update, against the formula differentiated by hand in float64."""
    g = np.asarray([gradient, -gradient, gradient / 2])

    def weights(lr, beta, alpha):
        optimizer = gravity(lr, alpha, beta)
        w = jnp.zeros(3)
        return stepper(optimizer)(w, optimizer.init(w), jnp.asarray(g, jnp.float32))[0]

    lr, beta, alpha = 7 / 64, 29 / 32, 3 / 256  # which float32 holds exactly
    derivatives = jax.jacobian(weights, argnums=(0, 1, 2))(lr, beta, alpha)
    z = np.asarray(gravity(1.0, 1.0).init(jnp.zeros(3))[0].velocity, np.float64)
    old, new = coefficients(1, beta)
    v0, zeta = alpha / lr * z, g / (1 + (g * gradient) ** 2)
    # W₁ = −l (β̂ (α/l) z + (1 − β̂) ζ), and at t = 1 both weights change with β by 1/3. Each is a
    # sum of terms, of which those in V₀ cancel by l: hence its size beside it.
    exact = [
        (-new * zeta, 2 * old * abs(v0) + new * abs(zeta)),
        (-lr / 3 * (v0 - zeta), lr / 3 * (abs(v0) + abs(zeta))),
        (-old * z, old * abs(z)),
    ]
    # By l a term is V₁, with the bound's roundings (V₀ = (α/l) z has two, in place of the five in
    # ζ), the other 4 in β̂, 4 in −α/l² and 2 in products; a sum follows. The terms by β and α have
    # fewer: 9 and 8. One more covers the second order.
    units = ErrorBound.ROUNDINGS + 1 + 1
    for derivative, (expected, size) in zip(derivatives, exact, strict=True):
        assert (np.abs(derivative - expected) <= units * 2.0**-24 * size).all()


def test_hyper_gradients_are_finite_at_learning_rate_zero():
    def loss(lr):
        optimizer = gravity(lr)
        params = tree(0)
        return optax.tree.norm(run(optimizer, params, optimizer.init(params), range(1, 4))[0])

    assert jnp.isfinite(jax.jit(jax.grad(loss))(0.0))


# optax's wrappers


@pytest.mark.parametrize("stacked", [None, {"a": 1, "b": 0}, lambda g: {"a": g["a"].ndim, "b": 0}])
def test_map_params_reaches_the_velocity_only(stacked):
    optimizer = gravity(weight_decay=0.1, mask={"a": True, "b": False}, stacked=stacked)
    state = optimizer.init(tree(0))
    mapped = optax.tree.map_params(optimizer, lambda v: v + 1, state)
    assert_same(mapped[0].velocity, jax.tree.map(lambda v: v + 1, state[0].velocity))
    assert_same(mapped[0].count, state[0].count)


def test_multi_steps_averages_gradients():
    # To eight binary places, of which a mean of two, however it is taken, needs no rounding.
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


def test_partition_is_two_optimizers():
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
    fast_bound = grade(replay, reference(replay)).bound[-1]  # of any two runs of the fast weights
    for got, start, fast in zip(arrays(params.slow), replay.weights, last.weights, strict=True):
        half_way = (fast.astype(np.float64) - start) / 2
        # slow + (fast − slow)/2: both sums are rounded once
        rounded = 2.0**-24 * (np.abs(half_way) + np.abs(got))
        assert (np.abs(got - (start + half_way)) <= fast_bound / 2 + rounded).all()


def test_injected_numbers_may_be_traced():
    options = {"learning_rate": 0.25, "velocity_std": 0.5, "seed": 5, "first_step": 0}
    params = tree(0)
    injected, plain = optax.inject_hyperparams(gravity)(**options), gravity(**options)
    state = jax.jit(injected.init)(params)
    assert_same(state.inner_state[0].velocity, plain.init(params)[0].velocity)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    updates, _ = jax.jit(injected.update)(tree(1), state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))


# Numbers that float32 holds exactly, as it does α / l.
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
    """Grade four steps, whose gradients are `tree(1)` and on."""
    gradients = [tree(number) for number in range(1, 5)]
    steps = [Step(arrays(velocity_of(state)), arrays(params))]
    replay = Replay(arrays(params), [arrays(g) for g in gradients], options)
    for g in gradients:
        params, state = step(params, state, g)
        steps.append(Step(arrays(velocity_of(state)), arrays(params)))
    return grade(replay, iter(steps))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("without", [None, "velocity_std"])
def test_all_numbers_injected_together_are_those_of_the_plain_call(without, transform):
    options = {name: number for name, number in EXACT.items() if name != without}
    optimizer = optax.inject_hyperparams(gravity)(**options)
    state = transform(optimizer.init)(tree(0))
    assert state.hyperparams.keys() == options.keys()
    result = graded(
        transform(stepper(optimizer)), tree(0), state, lambda s: s.inner_state[0].velocity, options
    )
    assert result.v0_identical
    assert result.verdict in ("exact", "bounded"), result.first_divergence


def test_a_traced_weight_decay_is_that_of_the_plain_call():
    @jax.jit
    def step(decay, *values):
        return stepper(gravity(**{**EXACT, "weight_decay": decay}))(*values)

    def with_decay(*values):
        return step(EXACT["weight_decay"], *values)

    state = gravity(**EXACT).init(tree(0))
    result = graded(with_decay, tree(0), state, lambda s: s[0].velocity, EXACT)
    assert result.verdict in ("exact", "bounded"), result.first_divergence


@pytest.mark.filterwarnings("error")
def test_an_injected_schedule_that_has_decayed_to_zero_is_silent():
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
    for _ in range(2):  # where a warning is an error
        _, state = optimizer.update(tree(1), state, params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_injected_numbers_give_half_weights_a_deviation_in_single(dtype):
    make = optax.inject_hyperparams(gravity, static_args="velocity_dtype")
    optimizer = make(0.1, velocity_dtype=jnp.float32)
    w = jnp.ones(100, dtype)
    with jax.numpy_dtype_promotion("strict"):
        eager = optimizer.init(w).inner_state[0].velocity
        traced = jax.jit(optimizer.init)(w).inner_state[0].velocity
    # a quotient and a product, each rounded once on either way
    assert (np.abs(eager - traced) <= 4 * 2.0**-24 * np.abs(eager)).all()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_injected_numbers_under_complex_weights(transform):
    optimizer = optax.inject_hyperparams(gravity, hyperparam_dtype=jnp.float32)(0.1)
    w = g = jnp.asarray([1 + 2j, 0.5j], jnp.complex64)
    state = optimizer.init(w)
    steps = [as_pairs(state, w)]
    w, state = transform(stepper(optimizer))(w, state, g)
    steps.append(as_pairs(state, w))
    # the numbers as float32 holds them, but for σ, which an eager init takes from those written
    options = {"learning_rate": float(np.float32(0.1)), "beta": float(np.float32(0.9))}
    options["velocity_std"] = 0.01 / 0.1
    result = grade(Replay(steps[0].weights, [steps[0].weights], options), iter(steps))
    assert result.v0_identical
    assert result.verdict in ("exact", "bounded"), result.first_divergence


def as_pairs(state, w):
    """Return one complex tensor and its velocity as pairs of reals, which its update works on."""
    velocity = state.inner_state[0].velocity
    return Step(*([np.stack([x.real, x.imag], axis=-1)] for x in (velocity, w)))


# checkpoints and other libraries


def resumes(optimizer, keep):
    """Assert that a run that `keep` stored and restored goes on bit for bit."""
    params = tree(0)
    params, state = run(optimizer, params, optimizer.init(params), range(1, 4), jax.jit)
    whole = run(optimizer, params, state, range(4, 7), jax.jit)
    kept_params, kept_state = keep((params, state))
    assert isinstance(kept_state[0], ScaleByGravityState)
    assert_same(run(optimizer, kept_params, kept_state, range(4, 7), jax.jit), whole)


def test_pickle():
    resumes(gravity(seed=3), lambda x: pickle.loads(pickle.dumps(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # orbax's own
def test_orbax(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="stores a checkpoint with orbax")

    def keep(values):
        with orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "step", values)
            checkpointer.wait_until_finished()
            return checkpointer.restore(tmp_path / "step", jax.eval_shape(lambda: values))

    resumes(gravity(seed=3), keep)


def test_flax_train_state():
    reason = "trains a flax module"
    train_state = pytest.importorskip("flax.training.train_state", reason=reason)
    params = tree(0)
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=gravity(seed=3))
    step = jax.jit(lambda state, gradients: state.apply_gradients(grads=gradients))
    for number in range(1, 4):
        state = step(state, tree(number))
    expected = run(gravity(seed=3), params, gravity(seed=3).init(params), range(1, 4), jax.jit)
    assert_same(state.params, expected[0])


def test_flax_nnx_optimizer():
    nnx = pytest.importorskip("flax.nnx", reason="trains an nnx module")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gravity(0.1), wrt=nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    y = x @ jnp.asarray([[1.0, 0.5], [-0.5, 1.0], [0.2, 0.1]])

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(300)]
    assert losses[-1] < losses[0] / 100


def test_equinox_modules():
    eqx = pytest.importorskip("equinox", reason="trains an equinox module")
    model = eqx.nn.MLP(3, 1, 8, 1, key=jax.random.key(0))
    optimizer = gravity(0.1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)

    @eqx.filter_jit
    def step(model, state):
        def loss_of(model):
            return jnp.mean((jax.vmap(model)(x)[:, 0] - x[:, 0]) ** 2)

        loss, gradients = eqx.filter_value_and_grad(loss_of)(model)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, loss

    state = optimizer.init(eqx.filter(model, eqx.is_array))
    losses = []
    for _ in range(200):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 10


def test_the_preconditioner_is_the_velocity():
    params = tree(0)
    transform = scale_by_gravity(velocity_std=0.5, seed=2)
    updates, state = transform.update(tree(1), transform.init(params))
    assert_same(updates, state.velocity)
