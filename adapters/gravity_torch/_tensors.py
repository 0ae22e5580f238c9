"""Helpers for tensors: dtypes, views, joins and conversion to NumPy."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float32 for a half type, any wider dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def to_numpy(x: Tensor) -> np.ndarray:
    """Return a tensor as a NumPy array; NumPy has no bfloat16, so that becomes float32."""
    x = x.detach().cpu().resolve_conj()
    return np.asarray((x.float() if x.dtype == torch.bfloat16 else x).numpy())


def has_memory(x: Tensor) -> bool:
    """Return False for fake, meta and subclass tensors: kernels and graphs do not accept them."""
    return type(x.data) is Tensor and not x.is_meta


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


def without_autocast(join: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors with `torch.cat` or `torch.stack`, and keep their dtype under autocast."""
    # Autocast to float16 refuses bfloat16 tensors and vice versa, except with out=.
    return join(tensors, out=tensors[0].new_empty(0))
