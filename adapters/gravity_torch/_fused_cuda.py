"""The host's part of `fused=True` on a GPU: one upload and two or three kernels for many tensors.

Guarantees: a step makes at most four launches for each device and combination of dtypes, however
many tensors there are, and the host waits for none of them. The host reads nothing from the GPU.
If the counters are on the GPU, so that a CUDA graph can contain the step, the host does not read
them, nor a learning rate that is on the GPU. An address is kept for one step only, or in a captured
step as long as the graph may be replayed.

Importing this file imports Triton, so only `_fused` imports it, at the first step that needs it.
"""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from gravity_torch import _triton_kernels as kernels
from gravity_torch._fused import Table
from gravity_torch._items import Options
from gravity_torch._memory import GROUP_INDEX
from gravity_torch._state_checks import check_step

# A program's numbers at a time, in bytes of the type to compute in: with four warps, 32 bytes for
# each thread. More numbers need more registers than a GPU has for as many threads as it can hold.
BLOCK_BYTES = 2**12
# A chunk's elements: few, so that there are enough chunks to keep a large GPU busy, but not so few
# that the table of chunks is large. The longest has as many as in torch's operations on lists.
PROGRAMS, SHORTEST, LONGEST = 2**12, 2**12, 2**16
WARPS = 4
COUNTERS = 128  # that a program counts

# As the kernels name what is stored, and numbers per element.
_STORED = {
    torch.float32: (tl.float32, 1),
    torch.float64: (tl.float64, 1),
    torch.bfloat16: (tl.bfloat16, 1),
    torch.float16: (tl.float16, 1),
    torch.complex64: (tl.float32, 2),
    torch.complex128: (tl.float64, 2),
}


def prepare(table: Table, groups: list[Options], keep: dict[Any, Any]) -> Callable[[], None]:
    """Return what counts the step and updates all tensors of the table, group by group.

    Args:
        table: the tensors. They are computed in one dtype.
        groups: the hyper-parameters of each group.
        keep: an empty dict at first, which must live as long as the optimizer: it holds what
            replays of captured steps read. It is used only if the counters are on the device.
    """
    updates = [
        prepare_group(
            table.dtypes,
            table.rows[table.rows[:, GROUP_INDEX] == index, :GROUP_INDEX],
            table.device,
            groups[index],
            table.capturable,
            keep,
        )
        for index in np.unique(table.rows[:, GROUP_INDEX])
    ]

    def update() -> None:
        for update_group in updates:
            update_group()

    return update


def prepare_group(
    dtypes: tuple[torch.dtype, ...],
    tensors: np.ndarray,
    device: torch.device,
    options: Options,
    capturable: bool,
    keep: dict[Any, Any],
) -> Callable[[], None]:
    """Send the tables to the device; return what counts the step and updates, in place.

    Args:
        dtypes: of all parameters, all gradients and all velocities. They are computed in one dtype.
        tensors: int64, one row for each tensor: the addresses of parameter, gradient, velocity and
            counter, the number of elements, and the address of max|G|, a real number in the dtype
            to compute in, or 0 to find it here. The counter is a float32, on the host unless
            `capturable`. Everything else is on the device.
        device: the tensors' device. Its current stream makes the step.
        options: the hyper-parameters of the group; lr may be a 0-d float64 tensor.
        capturable: whether the counters are on the device.
        keep: as in `prepare`.
    """
    rows = np.zeros((len(tensors), kernels.ROW.value), np.int64)
    rows[:, : tensors.shape[1]] = tensors
    rows[:, kernels.SIZE] *= _STORED[dtypes[0]][1]
    if not capturable and len(tensors):
        counters, places = _on_host(rows[:, kernels.STEP])
        counts = counters[places]
        for count in counts[~((counts >= 0) & (counts < np.inf) & (counts == np.floor(counts)))]:
            check_step(float(count))
        _set_coefficients(rows, counts.astype(np.float64) + options.first_step, options)
    block = BLOCK_BYTES // max(4, *(dtype.to_real().itemsize for dtype in dtypes))
    chunks = _chunks(rows, block)
    lr = options.lr
    if isinstance(lr, Tensor):
        # Keep this copy until the kernels are launched. A number on the CPU is read now.
        lr = lr.to(device, torch.float64) if lr.device.type == device.type else float(lr)
        options = options._replace(lr=lr)
    is_launched = bool(len(chunks)) or (capturable and bool(len(tensors)))

    def on_device() -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()

    if is_launched:
        with on_device():
            table, start = _upload(rows, chunks, device, options, capturable, keep)

    def update() -> None:
        if is_launched:
            with on_device():
                _launch(dtypes, table, start, rows, len(chunks), options, capturable, block)
        if not capturable and len(tensors):  # only after all that may fail
            counters[places] += np.float32(1)

    return update


def _on_host(addresses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an array with which the float32 numbers at the addresses can be indexed, and indices.

    The array spans all memory from the first number to the last one, with an element at every byte.
    NumPy touches only those that are indexed.
    """
    first = int(addresses.min())
    interface = {
        "version": 3,
        "typestr": np.dtype(np.float32).str,
        "data": (first, False),
        "shape": (int(addresses.max()) - first + 1,),
        "strides": (1,),
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface)), addresses - first


def _set_coefficients(rows: np.ndarray, t: np.ndarray, options: Options) -> None:
    """Set β̂ and 1 − β̂ of every tensor, as the kernel `count` does on the GPU."""
    beta = options.beta
    values = rows.view(np.float64)
    values[:, kernels.OLD] = (beta * t + 1) / (t + 2)
    # The gradient term is odd in G: of −G, it is −ζ.
    sign = -1.0 if options.maximize else 1.0
    values[:, kernels.NEW] = ((1 - beta) * t + 1) / (t + 2) * sign


def _chunks(rows: np.ndarray, block: int) -> np.ndarray:
    """Return the table of chunks; an empty tensor has none."""
    sizes = rows[:, kernels.SIZE]
    total = int(sizes.sum())
    longest = -(-max(SHORTEST, min(LONGEST, total // PROGRAMS)) // block) * block
    numbers = -(-sizes // longest)
    tensor = np.repeat(np.arange(len(rows)), numbers)
    start = (np.arange(len(tensor)) - (np.cumsum(numbers) - numbers)[tensor]) * longest
    length = np.minimum(sizes[tensor] - start, longest)
    aligned = (rows[:, : kernels.STEP] % 16 == 0).all(axis=1)
    whole = np.where(aligned[tensor], length // block * block, 0)
    return np.stack([tensor, start, length, whole], axis=1)


def _upload(
    rows: np.ndarray,
    chunks: np.ndarray,
    device: torch.device,
    options: Options,
    capturable: bool,
    keep: dict[Any, Any],
) -> tuple[Tensor, int]:
    """Return the table on the device, and where in it the chunks begin."""
    header = kernels.HEADER.value
    size, start = header + rows.size + chunks.size, header + rows.size
    table = torch.empty(size, dtype=torch.int64, device=device)
    is_cuda = device.type == "cuda"
    host = _pinned(size, int(rows[0, kernels.STEP]), capturable, keep) if is_cuda else table
    numbers = host.numpy()
    values = numbers[:header].view(np.float64)
    if isinstance(options.lr, Tensor):
        numbers[kernels.LR], values[kernels.LR_VALUE] = options.lr.data_ptr(), 0.0
    else:
        numbers[kernels.LR] = table[kernels.LR_VALUE.value :].data_ptr()
        values[kernels.LR_VALUE] = options.lr
    values[kernels.WEIGHT_DECAY] = options.weight_decay or 0.0
    values[kernels.BETA] = options.beta
    values[kernels.FIRST_STEP] = options.first_step
    values[kernels.SIGN] = -1.0 if options.maximize else 1.0
    numbers[header:start] = rows.ravel()
    numbers[start:] = chunks.ravel()
    return table.copy_(host, non_blocking=True), start


def _pinned(size: int, key: int, capturable: bool, keep: dict[Any, Any]) -> Tensor:
    """Return pinned memory, from which the host need not wait for a copy.

    A replay of a captured step copies from the memory again, so nothing else may use it later.
    Older torch cannot allocate pinned memory during a capture. So every other step of a capturable
    optimizer leaves some for the same tensors.
    """
    if not capturable:
        return _new_pinned(size)
    if torch.cuda.is_current_stream_capturing():
        host: Tensor | None = keep.pop(key, None)
        if host is None or len(host) < size:
            host = _new_pinned(size)
        keep.setdefault("captured", []).append(host)
        return host[:size]
    if key not in keep or len(keep[key]) < size:
        keep[key] = _new_pinned(size)
    return _new_pinned(size)


def _new_pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.int64, device="cpu", pin_memory=True)


def _launch(
    dtypes: tuple[torch.dtype, ...],
    table: Tensor,
    start: int,
    rows: np.ndarray,
    chunk_count: int,
    options: Options,
    capturable: bool,
    block: int,
) -> None:
    exact = {"num_warps": WARPS, "enable_fp_fusion": False}
    if capturable:
        grid = (-(-len(rows) // COUNTERS),)
        kernels.count[grid](table, len(rows), block=COUNTERS, **exact)
    if not chunk_count:
        return
    types = [_STORED[dtype][0] for dtype in dtypes]
    real = tl.float64 if tl.float64 in types else tl.float32
    if (rows[:, kernels.MAX_ABS] == 0).any():
        kernels.find[(chunk_count,)](
            table, start, grad_type=types[1], real=real, block=block, **exact
        )
    kernels.update[(chunk_count,)](
        table,
        start,
        p_type=types[0],
        grad_type=types[1],
        velocity_type=types[2],
        real=real,
        decays=options.weight_decay is not None,
        block=block,
        **exact,
    )
