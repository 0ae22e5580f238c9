"""The path of `fused=True`: kernels that numba compiles, on the threads that torch itself uses.

Guarantees: V and W have the bits of the NumPy reference, with any number of threads. numba is
imported, and a kernel compiled, at the first step that needs it. An address is kept for one step
only. Fake, meta and functional tensors and subclasses never reach a kernel.
"""

import ctypes
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gravity_torch._distributed import Shard
from gravity_torch._items import Options
from gravity_torch._tensors import has_one_order

# A tensor of more elements is split between threads. Shorter pieces would cost bandwidth.
PIECE = 2**22
# Elements for each thread at the least: fewer take less time than waking a thread.
SHARE = 2**17

_PLAIN = {torch.nn.Parameter, Tensor}
# The dtype to compute in, how the kernels name what is stored, and numbers per element.
_STORED = {
    torch.float32: ("float32", "SAME", 1),
    torch.float64: ("float64", "SAME", 1),
    torch.bfloat16: ("float32", "BFLOAT16", 1),
    torch.float16: ("float32", "FLOAT16", 1),
    torch.complex64: ("float32", "SAME", 2),
    torch.complex128: ("float64", "SAME", 2),
}
# The dtypes of parameters, gradients and velocities, and the table of tensors of `_fused_cpu`.
Tables = dict[tuple[torch.dtype, ...], np.ndarray]

_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@functools.cache
def kernels() -> Any:
    """Return the module of the kernels, or None without numba."""
    try:
        return importlib.import_module("gravity_torch._fused_cpu")
    except ImportError:
        return None


@functools.cache
def _team() -> Any:
    """Return the function that runs another one on each thread of torch's team, or None.

    It belongs to the OpenMP library that torch itself has loaded. Threads of another library would
    wait for a core while those of torch go on spinning after an operation.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel = torch_cpu.GOMP_parallel
    except (OSError, AttributeError):  # macOS and Windows
        return None
    # The function, its argument, the number of threads, flags.
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def can_fuse(p: Tensor) -> bool:
    """Return whether there are kernels for the parameter's device and dtype."""
    return p.is_cpu and p.dtype in _STORED


def check(p: Tensor) -> None:
    """Raise unless the parameter can have `fused=True`."""
    if not can_fuse(p):
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices: ['cpu'] but {p.dtype} and {p.device.type}"
        )
    if kernels() is None:
        raise RuntimeError("`fused=True` requires numba: pip install 'gravity-optimizer[torch]'")


class Checks:
    """What the parameters, velocities and counters of a group are.

    It holds while their addresses and sizes are the same. Asking each tensor again in every step
    would take longer than the kernels need for small tensors.
    """

    def __init__(self) -> None:
        self.addresses = b""
        # The dtypes of each parameter and velocity, or None if the kernels cannot take them.
        self.kinds: list[tuple[torch.dtype, torch.dtype] | None] = []


def tables(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    steps: list[Tensor],
    shards: dict[Tensor, Shard],
    checks: Checks,
) -> tuple[Tables, list[int]]:
    """Return the tables for the kernels, and the indices of the parameters that these cannot take.

    The addresses hold as long as the tensors live and keep their memory.
    """
    maxima = np.zeros((len(params), 1), np.int64)
    if shards:
        local = [shards.get(x[0], (*x, None)) for x in zip(params, grads, velocities, strict=True)]
        params, grads, velocities, given = map(list, zip(*local, strict=True))
        maxima[:, 0] = [0 if x is None else x.data_ptr() for x in given]
    if not set(map(type, [*params, *grads, *velocities, *steps])) <= _PLAIN:
        return {}, list(range(len(params)))
    flat: list[int] = []  # the rows of the table, without max|G|
    dtypes: list[torch.dtype | None] = []  # of the gradients that the kernels can take
    try:
        for p, grad, velocity, step in zip(params, grads, velocities, steps, strict=True):
            size = p.numel()
            fits = grad.is_cpu and grad.numel() == size and not grad.is_neg()
            if fits and not (p.is_contiguous() and grad.is_contiguous()):
                fits = has_one_order(p, grad, velocity)
            dtypes.append(grad.dtype if fits else None)
            flat += p.data_ptr(), grad.data_ptr(), velocity.data_ptr(), step.data_ptr(), size
    except RuntimeError:  # a wrapper of torch.func
        flat = []
    table = np.array(flat, np.int64).reshape(-1, 5)
    # Tensors without memory, as functional ones, are at 0; empty ones may be.
    if not flat or (table[:, 3] == 0).any() or (table[table[:, 4] > 0] == 0).any():
        return {}, list(range(len(params)))
    table = np.concatenate([table, maxima], axis=1)
    addresses = table[:, [0, 2, 3, 4]].tobytes()
    if addresses != checks.addresses:
        checks.kinds = list(map(_kind, params, velocities, steps))
        checks.addresses = addresses
    pairs = list(zip(checks.kinds, dtypes, strict=True))
    found: Tables = {}
    others: list[int] = []
    for pair in sorted(set(pairs), key=pairs.index):
        kind, dtype = pair
        indices = [i for i, other in enumerate(pairs) if other == pair]
        if dtype is not None and dtype.is_complex:  # memory has other numbers
            others += [i for i in indices if grads[i].is_conj()]
            indices = [i for i in indices if not grads[i].is_conj()]
        if kind is None or dtype is None or not _can_mix(kind[0], dtype, kind[1]):
            others += indices
        else:
            found[kind[0], dtype, kind[1]] = table[indices]
    return found, sorted(others)


def _kind(p: Tensor, velocity: Tensor, step: Tensor) -> tuple[torch.dtype, torch.dtype] | None:
    """Return the dtypes of parameter and velocity, or None if the kernels cannot take them."""
    if p.shape != velocity.shape or not (p.is_cpu and velocity.is_cpu and step.is_cpu):
        return None
    if p.is_neg() or velocity.is_neg() or p.is_conj() or velocity.is_conj():
        return None  # memory has other numbers
    if p.stride() != velocity.stride() and not (p.is_contiguous() and velocity.is_contiguous()):
        return None
    if step.dtype != torch.float32 or step.numel() != 1:
        return None
    return p.dtype, velocity.dtype


def _can_mix(*dtypes: torch.dtype) -> bool:
    """Return whether tensors of the dtypes are computed in one dtype."""
    return len({_STORED[x][::2] if x in _STORED else x for x in dtypes}) == 1


def fused(tables: Tables, first_step: int, options: Options) -> None:
    """Count the step and update all tensors of the tables."""
    for dtypes, table in tables.items():
        _update(dtypes, table, first_step, options)


def _update(
    dtypes: tuple[torch.dtype, ...], tensors: np.ndarray, first_step: int, options: Options
) -> None:
    cpu = kernels()
    (real, *_), kinds = _STORED[dtypes[0]], [getattr(cpu, _STORED[x][1]) for x in dtypes]
    kernel = cpu.compiled(cpu.half if any(kinds) else getattr(cpu, real))
    team, threads = _team(), torch.get_num_threads()
    tensors[:, cpu.SIZE] *= _STORED[dtypes[0]][2]
    sizes = tensors[:, cpu.SIZE]
    total = int(sizes.sum())
    threads = min(threads, 1 + total // SHARE)
    if team is None or _is_forked or (threads > 1 and _share_memory(tensors, dtypes)):
        threads = 1
    longest = total + 1 if threads == 1 else max(SHARE, min(PIECE, total // (4 * threads)))
    pieces, first = _pieces(sizes, longest)
    maxima = np.zeros(len(pieces), f"u{np.dtype(real).itemsize}")
    weights = np.empty((len(tensors), 2), real)
    scratch = np.empty(threads * 3 * cpu.BLOCK if any(kinds) else 0, np.float32)
    counters = np.zeros(2, np.int64)
    lr = float(options.lr)
    weight_decay = options.weight_decay
    call = np.zeros((), cpu.CALL)
    values = {
        "tensors": tensors.ctypes.data,
        "pieces": pieces.ctypes.data,
        "maxima": maxima.ctypes.data,
        "weights": weights.ctypes.data,
        "scratch": scratch.ctypes.data,
        "counters": counters.ctypes.data,
        "tensor_count": len(tensors),
        "piece_count": len(pieces),
        "p_kind": kinds[0],
        "grad_kind": kinds[1],
        "velocity_kind": kinds[2],
        "first_step": first_step,
        "decays": weight_decay is not None,
        "maximize": options.maximize,
        "beta": options.beta,
        "lr": lr,
        "decay": 0.0 if weight_decay is None else lr * weight_decay,
    }
    for name, value in values.items():
        call[name] = value

    def run(phase: int, threads: int) -> None:
        call["phase"], counters[:] = phase, 0
        if threads == 1:
            kernel.ctypes(call.ctypes.data)
        else:
            team(kernel.address, call.ctypes.data, threads, 0)

    run(cpu.COUNT, 1)
    run(cpu.FIND, threads)
    if len(pieces) > len(tensors):
        whole = np.maximum.reduceat(maxima, first)
        maxima[:] = whole[pieces[:, cpu.TENSOR]]
        run(cpu.MOVE, threads)


def _pieces(sizes: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the table of pieces, and the index of each tensor's first piece."""
    numbers = np.maximum(-(-sizes // longest), 1)
    first = np.cumsum(numbers) - numbers
    tensor = np.repeat(np.arange(len(sizes)), numbers)
    start = (np.arange(len(tensor)) - first[tensor]) * longest
    length = np.minimum(sizes[tensor] - start, longest)
    return np.stack([tensor, start, length], axis=1), first


def _share_memory(tensors: np.ndarray, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Return whether two tensors overlap, so that they must be updated one after the other."""
    bytes_ = np.array([dtype.to_real().itemsize for dtype in dtypes])
    starts = tensors[:, :3]
    ends = (starts + tensors[:, 4:5] * bytes_).ravel()
    starts = starts.ravel()
    order = np.argsort(starts)
    return bool((starts[order][1:] < ends[order][:-1]).any())
