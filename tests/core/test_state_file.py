"""The file of a gravity_core.State: what it restores, how it is written, and bad files."""

import io
import json
import os
import tracemalloc
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


def test_the_file_is_that_of_numpy(tmp_path):
    """So that files of all releases are alike."""
    arrays = [np.float32([[1], [2]]), np.float64(3), np.zeros((0, 2), np.complex64)]
    state = State([1, 2, 3], arrays, HYPERPARAMETERS)
    state.save(tmp_path / "a")
    write(tmp_path / "b", state)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_neither_save_nor_load_needs_memory_beside_the_state(tmp_path, dtype):
    number = np.ones((), "float32" if dtype == "bfloat16" else dtype)
    state = State(1, [np.broadcast_to(number, (600, 5000))] * 2, dtypes=[dtype] * 2)
    held = sum(v.nbytes for v in state.velocities)
    tracemalloc.start()
    try:
        state.save(tmp_path / "s")
        assert tracemalloc.get_traced_memory()[1] < 0.1 * held
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        loaded = State.load(tmp_path / "s")
        assert held < tracemalloc.get_traced_memory()[1] - before < 1.1 * held
    finally:
        tracemalloc.stop()
    assert same(loaded, state)


@pytest.mark.parametrize(
    ("signature", "place", "message"),
    [
        (b"PK\6\7", 8, "its 64-bit directory is elsewhere"),
        (b"PK\6\6", 40, "its directory contradicts itself"),
        (b"PK\5\6", 12, "its directory contradicts itself"),  # neither the same nor the most
        (b"PK\1\2", 48, "a 64-bit number is missing"),
    ],
)
def test_64_bit_fields_that_lie_are_refused(tmp_path, monkeypatch, signature, place, message):
    for name in ("ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT"):
        monkeypatch.setattr(zipfile, name, 1)
    GOOD.save(tmp_path / "s")
    data = (tmp_path / "s").read_bytes()
    if signature == b"PK\1\2":  # where its extra field says how long it is
        place = 46 + len("velocity_1.npy") + 2
    # A byte less than three numbers have.
    (tmp_path / "s").write_bytes(patched(data, signature, place, 23, width=2))
    with pytest.raises(ValueError, match=f"but {message}$"):
        State.load(tmp_path / "s")


def test_a_state_of_many_tensors(tmp_path):
    """Its header is longer than the parts in which numbers are written."""
    state = State(list(range(3000)), [np.zeros(0, np.float32)] * 3000)
    state.save(tmp_path / "s")
    assert same(State.load(tmp_path / "s"), state)


def test_files_of_more_than_four_gigabytes_have_64_bit_fields(tmp_path, monkeypatch):
    for name in ("ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT"):
        monkeypatch.setattr(zipfile, name, 1)
    state = one_of_each()
    state.save(tmp_path / "s")
    assert b"PK\6\6" in (tmp_path / "s").read_bytes()
    assert same(State.load(tmp_path / "s"), state)


def test_arrays_of_other_programs(tmp_path):
    """In Fortran's order, with npy headers of version 2.0, and in any order in the archive."""
    v = np.arange(6.0).reshape(2, 3)
    state = State(1, [v, np.float32([1])], HYPERPARAMETERS)
    write(tmp_path / "a", state, velocity_0=np.asfortranarray(v))
    assert same(State.load(tmp_path / "a"), state)
    with zipfile.ZipFile(tmp_path / "a") as old, zipfile.ZipFile(tmp_path / "b", "w") as new:
        for name in reversed(old.namelist()):
            file = io.BytesIO()
            np.lib.format.write_array(file, np.load(io.BytesIO(old.read(name))), version=(2, 0))
            new.writestr(name, file.getvalue())
    assert same(State.load(tmp_path / "b"), state)


def test_a_file_of_another_byte_order_is_read(tmp_path):
    state = State(1, [np.arange(3.0)])
    write(tmp_path / "s", state, velocity_0=np.arange(3.0).astype(">f8"))
    assert same(State.load(tmp_path / "s"), state)


@pytest.mark.parametrize("at", ["header", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, at):
    path = tmp_path / "run.npz"
    old = State(1, [np.ones(2)])
    old.save(path)

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    if at == "header":
        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    else:
        monkeypatch.setattr(os, at, full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'$"):
        State(2, [np.zeros(2)]).save(path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    assert same(State.load(path), old)


def test_a_file_is_written_beside_its_place_and_hidden(tmp_path, monkeypatch):
    """Only within a file system is a file replaced at once."""
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (written.append(a), replace(a, b)))
    State(1, [np.ones(2)]).save(tmp_path / "s")
    (path,) = written
    assert os.path.dirname(path) == os.path.realpath(tmp_path)
    assert os.path.basename(path).startswith(".gravity-")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX links and permissions")
def test_a_save_follows_a_link_and_keeps_the_mode(tmp_path):
    State(1, []).save(tmp_path / "real")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    State(2, []).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert State.load(tmp_path / "real").t == State.load(tmp_path / "link").t == 2
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o600


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
        (with_value("velocity_std", None), {}, "hyperparameters must contain velocity_std, got {"),
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


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (None, TypeError, "path must be a str or an os.PathLike, got None"),
        (0, TypeError, "path must be a str or an os.PathLike, got 0"),
        (["a"], TypeError, "path must be a str or an os.PathLike, got .'a'."),
        ("a\0b", ValueError, r"path must be a possible name of a file, got 'a\\x00b'"),
        pytest.param(
            "\ud800",
            ValueError,
            r"path must be a possible name of a file, got '\\ud800'",
            marks=pytest.mark.skipif(os.name == "nt", reason="Windows has such names"),
        ),
    ],
)
def test_what_names_no_file_is_refused(path, error, message):
    """0 would be standard input."""
    for use in (State.load, State(1, [np.ones(1)]).save):
        with pytest.raises(error, match=f"^{message}"):
            use(path)


def test_a_path_may_be_bytes(tmp_path):
    path = tmp_path / "β.npz"
    State(3, [np.ones(1)]).save(os.fsencode(path))
    assert State.load(os.fsencode(path)).t == State.load(path).t == 3


def test_a_file_that_is_not_an_archive_is_refused(tmp_path):
    path = tmp_path / "bad"
    array = io.BytesIO()
    np.save(array, np.ones(3))
    for data in (b"", b"text", array.getvalue()):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{path}: must be an .npz file that stores its "):
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


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
def test_a_pipe_and_a_device_without_end_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in ("/dev/zero", tmp_path / "link", tmp_path / "pipe"):
        for error in (OSError, ValueError):  # it is both
            with pytest.raises(error, match=f"must be a regular file, got a .*: '{path}'"):
                State.load(path)
    with pytest.raises(IsADirectoryError):
        State.load(tmp_path)


def peak(path, message):
    """Return the memory in which a file is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            State.load(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_compressed_file_is_refused_unread(tmp_path):
    path = tmp_path / "s"
    with path.open("wb") as file:
        np.savez_compressed(file, header=np.asarray("{}"), velocity_0=np.zeros(10**7))
    assert path.stat().st_size < 10**5
    assert peak(path, "stores its arrays, .* but 'header.npy' is compressed") < 10**5


@pytest.mark.parametrize(
    "shape",
    [
        *("(2305843009213693952, 8)", "(1000000000,)", "(-1, -2)", "(2", "(1,)", "(0,)"),
        "(" + "1, " * 64 + "2)",
    ],
)
def test_an_array_of_another_size_than_its_member_is_refused_unread(tmp_path, shape):
    path = tmp_path / "s"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    member = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(16)
    write(path, State(1, []), {"dtypes": ["float64"]})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("velocity_0.npy", member)
    assert peak(path, "'velocity_0' (has 16 bytes for f8 of shape|is no array|has 65 dim)") < 10**5


def test_the_version_is_refused_before_any_velocity_is_read(tmp_path):
    path = tmp_path / "s"
    write(path, GOOD, {"version": 2}, velocity_0=np.ones(10**6, np.int64), other=np.ones(1))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # the numbers are damaged, too
    path.write_bytes(data)
    assert peak(path, "version must be 1 for this release, got 2") < 10**5


def test_a_header_longer_than_its_velocities_need_is_refused_unread(tmp_path):
    path = tmp_path / "s"
    write(path, GOOD, "[" + "[]," * 10**6 + "[]]")
    assert peak(path, r"header must have at most \d+ characters, got 3000004") < 10**5


def test_too_little_memory_is_called_so(tmp_path, monkeypatch):
    GOOD.save(tmp_path / "s")

    def full(*arguments):
        raise MemoryError("Unable to allocate")

    for target, name in ((np, "empty"), (np, "frombuffer"), (zipfile.zlib, "crc32")):
        monkeypatch.setattr(target, name, full)
        with pytest.raises(MemoryError, match="Unable to allocate"):
            State.load(tmp_path / "s")
        monkeypatch.undo()


def patched(data, signature, place, number, width=4):
    """Return an archive with another number in its last record of a kind."""
    at = data.rindex(signature) + place
    return data[:at] + number.to_bytes(width, "little") + data[at + width :]


@pytest.mark.parametrize(
    ("signature", "place", "number", "message"),
    [
        (b"PK\5\6", 4, 1, "its directory contradicts itself"),
        (b"PK\5\6", 8, 9 + 3 * 2**16, "its directory contradicts itself"),
        (b"PK\5\6", 10, 9, "its directory contradicts itself"),
        (b"PK\5\6", 18, 5 * 2**16, "its directory contradicts itself"),
        (b"PK\5\6", 12, 2**32 - 2, "its directory contradicts itself"),
        (b"PK\5\6", 16, 2**32 - 1, "its directory contradicts itself"),
        (b"PK\1\2", 20, 8, "'velocity_1.npy' is encrypted, streamed or split"),
        (b"PK\1\2", 42, 0, "'velocity_1.npy' does not begin where the one before ends"),
        (b"PK\3\4", 14, 0, "'velocity_1.npy' differs from the directory"),
        (b"PK\3\4", 30, 0, "'velocity_1.npy' differs from the directory"),
        (b"PK\1\2", 28, 60000, "the name of an array has 60000 bytes, and 0 more"),
        (b"PK\1\2", 30, 60000, "the name of an array has 14 bytes, and 60000 more"),
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path, signature, place, number, message):
    GOOD.save(tmp_path / "s")
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(patched(data, signature, place, number))
    with pytest.raises(ValueError, match=f"but {message}$"):
        State.load(tmp_path / "s")


def test_an_encrypted_member_is_refused(tmp_path):
    GOOD.save(tmp_path / "s")
    data = (tmp_path / "s").read_bytes()
    data = patched(patched(data, b"PK\1\2", 8, 1, width=2), b"PK\3\4", 6, 1, width=2)
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(ValueError, match=r"'velocity_1\.npy' is encrypted, streamed or split"):
        State.load(tmp_path / "s")


@pytest.mark.parametrize("where", ["before", "after", "between", "in the directory"])
def test_bytes_that_belong_to_nothing_are_refused(tmp_path, where):
    GOOD.save(tmp_path / "s")
    data = (tmp_path / "s").read_bytes()
    if where == "between":  # the last member and the directory, whose place is mended
        at = data.index(b"PK\1\2")
        data = data[:at] + b"1234" + data[at:]
        data = patched(data, b"PK\5\6", 16, at + 4)
    if where == "in the directory":
        at = data.index(b"PK\5\6")
        length = int.from_bytes(data[at + 12 : at + 16], "little")
        data = patched(data[:at] + b"1234" + data[at:], b"PK\5\6", 12, length + 4)
    (tmp_path / "s").write_bytes({"before": b"1" + data, "after": data + b"1"}.get(where, data))
    with pytest.raises(ValueError, match=r"must be an \.npz file that stores its arrays one after"):
        State.load(tmp_path / "s")


@pytest.mark.parametrize("name", ["/velocity_2.npy", "../velocity_2.npy", "velocity_02.npy"])
def test_other_names_are_refused(tmp_path, name):
    GOOD.save(tmp_path / "s")
    with zipfile.ZipFile(tmp_path / "s", "a") as archive:
        archive.writestr(name, archive.read("velocity_1.npy"))
    with pytest.raises(ValueError, match="one velocity for each of the 2 dtypes"):
        State.load(tmp_path / "s")


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
