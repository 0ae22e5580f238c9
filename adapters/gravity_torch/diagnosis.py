"""`diagnose`: why a run does not learn, or forgets."""

import math
from typing import Any, NamedTuple

import numpy as np

from gravity_core import beta_hat
from gravity_torch import _distributed
from gravity_torch._options import kept_underived
from gravity_torch._state_checks import check_layout
from gravity_torch._tensors import to_numpy
from gravity_torch.optimizer import Gravity
from gravity_torch.state import check_is_gravity, hyperparameters_of


class Row(NamedTuple):
    """What `diagnose` says of one tensor."""

    name: str
    max_abs_grad: float  # max|G|, which is 1/m
    share_beyond: float  # of the elements with |G| > m, whose steps get smaller as |G| grows
    v0_move: float  # how far V₀ alone moves a weight in the end, as a standard deviation
    rms_weight: float
    advice: str  # one sentence, or nothing


class Diagnosis(tuple[Row, ...]):
    """The rows of all tensors; printed, a table."""

    def __str__(self) -> str:
        """Return a table with one line for each tensor."""
        head = f"{'tensor':24} {'max|G|':>9} {'beyond m':>9} {'V0 moves':>9} {'rms W':>9}  advice"
        lines = [
            f"{name:24} {largest:9.2g} {share:9.1%} {move:9.2g} {rms:9.2g}  {advice}".rstrip()
            for name, largest, share, move, rms, advice in self
        ]
        return "\n".join([head, *lines])


def diagnose(optimizer: Gravity) -> Diagnosis:
    """Return max|G|, the elements beyond m and the size of V₀ of each tensor, with advice.

    Call it after a few steps, while the gradients are there. It reads them and the weights, and
    changes nothing. For DTensors this is a collective operation: every process must call it.

    Args:
        optimizer: the optimizer. Parameters without a gradient are left out.

    Raises:
        RuntimeError: for a sparse gradient, as a step.
        ValueError: for an option that a step refuses, and for a parameter without values.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = Gravity([w])
        >>> (100 * w.sum()).backward()
        >>> print(diagnose(optimizer))  # doctest: +NORMALIZE_WHITESPACE
        tensor  max|G|  beyond m  V0 moves  rms W  advice
        0 (3,)  1e+02  100.0%  0.028  1  gradients are beyond m: take the mean of the loss, ...
    """
    check_is_gravity(optimizer)
    with kept_underived(optimizer.param_groups):
        return Diagnosis(_rows(optimizer))


def _rows(optimizer: Gravity) -> list[Row]:
    optimizer._check_options()
    rows, index = list[Row](), 0
    for group in optimizer.param_groups:
        names = group.get("param_names", [])
        if len(names) != len(group["params"]):  # the user replaced some of the parameters
            names = [None] * len(group["params"])
        for name, p in zip(names, group["params"], strict=True):
            if p.grad is not None:
                check_layout(p.grad)
                if p.is_meta:
                    raise ValueError(f"the parameter must have values, got a tensor on {p.device}")
                w, g = (_magnitudes(to_numpy(_distributed.gathered(x))) for x in (p, p.grad))
                name = name or f"{index} {tuple(p.shape)}"
                rows.append(_row(name, w, g, **hyperparameters_of(group)))
            index += 1
    return rows


def _magnitudes(x: np.ndarray) -> np.ndarray:
    """Return |x|; of complex numbers, those of their parts, as a step takes them."""
    parts: np.ndarray = np.ascontiguousarray(x).view(x.real.dtype)
    magnitudes: np.ndarray = np.abs(parts)
    return magnitudes


def _row(name: str, weight: np.ndarray, grad: np.ndarray, **options: Any) -> Row:
    """Return the row of a tensor, from the magnitudes of its elements."""
    lr, largest = options["learning_rate"], float(grad.max(initial=0.0))
    with np.errstate(invalid="ignore"):  # 0 times infinity
        beyond = np.multiply(grad, largest, dtype=np.float64) > 1  # float16 would overflow
    share = float(beyond.mean()) if grad.size else 0.0
    # V₀ moves a weight by −η c V₀ in the end; c is the sum of products of β̂.
    first, beta = options["first_step"], options["beta"]
    factor = np.cumprod([beta_hat(t, beta=beta) for t in range(first, first + 1000)]).sum()
    move, rms, step = lr * options["velocity_std"] * float(factor), _rms(weight), lr * _rms(grad)
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


def _rms(x: np.ndarray) -> float:
    return math.sqrt(np.square(x, dtype=np.float64).mean()) if x.size else 0.0
