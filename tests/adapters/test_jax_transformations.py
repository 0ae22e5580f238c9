"""gravity_jax under JAX's transformations."""

import os
import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402

from gravity_conformance.parity.grading import grade  # noqa: E402
from gravity_conformance.protocol import Replay, Step  # noqa: E402
from gravity_core import ErrorBound, coefficients  # noqa: E402
from gravity_jax import gravity, scale_by_gravity  # noqa: E402
from tests.support.jax_helpers import (  # noqa: E402
    assert_same,
    dtypes_of,
    run,
    stepper,
    tree,
)
from tests.support.limits import HANG  # noqa: E402

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]


def as_steps(start, velocities, weights):
    """Return the steps for `grade` from V₀, W₀ and the stacked states of all steps."""
    states = [start, *zip(velocities, weights, strict=True)]
    return (Step([np.asarray(v)], [np.asarray(w)]) for v, w in states)


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
            # Two updates on both sides, each with the bound's roundings and one for the weight
            # decay, of values below max|V| + max|ζ|; a normal gradient has |ζ| <= |G| < 5.
            units = 2 * 2 * (ErrorBound.ROUNDINGS + 1)
            assert np.abs(x[i] - y).max() <= units * 2.0**-24 * (np.abs(y).max() + 5)


def test_the_step_is_traced_once_from_the_state_of_init():
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
def test_cond_and_scan_keep_the_dtypes(dtype, velocity_dtype):
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


@pytest.mark.parametrize("make", [gravity, scale_by_gravity])
def test_the_state_survives_donated_updates(make):
    optimizer, params = make(), tree(0)
    _, after = optimizer.update(tree(1), optimizer.init(params), params)
    updates, state = optimizer.update(tree(1), optimizer.init(params), params)
    jax.jit(lambda u: jax.tree.map(lambda x: x + 1, u), donate_argnums=0)(updates)
    assert_same(state, after)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_donated_step_needs_no_tensor_sized_memory(dtype):
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


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "8"])
def test_compiling_an_ensemble_prints_no_error(devices):
    """XLA prints an error and continues if it cannot finish simplifying a program."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    environment["JAX_NUM_CPU_DEVICES"] = devices
    command = [sys.executable, "-c", _ENSEMBLES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG)
    assert (result.returncode, result.stderr) == (0, "")


def test_init_of_shapes_outside_jit_returns_arrays():
    """`optax.adam` also returns a state of arrays."""
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
    # −η V: on both sides the bound's roundings, that of η and that of the product; |ζ| <= 1
    units = 2 * (ErrorBound.ROUNDINGS + 2)
    size = 0.1 * (np.abs(velocity).max() + 1)
    assert np.abs(updates - expected_updates).max() <= units * 2.0**-24 * size


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_no_intermediate_value_is_nan(transform):
    params = {"zero": jnp.zeros(4), "huge": jnp.full(4, 3e38), "mixed": jnp.asarray([3e38, 0, 1])}
    optimizer = gravity()
    with jax.debug_nans(True):
        state = transform(optimizer.init)(params)
        for _ in range(2):
            updates, state = transform(optimizer.update)(params, state)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.slow
def test_everything_works_without_jit():
    params = {"array": jnp.ones((2, 3)), "numpy": np.ones(3, np.float32), "number": 0.5}
    optimizer = gravity()
    plain = optimizer.init(params)
    with jax.disable_jit():
        state = optimizer.init(params)
        updates, _ = optimizer.update(params, state, params)
    assert_same(state, plain)
    assert_same(updates, optimizer.update(params, plain, params)[0])


@pytest.mark.slow
def test_strict_promotion_of_types_and_ranks():
    injected = optax.inject_hyperparams(gravity, static_args=("velocity_dtype", "stacked"))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in DTYPES:
            # optax casts injected numbers to the parameters' dtype, even if it is complex
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
    """d W₁/d(η, β, α) of one update equals the formula differentiated by hand in float64."""
    g = np.asarray([gradient, -gradient, gradient / 2])

    def weights(lr, beta, alpha):
        optimizer = gravity(lr, alpha, beta)
        w = jnp.zeros(3)
        return stepper(optimizer)(w, optimizer.init(w), jnp.asarray(g, jnp.float32))[0]

    lr, beta, alpha = 7 / 64, 29 / 32, 3 / 256  # exact in float32
    derivatives = jax.jacobian(weights, argnums=(0, 1, 2))(lr, beta, alpha)
    z = np.asarray(gravity(1.0, 1.0).init(jnp.zeros(3))[0].velocity, np.float64)
    old, new = coefficients(1, beta)
    v0, zeta = alpha / lr * z, g / (1 + (g * gradient) ** 2)
    # W₁ = −η (β̂ (α/η) z + (1 − β̂) ζ), and at t = 1 both weights change with β by 1/3. Each
    # derivative is a sum of terms. The terms in V₀ cancel with respect to η, so the size of
    # the terms is given separately.
    exact = [
        (-new * zeta, 2 * old * abs(v0) + new * abs(zeta)),
        (-lr / 3 * (v0 - zeta), lr / 3 * (abs(v0) + abs(zeta))),
        (-old * z, old * abs(z)),
    ]
    # With respect to η, one term is V₁ with the bound's roundings (V₀ = (α/η) z has two in place
    # of the five in ζ). The other has 4 in β̂, 4 in −α/η² and 2 in products. A sum follows. The
    # terms with respect to β and α have fewer: 9 and 8. One more covers the second order.
    units = ErrorBound.ROUNDINGS + 1 + 1
    for derivative, (expected, size) in zip(derivatives, exact, strict=True):
        assert (np.abs(derivative - expected) <= units * 2.0**-24 * size).all()


def test_hyper_gradients_are_finite_at_learning_rate_zero():
    def loss(lr):
        optimizer = gravity(lr)
        params = tree(0)
        return optax.tree.norm(run(optimizer, params, optimizer.init(params), range(1, 4))[0])

    assert jnp.isfinite(jax.jit(jax.grad(loss))(0.0))
