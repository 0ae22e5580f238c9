"""The options of a parameter group: their names in PyTorch, their defaults and their checks."""

import sys
from types import FrameType
from typing import Any

from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch._tensors import to_numpy

# PyTorch's name of each hyper-parameter.
NAMES = {name: "lr" if name == "learning_rate" else name for name in hp.DEFAULTS}
DEFAULTS = {
    **{NAMES[name]: value for name, value in hp.DEFAULTS.items()},
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}


def checked(group: dict[str, Any]) -> dict[str, Any]:
    """Return the options as Python numbers; raise for the first that is out of range."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    values = {name: group[own] for name, own in NAMES.items()}
    hp.validate(**values | {"learning_rate": number(lr)}, names=NAMES)
    if number(lr) > 0:  # at 0, only `add_param_group` may warn
        hp.velocity_std(number(lr), group["alpha"], group["velocity_std"], names=NAMES)
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    # Convert NumPy numbers, which torch.load(weights_only=True) refuses.
    numbers = {name: float(group[name]) for name in ("alpha", "beta", "weight_decay")}
    numbers |= {name: int(group[name]) for name in ("seed", "first_step")}
    return group | numbers | {"lr": lr if isinstance(lr, Tensor) else float(lr)}


def number(lr: Any) -> Any:
    """Return a one-element Tensor as a NumPy number; leave other values as they are."""
    if not isinstance(lr, Tensor) or not hp.may_be_a_number(lr):
        return lr
    return to_numpy(lr).reshape(())[()]


def level_of_user() -> int:
    """Return how many frames the user's code is above the caller, for `warnings.warn`."""
    level, frame = 0, sys._getframe()
    while frame.f_back and _package(frame) in ("torch", __package__):
        level, frame = level + 1, frame.f_back
    return level


def _package(frame: FrameType) -> str:
    # Code run by `exec` may have no __name__.
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def check_velocity_std(p: Tensor, group: dict[str, Any]) -> None:
    """Raise if V₀ overflows the dtype of the parameter."""
    std, dtype = group["velocity_std"], str(p.dtype.to_real()).removeprefix("torch.")
    if std > hp.largest_velocity_std(dtype):
        lr, alpha = number(group["lr"]), group["alpha"]
        hp.check_velocity_std(std, dtype, learning_rate=lr, alpha=alpha, names=NAMES)
