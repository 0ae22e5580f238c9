"""Learning rates and other numbers that reach gravity_tf.Gravity after its construction."""

import importlib
import itertools
import warnings

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from keras import ops  # noqa: E402

from gravity_core import State  # noqa: E402
from gravity_tf import Gravity, export_state, import_state  # noqa: E402
from gravity_tf._tensors import known, stored_dtype  # noqa: E402
from tests.support.keras_helpers import (  # noqa: E402
    arrays,
    assert_same,
    make_variables,
    run,
    to_numpy,
)

BACKEND = keras.backend.backend()
FAR = (
    "learning_rate is 1 at the first step, but the standard deviation of V_0 was derived from "
    "0.001, its value at construction: 10; pass velocity_std=0.01 for one that fits, or construct "
    "with that learning_rate"
)


def model(optimizer):
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    made.compile(optimizer=optimizer, loss="mse")
    return made


def fit(made, **options):
    made.fit(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32), verbose=0, **options)


def test_the_check_of_a_schedule_passes_what_keras_passes():
    class Recorded(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            dtypes.append(keras.backend.standardize_dtype(step.dtype))
            return 0.1

        def get_config(self):
            return {}

    dtypes = []
    run(optimizer := Gravity(Recorded()))
    assert set(dtypes) == {stored_dtype(optimizer.iterations)}


def test_a_value_inside_a_transformation_is_not_known():
    def function(x):
        inside.append(known(x))
        return x

    inside = []
    x = ops.convert_to_tensor(np.float32([1.5, 2.5]))
    if BACKEND == "torch":
        importlib.import_module("torch").vmap(function)(x)
    elif BACKEND == "jax":
        importlib.import_module("jax").vmap(function)(x)
    else:
        importlib.import_module("tensorflow").vectorized_map(function, x)
    assert set(inside) == {None}
    assert known(x[1]) == 2.5


# Bad values


def tensors(value):
    yield ops.convert_to_tensor(value)
    yield keras.Variable(value)
    yield lambda: value
    yield lambda: ops.convert_to_tensor(value)
    yield keras.optimizers.schedules.PiecewiseConstantDecay([1], [value, 0.1])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_rates_of_any_kind_are_not_assigned(value):
    optimizer = Gravity(0.5)
    for bad in tensors(value):
        with pytest.raises(ValueError, match=f"learning_rate must be .* >= 0, got {value}"):
            optimizer.learning_rate = bad
        assert float(ops.convert_to_numpy(optimizer.learning_rate)) == 0.5
    with pytest.raises(ValueError, match=r"learning_rate must be a finite number >= 0, got array"):
        optimizer.learning_rate = ops.convert_to_tensor([0.1, 0.2])
    with pytest.raises(ValueError, match=r"learning_rate must be a finite number >= 0, got None"):
        optimizer.learning_rate = None


def test_good_tensors_are_assigned():
    optimizer = Gravity(0.5)
    for good in (ops.convert_to_tensor(0.25), keras.Variable(0.25), np.asarray(0.25)):
        optimizer.learning_rate = 0.5
        optimizer.learning_rate = good
        assert float(ops.convert_to_numpy(optimizer.learning_rate)) == 0.25


def test_a_traced_rate_is_assigned_unseen():
    if BACKEND != "tensorflow":
        pytest.skip("only functions of TensorFlow may assign to a variable")
    import tensorflow as tf

    optimizer = Gravity(0.5)

    @tf.function
    def assign(rate):
        optimizer.learning_rate = rate

    assign(tf.constant(0.25))
    assert float(optimizer.learning_rate) == 0.25


@pytest.mark.parametrize("bad", [-1.0, 1e39, keras.Variable(-1.0)], ids=["-1", "1e39", "tensor"])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.5}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_a_callable_that_turns_bad_moves_nothing(options, bad):
    current = [0.5]
    optimizer = Gravity(lambda: current[0], **options)
    variables = run(optimizer, [1])
    before = to_numpy([*variables, *optimizer.variables])
    current[0] = bad
    with pytest.raises(ValueError, match=r"learning_rate must be .* got (.*-1\.0|1e\+39)"):
        optimizer.apply([ops.convert_to_tensor(g) for g in arrays(2)])
    assert_same([*variables, *optimizer.variables], before)


@pytest.mark.parametrize("last", [KeyError, -0.1, None], ids=str)
@pytest.mark.parametrize("every", [None, 2])
def test_a_callable_that_fails_at_any_call_moves_nothing(every, last):
    def rate():
        value = next(rates, last)
        if value is KeyError:
            raise KeyError
        return value

    def failed_step():
        try:
            optimizer.apply(gradients)
        except (KeyError, ValueError):
            return True

    gradients = [ops.ones(2)] * 3
    for calls in range(2, 7):
        rates = itertools.repeat(0.5, calls)
        optimizer = Gravity(rate, weight_decay=0.5, gradient_accumulation_steps=every)
        everything = [*run(optimizer, [], [np.ones(2, np.float32)] * 3), *optimizer.variables]
        before = to_numpy(everything)
        while not failed_step():
            before = to_numpy(everything)
        assert_same(everything, before)


def test_one_rate_serves_decay_and_step():
    weights = make_variables(arrays(0))
    rates = iter([0.5, 0.5, 0.25, 0.125])  # the first one gives σ
    asked = Gravity(lambda: next(rates), velocity_std=0.5, weight_decay=0.5)
    given = Gravity(0.5, velocity_std=0.5, weight_decay=0.5)
    same = run(given, [])
    for number, rate in enumerate((0.5, 0.25, 0.125)):
        gradients = [ops.convert_to_tensor(g) for g in arrays(number)]
        asked.apply(gradients, weights)
        given.learning_rate = rate
        given.apply(gradients)
    assert_same(weights, to_numpy(same))


def test_a_callable_may_take_a_step_of_another_optimizer():
    def rate():
        inner.apply([ops.ones(2)])
        return inner.learning_rate / 2

    inner, outer = Gravity(lambda: 0.5), Gravity(0.25, weight_decay=0.5)
    (own,) = run(inner, [], [np.ones(2, np.float32)])
    weights, same = (make_variables([np.ones(2, np.float32)]) for _ in range(2))
    asked = Gravity(rate, weight_decay=0.5)
    asked.build(weights)
    outer.build(same)
    steps = int(inner.iterations)
    for _ in range(2):
        asked.apply([ops.ones(2)])
        outer.apply([ops.ones(2)])
    assert_same(weights, to_numpy(same))
    assert int(inner.iterations) == steps + 2
    assert float(asked.learning_rate) == 0.25
    assert not np.array_equal(to_numpy([own])[0], np.ones(2))


@pytest.mark.skipif(BACKEND == "jax", reason="Keras on JAX computes an update for each gradient")
def test_accumulated_gradients_ask_for_one_rate_for_each_update():
    calls = itertools.count(1)
    optimizer = Gravity(
        lambda: float(next(calls)),
        velocity_std=0.5,
        weight_decay=0.1,
        gradient_accumulation_steps=2,
    )
    run(optimizer, range(1, 7))
    assert next(calls) == 1 + 1 + 3


def test_an_export_asks_once_and_a_configuration_does_not():
    def rate():
        return float(next(calls))

    calls = itertools.count(1)
    optimizer = Gravity(rate, velocity_std=0.5)
    run(optimizer, [])
    written = optimizer.get_config()["learning_rate"]
    assert written == keras.saving.serialize_keras_object(rate)
    assert export_state(optimizer).hyperparameters["learning_rate"] == 2
    assert next(calls) == 3


@pytest.mark.parametrize(
    ("make", "before"),
    [
        (Gravity, 2),
        (lambda rate: Gravity(rate, velocity_std=0.5), 1),
        (lambda rate: Gravity(rate, velocity_std=0.5, weight_decay=0.1), 1),
        (keras.optimizers.SGD, 0),
    ],
    ids=["derived", "given", "decay", "SGD"],
)
def test_a_step_calls_a_callable_once(make, before):
    """Only Gravity calls it before the first step: for σ, and to compare that with the rate."""
    calls = itertools.count()
    optimizer = make(lambda: float(next(calls)) + 1)
    run(optimizer, range(1, 4))
    assert next(calls) == before + 3


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("alpha", -1.0, np.float64(0.5)),
        ("beta", 1.5, 1),
        ("weight_decay", float("nan"), 0.25),
        ("velocity_std", -0.1, np.float32(0.5)),
        ("seed", -1, np.int64(7)),
        ("first_step", 2, 0),
    ],
)
def test_other_numbers_are_checked_when_they_are_assigned(name, bad, good):
    optimizer = Gravity(weight_decay=0.1)
    before = getattr(optimizer, name)
    with pytest.raises(ValueError, match=f"^{name} must be .* got {bad!r}$"):
        setattr(optimizer, name, bad)
    assert getattr(optimizer, name) == before
    setattr(optimizer, name, good)
    assert getattr(optimizer, name) == good
    assert_same(run(Gravity.from_config(optimizer.get_config())), run(optimizer))
    optimizer.weight_decay = None
    assert optimizer.weight_decay is None


# σ and the first step's rate


def warned(action):
    """Return the text and the file of every UserWarning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning)
        action()
    return [(str(warning.message), warning.filename) for warning in caught]


def test_compile_and_assign_warns_once():
    made = model(Gravity(0.001))
    made.optimizer.learning_rate = 1.0
    assert [text for text, _ in warned(lambda: fit(made, epochs=2, batch_size=2))] == [FAR]
    made.optimizer.learning_rate = 2.0
    fit(made)


def test_a_callback_that_sets_the_first_rate_warns():
    made = model(Gravity(0.001))
    callbacks = [keras.callbacks.LearningRateScheduler(lambda epoch: 1.0)]
    assert [text for text, _ in warned(lambda: fit(made, epochs=2, callbacks=callbacks))] == [FAR]


def test_the_warning_names_the_users_line():
    variables = make_variables(arrays(0))
    optimizer = Gravity(0.001)
    optimizer.learning_rate = 1.0
    assert warned(lambda: optimizer.build(variables)) == [(FAR, __file__)]
    other = Gravity(0.001)
    other.build(variables)
    assert [text for text, _ in warned(lambda: setattr(other, "learning_rate", 1.0))] == [FAR]
    other.learning_rate = 1.0  # and only once


def test_nothing_is_assigned_where_a_warning_is_an_error():
    optimizer = Gravity(0.001)
    run(optimizer, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for rate in (1.0, lambda: 1.0):
            with pytest.raises(UserWarning, match=f"^{FAR}"):
                optimizer.learning_rate = rate
            assert optimizer.get_config()["learning_rate"] == 0.001
    with pytest.warns(UserWarning, match=f"^{FAR}"):
        optimizer.learning_rate = 1.0
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction"):
        at_rest = Gravity(0.0)
    at_rest.velocity_std = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="learning_rate is 0 at construction"):
            at_rest.velocity_std = None
    assert at_rest.velocity_std == 0.5
    run(at_rest, [])
    at_rest.learning_rate = 1.0


def quiet_optimizers():
    yield Gravity(0.1), 1.0  # ten times is not more than ten times
    yield Gravity(0.001, velocity_std=0.1), 1.0
    yield Gravity(0.001, alpha=0.0), 1.0
    yield Gravity(0.1), 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Gravity(0.0), 1.0  # has warned at construction


def test_no_warning_without_a_reason():
    for optimizer, rate in quiet_optimizers():
        optimizer.learning_rate = rate
        run(optimizer)
    later = Gravity(0.001)
    run(later)
    later.learning_rate = 1.0  # a warm-up, say
    imported = Gravity(0.001)
    imported.build(make_variables(arrays(0)))
    import_state(imported, State(0, arrays(1), {"learning_rate": 1.0}))
    assert imported.velocity_std == 0.01


def test_a_copy_with_another_rate_has_its_own_sigma():
    for rate in (0.001, keras.optimizers.schedules.CosineDecay(0.001, 10)):
        config = Gravity(rate).get_config()
        assert config["velocity_std"] is None
        assert Gravity.from_config(dict(config)).velocity_std == 0.01 / 0.001
        assert Gravity.from_config(config | {"learning_rate": 1.0}).velocity_std == 0.01
    given = Gravity(0.001, velocity_std=0.5).get_config()
    assert Gravity.from_config(given | {"learning_rate": 1.0}).velocity_std == 0.5


def test_a_copy_keeps_a_sigma_that_its_rate_does_not_give():
    moved = Gravity(0.001)
    moved.learning_rate = 0.005
    replaced = Gravity(0.001)
    replaced.learning_rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    for optimizer in (moved, replaced):
        assert Gravity.from_config(optimizer.get_config()).velocity_std == 0.01 / 0.001
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction"):
        at_rest = Gravity(0.0)
    assert Gravity.from_config(at_rest.get_config()).velocity_std == 0.0  # and does not warn again


def test_the_config_has_the_rate_that_the_user_wrote():
    assert Gravity(0.1).get_config()["learning_rate"] == 0.1
    assert Gravity.from_config(Gravity(1 / 3).get_config()).velocity_std == 0.01 / (1 / 3)


# The registered name


def test_gravity_by_its_registered_name():
    made = model("gravity>Gravity")
    assert type(made.optimizer) is Gravity
    assert made.optimizer.get_config() == Gravity().get_config()
    fit(made)
    with pytest.raises(ValueError, match="Could not interpret optimizer identifier: gravity"):
        keras.optimizers.get("gravity")
