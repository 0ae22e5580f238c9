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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gravity_core._install import install
from gravity_torch._memory import (
    GRAD,
    GROUP_INDEX,
    MAX_ABS,
    SIZE,
    STEP,
    VELOCITY,
    Facts,
    Known,
    P,
)
from gravity_torch._tensors import has_one_order

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
    indices: np.ndarray  # the positions of the parameters in the step


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
        hint = install("torch") if compiler == "numba" else f"pip install {compiler}"
        raise RuntimeError(f"`fused=True` on {p.device.type} requires {compiler}: {hint}")


def split(
    groups: list[dict[str, Any]],
    lengths: list[int],
    facts: Facts,
    known: Known,
    maxima: list[Tensor | None],
) -> tuple[list[Table], np.ndarray]:
    """Return tables of what the kernels update, and which parameters these are.

    Args:
        groups: the groups of the optimizer.
        lengths: how many parameters of each group have a gradient.
        facts: about these parameters.
        known: about these parameters.
        maxima: max|G| of each gradient, or None to find it.
    """
    rows, is_fused = facts.rows, np.zeros(len(maxima), bool)
    fits = np.repeat([_may_fuse(group) for group in groups], lengths) & ~known.alone
    if not facts.has_addresses or not fits.any():
        return [], is_fused
    fits &= facts.is_plain
    rows[:, GROUP_INDEX] = np.repeat(np.arange(len(groups)), lengths)
    if not set(maxima) <= {None}:
        rows[:, MAX_ABS] = [0 if x is None else x.data_ptr() for x in maxima]
    tables = []
    for (place, *dtypes), chosen in _by_kind(fits, facts, known).items():
        device, capturable = place
        if device.type != "cpu":
            explicit = [bool(groups[i]["fused"]) for i in rows[chosen, GROUP_INDEX]]
            chosen = chosen[explicit]
        if len(chosen) and runner(device.type) is not None:
            is_fused[chosen] = True
            tables.append(Table(device, tuple(dtypes), capturable, rows[chosen], chosen))
    return tables, is_fused


def _may_fuse(group: dict[str, Any]) -> bool:
    """Return whether the group has `fused=True`, or the default."""
    if group["fused"] is None:
        return group["foreach"] is None and not group["differentiable"]
    return bool(group["fused"])


def _by_kind(fits: np.ndarray, tensors: Facts, known: Known) -> dict[tuple[Any, ...], np.ndarray]:
    """Return the rows that the kernels can take, by place and dtypes."""
    rows, (params, grads, velocities, steps) = tensors.rows, tensors.columns
    fits = fits & (rows[:, STEP] != 0)
    fits &= (rows[:, SIZE] == 0) | rows[:, [P, GRAD, VELOCITY]].all(axis=1)
    kinds: list[list[Any]] = [known.indices, *tensors.dtypes[:3]]
    distinct = [set(kind) for kind in kinds]
    fits &= ~tensors.neg[GRAD]
    if any(dtype.is_complex for dtype in set.union(*distinct[1:])):
        columns = tensors.columns[:3]
        fits &= [not any(x.is_conj() for x in xs) for xs in zip(*columns, strict=True)]
    if set(tensors.dtypes[STEP]) != {torch.float32}:
        fits &= [step.dtype == torch.float32 for step in steps]
    for i in np.flatnonzero(fits & ~np.logical_and.reduce(tensors.contiguous)):
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
        if (place := known.places[index]) is not None
        and place[0].type in _COMPILERS
        and _can_mix(*dtypes)
    }


def _can_mix(*dtypes: torch.dtype) -> bool:
    """Return whether there are kernels for tensors of these dtypes."""
    stored = {_STORED.get(dtype) for dtype in dtypes}
    return len(stored) == 1 and None not in stored


def check_runner(p: Tensor) -> None:
    """Raise unless the parameter can have `fused=True`, and say what is wrong with the compiler."""
    check(p)
    if runner(p.device.type) is None:
        try:
            _imported(p.device.type)
        except Exception as error:
            raise RuntimeError(f"`fused=True` on {p.device.type}: {error}") from error
