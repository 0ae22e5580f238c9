"""The three paths of an update, chosen as in torch's own optimizers: loop, foreach and fused."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gravity_torch import _fused
from gravity_torch._distributed import Shard
from gravity_torch._items import Batch, Item, Options, items_of
from gravity_torch._multi_tensor import multi_tensor
from gravity_torch._single_tensor import single_tensor


class Plan(NamedTuple):
    """What each path updates."""

    kernels: list[Callable[[], None]]
    others: list[tuple[Batch, list[Item], Options]]


def plan(batches: list[Batch], shards: dict[Tensor, Shard], checks: _fused.Checks) -> Plan:
    """Choose the path of every parameter, and check all tensors; change nothing."""
    tables: list[_fused.Table] = []
    others = batches
    if not torch.compiler.is_compiling():
        tables, others = _fused.split(batches, shards, checks)
    items = [(batch, items_of(batch, shards), _options(batch.group)) for batch in others]
    options = [_options(batch.group) for batch in batches] if tables else []
    kernels = [_fused.runner(table.device.type).prepare(table, options) for table in tables]
    for table in tables:
        # Kernels do not mark p as changed, so autograd would accept a stale graph.
        torch.autograd.graph.increment_version(table.params)
    return Plan(kernels, items)


def update(plan: Plan) -> None:
    """Count the step, and update every parameter on its path."""
    for run in plan.kernels:
        run()
    for batch, items, options in plan.others:
        if not items:
            continue
        _count(batch.steps)
        if torch.compiler.is_compiling():
            items = [
                (_at_least_1d(p), _at_least_1d(g), _at_least_1d(v), t, m) for p, g, v, t, m in items
            ]
        is_loop = batch.group["foreach"] is False or batch.group["differentiable"]
        (single_tensor if is_loop else multi_tensor)(items, options)


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
    # Use float64, like a Python number, so that η λ is rounded once. MPS has no float64.
    return lr.reshape(()) if lr.is_mps else lr.reshape(()).double()


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
