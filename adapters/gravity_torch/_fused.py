"""The path of `fused=True`: tables of addresses for the kernels of a device.

Guarantees: V and W have the bits of the NumPy reference. A compiler is imported, and a kernel
compiled, at the first step that needs it. An address is used in one step only. Fake, meta and
functional tensors and subclasses never reach a kernel.
"""

import functools
import importlib
import importlib.util
import os
import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from operator import attrgetter, is_
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
    tensors: np.ndarray  # int64, with COLUMNS columns
    params: list[Tensor]
    kept: dict[Any, Any]  # what replays of captured steps read; it dies with the optimizer


def storage(dtype: torch.dtype) -> tuple[str, int]:
    """Return the name of the dtype to compute in, and the numbers per element."""
    return _STORED[dtype]


@functools.cache
def kernels(device_type: str) -> Any:
    """Return the module that runs the kernels, or None without its compiler."""
    try:
        return _imported(device_type)
    except ImportError:
        return None


def _imported(device_type: str) -> Any:
    return importlib.import_module(f"gravity_torch.{_COMPILERS[device_type][1]}")


def check(p: Tensor) -> None:
    """Raise unless the parameter can have `fused=True`."""
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


def _check_kernels(p: Tensor) -> None:
    """Raise unless the kernels for the parameter can be imported."""
    check(p)
    if kernels(p.device.type) is None:
        try:
            _imported(p.device.type)
        except ImportError as error:
            raise RuntimeError(f"`fused=True` on {p.device.type}: {error}") from error


class Kind(NamedTuple):
    """Where a parameter and its state are, and what they are."""

    device: torch.device
    p: torch.dtype
    velocity: torch.dtype
    capturable: bool


class Checks:
    """The rows of each kind of parameters, as long as these and their states stay as they are.

    Asking each tensor again in every step would take longer than the kernels need for small ones.
    """

    def __init__(self) -> None:
        self.key: Any = None  # addresses, sizes and dtypes
        # Memory that was freed may have the address of a tensor of another size.
        self.states: list[weakref.ref[Tensor]] = []
        self.rows: dict[Kind, np.ndarray] = {}
        self.contiguous = np.zeros(0, bool)  # the velocities
        self.kept: dict[Any, Any] = {}

    def update(self, key: Any, columns: list[list[Tensor]]) -> None:
        """Check the parameters and their states, unless they are those of the last step."""
        params, _, velocities, steps = columns
        states = [*velocities, *steps]
        same = len(states) == len(self.states) and key == self.key
        if same and all(map(is_, states, [state() for state in self.states])):
            return
        kinds = list(map(_kind, params, velocities, steps))
        self.rows = {
            kind: np.array([i for i, other in enumerate(kinds) if other == kind])
            for kind in set(kinds)
            if kind is not None
        }
        self.contiguous = _each(Tensor.is_contiguous, velocities)
        self.states = list(map(weakref.ref, states))
        self.key = key


def split(
    batches: list[Batch], shards: dict[Tensor, Shard], checks: Checks
) -> tuple[list[Table], list[Batch]]:
    """Return tables of what the kernels update, and batches of the other parameters.

    Raises:
        RuntimeError: for a parameter of a group with `fused=True` that has no kernel.
    """
    lengths = [len(batch.params) for batch in batches]
    columns = [
        list(chain.from_iterable(lists))
        for lists in zip(*(batch[1:] for batch in batches), strict=True)
    ]
    params = columns[0]
    maxima: list[Tensor | None] = []
    if shards:
        local = [shards.get(x[0], (*x[:3], None)) for x in zip(*columns, strict=True)]
        *columns[:3], maxima = map(list, zip(*local, strict=True))
    candidates = np.repeat([_may_fuse(batch.group) for batch in batches], lengths)
    is_chosen = np.repeat([bool(batch.group["fused"]) for batch in batches], lengths)
    if not set(map(type, chain(*columns))) <= _PLAIN:
        candidates &= [set(map(type, x)) <= _PLAIN for x in zip(*columns, strict=True)]
    rows = np.flatnonzero(candidates)
    if len(rows) < len(candidates):
        columns = [[column[i] for i in rows] for column in columns]
    tensors = _addresses(*columns)
    tensors[:, GROUP_INDEX] = np.repeat(np.arange(len(batches)), lengths)[rows]
    if shards:
        tensors[:, MAX_ABS] = [0 if (m := maxima[i]) is None else m.data_ptr() for i in rows]
    tables = []
    others = np.ones(len(candidates), bool)
    for kind, grad, found in _by_kind(columns, tensors, checks):
        dtypes = kind.p, grad, kind.velocity
        if kind.device.type != "cpu":
            found = found[is_chosen[rows[found]]]
            if share_memory(tensors[found], dtypes):  # a GPU updates them side by side
                continue
        if len(found) and kernels(kind.device.type) is not None:
            others[rows[found]] = False
            updated = [params[i] for i in rows[found]]
            table = tensors[found]
            tables.append(Table(kind.device, dtypes, kind.capturable, table, updated, checks.kept))
    return tables, _rest(batches, others) if others.any() else []


def _may_fuse(group: dict[str, Any]) -> bool:
    """Return whether the group has `fused=True`, or the default on a CPU."""
    if group["fused"] is None:
        return group["foreach"] is None and not group["differentiable"]
    return bool(group["fused"])


def _each(ask: Callable[[Tensor], Any], tensors: list[Tensor], dtype: type = bool) -> np.ndarray:
    return np.fromiter(map(ask, tensors), dtype, len(tensors))


def _addresses(*columns: list[Tensor]) -> np.ndarray:
    """Return a table of addresses and sizes; an address is 0 if a tensor has no memory."""
    tensors = np.zeros((len(columns[0]), COLUMNS), np.int64)
    try:
        for column, xs in zip((P, GRAD, VELOCITY, STEP), columns, strict=True):
            tensors[:, column] = _each(Tensor.data_ptr, xs, np.int64)
    except RuntimeError:  # a wrapper of torch.func
        return np.zeros_like(tensors)
    tensors[:, SIZE] = _each(Tensor.numel, columns[0], np.int64)
    return tensors


def _by_kind(
    columns: list[list[Tensor]], tensors: np.ndarray, checks: Checks
) -> Iterator[tuple[Kind, torch.dtype, np.ndarray]]:
    """Yield the rows that the kernels can take, by the kinds of parameters and gradients."""
    params, grads, velocities, _ = columns
    dtypes = list(map(_dtype, params))
    checks.update((tensors[:, [P, VELOCITY, STEP, SIZE]].tobytes(), dtypes), columns)
    fits = (tensors[:, STEP] != 0) & ((tensors[:, SIZE] == 0) | tensors[:, :STEP].all(axis=1))
    fits &= tensors[:, SIZE] == _each(Tensor.numel, grads, np.int64)
    fits &= ~_each(Tensor.is_neg, grads)  # memory has other numbers
    if any(dtype.is_complex for dtype in set(dtypes)):
        fits &= [not any(x.is_conj() for x in xs) for xs in zip(*columns[:3], strict=True)]
    contiguous = checks.contiguous & _each(Tensor.is_contiguous, params)
    contiguous &= _each(Tensor.is_contiguous, grads)
    for i in np.flatnonzero(fits & ~contiguous):
        fits[i] = has_one_order(params[i], grads[i], velocities[i])
    devices, grad_dtypes = _each(Tensor.get_device, grads, np.int64), list(map(_dtype, grads))
    for dtype in set(grad_dtypes):
        mask = fits
        if grad_dtypes.count(dtype) < len(grads):
            mask = fits & [other == dtype for other in grad_dtypes]
        for kind, rows in checks.rows.items():
            if len({_STORED.get(x, x) for x in (kind.p, dtype, kind.velocity)}) == 1:
                device = -1 if kind.device.index is None else kind.device.index
                yield kind, dtype, rows[mask[rows] & (devices[rows] == device)]


def _kind(p: Tensor, velocity: Tensor, step: Tensor) -> Kind | None:
    """Return the kind of a parameter, or None if the kernels cannot take it."""
    counter_fits = step.dtype == torch.float32 and step.numel() == 1
    known = p.device.type in _COMPILERS and p.dtype in _STORED
    if not known or p.shape != velocity.shape or not counter_fits:
        return None
    if p.device != velocity.device or step.device not in (p.device, torch.device("cpu")):
        return None
    if p.is_neg() or velocity.is_neg():  # memory has other numbers
        return None
    return Kind(p.device, p.dtype, velocity.dtype, not step.is_cpu)


def share_memory(tensors: np.ndarray, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Return whether two tensors overlap, so that they must be updated one after the other."""
    starts = tensors[:, :STEP]
    ends = (starts + tensors[:, [SIZE]] * np.array([x.itemsize for x in dtypes])).ravel()
    starts = starts.ravel()
    order = np.argsort(starts)
    return bool((starts[order][1:] < ends[order][:-1]).any())


def _rest(batches: list[Batch], others: np.ndarray) -> list[Batch]:
    """Return the batches of the parameters that the kernels do not update."""
    rest = []
    start = 0
    for group, *columns in batches:
        stop = start + len(columns[0])
        left = np.flatnonzero(others[start:stop])
        start = stop
        if group["fused"]:
            for i in left:
                _check_kernels(columns[0][i])
        if len(left):
            rest.append(Batch(group, *([column[i] for i in left] for column in columns)))
    return rest
