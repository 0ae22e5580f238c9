"""`diagnose`: why a run does not learn, or forgets."""

from gravity_core.diagnosis import Diagnosis, row
from gravity_torch import _distributed
from gravity_torch._tensors import to_numpy
from gravity_torch.optimizer import Gravity
from gravity_torch.state import hyperparameters_of


def diagnose(optimizer: Gravity) -> Diagnosis:
    """Return max|G|, the elements beyond m and the size of V₀ of each tensor, with advice.

    Call it after a few steps, while the gradients are there. It reads them and the weights, and
    changes nothing. For DTensors this is a collective operation: every process must call it.

    Args:
        optimizer: the optimizer. Parameters without a gradient are left out.

    Returns:
        the rows; printed, a table.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = Gravity([w])
        >>> (100 * w.sum()).backward()
        >>> print(diagnose(optimizer))  # doctest: +NORMALIZE_WHITESPACE
        tensor  max|G|  beyond m  V0 moves  rms W  advice
        0 (3,)  1e+02  100.0%  0.028  1  gradients are beyond m: take the mean of the loss, ...
    """
    rows, index = [], 0
    for group in optimizer.param_groups:
        options = hyperparameters_of(group)
        options = {
            name: options[name] for name in ("learning_rate", "beta", "velocity_std", "first_step")
        }
        names = group.get("param_names", [None] * len(group["params"]))
        for name, p in zip(names, group["params"], strict=True):
            if p.grad is not None:
                w, g = (to_numpy(_distributed.gathered(x)) for x in (p, p.grad))
                rows.append(row(name or f"{index} {tuple(p.shape)}", w, g, **options))
            index += 1
    return Diagnosis(tuple(rows))
