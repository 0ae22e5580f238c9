"""The path of `fused=True`: tables of addresses for the kernels of a device.

Guarantees: V and W have the bits of the NumPy reference. A compiler is imported, and a kernel
compiled, at the first step that needs it. An address is used in one step only, while the caller
holds the tensors. Fake, meta and functional tensors and subclasses never reach a kernel.
"""

import functools
import importlib
import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gravity_torch._distributed import Shard
from gravity_torch._items import Batch
from gravity_torch._tensors import has_one_order

# The columns of the table of tensors: addresses, the number of elements, the address of max|G|,
# which is 0 if the kernel is to find it, and the index of the group. The counter is a float32.
P, GRAD, VELOCITY, STEP, SIZE, MAX_ABS, GROUP_INDEX = range(7)
COLUMNS = 7

_dtype = attrgetter("dtype")
_PLAIN = {torch.nn.Parameter, Tensor}
# The dtype to compute in, and numbers per element.
_STORED = {
    torch.float32: ("float32", 1),
    torch.float64: ("float64", 1),
    torch.bfloat16: ("float32", 1),
    torch.float16: ("float32", 1),
    torch.complex64: ("float32", 2),
    torch.complex128: ("float64", 2),
}
# The compiler of the kernels of each type of device, and the file that imports it.
_COMPILERS = {"cpu": ("numba", "_fused_cpu"), "cuda": ("triton", "_fused_cuda")}

is_forked = False  # whether this process is the child of a fork, where torch's threads are missing


def _note_fork() -> None:
    global is_forked
    is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class Table(NamedTuple):
    """The tensors of one call of the kernels, as addresses; these hold while the tensors live."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]  # of parameters, gradients and velocities
    capturable: bool  # whether the counters are on the device
    rows: np.ndarray  # int64, with COLUMNS columns
    params: list[Tensor]
    kept: dict[Any, Any]  # what replays of captured steps read; it dies with the optimizer


# The device of a parameter, and whether the counter is on it, too.
Place = tuple[torch.device, bool]


class Checks:
    """What cannot change while the addresses of parameters and states stay the same.

    Asking each tensor again in every step would take longer than the kernels need for small ones.
    """

    def __init__(self) -> None:
        self.known: tuple[bytes, list[int], list[Place | None], np.ndarray] | None = None
        self.kept: dict[Any, Any] = {}

    def places(
        self, rows: np.ndarray, columns: list[list[Tensor]]
    ) -> tuple[list[int], list[Place | None], np.ndarray]:
        """Return for each parameter the index of its place, the places, and the devices."""
        addresses = rows[:, [P, VELOCITY, STEP]].tobytes()
        if self.known is None or self.known[0] != addresses:
            params, _, velocities, steps = columns
            places = list(map(_place, params, velocities, steps))
            distinct = list(dict.fromkeys(places))
            devices = _each(Tensor.get_device, params, np.int64)
            self.known = addresses, list(map(distinct.index, places)), distinct, devices
        return self.known[1:]


def storage(dtype: torch.dtype) -> tuple[str, int]:
    """Return the name of the dtype to compute in, and the numbers per element."""
    return _STORED[dtype]


@functools.cache
def runner(device_type: str) -> Any:
    """Return the module that runs the kernels, or None if its compiler cannot be imported."""
    try:
        return _imported(device_type)
    except Exception:  # whatever it is, foreach gives the same bits
        return None


def _imported(device_type: str) -> Any:
    return importlib.import_module(f"gravity_torch.{_COMPILERS[device_type][1]}")


def check(p: Tensor) -> None:
    """Raise unless the parameter can have `fused=True`; import no compiler."""
    if p.device.type not in _COMPILERS or p.dtype not in _STORED:
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices: {[*_COMPILERS]} but {p.dtype} and {p.device.type}"
        )
    compiler, _ = _COMPILERS[p.device.type]
    if importlib.util.find_spec(compiler) is None:
        hint = "'gravity-optimizer[torch]'" if compiler == "numba" else compiler
        raise RuntimeError(
            f"`fused=True` on {p.device.type} requires {compiler}: pip install {hint}"
        )


def split(
    batches: list[Batch], shards: dict[Tensor, Shard], checks: Checks
) -> tuple[list[Table], list[Batch]]:
    """Return tables of what the kernels update, and batches of the other parameters.

    Raises:
        RuntimeError: for a parameter of a group with `fused=True` that has no kernel.
    """
    lengths = [len(batch.params) for batch in batches]
    columns = list(batches[0][1:])
    if len(batches) > 1:
        lists = zip(*(batch[1:] for batch in batches), strict=True)
        columns = [list(chain.from_iterable(column)) for column in lists]
    params = columns[0]
    maxima: list[Tensor | None] = []
    if shards:
        local = [shards.get(x[0], (*x[:3], None)) for x in zip(*columns, strict=True)]
        *columns[:3], maxima = map(list, zip(*local, strict=True))
    is_candidate = np.repeat([_may_fuse(batch.group) for batch in batches], lengths)
    if not set(map(type, chain(*columns))) <= _PLAIN:
        is_candidate &= [set(map(type, x)) <= _PLAIN for x in zip(*columns, strict=True)]
    candidates = np.flatnonzero(is_candidate)
    if not len(candidates):
        return [], _rest(batches, is_candidate)
    if len(candidates) < len(is_candidate):
        columns = [[column[i] for i in candidates] for column in columns]
    rows = _rows(*columns)
    rows[:, GROUP_INDEX] = np.repeat(np.arange(len(batches)), lengths)[candidates]
    if shards:
        found = (maxima[i] for i in candidates)
        rows[:, MAX_ABS] = [0 if x is None else x.data_ptr() for x in found]
    tables = []
    is_fused = np.zeros(len(is_candidate), bool)
    for (place, *dtypes), chosen in _by_kind(rows, columns, checks).items():
        device, capturable = place
        if device.type != "cpu":
            explicit = [bool(batches[i].group["fused"]) for i in rows[chosen, GROUP_INDEX]]
            chosen = chosen[explicit]
            if share_memory(rows[chosen], dtypes):  # a GPU updates them side by side
                continue
        if len(chosen) and runner(device.type) is not None:
            taken = candidates[chosen]
            is_fused[taken] = True
            updated = params if len(taken) == len(params) else [params[i] for i in taken]
            table = rows[chosen]
            tables.append(Table(device, tuple(dtypes), capturable, table, updated, checks.kept))
    return tables, [] if is_fused.all() else _rest(batches, is_fused)


def _may_fuse(group: dict[str, Any]) -> bool:
    """Return whether the group has `fused=True`, or the default."""
    if group["fused"] is None:
        return group["foreach"] is None and not group["differentiable"]
    return bool(group["fused"])


def _each(ask: Callable[[Tensor], Any], tensors: list[Tensor], dtype: type = bool) -> np.ndarray:
    return np.fromiter(map(ask, tensors), dtype, len(tensors))


def _rows(*columns: list[Tensor]) -> np.ndarray:
    """Return a table of addresses and sizes; an address is 0 if a tensor has no memory."""
    rows = np.zeros((len(columns[0]), COLUMNS), np.int64)
    try:
        for column, xs in zip((P, GRAD, VELOCITY, STEP), columns, strict=True):
            rows[:, column] = _each(Tensor.data_ptr, xs, np.int64)
    except RuntimeError:  # a wrapper of torch.func
        return np.zeros_like(rows)
    rows[:, SIZE] = _each(Tensor.numel, columns[0], np.int64)
    return rows


def _by_kind(
    rows: np.ndarray, columns: list[list[Tensor]], checks: Checks
) -> dict[tuple[Any, ...], np.ndarray]:
    """Return the rows that the kernels can take, by place and dtypes."""
    params, grads, velocities, steps = columns
    fits = rows[:, STEP] != 0
    fits &= (rows[:, SIZE] == 0) | rows[:, [P, GRAD, VELOCITY]].all(axis=1)
    for xs in (grads, velocities):
        fits &= rows[:, SIZE] == _each(Tensor.numel, xs, np.int64)
    indices, places, devices = checks.places(rows, columns)
    fits &= devices == _each(Tensor.get_device, grads, np.int64)
    kinds: list[list[Any]] = [indices, *(list(map(_dtype, xs)) for xs in columns[:3])]
    distinct = [set(kind) for kind in kinds]
    fits &= ~_each(Tensor.is_neg, grads)  # memory has other numbers
    if any(dtype.is_complex for dtype in set.union(*distinct[1:])):
        fits &= [not any(x.is_conj() for x in xs) for xs in zip(*columns[:3], strict=True)]
    if {*map(_dtype, steps)} != {torch.float32}:
        fits &= [step.dtype == torch.float32 for step in steps]
    contiguous = [_each(Tensor.is_contiguous, xs) for xs in columns[:3]]
    for i in np.flatnonzero(fits & ~np.logical_and.reduce(contiguous)):
        fits[i] = has_one_order(params[i], grads[i], velocities[i])
    found: defaultdict[tuple[Any, ...], Any] = defaultdict(list)
    if all(len(values) == 1 for values in distinct):
        found[tuple(kind[0] for kind in kinds)] = np.flatnonzero(fits)
    else:
        for i in np.flatnonzero(fits):
            found[tuple(kind[i] for kind in kinds)].append(i)
    return {
        (place, *dtypes): np.array(chosen)
        for (index, *dtypes), chosen in found.items()
        if (place := places[index]) is not None and _can_mix(*dtypes)
    }


def _place(p: Tensor, velocity: Tensor, step: Tensor) -> Place | None:
    """Return the place of a parameter, or None if the kernels cannot take it."""
    if p.device.type not in _COMPILERS or p.device != velocity.device or step.numel() != 1:
        return None
    if p.is_neg() or velocity.is_neg():  # memory has other numbers
        return None
    if step.device not in (p.device, torch.device("cpu")):
        return None
    return p.device, not step.is_cpu


def _can_mix(*dtypes: torch.dtype) -> bool:
    """Return whether there are kernels for tensors of these dtypes."""
    stored = {_STORED.get(dtype) for dtype in dtypes}
    return len(stored) == 1 and None not in stored


def share_memory(rows: np.ndarray, dtypes: Sequence[torch.dtype]) -> bool:
    """Return whether two tensors overlap, so that they must be updated one after the other."""
    starts = rows[:, [P, GRAD, VELOCITY]]
    ends = (starts + rows[:, [SIZE]] * np.array([x.itemsize for x in dtypes])).ravel()
    starts = starts.ravel()
    order = np.argsort(starts)
    return bool((starts[order][1:] < ends[order][:-1]).any())


def _rest(batches: list[Batch], is_fused: np.ndarray) -> list[Batch]:
    """Return the batches of the parameters that the kernels do not update."""
    rest = []
    start = 0
    for group, *columns in batches:
        stop = start + len(columns[0])
        left = np.flatnonzero(~is_fused[start:stop])
        start = stop
        if group["fused"]:
            for i in left:
                _check_runner(columns[0][i])
        if len(left):
            rest.append(Batch(group, *([column[i] for i in left] for column in columns)))
    return rest


def _check_runner(p: Tensor) -> None:
    """Raise unless the parameter can have `fused=True`, and say what is wrong with the compiler."""
    check(p)
    if runner(p.device.type) is None:
        try:
            _imported(p.device.type)
        except Exception as error:
            raise RuntimeError(f"`fused=True` on {p.device.type}: {error}") from error
