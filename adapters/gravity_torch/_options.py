"""The options of a parameter group: their names in PyTorch, their defaults and their checks."""

import math
import sys
from itertools import chain
from operator import is_, itemgetter
from types import FrameType
from typing import Any

import numpy as np
from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch._tensors import has_memory, to_numpy

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
# A group keeps σ as velocity_std, and here once more if σ is derived: alpha / lr, not given.
DERIVED = "derived_std"

_SWITCHES = ("foreach", "maximize", "capturable", "differentiable", "fused")
_values = itemgetter("lr", *(name for name in DEFAULTS if name != "lr"))
Checked = list[tuple[Any, ...]]  # the options of each group, the learning rate first


def checked(group: dict[str, Any], *, wait: bool = True) -> dict[str, Any]:
    """Return the options as Python numbers; raise for the first that is out of range.

    Args:
        group: the options.
        wait: whether to read a learning rate that the host does not have.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    values = {name: group[own] for name, own in NAMES.items()}
    if wait or is_known(lr):
        values["learning_rate"] = rate = number(lr)
    elif hp.may_be_a_number(lr):
        values["learning_rate"] = rate = 0.0
    hp.validate(**values, names=NAMES)
    if rate > 0:  # at 0, only `add_param_group` may warn
        hp.velocity_std(rate, group["alpha"], group["velocity_std"], names=NAMES)
    switches = {name: _switch(name, group[name]) for name in _SWITCHES}
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    # Convert NumPy numbers, which torch.load(weights_only=True) refuses.
    numbers = {name: float(group[name]) for name in ("alpha", "beta", "weight_decay")}
    numbers |= {name: int(group[name]) for name in ("seed", "first_step")}
    return group | numbers | switches | {"lr": lr if isinstance(lr, Tensor) else float(lr)}


def _switch(name: str, value: Any) -> bool | None:
    """Return an option that is on or off as True or False, or as None if None is its default."""
    if value is None and DEFAULTS[name] is None:
        return None
    if isinstance(value, (int, np.bool_)) and value in (0, 1):
        return bool(value)
    choices = "None, True or False" if DEFAULTS[name] is None else "True or False"
    raise ValueError(f"{name} must be {choices}, got {value!r}")


def check_changes(groups: list[dict[str, Any]], before: Checked) -> Checked:
    """Check the options that have changed, and make them Python numbers; change nothing on errors.

    Args:
        groups: the groups of the optimizer.
        before: the result of the last call.
    """
    now = list(map(_values, groups))
    may_be_filled = any(isinstance(values[0], Tensor) for values in now)
    options = chain.from_iterable
    if len(now) != len(before):
        before = [()] * len(now)
    elif not may_be_filled and all(map(is_, options(now), options(before))):
        return before
    changed = {}
    for i, (values, old) in enumerate(zip(now, before, strict=True)):
        if not (old and all(map(is_, values[1:], old[1:])) and _is_rate(values[0], old[0])):
            changed[i] = checked(groups[i], wait=False)
    for i, group in changed.items():
        groups[i].update(group)
        now[i] = _values(group)
    return now


def _is_rate(lr: Any, before: Any) -> bool:
    """Return whether a learning rate is valid without doubt; the last one was."""
    if isinstance(lr, Tensor):
        if not is_known(lr):
            return lr is before
        lr = lr.item() if lr.numel() == 1 else None
    return type(lr) is float and 0 <= lr < math.inf


def is_known(lr: Any) -> bool:
    """Return whether the host has the value of a learning rate, or of a Tensor of one."""
    if not isinstance(lr, Tensor):
        return True
    try:
        return lr.is_cpu and has_memory(lr) and lr.data_ptr() != 0
    except RuntimeError:  # inside torch.func
        return False


def is_derived(group: dict[str, Any]) -> bool:
    """Return whether σ of a group is alpha / lr, and not given by the user."""
    std = group.get(DERIVED)
    return std is not None and bool(group["velocity_std"] == std)


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
