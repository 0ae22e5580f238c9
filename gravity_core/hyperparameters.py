"""Defaults, ranges and error messages of every Gravity argument, for core and adapters.

Guarantee: whatever framework a user comes from, the same bad value of the same
argument raises the same ``ValueError``, before anything has changed.

Source of the defaults: Bahrami and Pouriyan Zadeh, 2021, arXiv 2101.09192, section 3.
"""

import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

LEARNING_RATE = 0.1
ALPHA = 0.01
BETA = 0.9
WEIGHT_DECAY = 0.0
SEED = 0
FIRST_STEP = 1


def _is_finite_and_not_negative(value: Any) -> bool:
    return 0.0 <= float(value) < math.inf


def _is_in_unit_interval(value: Any) -> bool:
    return 0.0 <= float(value) <= 1.0


def _is_seed(value: Any) -> bool:
    return 0 <= operator.index(value) < 2**64


def _is_first_step(value: Any) -> bool:
    return operator.index(value) in (0, 1)


_LARGEST_STD = float(np.finfo(np.float32).max) / 5  # |V₀| < 5 σ

_FINITE = (_is_finite_and_not_negative, "a finite number >= 0")

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": _FINITE,
    "alpha": _FINITE,
    "beta": (_is_in_unit_interval, "a number in [0, 1]"),
    "weight_decay": _FINITE,
    "velocity_std": (
        lambda value: value is None or 0.0 <= float(value) <= _LARGEST_STD,
        f"None or a number in [0, {_LARGEST_STD:.1e}]",  # beyond, V₀ overflows float32
    ),
    "seed": (_is_seed, "an integer in [0, 2**64)"),
    "first_step": (_is_first_step, "0 (the original Keras code) or 1 (Algorithm 1)"),
}


def validate(*, names: dict[str, str] | None = None, **values: Any) -> None:
    """Raise for the first hyper-parameter that is out of its range.

    Args:
        names: what the caller's users call an argument, where it differs
            (``{"learning_rate": "lr"}``); used in the message only.
        **values: hyper-parameters by their name here: ``learning_rate``,
            ``alpha``, ``weight_decay`` (finite, >= 0), ``beta`` (in [0, 1]),
            ``velocity_std`` (None, or >= 0 and such that V₀ fits float32), ``seed`` (integer in
            [0, 2**64)), ``first_step`` (0 or 1).

    Raises:
        ValueError: naming the argument and the value received.

    Example:
        >>> validate(learning_rate=0.1, beta=1.0)
        >>> validate(learning_rate=-1, names={"learning_rate": "lr"})
        Traceback (most recent call last):
        ...
        ValueError: lr must be a finite number >= 0, got -1
    """
    for argument, value in values.items():
        is_valid, requirement = _RULES[argument]
        try:
            valid = not isinstance(value, (str, bytes, bool)) and is_valid(value)
        except (TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            name = (names or {}).get(argument, argument)
            raise ValueError(f"{name} must be {requirement}, got {value!r}")


def as_float(value: Any) -> float:
    """Return a number or an array of one number as a Python float.

    Frameworks hold a learning rate of 0.3, and what a schedule returns, in float32, where
    it is 0.30000001192…. Of a float32 the shortest decimal that rounds to it is taken, which
    is the number that the user wrote, so that σ = α / l has the same bits in every framework.

    Example:
        >>> as_float(np.float32(0.3)), as_float(0.3), as_float(1)
        (0.3, 0.3, 1.0)
    """
    array = np.asarray(value)
    return float(str(array.item() if array.dtype != np.float32 else array[()]))


def velocity_std(
    learning_rate: float,
    alpha: float = ALPHA,
    velocity_std: float | None = None,
    *,
    names: dict[str, str] | None = None,
    stacklevel: int = 3,
) -> float:
    """Return σ = α / l, the standard deviation of V₀ (paper, Algorithm 1).

    Args:
        learning_rate: l as the optimizer was constructed with, never a later
            scheduled value: a warm-up that starts at 0 must not blow V₀ up.
        alpha: α, >= 0.
        velocity_std: σ itself, which then overrides the quotient.
        names: as in `validate`.
        stacklevel: of the warning, as in `warnings.warn`: whose line it names.

    Returns:
        σ, finite. It is 0 (V starts from rest) where l = 0 and no `velocity_std` is given,
        with a UserWarning that says so unless α = 0 too.

    Raises:
        ValueError: if V₀ would overflow float32.

    Example:
        >>> velocity_std(0.1, 0.01)
        0.09999999999999999
        >>> velocity_std(0.1, 0.01, 0.5)
        0.5
    """
    if velocity_std is not None:
        return as_float(velocity_std)
    learning_rate, alpha = as_float(learning_rate), as_float(alpha)
    name = (names or {}).get("learning_rate", "learning_rate")
    if learning_rate == 0:
        if alpha != 0:
            warnings.warn(
                f"{name} is 0 at construction, so alpha / {name} is undefined and the velocity "
                "starts from rest; pass velocity_std to choose its standard deviation",
                UserWarning,
                stacklevel=stacklevel,
            )
        return 0.0
    std = alpha / learning_rate
    if std > _LARGEST_STD:
        raise ValueError(
            f"{name} must not be so small that alpha / {name} overflows (pass velocity_std), "
            f"got {learning_rate!r}"
        )
    return std
