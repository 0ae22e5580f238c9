"""The default path: few passes over memory and few calls, tested against the readable path."""

import functools
from collections import defaultdict
from collections.abc import Callable
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
# The dtype that each is computed in.
_WORKING = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
# Where M² could leave the range of float32 in the expanded form of `_blocked`.
_LARGEST = 1e30

Tensors = tuple[Tensor, ...] | list[Tensor]
# Tensors in one, and each of them as a view.
Rows = tuple[Tensor, Tensors]
# β̂, 1 − β̂, and 1/(1 − β̂) as a tensor.
Weights = tuple[float, float, Tensor]


# Known to have memory, and quicker to ask for.
_PLAIN = (torch.nn.Parameter, Tensor)


def has_memory(p: Tensor) -> bool:
    """Return whether private kernels and graphs can be given `p`: not fake and other classes."""
    return type(p.data) is Tensor and not p.is_meta


def fast(items: list[Item], options: Options) -> None:
    """Update with few passes over memory and few calls; inside the certified bound."""
    stacks: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    large: list[Item] = []
    plain: list[Item] = []
    elsewhere: list[Item] = []
    for item in items:
        p, grad, velocity, t, max_abs = item
        dtype = p.dtype
        mixed = dtype is not grad.dtype or dtype is not velocity.dtype
        if mixed or (type(p) not in _PLAIN and not has_memory(p)):
            plain.append(item)
        elif not p.is_cpu:
            elsewhere.append(item)
        elif dtype not in _WORKING or type(t) is not int:
            plain.append(item)
        elif not (size := p.numel()):
            continue
        elif size >= SMALL:
            large.append(item)
        elif p.is_contiguous() and velocity.is_contiguous():
            stacks[dtype, p.shape, t, max_abs is None].append(item)
        else:
            plain.append(item)
    for_loop(plain, options)
    gathered(elsewhere, options)
    if not (large or stacks):
        return
    options = options._replace(lr=float(options.lr))
    # One scratch for all of them: to touch fresh memory costs more than the arithmetic in it.
    blocks = [min(2 * item[0].numel(), BLOCK) for item in large]
    length = max(blocks + [2 * _rows(alike) * alike[0][0].numel() for alike in stacks.values()])

    @functools.cache
    def scratch(dtype: torch.dtype) -> Tensor:
        return torch.empty(length, dtype=dtype, device="cpu")

    @functools.cache
    def weights(t: int, dtype: torch.dtype) -> Weights:
        old, new = coefficients(t, options.beta)
        return old, new, torch.tensor(1 / new, dtype=dtype, device="cpu")

    for item in large:
        p, *_, t, _ = item
        views, dtype = flat(item), _WORKING[p.dtype]
        shared = weights(t, dtype), options, scratch(dtype)
        if views is None or not _blocked(views, item, *shared):
            for_loop([item], options)
    for (kept, _, t, _), alike in stacks.items():
        dtype = _WORKING[kept]
        _stacked(alike, weights(t, dtype), options, scratch(dtype))


def count(steps: list[Tensor]) -> None:
    """Add 1 to every counter."""
    ours = {step.dtype for step in steps} == {torch.float32} and type(steps[0]) is Tensor
    if _fused_sgd is None or not ours or not steps[0].is_cpu:
        torch._foreach_add_(steps, 1)
        return
    # Ascent at rate 1 along gradients of 1: one call into torch's kernel for all of them, where an
    # addition is dispatched for each, which takes the host three times as long.
    one = torch.ones((), dtype=torch.float32, device="cpu")
    _fused_sgd(steps, [one] * len(steps), [], momentum=0.0, lr=1.0, maximize=True)


def _blocked(
    views: list[Tensor], item: Item, weights: Weights, options: Options, scratch: Tensor
) -> bool:
    """Update one tensor on the CPU; return False, and do nothing, if M is too large.

    (1 − β̂) ζ = G / (1/(1 − β̂) + M²/(1 − β̂) · G·G) with M = max|G|: two passes over a block, and a
    third that does V and W together. Half types are copied into the scratch.
    """
    _, grad, _, _, max_abs = item
    low, high = torch.aminmax(grad) if max_abs is None else (-max_abs, max_abs)
    old, new, constant = weights
    m = float(max(-low.item(), high.item()))
    factor = m * m / new  # not a power, which raises where this is inf
    if not factor < _LARGEST:  # NaN too
        return False
    half = grad.dtype is not scratch.dtype
    size = BLOCK // 2 if half else BLOCK
    small = grad.numel() <= size  # one block, and no calls to split it off
    for p, g, v in [views] if small else zip(*(torch.split(x, size) for x in views), strict=True):
        n = g.numel()
        s = scratch[:n]
        if half:
            g = scratch[n : 2 * n].copy_(g)
        torch.addcmul(constant, g, g, value=factor, out=s)
        torch.div(g, s, out=s)
        if half:
            _move_half([p], (s, [s]), [v], old, options, (g, [g]))
        else:
            _move([p], [s], [v], old, options)
    return True


def _rows(items: list[Item]) -> int:
    """Return how many small tensors of one shape are stacked at a time."""
    return min(len(items), STACK // items[0][0].numel())


def _stacked(items: list[Item], weights: Weights, options: Options, scratch: Tensor) -> None:
    """Update small tensors of one shape and t together, a tensor a row.

    (1 − β̂) ζ = G / (1/(1 − β̂) + s·s/(1 − β̂)) with s = G M: no M² that could overflow.
    """
    first, old, new, constant = items[0][0], *weights
    size = first.numel()
    rows = _rows(items)
    g, s = (x.view(rows, size) for x in scratch[: 2 * rows * size].chunk(2))
    half = first.dtype is not scratch.dtype
    terms = s.view(rows, *first.shape).unbind()
    wide = g.view(rows, *first.shape).unbind() if half else ()
    for i in range(0, len(items), rows):
        ps, grads, velocities, _, maxima = zip(*items[i : i + rows], strict=True)
        if len(ps) < rows:
            n = len(ps)
            g, s, terms, wide = g[:n], s[:n], terms[:n], wide[:n]
        if half:
            torch._foreach_copy_(wide, grads)
        else:
            torch.stack(grads, out=g.view(len(ps), *first.shape))
        if maxima[0] is None:
            m = torch.maximum(g.amax(dim=1, keepdim=True), -g.amin(dim=1, keepdim=True))
        else:
            m = torch.stack(maxima).unsqueeze(1)
        torch.mul(g, m, out=s)
        torch.addcmul(constant, s, s, value=1 / new, out=s)
        torch.div(g, s, out=s)
        if half:
            _move_half(ps, (s, terms), velocities, old, options, (g, wide))
        else:
            _move(ps, terms, velocities, old, options)


def _move(ps: Tensors, terms: Tensors, velocities: Tensors, old: float, options: Options) -> None:
    """V ← β̂ V ± term;  W ← W − l λ W − l V, in one pass where torch has it."""
    if options.weight_decay is not None:
        torch._foreach_mul_(ps, 1 - options.lr * options.weight_decay)
    if _fused_sgd is not None:
        # Momentum SGD, with β̂ for the momentum and the terms, which need no damping, for gradients.
        _fused_sgd(ps, terms, velocities, momentum=old, lr=options.lr, maximize=options.maximize)
        return
    torch._foreach_mul_(velocities, old)
    torch._foreach_add_(velocities, terms, alpha=-1 if options.maximize else 1)
    torch._foreach_add_(ps, velocities, alpha=-float(options.lr))


def _move_half(
    ps: Tensors, terms: Rows, velocities: Tensors, old: float, options: Options, scratch: Rows
) -> None:
    """As `_move`, in the wide `terms` and `scratch`; W moves by the V that is kept, rounded."""
    (term, term_rows), (w, w_rows) = terms, scratch
    torch._foreach_copy_(w_rows, velocities)
    w.mul_(old).add_(term, alpha=-1 if options.maximize else 1)
    torch._foreach_copy_(velocities, w_rows)
    torch._foreach_copy_(term_rows, velocities)
    torch._foreach_copy_(w_rows, ps)
    if options.weight_decay is not None:
        w.mul_(1 - options.lr * options.weight_decay)
    w.add_(term, alpha=-float(options.lr))
    torch._foreach_copy_(ps, w_rows)


# Private to torch, though torch's own SGD is made of it; without it there are three passes.
_fused_sgd: Callable[..., None] | None = None
if hasattr(torch, "_fused_sgd_"):
    _fused_sgd = functools.partial(
        torch._fused_sgd_, weight_decay=0.0, dampening=0.0, nesterov=False, is_first_step=False
    )
