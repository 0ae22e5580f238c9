"""The GPU's part of `foreach=True`: a fixed number of kernels for many tensors.

Guarantee: the host reads nothing from the device, so it never waits.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gravity_torch._items import Item, Options
from gravity_torch._single_tensor import update_item
from gravity_torch._tensors import flat, without_autocast

# Elements per concatenated copy: enough to keep a GPU busy, while the copies take little memory.
CONCATENATED = 2**22
# Tables of lengths that an optimizer keeps at the least.
KEPT = 16


def multi_tensor_gpu(items: list[Item], options: Options, lengths: "Lengths") -> None:
    """Concatenate copies of many tensors, and update them as one."""
    kinds: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        p, _, _, t, max_abs = item
        key = p.device, p.dtype, None if isinstance(t, Tensor) else t, max_abs is None
        if p.numel():
            kinds[key].append(item)
    for (device, *_), alike in kinds.items():
        for portion in portions(alike, CONCATENATED):
            if len(portion) == 1:
                update_item(portion[0], options)  # in place: a copy of a large tensor costs memory
            else:
                _update_copies(portion, device, options, lengths)


def _update_copies(
    portion: list[Item], device: torch.device, options: Options, lengths: "Lengths"
) -> None:
    # Flat views: cat and _foreach_copy_ handle tensors with other strides one by one.
    views = [flat(*item[:3]) for item in portion]
    flats = [
        [x.reshape(-1) for x in item[:3]] if view is None else view
        for item, view in zip(portion, views, strict=True)
    ]
    ps, grads, velocities = (list(xs) for xs in zip(*flats, strict=True))
    *_, t, max_abs = portion[0]
    sizes = [p.numel() for p in ps]
    spread = functools.partial(_spread, lengths.get(tuple(sizes), device), sum(sizes))
    p, grad, v = (without_autocast(torch.cat, xs) for xs in (ps, grads, velocities))
    whole_t = spread([item[3] for item in portion]) if isinstance(t, Tensor) else t
    maxima = torch._foreach_norm(grads, torch.inf) if max_abs is None else [x[4] for x in portion]
    update_item((p, grad, v, whole_t, spread(maxima)), options)
    for tensors, whole in ((ps, p), (velocities, v)):
        torch._foreach_copy_(tensors, list(torch.split(whole, sizes)))
    for (p, _, v, *_), view, (new_p, _, new_v) in zip(portion, views, flats, strict=True):
        if view is None:  # `reshape` may have copied
            p.copy_(new_p.view(p.shape))
            v.copy_(new_v.view(v.shape))


def _spread(lengths: Tensor, size: int, scalars: Sequence[Any]) -> Tensor:
    """Return one value per element of the concatenated tensor."""
    stacked = without_autocast(torch.stack, scalars)
    return stacked.repeat_interleave(lengths, output_size=size)


def portions(items: list[Item], elements: int) -> Iterator[list[Item]]:
    """Yield the items in lists of up to so many elements; a larger item is alone."""
    portion: list[Item] = []
    size = 0
    for item in items:
        n = item[0].numel()
        if portion and size + n > elements:
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += n
    if portion:
        yield portion


class Lengths:
    """The lengths of tensors that are updated as one, on their device.

    Sending them again would make the host wait. An optimizer has its own. Those that no recent step
    used are dropped, unless a CUDA graph was captured meanwhile: its replays read them.
    """

    def __init__(self) -> None:
        self.used = 0
        self.kept: dict[tuple[Any, ...], Tensor] = {}
        self.captured: list[Tensor] = []

    def get(self, lengths: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the lengths as a tensor."""
        key = lengths, device
        found = self.kept.pop(key, None)
        if found is None:
            found = torch.tensor(lengths, device=device)
        self.kept[key] = found  # the last one is the one used last
        self.used += 1
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self.captured.append(found)
        return found

    def trim(self) -> None:
        """Drop the oldest; keep twice as many as the last step used, and KEPT at the least."""
        while len(self.kept) > max(KEPT, 2 * self.used):
            del self.kept[next(iter(self.kept))]
        self.used = 0
