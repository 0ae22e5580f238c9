"""gravity_tf.Gravity as a Keras optimizer: training, state, arguments, errors."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="gravity_tf needs tensorflow")
keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

import gravity_core  # noqa: E402
from gravity_core.conformance.digits import digits_task  # noqa: E402
from gravity_tf import Gravity  # noqa: E402
from tests.adapters.arguments import BAD  # noqa: E402


def perceptron(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def task():
    return digits_task("float32", seed=0, steps=45, options={})


def fit(model, task, epochs):
    return model.fit(
        task.x_train, task.y_train, batch_size=32, epochs=epochs, shuffle=False, verbose=0
    )


def variables(dtype="float32"):
    rng = np.random.default_rng(4)
    arrays = [np.asarray(rng.normal(size=s), dtype) for s in ((3, 4), (), (0,), (70_000,))]
    return arrays, [keras.Variable(a, dtype=dtype) for a in arrays]


def gradients(number, arrays):
    rng = np.random.default_rng([5, number])
    return [np.asarray(rng.normal(size=a.shape), a.dtype) for a in arrays]


def assert_same(a, b):
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_fits_the_digits(task):
    model = perceptron(Gravity(learning_rate=0.1))
    history = fit(model, task, 10).history
    assert history["loss"][-1] < history["loss"][0]
    _, accuracy = model.evaluate(task.x_test, task.y_test, verbose=0)
    assert accuracy > 0.9


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_equals_the_numpy_optimizer(dtype, compiled):
    weights, built = variables(dtype)
    optimizer = Gravity(seed=2**40 + 1)
    optimizer.build(built)
    reference = gravity_core.Gravity(seed=2**40 + 1)
    step = optimizer.apply if not compiled else tf.function(lambda g: optimizer.apply(g))
    for number in range(3):
        grads = gradients(number, weights)
        step([tf.constant(g) for g in grads])
        reference.step(weights, grads)
    assert_same([v.numpy() for v in built], weights)


def test_bfloat16_variables_train():
    variable = keras.Variable(np.ones(1000, np.float32), dtype="bfloat16")
    optimizer = Gravity()
    optimizer.apply([tf.ones(1000, tf.bfloat16)], [variable])
    assert keras.backend.standardize_dtype(optimizer.variables[-1].dtype) == "bfloat16"
    assert np.isfinite(np.asarray(variable.numpy(), np.float32)).all()


@pytest.mark.parametrize("way", ["keras file", "checkpoint", "set_weights"])
def test_resumes_bit_for_bit(way, task, tmp_path):
    model = perceptron(Gravity(learning_rate=0.1, seed=3))
    fit(model, task, 1)
    if way == "keras file":
        model.save(tmp_path / "model.keras")
        resumed = keras.models.load_model(tmp_path / "model.keras")
    else:
        resumed = perceptron(Gravity(learning_rate=0.1, seed=99))
        resumed.optimizer.build(resumed.trainable_variables)
        if way == "checkpoint":
            path = tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
            tf.train.Checkpoint(resumed).read(path).assert_consumed()
        else:
            resumed.set_weights(model.get_weights())
            store = {}
            model.optimizer.save_own_variables(store)
            resumed.optimizer.load_own_variables(store)
    fit(model, task, 1)
    fit(resumed, task, 1)
    assert_same(resumed.get_weights(), model.get_weights())
    assert int(resumed.optimizer.iterations) == 90


def test_config_round_trip():
    optimizer = Gravity(0.2, 0.03, 0.8, seed=5, first_step=0, weight_decay=0.01, clipnorm=1.0)
    clone = Gravity.from_config(optimizer.get_config())
    assert clone.get_config() == optimizer.get_config()
    assert clone.velocity_std == 0.03 / 0.2
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(restored, Gravity)
    assert restored.get_config() == optimizer.get_config()


def test_the_velocity_keeps_the_first_learning_rate():
    (_, built), optimizer = variables(), Gravity(learning_rate=0.1)
    optimizer.learning_rate = 0.0
    before = [v.numpy() for v in built]
    optimizer.apply([tf.zeros(v.shape) for v in built], built)
    assert_same([v.numpy() for v in built], before)
    assert all(np.abs(v.numpy()).max(initial=0) < 1 for v in optimizer.variables[2:])
    clone = Gravity.from_config(optimizer.get_config() | {"learning_rate": 0.5})
    assert clone.velocity_std == 0.01 / 0.1


def test_a_schedule_sets_the_first_velocity_at_its_start():
    for rate in (0.3, 0.07):  # which float32 rounds
        schedule = keras.optimizers.schedules.CosineDecay(rate, 100)
        assert Gravity(schedule).velocity_std == 0.01 / rate
        assert Gravity(lambda rate=rate: rate).velocity_std == 0.01 / rate


def test_learning_rate_zero_starts_from_rest_and_says_so_once():
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.1)
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction") as record:
        optimizer = Gravity(warm_up)
    assert len(record) == 1
    _, built = variables()
    optimizer.build(built)
    assert not any(v.numpy().any() for v in optimizer.variables[1:])


def test_embedding_gradients_equal_dense_ones():
    table = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    rows = tf.constant([1, 4, 1])  # one row twice: its gradients are summed before the maximum
    parts = tf.constant(np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32))
    results = []
    for gradient in (
        tf.IndexedSlices(parts, rows, dense_shape=tf.constant([6, 3])),
        tf.math.unsorted_segment_sum(parts, rows, 6),
    ):
        variable = keras.Variable(table)
        Gravity().apply([gradient], [variable])
        results.append(variable.numpy())
    assert_same(*results)


def test_accumulated_gradients_count_one_step_per_update():
    values = np.ones(4, np.float32)
    accumulated, plain = keras.Variable(values), keras.Variable(values)
    optimizer, reference = Gravity(gradient_accumulation_steps=2), Gravity()
    for number in range(3):
        pair = [np.full(4, 0.1 * (number + k), np.float32) for k in range(2)]
        for gradient in pair:
            optimizer.apply([tf.constant(gradient)], [accumulated])
        reference.apply([tf.constant((pair[0] + pair[1]) / 2)], [plain])
    assert_same([accumulated.numpy()], [plain.numpy()])


def test_weight_decay_comes_from_the_base_class():
    variable = keras.Variable(np.full(4, 2.0, np.float32))
    Gravity(0.1, velocity_std=0.0, weight_decay=0.5).apply([tf.zeros(4)], [variable])
    # 2 − 2 · 0.5 · 0.1: three roundings
    assert np.allclose(variable.numpy(), 1.9, rtol=3 * 2.0**-24, atol=0)


def test_velocities_are_named_after_their_variables():
    model = perceptron(Gravity())
    model.optimizer.build(model.trainable_variables)
    names = [v.path for v in model.optimizer.variables if v.path.endswith("_velocity")]
    assert len(names) == 4
    assert "kernel" in names[0]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Gravity(**arguments)
