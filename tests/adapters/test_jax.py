"""gravity_jax.gravity as an optax transformation: training, state, arguments, errors."""

import pickle

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

import gravity_core  # noqa: E402
from gravity_core.conformance.digits import digits_task  # noqa: E402
from gravity_jax import ScaleByGravityState, gravity, scale_by_gravity  # noqa: E402
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
    assert memory.temp_size_in_bytes < 2**24 // 4


def test_resumes_bit_for_bit_from_a_pickled_state():
    optimizer, params = gravity(seed=3), tree(0)
    params, state = run(optimizer, params, optimizer.init(params), range(1, 4), jax.jit)
    kept = pickle.loads(pickle.dumps((params, state)))
    whole = run(optimizer, params, state, range(4, 7), jax.jit)
    assert_same(run(gravity(seed=99), *kept, range(4, 7), jax.jit), whole)


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
    state = optimizer.init({"w": jnp.ones(4)})
    assert not state[0].velocity["w"].any()
    traced = jax.jit(lambda lr: gravity(lr).init({"w": jnp.ones(4)}))(0.0)  # silent, and finite
    assert not traced[0].velocity["w"].any()


def test_weight_decay_is_decoupled_and_masked():
    params = {"w": jnp.full(4, 2.0), "b": jnp.full(4, 2.0)}
    grads = jax.tree.map(jnp.zeros_like, params)
    optimizer = gravity(0.1, weight_decay=0.5, mask={"w": True, "b": False}, velocity_std=0.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # −l λ W, of which each factor and the product is rounded once
    assert np.allclose(updates["w"], -0.1 * 0.5 * 2.0, rtol=4 * 2.0**-24, atol=0)
    assert not updates["b"].any()


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
    with pytest.raises(ValueError, match="velocity_dtype must be a floating dtype or None, got"):
        gravity(velocity_dtype=jnp.int32)


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


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        gravity(**arguments)
