"""Functions with a minimum of 0, in NumPy.

They use + − × ÷ and a sum that rounds once, so that every machine computes the same bits. The seed
moves the start; nothing else is random, and validation and test are the function itself. All minima
are at ones: weight decay, which pulls to zeros, must not find one.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.compare.optimizers import Tensors
from gravity_core.velocity import initial_velocity

Function = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Descent:
    """One run on a function: a start near `center`, at a distance of `spread` in each coordinate.

    `loss_scale` multiplies the gradient.
    """

    def __init__(
        self, function: Function, center: Any, spread: float, seed: int, loss_scale: float = 1.0
    ) -> None:
        self._function, self._scale = function, loss_scale
        x = np.asarray(center, np.float64)
        # The stream of V₀ for the first tensor has index 0; this one is far from it.
        x = x + initial_velocity(x.shape, x.dtype, std=spread, seed=seed, index=1000)
        self.weights = Tensors(x, [x])

    def gradient(self) -> tuple[float, Tensors]:
        """Return the function and its gradient."""
        value, gradient = self._function(self.weights.flat)
        gradient = gradient * self._scale
        return value, Tensors(gradient, [gradient])

    def score(self, split: str) -> tuple[float, float]:
        """Return the function, as error and as loss."""
        value, _ = self._function(self.weights.flat)
        return value, value


def rosenbrock(w: np.ndarray) -> tuple[float, np.ndarray]:
    """(1 − x)² + 100 (y − x²)², a narrow valley that bends."""
    x, y = w.tolist()
    a, b = 1.0 - x, y - x * x
    return a * a + 100.0 * (b * b), np.asarray([-2.0 * a - 400.0 * (x * b), 200.0 * b])


CURVATURES = np.asarray([1.0 / 2**k for k in range(11)])


def quadratic(w: np.ndarray) -> tuple[float, np.ndarray]:
    """½ Σ cₖ (xₖ − 1)² with curvatures from 1 to 1/1024."""
    x = w - 1.0
    g = CURVATURES * x
    return 0.5 * math.fsum(g * x), g


def walls(w: np.ndarray) -> tuple[float, np.ndarray]:
    """Σ (x − 1)⁶, flat at the minimum and steep far from it."""
    x = w - 1.0
    squares = x * x
    cubes = x * squares
    return math.fsum(cubes * cubes), 6.0 * (cubes * squares)
