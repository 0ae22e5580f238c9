"""Private names of torch, and what replaces each where a version of torch lacks it."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch


def with_grad_if_differentiable(step: Callable[..., Any]) -> Callable[..., Any]:
    """Let a step record gradients if and only if `differentiable`, in any mode of the caller."""
    try:  # private to torch; unlike the code below, it also breaks the graph under torch.compile
        from torch.optim.optimizer import _use_grad_for_differentiable
    except ImportError:
        pass
    else:
        return _use_grad_for_differentiable(step)

    @functools.wraps(step)
    def step_in_mode(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return step_in_mode


def check_capture(optimizer: torch.optim.Optimizer) -> None:
    """Raise in a CUDA graph capture if a replay would be wrong."""
    # Older versions have the second name only, and newer ones deprecate it.
    # torch 2.7 cannot compile the truth value of a method.
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if (check := getattr(optimizer, name, None)) is not None:
            check()
            return
    # Without these names, raise torch's error. Leave out its hint about capturable=True.
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return
    capturable = all(group["capturable"] for group in optimizer.param_groups)
    if torch.cuda.is_current_stream_capturing() and not capturable:
        raise RuntimeError(
            "Attempting CUDA graph capture of step() for an instance of "
            f"{type(optimizer).__name__} but param_groups' capturable is False."
        )


def is_flattened(p: torch.Tensor) -> bool:
    """Return whether p is a FlatParameter of FullyShardedDataParallel, or a piece of one.

    With use_orig_params=True only a private mark tells. Without it, such pieces are not noticed.
    In one process the pieces are the whole parameters.
    """
    if (fsdp := sys.modules.get("torch.distributed.fsdp")) is None:
        return False
    if isinstance(p, getattr(fsdp, "FlatParameter", ())):
        return True
    distributed = torch.distributed
    is_piece = getattr(p, "_fsdp_flattened", False)
    return bool(is_piece and distributed.is_initialized() and distributed.get_world_size() > 1)


def is_zero_tensor(x: torch.Tensor) -> bool:
    """Return whether x is one of autograd's tensors of zeros, which have no memory."""
    # No public name tells it from a functional tensor, whose address is 0 as well.
    return bool(getattr(x, "_is_zerotensor", bool)())
