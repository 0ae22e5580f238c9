"""Read the results of a port on the vectors, a JSON file that results_schema.json describes.

Guarantee: results that are returned conform to the schema, name tests that exist, and have the
shapes of the tests.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from gravity_conformance.explain.table import Vector
from gravity_conformance.vectors import Expected, UpdateTest
from gravity_conformance.vectors.check import no_constant
from gravity_core._json import loads

Arrays = list[np.ndarray]
Named = tuple[str, int | None, Expected, np.ndarray]


@dataclass(frozen=True)
class Results:
    """The results of a port.

    Attributes:
        failed: the tests with a wrong result.
        passed: the other tests that were run.
        gradients_changed: the names of the tests in which a step changed a gradient array.
        got: what the port computed, by the name of a failed test.
    """

    failed: list[Vector]
    passed: list[Vector]
    gradients_changed: set[str]
    got: dict[str, "Got"]


@dataclass(frozen=True)
class Got:
    """What a port computed in one test.

    Attributes:
        named: the name of each number or tensor, its step (None outside updates), what the test
            expects, and what the port computed, in the order in which a port computes them.
        states: V (None if it is not given) and W of all tensors after each step of a test of type
            update.
    """

    named: list[Named]
    states: list[tuple[Arrays | None, Arrays]]


def read(text: str, vectors: dict[str, Vector]) -> Results:
    """Read a file of results.

    Args:
        text: the file's content.
        vectors: every test, by its name.

    Raises:
        ValueError: with the reason in one line.
        ModuleNotFoundError: if jsonschema is not installed.
    """
    import jsonschema

    content = loads(text, parse_constant=no_constant, parse_int=float)
    schema = resources.files("gravity_conformance.vectors") / "results_schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    for error in validator.iter_errors(content):
        raise ValueError(f"{error.json_path}: {error.message[:200]}")
    lists = {key: content.get(key, []) for key in ("failed", "passed", "gradients_changed")}
    for key, names in (*lists.items(), ("got", list(content.get("got", {})))):
        for name in names:
            if name not in vectors:
                raise ValueError(f"{key}: there is no test {name!r}")
            if key == "passed" and name in lists["failed"]:
                raise ValueError(f"{key}: {name!r} is in failed, too")
            if key in ("gradients_changed", "got") and name not in lists["failed"]:
                raise ValueError(f"{key}: {name!r} is not in failed")
    if not (lists["failed"] or lists["passed"]):
        raise ValueError("failed and passed are empty, so no test was run")
    return Results(
        [vector for name, vector in vectors.items() if name in lists["failed"]],
        [vector for name, vector in vectors.items() if name in lists["passed"]],
        set(lists["gradients_changed"]),
        {name: _got(vectors[name], found) for name, found in content.get("got", {}).items()},
    )


def _got(vector: Vector, found: Any) -> Got:
    test, where = vector.test, f"got of {vector.name}"
    if isinstance(test, UpdateTest):
        if found.keys() - {"steps"}:
            raise ValueError(f"{where}: a test of type update has steps only")
        return _got_of_updates(vector, found.get("steps", []), where)
    pairs = {
        "coefficients": [("beta_hat", "β̂"), ("one_minus_beta_hat", "1 − β̂")],
        "initial_velocity": [("V", "V₀")],
    }.get(vector.type, [])
    if wrong := found.keys() - {key for key, _ in pairs}:
        raise ValueError(f"{where}: a test of type {vector.type} has no {min(wrong)}")
    named: list[Named] = []
    for key, symbol in pairs:
        if key in found:
            value = getattr(test, key.lower())
            if not isinstance(value, Expected):  # V₀ must be equal
                value = Expected(value, np.zeros(value.shape))
            array = _array(found[key], value.value, f"{where}: {key}")
            named.append((symbol, None, value, array))
    return Got(named, [])


def _got_of_updates(vector: Vector, steps: list[Any], where: str) -> Got:
    test: UpdateTest = vector.test
    if len(steps) > len(test.steps):
        raise ValueError(f"{where}: it has {len(test.steps)} steps, got {len(steps)}")
    named: list[Named] = []
    states: list[tuple[Arrays | None, Arrays]] = []
    for n, (step, found) in enumerate(zip(test.steps, steps, strict=False)):
        tensors, at = found["tensors"], f"{where}: step {n}"
        if len(tensors) != len(test.w):
            raise ValueError(f"{at}: it has {len(test.w)} tensors, got {len(tensors)}")
        v: Arrays = []
        w: Arrays = []
        for symbol, key, expected, given in (
            ("β̂", "beta_hat", [step.beta_hat], [found]),
            ("1 − β̂", "one_minus_beta_hat", [step.one_minus_beta_hat], [found]),
            ("m", "m", step.m, tensors),
            ("ζ", "zeta", step.zeta, tensors),
            ("V", "V", step.v, tensors),
            ("W", "W", step.w, tensors),
        ):
            for i, (value, one) in enumerate(zip(expected, given, strict=True)):
                if key in one:
                    array = _array(one[key], value.value, f"{at}: {key}")
                    {"V": v, "W": w}.get(key, []).append(array)
                    which = f"{symbol} of tensor {i}" if len(expected) > 1 else symbol
                    named.append((which, n, value, array))
        states.append((v if len(v) == len(w) else None, w))
    return Got(named, states)


def _array(numbers: Any, like: np.ndarray, where: str) -> np.ndarray:
    """Return numbers as an array with the shape and the dtype of the expected ones."""
    found = np.asarray(numbers if isinstance(numbers, list) else [numbers], np.float64)
    if found.size != like.size:
        raise ValueError(f"{where} has {like.size} elements, got {found.size}")
    with np.errstate(over="ignore"):
        return found.reshape(like.shape).astype(like.dtype)
