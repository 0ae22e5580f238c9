"""The options of a parameter group: their names in PyTorch, their defaults and their checks."""

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import is_, itemgetter
from types import FrameType, MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch._tensors import check_is_dense, has_memory, has_value, to_numpy

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
NO_NAMES: Mapping[str, str] = MappingProxyType({})

_SCALARS = ("alpha", "beta", "weight_decay", "velocity_std")
SWITCHES = ("foreach", "maximize", "capturable", "differentiable", "fused")
_values = itemgetter("lr", *(name for name in DEFAULTS if name != "lr"))
Checked = list[tuple[Any, ...]]  # the options of each group, the learning rate first


def checked(
    group: dict[str, Any], others: Mapping[str, str] = NO_NAMES, *, wait: bool = True
) -> dict[str, Any]:
    """Return the options as Python numbers; raise for the first that is out of range.

    Args:
        group: the options.
        others: other names of options in messages.
        wait: whether to read a learning rate that the host does not have.
    """
    lr, names = group["lr"], {name: others.get(own, own) for name, own in NAMES.items()}
    for name, own in NAMES.items():
        if isinstance(group[own], Tensor):
            check_is_dense(names[name], group[own])
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(
            f"Tensor {names['learning_rate']} must be 1-element, got shape {tuple(lr.shape)}"
        )
    values = {name: group[own] for name, own in NAMES.items()}
    for name in _SCALARS:
        found = number(values[name])
        if found is None and values[name] is not None:
            raise ValueError(f"{names[name]} must be a number, got {values[name]!r}")
        values[name] = found
    rate: Any = number(lr) if wait or is_known(lr) else None
    if rate is None and isinstance(lr, Tensor) and hp.may_be_a_number(lr):
        rate = 0.0  # its value is checked where there is one
    values["learning_rate"] = rate
    hp.validate(**values, names=names)
    if rate > 0:  # at 0, only `add_param_group` may warn
        hp.velocity_std(rate, values["alpha"], values["velocity_std"], names=names)
    switches = {name: switch(name, group[name]) for name in SWITCHES}
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    # Convert NumPy numbers, which torch.load(weights_only=True) refuses.
    numbers = {name: hp.as_float(values[name]) for name in _SCALARS if values[name] is not None}
    numbers |= {name: int(group[name]) for name in ("seed", "first_step")}
    return group | numbers | switches | {"lr": lr if isinstance(lr, Tensor) else hp.as_float(lr)}


def switch(name: str, value: Any) -> bool | None:
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
    try:
        now = list(map(_values, groups))
    except KeyError as error:
        (name,) = error.args
        i = next(i for i, group in enumerate(groups) if name not in group)
        raise ValueError(
            f"{name} must be in each parameter group, got group {i} with {list(groups[i])}"
        ) from None
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
    return not isinstance(lr, Tensor) or has_value(lr)


def is_derived(group: dict[str, Any]) -> bool:
    """Return whether σ of a group is alpha / lr, and not given by the user."""
    std = group.get(DERIVED)
    return std is not None and bool(group["velocity_std"] == std)


def underived(groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the groups whose σ the user has set to None, and what they hold of it."""
    return [
        (group, {name: group[name] for name in ("velocity_std", DERIVED) if name in group})
        for group in groups
        if group.get("velocity_std", 0.0) is None
    ]


def restore(unset: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Give the groups of `underived` back what they held."""
    for group, before in unset:
        group.update(before)


@contextlib.contextmanager
def kept_underived(groups: list[dict[str, Any]]) -> Iterator[None]:
    """Restore σ afterwards, for what reads an optimizer and changes nothing."""
    unset = underived(groups)
    try:
        yield
    finally:
        restore(unset)


def number(value: Any) -> Any:
    """Return a one-element Tensor as a NumPy number, or None if it has no value.

    Other values stay as they are.
    """
    if not isinstance(value, Tensor) or not hp.may_be_a_number(value):
        return value
    if has_memory(value):
        return to_numpy(value).reshape(-1)[0] if value.numel() == 1 else value
    try:  # FakeTensorMode knows the value of a tensor that was made from a number
        found = value.item()
    except (RuntimeError, NotImplementedError):
        return None
    if not isinstance(found, (int, float)):
        return None
    return np.float32(found) if value.dtype == torch.float32 else found


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
        lr = number(group["lr"]) if is_derived(group) else None
        hp.check_velocity_std(std, dtype, learning_rate=lr, alpha=group["alpha"], names=NAMES)
