"""Find out whether V and t can be written into a state, so that it starts where a vector starts.

Guarantee: no update is judged wrong because of what was written. The implementation is compared
with itself: after its own V and t of an earlier step are written back, its next step must be the
same as before. A mistake in the update does not matter here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks.inputs import normal
from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import CannotWriteError


def why_unwritable(driver: Driver, options: Mapping[str, Any], *, at_rest: bool) -> str | None:
    """Return the reason why V and t cannot be written; None if they can.

    Args:
        driver: starts the implementation.
        options: by our names.
        at_rest: whether `options` makes V₀ zero.
    """
    if driver.stateless:
        return None
    try:
        return _not_reproduced(driver, options, at_rest) or _drawn_again(driver, options)
    except CannotWriteError as error:
        return str(error)
    except ANYTHING as error:
        return f"writing it raises {one_line(error)}"


def _not_reproduced(driver: Driver, options: Mapping[str, Any], at_rest: bool) -> str | None:
    (weights, gradients), rate = normal(6, seed=21), float(options["learning_rate"])
    session = driver.start(weights, options)
    own = []  # V and W after each number of steps
    for grads in [*gradients, None]:
        own.append((session.velocity(), session.weights()))
        if grads is not None:
            session.step(grads, rate)
    if own[0][0] is None and at_rest:
        own[0] = [np.zeros_like(w) for w in weights], weights
    for count in (0, 1, 5):
        (v, w), wanted = own[count], own[count + 1]
        if v is None:
            continue
        written = driver.start(w, options, begun=count)
        written.begin(v, count)
        written.step(gradients[count], rate)
        pairs = ((written.velocity(), wanted[0]), (written.weights(), wanted[1]))
        if not all(_same(a, b) for x, y in pairs for a, b in zip(x or [], y or [], strict=True)):
            return (
                f"after writing back its own V and t = {count}, it does not reproduce its own next "
                "step"
            )
    return None


def _drawn_again(driver: Driver, options: Mapping[str, Any]) -> str | None:
    """Return the reason if the first step replaces a written V by a newly drawn one.

    With zero gradients, a step scales every element of V by the same number, which is not 0.
    """
    weights, _ = normal(0)
    session = driver.start(weights, options)
    session.begin([np.full_like(w, 0.5) for w in weights], 0)
    session.step([np.zeros_like(w) for w in weights], float(options["learning_rate"]))
    for v in session.velocity() or []:
        if not (v.any() and _same(v, np.full_like(v, v.flat[0]))):
            return "V is drawn again at the first step, whatever was written"
    return None


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether two results of one implementation agree up to a few roundings."""
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-6 * np.max(np.abs(b)), equal_nan=True))
