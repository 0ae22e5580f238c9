"""The path of `foreach=False`: one tensor at a time, with the functions of `gravity_core`.

Guarantee: V and W have the bits of the NumPy reference.
"""

import array_api_compat.torch as xp
from torch import Tensor

from gravity_core.update import update
from gravity_torch._items import Item, Options
from gravity_torch._tensors import working_dtype


def single_tensor(items: list[Item], options: Options) -> None:
    """Update one tensor after another."""
    for item in items:
        update_item(item, options)


def update_item(item: Item, options: Options) -> None:
    """Update one tensor."""
    p, grad, velocity, t, max_abs = item
    if options.maximize:
        # torch 2.7 cannot compile the negation of a half type if it emulates precision casts.
        grad = -grad.to(working_dtype(grad.dtype))
    v = update(grad, velocity, t, beta=options.beta, max_abs=max_abs, xp=xp)
    dtype = working_dtype(p.dtype)
    w = p.to(dtype)
    if options.weight_decay is not None:
        # If the learning rate needs a gradient, autograd saves the factor w. Clone it: w may be p
        # itself, and p changes below.
        w = w.clone() - w.clone() * _scalar(options.lr * options.weight_decay, w)
    # Multiply and then subtract, as NumPy does: sub(alpha=lr) rounds only once.
    w = w - v.to(dtype) * _scalar(options.lr, w)
    if p.is_neg():  # between float32 and float16, copy_ may ignore that its target is negated
        w = w.to(p.dtype)
    velocity.copy_(v)  # only after all that allocates
    p.copy_(w)


def _scalar(value: float | Tensor, w: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return value
    # Cast the value: with a 0-d w, torch would compute in the wider of the two dtypes. A 0-d tensor
    # on the CPU combines with tensors on any device. A 0-d tensor on a GPU does not, so move it.
    return value.to(value.device if value.is_cpu else w.device, w.dtype)
