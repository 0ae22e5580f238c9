"""Helpers for tensors: dtypes, views, joins and conversion to NumPy."""

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The types of tensors that behave as torch's own.
PLAIN = {torch.nn.Parameter, Tensor}


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float32 for a half type, any wider dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def to_numpy(x: Tensor) -> np.ndarray:
    """Return a tensor as a NumPy array; bfloat16 and complex32, which NumPy lacks, get 32 bits."""
    x = x.detach().cpu().resolve_conj().resolve_neg()
    wider = {torch.bfloat16: torch.float32, torch.complex32: torch.complex64}
    return np.asarray(x.to(wider.get(x.dtype, x.dtype)).numpy())


def check_is_dense(name: str, x: Any) -> None:
    """Raise unless a value is a dense tensor; nested ones may be strided, too."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a Tensor, got {reprlib.repr(x)}")
    if x.layout is not torch.strided or x.is_nested:
        kind = "a nested Tensor" if x.is_nested else f"layout {x.layout}"
        raise ValueError(f"{name} must be dense, got {kind}")


def has_memory(x: Tensor) -> bool:
    """Return False for fake, meta and subclass tensors: kernels and graphs do not accept them."""
    return type(x.data) is Tensor and not x.is_meta


def has_value(x: Tensor) -> bool:
    """Return whether the host has the numbers of a tensor."""
    try:
        return x.is_cpu and has_memory(x) and x.data_ptr() != 0
    except RuntimeError:  # inside torch.func
        return False


def max_abs(grads: list[Tensor]) -> list[Tensor]:
    """Return max|G| of each gradient on one device; none of them is empty."""
    if not grads:
        return []
    if not grads[0].is_cpu:
        return list(torch._foreach_norm(grads, torch.inf))
    if len(grads) > 1 and not torch.compiler.is_compiling():  # which does not know _foreach_max
        return list(torch._foreach_max(torch._foreach_abs(grads)))
    # For one large gradient many times faster, and without a copy.
    return [torch.maximum(-low, high) for low, high in map(torch.aminmax, grads)]


def flat(p: Tensor, grad: Tensor, velocity: Tensor) -> list[Tensor] | None:
    """Return flat views with the same order of elements, or None if no such views exist."""
    if not has_one_order(p, grad, velocity):
        return None
    return [x.as_strided((x.numel(),), (1,)) for x in (p, grad, velocity)]


def has_one_order(p: Tensor, grad: Tensor, velocity: Tensor) -> bool:
    """Return whether the tensors have their elements in one order in memory, without gaps."""
    if p.is_contiguous() and grad.is_contiguous() and velocity.is_contiguous():
        return True
    same = p.stride() == grad.stride() == velocity.stride()
    return same and p.shape == grad.shape == velocity.shape and is_dense(p)


def is_dense(x: Tensor) -> bool:
    """Return whether the elements fill one block of memory without overlap."""
    size = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length != 1:
            if stride != size:
                return False
            size *= length
    return True


def overlaps_itself(x: Tensor) -> bool:
    """Return whether two elements have the same memory."""
    if x.is_contiguous():
        return False
    size = 0
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1:
            if stride <= size:
                break
            size += stride * (length - 1)
    else:
        return False
    # In rare cases, such as the strides (3, 2) of a (2, 3) tensor, the places are still different.
    places = np.zeros((), np.int64)
    for stride, length in zip(x.stride(), x.shape, strict=True):
        if length > 1 and not stride:
            return x.numel() > 0
        places = np.add.outer(places, stride * np.arange(length))
    return len(np.unique(places)) < x.numel()


def without_autocast(join: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors with `torch.cat` or `torch.stack`, and keep their dtype under autocast."""
    # Autocast to float16 refuses bfloat16 tensors and vice versa, except with out=.
    return join(tensors, out=tensors[0].new_empty(0))
