"""gravity_tf.Gravity as any Keras optimizer, on the backend that Keras runs on.

`test_keras_backends.py` runs the tests of any backend on the others.
"""

import re
import warnings

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from keras import ops  # noqa: E402

import gravity_core  # noqa: E402
from gravity_conformance.parity.digits import digits_task, loss_and_gradients  # noqa: E402
from gravity_core import ErrorBound, initial_velocity  # noqa: E402
from gravity_tf import Gravity  # noqa: E402
from tests.support.arguments import BAD  # noqa: E402
from tests.support.backends import numpy_dtype  # noqa: E402
from tests.support.keras_helpers import (  # noqa: E402
    BOUNDED,
    SHAPES,
    arrays,
    assert_same,
    expected_verdicts,
    fit,
    graded,
    make_variables,
    perceptron,
    run,
    to_numpy,
    velocities,
)

BACKEND = keras.backend.backend()
AGREES = expected_verdicts()


@pytest.fixture(scope="module")
def task():
    return digits_task("float32", seed=0, steps=45, options={})


# The algorithm


@pytest.mark.parametrize("options", [{}, {"first_step": 0, "beta": 1.0, "seed": 2**40 + 1}])
def test_gives_the_steps_of_the_reference(options):
    result = graded(Gravity(**options), [arrays(n) for n in range(1, 6)], **options)
    assert result.v0_identical
    assert result.verdict in AGREES, result.first_divergence


@pytest.mark.parametrize(
    "given", [{}, {"weight_decay": 0.3}, {"learning_rate": lambda: 0.3}], ids=" ".join
)
def test_float64(given):
    """float32 rounds 0.3, with an error far outside the bound of float64."""
    if BACKEND == "jax" and ops.convert_to_tensor(np.ones(1)).dtype != "float64":
        pytest.skip("JAX has float64 with JAX_ENABLE_X64 only")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")  # Keras keeps the learning rate in it
    try:
        optimizer = Gravity(**given)
    finally:
        keras.config.set_floatx(before)
    gradients = [arrays(n, "float64") for n in range(1, 4)]
    options = {name: value() if callable(value) else value for name, value in given.items()}
    result = graded(optimizer, gradients, weights=arrays(0, "float64"), **options)
    assert result.v0_identical
    verdicts = BOUNDED if "weight_decay" in given else AGREES
    assert result.verdict in verdicts, result.first_divergence


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_variables(dtype):
    kind = numpy_dtype(dtype)
    variables = [keras.Variable(w, dtype=dtype) for w in arrays(0)]
    optimizer = Gravity()
    optimizer.build(variables)
    weights = [w.astype(kind) for w in arrays(0)]
    reference = gravity_core.Gravity()
    for number in range(1, 4):
        gradients = arrays(number)
        optimizer.apply([ops.cast(ops.convert_to_tensor(g), dtype) for g in gradients])
        reference.step(weights, [g.astype(kind) for g in gradients])
    assert all(keras.backend.standardize_dtype(v.dtype) == dtype for v in velocities(optimizer))
    got = [np.asarray(ops.convert_to_numpy(ops.cast(v, "float32"))) for v in variables]
    eps = 2.0**-10 if dtype == "float16" else 2.0**-7
    for x, y in zip(got, weights, strict=True):
        y = y.astype(np.float32)
        if BACKEND == "tensorflow":
            assert np.array_equal(x, y)
        else:  # float32 results that differ may be rounded apart: V and W, three times
            assert (np.abs(x - y) <= 6 * eps * (1 + np.abs(y))).all()


def test_first_step_0_gives_the_formula_of_the_published_runs(task):
    """The original Keras code counts t from 0; this is its formula as in the paper."""
    lr, alpha, beta = 0.1, 0.01, 0.9
    optimizer = Gravity(lr, alpha, beta, first_step=0)
    variables = make_variables(task.weights)
    optimizer.build(variables)
    weights = [w.astype(np.float64) for w in task.weights]
    velocity = [v.astype(np.float64) for v in to_numpy(velocities(optimizer))]
    bounds = [ErrorBound(w) for w in task.weights]
    for t, batch in enumerate(task.epochs[0]):
        half = [w.astype(np.float32) for w in weights]
        _, gradients = loss_and_gradients(half, task.x_train[batch], task.y_train[batch])
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients])
        beta_hat = (beta * t + 1) / (t + 2)
        assert t > 0 or beta_hat == 0.5
        for i, gradient in enumerate(gradients):
            before = velocity[i], weights[i]
            g = gradient.astype(np.float64)
            m = 1 / np.abs(g).max()
            zeta = g / (1 + (g / m) ** 2)
            velocity[i] = beta_hat * velocity[i] + (1 - beta_hat) * zeta
            weights[i] = weights[i] - lr * velocity[i]
            bounds[i].step(
                gradient, before[0], velocity[i], before[1], weights[i], t=t, learning_rate=lr
            )
    for got, w, bound in zip(to_numpy(variables), weights, bounds, strict=True):
        assert (np.abs(got - w) <= bound.w).all()
        assert bound.w.max() < 1e-3  # the other convention exceeds this at the first step


def test_the_two_conventions_differ():
    a, b = (run(Gravity(first_step=n), range(1, 2)) for n in (0, 1))
    assert np.abs(to_numpy(a)[0] - to_numpy(b)[0]).max() > 1e-3


def test_forms_of_the_learning_rate_agree():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.3, 0.0])
    expected = run(Gravity(0.3))
    variable = keras.Variable(0.3)
    for rate in (schedule, lambda: 0.3, lambda: variable, np.float32(0.3)):
        assert_same(run(Gravity(rate)), expected)
    assigned = Gravity(0.5, velocity_std=0.01 / 0.3)
    assigned.learning_rate = 0.3
    assert_same(run(assigned), expected)
    assert Gravity(1).velocity_std == 0.01


@pytest.mark.parametrize("rate", [0.3, 0.07])  # float32 rounds both
def test_sigma_comes_from_the_first_value_of_a_schedule(rate):
    schedule = keras.optimizers.schedules.CosineDecay(rate, 100)
    assert Gravity(schedule).velocity_std == 0.01 / rate
    assert Gravity(lambda: rate).velocity_std == 0.01 / rate


class Custom(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that needs the step as a tensor of the dtype of Keras's counter."""

    def __call__(self, step):
        assert keras.backend.standardize_dtype(step.dtype).startswith("int")
        return 0.5 / (1.0 + ops.cast(step, "float32"))


def test_a_schedule_receives_the_step_as_a_tensor():
    optimizer = Gravity(Custom())
    assert optimizer.velocity_std == 0.01 / 0.5
    first_rates = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.5, 0.25, 0.5 / 3])
    assert_same(run(optimizer), run(Gravity(first_rates)))


def test_a_bad_number_is_not_assigned():
    optimizer = Gravity(0.5)
    for bad in (-1.0, float("nan"), np.float32("inf"), True):
        with pytest.raises(ValueError, match=r"learning_rate must be a finite number >= 0, got"):
            optimizer.learning_rate = bad
    assert float(optimizer.learning_rate) == 0.5
    optimizer.learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.25, 0.0])
    assert float(optimizer.learning_rate) == 0.25
    with pytest.raises(TypeError, match="not settable"):
        optimizer.learning_rate = 0.1
    optimizer.learning_rate = lambda: 0.75
    assert optimizer.learning_rate == 0.75


def test_variables_are_refused_as_learning_rates():
    """A variable would be read once, and later changes would be lost."""
    for rate in (keras.Variable(0.1, trainable=False), ops.convert_to_tensor(0.1)):
        with pytest.raises(ValueError, match="`learning_rate` should be float"):
            Gravity(rate)


def test_an_array_of_no_dimension_is_a_number():
    assert Gravity(np.asarray(np.float32(0.3))).velocity_std == 0.01 / 0.3


def test_a_schedule_is_followed_step_by_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.5, 0.25, 0.0])
    variables = make_variables(arrays(0))
    optimizer, points = Gravity(schedule), []
    optimizer.build(variables)
    for number in range(1, 5):
        before = to_numpy(variables)[0]
        optimizer.apply([ops.convert_to_tensor(g) for g in arrays(number)])
        move = before - to_numpy(variables)[0]
        points.append((move, to_numpy(velocities(optimizer))[0]))
    for (move, v), rate in zip(points, [0.5, 0.25, 0.0, 0.0], strict=True):
        # a power of two times V is exact; the subtractions from |W| ≤ 8 round
        assert np.allclose(move, rate * v, rtol=0, atol=2 * 8 * 2.0**-24)


def test_a_zero_learning_rate_starts_from_rest_and_warns_once():
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 0.1)
    for rate in (0.0, warm_up, lambda: 0.0):
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning)
            optimizer = Gravity(rate)
        (warning,) = record
        assert "learning_rate is 0 at construction" in str(warning.message)
        assert warning.filename == __file__
        optimizer.build(make_variables(arrays(0)))
        assert not any(v.any() for v in to_numpy(velocities(optimizer)))
    silent = Gravity(warm_up, velocity_std=0.5)
    silent.build(make_variables(arrays(0)))
    assert np.array_equal(to_numpy(velocities(silent))[0], initial_velocity((3, 4), std=0.5))


def test_a_step_with_a_zero_learning_rate_moves_nothing():
    optimizer = Gravity(0.1)
    optimizer.learning_rate = 0.0
    assert_same(run(optimizer), arrays(0))
    assert all(np.isfinite(v).all() for v in to_numpy(velocities(optimizer)))


def test_v0_uses_the_first_learning_rate():
    optimizer = Gravity(0.1)
    optimizer.learning_rate = 1e-6
    optimizer.build(make_variables(arrays(0)))
    expected = initial_velocity((70_000,), std=0.01 / 0.1, index=4)
    assert np.array_equal(to_numpy(velocities(optimizer))[4], expected)


# Training


def test_trains_with_callbacks_and_resumes(task, tmp_path):
    def callbacks():
        return [
            keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.05),
            keras.callbacks.EarlyStopping(patience=8, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
        ]

    model = perceptron(Gravity(0.3))
    validation = {"validation_data": (task.x_test, task.y_test)}
    history = fit(model, task, 12, callbacks=callbacks(), **validation).history
    assert history["val_accuracy"][-1] > 0.9
    assert history["learning_rate"][-1] < history["learning_rate"][0]
    best = keras.models.load_model(tmp_path / "best.keras")
    loss, _ = best.evaluate(task.x_test, task.y_test, verbose=0)
    # Two means of positive numbers: sums in batches of 32, then a product and a sum per batch.
    batches = -(-len(task.y_test) // 32)
    rounding = 2 * (32 + 2 * batches + 2) * 2.0**-24
    assert loss == pytest.approx(min(history["val_loss"]), rel=rounding)
    assert best.optimizer.velocity_std == 0.01 / 0.3
    resumed = fit(best, task, 2, callbacks=callbacks(), **validation).history
    assert resumed["val_accuracy"][-1] > 0.9


# Missing gradients, and errors


def test_a_missing_gradient_leaves_its_variable_alone():
    variables = make_variables([np.ones(3, np.float32), np.ones(3, np.float32)])
    optimizer = Gravity()
    optimizer.build(variables)
    before = to_numpy(velocities(optimizer))
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, ops.ones(3)], variables)
    after = to_numpy(velocities(optimizer))
    assert np.array_equal(after[0], before[0])
    assert not np.array_equal(after[1], before[1])
    assert_same(variables[:1], [np.ones(3, np.float32)])


REAL, COMPLEX = np.float32, np.complex64
UNFIT = [
    *(
        ((shape, REAL), rf"have .* shape \(3,\), got {re.escape(str(shape))}")
        for shape in [(1,), (), (4,), (3, 1)]
    ),
    (((3,), COMPLEX), "be real .* got complex64"),
]


@pytest.mark.parametrize(("kind", "message"), UNFIT, ids=lambda x: str(x)[:12])
def test_a_gradient_that_does_not_fit_is_refused(kind, message):
    variables = make_variables([np.ones(3, np.float32), np.ones(3, np.float32)])
    optimizer = Gravity()
    optimizer.build(variables)
    everything = [*variables, *optimizer.variables]
    before = to_numpy(everything)
    with pytest.raises(ValueError, match=f"gradient of w1.* must {message}"):
        optimizer.apply([ops.ones(3), ops.convert_to_tensor(np.ones(*kind))])
    assert_same(everything, before)


@pytest.mark.parametrize("dtype", ["int32", "bool", "float8_e4m3fn"])
def test_a_variable_that_cannot_move_is_refused(dtype):
    if keras.backend.backend() == "torch" and not dtype.startswith("float"):
        pytest.skip("torch has no trainable variables of these dtypes")
    (variable,) = make_variables([np.ones(3, np.float32)])
    other = keras.Variable(np.ones(3), dtype=dtype, name="other")
    optimizer = Gravity()
    with pytest.raises(TypeError, match=f"other.* must be floating .* got {dtype}"):
        optimizer.apply([ops.ones(3), ops.ones(3)], [variable, other])
    assert not optimizer.built
    assert_same([variable], [np.ones(3, np.float32)])


def test_variables_of_another_model_are_refused():
    optimizer = Gravity()
    known = run(optimizer)
    unknown = make_variables(arrays(0))
    everything = [*known, *unknown, *optimizer.variables]
    before = to_numpy(everything)
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([ops.convert_to_tensor(g) for g in arrays(1)], unknown)
    assert_same(everything, before)


def test_shapes_do_not_change():
    assert [tuple(v.shape) for v in run(Gravity())] == SHAPES


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Gravity(**arguments)


NO_NUMBERS = [np.asarray(True), np.bool_(True), np.complex64(0.1), np.asarray(0.1j)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_arrays_of_non_real_values_are_refused(value):
    optimizer = Gravity(0.5)
    for name in ("learning_rate", "alpha", "beta", "velocity_std", "weight_decay"):
        with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
            Gravity(**{name: value})
        assert str(caught.value).endswith(f", got {value!r}")
    with pytest.raises(ValueError, match=r"^learning_rate must be a finite number >= 0, got"):
        Gravity(lambda: ops.convert_to_tensor(value))
    with pytest.raises(ValueError, match=r"^learning_rate must be a finite number >= 0, got"):
        optimizer.learning_rate = value
    assert float(optimizer.learning_rate) == 0.5


SMALL = "learning_rate must not be so small that alpha / learning_rate overflows float16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 1e-7}, SMALL + " .* got 1e-07$"),
        ({"learning_rate": lambda: 1e-7}, SMALL + " .* got 1e-07$"),
        ({"velocity_std": 2e4}, r"^velocity_std must be in \[0, 15100\] for V_0 .* got 20000.0$"),
        # Equal to alpha / learning_rate, but given.
        ({"learning_rate": 5e-7, "velocity_std": 0.01 / 5e-7}, "^velocity_std must be in "),
    ],
)
def test_an_overflowing_v0_is_refused(arguments, message):
    optimizer = Gravity(**arguments)
    single = [keras.Variable(w, dtype="float32") for w in arrays(0)]
    half = keras.Variable(np.ones(3), dtype="float16")
    before = to_numpy([*single, half, *optimizer.variables])
    with pytest.raises(ValueError, match=message):
        optimizer.build([*single, half])
    gradients = [ops.convert_to_tensor(g) for g in arrays(1)]
    with pytest.raises(ValueError, match=message):
        optimizer.apply([*gradients, ops.ones(3, "float16")], [*single, half])
    assert not optimizer.built
    assert_same([*single, half, *optimizer.variables], before)
    other = keras.Variable(np.ones(1000), dtype="bfloat16")
    optimizer.build([*single, other])
    assert all(np.isfinite(v.astype(float)).all() for v in to_numpy(velocities(optimizer)))


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_bad_values_of_a_schedule(rate):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [rate, 0.1])
    for bad in (schedule, lambda: rate):
        with pytest.raises(ValueError, match=f"learning_rate must be a .* got {rate}"):
            Gravity(bad)


def test_an_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="momentum"):
        Gravity(momentum=0.9)
