"""The path of `foreach=True`, the default: few passes over memory and few calls.

Guarantee: V and W are inside the certified bound. The tests compare them with `_single_tensor`.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gravity_core.coefficients import coefficients
from gravity_torch._items import Item, Options
from gravity_torch._multi_tensor_gpu import multi_tensor_gpu
from gravity_torch._single_tensor import single_tensor
from gravity_torch._tensors import flat, has_memory, working_dtype

# Elements per block, so that no temporary has a tensor's size. Larger blocks need fewer calls;
# smaller blocks stay in the cache. The value is measured, not derived.
BLOCK = 7 * 2**16
# Tensors of fewer than SMALL elements are stacked with others of their shape, up to STACK elements.
# One call costs microseconds, as much as the arithmetic on thousands of elements.
SMALL = 2**14
STACK = 2**17
# The form that `_blocked` computes needs max|G|² to stay inside the range of float32.
_LARGEST = 1e30

Tensors = tuple[Tensor, ...] | list[Tensor]
# Several tensors as the rows of one, and a view of each row.
Rows = tuple[Tensor, Tensors]
# β̂, 1 − β̂, and 1/(1 − β̂) as a tensor.
Weights = tuple[float, float, Tensor]

# These types have memory, and a look at the type is quicker than `has_memory`.
_PLAIN = (torch.nn.Parameter, Tensor)


def multi_tensor(items: list[Item], options: Options) -> None:
    """Update large tensors in blocks and small ones in stacks; GPUs have their own path."""
    stacks: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    large: list[Item] = []
    single: list[Item] = []
    on_gpu: list[Item] = []
    for item in items:
        p, grad, velocity, t, max_abs = item
        dtype = p.dtype
        mixed = dtype is not grad.dtype or dtype is not velocity.dtype
        if mixed or (type(p) not in _PLAIN and not has_memory(p)):
            single.append(item)
        elif not p.is_cpu:
            on_gpu.append(item)
        elif type(t) is not int or not dtype.is_floating_point or dtype.itemsize == 1:
            single.append(item)  # the last is float8
        elif not (size := p.numel()):
            continue
        elif size >= SMALL:
            large.append(item)
        elif p.is_contiguous() and velocity.is_contiguous():
            stacks[dtype, p.shape, t, max_abs is None].append(item)
        else:
            single.append(item)
    single_tensor(single, options)
    multi_tensor_gpu(on_gpu, options)
    if not (large or stacks):
        return
    options = options._replace(lr=float(options.lr))
    # All tensors share one scratch: touching fresh memory costs more than the arithmetic in it.
    blocks = [min(2 * item[0].numel(), BLOCK) for item in large]
    length = max(blocks + [2 * _rows(stack) * stack[0][0].numel() for stack in stacks.values()])

    @functools.cache
    def scratch(dtype: torch.dtype) -> Tensor:
        return torch.empty(length, dtype=dtype, device="cpu")

    @functools.cache
    def weights(t: int, dtype: torch.dtype) -> Weights:
        old, new = coefficients(t, options.beta)
        return old, new, torch.tensor(1 / new, dtype=dtype, device="cpu")

    for item in large:
        p, grad, velocity, t, _ = item
        views, dtype = flat(p, grad, velocity), working_dtype(p.dtype)
        shared = weights(t, dtype), options, scratch(dtype)
        if views is None or not _blocked(views, item, *shared):
            single_tensor([item], options)
    for (p_dtype, _, t, _), stack in stacks.items():
        dtype = working_dtype(p_dtype)
        _stacked(stack, weights(t, dtype), options, scratch(dtype))


def count(steps: list[Tensor]) -> None:
    """Add 1 to every counter."""
    ours = {step.dtype for step in steps} == {torch.float32} and type(steps[0]) is Tensor
    if _fused_sgd is None or not ours or not steps[0].is_cpu:
        torch._foreach_add_(steps, 1)
        return
    # Gradient ascent at rate 1 along gradients of 1. One call of torch's kernel does all counters;
    # _foreach_add_ dispatches one addition per counter, which takes three times as long.
    one = torch.ones((), dtype=torch.float32, device="cpu")
    _fused_sgd(steps, [one] * len(steps), [], momentum=0.0, lr=1.0, maximize=True)


def _blocked(
    views: list[Tensor], item: Item, weights: Weights, options: Options, scratch: Tensor
) -> bool:
    """Update one tensor on the CPU; if max|G| is too large, change nothing and return False.

    (1 − β̂) ζ = G / (1/(1 − β̂) + M²/(1 − β̂) · G·G) with M = max|G|. Two passes over a block
    compute this, and a third updates V and W. Half types are copied into the scratch.
    """
    _, grad, _, _, max_abs = item
    low, high = torch.aminmax(grad) if max_abs is None else (-max_abs, max_abs)
    old, new, constant = weights
    m = float(max(-low.item(), high.item()))
    factor = m * m / new  # a power would raise OverflowError where this is inf
    if not factor < _LARGEST:  # also true for NaN
        return False
    half = grad.dtype is not scratch.dtype
    size = BLOCK // 2 if half else BLOCK
    one_block = grad.numel() <= size
    blocks = [views] if one_block else zip(*(torch.split(x, size) for x in views), strict=True)
    for p, g, v in blocks:
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
    """Return how many small tensors of one shape fit into a stack."""
    return min(len(items), STACK // items[0][0].numel())


def _stacked(items: list[Item], weights: Weights, options: Options, scratch: Tensor) -> None:
    """Update small tensors of one shape and one t together; each tensor is a row.

    (1 − β̂) ζ = G / (1/(1 − β̂) + s·s/(1 − β̂)) with s = G max|G|. There is no max|G|² that could
    overflow.
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
    """V ← β̂ V ± term;  W ← W − η λ W − η V. Without weight decay, in one pass if torch has it."""
    if options.weight_decay is not None:
        torch._foreach_mul_(ps, 1 - options.lr * options.weight_decay)
    if _fused_sgd is not None:
        # Momentum SGD: β̂ is the momentum. The terms are the gradients, and need no dampening.
        _fused_sgd(ps, terms, velocities, momentum=old, lr=options.lr, maximize=options.maximize)
        return
    torch._foreach_mul_(velocities, old)
    torch._foreach_add_(velocities, terms, alpha=-1 if options.maximize else 1)
    torch._foreach_add_(ps, velocities, alpha=-float(options.lr))


def _move_half(
    ps: Tensors, terms: Rows, velocities: Tensors, old: float, options: Options, scratch: Rows
) -> None:
    """Like `_move`, but in the float32 `terms` and `scratch`; W moves by the rounded V."""
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


# Private to torch, although torch's own SGD uses it. Without it, `_move` makes three passes.
_fused_sgd: Callable[..., None] | None = None
if hasattr(torch, "_fused_sgd_"):
    _fused_sgd = functools.partial(
        torch._fused_sgd_, weight_decay=0.0, dampening=0.0, nesterov=False, is_first_step=False
    )
