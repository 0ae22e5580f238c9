"""What one step and one run leave for teaching: every intermediate value, and the pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gravity_core import _plot
from gravity_core import hyperparameters as hp
from gravity_core._arrays import Array
from gravity_core.coefficients import beta_hat
from gravity_core.update import gradient_term, max_step_grad, update


class Trace(NamedTuple):
    """Every intermediate value of one step, named after the paper's symbols."""

    t: Any
    beta_hat: Any
    m: Array
    zeta: Array
    v: Array


def trace(grad: Array, v: Array, t: Any, *, beta: Any = hp.BETA, xp: Any = None) -> Trace:
    """Return t, β̂, m, ζ and the new V of one step. Arguments and errors are as in `update`.

    Example:
        >>> step = trace(np.asarray([1.0, -2.0]), np.zeros(2), t=0)
        >>> step.beta_hat, float(step.m), step.zeta.round(4).tolist()
        (0.5, 0.5, [0.2, -0.1176])
    """
    v_next = update(grad, v, t, beta=beta, xp=xp)
    m, zeta = max_step_grad(grad, xp=xp), gradient_term(grad, xp=xp)
    return Trace(t, beta_hat(t, beta), m, zeta, v_next)


@dataclass(frozen=True)
class Trajectory:
    """The course of `Gravity.minimize`: n steps, n + 1 points.

    Attributes:
        x: the points, shape (n + 1, *x0.shape).
        f: the function values at them, shape (n + 1,).
        v: the velocities, V₀ first, shape (n + 1, *x0.shape).
        steps: t, β̂, m, ζ and V of every step.
    """

    x: np.ndarray
    f: np.ndarray
    v: np.ndarray
    steps: list[Trace]

    def plot(self, f_and_grad: Callable[[np.ndarray], Any] | None = None) -> np.ndarray:
        """Draw the path, the loss, and m = 1 / max|G| with the largest |V|; needs matplotlib.

        Two weights are drawn as a path in their plane, other numbers of weights against the update.
        matplotlib.pyplot makes the figure: a notebook shows it, `pyplot.show()` opens a window, and
        `axes[0].figure.savefig("run.svg")` saves it. In a notebook, a trajectory at the end of a
        cell is shown as a table and these plots.

        Args:
            f_and_grad: the minimized function, for contours under a path of two weights.

        Returns:
            The three axes, an array of shape (3,).

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.

        Example:
            >>> import gravity_core
            >>> bowl = lambda x: (float(x @ x), 2 * x)
            >>> run = gravity_core.Gravity().minimize(bowl, [0.3, -0.2], steps=100)
            >>> axes = run.plot(bowl)  # doctest: +SKIP
        """
        return _plot.plot(self, f_and_grad)

    def _repr_html_(self) -> str:
        return _plot.as_html(self)
