"""Places for the labels of a figure, so that none lies on another."""

from collections.abc import Sequence

import numpy as np


def spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Return places from 0 to `top`, at least `gap` apart, next to the wanted ones, in their order.

    Of all such places, they have the least sum of squared distances from the wanted ones.

    Example:
        >>> spread([5.0, 1.0, 9.0, 5.0], gap=2.0, top=9.0)
        [4.0, 1.0, 9.0, 6.0]
        >>> spread([0.0, 0.0, 9.0], gap=2.0, top=8.0)
        [0.0, 2.0, 8.0]
    """
    from scipy.optimize import isotonic_regression  # only figures need scipy

    order = np.argsort(wanted, kind="stable")
    # Less the gaps below them, the places need only ascend.
    gaps = gap * np.arange(len(wanted))
    ascending = isotonic_regression(np.asarray(wanted)[order] - gaps).x if len(wanted) else gaps
    places = np.empty(len(gaps))
    places[order] = np.clip(ascending, 0, top - gaps[-1:].sum()) + gaps
    return places.tolist()
