"""The path of `fused=True`: the core's functions through `torch.compile`, one graph for all shapes.

Guarantee: V and W are inside the certified bound.
"""

import functools
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gravity_torch._items import Item, Options
from gravity_torch._multi_tensor_gpu import CONCATENATED
from gravity_torch._single_tensor import update_item
from gravity_torch._tensors import flat, has_memory, working_dtype

# Tensors with fewer elements take the other path, which is then as fast as a compiled call.
COMPILED = 2**12
# Tensors per call. More of them share the cost of a call, but take longer to compile.
BATCH = 8


def fused(items: list[Item], options: Options, others: Callable[..., None]) -> None:
    """Update with compiled graphs; `others` is the path for small and strided tensors."""
    rest = []
    batches: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        views = None
        p, grad, velocity, t, max_abs = item
        size = p.numel()
        if size >= COMPILED and (p.is_cpu or size >= CONCATENATED // 4):
            negated = p.is_neg() or grad.is_neg() or velocity.is_neg()  # compiled code ignores it
            if p.dtype == grad.dtype == velocity.dtype and not negated and has_memory(p):
                views = flat(p, grad, velocity)
        if views is None:
            rest.append(item)
        else:
            # .data: torch guards a graph by the tensor that a view belongs to.
            p, grad, velocity = (x.data for x in views)
            kind = p.device, p.dtype, max_abs is None
            batches[kind].append((p, grad, velocity, t, max_abs))
    decays = options.weight_decay is not None
    for kind, alike in batches.items():
        if _compiled_update(*kind, decays, options.maximize) is None:
            rest += alike
            continue
        _compile_for_all_shapes(*kind, decays, options.maximize, torch.get_num_threads())
        for i in range(0, len(alike), BATCH):
            _update_batch(alike[i : i + BATCH], options)
    others(rest, options)


def _update_batch(items: list[Item], options: Options) -> None:
    p, *_, first, max_abs = items[0]
    kind = p.device, p.dtype, max_abs is None
    padding = _padding(*kind)[len(items) :]
    ps, grads, velocities, times, maxima = map(list, zip(*items, *padding, strict=True))
    times[len(items) :] = [first] * len(padding)
    # Pass changing values as tensors: torch would compile a new graph for each new number.
    t: Tensor | list[Tensor]
    if isinstance(first, Tensor):
        t = torch.stack(times)
    else:  # GPU kernels accept tensors on the CPU only if they are 0-d
        t = _float64(times) if p.is_cpu else [_float64(time) for time in times]
    lr = options.lr if isinstance(options.lr, Tensor) else _float64(options.lr)
    decay = None if options.weight_decay is None else _float64(options.weight_decay)
    changing = Options(lr, _float64(options.beta), decay, options.maximize)
    update = _compiled_update(*kind, decay is not None, options.maximize)
    update(ps, grads, velocities, maxima, t, *changing)


def _float64(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")  # not the default device


def _update_all(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    maxima: list[Tensor | None],
    times: Tensor | list[Tensor],
    *options: Any,
) -> None:
    for p, grad, velocity, t, max_abs in zip(params, grads, velocities, times, maxima, strict=True):
        if max_abs is None:
            max_abs = _max_abs(grad)
        update_item((p, grad, velocity, t, max_abs), Options(*options))


def _max_abs(grad: Tensor) -> Tensor:
    # Compare two halves (which may share one element) elementwise first: this halves the chain of
    # maxima that wait for each other.
    n = (grad.numel() + 1) // 2
    # torch 2.7 cannot compile these operations on half types if it emulates precision casts.
    wide = grad.to(working_dtype(grad.dtype))
    return torch.maximum(wide[:n].abs(), wide[-n:].abs()).amax()


@functools.cache
def _compiled_update(device: torch.device, dtype: torch.dtype, *kind: Any) -> Any:
    """Return the compiled update for one kind of tensors, or None if torch would round it wrongly.

    Each kind has a code object of its own, because torch compiles at most eight graphs for one.
    """
    code = _update_all.__code__.replace()
    function = types.FunctionType(code, _update_all.__globals__)
    # Without emulated casts, a half-precision V is rounded in memory, but not where it moves W.
    try:
        return torch.compile(function, dynamic=True, options={"emulate_precision_casts": True})
    except RuntimeError:  # a future torch may lack this option
        wide = dtype in (torch.float32, torch.float64)
        return torch.compile(function, dynamic=True) if wide else None


# The zeros are cached. Inference tensors would need a graph of their own.
@torch.inference_mode(False)
def _zeros(size: int, device: torch.device, dtype: torch.dtype, whole: bool) -> list[Item]:
    """Return a batch of tensors of zeros, which no update moves."""
    items: list[Item] = []
    for n in range(size, size + BATCH):
        p, grad, velocity = (torch.zeros(n, dtype=dtype, device=device) for _ in range(3))
        max_abs = None if whole else torch.zeros((), dtype=working_dtype(dtype), device=device)
        items.append((p, grad, velocity, 1, max_abs))
    return items


@functools.cache
def _padding(device: torch.device, dtype: torch.dtype, whole: bool) -> list[Item]:
    return _zeros(64, device, dtype, whole)


@functools.cache
def _compile_for_all_shapes(
    device: torch.device,
    dtype: torch.dtype,
    whole: bool,
    decays: bool,
    maximize: bool,
    threads: int,
) -> None:
    # Give every tensor a different size: sizes that are equal in the first call would be compiled
    # as always equal. Make them large, so that the code is compiled for several threads.
    items = _zeros(2**16, device, dtype, whole)
    _update_batch(items, Options(0.0, 0.0, 0.0 if decays else None, maximize))
