"""The readable path: tensor by tensor with the core's functions, with NumPy's bits.

The paths take lists of real tensors (complex ones viewed as pairs of reals) and change the
parameters and velocities in place; gradients are never written to.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from gravity_core.update import update

# One tensor to be updated, or the part of it that is in this process: p, grad, velocity; t, a 0-d
# tensor where the host must not know it; max|G|, 0-d, where it is not that of `grad` alone. Not a
# NamedTuple, which takes as long to make as a tenth of Adam's step of a small tensor.
Item = tuple[Tensor, Tensor, Tensor, int | Tensor, Tensor | None]


class Options(NamedTuple):
    """The hyper-parameters of a group; 0-d tensors where gradients flow or a graph is compiled."""

    lr: float | Tensor
    beta: float | Tensor
    weight_decay: float | Tensor | None  # None for none
    maximize: bool


def update_item(item: Item, options: Options) -> None:
    """Update one tensor with the core's functions: what every other path is tested against."""
    p, grad, velocity, t, max_abs = item
    # Wide, because torch 2.7 cannot compile a negation of half types with emulated casts.
    grad = -grad.to(torch.promote_types(grad.dtype, torch.float32)) if options.maximize else grad
    v = update(grad, velocity, t, beta=options.beta, max_abs=max_abs, xp=xp)
    velocity.copy_(v)
    wide = torch.promote_types(p.dtype, torch.float32)
    w = p.to(wide)
    if options.weight_decay is not None:
        # A new tensor, because autograd keeps this factor of a learning rate with a gradient.
        w = w.clone() - w.clone() * _number(options.lr * options.weight_decay, w)
    # A product and a difference, not sub(alpha=lr), which rounds once and NumPy twice.
    p.copy_(w - v.to(wide) * _number(options.lr, w))


def _number(value: float | Tensor, w: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return value
    # Two 0-d tensors would be computed in the wider of their dtypes. One of the host goes with
    # tensors of any device, and one of a GPU with those of that GPU alone.
    return value.to(value.device if value.is_cpu else w.device, w.dtype)


def for_loop(items: list[Item], options: Options) -> None:
    """Update tensor by tensor with the core's functions: the readable path."""
    for item in items:
        update_item(item, options)


def flat(item: Item) -> list[Tensor] | None:
    """Return the three tensors as flat views in one order of elements, or None if none exists."""
    p, grad, velocity, *_ = item
    if p.is_contiguous() and grad.is_contiguous() and velocity.is_contiguous():
        return [p.view(-1), grad.view(-1), velocity.view(-1)]
    if p.stride() == grad.stride() == velocity.stride() and is_dense(p):
        return [x.as_strided((x.numel(),), (1,)) for x in (p, grad, velocity)]
    return None


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
    """Return them joined, by `torch.cat` or `torch.stack`, in the dtype that they have."""
    # Autocast to float16 refuses bfloat16, and the reverse, but not with out=.
    return join(tensors, out=tensors[0].new_empty(0))
