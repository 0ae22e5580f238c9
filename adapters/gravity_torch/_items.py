"""The input of every path: the tensors to update, and the options of their group.

Each path changes parameters and velocities in place and only reads the gradients.
"""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch._state_checks import check_dtypes, check_shapes, check_step
from gravity_torch._tensors import has_value

# (p, grad, velocity, t, max_abs) of one tensor, or of this process's shard of it. All tensors are
# real. t is a 0-d tensor if the host must not read it. max_abs is a 0-d tensor for a shard, whose
# max|G| is that of the whole gradient, and else None. A plain tuple: making a NamedTuple takes a
# tenth of the time of Adam's step of a small tensor.
Item = tuple[Tensor, Tensor, Tensor, int | Tensor, Tensor | None]


class Batch(NamedTuple):
    """A group, and its parameters that have a gradient."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    velocities: list[Tensor]
    steps: list[Tensor]


class Options(NamedTuple):
    """The hyper-parameters of a group; 0-d tensors in compiled graphs and for autograd."""

    lr: float | Tensor
    beta: float | Tensor
    weight_decay: float | Tensor | None  # None for no decay
    maximize: bool
    first_step: int = hp.FIRST_STEP  # of the kernels, which compute t themselves


def items_of(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    steps: list[Tensor],
    maxima: list[Tensor | None],
) -> list[Item]:
    """Return the items of a group, with complex tensors as pairs of reals; change nothing."""
    first_step = group["first_step"]
    if torch.compiler.is_compiling():
        check_shapes(params, grads, velocities)  # otherwise, `Checks` has
        times: list[Any] = [step.double() + first_step for step in steps]
    elif group["capturable"]:  # the host must not read a counter on a GPU
        for step in steps:
            if has_value(step):
                check_step(step.item())
        times = _times(steps, first_step)
    else:
        counts = [step.item() for step in steps]
        for count in counts:
            check_step(count)
        times = [int(count) + first_step for count in counts]
    dtypes = {x.dtype for xs in (params, grads, velocities) for x in xs}
    columns = params, grads, velocities, times, maxima
    if not any(dtype.is_complex for dtype in dtypes):
        return list(zip(*columns, strict=True))
    items: list[Item] = []
    for p, grad, v, t, max_abs in zip(*columns, strict=True):
        check_dtypes(p, grad, v)
        if p.is_complex():
            for name, x in (("the parameter", p), ("velocity", v)):
                if x.is_conj():
                    raise ValueError(
                        f"{name} must not be conjugated lazily (call resolve_conj), got a tensor "
                        f"of shape {tuple(x.shape)} that is"
                    )
            # Resolving a conjugation may copy. Only the gradient may be copied: W and V are
            # updated in place.
            grad = torch.view_as_real(grad.resolve_conj())
            p, v = torch.view_as_real(p), torch.view_as_real(v)
        items.append((p, grad, v, t, max_abs))
    return items


def _times(steps: list[Tensor], first_step: int) -> list[Tensor]:
    """Return each t as a 0-d tensor on its device, with a fixed number of kernels per device."""
    by_device: defaultdict[torch.device, list[int]] = defaultdict(list)
    for i, step in enumerate(steps):
        by_device[step.device].append(i)
    times: dict[int, Tensor] = {}
    for indices in by_device.values():
        t = torch.stack([steps[i].reshape(()) for i in indices]).double() + first_step
        times.update(zip(indices, t.unbind(), strict=True))
    return [times[i] for i in range(len(steps))]
