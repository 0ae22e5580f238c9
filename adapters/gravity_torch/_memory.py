"""Where the tensors of a step are, and which of them share memory.

Guarantees: every tensor is checked before the first one changes. What cannot change while all
addresses stay the same is found once. A gradient that shares memory with what the step writes is
copied first, so every path reads the gradients as they were before the step, like the NumPy
reference. Parameters or velocities that share memory are updated in the order of the parameters.
"""

from collections.abc import Callable
from itertools import chain
from operator import attrgetter, eq
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gravity_torch._multi_tensor_gpu import Lengths
from gravity_torch._state_checks import (
    check_counter,
    check_dtype,
    check_dtypes,
    check_shapes,
    check_velocity,
)
from gravity_torch._tensors import PLAIN, has_memory, max_abs
from gravity_torch._torch_private import is_zero_tensor

# The columns of the table of tensors: addresses, the number of elements, the address of max|G|,
# which is 0 if the kernel is to find it, and the index of the group. The counter is a float32.
P, GRAD, VELOCITY, STEP, SIZE, MAX_ABS, GROUP_INDEX = range(7)
COLUMNS = 7

# The device of a parameter, and whether the counter is on it, too.
Place = tuple[torch.device, bool]


class Facts(NamedTuple):
    """What a step asks of every tensor, once."""

    columns: list[
        list[Tensor]
    ]  # parameters, gradients, velocities and counters; of a DTensor, shards
    rows: np.ndarray  # int64, with COLUMNS columns; the last two are 0 here
    contiguous: np.ndarray  # for each parameter, gradient and velocity
    neg: np.ndarray  # likewise: whether the numbers are those in memory with the other sign
    has_known_shapes: bool  # whether the parameters and velocities have those of `Known`
    layout: list[Any]  # of the parameters and velocities, where address and shape do not tell it
    dtypes: list[list[torch.dtype]]  # of each column
    is_plain: np.ndarray  # whether all tensors of a parameter are, so that kernels can take them
    has_addresses: bool  # otherwise all addresses are 0

    def replace(self, column: int, i: int, x: Tensor) -> None:
        """Put another tensor of the same dtype in place of one."""
        self.columns[column][i], self.rows[i, column] = x, x.data_ptr()
        if column != STEP:
            self.contiguous[column, i] = x.is_contiguous()


class Known(NamedTuple):
    """What cannot change while the addresses of parameters and states stay the same."""

    key: tuple[Any, ...]
    shapes: list[torch.Size]  # of the parameters
    sizes: np.ndarray
    indices: list[int]  # for each parameter, the index of its place
    places: list[Place | None]  # None if the kernels cannot take it
    devices: np.ndarray
    alone: np.ndarray  # whether W or V shares memory, or has no plain numbers
    counters: np.ndarray  # the parameters whose counters share memory, or have no plain number
    written: list[tuple[int, np.ndarray, np.ndarray]]  # devices, starts and ends of memory


def each(ask: Callable[[Tensor], Any], tensors: list[Tensor], dtype: type = bool) -> np.ndarray:
    """Return an array of what each tensor answers."""
    return np.fromiter(map(ask, tensors), dtype, len(tensors))


def facts(columns: list[list[Tensor]], known: Known | None = None) -> Facts:
    """Return the facts about the parameters, gradients, velocities and counters of a step.

    What is known of the last step saves time where it still holds.
    """
    params, _, velocities, steps = columns
    rows = np.zeros((len(params), COLUMNS), np.int64)
    is_plain = np.ones(len(params), bool)
    contiguous, neg = np.zeros((2, 3, len(params)), bool)
    address: Callable[[Any], int] = Tensor.data_ptr
    if not set(map(type, chain(*columns))) <= PLAIN:
        for p, velocity, step in zip(params, velocities, steps, strict=True):
            check_velocity(velocity, p)
            check_counter(step, p)
        is_plain = np.array([set(map(type, x)) <= PLAIN for x in zip(*columns, strict=True)])
        address = _address
    has_addresses, has_known_shapes, layout = True, False, []
    try:
        has_known_shapes = known is not None and all(
            _have_shapes(xs, known.shapes) for xs in (params, velocities)
        )
        for column, xs in zip((P, GRAD, VELOCITY, STEP), columns, strict=True):
            rows[:, column] = each(address, xs, np.int64)
            if column != STEP:
                contiguous[column] = each(Tensor.is_contiguous, xs)
                neg[column] = each(Tensor.is_neg, xs)
        if known is not None and has_known_shapes:
            rows[:, SIZE] = known.sizes
        else:
            rows[:, SIZE] = each(Tensor.numel, params, np.int64)
        for i in np.flatnonzero(~(contiguous[P] & contiguous[VELOCITY]) | (rows[:, SIZE] == 0)):
            # The address of an empty tensor does not tell its device.
            layout += [(x.device, x.stride()) for x in (params[i], velocities[i])]
    except RuntimeError:  # a wrapper of torch.func, or a sparse or nested velocity
        rows[:], contiguous[:], neg[:], has_addresses = 0, False, False, False
        rows[:, SIZE] = each(Tensor.numel, params, np.int64)
    dtypes = [list(map(attrgetter("dtype"), xs)) for xs in columns]
    return Facts(
        columns, rows, contiguous, neg, has_known_shapes, layout, dtypes, is_plain, has_addresses
    )


def _have_shapes(xs: list[Tensor], shapes: list[torch.Size]) -> bool:
    # A list of the shapes of `xs` would keep the garbage collector busy.
    return len(xs) == len(shapes) and all(map(eq, map(attrgetter("shape"), xs), shapes))


def _address(x: Tensor) -> int:
    return x.data_ptr() if has_memory(x) else 0


class Checks:
    """What an optimizer knows about its tensors, and what replays of captured steps read.

    Asking each tensor again in every step would take longer than the kernels need for small ones.
    """

    def __init__(self) -> None:
        self.known: Known | None = None
        self.computing: set[type] = set()  # the subclasses of tensors that have been tried
        self.grads: tuple[bytes, bytes] | None = None  # where the last gradients were
        self.kept: dict[Any, Any] = {}
        self.lengths = Lengths()

    def examine(self, tensors: Facts) -> Known:
        """Check the tensors, and return what is known about them; change none of them.

        Raises:
            ValueError: naming the tensor that does not fit, and what it is.
        """
        kinds = tuple(frozenset(dtypes) for dtypes in tensors.dtypes)
        key = (
            tensors.rows[:, [P, VELOCITY, STEP]].tobytes(),
            tensors.contiguous[[P, VELOCITY]].tobytes(),
            tensors.neg[[P, VELOCITY]].tobytes(),
            tensors.layout,
            each(Tensor.numel, tensors.columns[STEP], np.int64).tobytes(),
            [tensors.dtypes[column] for column in (P, VELOCITY, STEP)],
            torch.is_inference_mode_enabled(),
        )
        dtypes = frozenset.union(*kinds[:3])
        if len({dtype.is_complex for dtype in dtypes}) > 1:
            for x in zip(*tensors.columns[:3], strict=True):
                check_dtypes(*x)
        known = self.known
        has_memory = tensors.rows[:, [P, VELOCITY]].all(axis=1) | (tensors.rows[:, SIZE] == 0)
        is_sure = tensors.has_addresses and has_memory.all()
        if known is None or known.key != key or not (is_sure and tensors.has_known_shapes):
            known = _found(key, tensors)
        for column, name in ((P, "the parameter"), (GRAD, "p.grad")):
            for dtype in kinds[column]:
                check_dtype(name, dtype)
        self._check_devices(tensors, known)
        self._check_subclasses(tensors)
        grads = tensors.rows[:, GRAD].tobytes(), tensors.contiguous[1].tobytes()
        if not _have_shapes(tensors.columns[GRAD], known.shapes):
            check_shapes(*tensors.columns[:3])
        if known is not self.known or grads != self.grads:
            _check_memory(tensors, GRAD, "p.grad")
        self.known, self.grads = known, grads
        return known

    def _check_subclasses(self, tensors: Facts) -> None:
        """Raise for a subclass that refuses to compute, as MaskedTensor does; try each one once."""
        for i in np.flatnonzero(~tensors.is_plain):
            for column, name in ((P, "the parameter"), (GRAD, "p.grad"), (VELOCITY, "velocity")):
                x = tensors.columns[column][i]
                if type(x) in PLAIN or type(x) in self.computing or not x.numel():
                    continue
                try:
                    max_abs([x.detach()])
                except (TypeError, NotImplementedError, RuntimeError) as error:
                    kind = type(x).__name__
                    raise ValueError(
                        f"{name} must be a tensor that torch can compute with, got a {kind}"
                    ) from error
                self.computing.add(type(x))

    @staticmethod
    def _check_devices(tensors: Facts, known: Known) -> None:
        params, grads, *_ = tensors.columns
        elsewhere = known.devices != each(Tensor.get_device, grads, np.int64)
        if tensors.has_addresses:
            is_real = tensors.rows[:, [P, GRAD]] != 0
            elsewhere |= (is_real[:, 0] != is_real[:, 1]) & (tensors.rows[:, SIZE] != 0)
        for i in np.flatnonzero(elsewhere):
            if grads[i].device != params[i].device:
                raise ValueError(
                    "p.grad must be on the device of its parameter, "
                    f"{params[i].device}, got {grads[i].device}"
                )


def _found(key: tuple[Any, ...], tensors: Facts) -> Known:
    params, _, velocities, steps = tensors.columns
    for p, velocity, step in zip(params, velocities, steps, strict=True):
        check_velocity(velocity, p)
        check_counter(step, p)
    _check_memory(tensors, P, "the parameter")
    _check_memory(tensors, VELOCITY, "velocity")
    _check_memory(tensors, STEP, "step in the state")
    places = list(map(_place, params, steps))
    distinct = list(dict.fromkeys(places))
    devices = each(Tensor.get_device, params, np.int64)
    alone = each(Tensor.is_neg, params) | each(Tensor.is_neg, velocities)  # memory differs
    counters, written = each(Tensor.is_neg, steps), []
    if tensors.has_addresses:
        starts, ends = _spans(tensors, (P, VELOCITY))
        steps_at = tensors.rows[:, STEP]
        starts = np.concatenate([starts, steps_at])
        ends = np.concatenate([ends, steps_at + [step.itemsize for step in steps]])
        owner = np.tile(np.arange(len(params)), 3)
        on = np.concatenate([devices, devices, each(Tensor.get_device, steps, np.int64)])
        for device in np.unique(on):
            here = np.flatnonzero((on == device) & (starts != 0) & (ends > starts))
            order = here[np.argsort(starts[here], kind="stable")]
            if not len(order):
                continue
            reach = np.maximum.accumulate(ends[order])
            is_first = np.r_[True, starts[order][1:] >= reach[:-1]]
            block = np.cumsum(is_first) - 1
            shared = order[np.bincount(block)[block] > 1]
            is_counter = shared >= 2 * len(params)
            counters[owner[shared[is_counter]]] = True
            alone[owner[shared[~is_counter]]] = True
            written.append((int(device), starts[order][is_first], reach[np.r_[is_first[1:], True]]))
    return Known(
        key,
        [p.shape for p in params],
        tensors.rows[:, SIZE].copy(),
        list(map(distinct.index, places)),
        distinct,
        devices,
        alone,
        np.flatnonzero(counters),
        written,
    )


def _check_memory(tensors: Facts, column: int, name: str) -> None:
    """Raise unless each tensor of a column has memory for all of its elements."""
    if not tensors.has_addresses:
        return
    xs = tensors.columns[column]
    if not tensors.is_plain.all():  # a wrapper need not have memory of its own
        xs = [x if type(x) in PLAIN or has_memory(x) else torch.empty(0) for x in xs]
    sizes = each(Tensor.numel, xs, np.int64)
    ends = sizes + each(Tensor.storage_offset, xs, np.int64)
    ends *= each(attrgetter("itemsize"), xs, np.int64)
    lengths = np.fromiter((x.untyped_storage().nbytes() for x in xs), np.int64, len(xs))
    is_contiguous = each(Tensor.is_contiguous, xs)
    for i in np.flatnonzero(~is_contiguous):
        ends[i] = xs[i].storage_offset() * xs[i].itemsize + _extent(xs[i])
    is_short = (ends > lengths) | (tensors.rows[:, column] == 0)
    for i in np.flatnonzero(is_short & (sizes != 0)):
        is_small = ends[i] > lengths[i]
        if (is_small and has_memory(xs[i])) or is_zero_tensor(xs[i]):
            found = lengths[i] if is_small else "no memory"
            raise ValueError(
                f"{name} must have memory for each of its elements, got a tensor of shape "
                f"{tuple(xs[i].shape)}, which needs {ends[i]} bytes, with {found}"
            )


def _place(p: Tensor, step: Tensor) -> Place | None:
    """Return the place of a parameter, or None if the kernels cannot take it."""
    return None if p.is_meta else (p.device, not step.is_cpu)


def _spans(tensors: Facts, columns: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last address of the elements of each tensor in the columns."""
    starts = np.concatenate([tensors.rows[:, column] for column in columns])
    lengths = []
    for column in columns:
        dtypes, xs = tensors.dtypes[column], tensors.columns[column]
        sizes = {dtype: dtype.itemsize for dtype in set(dtypes)}
        if len(sizes) == 1:
            length = tensors.rows[:, SIZE] * next(iter(sizes.values()))
        else:
            length = tensors.rows[:, SIZE] * [sizes[dtype] for dtype in dtypes]
        for i in np.flatnonzero(~tensors.contiguous[column]):
            length[i] = _extent(xs[i])
        lengths.append(length)
    return starts, starts + np.concatenate(lengths)


def _extent(x: Tensor) -> int:
    """Return how many bytes are from the first element of a tensor to the end of the last one."""
    if not x.numel():
        return 0
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.itemsize


def shared_grads(tensors: Facts, known: Known) -> np.ndarray:
    """Return the indices of the gradients in the memory that the step writes."""
    if not known.written:
        return np.empty(0, np.int64)
    starts, ends = _spans(tensors, (GRAD,))
    found = np.zeros(len(starts), bool)
    for device, first, last in known.written:
        before = np.searchsorted(first, ends)  # the blocks that start before the gradient ends
        overlaps = (before > 0) & (last[before - 1] > starts) & (ends > starts)
        found |= overlaps if len(known.written) == 1 else overlaps & (known.devices == device)
    return np.flatnonzero(found)
