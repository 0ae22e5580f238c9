"""Check a file of vectors against the schema and against the mathematics.

Guarantee: a file without faults is right, no matter who made it. Every result is the one that
exact arithmetic gives for its inputs. Both notations of a number agree. Every mistake in a test's
flags has been tried, and the test catches it.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from gravity_conformance.vectors import flags, read_test
from gravity_conformance.vectors.making.answers import ANSWERS, FaultError, Json, value
from gravity_conformance.vectors.making.notes import NOTES
from gravity_core import _files
from gravity_core._json import loads

LARGEST = 50_000_000
"""The bytes of the largest file that is read. The files of this project have up to 150,000."""
MOST = 100
"""The most faults of a file that are listed."""


def check(path: Path) -> list[str]:
    """Return the faults of a file, one line each; an empty list if there are none.

    Raises:
        OSError: if the file cannot be read.
        ModuleNotFoundError: if jsonschema or mpmath is not installed.
    """
    with _files.open_input(path) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        return [f"is larger than {LARGEST:,} bytes, so it was not read"]
    try:
        content = loads(data.decode("utf-8"), parse_constant=no_constant)
    except ValueError as error:  # includes decoding errors
        return [_line(f"is not JSON: {error}")]
    return _first(_schema_faults(content)) or _first(
        itertools.chain(_bookkeeping_faults(content), _test_faults(content))
    )


def _first(faults: Iterator[str]) -> list[str]:
    """Return the first faults, because a file can have as many as it has bytes."""
    found = list(itertools.islice(faults, MOST + 1))
    return found if len(found) <= MOST else [*found[:MOST], f"has more than these {MOST} faults"]


def no_constant(name: str) -> None:
    """Refuse the constants that `json` reads and JSON lacks: NaN and infinities."""
    raise ValueError(f"JSON has no number {name}; write it as a string")


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def _place(path: Any) -> str:
    """Return a place in a file, such as ``groups[0].tests[3]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".")


def _schema_faults(content: Any) -> Iterator[str]:
    import jsonschema

    schema = json.loads((resources.files(__package__) / "schema.json").read_text(encoding="utf-8"))
    standard = jsonschema.Draft202012Validator
    # The standard accepts 1.0 as an integer.
    types = standard.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int)

    def unique(_: Any, wanted: bool, found: Any, __: Any) -> Iterator[Any]:
        # jsonschema's own compares each pair of a list of several types.
        texts = [json.dumps(x, sort_keys=True) for x in found] if isinstance(found, list) else []
        if wanted and len(set(texts)) < len(texts):
            yield jsonschema.ValidationError(f"{found!r} has non-unique elements")

    own = {"uniqueItems": unique}
    validator = jsonschema.validators.extend(standard, own, type_checker=types)(schema)
    for error in validator.iter_errors(content):
        yield _line(f"{_place(error.absolute_path) or 'the file'}: {error.message}")


def _bookkeeping_faults(content: Json) -> Iterator[str]:
    tests = [test for group in content["groups"] for test in group["tests"]]
    if content["number_of_tests"] != len(tests):
        yield f"number_of_tests: is {content['number_of_tests']}, must be {len(tests)}"
    for test_id, count in Counter(test["id"] for test in tests).items():
        if count > 1:
            yield f"tests: {count} tests have the id {test_id}"
    used = {flag for test in tests for flag in test["flags"]}
    for flag in sorted(used - content["notes"].keys()):
        yield _line(f"notes: the flag {flag!r} is used but not explained")
    for flag in sorted(content["notes"].keys() - used):
        yield _line(f"notes: the flag {flag!r} is explained but not used")
    for flag, note in content["notes"].items():
        if flag in NOTES and note["kind"] != NOTES[flag]["kind"]:
            kind = NOTES[flag]["kind"]
            yield _line(f"notes: the kind of {flag!r} must be {kind}, got {note['kind']}")


def _test_faults(content: Json) -> Iterator[str]:
    for i, group in enumerate(content["groups"]):
        for j, test in enumerate(group["tests"]):
            place = f"{_place(['groups', i, 'tests', j])} (id {test['id']})"
            try:
                wanted = ANSWERS[group["type"]](test, group["dtype"])
            except FaultError as error:
                yield _line(f"{place}: {error}")
                continue
            found = list(_differences(test, wanted, []))
            if found:
                more = f" ({len(found) - 1} more in this test)" if len(found) > 1 else ""
                yield _line(f"{place}: {found[0]}{more}")
                continue
            yield from (_line(f"{place}: {fault}") for fault in _flag_faults(test, group, content))


def _flag_faults(test: Json, group: Json, content: Json) -> Iterator[str]:
    of = {flag: content["notes"].get(flag, {}).get("kind") for flag in test["flags"]}
    mistakes = [flag for flag, kind in of.items() if kind == "mistake"]
    read = read_test(test, group["type"], group["dtype"])
    for flag in flags.untrue(read, group["dtype"], mistakes):
        if flag in NOTES:
            yield f"flags: {flag!r} is wrong: an implementation with that mistake passes"
        else:
            yield f"flags: {flag!r} is not a known mistake, so it was not tried"


def _differences(given: Any, wanted: Any, path: list[str | int]) -> Iterator[str]:
    """Yield a description of each difference. `given` conforms to the schema."""
    if isinstance(wanted, dict):
        if "hex" in wanted:
            yield from _number_differences(given, wanted, path)
            return
        for key, item in wanted.items():
            yield from _differences(given[key], item, [*path, key])
    elif isinstance(wanted, list):
        if len(given) != len(wanted):
            yield f"{_place(path)}: must have {len(wanted)} entries, got {len(given)}"
            return
        for i, item in enumerate(wanted):
            yield from _differences(given[i], item, [*path, i])
    elif given != wanted:
        yield f"{_place(path)}: is {given}, but the mathematics gives {wanted}"


def _number_differences(given: Json, wanted: Json, path: list[str | int]) -> Iterator[str]:
    """Compare one number or the numbers of a tensor, in both notations."""
    if isinstance(wanted["hex"], str):
        given, wanted = ({k: [x] for k, x in numbers.items()} for numbers in (given, wanted))
    for name, numbers in given.items():
        if len(numbers) != len(wanted["hex"]):
            size = len(wanted["hex"])
            yield f"{_place([*path, name])}: must have {size} entries, got {len(numbers)}"
            return
    for i, (text, right) in enumerate(zip(given["hex"], wanted["hex"], strict=True)):
        number = value(text)
        if number != value(right) and text != right:  # NaN is not equal to itself
            yield f"{_place([*path, 'hex', i])}: is {text}, but the mathematics gives {right}"
        elif (y := given["decimal"][i]) not in (wanted["decimal"][i], number):
            where = _place([*path, "decimal", i])
            yield f"{where}: is {y}, must be {wanted['decimal'][i]}, which is {text}"
        elif "tolerance" in wanted and given["tolerance"][i] != wanted["tolerance"][i]:
            where = _place([*path, "tolerance", i])
            yield f"{where}: is {given['tolerance'][i]}, must be {wanted['tolerance'][i]}"
