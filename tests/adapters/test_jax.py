"""gravity_jax.gravity as an optax transformation: training, state, arguments, errors.

What other code makes of it is tested in test_jax_composition.py, and several devices in
test_jax_sharding.py.
"""

import contextlib
import math

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

import gravity_core  # noqa: E402
from gravity_conformance.drive.driven import as_backend  # noqa: E402
from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_conformance.parity.grading import grade  # noqa: E402
from gravity_conformance.protocol import Replay  # noqa: E402
from gravity_core import ErrorBound, coefficients, initial_velocity  # noqa: E402
from gravity_jax import (  # noqa: E402
    ScaleByGravityState,
    backend,
    gravity,
    scale_by_gravity,
)
from gravity_jax.reduction import SMALL, TOGETHER, largest_magnitudes  # noqa: E402
from tests.adapters.arguments import BAD  # noqa: E402


def tree(number, dtype=jnp.float32):
    rng = np.random.default_rng([3, number])
    shapes = {"a": (3, 4), "b": (), "c": (70_000,)}
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


def run(optimizer, params, state, numbers, transform=lambda f: f):
    update = transform(optimizer.update)
    for number in numbers:
        updates, state = update(tree(number), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_trains_on_the_digits_inside_scan():
    task = digits_task("float32", seed=0, steps=450, options={})
    optimizer = gravity(optax.cosine_decay_schedule(0.1, 450))
    x, y = jnp.asarray(task.x_train), jnp.asarray(task.y_train)

    def logits(params, x):
        return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]

    def loss(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, x[batch]), y[batch]
        ).mean()

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = dict(zip(("w1", "b1", "w2", "b2"), map(jnp.asarray, task.weights), strict=True))
    batches = jnp.asarray(np.concatenate(task.epochs))
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
    predicted = np.asarray(logits(params, jnp.asarray(task.x_test)).argmax(axis=1))
    assert (predicted == task.y_test).mean() > 0.9


@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_a_thousand_steps_stay_inside_the_bound(mode):
    rng = np.random.default_rng(4)
    scales = 10.0 ** rng.uniform(-4, 2, size=(1000, 1))
    gradients = (rng.normal(size=(1000, 30)) * scales).astype(np.float32)
    weights = [rng.normal(size=30).astype(np.float32)]
    replay = Replay(weights, [[g] for g in gradients], {"learning_rate": 0.03, "seed": 8})
    result = grade(replay, as_backend(backend).replay(replay, mode))
    assert result.v0_identical
    assert result.verdict == "exact" if mode == "eager" else result.verdict == "bounded"
    assert result.worst <= ErrorBound.ROUNDINGS


def test_eager_equals_the_numpy_optimizer():
    optimizer, reference = gravity(seed=2**40 + 1), gravity_core.Gravity(seed=2**40 + 1)
    params = tree(0)
    weights = [np.array(w) for w in jax.tree.leaves(params)]
    params, _ = run(optimizer, params, optimizer.init(params), range(1, 4))
    for number in range(1, 4):
        reference.step(weights, [np.asarray(g) for g in jax.tree.leaves(tree(number))])
    assert_same(jax.tree.leaves(params), weights)


def test_the_state_is_arrays_and_named():
    state = scale_by_gravity().init(tree(0))
    assert isinstance(state, ScaleByGravityState)
    assert state.count.dtype == jnp.int32
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_init_gives_the_same_bits_under_jit_and_from_a_traced_seed():
    params = tree(0)
    plain = gravity(seed=7).init(params)
    assert_same(jax.jit(gravity(seed=7).init)(params), plain)
    assert_same(jax.jit(lambda seed: gravity(seed=seed).init(params))(7), plain)
    shapes = jax.eval_shape(gravity().init, params)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, plain)


def test_init_holds_no_index_of_the_size_of_a_tensor():
    params = jax.ShapeDtypeStruct((2**22,), jnp.float32)
    memory = jax.jit(gravity().init).lower(params).compile().memory_analysis()
    assert memory.output_size_in_bytes >= 2**24
    assert memory.temp_size_in_bytes < 2**24 // 1000


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_inject_hyperparams_equals_the_plain_call(transform):
    injected, plain = optax.inject_hyperparams(gravity)(learning_rate=0.3), gravity(0.3)
    params = tree(0)
    first = injected.init(params).inner_state[0].velocity
    assert_same(first, plain.init(params)[0].velocity)
    a, _ = run(injected, params, injected.init(params), range(1, 4), transform)
    b, _ = run(plain, params, plain.init(params), range(1, 4), transform)
    u = 2.0**-24
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        # alpha, beta and l arrive rounded to float32: three more roundings in each of three
        # updates, beside those of the bound in both runs, of values below 1 + max|W|
        units = 3 * (3 + 2 * (gravity_core.ErrorBound.ROUNDINGS + 3))
        assert np.abs(x - y).max() <= units * u * (1 + np.abs(y).max())


def test_a_schedule_sets_the_first_velocity_at_its_start():
    params = {"w": jnp.zeros(1000)}
    for rate in (0.3, 0.07):  # which float32 rounds
        constant = gravity(rate).init(params)
        for schedule in (optax.linear_schedule, optax.cosine_decay_schedule):
            arguments = (rate, 0.0, 10) if schedule is optax.linear_schedule else (rate, 10)
            scheduled = gravity(schedule(*arguments)).init(params)
            assert_same(constant[0].velocity, scheduled[0].velocity)


def test_learning_rate_zero_starts_from_rest_and_says_so_once():
    warm_up = optax.linear_schedule(0.0, 0.1, 10)
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction") as record:
        optimizer = gravity(warm_up)
    assert len(record) == 1
    assert record[0].filename == __file__  # the line of the user
    state = optimizer.init({"w": jnp.ones(4)})
    assert not state[0].velocity["w"].any()
    traced = jax.jit(lambda lr: gravity(lr).init({"w": jnp.ones(4)}))(0.0)  # silent, and finite
    assert not traced[0].velocity["w"].any()


def test_the_value_of_a_schedule_at_its_start_is_known_under_jit():
    # The schedule may rely on an array, and sees one also when JAX traces.
    rate = lambda count: 0.3 * jnp.exp(-count.astype(jnp.float32))  # noqa: E731
    w = jnp.zeros(1000)
    plain = gravity(0.3).init(w)[0].velocity
    assert np.array_equal(gravity(rate).init(w)[0].velocity, plain)
    assert np.array_equal(jax.jit(lambda: gravity(rate).init(w)[0].velocity)(), plain)
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction"):
        jax.jit(lambda: gravity(optax.linear_schedule(0.0, 0.1, 10)).init(w))()


def test_weight_decay_is_decoupled_and_masked():
    params = {"w": jnp.full(4, 2.0), "b": jnp.full(4, 2.0)}
    grads = jax.tree.map(jnp.zeros_like, params)
    optimizer = gravity(0.1, weight_decay=0.5, mask={"w": True, "b": False}, velocity_std=0.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # −l λ W, of which each factor and the product is rounded once
    assert np.allclose(updates["w"], -0.1 * 0.5 * 2.0, rtol=4 * 2.0**-24, atol=0)
    assert not updates["b"].any()


def test_weight_decay_by_a_schedule():
    w = jnp.full(4, 2.0)
    decay = optax.linear_schedule(0.5, 0.0, 2)
    optimizer = gravity(0.1, weight_decay=decay, velocity_std=0.0)
    state = optimizer.init(w)
    for rate in (0.5, 0.25, 0.0):
        updates, state = jax.jit(optimizer.update)(jnp.zeros(4), state, w)
        # λ, l and two products, each rounded once
        assert np.allclose(updates, -0.1 * rate * 2.0, rtol=4 * 2.0**-24, atol=0)
    with pytest.raises(ValueError, match=r"weight_decay must be a finite number >= 0, got .*-1"):
        gravity(weight_decay=optax.constant_schedule(-1))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.complex64])
def test_dtypes_are_kept(dtype):
    params = {"w": jnp.ones(5, dtype)}
    optimizer = gravity()
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)(params, state, params)
    assert updates["w"].dtype == state[0].velocity["w"].dtype == dtype


def test_complex_parameters_are_pairs_of_reals():
    rng = np.random.default_rng(0)
    pairs = jnp.asarray(rng.normal(size=(2, 6, 2)), jnp.float32)
    optimizer = gravity()

    def step(w, g):
        return optimizer.update(g, optimizer.init(w), w)[0]

    real = step(*pairs)
    updates = step(*jax.lax.complex(pairs[..., 0], pairs[..., 1]))
    assert np.array_equal(updates.real, real[:, 0])
    assert np.array_equal(updates.imag, real[:, 1])


def test_velocity_dtype():
    params = {"w": jnp.ones(5)}
    optimizer = gravity(velocity_dtype=jnp.bfloat16)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    assert state[0].velocity["w"].dtype == jnp.bfloat16
    assert updates["w"].dtype == jnp.float32


def test_velocity_dtype_is_for_real_leaves_and_floating():
    state = gravity(velocity_dtype=jnp.bfloat16).init({"c": jnp.ones(3, jnp.complex64)})
    assert state[0].velocity["c"].dtype == jnp.complex64
    for bad in (jnp.int32, "foo", 3):
        with pytest.raises(ValueError, match=r"velocity_dtype must be a floating .*, got"):
            gravity(velocity_dtype=bad)


@pytest.mark.filterwarnings("error")
def test_a_double_velocity_is_single_without_x64():
    optimizer = gravity(velocity_dtype=jnp.float64)
    assert optimizer.init(jnp.ones(3))[0].velocity.dtype == jnp.float32
    with jax.enable_x64(True):
        assert optimizer.init(jnp.ones(3))[0].velocity.dtype == jnp.float64


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("velocity_dtype", ["float16", "bfloat16", "float32", "float64"])
def test_eager_steps_have_the_bits_of_the_core(dtype, velocity_dtype):
    rng = np.random.default_rng(9)
    with jax.enable_x64(velocity_dtype == "float64"):
        w = jnp.ones((6, 5), dtype)
        transform = scale_by_gravity(velocity_dtype=velocity_dtype)
        state = transform.init(w)
        for t in (1, 2, 3):
            g = jnp.asarray(rng.normal(size=w.shape) * 3, dtype)
            expected = gravity_core.update(np.asarray(g), np.asarray(state.velocity), t)
            updates, state = transform.update(g, state)
            assert np.asarray(state.velocity).tobytes() == expected.tobytes()
            assert np.asarray(updates).tobytes() == expected.astype(g.dtype).tobytes()


def test_a_double_velocity_has_double_coefficients_under_jit():
    with jax.enable_x64(True):
        g = jnp.asarray(np.random.default_rng(9).normal(size=30), jnp.float32)
        transform = scale_by_gravity(velocity_dtype=jnp.float64)
        state = transform.init(g)._replace(count=jnp.asarray(4, jnp.int32))
        expected = gravity_core.update(np.asarray(g), np.asarray(state.velocity), 5)
        got = jax.jit(transform.update)(g, state)[1].velocity
        size = np.abs(state.velocity).max() + np.abs(g).max()  # which ζ does not exceed
        assert np.abs(got - expected).max() <= 2 * ErrorBound.ROUNDINGS * 2.0**-53 * size


def test_the_count_stops_at_its_largest_value():
    transform, largest = scale_by_gravity(), np.iinfo(np.int32).max
    w = jnp.ones(2)
    state = transform.init(w)._replace(count=jnp.asarray(largest, jnp.int32))
    for update in (transform.update, jax.jit(transform.update)):
        assert int(update(w, state)[1].count) == largest


def test_a_traced_seed_of_more_than_32_bits():
    with jax.enable_x64(True):
        w = jnp.ones(20, jnp.float32)
        traced = jax.jit(lambda seed: gravity(seed=seed).init(w)[0].velocity)
        for seed in (2**40, 2**40 + 5, 5):
            assert np.array_equal(traced(seed), gravity(seed=seed).init(w)[0].velocity)


def test_a_traced_seed_that_is_no_integer_is_refused():
    with pytest.raises(ValueError, match=r"seed must be an integer in .*got dtype float32"):
        jax.jit(lambda seed: gravity(seed=seed).init(jnp.ones(2)))(1.0)


NUMBERS = ("learning_rate", "alpha", "beta", "weight_decay", "velocity_std", "seed", "first_step")


@pytest.mark.parametrize("shape", [(1,), (2,)])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_traced_number_that_is_no_scalar_is_refused(name, shape):
    w = jnp.ones(2)  # with which two numbers would broadcast

    def step(number):
        optimizer = gravity(**{name: number})
        return optimizer.update(w, optimizer.init(w), w)[0]

    numbers = jnp.ones(shape, jnp.int32 if name in ("seed", "first_step") else jnp.float32)
    with pytest.raises(ValueError, match=rf"^{name} must be a scalar, got shape \({shape[0]},\)"):
        jax.jit(step)(numbers)
    assert jax.vmap(step)(numbers).shape == (*shape, 2)  # where each is a scalar


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_the_first_velocity_of_every_dtype_is_the_references(dtype):
    w = jnp.ones((5, 3), dtype)
    got = np.asarray(gravity(seed=2**63 + 1).init([jnp.ones(2), w])[0].velocity[1])
    expected = initial_velocity(w.shape, got.dtype, std=0.01 / 0.1, seed=2**63 + 1, index=1)
    assert got.tobytes() == expected.tobytes()


def test_complex_gradients_share_one_maximum():
    gradient = jnp.asarray([1 + 2j, -3j], jnp.complex64)
    transform = scale_by_gravity(velocity_std=0.0)
    updates, _ = transform.update([gradient], transform.init([gradient]))
    pairs = np.asarray([[1, 2], [0, -3]], np.float32)
    expected = gravity_core.update(pairs, np.zeros_like(pairs), 1)
    assert np.array_equal(np.stack([updates[0].real, updates[0].imag], axis=-1), expected)


# max|G|: of small arrays together


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_every_gradient_has_its_own_maximum(transform, dtype):
    rng = np.random.default_rng(2)
    grads = []
    for size in (1, 2, 60, SMALL, SMALL + 1):
        for i, shape in enumerate([(size,), (1, size), (size, 1, 1)] * 3):
            g = rng.normal(size=(2, *shape)) * 10.0 ** rng.integers(-4, 4)
            mixed = "float32" if i == 4 else dtype
            grads.append(jnp.asarray(g[0] + 1j * g[1] if mixed == "complex64" else g[0], mixed))
    found = transform(lambda *g: largest_magnitudes(g, (0,) * len(g)))(*[g.real for g in grads])
    expected = [np.abs(np.asarray(g.real, np.float32)).max() for g in grads]
    assert [float(m) for m in found] == [float(m) for m in expected]
    # And each gradient gets its own, a complex one that of both its parts.
    transform_ = scale_by_gravity(velocity_std=0.0)
    updates, _ = transform_.update(grads, transform_.init(grads))
    for g, update in zip(grads, updates, strict=True):
        pairs = np.stack([g.real, g.imag], axis=-1) if jnp.iscomplexobj(g) else np.asarray(g)
        velocity = gravity_core.update(pairs, np.zeros_like(pairs), 1)
        assert np.array_equal(velocity[..., 0] if jnp.iscomplexobj(g) else velocity, update.real)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_maxima_under_vmap(transform):
    """Over any axis, of some gradients only, of stacks, and nested."""
    rng = np.random.default_rng(5)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((5, 4), (3, 7), (2, 4, 6)))

    def maxima(a, b, c):
        return largest_magnitudes((a, b, c), (0, 0, 1))

    found = transform(jax.vmap(maxima, in_axes=(1, None, 1)))(a, b, c)
    expected = abs(a).max(axis=0), np.full(4, abs(b).max()), abs(c).max(axis=2).T[..., None]
    assert_same(found, list(expected))
    nested = jax.vmap(jax.vmap(lambda c: largest_magnitudes((c,), (0,))[0], in_axes=1))
    assert np.array_equal(transform(nested)(c), abs(c).max(axis=1))


def a_mesh_of_one():
    return jax.make_mesh((1,), ("one",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def by_the_context(monkeypatch, arrays):
    return jax.set_mesh(a_mesh_of_one()), arrays


def by_their_mesh(monkeypatch, arrays):
    sharding = NamedSharding(a_mesh_of_one(), PartitionSpec())
    return contextlib.nullcontext(), [jax.device_put(a, sharding) for a in arrays]


def by_the_number_of_devices(monkeypatch, arrays):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    return contextlib.nullcontext(), arrays


# How a program under jit is known to be for one device.
KNOWN = [by_the_context, by_their_mesh, by_the_number_of_devices]


@pytest.mark.parametrize("known", KNOWN)
def test_small_gradients_of_one_size_share_reductions(known, monkeypatch):
    grads = [jnp.ones(shape) for shape in [(12,), (3, 4), (2, 2, 3)] * 4 + [(SMALL + 1,)] * 2]
    context, grads = known(monkeypatch, grads)
    with context:
        lowered = jax.jit(lambda *g: largest_magnitudes(g, (0,) * len(g))).lower(*grads)
    assert lowered.as_text().count("stablehlo.reduce(") == 12 / TOGETHER + 2


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2000,), (20_000,), (400, 50), (20, 10, 100)])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_one_number_that_is_not_finite_reaches_all(jit, shape, dtype, value, at):
    g = np.random.default_rng(1).normal(size=math.prod(shape)).astype(np.float32)
    g[at] = value
    transform_ = scale_by_gravity(velocity_std=0.0)
    g = jnp.asarray(g.reshape(shape), dtype)
    if jit:
        with jax.set_mesh(a_mesh_of_one()):
            updates, _ = jax.jit(transform_.update)(g, transform_.init(g))
    else:
        updates, _ = transform_.update(g, transform_.init(g))
    expected = gravity_core.update(np.asarray(g), np.zeros(shape, g.dtype), 1)
    assert np.array_equal(np.isnan(updates), np.isnan(expected))
    assert not np.any(updates, where=~np.isnan(updates))


def test_the_value_beside_a_derivative_is_the_same():
    """Also with a NaN, which the form that has a derivative drops."""
    transform = scale_by_gravity(velocity_std=0.0)
    g = jnp.asarray(np.random.default_rng(1).normal(size=20_000), jnp.float32).at[7].set(jnp.nan)
    velocity = lambda g: transform.update(g, transform.init(g))[0]  # noqa: E731
    with jax.set_mesh(a_mesh_of_one()):
        for wrapped in (velocity, jax.jit(velocity)):
            assert np.isnan(jax.jvp(wrapped, (g,), (jnp.ones_like(g),))[0]).all()
            assert np.isnan(jax.vjp(wrapped, g)[0]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_derivatives_by_the_gradient(dtype):
    """As a learned optimizer or an unrolled training takes them."""
    g = jnp.asarray([0.5, -2.0, 1.0, 0.25, -0.75, 1.5], dtype)
    transform = scale_by_gravity(velocity_std=0.0, velocity_dtype=jnp.float32)

    def velocity(g):
        return transform.update(g, transform.init(g))[1].velocity

    for shape in ((6,), (2, 3), (1, 2, 3)):
        by_g = jax.jit(jax.jacrev(velocity))(g.reshape(shape)).reshape(6, 6)
        x, m = np.asarray(g, np.float64), 2.0  # max|G| is −g₁
        s = (m * x) ** 2
        zeta_by_m = -2 * m * x**3 / (1 + s) ** 2
        zeta_by_g = np.diag((1 - s) / (1 + s) ** 2)
        zeta_by_g[:, 1] -= zeta_by_m
        expected = coefficients(1, 0.9)[1] * zeta_by_g
        # The derivative in G's dtype is a sum of at most three terms below 1, of at most ten
        # roundings each, and is itself rounded to that dtype, as each term may be.
        u = 2.0**-24 if dtype == jnp.float32 else 2.0**-8
        assert np.abs(np.asarray(by_g, np.float64) - expected).max() <= (3 * 10 * 2.0**-24 + 6 * u)


# stacked


def layers_apart(w, g, velocity, leading):
    """Return the updates of every layer, run by itself from its part of V₀."""
    transform = scale_by_gravity()
    updates = np.zeros(w.shape, np.float32)
    for at in np.ndindex(w.shape[:leading]):
        state = transform.init(w[at])._replace(velocity=velocity[at])
        updates[at] = transform.update(g[at], state)[0]
    return updates


@pytest.mark.parametrize("leading", [0, 1, 2, 3])
def test_stacked_layers_are_layers_apart(leading):
    rng = np.random.default_rng(6)
    w, g = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
    transform = scale_by_gravity(stacked=leading)
    state = transform.init(w)
    updates, _ = transform.update(g, state)
    assert np.array_equal(updates, layers_apart(w, g, state.velocity, leading))
    if leading:  # and it is another optimizer than the one of the whole array
        assert not np.array_equal(updates, layers_apart(w, g, state.velocity, 0))


@pytest.mark.parametrize(
    "stacked",
    [
        {"blocks": 1, "head": 0},
        lambda updates: {"blocks": {"w": 1, "b": 1}, "head": 0},
        lambda updates: jax.tree.map(lambda g: g.ndim - 1, updates) | {"head": 0},
    ],
    ids=["prefix", "callable", "callable of the updates"],
)
def test_stacked_as_a_prefix_and_as_a_callable(stacked):
    rng = np.random.default_rng(6)
    shapes = {"blocks": {"w": (3, 4), "b": (3, 2)}, "head": (4,)}
    is_shape = {"is_leaf": lambda x: isinstance(x, tuple)}
    g = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, **is_shape)
    transform = scale_by_gravity(stacked=stacked)
    state = transform.init(g)
    updates, _ = jax.jit(transform.update)(g, state)
    plain, _ = jax.jit(scale_by_gravity().update)(g, state)
    assert_same(updates["head"], plain["head"])
    for name in ("w", "b"):
        apart = layers_apart(
            g["blocks"][name], g["blocks"][name], state.velocity["blocks"][name], 1
        )
        # the bound's roundings on either way, of |β̂V| + |(1 − β̂)ζ| <= max|V| + max|G|
        size = np.abs(state.velocity["blocks"][name]).max() + np.abs(g["blocks"][name]).max()
        units = 2 * ErrorBound.ROUNDINGS
        assert np.abs(updates["blocks"][name] - apart).max() <= units * 2.0**-24 * size


def test_stacked_goes_through_the_alias_and_complex_numbers():
    g = jnp.asarray([[1 + 2j, 3], [0.5j, 0.25]], jnp.complex64)
    optimizer = gravity(1.0, velocity_std=0.0, stacked=1)
    updates, _ = optimizer.update(g, optimizer.init(g))
    for layer in range(2):
        one, _ = gravity(1.0, velocity_std=0.0).update(g[layer], optimizer.init(g[layer]))
        assert np.array_equal(updates[layer], one)


@pytest.mark.parametrize(
    ("stacked", "message"),
    [
        (2, r"stacked\['w'\] must be an integer in \[0, 1\].*got 2"),
        ({"w": -1}, r"stacked\['w'\] must be an integer in \[0, 1\].*got -1"),
        ({"w": 0.5}, r"stacked\['w'\] must be an integer.*got 0.5"),
        (lambda _: {"w": True}, r"stacked\['w'\] must be an integer.*got True"),
        ({"v": 0}, r"^stacked must be a pytree prefix of the updates: "),
    ],
)
def test_bad_stacked(stacked, message):
    params = {"w": jnp.ones(3)}
    transform = scale_by_gravity(stacked=stacked)
    with pytest.raises(ValueError, match=message):
        transform.init(params)
    with pytest.raises(ValueError, match=message):
        transform.update(params, scale_by_gravity().init(params))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_none_in_stacked_is_no_stack(transform):
    params = {"blocks": jnp.ones((2, 3)), "head": {"w": jnp.ones(3), "b": None}}
    for none in ({"blocks": 1, "head": None}, {"blocks": 1, "head": {"w": None, "b": None}}):
        a, b = (scale_by_gravity(stacked=s) for s in (none, {"blocks": 1, "head": 0}))
        state = a.init(params)
        assert_same(transform(a.update)(params, state), transform(b.update)(params, state))


def test_a_callable_for_stacked_sees_arrays_at_init_too():
    params = {"blocks": np.ones((2, 3)), "number": 0.5}
    transform = scale_by_gravity(stacked=lambda updates: jax.tree.map(lambda g: g.ndim, updates))
    assert transform.init(params).velocity["number"].shape == ()


# leaves that are no arrays, and errors


@pytest.mark.filterwarnings("error")
def test_numpy_leaves_and_numbers():
    params = {"w": np.ones(3), "x": 0.5}
    optimizer = gravity()
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["w"].dtype == jnp.float32
    assert updates["x"].shape == ()


def test_missing_empty_and_scalar_leaves():
    params = {"none": None, "empty": jnp.ones((0, 3)), "scalar": jnp.ones(())}
    optimizer = gravity()
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["none"] is None
    assert updates["empty"].shape == (0, 3)
    assert updates["scalar"].shape == ()


@pytest.mark.parametrize("dtype", [jnp.int32, bool])
def test_integer_parameters_are_named(dtype):
    with pytest.raises(TypeError, match=r"params\['a'\]\[1\] must be a floating or complex"):
        gravity().init({"a": [jnp.ones(2), jnp.ones(2, dtype)]})


NO_ARRAYS = {
    "masked": (optax.MaskedNode(), r"MaskedNode\(\)"),
    "list": ([1.0, 2.0, 3.0], r"\[1.0, 2.0, 3.0\]"),
    "string": ("float32", "'float32'"),
    "function": (np.sin, "<ufunc 'sin'>"),
    "float8": (np.ones(3, jnp.float8_e4m3fn), "dtype float8_e4m3fn"),
}


@pytest.mark.parametrize("leaf", ["string", "function", "float8"])
def test_leaves_that_are_no_arrays_are_named_at_init(leaf):
    bad, received = NO_ARRAYS[leaf]
    with pytest.raises(TypeError, match=rf"params\['w'\] must be a floating .*got {received}"):
        gravity().init({"w": bad})


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (
            jnp.ones(3, jnp.int32),
            TypeError,
            r"must be a floating or complex array .*got dtype int32",
        ),
        (np.zeros(3, jax.dtypes.float0), TypeError, r"must be a floating .*got dtype .*float0"),
        (None, ValueError, r"is missing: a parameter without a gradient needs zeros"),
        (jnp.ones(2), ValueError, r"must have the shape of its parameter .*\(3,\).*got \(2,\)"),
        (jnp.ones(3, jnp.complex64), ValueError, r".* complex where that is, \(3,\) float32"),
        *[
            (leaf, TypeError, f"must be a floating or complex array .*got {received}")
            for leaf, received in NO_ARRAYS.values()
        ],
    ],
    ids=["integer", "float0", "missing", "shape", "complex", *NO_ARRAYS],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_bad_gradients_are_named(gradient, error, message, transform):
    params = {"a": {"w": jnp.ones(3)}, "b": jnp.ones(2)}
    optimizer = gravity()
    state = optimizer.init(params)
    bad = {"a": {"w": gradient}, "b": jnp.ones(2)}
    with pytest.raises(error, match=r"updates\['a'\]\['w'\] " + message):
        transform(lambda: optimizer.update(bad, state))()


TOO_SMALL = "learning_rate must not be so small that alpha / learning_rate overflows float16"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda **k: gravity(1e-7, **k), TOO_SMALL + " .* got 1e-07"),
        (lambda **k: gravity(jnp.asarray(1e-7), **k), TOO_SMALL + " .* got 1e-07"),
        (lambda **k: gravity(optax.linear_schedule(1e-7, 0.1, 10), **k), TOO_SMALL),
        (lambda **k: gravity(velocity_std=2e4, **k), "^velocity_std must be .* got 20000.0"),
        (lambda **k: scale_by_gravity(velocity_std=2e4, **k), "^velocity_std must be .* 20000.0"),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_first_velocity_that_overflows_is_refused(make, message, transform):
    whole, half = jnp.ones(1000), jnp.ones(3, jnp.float16)
    for params, options in (
        ([whole, half], {}),
        ([whole], {"velocity_dtype": jnp.float16}),
    ):
        with pytest.raises(ValueError, match=message):
            transform(make(**options).init)(params)
    for params, options in (
        ([whole, half], {"velocity_dtype": jnp.float32}),
        ([whole, half.astype(jnp.bfloat16), half.astype(jnp.complex64)], {}),
    ):
        state = transform(make(**options).init)(params)
        assert all(jnp.isfinite(v).all() for v in jax.tree.leaves(state))


def test_a_traced_standard_deviation_is_not_refused():
    state = jax.jit(lambda rate: gravity(rate).init(jnp.ones(3, jnp.float16)))(1e-12)
    assert jnp.isinf(state[0].velocity).any()


@pytest.mark.parametrize(
    "value",
    [jnp.asarray(True), jnp.asarray(0.1j), jnp.asarray(0.1, jnp.float8_e4m3fn), np.asarray(True)],
    ids=repr,
)
@pytest.mark.parametrize("name", ["learning_rate", "alpha", "beta", "velocity_std"])
def test_arrays_of_what_is_no_real_number_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
        gravity(**{name: value})
    assert str(caught.value).endswith(f", got {value!r}")


def test_a_schedule_of_what_is_no_real_number_is_refused():
    for value in (jnp.asarray(True), jnp.asarray(0.1j)):
        with pytest.raises(ValueError, match=r"^learning_rate must be a .*, got Array"):
            gravity(lambda count, value=value: value)


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        gravity(**arguments)


def test_a_gradient_tree_of_another_structure_is_refused():
    optimizer = gravity()
    state = optimizer.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="'b'"):
        optimizer.update({"a": jnp.ones(2)}, state)
