"""β̂ and 1 − β̂, the weights of Gravity's running average (paper, equation for β̂ in section 3).

    β̂ = (β t + 1) / (t + 2)            1 − β̂ = ((1 − β) t + 1) / (t + 2)

Both are evaluated from these closed forms. Subtracting β̂ from 1 in float32 would lose the digits
that β̂ has rounded away.

Two conventions for t exist. In Algorithm 1 of the paper and in the original PyTorch code, the
first update has t = 1 (β̂ = 0.6333 for β = 0.9). In the original Keras code, which produced the
published results, the first update has t = 0 (β̂ = 0.5). Every optimizer here takes
``first_step=1`` (the default) or ``first_step=0``. After n updates, the next one has
t = n + first_step.
"""

import math
import sys
from numbers import Integral, Rational, Real
from typing import Any

import numpy as np

from gravity_core._arrays import check_plain
from gravity_core.hyperparameters import BETA, check_number, shown, validate


def coefficients(t: Any, beta: Any = BETA) -> tuple[Any, Any]:
    """Return (β̂, 1 − β̂) for step `t`.

    Args:
        t: the step, an integer >= 0; a float of integral value is accepted. A Python or NumPy
            number gives Python floats, computed in float64. An array of floating dtype (a traced
            counter, or one on a device) gives arrays of that dtype; one of NumPy's integers gives
            float64.
        beta: β in [0, 1], or an array of such numbers.

    Returns:
        The weights of the old velocity and of the gradient term. β̂ is 1/2 at t = 0 and tends to β.

    Raises:
        ValueError: if β lies outside [0, 1], or t is negative or no integer. The values of arrays
            are checked if they are NumPy's; others may be traced or on a device.
        TypeError: if t is not a number, or for a subclass of NumPy's array.

    Source: arXiv 2101.09192, Algorithm 1.

    Example:
        >>> coefficients(0)
        (0.5, 0.5)
        >>> coefficients(8, beta=1.0)
        (0.9, 0.1)
    """
    beta, t = _checked_beta(beta), checked_step(t)
    below = t + 2.0  # an array of integers would wrap around at t + 2
    return (beta * t + 1) / below, ((1 - beta) * t + 1) / below


def checked_step(t: Any) -> Any:
    """Return step `t`, a number as a Python number.

    The value of an array is checked if it is NumPy's. Another one may be traced or on a device.

    Raises:
        ValueError: for a number that is negative, no integer or too large for float64.
        TypeError: for everything but real numbers and arrays of them.
    """
    check_number("t", t, "an integer >= 0")
    if isinstance(t, np.ndarray):
        if not ((t >= 0) & (t < math.inf) & (np.trunc(t) == t)).all():
            raise ValueError(f"t must be an integer >= 0, got {t!r}")
        return t.astype(np.float64) if t.dtype.kind in "iu" else t  # whatever dtype β has
    if not isinstance(t, Real):
        return t
    if isinstance(t, Integral):
        t = int(t)
    elif not isinstance(t, Rational):
        t = float(t)
    if not (0 <= t < math.inf and t == math.trunc(t)):
        raise ValueError(f"t must be an integer >= 0, got {shown(t)}")
    if t > sys.float_info.max:
        raise ValueError(f"t must fit float64, got {shown(t)}")
    return math.trunc(t)


def _checked_beta(beta: Any) -> Any:
    """Return β, a number as a Python float; only the values of NumPy's arrays are checked."""
    if isinstance(beta, np.ndarray):
        check_plain("beta", beta)
    if isinstance(beta, np.ndarray) and beta.ndim:
        for number in (beta.min(), beta.max()) if beta.size else ():
            validate(beta=number)
    elif isinstance(beta, (Real, np.ndarray)) or not hasattr(beta, "dtype"):
        number = validate(beta=beta)["beta"]
        return beta if isinstance(beta, np.ndarray) else number
    return beta


def beta_hat(t: Any, beta: Any = BETA) -> Any:
    """Return β̂ = (β t + 1) / (t + 2), the weight of the old velocity.

    The running average with this weight covers about min(t + 2, 1 / (1 − β)) values.
    Arguments, errors and source are as in `coefficients`.

    Example:
        >>> beta_hat(1)
        0.6333333333333333
    """
    return coefficients(t, beta)[0]
