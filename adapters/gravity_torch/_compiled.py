"""The compiled path: the core through `torch.compile`, one graph for all shapes."""

import functools
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gravity_torch._fast import has_memory
from gravity_torch._gathered import GATHERED
from gravity_torch._loop import Item, Options, flat, update_item

# Smaller tensors go the other way: a call costs about what that costs for this many elements.
COMPILED = 2**12
# Tensors in a call: more share the costs of the call, and take longer to compile.
BATCH = 8


def compiled(items: list[Item], options: Options, others: Callable[..., None]) -> None:
    """Update with one compiled graph for all shapes; small and strided tensors by `others`."""
    rest = []
    batches: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        views = None
        p, grad, velocity, t, max_abs = item
        size = p.numel()
        if size >= COMPILED and (p.is_cpu or size >= GATHERED // 4):
            negated = p.is_neg() or grad.is_neg() or velocity.is_neg()  # compiled code forgets it
            if p.dtype == grad.dtype == velocity.dtype and not negated and has_memory(p):
                views = flat(item)
        if views is None:
            rest.append(item)
        else:
            # .data, because graphs are guarded by what a view is a view of.
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
    # Values that may change are passed as tensors; otherwise torch would compile the graph again.
    t: Tensor | list[Tensor]
    if isinstance(first, Tensor):
        t = torch.stack(times)
    else:  # of the host's tensors, a GPU's kernels can be given only those that are 0-d
        t = _float64(times) if p.is_cpu else [_float64(number) for number in times]
    lr = options.lr if isinstance(options.lr, Tensor) else _float64(options.lr)
    decay = None if options.weight_decay is None else _float64(options.weight_decay)
    changing = Options(lr, _float64(options.beta), decay, options.maximize)
    update = _compiled_update(*kind, decay is not None, options.maximize)
    update(ps, grads, velocities, maxima, t, *changing)


def _float64(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")  # whatever the default is


def _update_all(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    maxima: list[Tensor | None],
    t: Tensor | list[Tensor],
    *options: Any,
) -> None:
    items = zip(params, grads, velocities, t, maxima, strict=True)
    for p, grad, velocity, t_of_it, max_abs in items:
        if max_abs is None:
            max_abs = _max_abs(grad)
        update_item((p, grad, velocity, t_of_it, max_abs), Options(*options))


def _max_abs(grad: Tensor) -> Tensor:
    # By halves, which meet or share an element: half as many maxima that wait for the one before.
    n = (grad.numel() + 1) // 2
    # Wide, because torch 2.7 cannot compile such operations on half types with emulated casts.
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    return torch.maximum(wide[:n].abs(), wide[-n:].abs()).amax()


@functools.cache
def _compiled_update(device: torch.device, dtype: torch.dtype, *kind: Any) -> Any:
    """Return the compiled update of a kind of tensors, or None if torch cannot do it rightly."""
    # Of a code object torch keeps eight graphs, and then compiles no more: one for each kind.
    code = _update_all.__code__.replace()
    function = types.FunctionType(code, _update_all.__globals__)
    # Without emulated casts V would be rounded to half precision in memory, but not for W.
    try:
        return torch.compile(function, dynamic=True, options={"emulate_precision_casts": True})
    except RuntimeError:  # torch does not promise to keep this option
        wide = dtype in (torch.float32, torch.float64)
        return torch.compile(function, dynamic=True) if wide else None


@torch.inference_mode(
    False
)  # the zeros are kept, and inference tensors would need a graph of their own
def _zeros(size: int, device: torch.device, dtype: torch.dtype, alone: bool) -> list[Item]:
    """Return a batch of tensors of zeros, which no update moves."""
    wide = torch.promote_types(dtype, torch.float32)
    items: list[Item] = []
    for n in range(size, size + BATCH):
        p, grad, velocity = (torch.zeros(n, dtype=dtype, device=device) for _ in range(3))
        max_abs = None if alone else torch.zeros((), dtype=wide, device=device)
        items.append((p, grad, velocity, 1, max_abs))
    return items


@functools.cache
def _padding(device: torch.device, dtype: torch.dtype, alone: bool) -> list[Item]:
    return _zeros(64, device, dtype, alone)


@functools.cache
def _compile_for_all_shapes(
    device: torch.device,
    dtype: torch.dtype,
    alone: bool,
    decays: bool,
    maximize: bool,
    threads: int,
) -> None:
    # Give every tensor a different size: sizes that are equal in the first call would be compiled
    # as always equal. Make them large, so that the code is compiled for several threads.
    items = _zeros(2**16, device, dtype, alone)
    _update_batch(items, Options(0.0, 0.0, 0.0 if decays else None, maximize))
