"""Export and import of a `gravity_torch.Gravity` run, as `gravity_core.State`."""

from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gravity_core import State
from gravity_core import hyperparameters as hp
from gravity_torch import _distributed
from gravity_torch._options import NAMES, kept_underived, number
from gravity_torch._state_checks import LARGEST_T, check_format, check_is_dict, counter
from gravity_torch._tensors import check_is_dense, to_numpy
from gravity_torch.optimizer import Gravity, first_velocity


def export_state(optimizer: Gravity, *, group: int | None = None) -> State:
    """Return a copy of the state and the hyper-parameters.

    A parameter that has had no gradient yet is exported with 0 updates and with its V₀. For
    DTensors this is a collective operation: every process must call it, and gets the whole V.

    Args:
        optimizer: the optimizer to export; it does not change.
        group: index of the parameter group to export. None exports all groups, which must then
            have the same hyper-parameters.

    Raises:
        TypeError: for another optimizer, also one that wraps a `Gravity`.
        ValueError: if the group does not exist, or if the groups differ in a hyper-parameter. The
            message names that hyper-parameter.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = Gravity([w], lr=0.2)
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> export_state(optimizer)
        State(t=1, first_step=1, velocities=[float32(3,)])
    """
    check_is_gravity(optimizer)
    with kept_underived(optimizer.param_groups):
        return _exported(optimizer, group)


def _exported(optimizer: Gravity, group: int | None) -> State:
    optimizer._check_options()
    groups = _groups(optimizer, group)
    (first, *others) = [hyperparameters_of(values) for values, _ in groups]
    for other in others:
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f"{NAMES[name]} must be the same in all parameter groups, got {value!r} and "
                    f"{other[name]!r}; pass group= to export one of them"
                )
    counts, velocities, dtypes = [], [], []
    for values, start in groups:
        for index, p in enumerate(values["params"], start=start):
            state = optimizer.state.get(p, {})
            check_is_dict(state)
            counts.append(int(counter(state.get("step", 0), p, values)))
            if "velocity" in state:
                check_is_dense("velocity", state["velocity"])
            v = state["velocity"] if "velocity" in state else first_velocity(p, values, index)
            velocities.append(to_numpy(_distributed.gathered(v)))
            dtypes.append(_name(v))
    return State(counts, velocities, first, dtypes=dtypes)


def import_state(optimizer: Gravity, state: State, *, group: int | None = None) -> None:
    """Replace the optimizer's state and hyper-parameters with those of `state`.

    This works like `load_state_dict`, but keeps the options that only PyTorch has, such as
    ``foreach`` and ``maximize``.

    Args:
        optimizer: the optimizer to change; its parameters must be in the state's order.
        state: a state from any framework.
        group: index of the parameter group to import into. None imports into all groups, and gives
            them the same hyper-parameters.

    Raises:
        TypeError: for another optimizer, also one that wraps a `Gravity`, or for another state.
        ValueError: if the state does not fit, or if its t is above 2²⁴, the limit of PyTorch's
            counter. The message names the first mismatch. The optimizer is unchanged then.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = Gravity([w])
        >>> import_state(optimizer, State(10, [np.zeros(3, np.float32)], {"learning_rate": 0.2}))
        >>> optimizer.state[w]["step"], optimizer.param_groups[0]["lr"]
        (tensor(10.), 0.2)
    """
    check_is_gravity(optimizer)
    if not isinstance(state, State):
        raise TypeError(f"state must be a gravity_core.State, got {type(state).__name__}")
    groups = _groups(optimizer, group)
    params = [(i, p) for values, start in groups for i, p in enumerate(values["params"], start)]
    state.check([(tuple(p.shape), _name(p)) for _, p in params], largest_t=LARGEST_T)
    whole, chosen, kept = optimizer.state_dict(), dict(params), {}
    check_format(whole)  # a hook of the user may pack it
    for values, start in _groups(optimizer, None):
        for i, p in enumerate(values["params"], start):
            if i not in chosen and p in optimizer.state:
                # Loaded, V would be rounded to the dtype of its parameter.
                kept[p] = optimizer.state[p]
                whole["state"].pop(i, None)
    for (i, p), v, t in zip(params, state.velocities, state.counts, strict=True):
        # Another library may have its own keys there.
        whole["state"][i] = whole["state"].get(i, {}) | {
            "step": torch.tensor(float(t), dtype=torch.float32, device="cpu"),
            "velocity": _like(p, v),
        }
    positions = range(len(optimizer.param_groups)) if group is None else [group]
    for position in positions:
        values = whole["param_groups"][position]
        for name, value in state.hyperparameters.items():
            old = values[NAMES[name]]
            values[NAMES[name]] = _rate_like(old, value) if isinstance(old, Tensor) else value
    try:
        optimizer.load_state_dict(whole)
    finally:  # a hook of the user may raise after the load
        optimizer.state.update(kept)


def check_is_gravity(optimizer: Any) -> None:
    """Raise for another optimizer."""
    if not isinstance(optimizer, Gravity):
        raise TypeError(
            "optimizer must be a gravity_torch.Gravity (of a wrapper, pass the one inside), "
            f"got {type(optimizer).__name__}"
        )


def _groups(optimizer: Gravity, group: int | None) -> list[tuple[dict[str, Any], int]]:
    """Return the requested groups, each with the index of its first parameter."""
    found, start = [], 0
    for values in optimizer.param_groups:
        found.append((values, start))
        start += len(values["params"])
    if group is None:
        return found
    is_integer = isinstance(group, Integral) and not isinstance(group, bool)
    if not is_integer or group not in range(len(found)):
        raise ValueError(f"group must be None or in [0, {len(found)}), got {group!r}")
    return [found[group]]


def hyperparameters_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a group as numbers, by the names of the core."""
    values = {name: group[own] for name, own in NAMES.items()}
    if isinstance(lr := values["learning_rate"], Tensor):
        values["learning_rate"] = hp.as_float(number(lr))
    return values


def _rate_like(old: Tensor, value: float) -> Tensor:
    """Return a learning rate as a tensor like the old one, in a dtype that has its value."""
    for dtype in (old.dtype, torch.float32, torch.float64):
        if dtype.is_floating_point and not (old.is_mps and dtype == torch.float64):
            rate = torch.full_like(old, value, dtype=dtype)
            if (found := number(rate)) is not None and hp.as_float(found) == value:
                break
    return rate


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _like(p: Any, v: np.ndarray) -> Tensor:
    """Return V in the parameter's dtype, memory format and placement."""
    value = torch.tensor(v, dtype=p.dtype, device=p.device)
    if _distributed.is_distributed(p):
        return _distributed.placed(value, p)
    own = torch.empty_like(p, memory_format=torch.preserve_format)
    return own.detach().copy_(value)
