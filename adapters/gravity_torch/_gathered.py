"""The path of GPUs: a step is few kernels, whatever the number of tensors."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gravity_torch._loop import Item, Options, update_item

# Elements that are gathered at a time: enough to keep a GPU busy, copies of them little memory.
GATHERED = 2**22


def gathered(items: list[Item], options: Options) -> None:
    """Update copies of many tensors in one: few kernels, and no look from the host, for GPUs."""
    kinds: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        p, _, _, t, max_abs = item
        key = p.device, p.dtype, None if isinstance(t, Tensor) else t, max_abs is None
        if p.numel():
            kinds[key].append(item)
    for (device, _, t, alone), alike in kinds.items():
        for portion in _portions(alike):
            ps, grads, velocities, times, maxima = zip(*portion, strict=True)
            sizes = [p.numel() for p in ps]
            spread = functools.partial(_spread, _lengths(tuple(sizes), device), sum(sizes))
            p, grad, v = (
                _without_autocast(torch.cat, [x.reshape(-1) for x in xs])
                for xs in (ps, grads, velocities)
            )
            max_abs = spread(torch._foreach_norm(grads, torch.inf) if alone else maxima)
            update_item((p, grad, v, spread(times) if t is None else t, max_abs), options)
            for tensors, whole in ((ps, p), (velocities, v)):
                parts = torch.split(whole, sizes)
                shaped = [y.view(x.shape) for x, y in zip(tensors, parts, strict=True)]
                torch._foreach_copy_(tensors, shaped)


def _spread(lengths: Tensor, size: int, numbers: Sequence[Tensor]) -> Tensor:
    stacked = _without_autocast(torch.stack, numbers)
    return stacked.repeat_interleave(lengths, output_size=size)


def _without_autocast(join: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
    # Which refuses bfloat16 where it casts to float16, and the reverse, but not with out=.
    return join(tensors, out=tensors[0].new_empty(0))


def _portions(items: list[Item]) -> Iterator[list[Item]]:
    portion: list[Item] = []
    size = 0
    for item in items:
        elements = item[0].numel()
        if portion and size + elements > GATHERED:
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += elements
    yield portion


@functools.cache
def _lengths(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    # Kept: to send it again would make the host wait, and a CUDA graph reads it at its address.
    return torch.tensor(lengths, device=device)
