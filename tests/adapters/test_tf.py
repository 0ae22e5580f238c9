"""gravity_tf.Gravity with features of TensorFlow: graphs, tapes, XLA, sparse gradients.

The modules `test_keras*.py` test the features of any backend.
"""

import subprocess
import sys

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="gravity_tf needs tensorflow")
keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from gravity_conformance.drive.driven import as_backend  # noqa: E402
from gravity_conformance.parity.grading import grade  # noqa: E402
from gravity_conformance.protocol import Replay, Step  # noqa: E402
from gravity_core import initial_velocity  # noqa: E402
from gravity_tf import Gravity, backend  # noqa: E402
from tests.support.keras_helpers import (  # noqa: E402
    SHAPES,
    arrays,
    assert_same,
    graded,
    keras_without,
    make_variables,
    to_numpy,
    velocities,
)
from tests.support.limits import HANG  # noqa: E402

MODES = ("eager", "function", "xla")
# XLA contracts products and sums, so its bits differ from the reference's.
VERDICTS = {
    "eager": {"exact"},
    "function": {"exact"},
    "xla": {"exact", "bounded"},
}


def compiled(function, mode):
    if mode == "eager":
        return function
    return tf.function(function, jit_compile=mode == "xla", autograph=False)


def in_mode(mode):
    """Return the `wrap` of `graded` that converts gradients to tensors before the compiled step."""

    def wrap(apply):
        step = compiled(apply, mode)
        return lambda gradients: step([tf.constant(g) for g in gradients])

    return wrap


@pytest.fixture
def floatx():
    before = keras.config.floatx()
    yield keras.config.set_floatx
    keras.config.set_floatx(before)


# The two implementations of the step


class ByOps(Gravity):
    """Uses the path of the other backends."""

    _step_by_kernel = Gravity._step_by_ops


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [Gravity, ByOps])
def test_the_kernel_and_keras_ops_give_the_steps_of_the_reference(kind, mode, dtype, floatx):
    floatx(dtype)  # Keras keeps the learning rate in it
    rng = np.random.default_rng(1)
    shapes = [
        *SHAPES,
        (4, 64),
        (4, 63),
        (1, 1),
        (100, 3, 1, 1),
    ]  # every implementation of the maximum
    gradients = [
        [np.asarray(rng.normal(size=s) * 10.0**e, dtype) for s in shapes] for e in (0, -3, 3, 1)
    ]
    weights = arrays(0, dtype, shapes)
    result = graded(kind(seed=3), gradients, weights=weights, wrap=in_mode(mode), seed=3)
    assert result.v0_identical
    assert result.verdict in VERDICTS[mode], result.first_divergence


@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize(
    "given", [{"weight_decay": 0.3}, {"learning_rate": lambda: 0.3}], ids=" ".join
)
def test_numbers_reach_float64_variables_unrounded(given, mode, floatx):
    """Keras calls tf.cast, which converts a Python float through float32."""
    floatx("float64")
    gradients = [arrays(n, "float64") for n in range(1, 5)]
    options = {name: value() if callable(value) else value for name, value in given.items()}
    result = graded(
        Gravity(**given), gradients, weights=arrays(0, "float64"), wrap=in_mode(mode), **options
    )
    assert result.verdict in {"exact", "bounded"}, result.first_divergence


def test_float32_and_float64_use_the_kernel(monkeypatch):
    taken = []
    monkeypatch.setattr(tf.raw_ops, "ResourceApplyMomentum", lambda **_: taken.append(1))
    for dtype, times in (("float32", 1), ("float64", 1), ("float16", 0), ("bfloat16", 0)):
        taken.clear()
        Gravity().apply([tf.ones(3, dtype)], [keras.Variable(np.ones(3), dtype=dtype)])
        assert len(taken) == times


@pytest.mark.parametrize("mode", [pytest.param("eager", marks=pytest.mark.slow), *MODES[1:]])
def test_a_thousand_steps_stay_inside_the_bound(mode):
    rng = np.random.default_rng(2)
    weights = [np.asarray(rng.normal(size=s), np.float32) for s in ((5, 3), (7,), ())]
    gradients = [
        [
            np.asarray(rng.normal(size=w.shape) * 10 ** rng.uniform(-3, 1), np.float32)
            for w in weights
        ]
        for _ in range(1000)
    ]
    replay = Replay(weights, gradients)
    result = grade(replay, as_backend(backend).replay(replay, mode))
    assert len(result.bound) == 1000
    assert result.verdict in VERDICTS[mode], result.first_divergence


# Graphs


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_of_unknown_shape_in_a_graph(dtype, jit_compile):
    def trained(spec):
        variables = [keras.Variable(w, dtype=dtype) for w in arrays(0)[:1]]
        optimizer = Gravity()
        optimizer.build(variables)

        @tf.function(input_signature=[spec], jit_compile=jit_compile, autograph=False)
        def step(gradient):
            optimizer.apply([gradient])

        for number in range(1, 4):
            step(tf.constant(arrays(number)[0], dtype))
        with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError)):
            step(tf.ones(12, dtype))
        return variables

    expected = trained(tf.TensorSpec((3, 4), dtype))
    for shape in (None, (None, 4), (None, None)):
        assert_same(trained(tf.TensorSpec(shape, dtype)), expected)


def test_lists_of_different_lengths():
    """As in every optimizer, they are refused without variables; else the shorter list counts."""
    rows, values = tf.constant([1, 4, 1]), tf.constant(arrays(1, shapes=[(3, 3)])[0])
    gradient = tf.IndexedSlices(values, rows, tf.constant([6, 3]))
    shapes = [(6, 3), (2,)]

    def trained(gradients):
        variables, optimizer = make_variables(arrays(0, shapes=shapes)), Gravity()
        optimizer.build(variables)
        with pytest.raises(ValueError, match="gradients"):
            optimizer.apply([*gradients, *[tf.ones(2)] * (3 - len(gradients))])
        assert_same(variables, arrays(0, shapes=shapes))
        optimizer.apply(gradients, variables)
        return variables

    fewer, dense = trained([gradient]), trained([tf.convert_to_tensor(gradient)])
    assert_same(fewer, dense)
    assert_same(fewer[1:], arrays(0, shapes=shapes)[1:])
    more = trained([gradient, tf.zeros(2), tf.ones(7)])
    assert_same(more[:1], dense[:1])


def test_building_inside_a_function_draws_v0_outside_the_graph(monkeypatch):
    """Inside the graph V₀ would be a constant, and the constants of a graph are limited to 2 GB."""
    eager = []

    def draw(*args, **options):
        eager.append(tf.executing_eagerly())
        return initial_velocity(*args, **options)

    monkeypatch.setattr("gravity_tf.optimizer.initial_velocity", draw)
    variable = keras.Variable(tf.zeros((1024, 1024)))
    optimizer = Gravity(seed=8)

    @tf.function
    def step(gradient):
        optimizer.apply([gradient], [variable])

    graph = step.get_concrete_function(tf.TensorSpec((1024, 1024))).graph
    assert eager == [True]
    assert graph.as_graph_def().ByteSize() < 2**17  # V₀ has 2**22
    (velocity,) = to_numpy(velocities(optimizer))
    assert np.array_equal(velocity, initial_velocity((1024, 1024), std=0.01 / 0.1, seed=8))


@pytest.mark.parametrize("mode", ["function", "xla"])
def test_building_inside_a_function_gives_the_same_steps(mode):

    def trained(build):
        optimizer, variables = Gravity(0.3), make_variables(arrays(0))
        if build:
            optimizer.build(variables)
        step = compiled(lambda gradients: optimizer.apply(gradients, variables), mode)
        for number in range(1, 4):
            step([tf.constant(g) for g in arrays(number)])
        return variables

    assert_same(trained(build=True), trained(build=False))


@pytest.mark.parametrize("missing", [(), ("_get_variable_index",)], ids=str)
def test_variables_of_tensorflow(missing, monkeypatch):
    """Unlike a variable of Keras, a tf.Variable has a handle and no path."""
    for name in missing:
        keras_without(name, monkeypatch.delattr)
    weights = arrays(0)
    plain, wrapped = [tf.Variable(w) for w in weights], make_variables(weights)
    for variables in (plain, wrapped):
        optimizer = Gravity()
        for number in range(1, 3):
            optimizer.apply_gradients(zip(map(tf.constant, arrays(number)), variables, strict=True))
    assert_same(plain, wrapped)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wraps", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_a_loop_with_a_tape(mode, wraps):
    """The gradient of the linear loss equals its coefficients in every mode."""
    weights, optimizer = arrays(0), Gravity(0.1)
    variables, outer = make_variables(weights), wraps(optimizer)

    def step(coefficients):
        with tf.GradientTape() as tape:
            pairs = zip(variables, coefficients, strict=True)
            loss = tf.add_n([tf.reduce_sum(w * c) for w, c in pairs])
            loss = outer.scale_loss(loss)
        outer.apply(tape.gradient(loss, variables), variables)

    step = compiled(step, mode)
    gradients = [arrays(n) for n in range(1, 6)]

    def states():
        outer.build(variables)
        yield Step(to_numpy(velocities(optimizer)), to_numpy(variables))
        for g in gradients:
            step([tf.constant(x) for x in g])
            yield Step(to_numpy(velocities(optimizer)), to_numpy(variables))

    result = grade(Replay(weights, gradients), states())
    assert result.verdict in VERDICTS[mode], result.first_divergence
    if mode != "eager":
        assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_changing_the_rate_does_not_retrace(jit_compile):
    optimizer, (variable,) = Gravity(0.1), make_variables([np.ones(3, np.float32)])
    optimizer.build([variable])
    step = tf.function(lambda g: optimizer.apply([g], [variable]), jit_compile=jit_compile)
    for rate in (0.1, 0.05, 0.0):
        optimizer.learning_rate = rate
        step(tf.ones(3))
    assert step.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("mode", MODES)
def test_fit_steps_like_the_reference(mode):
    """The loss is the output for a batch of one, so the gradient is the input."""
    rows = np.concatenate([a.reshape(1, -1) for a in (arrays(n)[0] for n in range(1, 9))])
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(
        optimizer=Gravity(seed=6),
        loss=lambda y, output: keras.ops.mean(output, axis=-1),
        run_eagerly=mode == "eager",
        jit_compile=mode == "xla",
    )
    weights = [w.copy() for w in model.get_weights()]
    steps = [
        Step([initial_velocity((12, 1), std=0.01 / 0.1, seed=6)], weights)
    ]  # V₀: the optimizer is not yet built

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(Step(to_numpy(velocities(model.optimizer)), model.get_weights()))

    model.fit(
        rows, np.zeros(8), batch_size=1, shuffle=False, verbose=0, callbacks=[Record()], epochs=1
    )
    gradients = [[row.reshape(12, 1)] for row in rows]
    result = grade(Replay(weights, gradients, {"seed": 6}), iter(steps))
    assert result.verdict in VERDICTS[mode], result.first_divergence


@pytest.mark.parametrize("mode", ["function", "xla"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_variables_step_alike_in_every_mode(dtype, mode):
    def trained(mode):
        optimizer, variables = Gravity(), [keras.Variable(w, dtype=dtype) for w in arrays(0)]
        optimizer.build(variables)
        step = compiled(optimizer.apply, mode)
        for number in range(1, 4):
            step([tf.constant(g, dtype) for g in arrays(number)])
        return [np.asarray(v.numpy(), np.float32) for v in variables]

    eps = 2.0**-10 if dtype == "float16" else 2.0**-7
    for got, expected in zip(trained(mode), trained("eager"), strict=True):
        if mode == "function":
            assert np.array_equal(got, expected)
        else:  # float32 results that differ may be rounded apart: V and W, three times
            assert (np.abs(got - expected) <= 6 * eps * (1 + np.abs(expected))).all()


@pytest.mark.parametrize("mode", ["function", "xla"])
def test_accumulated_gradients_count_one_step_per_update(mode):
    fed = [arrays(n) for n in range(1, 9)]
    means = [[(a + b) / 2 for a, b in zip(*fed[n : n + 2], strict=True)] for n in (0, 2, 4, 6)]
    optimizer = Gravity(gradient_accumulation_steps=2, first_step=0)
    result = graded(optimizer, fed, means, wrap=in_mode(mode), first_step=0)
    assert result.verdict in VERDICTS[mode], result.first_divergence


# Sparse gradients


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("known", [True, False, "tuple"])
def test_indexed_slices_equal_the_dense_gradient(mode, known):
    table = arrays(0, shapes=[(6, 3)])
    rows = tf.constant([1, 4, 1])  # the gradients of the repeated row are summed before the maximum
    (values,) = arrays(1, shapes=[(3, 3)])
    dense = np.zeros((6, 3), np.float32)
    np.add.at(dense, [1, 4, 1], values)
    assert np.abs(dense).max() > np.abs(values).max()
    shape = {True: tf.constant([6, 3]), False: None, "tuple": (6, 3)}[known]

    def wrap(apply):
        optimizer_apply = compiled(
            lambda p: apply([tf.IndexedSlices(p, rows, dense_shape=shape)]), mode
        )
        return lambda gradients: optimizer_apply(tf.constant(values))

    result = graded(Gravity(), [[dense]] * 3, weights=table, wrap=wrap)
    assert result.verdict in VERDICTS[mode], result.first_divergence


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"clipnorm": 0.5},
        {"global_clipnorm": 0.5},
        {"clipvalue": 0.5},
        {"loss_scale_factor": 8.0},
        {"gradient_accumulation_steps": 2},
        {"weight_decay": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_indexed_slices_equal_the_dense_gradient_with_every_option(options, mode):
    rows, (values,) = tf.constant([1, 4, 1]), arrays(1, shapes=[(3, 3)])

    def trained(make_gradient):
        (variable,) = make_variables(arrays(0, shapes=[(6, 3)]))
        optimizer = Gravity(**options)
        optimizer.build([variable])
        step = compiled(lambda values: optimizer.apply([make_gradient(values)]), mode)
        for scale in (1.0, 2.0, 0.5, 1.0):
            step(tf.constant(values * np.float32(scale)))
        return [variable]

    shape = tf.constant([6, 3])
    sparse = trained(lambda values: tf.IndexedSlices(values, rows, dense_shape=shape))
    assert_same(sparse, trained(lambda values: tf.math.unsorted_segment_sum(values, rows, 6)))


@pytest.mark.parametrize("mode", MODES)
def test_an_embedding_layer(mode):
    (table,) = weights = arrays(0, shapes=[(6, 4)])
    layer = keras.layers.Embedding(6, 4)
    layer.build()
    layer.set_weights(weights)
    optimizer = Gravity()
    optimizer.build(layer.trainable_variables)

    def step(indices, scale):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(indices) * scale)
        (gradient,) = tape.gradient(loss, layer.trainable_variables)
        assert isinstance(gradient, tf.IndexedSlices)
        optimizer.apply([gradient])

    step = compiled(step, mode)
    batches = [np.asarray(rows) for rows in ([0, 3, 0], [5, 5, 5], [1, 2, 4])]
    scales = arrays(1, shapes=[(3, 4)] * 3)
    dense = [np.zeros_like(table) for _ in batches]
    for gradient, rows, scale in zip(dense, batches, scales, strict=True):
        np.add.at(gradient, rows, scale)

    def states():
        yield Step(to_numpy(velocities(optimizer)), layer.get_weights())
        for rows, scale in zip(batches, scales, strict=True):
            step(tf.constant(rows), tf.constant(scale))
            yield Step(to_numpy(velocities(optimizer)), layer.get_weights())

    result = grade(Replay(weights, [[g] for g in dense]), states())
    assert result.verdict in VERDICTS[mode], result.first_divergence


# Gradients that are not finite


@pytest.mark.parametrize("kind", [Gravity, ByOps])
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_poisons_its_tensor_except_under_xla(mode, kind):
    """Under XLA on the CPU, a NaN poisons only its element, at every size."""
    for shape in ((3,), (5000,), (5, 3), (40, 40, 3), (64, 64)):
        gradient = np.ones(shape, np.float32)
        gradient[..., 2] = np.nan
        variable = keras.Variable(tf.ones(shape))
        optimizer = kind()
        optimizer.build([variable])
        compiled(lambda g, o=optimizer: o.apply([g]), mode)(tf.constant(gradient))
        bad = np.isnan(variable.numpy())
        assert np.array_equal(bad, np.isnan(gradient)) if mode == "xla" else bad.all()


# Checkpoints


def small_model(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile(optimizer=Gravity(seed=seed), loss="mse")
    return model


X, Y = np.eye(8, dtype=np.float32), np.arange(8.0, dtype=np.float32)


def train(model, epochs=2):
    model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)


@pytest.mark.parametrize("built", [True, False])
def test_resumes_from_a_tensorflow_checkpoint(built, tmp_path):
    model = small_model(1)
    train(model)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "c"))
    resumed = small_model(2)
    if built:
        resumed.optimizer.build(resumed.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer)
    status = checkpoint.read(path)
    if built:
        status.assert_consumed()
    train(model)
    train(resumed)
    assert_same(resumed.weights, model.weights)
    assert_same(resumed.optimizer.variables, model.optimizer.variables)


FRESH = """
import sys
import keras, numpy as np
import gravity_tf
model = keras.models.load_model(sys.argv[1])
assert type(model.optimizer) is gravity_tf.Gravity, type(model.optimizer)
x, y = np.eye(8, dtype=np.float32), np.arange(8.0, dtype=np.float32)
model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
np.savez(sys.argv[2], *model.get_weights())
"""


def test_a_saved_model_resumes_in_a_fresh_process(tmp_path):
    model = small_model(1)
    train(model)
    model.save(tmp_path / "m.keras")
    command = [sys.executable, "-c", FRESH, str(tmp_path / "m.keras"), str(tmp_path / "w.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    train(model)
    with np.load(tmp_path / "w.npz") as weights:
        assert_same(list(weights.values()), model.get_weights())
