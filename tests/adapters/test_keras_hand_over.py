"""export_state and import_state of gravity_tf, for every option and on the backend of Keras.

`test_tf_distribution.py` has the strategies, which need processes of their own.
"""

import warnings

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from keras import ops  # noqa: E402

import gravity_tf.state  # noqa: E402
from gravity_core import State  # noqa: E402
from gravity_tf import Gravity, export_state, import_state  # noqa: E402
from tests.support.keras_helpers import (  # noqa: E402
    arrays,
    assert_same,
    make_variables,
    to_numpy,
    velocities,
)

OPTIONS = [
    {},
    {"gradient_accumulation_steps": 2},
    {"use_ema": True, "ema_momentum": 0.5},
    {"weight_decay": 0.25},
    {"clipnorm": 0.5, "loss_scale_factor": 8.0},
    {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "weight_decay": 0.25,
        "global_clipnorm": 0.5,
        "loss_scale_factor": 8.0,
    },
]
NAMES = [" ".join(options) or "none" for options in OPTIONS]


def built(options, weights):
    optimizer, variables = Gravity(**options), make_variables(weights)
    optimizer.build(variables)
    return optimizer, variables


def apply(optimizer, numbers):
    for number in numbers:
        optimizer.apply([ops.convert_to_tensor(g) for g in arrays(number)])


def averages(optimizer):
    return to_numpy(v for v in optimizer.variables if v.name.endswith("_average"))


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_a_run_continues_in_another_optimizer(options, tmp_path):
    whole, weights = built({"learning_rate": 0.2, "seed": 3, **options}, arrays(0))
    apply(whole, range(1, 5))
    export_state(whole).save(tmp_path / "s")
    other, moved = built({"learning_rate": 0.7, **options}, to_numpy(weights))
    apply(other, [9])
    for variable, value in zip(moved, to_numpy(weights), strict=True):
        variable.assign(value)
    if options.get("gradient_accumulation_steps"):
        assert int(other.iterations) == 0  # a gradient is left over
    import_state(other, State.load(tmp_path / "s"))
    assert_same(averages(other) or moved, to_numpy(weights))  # the averages start from the weights
    apply(whole, range(5, 9))
    apply(other, range(5, 9))
    assert_same(moved, weights)
    assert_same(velocities(other), velocities(whole))
    assert int(other.iterations) == int(whole.iterations)
    assert export_state(other).hyperparameters == export_state(whole).hyperparameters


def test_averages_of_an_import_follow_the_weights():
    optimizer, variables = built({"use_ema": True, "ema_momentum": 0.75}, arrays(0))
    import_state(optimizer, State(5, [np.zeros_like(w) for w in arrays(0)]))
    apply(optimizer, [1])
    for average, before, after in zip(
        averages(optimizer), arrays(0), to_numpy(variables), strict=True
    ):
        # two products, a sum, and numbers below 8
        assert np.allclose(average, 0.75 * before + 0.25 * after, rtol=0, atol=3 * 8 * 2.0**-24)


def test_a_model_trains_after_an_import_with_averages():
    """On JAX, `fit` donates the variables, so none may share its buffer with another."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=Gravity(use_ema=True), loss="mse")
    model.optimizer.build(model.trainable_variables)
    state = State(5, [np.zeros(v.shape, np.float32) for v in model.trainable_variables])
    import_state(model.optimizer, state)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert export_state(model.optimizer).t == 6


def everything(optimizer):
    return to_numpy(optimizer.variables), optimizer.get_config(), optimizer.velocity_std


BAD = [
    (State(1, []), "velocities must be one per parameter, 5, got 0"),
    (
        State(1, [*arrays(3)[:4], np.ones(3, np.float32)]),
        r"velocities\[4\] must be float32 of shape",
    ),
    (State(1, [*arrays(3)[:4], np.ones(70_000)]), r"velocities\[4\] must be float32 .* float64"),
    (State(2**70, arrays(3)), "t must be at most .* got 1180591620717411303424"),
    (State((1, 2, 3, 4, 5), arrays(3)), r"t must be one number .* got \(1, 2, 3, 4, 5\)"),
]


@pytest.mark.parametrize(("state", "message"), BAD, ids=range(len(BAD)))
def test_a_refused_import_changes_nothing(state, message):
    optimizer, _ = built(OPTIONS[-1], arrays(0))
    apply(optimizer, range(1, 4))
    before = everything(optimizer)
    with pytest.raises(ValueError, match=message):
        import_state(optimizer, state)
    after = everything(optimizer)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]


@pytest.mark.parametrize("name", ["cast", "zeros", "convert_to_tensor", "copy"])
@pytest.mark.parametrize("late", [False, True])
def test_an_import_that_runs_out_of_memory_changes_nothing(name, late, monkeypatch):
    """Everything that allocates does so before the first assignment."""
    optimizer, _ = built(OPTIONS[-1], arrays(0))
    apply(optimizer, range(1, 4))
    before, calls, original = everything(optimizer), [], getattr(ops, name)

    class Ops:
        def __getattr__(self, other):
            return failing if other == name else getattr(ops, other)

    def failing(*args):
        calls.append(1)
        if len(calls) == (len(arrays(0)) if late else 1):
            raise MemoryError
        return original(*args)

    monkeypatch.setattr(gravity_tf.state, "ops", Ops())
    with pytest.raises(MemoryError):
        import_state(optimizer, State(7, arrays(3), {"learning_rate": 0.5, "beta": 0.5}))
    after = everything(optimizer)
    assert_same(after[0], before[0])
    assert after[1:] == before[1:]


@pytest.mark.parametrize("decay", [0.5, None])
def test_a_warning_tells_of_exclusions_that_a_state_does_not_hold(decay):
    optimizer = Gravity(weight_decay=decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build([keras.Variable(np.ones(2, np.float32), name="bias")])
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        export_state(optimizer)
    told = [str(w.message) for w in given if w.category is UserWarning]
    assert [text[:37] for text in told] == ["exclude_from_weight_decay was called,"] * bool(decay)
