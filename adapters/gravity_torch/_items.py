"""From a group's parameters, gradients and states to what the paths of a step are given."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from gravity_torch._distributed import Part
from gravity_torch._loop import Item
from gravity_torch._state_checks import check_dtypes


def items_of(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    steps: list[Tensor],
    parts: dict[Tensor, Part],
) -> list[Item]:
    """Return the real tensors to be updated, each with its t; nothing is changed yet."""
    # With capturable=True the host must not look at the counter.
    first_step = group["first_step"]
    if torch.compiler.is_compiling():
        times: list[Any] = [step.double() + first_step for step in steps]
    elif group["capturable"]:
        times = _times(steps, first_step)
    else:
        times = [int(step.item()) + first_step for step in steps]
    dtypes = {x.dtype for xs in (params, grads, velocities) for x in xs}
    if not parts and not any(dtype.is_complex for dtype in dtypes):  # nothing to be asked of each
        return list(zip(params, grads, velocities, times, [None] * len(times), strict=True))
    items: list[Item] = []
    for p, grad, v, t in zip(params, grads, velocities, times, strict=True):
        check_dtypes(p, grad, v)
        w, max_abs = p, None
        if p in parts:
            w, grad, v, max_abs = parts[p]
        if w.is_complex():
            # Only of the gradient may a copy be made, where its conjugation is still to be done.
            grad = torch.view_as_real(grad.resolve_conj())
            w, v = torch.view_as_real(w), torch.view_as_real(v)
        items.append((w, grad, v, t, max_abs))
    return items


def _times(steps: list[Tensor], first_step: int) -> list[Tensor]:
    """Return t of each as a 0-d tensor on its device; few kernels, however many there are."""
    by_device: defaultdict[torch.device, list[int]] = defaultdict(list)
    for i, step in enumerate(steps):
        by_device[step.device].append(i)
    times: dict[int, Tensor] = {}
    for alike in by_device.values():
        t = torch.stack([steps[i] for i in alike]).double() + first_step
        times.update(zip(alike, t.unbind(), strict=True))
    return [times[i] for i in range(len(steps))]
