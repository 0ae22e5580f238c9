"""The state of a parameter: its step counter, its checks, and the names in other checkpoints."""

import math
import reprlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch import _distributed, _options
from gravity_torch._tensors import check_is_dense, has_memory, has_value, overlaps_itself

# What the update can compute. complex32 is two float16.
DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.complex32, torch.complex64, torch.complex128}
)

LARGEST_T = 2**24  # the float32 counter is exact up to here


def counter(value: Any, p: Tensor, group: dict[str, Any], *, keeps_shared: bool = False) -> Tensor:
    """Return a number of steps as a tensor, which the state stores.

    It is a new one, except where the memory that processes share is to be kept.

    Raises:
        ValueError: unless it is one whole number >= 0.
    """
    # float32, as in torch's own optimizers, counts exactly up to LARGEST_T. The device is explicit,
    # because the user may have set another default device. Make the tensor from a number:
    # FakeTensorMode can read the value of such a tensor.
    device = p.device if group["capturable"] else "cpu"
    if not isinstance(value, Tensor):
        return torch.tensor(_number_of_steps(value), dtype=torch.float32, device=device)
    check_counter(value)
    if has_value(value):
        check_step(value.item())
    is_fit = type(value) is Tensor and value.is_cpu and device == "cpu" and not value.shape
    is_fit = is_fit and value.dtype is torch.float32
    if keeps_shared and is_fit and value.is_shared():  # type: ignore[no-untyped-call]
        return value
    return value.detach().to(device, torch.float32, copy=True).reshape(())


def _number_of_steps(value: Any) -> float:
    """Return a number of steps as a float; raise unless it is one that `check_step` takes."""
    try:
        number = float(value) if hp.may_be_a_number(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"step in the state must be finite and >= 0, got {reprlib.repr(value)}")
    check_step(number)
    return number


def check_state(
    p: Tensor, state: dict[str, Any], *, is_own: bool = False, may_overlap: bool = False
) -> None:
    """Raise unless a state belongs to Gravity and fits the parameter.

    If it is known to be Gravity's own, the first step creates what is missing. If V is going to be
    copied, it may be expanded.
    """
    check_is_dict(state)
    if not state or (is_own and "velocity" not in state):
        return
    if not is_own and {"step", "velocity"} - state.keys():
        raise ValueError(f"state must have step and velocity, got {list(state)}")
    check_velocity(state["velocity"], p, may_overlap=may_overlap)


def check_is_dict(state: Any) -> None:
    """Raise unless the state of a parameter is a dict."""
    if not isinstance(state, dict):
        raise ValueError(f"state of a parameter must be a dict, got {reprlib.repr(state)}")


def check_velocity(velocity: Any, p: Tensor, *, may_overlap: bool = False) -> None:
    """Raise unless a velocity is a dense tensor that fits its parameter."""
    check_is_dense("velocity", velocity)
    if velocity.shape != p.shape or velocity.is_complex() != p.is_complex():
        raise ValueError(
            "velocity must have the shape of its parameter, and both must be real or both complex: "
            f"expected {tuple(p.shape)} {p.dtype}, got {tuple(velocity.shape)} {velocity.dtype}"
        )
    check_dtype("velocity", velocity.dtype)
    if velocity.device != p.device:
        raise ValueError(
            f"velocity must be on the device of its parameter, {p.device}, got {velocity.device}"
        )
    if not _distributed.is_placed_as(velocity, p):
        expected, got = (getattr(x, "placements", "not sharded") for x in (p, velocity))
        raise ValueError(f"velocity must be sharded like its parameter, {expected}, got {got}")
    if may_overlap:
        return
    for name, x in (("velocity", velocity), ("the parameter", p)):
        if not torch.is_inference_mode_enabled() and x.is_inference():
            raise RuntimeError(f"{name} is an inference tensor, got a step outside inference mode")
        if overlaps_itself(x):
            raise ValueError(
                f"{name} must have memory for each of its elements, got a tensor of shape "
                f"{tuple(x.shape)} with strides {x.stride()}"
            )


def _check_fits(velocity: Tensor, p: Tensor) -> None:
    """Raise if finite numbers of a velocity become infinite in the dtype of its parameter."""
    v, dtype = _distributed.local(velocity.detach()), p.dtype.to_real()
    if not has_memory(v) or v.layout is not torch.strided or not dtype.is_floating_point:
        return
    if torch.finfo(v.dtype).max <= torch.finfo(dtype).max:
        return
    v = torch.view_as_real(v.resolve_conj()) if v.is_complex() else v
    lost = v[v.isfinite() & v.to(dtype).isinf()]
    if lost.numel():
        raise ValueError(f"velocity must be finite in {p.dtype}, got {lost[0].item()!r}")


def check_counter(step: Any, p: Tensor | None = None) -> None:
    """Raise unless a counter is a tensor of one real number.

    For a step with a parameter, it must be on the CPU or beside it, and count to LARGEST_T.
    """
    check_is_dense("step in the state", step)
    if step.numel() != 1 or not hp.may_be_a_number(step):
        raise ValueError(
            "step in the state must be one real number, got a Tensor of shape "
            f"{tuple(step.shape)} and {step.dtype}"
        )
    if p is None:
        return
    is_float, dtype = step.is_floating_point(), step.dtype
    if (2 / torch.finfo(dtype).eps if is_float else torch.iinfo(dtype).max) < LARGEST_T:
        raise ValueError(
            f"step in the state must have a dtype that counts to {LARGEST_T}, got {dtype}"
        )
    if not step.is_cpu and step.device != p.device:
        raise ValueError(
            f"step in the state must be on the CPU or on {p.device}, got a Tensor on {step.device}"
        )
    if step.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError("step in the state is an inference tensor, outside inference mode")


def check_step(value: float) -> None:
    """Raise unless a number of updates is finite, not negative and whole."""
    if not 0 <= value < math.inf:
        raise ValueError(f"step in the state must be finite and >= 0, got {value!r}")
    if value != int(value):
        raise ValueError(f"step in the state must be a whole number, got {value!r}")


def check_layout(grad: Tensor) -> None:
    """Raise unless a gradient is strided, with the error of torch's own optimizers."""
    if grad.layout is not torch.strided:
        kind = str(grad.layout)
        kind = "sparse gradients" if "sparse" in kind else f"gradients of layout {kind}"
        raise RuntimeError(f"Gravity does not support {kind}")


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise for a dtype with which the update cannot be computed."""
    if dtype not in DTYPES:
        raise ValueError(
            f"{name} must have a floating or complex dtype of 16 bits or more, got {dtype}"
        )


def check_loaded(
    p: Tensor, old: Any, group: dict[str, Any], *, is_own: bool, copy: bool
) -> dict[str, Any]:
    """Return what a loaded state of a parameter becomes; raise unless it fits.

    Args:
        p: the parameter.
        old: the state; it does not change.
        group: the options of the parameter's group.
        is_own: as in `check_state`.
        copy: whether to copy V and a counter in shared memory. Other counters are always copied.
    """
    values = {}
    if isinstance(old, dict) and "velocity" in old:
        velocity = old["velocity"]
        if isinstance(velocity, Tensor):
            velocity = _distributed.placed(velocity, p)
        values["velocity"] = velocity
    check_state(p, old | values if isinstance(old, dict) else old, is_own=is_own, may_overlap=copy)
    if "step" in old:
        values["step"] = counter(old["step"], p, group, keeps_shared=not copy)  # may be a number
    if copy and "velocity" in values:
        values["velocity"] = values["velocity"].detach().clone()
    return values


def check_format(state_dict: Any) -> None:
    """Raise unless a state_dict has the form of those of torch."""
    if not isinstance(state_dict, dict) or {"state", "param_groups"} - state_dict.keys():
        raise ValueError(
            f"state_dict must be a dict with state and param_groups, got {reprlib.repr(state_dict)}"
        )
    if not isinstance(state_dict["state"], dict):
        raise ValueError(f"state must be a dict, got {reprlib.repr(state_dict['state'])}")
    groups = state_dict["param_groups"]
    if not isinstance(groups, list) or not all(
        isinstance(x, dict) and isinstance(x.get("params"), list) for x in groups
    ):
        raise ValueError(
            f"param_groups must be a list of dicts with params, got {reprlib.repr(groups)}"
        )
    for old in state_dict["state"].values():
        check_is_dict(old)


def accepted(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state_dict with our names, for torch's load_state_dict.

    Raises:
        ValueError: for values that torch would turn into others, or cannot read.
    """
    state_dict = translated(state_dict)
    has_velocities = any("velocity" in old for old in state_dict["state"].values())
    for group in state_dict["param_groups"]:
        if "beta" not in group and not has_velocities:  # SGD, for example, may have no state
            raise ValueError(
                f"param_groups must be those of a Gravity optimizer, with beta, got {list(group)}"
            )
        for name in _options.SWITCHES:
            if name in group:
                _options.switch(name, group[name])
    ours, theirs = (
        [x for group in groups for x in group["params"]]
        for groups in (optimizer.param_groups, state_dict["param_groups"])
    )
    try:
        counts = Counter(theirs)
    except TypeError as error:
        raise ValueError(f"params must be keys of state, got {reprlib.repr(theirs)}") from error
    for key, values in state_dict["state"].items():
        # A wrapper may keep a step of its own beside the states of parameters, under a name.
        is_ours = "velocity" in values or ("step" in values and not isinstance(key, str))
        if is_ours and key not in counts:
            raise ValueError(f"state must have keys that are in params, got {key!r}")
    if len(counts) < len(theirs):
        (key, _), *_ = counts.most_common(1)
        raise ValueError(f"params must have each key once, got {key!r} twice or more")
    for p, key in zip(ours, theirs, strict=False):  # torch compares the lengths
        values = state_dict["state"].get(key, {})
        if len({"step", "velocity"} & values.keys()) == 1:
            raise ValueError(f"state must have step and velocity, or neither, got {list(values)}")
        step, velocity = values.get("step", 0.0), values.get("velocity", p)
        check_is_dense("velocity", velocity)
        if isinstance(step, Tensor):
            check_counter(step)
            count = step.item() if has_value(step) else 0
        else:
            count = _number_of_steps(step)
        if count > LARGEST_T:
            raise ValueError(f"step in the state must be at most {LARGEST_T}, got {step!r}")
        for name, x in (("velocity", velocity), ("step in the state", step)):
            if isinstance(x, Tensor) and x.is_meta and not p.is_meta:
                raise ValueError(f"{name} must have values, got a Tensor on {x.device}")
        if velocity.is_complex() and not p.is_complex():  # torch would drop the imaginary parts
            check_velocity(velocity, p)
        if "velocity" in values:  # torch would convert it to the dtype of its parameter
            check_dtype("velocity", velocity.dtype)
            _check_fits(velocity, p)
    return state_dict


def check_shapes(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor]) -> None:
    """Raise unless each gradient and velocity has the shape of its parameter.

    They can differ if `p.data` was replaced.
    """
    for p, grad, velocity in zip(params, grads, velocities, strict=True):
        if p.shape == grad.shape == velocity.shape:
            continue
        check_velocity(velocity, p)
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
    check_format(state_dict)
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
            step = steps.get(key)
            step = (
                0.0
                if step is None
                else step
                if isinstance(step, Tensor)
                else _number_of_steps(step)
            )
            state[key] = new | {"velocity": old["v"], "step": step}
        else:
            state[key] = old
    groups = [
        {name: value for name, value in group.items() if name not in ("t", "step")}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "state": state, "param_groups": groups}
