"""Conformance vectors: inputs and expected results of Gravity, from exact arithmetic.

README.md, in this folder, describes the JSON files for users of any language. `load_vectors` reads
them into NumPy arrays and needs NumPy only. The package `making` writes the files; `check` checks
them.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np

__all__ = [
    "CoefficientsTest",
    "Expected",
    "Group",
    "Hyperparameters",
    "InitialVelocityTest",
    "Step",
    "ThreefryTest",
    "UpdateTest",
    "files",
    "load_vectors",
]


@dataclass(frozen=True)
class Expected:
    """An expected result, with a tolerance for each element.

    Attributes:
        value: the exact result, rounded to the dtype; bfloat16 values are held in float32.
        tolerance: float64; NaN where the result must not be compared.
    """

    value: np.ndarray
    tolerance: np.ndarray

    def accepts(self, computed: Any) -> np.ndarray:
        """Return for each element whether `computed` is within the tolerance.

        If the expected value is not finite, `computed` must be the same value.

        Example:
            >>> expected = Expected(np.asarray([1.0, np.nan]), np.asarray([0.1, 0.0]))
            >>> expected.accepts(np.asarray([1.05, 0.0])).tolist()
            [True, False]
        """
        got, want = np.asarray(computed, np.float64), self.value.astype(np.float64)
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            near = np.abs(got - want) <= self.tolerance
        # Only a NaN differs from itself. The code that is judged may have patched np.isnan.
        same = (got == want) | ((got != got) & (want != want))
        return np.asarray(near & np.isfinite(want) | same | (self.tolerance != self.tolerance))


@dataclass(frozen=True)
class Hyperparameters:
    """The arguments of the constructor; `velocity_std` and `seed` may be None."""

    learning_rate: float
    alpha: float
    beta: float
    weight_decay: float
    velocity_std: float | None
    seed: int | None
    first_step: int
    maximize: bool


@dataclass(frozen=True)
class Step:
    """One update of all tensors.

    Attributes:
        t: the step counter in β̂.
        learning_rate: η of this step.
        reload: whether to save the state and load it into a new optimizer before this step.
        g: the gradient of each tensor.
        beta_hat: β̂, in the working dtype.
        one_minus_beta_hat: 1 − β̂.
        m: 1/max|G| of each tensor.
        zeta: ζ of each tensor.
        v: V of each tensor after the step.
        w: W of each tensor after the step.
    """

    t: int
    learning_rate: float
    reload: bool
    g: list[np.ndarray]
    beta_hat: Expected
    one_minus_beta_hat: Expected
    m: list[Expected]
    zeta: list[Expected]
    v: list[Expected]
    w: list[Expected]


@dataclass(frozen=True)
class _Test:
    """The fields of every test: an id, unique in its file, a comment, and keys of `Group.notes`."""

    id: int
    comment: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class UpdateTest(_Test):
    """Updates of one or more tensors.

    Attributes:
        hyperparameters: the arguments of the constructor.
        same_gradients: whether to pass the same gradient arrays at every step.
        w: W of each tensor before the first step.
        v: V of each tensor before the first step; V₀ if there is a seed.
        steps: the updates, in order.
    """

    hyperparameters: Hyperparameters
    same_gradients: bool
    w: list[np.ndarray]
    v: list[np.ndarray]
    steps: list[Step]


@dataclass(frozen=True)
class InitialVelocityTest(_Test):
    """V₀ of some elements of one tensor; the bits must be equal."""

    learning_rate: float
    alpha: float
    velocity_std: float | None
    seed: int
    index: int
    first_element: int
    elements: int
    std: float
    key: tuple[int, int]
    k: np.ndarray
    z: np.ndarray
    v: np.ndarray


@dataclass(frozen=True)
class CoefficientsTest(_Test):
    """β̂ and 1 − β̂ of one step."""

    t: int
    beta: float
    beta_hat: Expected
    one_minus_beta_hat: Expected


@dataclass(frozen=True)
class ThreefryTest(_Test):
    """One hash of the generator, in 32-bit words."""

    key: tuple[int, int]
    counter: tuple[int, int]
    output: tuple[int, int]


@dataclass(frozen=True)
class Group:
    """Tests of one kind and dtype.

    Attributes:
        file: the name of the JSON file.
        type: "update", "coefficients", "initial_velocity" or "threefry".
        dtype: "float16", "bfloat16", "float32" or "float64" ("uint32" for "threefry").
        tests: all of the class that belongs to the type.
        notes: the meaning of each flag: {"kind": "mistake" or "case", "description": …}.
    """

    file: str
    type: str
    dtype: str
    tests: list[Any]
    notes: dict[str, dict[str, str]]


def files() -> list[Traversable]:
    """Return the JSON files of the vectors, sorted by name, without the schemas."""
    return sorted(
        (
            file
            for file in resources.files(__name__).iterdir()
            if file.name.endswith(".json") and not file.name.endswith("schema.json")
        ),
        key=lambda file: file.name,
    )


def load_vectors() -> list[Group]:
    """Return all groups of tests in this package.

    Example:
        >>> groups = load_vectors()
        >>> group = next(g for g in groups if (g.type, g.dtype) == ("update", "float32"))
        >>> test = group.tests[0]
        >>> from gravity_core import update
        >>> step = test.steps[0]
        >>> v = update(step.g[0], test.v[0], step.t, beta=test.hyperparameters.beta)
        >>> bool(step.v[0].accepts(v).all())
        True
    """
    return [group for file in files() for group in _groups(file)]


def _groups(file: Traversable) -> Iterator[Group]:
    content = json.loads(file.read_text(encoding="utf-8"))
    for group in content["groups"]:
        tests = [read_test(test, group["type"], group["dtype"]) for test in group["tests"]]
        yield Group(file.name, group["type"], group["dtype"], tests, content["notes"])


def read_test(test: Any, kind: str, dtype: str) -> Any:
    """Return one test of a file; `kind` and `dtype` are those of its group."""
    return _READERS[kind](test, dtype)


def _common(test: Any) -> dict[str, Any]:
    return {"id": test["id"], "comment": test["comment"], "flags": tuple(test["flags"])}


def _float(number: Any) -> float:
    return float.fromhex(number["hex"])


def _float_or_none(number: Any) -> float | None:
    return None if number is None else _float(number)


def _array(tensor: Any, dtype: str, shape: list[int] | None = None) -> np.ndarray:
    numpy_dtype = "float32" if dtype == "bfloat16" else dtype  # holds every bfloat16
    array = np.asarray([float.fromhex(text) for text in tensor["hex"]], numpy_dtype)
    return array if shape is None else array.reshape(shape)


def _expected(found: Any, dtype: str, shape: list[int] | None) -> Expected:
    """Read a number if `shape` is None, else a tensor."""
    if shape is None:
        found, shape = {name: [x] for name, x in found.items()}, []
    tolerance = [math.nan if x is None else float(x) for x in found["tolerance"]]
    return Expected(_array(found, dtype, shape), np.asarray(tolerance, np.float64).reshape(shape))


def _update(test: Any, dtype: str) -> UpdateTest:
    options = dict(test["hyperparameters"])
    for name in ("learning_rate", "alpha", "beta", "weight_decay", "velocity_std"):
        options[name] = _float_or_none(options[name])
    options["seed"] = None if options["seed"] is None else int(options["seed"], 16)
    shapes = [tensor["shape"] for tensor in test["tensors"]]
    return UpdateTest(
        **_common(test),
        hyperparameters=Hyperparameters(**options),
        same_gradients=test["same_gradients"],
        w=[_array(tensor["W"], dtype, tensor["shape"]) for tensor in test["tensors"]],
        v=[_array(tensor["V"], dtype, tensor["shape"]) for tensor in test["tensors"]],
        steps=[_step(step, shapes, dtype) for step in test["steps"]],
    )


def _step(step: Any, shapes: list[list[int]], dtype: str) -> Step:
    working = "float64" if dtype == "float64" else "float32"
    expected = step["expected"]
    pairs = list(zip(expected["tensors"], shapes, strict=True))
    return Step(
        t=step["t"],
        learning_rate=_float(step["learning_rate"]),
        reload=step["reload"],
        g=[_array(g, dtype, shape) for g, shape in zip(step["G"], shapes, strict=True)],
        beta_hat=_expected(expected["beta_hat"], working, None),
        one_minus_beta_hat=_expected(expected["one_minus_beta_hat"], working, None),
        m=[_expected(tensor["m"], working, None) for tensor, _ in pairs],
        zeta=[_expected(tensor["zeta"], working, shape) for tensor, shape in pairs],
        v=[_expected(tensor["V"], dtype, shape) for tensor, shape in pairs],
        w=[_expected(tensor["W"], dtype, shape) for tensor, shape in pairs],
    )


def _coefficients(test: Any, dtype: str) -> CoefficientsTest:
    return CoefficientsTest(
        **_common(test),
        t=test["t"],
        beta=_float(test["beta"]),
        beta_hat=_expected(test["expected"]["beta_hat"], dtype, None),
        one_minus_beta_hat=_expected(test["expected"]["one_minus_beta_hat"], dtype, None),
    )


def _initial_velocity(test: Any, dtype: str) -> InitialVelocityTest:
    expected = test["expected"]
    return InitialVelocityTest(
        **_common(test),
        learning_rate=_float(test["learning_rate"]),
        alpha=_float(test["alpha"]),
        velocity_std=_float_or_none(test["velocity_std"]),
        seed=int(test["seed"], 16),
        index=test["index"],
        first_element=test["first_element"],
        elements=test["elements"],
        std=_float(expected["std"]),
        key=_words(expected["key"]),
        k=np.asarray(expected["k"]),
        z=_array(expected["z"], "float32"),
        v=_array(expected["V"], dtype),
    )


def _threefry(test: Any, dtype: str) -> ThreefryTest:
    return ThreefryTest(
        **_common(test),
        key=_words(test["key"]),
        counter=_words(test["counter"]),
        output=_words(test["expected"]["output"]),
    )


def _words(words: list[str]) -> tuple[int, int]:
    first, second = (int(word, 16) for word in words)
    return first, second


_READERS = {
    "update": _update,
    "coefficients": _coefficients,
    "initial_velocity": _initial_velocity,
    "threefry": _threefry,
}
