"""gravity_core.State: its arguments, what cannot change, and the NumPy optimizer's use of it."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from gravity_core import Gravity, State
from tests.support.states import same

# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, []), ValueError, "t must be an integer >= 0"),
        ((1.0, []), ValueError, "t must be an integer >= 0, .*got 1.0"),
        (([1], []), ValueError, "one for each of 0 velocities"),
        ((1, [np.ones(2, int)]), ValueError, r"velocities\[0\] must have a dtype .*'int64'"),
        ((1, [np.ones(2, object)]), ValueError, r"velocities\[0\] must have a dtype"),
        (
            (1, [], {"lr": 0.1}),
            TypeError,
            "hyperparameters must be among .* got 'lr'",
        ),
        ((1, [], {"beta": 2}), ValueError, r"beta must be a number in \[0, 1\], got 2"),
        ((2**128, []), ValueError, r"t must be below 2\*\*128, got 3402823669"),
        ((10**5000, []), ValueError, r"t must be below 2\*\*128, got a very large int"),
        ((1, np.ones((2, 3))), TypeError, "velocities must be a list of arrays, .* got ndarray"),
        ((1, None), TypeError, "velocities must be a list of arrays, .* got NoneType"),
        ((1, {"w": 1.0}), TypeError, "velocities must be a list of arrays, .* got dict"),
        ((1, [1.0], {}, 3), TypeError, "dtypes must be a list of names, .* got int"),
        ((1, [1.0], {}, "float64"), TypeError, "dtypes must be a list of names, .* got str"),
        ((1, [], [1]), TypeError, "hyperparameters must be a mapping, got list"),
        (
            (1, [np.ma.masked_array([1.0, 2.0], [True, False])]),
            TypeError,
            r"velocities\[0\] must be a plain array, got MaskedArray",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    names = ("t", "velocities", "hyperparameters", "dtypes")
    with pytest.raises(error, match=message):
        State(**dict(zip(names, arguments, strict=False)))


def test_messages_list_what_is_allowed():
    for arguments, error, message in (
        (
            (1, [np.ones(2, "int32")]),
            ValueError,
            "velocities[0] must have a dtype among float16, bfloat16, float32, float64, complex64, "
            "complex128, got 'int32'",
        ),
        (
            (1, [], {"lr": 0.1}),
            TypeError,
            "hyperparameters must be among learning_rate, alpha, beta, weight_decay, velocity_std, "
            "seed, first_step, got 'lr'",
        ),
    ):
        with pytest.raises(error) as caught:
            State(*arguments)
        assert str(caught.value) == message


def test_the_largest_t_of_an_optimizer():
    state, fits = State((4, 0), [np.ones(1)] * 2), [((1,), "float64")] * 2
    state.check(fits, largest_t=4)
    message = r"^t must be at most 3, the limit of this optimizer, got 4$"
    with pytest.raises(ValueError, match=message):
        state.check(fits, largest_t=3)
    with pytest.raises(ValueError, match=r"t must be at most 3, .*, got 4"):
        State(4, []).check([], largest_t=3)  # the optimizer may have a counter of its own


def test_a_state_of_no_tensors():
    for t in ([], ()):
        assert (State(t, []).t, State(t, []).counts) == (0, ())


def test_a_state_shows_its_counts_and_shapes():
    state = State([3, 4], [np.ones((2, 3)), np.float32(1)], dtypes=["float64", "bfloat16"])
    assert repr(state) == "State(t=(3, 4), first_step=1, velocities=[float64(2, 3), bfloat16()])"


def test_velocities_are_in_c_order():
    (v,) = State(1, [np.ones((2, 3)).T]).velocities
    assert v.flags.c_contiguous


def test_bad_dtypes():
    with pytest.raises(ValueError, match="dtypes must be one name per velocity, 1, got"):
        State(1, [np.ones(2)], dtypes=[])
    with pytest.raises(ValueError, match=r"velocities\[0\] must be exact in bfloat16"):
        State(1, [np.float32([1.001])], dtypes=["bfloat16"])


def test_missing_hyperparameters_have_their_defaults():
    made = State(0, [], {"learning_rate": np.float32(0.2)}).hyperparameters
    assert made == {
        "learning_rate": 0.2,
        "alpha": 0.01,
        "beta": 0.9,
        "weight_decay": 0.0,
        "velocity_std": 0.01 / 0.2,
        "seed": 0,
        "first_step": 1,
    }
    assert {type(v) for v in made.values()} == {int, float}


def test_the_warning_names_the_file_of_the_caller():
    with pytest.warns(UserWarning, match="learning_rate is 0 at construction") as caught:
        State(0, [], {"learning_rate": 0})
    assert caught[0].filename == __file__


def test_one_count_or_one_per_velocity():
    one, many = State([4, 4], [np.ones(1)] * 2), State((4, 0), [np.ones(1)] * 2)
    assert (one.t, one.count, one.counts) == (4, 4, (4, 4))
    assert (many.t, many.counts) == ((4, 0), (4, 0))
    with pytest.raises(ValueError, match=r"t must be one number .* got \(4, 0\)"):
        _ = many.count


def test_a_state_shares_no_memory_and_is_read_only():
    v = np.ones(2)
    state = State(1, [v])
    v[:] = 2
    assert state.velocities[0].tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        state.velocities[0][0] = 3


def attempts(state):
    """Return all ways of changing a state that Python and NumPy know."""
    v = state.velocities[0]
    return [
        lambda: setattr(state, "t", 5),
        lambda: setattr(state, "other", 5),
        lambda: delattr(state, "velocities"),
        lambda: state.hyperparameters.__setitem__("beta", 7),
        lambda: state.hyperparameters.update(beta=7),
        lambda: state.hyperparameters.pop("beta"),
        lambda: state.velocities.__setitem__(0, v),
        lambda: state.dtypes.append("float32"),
        lambda: v.__setitem__(..., 3),
        lambda: setattr(v.flags, "writeable", True),
        lambda: v.setflags(write=True),
        lambda: v.base.cast("B").__setitem__(0, 1),
        lambda: np.copyto(v, 3),
        lambda: v.sort(),
        lambda: v.view(np.uint8).fill(0),
    ]


def loaded(state, folder):
    state.save(folder / "s")
    return State.load(folder / "s")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_of_a_state_can_be_changed(tmp_path, dtype):
    state = State(3, [np.float32([2, 1])], {"beta": 0.8}, dtypes=[dtype])
    others = [
        state,
        copy.copy(state),
        copy.deepcopy({"a": state})["a"],
        *(pickle.loads(pickle.dumps(state, protocol)) for protocol in range(6)),
        dataclasses.replace(state),
        loaded(state, tmp_path),
    ]
    for other in others:
        assert same(other, state)
        for attempt in attempts(other):
            with pytest.raises((AttributeError, TypeError, ValueError)):
                attempt()
        assert same(other, State(3, [np.float32([2, 1])], {"beta": 0.8}, dtypes=[dtype]))


def test_replaced_fields_are_checked():
    state = State(3, [np.ones(2)], {"beta": 0.8})
    changed = dataclasses.replace(state, t=4, hyperparameters={"beta": 0.7})
    assert (changed.t, changed.hyperparameters["beta"], state.t) == (4, 0.7, 3)
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\], got 7"):
        dataclasses.replace(state, hyperparameters={"beta": 7})
    with pytest.raises(ValueError, match=r"velocities\[0\] must be an array of float64"):
        dataclasses.replace(state, velocities=[np.ones(2, np.float32)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("t", -5, "t must be an integer >= 0"),
        ("hyperparameters", {"beta": 7}, "beta must be a number"),
        ("velocities", (np.ones(2),), r"velocities\[0\] must be a read-only array of float64"),
        ("dtypes", ("float32",), r"velocities\[0\] must be a read-only array of float32"),
    ],
)
def test_a_save_and_an_import_check_again(tmp_path, field, value, message):
    state, optimizer, w = State(1, [np.zeros(2)]), Gravity(), [np.ones(2)]
    optimizer.init(w)
    before = optimizer.export_state()
    object.__setattr__(state, field, value)
    with pytest.raises(ValueError, match=message):
        state.save(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        optimizer.import_state(state, w)
    assert list(tmp_path.iterdir()) == []
    assert same(optimizer.export_state(), before)


# The NumPy optimizer


def gradients(steps, *params):
    rng = np.random.default_rng(1)
    return [[np.asarray(rng.normal(size=w.shape)).astype(w.dtype) for w in params] for _ in steps]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("first_step", [0, 1])
def test_numpy_resumes_bit_for_bit(tmp_path, dtype, first_step):
    if dtype == "bfloat16":
        dtype = pytest.importorskip(
            "ml_dtypes", reason="NumPy has bfloat16 from ml_dtypes"
        ).bfloat16
    shapes = [(3, 2), (), (0,)]
    options = {"learning_rate": 0.2, "weight_decay": 0.1, "seed": 3, "first_step": first_step}
    one, two = ([np.ones(s).astype(dtype) for s in shapes] for _ in range(2))
    straight, before, after = Gravity(**options), Gravity(**options), Gravity(beta=0.1)
    for n, g in enumerate(gradients(range(6), *one)):
        straight.learning_rate = before.learning_rate = after.learning_rate = 0.2 / (n + 1)
        straight.step(one, g)
        (before if n < 3 else after).step(two, g)
        if n == 2:
            before.export_state().save(tmp_path / "s")
            after.import_state(State.load(tmp_path / "s"), two)
    assert (after.count, after.first_step, after.seed) == (6, first_step, 3)
    for a, b in zip(one + straight.velocity, two + after.velocity, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def test_an_unsuitable_state_changes_nothing():
    w = [np.ones(2), np.ones(3)]
    optimizer = Gravity()
    with pytest.raises(
        ValueError, match=r"^no velocity to export yet: call init\(params\) or step\(\) first$"
    ):
        optimizer.export_state()
    optimizer.init(w)
    before = optimizer.export_state()
    with pytest.raises(TypeError, match=r"^state must be a gravity_core.State, got dict$"):
        optimizer.import_state({}, w)
    for state, message in (
        (State(1, [np.ones(2)]), "velocities must be one per parameter, 2, got 1"),
        (
            State(1, [np.ones(2), np.ones(4)], {"beta": 0.5}),
            r"velocities\[1\] must be float64 of shape \(3,\), .* got float64 of shape \(4,\)",
        ),
        (State(1, [np.ones(2), np.float32([1] * 3)]), r"velocities\[1\] .* got float32"),
        (State([1, 2], [np.ones(2), np.ones(3)], {"beta": 0.5}), "t must be one number"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.import_state(state, w)
        assert same(optimizer.export_state(), before)
