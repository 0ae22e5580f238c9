"""Defaults, ranges and error messages of every Gravity argument, for core and adapters.

Guarantees: every number that a user gives passes `validate`, at every entrance of every framework.
The same bad value of the same argument raises the same ``ValueError``, before anything has changed.
The same good value means the same number (`as_float`).

Source of the defaults: Bahrami and Pouriyan Zadeh, 2021, arXiv 2101.09192, section 3.
"""

import math
import operator
import re
import statistics
import warnings
from collections.abc import Callable
from decimal import ROUND_DOWN, Context
from numbers import Real
from typing import Any

import numpy as np

from gravity_core._arrays import check_plain, dtype_name, float_info

LEARNING_RATE = 0.1
ALPHA = 0.01
BETA = 0.9
WEIGHT_DECAY = 0.0
SEED = 0
FIRST_STEP = 1
DEFAULTS: dict[str, Any] = {
    "learning_rate": LEARNING_RATE,
    "alpha": ALPHA,
    "beta": BETA,
    "weight_decay": WEIGHT_DECAY,
    "velocity_std": None,
    "seed": SEED,
    "first_step": FIRST_STEP,
}
"""The default of each hyper-parameter that all frameworks share."""

NORMAL_LEVELS = 65_536
"""The number of values of z = Φ⁻¹((k + ½) / 65 536) in V₀ = σ z."""


_NUMBER_DTYPES = re.compile(r"u?int\d+|b?float(16|32|64|96|128)")  # not bool, complex, float8


def may_be_a_number(value: Any) -> bool:
    """Return whether `value` may be a real number or an array of one.

    Text and masked arrays give False. So does a number or array of bool, complex or float8 dtype,
    in any library.

    Example:
        >>> may_be_a_number(np.float32(0.1)), may_be_a_number(np.asarray(True))
        (True, False)
    """
    # A masked number has no value.
    if isinstance(value, (str, bytes, bytearray, bool, np.ma.MaskedArray)):
        return False
    dtype = getattr(value, "dtype", None)
    return dtype is None or bool(_NUMBER_DTYPES.fullmatch(dtype_name(dtype)))


def checked_integer(argument: str, value: Any, bits: int | None = None) -> int:
    """Return an integer >= 0 as a Python integer; raise ValueError for everything else.

    With `bits`, the integer must be below 2**bits.

    Example:
        >>> checked_integer("steps", np.int64(3))
        3
    """
    try:
        number = operator.index(value) if may_be_a_number(value) else None
    except TypeError:
        number = None
    if number is None or number < 0 or (bits is not None and number >> bits):
        allowed = ">= 0" if bits is None else f"in [0, 2**{bits})"
        raise ValueError(f"{argument} must be an integer {allowed}, got {shown(value)}")
    return number


def check_number(argument: str, value: Any, requirement: str = "a real number") -> None:
    """Raise unless `value` is a real number or an array of some, as `may_be_a_number` tells.

    Raises:
        TypeError: naming the argument and the value received.

    Example:
        >>> check_number("t", "1")
        Traceback (most recent call last):
        ...
        TypeError: t must be a real number, got '1'
    """
    is_number = isinstance(value, Real) or hasattr(value, "dtype") or hasattr(value, "__index__")
    if not is_number or not may_be_a_number(value):
        raise TypeError(f"{argument} must be {requirement}, got {shown(value)}")
    if isinstance(value, np.ndarray):
        check_plain(argument, value)


_LARGEST_Z = statistics.NormalDist().inv_cdf(1 - 0.5 / NORMAL_LEVELS)
# Rounded down to three digits. This shortens the messages and allows for the rounding of σ and σ z.
_LARGEST_STD = {
    name: float(
        Context(prec=3, rounding=ROUND_DOWN).create_decimal(float_info(name).max / _LARGEST_Z)
    )
    for name in ("float16", "bfloat16", "float32")
}


def largest_velocity_std(dtype: str = "float32") -> float:
    """Return the largest σ accepted for V₀ in a dtype, given by name.

    It is the largest finite number divided by the largest |z|. float64 has the limit of float32,
    so that a run can change its dtype.

    Example:
        >>> largest_velocity_std("float16"), largest_velocity_std()
        (15100.0, 7.86e+37)
    """
    return _LARGEST_STD.get(dtype, _LARGEST_STD["float32"])


def shown(value: Any) -> str:
    """Return how an error message shows a value that it received.

    Example:
        >>> shown(-1), shown(10**400)
        ('-1', 'an integer of 1329 bits')
    """
    if isinstance(value, int) and value.bit_length() >= 1024:
        return f"an integer of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:  # a fraction of integers of more than 4300 digits
        return f"a {type(value).__name__}"


_Rule = tuple[Callable[[Any], Any], Callable[[Any], bool], str]
"""The conversion to a Python number, whether that is in range, and the range in words."""


def as_float(value: Any) -> float:
    """Return a number, or an array of one number, as a Python float.

    Frameworks hold a learning rate of 0.3 in float32, where it is 0.30000001192…. For a float32,
    this function returns the shortest decimal that rounds to it: the number that the user wrote.
    So η and σ = α / η have the same bits in every framework. Other types have their exact value.

    Example:
        >>> as_float(np.float32(0.3)), as_float(0.3), as_float(1), as_float(np.float16(0.3))
        (0.3, 0.3, 1.0, 0.300048828125)
    """
    number = float(value.item() if hasattr(value, "item") else value)
    if hasattr(value, "dtype") and dtype_name(value.dtype) == "float32":
        # Not str, which follows np.set_printoptions.
        number = float(np.format_float_scientific(np.float32(number)))
    return number + 0.0  # −0.0 becomes 0.0, because α / −0.0 would be −inf


def _std_or_none(value: Any) -> float | None:
    return None if value is None else as_float(value)


_FINITE: _Rule = (as_float, lambda x: 0 <= x < math.inf, "a finite number >= 0")

_RULES: dict[str, _Rule] = {
    "learning_rate": _FINITE,
    "alpha": _FINITE,
    "beta": (as_float, lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    "weight_decay": _FINITE,
    "velocity_std": (
        _std_or_none,
        lambda x: x is None or 0 <= x <= largest_velocity_std(),
        f"None or a number in [0, {largest_velocity_std():g}]",  # V₀ overflows float32 above it
    ),
    "seed": (operator.index, lambda n: 0 <= n < 2**64, "an integer in [0, 2**64)"),
    "first_step": (
        operator.index,
        lambda n: n in (0, 1),
        "0 (the original Keras code) or 1 (Algorithm 1)",
    ),
}


def validate(*, names: dict[str, str] | None = None, **values: Any) -> dict[str, Any]:
    """Return hyper-parameters as Python numbers; raise for the first that is out of its range.

    Args:
        names: the caller's own names of arguments (``{"learning_rate": "lr"}``). Only the message
            uses them.
        **values: hyper-parameters by name: ``learning_rate``, ``alpha``, ``weight_decay``
            (finite, >= 0), ``beta`` (in [0, 1]), ``velocity_std`` (None, or >= 0 and such that V₀
            fits float32), ``seed`` (an integer in [0, 2**64)), ``first_step`` (0 or 1). Numbers of
            the standard library and of NumPy are accepted, and arrays of no dimension.

    Returns:
        The values by name, as float (`as_float`), int or None.

    Raises:
        ValueError: naming the argument and the value received.

    Example:
        >>> validate(learning_rate=np.float32(0.1), beta=1)
        {'learning_rate': 0.1, 'beta': 1.0}
        >>> validate(learning_rate=-1, names={"learning_rate": "lr"})
        Traceback (most recent call last):
        ...
        ValueError: lr must be a finite number >= 0, got -1
    """
    numbers: dict[str, Any] = {}
    for argument, value in values.items():
        number, is_in_range, requirement = _RULES[argument]
        try:
            is_one = may_be_a_number(value) and not getattr(value, "shape", None)
            numbers[argument] = number(value) if is_one else None
            valid = is_one and is_in_range(numbers[argument])
        except (TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            name = (names or {}).get(argument, argument)
            raise ValueError(f"{name} must be {requirement}, got {shown(value)}")
    return numbers


def velocity_std(
    learning_rate: float,
    alpha: float = ALPHA,
    velocity_std: float | None = None,
    *,
    names: dict[str, str] | None = None,
    stacklevel: int = 3,
) -> float:
    """Return σ = α / η, the standard deviation of V₀ (paper, Algorithm 1).

    Args:
        learning_rate: η at construction, never a later scheduled value. Otherwise a warm-up that
            starts at 0 would make V₀ infinite.
        alpha: α, >= 0.
        velocity_std: σ itself, overriding α / η.
        names: as in `validate`.
        stacklevel: selects the caller that the warning names, as in `warnings.warn`.

    Returns:
        σ, finite. It is 0 (V starts from rest) if η = 0 and `velocity_std` is None. In this case
        a UserWarning is given, except if α = 0.

    Raises:
        ValueError: if V₀ would overflow float32. `check_velocity_std` checks other dtypes.

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
                stacklevel=stacklevel,
            )
        return 0.0
    std = alpha / learning_rate
    check_velocity_std(std, learning_rate=learning_rate, alpha=alpha, names=names)
    return std


def warn_of_first_rate(
    nominal: float,
    rate: float,
    alpha: float,
    *,
    names: dict[str, str] | None = None,
    stacklevel: int = 3,
) -> None:
    """Warn that σ = α / η was derived from a learning rate with which nobody trains.

    Adapters call it if the first step's rate is more than ten times the one of construction.

    Args:
        nominal: η at construction, > 0.
        rate: the learning rate of the first step.
        alpha: α.
        names: as in `validate`.
        stacklevel: as in `velocity_std`.

    Example:
        >>> import pytest
        >>> with pytest.warns(UserWarning, match="pass velocity_std=0.01"):
        ...     warn_of_first_rate(0.001, 1.0, 0.01)
    """
    name = (names or {}).get("learning_rate", "learning_rate")
    warnings.warn(
        f"{name} is {rate:g} at the first step, but the standard deviation of V_0 was derived from "
        f"{nominal:g}, its value at construction: {alpha / nominal:g}; pass "
        f"velocity_std={alpha / rate:g} for one that fits, or construct with that {name}",
        stacklevel=stacklevel,
    )


def check_velocity_std(
    std: float,
    dtype: str = "float32",
    *,
    learning_rate: Any = None,
    alpha: Any = None,
    names: dict[str, str] | None = None,
) -> None:
    """Raise if V₀ = σ z would overflow its dtype.

    Args:
        std: σ, >= 0.
        dtype: the name of the dtype of V₀; for a complex V₀, of its real part.
        learning_rate: η if σ was derived from it. If σ = α / η, the message names this argument;
            otherwise it names `velocity_std`.
        alpha: α.
        names: as in `validate`.

    Raises:
        ValueError: naming the argument and the value received.

    Example:
        >>> check_velocity_std(2e4)
        >>> check_velocity_std(2e4, "float16")
        Traceback (most recent call last):
        ...
        ValueError: velocity_std must be in [0, 15100] for V_0 in float16, got 20000.0
    """
    largest = largest_velocity_std(dtype)
    if std <= largest:
        return
    names = names or {}
    rate = learning_rate and as_float(learning_rate)
    if rate and as_float(alpha) / rate == std:
        name = names.get("learning_rate", "learning_rate")
        raise ValueError(
            f"{name} must not be so small that alpha / {name} overflows {dtype} in V_0 "
            f"(pass velocity_std), got {rate!r}"
        )
    name = names.get("velocity_std", "velocity_std")
    raise ValueError(f"{name} must be in [0, {largest:g}] for V_0 in {dtype}, got {std!r}")
