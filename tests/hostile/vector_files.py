"""Spoilt files of vectors: `check` names a fault of each, or the file says what it said before."""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from gravity_conformance.vectors import files
from gravity_conformance.vectors.check import check
from tests.hostile.running import Case, repeat

VALUES: list[Any] = [
    *(0, 1, -1, 2**63, 10**400, -(10**400), 1.5, -0.0, 1e308, 5e-324, None, True, "", "x"),
    *("NaN", "Infinity", "0x1p+0", "0x1p+99999999999", "0x", "1e5", "\0", "\x1b[31m", "é"),
    *([], {}, [[]], {"": 0}, {"hex": "0x1p+0"}, {"hex": [], "decimal": []}, [0] * 1000),
    *("0" * 5000, "[" * 3000),
]
# What `check` does not judge: words for people, numbers of tests, flags that are left out.
TEXTS = ("comment", "description", "header", "algorithm", "version", "flags", "id")


def small_files() -> list[dict[str, Any]]:
    """Return the files of vectors with the first two tests of their first two groups."""
    small = []
    for path in files():
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["groups"][2:]
        for group in content["groups"]:
            del group["tests"][2:]
        tests = [test for group in content["groups"] for test in group["tests"]]
        content["number_of_tests"] = len(tests)
        used = {flag for test in tests for flag in test["flags"]}
        content["notes"] = {k: v for k, v in content["notes"].items() if k in used}
        small.append(content)
    return small


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the path of every value."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def without_texts(content: Any) -> Any:
    """Return what `check` judges."""
    if isinstance(content, dict):
        return {k: without_texts(x) for k, x in content.items() if k not in TEXTS}
    return [*map(without_texts, content)] if isinstance(content, list) else repr(content)


def edited(content: dict[str, Any], random: Random) -> tuple[str, bytes]:
    """Change one place of the JSON."""
    spoilt = copy.deepcopy(content)
    *way, last = random.choice([*places(spoilt)])
    inside: Any = spoilt
    for key in way:
        inside = inside[key]
    change = random.choice(["value", "value", "remove", "repeat", "rename", "many"])
    if change == "value":
        inside[last] = random.choice(VALUES)
    elif change == "remove":
        del inside[last]
    elif isinstance(inside, list):
        inside += [copy.deepcopy(inside[last])] * (1 if change == "repeat" else 300)
    else:
        inside[f"{last}{random.choice(['_', '', chr(0), 'é'])}"] = inside.pop(last)
    return f"{change} at {[*way, last]}", json.dumps(spoilt).encode()


def spoilt_bytes(content: dict[str, Any], random: Random) -> tuple[str, bytes]:
    """Flip a bit, cut, repeat or overwrite a piece of the file."""
    data = json.dumps(content).encode()
    a, b = sorted(random.sample(range(len(data)), 2))
    flipped = bytearray(data)
    flipped[a] ^= 1 << random.randrange(8)
    changed = {
        "bit": bytes(flipped),
        "cut": data[:a],
        "piece out": data[:a] + data[b:],
        "piece twice": data[:b] + data[a:],
        "other bytes": data[:a] + random.randbytes(3) + data[a + 3 :],
        "deep": data[:a] + b"[" * 100_000 + data[a:],
        "BOM": b"\xef\xbb\xbf" + data,
        "UTF-16": json.dumps(content).encode("utf-16"),
    }
    kind = random.choice(list(changed))
    return f"{kind} at {a}, {b}", changed[kind]


def cases(random: Random, folder: Path) -> Iterator[Case]:
    """Return spoilt files, without end."""
    contents = small_files()
    path = folder / "spoilt.json"
    while True:
        content, kind = random.choice(contents), random.choice([edited, spoilt_bytes])
        name, data = kind(content, random)

        def attempt(content: Any = content, data: bytes = data) -> str:
            path.write_bytes(data)
            try:
                faults = check(path)
            except Exception as error:
                raise AssertionError(f"a raw error: {error!r}") from error
            for line in faults:
                assert line.isprintable(), f"unprintable: {line!r}"
            if faults:
                return "refused"
            try:
                same = without_texts(json.loads(data)) == without_texts(content)
            except ValueError:
                same = False
            assert same, "other content, and no fault was found"
            return "no result changed"

        yield Case(kind.__name__.replace("_", " "), name, attempt)


def run(random: Random, folder: Path, **limits: Any) -> Counter[str]:
    """Try spoilt files until a limit of `running.repeat`."""
    return repeat(cases(random, folder), **limits)
