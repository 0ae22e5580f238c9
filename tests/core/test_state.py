"""gravity_core.State: its arguments, its file, and the exchange with the NumPy optimizer."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gravity_core import Gravity, State

HYPERPARAMETERS = {
    "learning_rate": 0.3,
    "alpha": 0.02,
    "beta": 0.8,
    "weight_decay": 0.1,
    "velocity_std": 0.5,
    "seed": 2**64 - 1,
    "first_step": 0,
}
DTYPES = ["float16", "float32", "float64", "complex64", "complex128"]


def same(a, b):
    """Return whether two states have the same bits."""
    return (
        (a.t, a.dtypes, a.hyperparameters) == (b.t, b.dtypes, b.hyperparameters)
        and [v.shape for v in a.velocities] == [v.shape for v in b.velocities]
        and [v.dtype for v in a.velocities] == [v.dtype for v in b.velocities]
        and [v.tobytes() for v in a.velocities] == [v.tobytes() for v in b.velocities]
    )


def bfloat16(shape, seed=0):
    """Return numbers of bfloat16 as float32."""
    words = np.random.default_rng(seed).integers(0, 2**16, shape, dtype=np.uint32)
    return np.asarray(words << 16).view(np.float32)


def one_of_each():
    values = np.random.default_rng(0).normal(size=(3, 2))
    return State(
        [7, 7, 7, 0, 7, 3, 7, 7],
        [
            *(values.astype(d) for d in DTYPES),
            bfloat16((5,)),
            np.zeros((0, 4), np.float32),
            np.asarray(np.nan, np.float64),
        ],
        HYPERPARAMETERS,
        dtypes=[*DTYPES, "bfloat16", "float32", "float64"],
    )


# The file


def test_a_file_restores_every_dtype_bit_for_bit(tmp_path):
    state = one_of_each()
    state.save(tmp_path / "run.npz")
    assert same(State.load(tmp_path / "run.npz"), state)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


@given(
    t=st.integers(0, 2**62),
    velocities=st.lists(
        st.sampled_from(DTYPES).flatmap(
            lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
        ),
        max_size=4,
    ),
    rate=st.floats(0, allow_infinity=False),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_state_survives_its_file(tmp_path_factory, t, velocities, rate, seed):
    path = tmp_path_factory.mktemp("state") / "s"  # no suffix is added
    state = State(t, velocities, {"learning_rate": rate, "velocity_std": 1, "seed": seed})
    state.save(path)
    loaded = State.load(path)
    assert same(loaded, state)
    assert loaded.t == t
    assert loaded.hyperparameters["learning_rate"] == rate


def test_the_file_has_the_documented_format(tmp_path):
    state = State([1, 2], [np.float32([1.5, -2.0]), np.eye(2)], dtypes=["bfloat16", "float64"])
    state.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["header", "velocity_0", "velocity_1"]
        header = json.loads(str(archive["header"]))
        assert archive["velocity_0"].dtype == np.uint16
        assert archive["velocity_0"].tolist() == [0x3FC0, 0xC000]  # 1.5 and −2 in bfloat16
        assert np.array_equal(archive["velocity_1"], np.eye(2))
    assert header == {
        "format": "gravity-state",
        "version": 1,
        "t": [1, 2],
        "dtypes": ["bfloat16", "float64"],
        "hyperparameters": state.hyperparameters,
    }


def test_two_files_of_one_state_are_equal(tmp_path):
    for name in ("a", "b"):
        one_of_each().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_of_another_byte_order_is_read(tmp_path):
    state = State(1, [np.arange(3.0)])
    write(tmp_path / "s", state, velocity_0=np.arange(3.0).astype(">f8"))
    assert same(State.load(tmp_path / "s"), state)


@pytest.mark.parametrize("at", ["savez", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, at):
    path = tmp_path / "run.npz"
    old = State(1, [np.ones(2)])
    old.save(path)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np if at == "savez" else os, at, full)
    with pytest.raises(OSError, match="No space left"):
        State(2, [np.zeros(2)]).save(path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    assert same(State.load(path), old)


def test_a_file_is_written_beside_its_place_and_hidden(tmp_path, monkeypatch):
    """Only within a file system is a file replaced at once."""
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (written.append(a), replace(a, b)))
    State(1, [np.ones(2)]).save(tmp_path / "s")
    (folder,) = (path.parent for path in written)
    assert folder.parent == tmp_path
    assert folder.name.startswith(".gravity-")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_the_file_has_default_permissions(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    State(0, []).save(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode == (tmp_path / "other").stat().st_mode


# Bad files


def write(path, state, changes=None, **arrays):
    """Write the file of a state with parts of it replaced."""
    whole = {f"velocity_{i}": v for i, v in enumerate(state.velocities)} | arrays
    good = {
        "format": "gravity-state",
        "version": 1,
        "t": state.t,
        "dtypes": state.dtypes,
        "hyperparameters": state.hyperparameters,
    }
    text = changes if isinstance(changes, str) else json.dumps(good | (changes or {}))
    with path.open("wb") as file:
        np.savez(file, **({"header": np.asarray(text)} | whole))


GOOD = State(3, [np.ones(2), np.float32([1.0])], HYPERPARAMETERS)


def with_value(name, value):
    return {"hyperparameters": GOOD.hyperparameters | {name: value}}


@pytest.mark.parametrize(
    ("header", "arrays", "message"),
    [
        ("{", {}, "Expecting property name"),
        ("[]", {}, "header must have format 'gravity-state', got '\\[\\]'"),
        ({"format": "other"}, {}, "header must have format 'gravity-state', got .*other"),
        ("[" * 100_000, {}, "it is nested too deeply"),
        ('{"t": 1, "t": 7}', {}, "the key 't' appears twice in one object"),
        ({"version": 2}, {}, "version must be 1 for this release, got 2"),
        ({"version": True}, {}, "version must be 1 for this release, got True"),
        ({"version": 1.0}, {}, "version must be 1 for this release, got 1.0"),
        ({"t": -1}, {}, "t must be an integer >= 0, or one for each velocity, got -1"),
        ({"t": 1.5}, {}, "t in the header must be an integer or a list, got 1.5"),
        ({"t": True}, {}, "t must be an integer >= 0, .* got True"),
        ({"t": [1, "2"]}, {}, "t must be an integer >= 0, .* got \\[1, '2'\\]"),
        ({"t": [1, 2, 3]}, {}, "t must be one number, or one for each of 2 velocities"),
        ({"dtypes": None}, {}, "dtypes in the header must be a list, got None"),
        ({"dtypes": ["float64"]}, {}, "one velocity for each of the 1 dtypes"),
        (
            {"dtypes": ["float64", "int8"]},
            {},
            "velocities\\[1\\] must have a dtype .* 'int8'",
        ),
        (
            {"dtypes": ["float64", ["x"]]},
            {},
            "velocities\\[1\\] must have a dtype .* \\['x'\\]",
        ),
        ({"dtypes": ["float32", "float32"]}, {}, "velocities\\[0\\] .* float32, got float64"),
        ({"dtypes": ["float64", "bfloat16"]}, {}, "velocity_1 .* uint16, .* got float32"),
        ({"hyperparameters": {}}, {}, "hyperparameters must contain learning_rate, got {}"),
        ({"hyperparameters": 3}, {}, "hyperparameters in the header must be an object, got 3"),
        (with_value("learning_rate", -1), {}, "learning_rate must be a finite number >= 0, got -1"),
        (with_value("beta", float("nan")), {}, "beta must be a number in \\[0, 1\\], got nan"),
        (with_value("seed", 0.5), {}, "seed must be an integer in .*, got 0.5"),
        (with_value("first_step", 2), {}, "first_step must be 0 .* got 2"),
        (with_value("momentum", 1), {}, "hyperparameters must be among .* got 'momentum'"),
        ({}, {"velocity_2": np.ones(1)}, "one velocity for each of the 2 dtypes"),
        ({}, {"velocity_0": np.ones(2, int)}, "velocities\\[0\\] must be .* float64, got int64"),
        ({}, {"velocity_0": np.asarray([None])}, "without pickled objects"),
        ({}, {"header": np.ones(2)}, "header must be a string of JSON, got array"),
        ({}, {"header": np.asarray(["{}"])}, "header must be a string of JSON, got array"),
    ],
)
def test_errors_name_the_file_the_field_and_the_value(tmp_path, header, arrays, message):
    path = tmp_path / "bad.npz"
    write(path, GOOD, header, **arrays)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        State.load(path)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path):
    path = tmp_path / "bad"
    array = io.BytesIO()
    np.save(array, np.ones(3))
    for data in (b"", b"text", array.getvalue()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{path}: must be an .npz file"):
            State.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", b"no array")
    with pytest.raises(ValueError, match=f"^{path}: "):
        State.load(path)
    with pytest.raises(FileNotFoundError):
        State.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["header.npy", "velocity_0.npy", "velocity_0"])
@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile warns of the duplicate
def test_a_duplicate_array_is_refused(tmp_path, name):
    path = tmp_path / "twice"
    GOOD.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        array = archive.read(f"{name.removesuffix('.npy')}.npy")
        archive.writestr(name, array)
    with pytest.raises(ValueError, match=f"^{path}: .* an array appears twice: "):
        State.load(path)


def test_all_damage_to_a_file_is_detected(tmp_path):
    good = State(5, [np.arange(6.0)], HYPERPARAMETERS)
    good.save(tmp_path / "good")
    whole = (tmp_path / "good").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for cut in rng.integers(0, len(whole), 50):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut: "):
            State.load(tmp_path / "cut")
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "flip").write_bytes(bytes(damaged))
        try:
            loaded = State.load(tmp_path / "flip")
        except ValueError:
            refused += 1
        else:  # a bit without meaning for the state, such as of a date
            assert same(loaded, good)
    assert refused > 100


def test_a_file_without_a_header_is_refused(tmp_path):
    with (tmp_path / "s").open("wb") as file:
        np.savez(file, velocity_0=np.ones(1))
    with pytest.raises(ValueError, match=r"s: header must be a string of JSON, got None$"):
        State.load(tmp_path / "s")


def test_a_long_header_is_cut_in_the_message(tmp_path):
    text = json.dumps({"format": "x" * 99})
    write(tmp_path / "s", GOOD, text)
    with pytest.raises(ValueError, match="header must have format") as caught:
        State.load(tmp_path / "s")
    assert str(caught.value).endswith(f" 'gravity-state', got {text[:80]!r}")


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
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        State(*arguments)


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
    State(1, []).check([], largest_t=0)  # no tensor has a counter


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


def test_the_files_hold_no_pickle(tmp_path):
    one_of_each().save(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "s") as archive:
        for name in archive.namelist():
            # A pickled object array says so in its header.
            np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
