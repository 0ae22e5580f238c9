"""What a run that does not learn, or forgets, looks like: gradients beyond m, and the size of V₀.

Guarantee: nothing here changes a state. The adapters collect the arrays, outside the step.
"""

import math
from dataclasses import dataclass

import numpy as np

from gravity_core.coefficients import coefficients


@dataclass(frozen=True)
class Row:
    """One parameter tensor."""

    name: str
    max_abs_grad: float
    """max|G|, which is 1/m."""
    share_beyond: float
    """The share of elements with |G| > m, whose steps get smaller as |G| grows."""
    v0_move: float
    """How far V₀ alone moves a weight in the end, as a standard deviation."""
    rms_weight: float
    advice: str
    """One sentence, or nothing."""


@dataclass(frozen=True)
class Diagnosis:
    """The rows of all tensors; as text, a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """Return a table with one line for each tensor."""
        head = f"{'tensor':24} {'max|G|':>9} {'beyond m':>9} {'V0 moves':>9} {'rms W':>9}  advice"
        lines = [
            f"{row.name:24} {row.max_abs_grad:9.2g} {row.share_beyond:9.1%} {row.v0_move:9.2g} "
            f"{row.rms_weight:9.2g}  {row.advice}".rstrip()
            for row in self.rows
        ]
        return "\n".join([head, *lines])


def v0_factor(beta: float, first_step: int, steps: int = 1000) -> float:
    """Return c: V₀ moves a weight by −η c V₀ in `steps` steps. c is the sum of products of β̂.

    Example:
        >>> round(v0_factor(0.9, 1), 3), round(v0_factor(0.9, 0), 3)
        (2.831, 1.915)
    """
    hats = [coefficients(t, beta)[0] for t in range(first_step, first_step + steps)]
    return float(np.cumprod(hats).sum())


def row(
    name: str,
    weight: np.ndarray,
    grad: np.ndarray,
    *,
    learning_rate: float,
    beta: float,
    velocity_std: float,
    first_step: int,
) -> Row:
    """Return the row of a tensor with its gradient; both may be complex."""
    weight, grad = (np.abs(np.asarray(x).astype(np.complex128)) for x in (weight, grad))
    largest = float(grad.max(initial=0.0))
    share = float((grad * largest > 1).mean()) if grad.size else 0.0
    move = learning_rate * velocity_std * v0_factor(beta, first_step)
    rms = math.sqrt(float(np.square(weight).mean())) if weight.size else 0.0
    step = learning_rate * math.sqrt(float(np.square(grad).mean())) if grad.size else 0.0
    advice = ""
    if not math.isfinite(largest):
        advice = "the gradient is not finite: skip such steps"
    elif share > 0.01:
        advice = "gradients are beyond m: take the mean of the loss, not its sum, or clip"
    elif move > 0.5 * rms > 0:
        advice = "V0 overwrites these weights: pass velocity_std=0 to fine-tune"
    elif step < 1e-5 * rms:
        advice = "steps are tiny: raise the learning rate, which is that of SGD, not of Adam"
    return Row(name, largest, share, move, rms, advice)
