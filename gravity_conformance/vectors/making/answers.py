"""The expected results of a vector: exact, rounded once, and written as JSON.

Guarantee: the same functions make the files and check them. In a file that passes the check, both
notations of each input agree, and every result is the one that the mathematics gives.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from gravity_conformance.vectors import exact
from gravity_conformance.vectors.exact import Value
from gravity_core import hyperparameters as hp

Json = dict[str, Any]


class FaultError(ValueError):
    """An input for which no result exists."""


def hexadecimal(x: float) -> str:
    """Return a float in C99's %a, without trailing zeros: 0.1 is 0x1.999999999999ap-4."""
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "Infinity" if x > 0 else "-Infinity"
    if x == 0:
        return x.hex().replace("0x0.0", "0x0")
    fraction, exponent = math.frexp(x)  # hex() does not normalise subnormal numbers
    digits = (2 * fraction).hex().partition("p")[0].rstrip("0").rstrip(".")
    return f"{digits}p{exponent - 1:+d}"


def decimal(x: float, dtype: str) -> float | str:
    """Return the shortest decimal that gives `x` when read as a float64 and rounded to `dtype`."""
    if not math.isfinite(x):
        return hexadecimal(x)
    short = (float(f"{x:.{digits}g}") for digits in range(1, 17))
    return next((y for y in short if is_decimal_of(y, x, dtype)), x)


def is_decimal_of(y: float, x: float, dtype: str) -> bool:
    """Return whether `y`, rounded to `dtype`, is the number `x`."""
    return math.isfinite(y) and exact.round_to(Fraction(y), dtype) == x


def number(x: Value, dtype: str = "float64", bound: Fraction | None = None) -> Json:
    """Return one number rounded to `dtype`, with a tolerance if `bound` is given."""
    rounded = float(exact.round_to(x, dtype))
    found: Json = {"hex": hexadecimal(rounded), "decimal": decimal(rounded, dtype)}
    if bound is not None:
        found["tolerance"] = exact.tolerance(x, bound, dtype)
    return found


def tensor(xs: Iterable[Value], dtype: str, bounds: Iterable[Fraction] | None = None) -> Json:
    """Return the numbers of a tensor in C order, as lists."""
    xs = list(xs)
    limits = [None] * len(xs) if bounds is None else bounds
    numbers = [number(x, dtype, limit) for x, limit in zip(xs, limits, strict=True)]
    names = ["hex", "decimal"] if bounds is None else ["hex", "decimal", "tolerance"]
    return {name: [n[name] for n in numbers] for name in names}


def value(text: str) -> Value:
    """Return the number that a hexadecimal string represents.

    Example:
        >>> value("-0x1.8p-1")
        Fraction(-3, 4)
    """
    if "x" not in text:
        return float(text)
    digits, _, exponent = text.partition("p")
    whole, _, fraction = digits.replace("0x", "").partition(".")
    return int(whole + fraction, 16) * Fraction(2) ** (int(exponent) - 4 * len(fraction))


def values(json: Json, dtype: str, shape: list[int] | None = None) -> list[Value]:
    """Return the numbers of a tensor.

    Raises:
        FaultError: if there are too few or too many numbers, or `dtype` cannot represent one.
    """
    found = [value(text) for text in json["hex"]]
    for text, x in zip(json["hex"], found, strict=True):
        if exact.is_finite(x) and exact.round_to(x, dtype) != x:
            raise FaultError(f"{text} is not a number of {dtype}")
    if shape is not None and len(found) != math.prod(shape):
        raise FaultError(
            f"a tensor of shape {shape} must have {math.prod(shape)} elements, got {len(found)}"
        )
    return found


def _rational(json: Json, name: str) -> Fraction:
    """Return a hyper-parameter, a float64, after checking its range."""
    (x,) = values({"hex": [json["hex"]]}, "float64")
    try:
        hp.validate(names=None, **{name: float(x)})
    except ValueError as error:
        raise FaultError(str(error)) from None
    return Fraction(x)


def _rewritten(json: Json) -> Json:
    """Return `json` with its hyper-parameters rewritten so that both notations agree."""
    names = ("learning_rate", "alpha", "beta", "weight_decay", "velocity_std")
    found = {name: json[name] for name in names if json.get(name) is not None}
    return {**json, **{name: number(_rational(x, name)) for name, x in found.items()}}


def _std(test: Json) -> Fraction:
    """Return σ: velocity_std, or α / η in float64; 0 if η = 0."""
    if test["velocity_std"] is not None:
        return _rational(test["velocity_std"], "velocity_std")
    rate, alpha = (_rational(test[name], name) for name in ("learning_rate", "alpha"))
    std = number(alpha / rate if rate else Fraction(0))
    return _rational(std, "velocity_std")


def _words(words: Iterable[int]) -> list[str]:
    return [f"0x{word:08x}" for word in words]


def threefry(test: Json, dtype: str) -> Json:
    """Return a test of the generator with its result."""
    key, counter = (tuple(int(word, 16) for word in test[name]) for name in ("key", "counter"))
    return {**test, "expected": {"output": _words(exact.threefry(key, counter))}}  # type: ignore[arg-type]


def initial_velocity(test: Json, dtype: str) -> Json:
    """Return a test of V₀ with its results."""
    std, key = _std(test), exact.tensor_key(int(test["seed"], 16), test["index"])
    first = test["first_element"]
    ks = [exact.halfword(key, i) for i in range(first, first + test["elements"])]
    expected = {
        "std": number(std),
        "key": _words(key),
        "k": ks,
        "z": tensor(map(exact.quantile, ks), "float32"),
        "V": tensor((exact.initial_velocity(k, std, dtype) for k in ks), dtype),
    }
    return {**_rewritten(test), "expected": expected}


def coefficients(test: Json, dtype: str) -> Json:
    """Return a test of β̂ and 1 − β̂ with its results."""
    expected = _coefficients(test["t"], _rational(test["beta"], "beta"), dtype)
    return {**_rewritten(test), "expected": expected}


def _coefficients(t: int, beta: Fraction, dtype: str) -> Json:
    # Each closed form has four roundings: constant, product, sum and quotient.
    return {
        name: number(x, dtype, exact.relative_bound(x, 4, dtype))
        for name, x in zip(
            ("beta_hat", "one_minus_beta_hat"), exact.coefficients(t, beta), strict=True
        )
    }


def update(test: Json, dtype: str) -> Json:
    """Return a test of one or more updates, of one or more tensors, with its results."""
    options = test["hyperparameters"]
    beta, decay = (_rational(options[name], name) for name in ("beta", "weight_decay"))
    shapes = [t["shape"] for t in test["tensors"]]
    weights = [values(t["W"], dtype, t["shape"]) for t in test["tensors"]]
    velocities = [_first_velocity(options, t, i, dtype) for i, t in enumerate(test["tensors"])]
    tensors = [
        exact.Tensor(dtype, values(v, dtype, t["shape"]), w)
        for w, v, t in zip(weights, velocities, test["tensors"], strict=True)
    ]
    sign = Fraction(-1 if options["maximize"] else 1)
    steps = []
    for n, step in enumerate(test["steps"]):
        _check_step(test, n)
        rate = _rational(step["learning_rate"], "learning_rate")
        gradients = [
            [exact.multiply(sign, x) for x in values(g, dtype, shape)]
            for g, shape in zip(step["G"], shapes, strict=True)
        ]
        for tensor_, g in zip(tensors, gradients, strict=True):
            tensor_.step(g, step["t"], rate, beta, decay)
        working = exact.working_dtype(dtype)
        expected = _coefficients(step["t"], beta, working)
        expected["tensors"] = [
            _after(tensor_, g, dtype, working)
            for tensor_, g in zip(tensors, gradients, strict=True)
        ]
        rewritten = [tensor(values(g, dtype), dtype) for g in step["G"]]
        steps.append({**_rewritten(step), "G": rewritten, "expected": expected})
    first = [
        {**t, "W": tensor(w, dtype), "V": v}
        for t, w, v in zip(test["tensors"], weights, velocities, strict=True)
    ]
    return {**test, "hyperparameters": _rewritten(options), "tensors": first, "steps": steps}


def _first_velocity(options: Json, tensor_: Json, index: int, dtype: str) -> Json:
    if options["seed"] is None:
        if "V" not in tensor_:
            raise FaultError("V must be given for every tensor of a test without a seed")
        return tensor(values(tensor_["V"], dtype), dtype)
    size = math.prod(tensor_["shape"])
    stream = {"index": index, "first_element": 0, "elements": size}
    found: Json = initial_velocity({**options, **stream}, dtype)["expected"]["V"]
    return found


def _check_step(test: Json, n: int) -> None:
    step, options = test["steps"][n], test["hyperparameters"]
    if n and step["t"] != test["steps"][n - 1]["t"] + 1:
        wanted = test["steps"][n - 1]["t"] + 1
        raise FaultError(f"t of step {n} must be {wanted}, got {step['t']}")
    if step["t"] < options["first_step"] or (
        not n and options["seed"] is not None and step["t"] != options["first_step"]
    ):
        raise FaultError(f"t of step {n} does not fit first_step, got {step['t']}")
    if len(step["G"]) != len(test["tensors"]):
        raise FaultError(f"G of step {n} must have one entry per tensor, got {len(step['G'])}")
    if test["same_gradients"] and step["G"] != test["steps"][0]["G"]:
        raise FaultError(f"G of step {n} must equal G of step 0, because same_gradients is true")


def _after(after: exact.Tensor, g: list[Value], dtype: str, working: str) -> Json:
    """Return the expected results of one tensor after a step."""
    tiny, largest = exact.FORMATS[working].smallest_normal, exact.max_abs(g)
    m = exact.max_step_grad(g)
    found = {"m": number(m, working, exact.relative_bound(m, 1, working) + tiny)}
    if 0 < largest < tiny:
        found["m"]["tolerance"] = None  # m is ∞ if subnormal numbers are flushed
    zeta = [
        exact.relative_bound(z, 5, working) + absolute
        for z, absolute in zip(after.zeta, after.underflow_and_overflow(g), strict=True)
    ]
    found["zeta"] = tensor(after.zeta, working, zeta)
    found["V"] = tensor(after.v, dtype, after.error_v)
    found["W"] = tensor(after.w, dtype, after.error_w)
    return found


ANSWERS: dict[str, Callable[[Json, str], Json]] = {
    "threefry": threefry,
    "initial_velocity": initial_velocity,
    "coefficients": coefficients,
    "update": update,
}
"""The function that computes the results of a test, by the type of its group."""
