"""Spoilt files of a State: each is refused with a ValueError, or gives exactly its numbers.

`faults` yields spoilt files, and `try_fault` loads one of them. Which numbers are right is what
NumPy and json read from the same file. A violation is an AssertionError.
"""

import functools
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from gravity_core import State
from tests.hostile.running import Case, repeat

SHAPES = {
    "float16": [(3,)],
    "bfloat16": [(2, 2), ()],
    "float32": [(2, 1)],
    "float64": [(), (0, 2)],
    "complex64": [(1,)],
    "complex128": [(1, 1)],
}
HYPERPARAMETERS = {"learning_rate": 0.3, "velocity_std": 0.5, "seed": 7}

# What a number of a header is replaced by.
NUMBERS = (
    *(-(2**63), -1, 0, 1, 2, 7, 2**16 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**64, 10**30),
    *(1.5, 1e400, float("nan"), True, None, "1", [], {}, [1], "x" * 1000, 10**400),
)
SHAPES_ASKED = (
    *("()", "(0,)", "(1,)", "(3,)", "(-1,)", "(2, -1)", "(4294967296, 4294967296)"),
    *(
        "(9223372036854775807,)",
        "(18446744073709551615, 2)",
        "(0, 9223372036854775807)",
        "(0, 9999999999999999999)",
        "(1.0,)",
    ),
    *(
        "(3L,)",
        "3",
        "(3)",
        "(03,)",
        "(3 ,)",
        "(,)",
        "[3]",
        "(" + "1, " * 70 + ")",
        "(" + "2, " * 3000 + ")",
        "(3",
        "(True,)",
        "",
    ),
    *("(" + "9" * 5000 + ",)", "(" * 900 + ")" * 900, "__import__('os')"),
)
DESCRIPTIONS = (
    *("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c8", "<c16", "<u2", ">u2", "<i4", "|O"),
    *("|V4", "<U3", "|S4", "<f16", "<M8[ns]", "f4", "=f4", "", "<f", "<f99999999999", "\\x00f4"),
)


class Fault(NamedTuple):
    """A spoilt file: its name, its bytes, and the state that it was, if only that may be read."""

    name: str
    data: bytes
    state: State | None


def states() -> Iterator[State]:
    """Return a small state of each dtype, and one of several."""
    for dtype, shapes in SHAPES.items():
        held = "float32" if dtype == "bfloat16" else dtype
        arrays = [np.full(shape, 1.5, held) for shape in shapes]
        yield State(3, arrays, HYPERPARAMETERS, dtypes=[dtype] * len(arrays))
    arrays = [np.arange(2, dtype=dtype) for dtype in ("float64", "float32")]
    yield State([1, 2], arrays, HYPERPARAMETERS)


def saved(state: State) -> bytes:
    """Return the bytes of a state's file."""
    file = io.BytesIO()
    state._write(file)
    return file.getvalue()


def archive(members: list[tuple[str, bytes]], **options: object) -> bytes:
    """Return an archive with right checksums."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", **options) as new:  # type: ignore[call-overload]
        warnings.simplefilter("ignore")  # of duplicate names
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name), data, new.compression)
    return file.getvalue()


def members(data: bytes) -> list[tuple[str, bytes]]:
    """Return the members of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        return [(name, old.read(name)) for name in old.namelist()]


def array(numbers: object) -> bytes:
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, np.asarray(numbers))
    return file.getvalue()


# Damage: a right checksum would be an accident


def flips(state: State, random: Random) -> Iterator[Fault]:
    """Flip every bit, in random order."""
    data = saved(state)
    for place in random.sample(range(8 * len(data)), 8 * len(data)):
        spoilt = bytearray(data)
        spoilt[place // 8] ^= 1 << place % 8
        yield Fault(f"bit {place}", bytes(spoilt), state)


def truncations(state: State, random: Random) -> Iterator[Fault]:
    """Cut the file at every place, in random order."""
    data = saved(state)
    for end in random.sample(range(len(data)), len(data)):
        yield Fault(f"cut at {end}", data[:end], state)


def edits_of_bytes(state: State, random: Random) -> Iterator[Fault]:
    """Overwrite, insert, remove, repeat and move pieces, without end."""
    data = saved(state)
    while True:
        a, b = sorted(random.sample(range(len(data) + 1), 2))
        c = random.randrange(len(data))
        piece = random.choice([data[a:b], random.randbytes(b - a), bytes(b - a), b"\xff" * (b - a)])
        kind = random.choice(["over", "in", "out", "after", "before"])
        spoilt = {
            "over": data[:c] + piece + data[c + len(piece) :],
            "in": data[:c] + piece + data[c:],
            "out": data[:a] + data[b:],
            "after": data + piece,
            "before": piece + data,
        }[kind]
        if spoilt != data:
            yield Fault(f"{kind} {a} {b} {c}", spoilt, state)


def edits_of_the_directory(state: State, random: Random) -> Iterator[Fault]:
    """Write other numbers into the fields of the archive's records, one or both copies."""
    data = saved(state)
    marks = (b"PK\1\2", b"PK\3\4", b"PK\5\6")
    places = [(m, k) for m in marks for k in range(len(data)) if data.startswith(m, k)]
    widths = {b"PK\1\2": 46, b"PK\3\4": 30, b"PK\5\6": 22}
    while True:
        spoilt = bytearray(data)
        names = []
        for mark, place in random.sample(places, random.choice([1, 1, 2, 3])):
            at = random.randrange(4, widths[mark] - 3)
            form = random.choice(["<H", "<L"])
            old = struct.unpack_from(form, data, place + at)[0]
            limit = 256 ** struct.calcsize(form)
            new = random.choice([0, 1, 8, len(data), limit - 1, limit // 2, old + 1, old - 1])
            struct.pack_into(form, spoilt, place + at, new % limit)
            names.append(f"{mark!r} at {place} + {at}: {new}")
        if spoilt != data:
            yield Fault("; ".join(names), bytes(spoilt), state)


# Files of strangers: every checksum is right


def edits_of_json(state: State, random: Random) -> Iterator[Fault]:
    """Change what the header says."""
    whole = members(saved(state))
    good = json.loads(str(np.load(io.BytesIO(whole[0][1]))))
    while True:
        header = json.loads(json.dumps(good))
        values = header["hyperparameters"] if random.random() < 0.5 else header
        key = random.choice(list(values))
        change = random.choice(["value", "remove", "rename", "add", "item"])
        if change == "value":
            values[key] = random.choice(NUMBERS)
        elif change == "item" and isinstance(values[key], list) and values[key]:
            values[key][random.randrange(len(values[key]))] = random.choice(NUMBERS)
        elif change == "add":
            values[random.choice(["x", "momentum", "Format", ""])] = random.choice(NUMBERS)
        else:
            old = values.pop(key)
            if change == "rename":
                values[key + random.choice([" ", "_", "\0"])] = old
        text = json.dumps(header)
        if random.random() < 0.2:
            a, b = sorted(random.sample(range(len(text)), 2))
            text = random.choice([text[:a], text[b:], text[:a] + text[b:], text[:b] + text[a:]])
        yield Fault(f"header {text!r}", archive([("header.npy", array(text)), *whole[1:]]), None)


def edits_of_arrays(state: State, random: Random) -> Iterator[Fault]:
    """Change what an array says about itself."""
    whole = members(saved(state))
    while True:
        spoilt = list(whole)
        place = random.randrange(len(spoilt))
        name, data = spoilt[place]
        body = data[10 + struct.unpack_from("<H", data, 8)[0] :]
        length = random.choice([*[len(body)] * 9, 0, 1, 2 * len(body)])
        found = np.load(io.BytesIO(data))
        description = random.choice([*DESCRIPTIONS, *[found.dtype.str] * 9])
        fortran = random.choice(["False", "False", "True", "None", "1"])
        shape = random.choice([*SHAPES_ASKED, *[str(found.shape)] * 9])
        text = f"{{'descr': '{description}', 'fortran_order': {fortran}, 'shape': {shape}, }}"
        text += " " * random.choice([0, 1, 60, 9000]) + random.choice(["\n", "\n", ""])
        version = random.choice([*[1] * 9, 2, 2, 3, 0, 255])
        size = random.choice([*[len(text)] * 9, len(text) + 1, 0, 65535])
        head = b"\x93NUMPY" + bytes([version, 0])
        head += struct.pack("<H" if version == 1 else "<L", size) + text.encode()
        spoilt[place] = name, head + (body * 2)[:length]
        yield Fault(f"{name}: {head[:200]!r}, {length} bytes", archive(spoilt), None)


def edits_of_members(state: State, random: Random) -> Iterator[Fault]:
    """Add, remove, rename, reorder and compress members."""
    whole = members(saved(state))
    while True:
        spoilt = list(whole)
        options: dict[str, object] = {}
        kind = random.choice(["shuffle", "twice", "drop", "rename", "more", "deflate", "comment"])
        place = random.randrange(len(spoilt))
        name, data = spoilt[place]
        if kind == "shuffle":
            random.shuffle(spoilt)
        elif kind == "twice":
            spoilt.append((random.choice([name, name.removesuffix(".npy")]), data))
        elif kind == "drop":
            del spoilt[place]
        elif kind == "rename":
            new = ["/" + name, "../" + name, name.upper(), "", name + "\0", "ß.npy", "a" * 60000]
            spoilt[place] = random.choice(new), data
        elif kind == "more":
            spoilt.append((f"velocity_{random.randrange(9)}.npy", data))
        elif kind == "deflate":
            methods = [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
            options["compression"] = random.choice(methods)
        yield Fault(f"members: {kind} {place}", archive(spoilt, **options), None)


DAMAGE = (flips, truncations, edits_of_bytes, edits_of_the_directory)
STRANGE = (edits_of_json, edits_of_arrays, edits_of_members)


def faults(random: Random) -> Iterator[tuple[str, Fault]]:
    """Return spoilt files of all kinds and states in turn, without end, each with its kind."""
    # The state goes along as an argument: a generator would see the last one.
    made: list[tuple[str, Iterator[Fault]]] = [
        (f"{kind.__name__} of {state.dtypes[0]}", kind(state, random))
        for state in states()
        for kind in DAMAGE + STRANGE
    ]
    while made:
        for kind, source in list(made):
            found = next(source, None)
            if found is None:
                made.remove((kind, source))
            else:
                yield kind, found


def try_fault(fault: Fault, path: Path) -> str:
    """Load a spoilt file; return "refused" or "read", or raise AssertionError."""
    path.unlink(missing_ok=True)  # ext4 flushes a file that is written again
    path.write_bytes(fault.data)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    message = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = State.load(path)
    except ValueError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{fault.name}: {error!r}") from error
    else:
        _compare(state, fault.state or _by_numpy(path, fault), fault)
    if message:
        assert message.startswith(f"{path}: "), f"{fault.name}: {message}"
        assert len(message) < 2000 + len(str(path)), f"{fault.name}: a long message"
    if tracemalloc.is_tracing():
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak < 2**18 + 12 * len(fault.data), f"{fault.name}: {peak} bytes"
    return "refused" if message else "read"


def _by_numpy(path: Path, fault: Fault) -> State:
    with np.load(path, allow_pickle=False) as read:
        header = json.loads(str(read["header"]))
        arrays = [read[f"velocity_{i}"] for i in range(len(header["dtypes"]))]
        assert len(read.files) == len(arrays) + 1, fault.name
    for i, name in enumerate(header["dtypes"]):
        if name == "bfloat16":
            arrays[i] = (arrays[i].astype(np.uint32) << 16).view(np.float32)
    return State(header["t"], arrays, header["hyperparameters"], dtypes=header["dtypes"])


def _compare(got: State, wanted: State, fault: Fault) -> None:
    assert (got.t, got.dtypes) == (wanted.t, wanted.dtypes), fault.name
    assert got.hyperparameters == wanted.hyperparameters, fault.name
    for a, b in zip(got.velocities, wanted.velocities, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), fault.name
        assert a.tobytes() == b.tobytes(), fault.name


SAVING = """
import signal, sys
import numpy as np
from gravity_core import State

for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP

for t in range(10**9):
    State(t, [np.full(10**6, float(t))], {"velocity_std": 1}).save(sys.argv[1])
    print(flush=True)
"""


def kills(random: Random, folder: Path) -> Iterator[Case]:
    """Return kills of a process that saves one file again and again, without end.

    The file must stay whole, and the next save must remove what was left.
    """
    path = folder / "killed.npz"

    def attempt() -> str:
        command = [sys.executable, "-c", SAVING, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.uniform(0, 0.05))
            process.send_signal(number)
        state = State.load(path)
        assert (state.velocities[0] == state.t).all(), "numbers of two saves in one file"
        left = [name for name in os.listdir(folder) if name.startswith(".gravity-")]
        state.save(path)
        assert os.listdir(folder) == [path.name], f"the next save left {left}"
        return "whole, a file was left and removed" if left else "whole"

    while True:
        number = random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
        yield Case("kill", signal.Signals(number).name, attempt)


def run_kills(random: Random, folder: Path, **limits: Any) -> Counter[str]:
    """Kill saves until a limit of `running.repeat`."""
    return repeat(kills(random, folder), **limits)


def cases(random: Random, folder: Path) -> Iterator[Case]:
    """Return spoilt files, each with its load."""
    path = folder / "spoilt.npz"
    for kind, fault in faults(random):
        yield Case(kind, fault.name, functools.partial(try_fault, fault, path))


def run(random: Random, folder: Path, **limits: Any) -> Counter[str]:
    """Try spoilt files until a limit of `running.repeat`."""
    return repeat(cases(random, folder), **limits)
