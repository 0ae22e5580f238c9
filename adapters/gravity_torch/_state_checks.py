"""The state of a parameter: its step counter, its checks, and the names in other checkpoints."""

import math
from typing import Any

import torch
from torch import Tensor

from gravity_torch import _distributed


def counter(value: Any, p: Tensor, group: dict[str, Any]) -> Tensor:
    """Return a number of steps as the tensor that the state stores."""
    # float32, as in torch's own optimizers, counts exactly up to 2**24. The device is explicit,
    # because the user may have set another default device. Make the tensor from a number:
    # FakeTensorMode can read the value of such a tensor.
    device = p.device if group["capturable"] else "cpu"
    if isinstance(value, Tensor):
        return value.to(device, torch.float32)
    return torch.tensor(float(value), dtype=torch.float32, device=device)


def check_state(p: Tensor, state: dict[str, Any], *, is_own: bool = False) -> None:
    """Raise unless a state belongs to Gravity and fits the parameter.

    If it is known to be Gravity's own, the first step creates what is missing.
    """
    if not state or (is_own and "velocity" not in state):
        return
    if not is_own and {"step", "velocity"} - state.keys():
        raise ValueError(f"state must have step and velocity, got {sorted(state)}")
    velocity = state["velocity"]
    if velocity.shape != p.shape or velocity.is_complex() != p.is_complex():
        raise ValueError(
            "velocity must have the shape of its parameter, and both must be real or both complex: "
            f"expected {tuple(p.shape)} {p.dtype}, got {tuple(velocity.shape)} {velocity.dtype}"
        )
    if not _distributed.is_placed_as(velocity, p):
        expected, got = (getattr(x, "placements", "not sharded") for x in (p, velocity))
        raise ValueError(f"velocity must be sharded like its parameter, {expected}, got {got}")


def check_step(value: float) -> None:
    """Raise unless a number of updates is finite and not negative."""
    if not 0 <= value < math.inf:
        raise ValueError(f"step in the state must be finite and >= 0, got {value!r}")


def check_shapes(p: Tensor, grad: Tensor, velocity: Tensor) -> None:
    """Raise unless the gradient and the velocity have the parameter's shape."""
    check_state(p, {"step": None, "velocity": velocity})
    if grad.shape != p.shape:
        raise ValueError(
            f"p.grad must have the shape of its parameter, {tuple(p.shape)}, "
            f"got {tuple(grad.shape)}"
        )


def check_dtypes(p: Tensor, grad: Tensor, velocity: Tensor) -> None:
    """Raise unless all three are real, or all three complex."""
    if not p.is_complex() == grad.is_complex() == velocity.is_complex():
        raise ValueError(
            "the parameter, p.grad and velocity must be all real or all complex: for a parameter "
            f"of {p.dtype}, got {grad.dtype} and {velocity.dtype}"
        )


def translated(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Rename the keys of another Gravity implementation's state; return other states unchanged."""
    if not any("v" in old and "velocity" not in old for old in state_dict["state"].values()):
        return state_dict  # the user may have put a "t" or "step" into a group
    steps = {
        key: group.get("t", group.get("step"))
        for group in state_dict["param_groups"]
        for key in group["params"]
    }
    state = {}
    for key, old in state_dict["state"].items():
        if "v" in old and "velocity" not in old:
            new = {name: value for name, value in old.items() if name != "v"}
            step = torch.tensor(float(steps.get(key) or 0), dtype=torch.float32)
            state[key] = new | {"velocity": old["v"], "step": step}
        else:
            state[key] = old
    groups = [
        {name: value for name, value in group.items() if name not in ("t", "step")}
        for group in state_dict["param_groups"]
    ]
    return state_dict | {"state": state, "param_groups": groups}
