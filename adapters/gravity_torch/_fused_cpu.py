"""`fused=True` on a CPU: shares the work of the kernels between the threads that torch itself uses.

Guarantee: the bits of V and W do not depend on the number of threads. Importing this file imports
numba, so `_fused` imports it at the first step that needs it.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gravity_torch import _fused, _memory
from gravity_torch import _numba_kernels as kernels
from gravity_torch._items import Options
from gravity_torch._state_checks import check_step

# A tensor of more elements is split between threads. Shorter pieces would cost bandwidth.
PIECE = 2**22
# Elements for each thread at the least: fewer take less time than waking a thread.
SHARE = 2**17

_KINDS = {torch.bfloat16: kernels.BFLOAT16, torch.float16: kernels.FLOAT16}
_COLUMNS = ("P", "GRAD", "VELOCITY", "STEP", "SIZE", "MAX_ABS", "GROUP_INDEX")


def prepare(table: _fused.Table, groups: list[Options], kept: dict[Any, Any]) -> Callable[[], None]:
    """Return what counts the step and updates all tensors of the table.

    Everything that may fail is done here: compiling, allocating, and checking the counters.
    """
    real, per_element = _fused.storage(table.dtypes[0])
    kinds = [_KINDS.get(dtype, kernels.SAME) for dtype in table.dtypes]
    function = kernels.compiled(kernels.half if any(kinds) else getattr(kernels, real))
    tensors = np.empty_like(table.rows)
    for name in _COLUMNS:
        tensors[:, getattr(kernels, name)] = table.rows[:, getattr(_memory, name)]
    tensors[:, kernels.SIZE] *= per_element
    sizes = tensors[:, kernels.SIZE]
    total = int(sizes.sum())
    team, threads = _team(), min(torch.get_num_threads(), 1 + total // SHARE)
    if team is None or _fused.is_forked:
        threads = 1
    longest = total + 1 if threads == 1 else max(SHARE, min(PIECE, total // (4 * threads)))
    pieces, first = _pieces(sizes, longest)
    maxima = np.zeros(len(pieces), f"u{np.dtype(real).itemsize}")
    counters = np.zeros(2, np.int64)
    arrays = {
        "tensors": tensors,
        "pieces": pieces,
        "groups": np.array([_numbers(group) for group in groups], np.float64),
        "weights": np.empty((len(tensors), 2), real),
        "maxima": maxima,
        "scratch": np.empty(threads * kernels.SCRATCH if any(kinds) else 0, np.float32),
        "counters": counters,
    }
    call = np.zeros((), kernels.CALL)
    values = {name: _address(array) for name, array in arrays.items()} | {
        "tensor_count": len(tensors),
        "piece_count": len(pieces),
        "group_count": len(groups),
        **dict(zip(("p_kind", "grad_kind", "velocity_kind"), kinds, strict=True)),
    }
    for name, value in values.items():
        call[name] = value

    def run(phase: int, threads: int = 1) -> None:
        call["phase"], counters[:] = phase, 0
        if threads == 1:
            function.ctypes(_address(call))
        else:
            team(function.address, _address(call), threads, 0)

    def update() -> None:
        run(kernels.COUNT)
        run(kernels.FIND, threads)
        if len(pieces) > len(tensors):
            whole = np.maximum.reduceat(maxima, first)
            maxima[:] = whole[pieces[:, kernels.TENSOR]]
            run(kernels.MOVE, threads)
        arrays.clear()  # they had to live until here: the kernels know their addresses only

    run(kernels.SET)
    if call["invalid"]:
        for address in tensors[:, kernels.STEP]:
            check_step(ctypes.c_float.from_address(int(address)).value)
    return update


def _address(x: np.ndarray) -> int:
    address: int = x.__array_interface__["data"][0]  # quicker than x.ctypes.data
    return address


def _numbers(options: Options) -> tuple[Any, ...]:
    """Return a row of the table of groups."""
    lr, weight_decay = float(options.lr), options.weight_decay
    decay = 0.0 if weight_decay is None else lr * weight_decay
    flags = options.maximize, weight_decay is not None
    return options.first_step, *flags, options.beta, lr, decay


def _pieces(sizes: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the table of pieces, and the index of each tensor's first piece."""
    numbers = np.maximum(-(-sizes // longest), 1)
    first = np.cumsum(numbers) - numbers
    tensor = np.repeat(np.arange(len(sizes)), numbers)
    start = (np.arange(len(tensor)) - first[tensor]) * longest
    length = np.minimum(sizes[tensor] - start, longest)
    return np.stack([tensor, start, length], axis=1), first


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
