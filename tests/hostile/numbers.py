"""One number has one meaning: every package refuses it, or all compute the same bits with it."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from gravity_core import Gravity, hyperparameters
from tests.hostile.running import Case, repeat
from tests.support.pages import is_there

NUMBERS: list[Any] = [
    *(0, 1, 2, -1, 0.3, 0.1, 1e-3, -0.0, 1e-46, 5e-324, 1e30, 7.87e37, 1e39, 1e308, 10**400),
    *(math.nan, math.inf, -math.inf, True, None, "0.1", "x", b"1", "", 1j, complex(0.1), 2**64),
    *(2**64 - 1, 2**63, 10**30, [], [0.1], (0.1,), {}, object(), Decimal("0.3"), Fraction(1, 3)),
    *(Decimal("NaN"), Decimal("1e400"), np.float16(0.1), np.float32(0.3), np.float64(0.3)),
    *(np.longdouble("0.3"), np.int8(1), np.uint64(2**64 - 1), np.bool(True), np.complex64(0.1)),
    *(np.asarray(0.2), np.asarray(0.3, np.float32), np.asarray([0.1]), np.asarray([0.1, 0.2])),
    *(np.asarray(1), np.asarray("0.1"), np.asarray(None), np.asarray([]), np.str_("0.1")),
    *(np.datetime64("2020"), np.timedelta64(1), np.ma.masked, range(1), float, math.sqrt),
]
W = np.array([0.5, -1.25, 2.0, 0.0, -3.5], np.float32)
GRADIENTS = [np.array([0.25, -3.0, 1e-3, 0.0, 7.5], np.float32), np.full(5, -0.5, np.float32)]


def _numpy(options: dict[str, Any]) -> np.ndarray:
    optimizer, w = Gravity(**options), W.copy()
    for grad in GRADIENTS:
        optimizer.step([w], [grad])
    return w


def _torch(options: dict[str, Any]) -> np.ndarray:
    import torch

    from gravity_torch import Gravity

    w = torch.nn.Parameter(torch.from_numpy(W.copy()))
    own = {"lr" if name == "learning_rate" else name: x for name, x in options.items()}
    optimizer = Gravity([w], **own)
    for grad in GRADIENTS:
        w.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    return w.detach().numpy()


def _jax(options: dict[str, Any]) -> np.ndarray:
    import jax.numpy as jnp
    import optax

    from gravity_jax import gravity

    w = jnp.asarray(W)
    transformation = gravity(**options)
    state = transformation.init(w)
    for grad in GRADIENTS:
        updates, state = transformation.update(jnp.asarray(grad), state, w)
        w = optax.apply_updates(w, updates)
    return np.asarray(w)


def _keras(options: dict[str, Any]) -> np.ndarray:
    import keras

    from gravity_tf import Gravity

    w = keras.Variable(W)
    optimizer = Gravity(**options)
    for grad in GRADIENTS:
        optimizer.apply([keras.ops.convert_to_tensor(grad)], [w])
    return keras.ops.convert_to_numpy(w)


PACKAGES: dict[str, Callable[[dict[str, Any]], np.ndarray]] = {"NumPy": _numpy}
for needs, name, package in (
    ("torch", "torch", _torch),
    ("optax", "JAX", _jax),
    ("keras", "Keras", _keras),
):
    if is_there(needs):
        PACKAGES[name] = package


def has_another_meaning(name: str, value: Any) -> bool:
    """Return whether a framework gives a value a meaning of its own."""
    if name == "weight_decay":  # Keras has none with None, optax has schedules
        return value is None or callable(value)
    if name != "learning_rate":
        return False
    # Callables are schedules. Keras refuses arrays, which may change, and its rate is a float32.
    if callable(value) or isinstance(value, np.ndarray):
        return True
    number = float(value) if isinstance(value, Decimal) else value
    return isinstance(number, (int, float)) and number > float(np.finfo(np.float32).max)


def outcome(package: Callable[[dict[str, Any]], np.ndarray], options: dict[str, Any]) -> Any:
    """Return the weights after two updates, or the message of the refusal."""
    try:
        return package(options)
    except (ValueError, TypeError) as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"a raw error: {error!r}") from error


def _is_within_roundings(w: np.ndarray, expected: np.ndarray, decay: float) -> bool:
    """Return whether W may be (W − ηλW) − ηV; optax has W − η(V + λW), Keras decays by W λ η."""
    # Each has four roundings in a step, of numbers that are at most |W| + ηλ|W| + η|V|. Both errors
    # grow by 1 + ηλ in the next step. |V₀| is below 5 σ, σ is at most 0.25, and |ζ| below 0.5 here.
    growth = 1 + hyperparameters.LEARNING_RATE * decay
    largest = (np.abs(W).max() + 5 * 0.25 + 1) * growth**2
    return bool((np.abs(w - expected) <= 2 * 8 * 2**-24 * largest).all())


def case(random: Random) -> Case:
    """Return one number for one hyper-parameter."""
    name, value = random.choice(list(hyperparameters.DEFAULTS)), random.choice(NUMBERS)
    options = {name: value}
    if random.random() < 0.3 and name != "velocity_std":
        options["velocity_std"] = 0.25

    def attempt() -> str:
        if has_another_meaning(name, value):
            return "has another meaning in a framework"
        found = {}
        for package, run in PACKAGES.items():
            try:
                found[package] = outcome(run, options)
            except AssertionError as raw:
                raise AssertionError(f"{package}: {raw}") from raw
        refusals = {package: x for package, x in found.items() if isinstance(x, str)}
        if not refusals:
            expected = found["NumPy"]
            for package, w in found.items():
                same = w.tobytes() == expected.tobytes()
                if not np.isfinite(expected).all():
                    same = not np.isfinite(w).all()
                elif package in ("JAX", "Keras") and name == "weight_decay":
                    same = _is_within_roundings(w, expected, float(value))
                assert same, f"{package}: {w}, NumPy: {expected}"
            return "same numbers everywhere"
        assert len(refusals) == len(found), f"only {', '.join(refusals)}: {refusals}"
        own = {"torch": "lr"} if name == "learning_rate" else {}
        for package, message in refusals.items():
            assert own.get(package, name) in message, f"{package}: {message}"
        return "refused everywhere"

    return Case(f"number for {name}", f"{options!r}", attempt)


def cases(random: Random) -> Iterator[Case]:
    """Return numbers for hyper-parameters, without end."""
    while True:
        yield case(random)


def run(random: Random, folder: Path, **limits: Any) -> Counter[str]:
    """Try numbers until a limit of `running.repeat`; nothing is written to the folder."""
    return repeat(cases(random), **limits)
