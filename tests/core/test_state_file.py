"""The file of a gravity_core.State: what it restores, how it is written, and bad files."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gravity_core import State
from tests.support.states import DTYPES, GOOD, HYPERPARAMETERS, one_of_each, same, write

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


def test_the_files_hold_no_pickle(tmp_path):
    one_of_each().save(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "s") as archive:
        for name in archive.namelist():
            # A pickled object array says so in its header.
            np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)


# Bad files


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
        (
            {"dtypes": ["float32", "float32"]},
            {},
            "velocity_0 must be stored as f4 for float32, got f8",
        ),
        (
            {"dtypes": ["float64", "bfloat16"]},
            {},
            "velocity_1 must be stored as u2 for bfloat16, got f4",
        ),
        ({"hyperparameters": {}}, {}, "hyperparameters must contain learning_rate, got {}"),
        ({"hyperparameters": 3}, {}, "hyperparameters in the header must be an object, got 3"),
        (with_value("learning_rate", -1), {}, "learning_rate must be a finite number >= 0, got -1"),
        (with_value("beta", float("nan")), {}, "beta must be a number in \\[0, 1\\], got nan"),
        (with_value("seed", 0.5), {}, "seed must be an integer in .*, got 0.5"),
        (with_value("first_step", 2), {}, "first_step must be 0 .* got 2"),
        (with_value("momentum", 1), {}, "hyperparameters must be among .* got 'momentum'"),
        ({}, {"velocity_2": np.ones(1)}, "one velocity for each of the 2 dtypes"),
        (
            {},
            {"velocity_0": np.ones(2, int)},
            "velocity_0 must be stored as f8 for float64, got i8",
        ),
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
