"""The default path: few passes over memory and few calls, tested against the readable path."""

import functools
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from gravity_core.coefficients import coefficients
from gravity_torch._gathered import gathered
from gravity_torch._loop import Item, Options, flat, for_loop

# Elements worked on at a time, so that no temporary of a tensor's size is made. Larger blocks
# mean fewer calls, smaller ones a scratch that stays in the cache; measured, not derived.
BLOCK = 7 * 2**16
# Smaller tensors are stacked with others of their shape, up to STACK elements in all: a call
# costs microseconds, as much as the arithmetic on thousands of elements.
SMALL = 2**14
STACK = 2**17
_FULL = (torch.float32, torch.float64)
# Where M² could leave the range of float32 in the expanded form of `_blocked`.
_LARGEST = 1e30

Tensors = tuple[Tensor, ...] | list[Tensor]


def _is_plain(p: Tensor) -> bool:
    """Return False for fake tensors and other classes, which have no private kernels."""
    return type(p) is torch.nn.Parameter or type(p) is Tensor or type(p.data) is Tensor


def fast(items: list[Item], options: Options) -> None:
    """Update with few passes over memory and few calls; inside the certified bound."""
    stacks: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    large: list[Item] = []
    plain: list[Item] = []
    elsewhere: list[Item] = []
    for item in items:
        p, grad, velocity, t, max_abs = item
        dtype = p.dtype
        if not _is_plain(p) or not dtype == grad.dtype == velocity.dtype:
            plain.append(item)
        elif not p.is_cpu:
            elsewhere.append(item)
        elif dtype not in _FULL or isinstance(t, Tensor):
            plain.append(item)
        elif p.numel() >= SMALL:
            large.append(item)
        elif p.is_contiguous() and grad.is_contiguous() and velocity.is_contiguous():
            stacks[dtype, p.shape, t, max_abs is None].append(item)
        else:
            plain.append(item)
    for_loop(plain, options)
    gathered(elsewhere, options)
    if not (large or stacks):
        return
    options = options._replace(lr=float(options.lr))
    # One scratch for all of them: to touch fresh memory costs more than the arithmetic in it.
    size = BLOCK if large else 2 * STACK

    @functools.cache
    def scratch(dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="cpu")

    for item in large:
        views = flat(item)
        if views is None or not _blocked(views, item, options, scratch(item.p.dtype)):
            for_loop([item], options)
    for (dtype, shape, t, _), alike in stacks.items():
        length = max(1, STACK // shape.numel())
        for i in range(0, len(alike), length):
            _stacked(alike[i : i + length], t, options, scratch(dtype))


def _blocked(views: list[Tensor], item: Item, options: Options, scratch: Tensor) -> bool:
    """Update one large tensor on the CPU; return False, and do nothing, if M is too large.

    (1 − β̂) ζ = G / (1/(1 − β̂) + M²/(1 − β̂) · G·G) with M = max|G|: two passes over a block, and a
    third that does V and W together.
    """
    low, high = torch.aminmax(item.grad) if item.max_abs is None else (-item.max_abs, item.max_abs)
    old, new = coefficients(item.t, options.beta)
    factor = max(-low.item(), high.item()) ** 2 / new
    if not factor < _LARGEST:  # NaN too
        return False
    constant = torch.tensor(1 / new, dtype=scratch.dtype, device=scratch.device)
    for p, g, v in zip(*(torch.split(x, BLOCK) for x in views), strict=True):
        s = scratch[: g.numel()]
        torch.addcmul(constant, g, g, value=factor, out=s)
        torch.div(g, s, out=s)
        _move([p], [s], [v], old, options)
    return True


def _stacked(items: list[Item], t: Any, options: Options, scratch: Tensor) -> None:
    """Update small tensors of one shape together: the product form, a tensor a row."""
    ps, grads, velocities, _, maxima = zip(*items, strict=True)
    old, new = coefficients(t, options.beta)
    shape = (len(items), *ps[0].shape)
    g, s = (x.view(shape) for x in scratch[: 2 * shape[0] * ps[0].numel()].chunk(2))
    torch.stack(grads, out=g)
    rows = g.view(len(items), -1)
    if maxima[0] is None:
        m = torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True))
    else:
        m = torch.stack(maxima).unsqueeze(1)
    torch.mul(rows, m, out=s.view_as(rows)).square_().add_(1.0)
    torch.div(g, s, out=s).mul_(new)
    _move(ps, s.unbind(), velocities, old, options)


def _move(ps: Tensors, terms: Tensors, velocities: Tensors, old: float, options: Options) -> None:
    """V ← β̂ V ± term;  W ← W − l λ W − l V, in one pass where torch has it."""
    if options.weight_decay is not None:
        torch._foreach_mul_(ps, 1 - options.lr * options.weight_decay)
    if _fused_sgd is not None:
        # Momentum SGD, with β̂ for the momentum and the terms, which need no damping, for gradients.
        _fused_sgd(
            ps,
            terms,
            velocities,
            weight_decay=0.0,
            momentum=old,
            lr=options.lr,
            dampening=0.0,
            nesterov=False,
            maximize=options.maximize,
            is_first_step=False,
        )
        return
    torch._foreach_mul_(velocities, old)
    torch._foreach_add_(velocities, terms, alpha=-1 if options.maximize else 1)
    torch._foreach_add_(ps, velocities, alpha=-float(options.lr))


# Private to torch, though torch's own SGD is made of it; without it there are three passes.
_fused_sgd = getattr(torch, "_fused_sgd_", None)
