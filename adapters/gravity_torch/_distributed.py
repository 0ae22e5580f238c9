"""Parameters that are sharded over processes: DTensor, which FSDP2 and tensor parallelism use.

FSDP1, DeepSpeed's ZeRO and other sharded optimizers flatten parameters and shard the result. max|G|
and V₀ would be those of such a piece, so it is refused.

Guarantee: a step makes one all-reduce per process group, of one number per sharded parameter. This
all-reduce finds the maximum of each gradient over all shards. (If a gradient and its parameter have
different placements, the step redistributes the gradient first.)
"""

import math
import sys
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gravity_torch._tensors import PLAIN, max_abs, without_autocast, working_dtype
from gravity_torch._torch_private import is_flattened


def is_distributed(x: Tensor) -> bool:
    """Return whether `x` is a DTensor, without importing torch.distributed, which is slow."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Any) -> Tensor:
    """Return this process's shard of a DTensor, and any other tensor unchanged."""
    shard: Tensor = x.to_local() if is_distributed(x) else x
    return shard


def gathered(x: Any) -> Tensor:
    """Return a DTensor as one tensor in every process, and any other tensor unchanged."""
    full: Tensor = x.full_tensor() if is_distributed(x) else x
    return full


def like(p: Any, shard: Tensor) -> Tensor:
    """Return `shard` as a tensor with the placements of `p`."""
    if not is_distributed(p):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
    )


def placed(whole: Tensor, p: Any) -> Tensor:
    """Return a whole tensor with the placements of `p`; return any other tensor unchanged.

    Every process has the whole tensor, so nothing is communicated.
    """
    if not is_distributed(p) or is_distributed(whole) or whole.shape != p.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    split = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
    # Copy, in the parameter's memory format: a view would keep the whole tensor in memory.
    shard = torch.empty_like(local(p), dtype=whole.dtype, memory_format=torch.preserve_format)
    return like(p, shard.detach().copy_(local(split)))


def is_placed_as(x: Tensor, p: Tensor) -> bool:
    """Return whether `x` has the placements of `p`, and a local shard of the same shape."""
    if not is_distributed(x) and not is_distributed(p):
        return x.shape == p.shape
    placements = [getattr(t, "placements", None) for t in (x, p)]
    return placements[0] == placements[1] and local(x).shape == local(p).shape


def check_whole(p: Tensor) -> None:
    """Raise if FSDP1 has flattened the parameter."""
    if is_flattened(p):
        raise ValueError(
            "params must be whole tensors or DTensors, got a tensor that FullyShardedDataParallel "
            f"has flattened, of shape {tuple(p.shape)}: its max|G| and V₀ are not those of the "
            "parameter; use torch.distributed.fsdp.fully_shard (accelerate: fsdp_version=2)"
        )


# The identity and the number of dimensions of each parameter of a group.
Added = list[tuple[int, int]]


def added(group: dict[str, Any]) -> Added:
    """Return what `check_not_replaced` needs to know about the parameters of a new group."""
    return [(id(p), p.ndim) for p in group["params"]]


def check_not_replaced(p: Tensor, params: list[Tensor], added: list[Added], position: int) -> None:
    """Raise if flat tensors, `p` among them, have replaced the parameters of their group."""
    before = added[position] if position < len(added) else []  # a group that the user has appended
    known = dict(chain.from_iterable(added))  # also if the user has moved the group
    if p.ndim != 1 or any(q.ndim != 1 or id(q) in known for q in params):
        return
    # DeepSpeed puts one tensor in place of several; Megatron-LM and Colossal-AI one for each.
    if (len(params) == 1 and len(before) > 1) or any(ndim != 1 for _, ndim in before):
        raise ValueError(
            f"params must be whole tensors, got a flat tensor of {p.numel()} elements in place of "
            f"one of the group's {len(before)}, as in DeepSpeed's ZeRO: its max|G| and V₀ are not "
            "those of the parameter; use ZeRO stage 0, or torch.distributed.fsdp.fully_shard"
        )


class Shard(NamedTuple):
    """This process's shards of a parameter, its gradient and V, and max|G|."""

    p: Tensor
    grad: Tensor
    velocity: Tensor
    max_abs: Tensor  # 0-d, of the whole gradient


def shards(params: list[Tensor], states: Mapping[Tensor, dict[str, Any]]) -> dict[Tensor, Shard]:
    """Return the local shard of each DTensor among the parameters.

    This is a collective operation: every process must pass the same parameters in the same order.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or PLAIN.issuperset(map(type, params)):
        return {}
    sharded: list[Any] = [p for p in params if isinstance(p, module.DTensor)]
    if not sharded:
        return {}
    grads = []
    for p in sharded:
        grad = p.grad
        if not is_distributed(grad):
            raise RuntimeError(
                f"the gradient of a DTensor parameter must be a DTensor, got {type(grad).__name__}"
            )
        if grad.placements != p.placements:  # for example a pending sum
            grad = grad.redistribute(p.device_mesh, p.placements)
        grads.append(local(grad))
    maxima = _maxima(sharded, grads)
    return {
        p: Shard(local(p), grad, local(states[p]["velocity"]), maximum)
        for p, grad, maximum in zip(sharded, grads, maxima, strict=True)
    }


def _maxima(params: list[Any], grads: list[Tensor]) -> list[Tensor]:
    """Return max|G| of each whole gradient, over its shards in all processes."""
    import torch.distributed as dist

    values = _max_abs_bits(grads)
    reductions: dict[tuple[int, ...], tuple[Any, list[int]]] = {}  # by the group's ranks
    for i, p in enumerate(params):
        for group in _sharding_groups(p.device_mesh, p.placements):
            ranks = tuple(dist.get_process_group_ranks(group))
            reductions.setdefault(ranks, (group, []))[1].append(i)
    for group, members in reductions.values():
        bits = torch.stack([values[i] for i in members])
        dist.all_reduce(bits, dist.ReduceOp.MAX, group=group)
        for i, value in zip(members, bits.unbind(), strict=True):
            values[i] = value
    maxima = [torch.empty(0)] * len(grads)
    for (_, dtype), members in _kinds(grads).items():
        found = torch.stack([values[i] for i in members]).view(torch.float64)
        found = found.to(working_dtype(dtype.to_real()))
        for i, value in zip(members, found.unbind(), strict=True):
            maxima[i] = value
    return maxima


def _kinds(grads: list[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    """Return the indices of the gradients on each device and in each dtype."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, grad in enumerate(grads):
        kinds.setdefault((grad.device, grad.dtype), []).append(i)
    return kinds


def _sharding_groups(mesh: Any, placements: Any) -> list[Any]:
    """Return the process groups over which a tensor is sharded."""
    if mesh.get_coordinate() is None:
        return []  # this process has no shard of it
    return [
        mesh.get_group(dim)
        for dim, placement in enumerate(placements)
        if mesh.size(dim) > 1 and not placement.is_replicate()
    ]


def _max_abs_bits(grads: list[Tensor]) -> list[Tensor]:
    """Return each max|G| as the bits of a float64.

    As integers, the bits of non-negative floats have the order of the floats, and those of NaN are
    the largest. So the maximum of the bits keeps a NaN. An all-reduce of floats may drop it.
    """
    values = [torch.empty(0)] * len(grads)
    for (device, dtype), members in _kinds(grads).items():
        reals = [torch.view_as_real(grads[i]) if dtype.is_complex else grads[i] for i in members]
        zero = torch.zeros((), dtype=dtype.to_real(), device=device)
        find = _one_by_one if device.type == "cpu" else max_abs
        found = iter(find([x for x in reals if x.numel()]))
        maxima = [next(found) if x.numel() else zero for x in reals]
        bits = without_autocast(torch.stack, maxima).double().abs().view(torch.int64)
        for i, value in zip(members, bits.unbind(), strict=True):
            values[i] = value
    return values


def _one_by_one(grads: list[Tensor]) -> list[Tensor]:
    return [x for grad in grads for x in max_abs([grad])]  # without a copy of all of them


def elements(p: Any) -> range | Callable[[int, int], Tensor]:
    """Return this process's elements by their C-order indices in the whole tensor.

    A complex element counts as two. The result is a range if the elements are consecutive. If not,
    it is a function of (a, b) that returns the indices of the local elements a to b − 1, as int64.
    """
    pair = (2,) if p.is_complex() else ()
    if not is_distributed(p):
        return range(math.prod((*p.shape, *pair)))
    from torch.distributed.tensor import Replicate, distribute_tensor

    def indices(dim: int, length: int) -> Tensor:
        # Let torch shard the indices as it shards the tensor; this needs no communication.
        placements = [s if getattr(s, "dim", None) == dim else Replicate() for s in p.placements]
        shape = [length if d == dim else 1 for d in range(p.ndim)]
        index = torch.arange(length, device=local(p).device).view(shape)
        split = distribute_tensor(index, p.device_mesh, placements, src_data_rank=None)
        return split.to_local().flatten()

    shape = (*p.shape, *pair)
    here = [indices(dim, length) for dim, length in enumerate(p.shape)]
    here += [torch.arange(n, device=local(p).device) for n in pair]
    if all(x.numel() == n for x, n in zip(here[1:], shape[1:], strict=True)):
        row = math.prod(shape[1:])
        first = here[0].tolist() if here else [0]
        if not first or first[-1] - first[0] == len(first) - 1:
            start = first[0] * row if first else 0
            return range(start, start + len(first) * row)

    def between(a: int, b: int) -> Tensor:
        position = torch.arange(a, b, device=local(p).device)
        flat_index, stride = torch.zeros_like(position), 1
        for index, length in zip(reversed(here), reversed(shape), strict=True):
            flat_index += index[position % index.numel()] * stride
            position //= index.numel()
            stride *= length
        return flat_index

    return between
