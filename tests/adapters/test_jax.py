"""gravity_jax.gravity as an optax transformation: training, state, dtypes, arguments."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

import gravity_core  # noqa: E402
from gravity_conformance.drive.driven import as_backend  # noqa: E402
from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_conformance.parity.grading import grade  # noqa: E402
from gravity_conformance.protocol import Replay  # noqa: E402
from gravity_core import ErrorBound, initial_velocity  # noqa: E402
from gravity_jax import (  # noqa: E402
    ScaleByGravityState,
    backend,
    gravity,
    scale_by_gravity,
)
from tests.support.arguments import BAD  # noqa: E402
from tests.support.jax_helpers import assert_same  # noqa: E402


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


def test_the_state_is_a_named_tuple_of_arrays():
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


def test_init_holds_no_tensor_sized_index():
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
        # Rounding alpha, beta and η to float32 adds three roundings to each of three updates, on
        # top of those of the bound in both runs, of values below 1 + max|W|.
        units = 3 * (3 + 2 * (gravity_core.ErrorBound.ROUNDINGS + 3))
        assert np.abs(x - y).max() <= units * u * (1 + np.abs(y).max())


def test_sigma_comes_from_the_first_value_of_a_schedule():
    params = {"w": jnp.zeros(1000)}
    for rate in (0.3, 0.07):  # float32 rounds both
        constant = gravity(rate).init(params)
        for schedule in (optax.linear_schedule, optax.cosine_decay_schedule):
            arguments = (rate, 0.0, 10) if schedule is optax.linear_schedule else (rate, 10)
            scheduled = gravity(schedule(*arguments)).init(params)
            assert_same(constant[0].velocity, scheduled[0].velocity)


def test_a_zero_learning_rate_starts_from_rest_and_warns_once():
    warm_up = optax.linear_schedule(0.0, 0.1, 10)
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction") as record:
        optimizer = gravity(warm_up)
    assert len(record) == 1
    assert record[0].filename == __file__  # the user's line
    state = optimizer.init({"w": jnp.ones(4)})
    assert not state[0].velocity["w"].any()
    traced = jax.jit(lambda lr: gravity(lr).init({"w": jnp.ones(4)}))(0.0)  # silent, and finite
    assert not traced[0].velocity["w"].any()


def test_a_steep_warm_up_warns_once():
    warm_up = optax.linear_schedule(1e-4, 0.1, 100)  # 1e-2 at step 10
    message = "learning_rate grows from 0.0001.* to 0.010.* in ten steps, .* alpha / 0.0001.*; pass"
    with pytest.warns(UserWarning, match=message) as record:
        gravity(warm_up)
    assert len(record) == 1
    assert record[0].filename == __file__
    with pytest.warns(UserWarning, match=message):
        jax.jit(lambda: gravity(warm_up).init(jnp.ones(3)))()
    for quiet in (  # a warning would be an error
        {"learning_rate": warm_up, "velocity_std": 0.1},
        {"learning_rate": warm_up, "alpha": 0},
        {"learning_rate": optax.linear_schedule(0.02, 0.1, 5)},
        {"learning_rate": optax.cosine_decay_schedule(0.1, 5)},
        {"learning_rate": lambda count: [0.1, 0.05, 0.02][int(count)]},
    ):
        gravity(**quiet)


def test_the_value_of_a_schedule_at_its_start_is_known_under_jit():
    # The schedule may expect an array, and receives one even if JAX traces.
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
    # −η λ W, with one rounding of each factor and of the product
    assert np.allclose(updates["w"], -0.1 * 0.5 * 2.0, rtol=4 * 2.0**-24, atol=0)
    assert not updates["b"].any()


def test_weight_decay_by_a_schedule():
    w = jnp.full(4, 2.0)
    decay = optax.linear_schedule(0.5, 0.0, 2)
    optimizer = gravity(0.1, weight_decay=decay, velocity_std=0.0)
    state = optimizer.init(w)
    for rate in (0.5, 0.25, 0.0):
        updates, state = jax.jit(optimizer.update)(jnp.zeros(4), state, w)
        # one rounding each of λ, η and two products
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


@pytest.mark.parametrize(("dtype", "wide"), [("float32", "float64"), ("complex64", "complex128")])
def test_the_velocity_keeps_its_dtype_beside_wider_gradients(dtype, wide):
    with jax.enable_x64(True):
        optimizer, w = gravity(), jnp.ones(3, dtype)
        state = optimizer.init(w)
        updates, after = optimizer.update(jnp.ones(3, wide), state, w)
        assert (updates.dtype, after[0].velocity.dtype) == (wide, dtype)
        same = jax.tree.map(lambda x, y: x.dtype == y.dtype, state, after)
        assert all(jax.tree.leaves(same))  # so lax.scan can carry it


def test_velocity_dtype_applies_to_real_leaves_and_must_be_floating():
    state = gravity(velocity_dtype=jnp.bfloat16).init({"c": jnp.ones(3, jnp.complex64)})
    assert state[0].velocity["c"].dtype == jnp.complex64
    for bad in (jnp.int32, "foo", 3):
        with pytest.raises(ValueError, match=r"velocity_dtype must be a floating .*, got"):
            gravity(velocity_dtype=bad)


@pytest.mark.filterwarnings("error")
def test_a_float64_velocity_is_float32_without_x64():
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


def test_a_float64_velocity_has_float64_coefficients_under_jit():
    with jax.enable_x64(True):
        g = jnp.asarray(np.random.default_rng(9).normal(size=30), jnp.float32)
        transform = scale_by_gravity(velocity_dtype=jnp.float64)
        state = transform.init(g)._replace(count=jnp.asarray(4, jnp.int32))
        expected = gravity_core.update(np.asarray(g), np.asarray(state.velocity), 5)
        got = jax.jit(transform.update)(g, state)[1].velocity
        size = np.abs(state.velocity).max() + np.abs(g).max()  # ζ does not exceed max|G|
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


def test_a_traced_seed_must_be_an_integer():
    with pytest.raises(ValueError, match=r"seed must be an integer in .*got dtype float32"):
        jax.jit(lambda seed: gravity(seed=seed).init(jnp.ones(2)))(1.0)


NUMBERS = ("learning_rate", "alpha", "beta", "weight_decay", "velocity_std", "seed", "first_step")


@pytest.mark.parametrize("shape", [(1,), (2,)])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_traced_number_must_be_a_scalar(name, shape):
    w = jnp.ones(2)  # two numbers would broadcast with it

    def step(number):
        optimizer = gravity(**{name: number})
        return optimizer.update(w, optimizer.init(w), w)[0]

    numbers = jnp.ones(shape, jnp.int32 if name in ("seed", "first_step") else jnp.float32)
    with pytest.raises(ValueError, match=rf"^{name} must be a scalar, got shape \({shape[0]},\)"):
        jax.jit(step)(numbers)
    assert jax.vmap(step)(numbers).shape == (*shape, 2)  # each is a scalar there


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_v0_of_every_dtype_equals_the_reference(dtype):
    w = jnp.ones((5, 3), dtype)
    got = np.asarray(gravity(seed=2**63 + 1).init([jnp.ones(2), w])[0].velocity[1])
    expected = initial_velocity(w.shape, got.dtype, std=0.01 / 0.1, seed=2**63 + 1, index=1)
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "value",
    [jnp.asarray(True), jnp.asarray(0.1j), jnp.asarray(0.1, jnp.float8_e4m3fn), np.asarray(True)],
    ids=repr,
)
@pytest.mark.parametrize("name", ["learning_rate", "alpha", "beta", "velocity_std"])
def test_arrays_of_non_real_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
        gravity(**{name: value})
    assert str(caught.value).endswith(f", got {value!r}")


def test_a_schedule_of_non_real_values_is_refused():
    for value in (jnp.asarray(True), jnp.asarray(0.1j)):
        with pytest.raises(ValueError, match=r"^learning_rate must be a .*, got Array"):
            gravity(lambda count, value=value: value)


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        gravity(**arguments)
