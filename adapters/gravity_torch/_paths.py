"""The ways to update a group of tensors: a readable one, and fast ones that are tested against it.

All take lists of real tensors (complex ones viewed as pairs of reals) and change the
parameters and velocities in place; gradients are never written to.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from gravity_core.coefficients import coefficients
from gravity_core.update import update

# Elements worked on at a time, so that no temporary of a tensor's size is made. Larger blocks
# mean fewer calls, smaller ones a scratch that stays in the cache; measured, not derived.
BLOCK = 7 * 2**16
# Tensors below this size are stacked with others of theirs, up to this many elements in all:
# a call costs microseconds, as much as the arithmetic on thousands of elements.
SMALL = 2**17
# A call of the compiled update costs about what the stacked one costs for this many elements.
COMPILED = 2**13
_FULL = (torch.float32, torch.float64)
# Where M² could leave the range of float32 in the expanded form of `_blocked`.
_LARGEST = 1e30


class Item(NamedTuple):
    """One tensor to be updated, or the part of it that is in this process."""

    p: Tensor
    grad: Tensor
    velocity: Tensor
    t: int | Tensor  # a 0-d tensor where the host must not know it
    max_abs: Tensor | None = None  # max|G|, 0-d, where it is not that of `grad` alone


class Options(NamedTuple):
    """The hyper-parameters of a group. `lr` is a 0-d tensor where gradients flow through it."""

    lr: float | Tensor
    beta: float
    weight_decay: float
    maximize: bool


def _update(item: Item, options: Options) -> None:
    p, grad, velocity, t, max_abs = item
    grad = -grad if options.maximize else grad
    v = update(grad, velocity, t, beta=options.beta, max_abs=max_abs, xp=xp)
    velocity.copy_(v)
    wide = torch.promote_types(p.dtype, torch.float32)
    w = p.to(wide)
    if options.weight_decay:
        # A new tensor, because autograd keeps this factor of a learning rate with a gradient.
        w = w.clone() - w.clone() * (options.lr * options.weight_decay)
    # A product and a difference, not sub(alpha=lr), which rounds once and NumPy twice.
    p.copy_(w - v.to(wide) * options.lr)


def for_loop(items: list[Item], options: Options) -> None:
    """Update tensor by tensor with the core's functions: the readable path."""
    for item in items:
        _update(item, options)


@functools.cache
def _compiled_update() -> Callable[..., None]:
    # Without emulated casts V would be rounded to half precision in memory, but not for W.
    return torch.compile(_update, dynamic=True, options={"emulate_precision_casts": True})


def compiled(items: list[Item], options: Options, others: Callable[..., None]) -> None:
    """Update with one compiled graph for all shapes; small and strided tensors by `others`."""
    # What changes goes in as 0-d tensors and all shapes as flat views, lest the graph be made anew.
    traced = options._replace(lr=torch.as_tensor(options.lr, dtype=torch.float64))
    rest = []
    for item in items:
        flat = None
        if item.p.numel() >= COMPILED and item.p.dtype == item.grad.dtype:
            flat = _flat(item)
        if flat is None:
            rest.append(item)
        else:
            p, grad, velocity = flat
            t = torch.as_tensor(item.t, dtype=torch.float64)
            _compiled_update()(Item(p, grad, velocity, t, item.max_abs), traced)
    others(rest, options)


def fast(items: list[Item], options: Options) -> None:
    """Update with few passes over memory and few calls; inside the certified bound."""
    options = options._replace(lr=float(options.lr))
    stacks: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    plain = []
    for item in items:
        p, grad, velocity, t, max_abs = item
        if p.dtype not in _FULL or grad.dtype != p.dtype:
            plain.append(item)
        elif p.numel() >= SMALL:
            flat = _flat(item) if p.device.type == "cpu" else None
            if flat is None or not _blocked(flat, t, max_abs, options):
                plain.append(item)
        elif p.is_contiguous() and grad.is_contiguous() and velocity.is_contiguous():
            stacks[p.device, p.dtype, p.shape, t, max_abs is None].append(item)
        else:
            plain.append(item)
    for (_, _, shape, t, _), alike in stacks.items():
        length = max(1, SMALL // shape.numel())
        for i in range(0, len(alike), length):
            _stacked(alike[i : i + length], t, options)
    for_loop(plain, options)


def _flat(item: Item) -> list[Tensor] | None:
    """Return the three tensors as flat views in one order of elements, or None if there is none."""
    p, grad, velocity, *_ = item
    if p.is_contiguous() and grad.is_contiguous() and velocity.is_contiguous():
        return [p.view(-1), grad.view(-1), velocity.view(-1)]
    dense = torch.ops.aten.is_non_overlapping_and_dense.default
    if p.stride() == grad.stride() == velocity.stride() and dense(p):
        return [x.as_strided((x.numel(),), (1,)) for x in (p, grad, velocity)]
    return None


def _blocked(flat: list[Tensor], t: Any, max_abs: Tensor | None, options: Options) -> bool:
    """Update one large flat tensor on the CPU; return False, and do nothing, if M is too large.

    (1 − β̂) ζ = G / (1/(1 − β̂) + M²/(1 − β̂) · G·G) with M = max|G|: two passes over a block, and a
    third that does V and W together.
    """
    p, grad, _ = flat
    low, high = torch.aminmax(grad) if max_abs is None else (-max_abs, max_abs)
    old, new = coefficients(t, options.beta)
    factor = max(-low.item(), high.item()) ** 2 / new
    if not factor < _LARGEST:  # NaN too
        return False
    scratch = torch.empty(min(BLOCK, p.numel()), dtype=p.dtype)
    constant = torch.tensor(1 / new, dtype=p.dtype)
    for pb, gb, vb in zip(*(torch.split(x, BLOCK) for x in flat), strict=True):
        s = scratch[: gb.numel()]
        torch.addcmul(constant, gb, gb, value=factor, out=s)
        torch.div(gb, s, out=s)
        _move([pb], [s], [vb], old, options)
    return True


def _stacked(items: list[Item], t: int, options: Options) -> None:
    """Update small tensors of one size together: the product form, a tensor a row."""
    old, new = coefficients(t, options.beta)
    g = torch.stack([item.grad for item in items]).view(len(items), -1)
    given = [item.max_abs for item in items if item.max_abs is not None]
    if given:
        s = g * torch.stack(given).unsqueeze(1)
    else:
        s = g * torch.maximum(g.amax(dim=1, keepdim=True), -g.amin(dim=1, keepdim=True))
    s.mul_(s).add_(1.0)
    torch.div(g, s, out=s).mul_(new)
    ps, velocities = [item.p for item in items], [item.velocity for item in items]
    terms = list(s.view(len(ps), *ps[0].shape).unbind())
    _move(ps, terms, velocities, old, options)


def _move(
    ps: list[Tensor], terms: list[Tensor], velocities: list[Tensor], old: float, options: Options
) -> None:
    """V ← β̂ V ± term;  W ← W − l λ W − l V, in one pass where torch has it."""
    if options.weight_decay:
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
