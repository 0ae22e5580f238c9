"""The three paths of an update, chosen as in torch's own optimizers: loop, foreach and fused."""

from collections.abc import Callable
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gravity_core import hyperparameters as hp
from gravity_torch import _fused, _memory
from gravity_torch._distributed import Shard
from gravity_torch._items import Batch, Item, Options, items_of
from gravity_torch._multi_tensor import BLOCK, multi_tensor
from gravity_torch._multi_tensor_gpu import Lengths
from gravity_torch._options import number
from gravity_torch._single_tensor import single_tensor, update_item
from gravity_torch._tensors import has_memory, has_one_order, has_value, working_dtype

# How many copies of a tensor, in the dtype to compute in, an update holds at most.
LOOP_COPIES, FOREACH_COPIES = 6, 3
# Memory for fewer elements is not reserved.
SMALL = 2**16
# Elements that are reserved beside blocks: near its limit, the system's allocator takes more.
SLACK = 2**21


class Work(NamedTuple):
    """What the loop or foreach updates: some parameters of a group, and their counters."""

    items: list[Item]
    options: Options
    steps: list[Tensor]
    is_loop: bool


class Plan(NamedTuple):
    """What each path updates."""

    kernels: list[Callable[[], None]]
    others: list[Work]
    counters: dict[Tensor, Tensor]  # by parameter: copies of counters that share memory
    lengths: Lengths
    alive: Any  # the tensors whose addresses the kernels have


def plan(batches: list[Batch], shards: dict[Tensor, Shard], checks: _memory.Checks) -> Plan:
    """Choose the path of every parameter, check all tensors and allocate; change nothing."""
    parts = [_local(batch, shards) for batch in batches]
    if torch.compiler.is_compiling():
        pairs = zip(batches, parts, strict=True)
        traced = [_work(batch.group, part) for batch, part in pairs if batch.params]
        return Plan([], traced, {}, checks.lengths, None)
    params = list(chain.from_iterable(batch.params for batch in batches))
    columns = [list(chain.from_iterable(column)) for column in zip(*parts, strict=True)]
    facts = _memory.facts(columns[:4], checks.known)
    known = checks.examine(facts)
    for batch, part in zip(batches, parts, strict=True):
        _check_leaves(batch.group, part)
    for column, chosen in (
        (_memory.GRAD, _memory.shared_grads(facts, known)),
        (_memory.STEP, known.counters),
    ):
        for i in chosen:
            facts.replace(column, i, columns[column][i].clone())
    counters = {params[i]: columns[_memory.STEP][i] for i in known.counters}
    lengths = [len(batch.params) for batch in batches]
    groups = [batch.group for batch in batches]
    tables, is_fused = _fused.split(groups, lengths, facts, known, columns[4])
    works: list[Work] = []
    alone: list[Work] = []
    start = 0
    # torch.func.vmap has no rule for operations on lists.
    is_wrapped = not facts.has_addresses
    # Most steps leave nothing to the other paths.
    for group, length in () if is_fused.all() else zip(groups, lengths, strict=True):
        rest = np.flatnonzero(~is_fused[start : start + length]) + start
        start += length
        if group["fused"]:
            for i in rest:
                _fused.check_runner(params[i])
        for is_alone, found in ((False, works), (True, alone)):
            if len(chosen := rest[known.alone[rest] == is_alone]):
                chosen_part = [[column[i] for i in chosen] for column in columns]
                is_loop = is_alone or (is_wrapped and group["foreach"] is None)
                found.append(_work(group, chosen_part, is_loop=is_loop))
    options = [_options(group) for group in groups] if tables else []
    kernels = [
        _fused.runner(table.device.type).prepare(table, options, checks.kept) for table in tables
    ]
    for work in works + alone:
        _reserve(work)
    # Kernels do not mark what they change, and the other paths mark only the shard of a DTensor, so
    # autograd would accept a stale graph.
    changed = list(compress(params, is_fused.tolist()))
    for p, shard in shards.items():
        changed += [p, shard.p]
    torch.autograd.graph.increment_version(changed)
    return Plan(kernels, works + alone, counters, checks.lengths, columns)


def update(plan: Plan) -> None:
    """Count the step, and update every parameter on its path."""
    for run in plan.kernels:
        run()
    plan.lengths.trim()
    for items, options, steps, is_loop in plan.others:
        if torch.compiler.is_compiling():
            items = [
                (_at_least_1d(p), _at_least_1d(g), _at_least_1d(v), t, m) for p, g, v, t, m in items
            ]
            _count(steps)
            (
                single_tensor(items, options)
                if is_loop
                else multi_tensor(items, options, plan.lengths)
            )
        elif is_loop:
            done = 0
            try:
                for item in items:
                    update_item(item, options)
                    done += 1
            finally:  # if memory runs out, count what has moved
                if done:
                    _count(steps[:done])
        else:
            multi_tensor(items, options, plan.lengths)
            _count(steps)


def _local(batch: Batch, shards: dict[Tensor, Shard]) -> tuple[list[Any], ...]:
    """Return parameters, gradients, velocities, counters and maxima; of a DTensor, the shards."""
    _, params, grads, velocities, steps = batch
    maxima: list[Tensor | None] = [None] * len(params)
    if shards:
        columns = zip(params, grads, velocities, maxima, strict=True)
        local = [shards.get(x[0], x) for x in columns]
        params, grads, velocities, maxima = map(list, zip(*local, strict=True))
    return params, grads, velocities, steps, maxima


def _check_leaves(group: dict[str, Any], part: tuple[list[Any], ...]) -> None:
    """Raise if autograd would refuse to change a parameter or velocity."""
    if not (group["differentiable"] and torch.is_grad_enabled()):
        return
    for name, xs in (("parameters", part[0]), ("velocities", part[2])):
        for x in xs:
            if x.is_leaf and x.requires_grad:
                raise RuntimeError(
                    f"`differentiable` requires {name} that are not leaves of a graph, got a leaf "
                    f"of shape {tuple(x.shape)} that requires grad"
                )


def _work(group: dict[str, Any], part: Any, *, is_loop: bool = False) -> Work:
    is_loop = is_loop or group["foreach"] is False or group["differentiable"]
    return Work(items_of(group, *part), _options(group), part[3], bool(is_loop))


def _reserve(work: Work) -> None:
    """Allocate and free what the update needs, so that memory runs out before the first change.

    What an allocator gives to one step, it gives to the next one, too. This is no promise: another
    thread may take the memory meanwhile.
    """
    largest: dict[torch.device, tuple[int, Tensor]] = {}
    for p, grad, velocity, _, _ in work.items:
        if (n := p.numel()) <= SMALL:
            continue
        device = p.device
        if not work.is_loop and device.type == "cpu" and has_one_order(p, grad, velocity):
            n = min(n, BLOCK)
        if n > largest.get(device, (0, p))[0] and has_memory(p):
            largest[device] = n, p
    for device, (n, p) in largest.items():
        dtype = working_dtype(p.dtype)
        in_blocks = not work.is_loop and device.type == "cpu"
        copies = FOREACH_COPIES if in_blocks else LOOP_COPIES
        sizes = [n] * copies + [SLACK] * in_blocks
        _ = [torch.empty(size, dtype=dtype, device=device) for size in sizes]


def _options(group: dict[str, Any]) -> Options:
    return Options(
        lr=_as_scalar(group["lr"]),
        beta=group["beta"],
        weight_decay=group["weight_decay"] or None,
        maximize=bool(group["maximize"]),
        first_step=group["first_step"],
    )


def _as_scalar(lr: float | Tensor) -> float | Tensor:
    if not isinstance(lr, Tensor):
        return lr
    is_differentiated = lr.requires_grad and torch.is_grad_enabled()
    if not (torch.compiler.is_compiling() or is_differentiated) and has_value(lr):
        return hp.as_float(number(lr))  # the same number as at every other entrance
    # Use float64, like a Python number, so that η λ is rounded once. MPS has no float64. Copy: the
    # rate counts as it was before the step, even if it shares memory with a parameter.
    return lr.reshape(()).to(lr.dtype if lr.is_mps else torch.float64, copy=True)


def _count(steps: list[Tensor]) -> None:
    """Add 1 to every counter."""
    if torch.compiler.is_compiling() or not all(step.is_cpu for step in steps):
        torch._foreach_add_(steps, 1)
        return
    # On a CPU, torch would make a tensor of the number 1 for each counter.
    dtypes = {step.dtype for step in steps}
    ones = {dtype: torch.ones((), dtype=dtype, device="cpu") for dtype in dtypes}
    torch._foreach_add_(steps, [ones[step.dtype] for step in steps])


def _at_least_1d(x: Tensor) -> Tensor:
    # torch.compile treats 0-d float64 tensors as numbers, and loses writes to them.
    return x if x.ndim else x.view(1)
