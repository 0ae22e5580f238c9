"""The path of `foreach=True`: torch's operations on lists of tensors; GPUs have their own path.

Guarantee: on a CPU, V and W have the bits of the NumPy reference, because each operation of the
update is one operation here. On a CPU, temporaries take less than 8 MiB.
"""

import sys
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from gravity_core.coefficients import coefficients
from gravity_torch._items import Item, Options
from gravity_torch._multi_tensor_gpu import Lengths, multi_tensor_gpu, portions
from gravity_torch._single_tensor import single_tensor
from gravity_torch._tensors import PLAIN, flat, has_memory, max_abs, working_dtype

# Elements that are updated at a time on a CPU: they stay in the cache.
BLOCK = 2**17


def multi_tensor(items: list[Item], options: Options, lengths: Lengths) -> None:
    """Update lists of tensors of one device, one combination of dtypes and one t."""
    lists: defaultdict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        p, grad, velocity, t, _ = item
        number = None if isinstance(t, Tensor) else t
        lists[p.device, p.dtype, grad.dtype, velocity.dtype, number].append(item)
    compiling = torch.compiler.is_compiling()
    for (device, *dtypes, _), alike in lists.items():
        dtype = working_dtype(torch.promote_types(*dtypes[1:]))
        in_lists = [item for item in alike if item[0].numel()]
        if not compiling and device.type != "cpu" and len(set(dtypes)) == 1:
            multi_tensor_gpu([x for x in in_lists if _is_plain(x[0])], options, lengths)
            in_lists = [item for item in in_lists if not _is_plain(item[0])]
        if working_dtype(dtypes[0]) != dtype:
            single_tensor(in_lists, options)
            continue
        # Compiled code has no temporaries.
        block = BLOCK if device.type == "cpu" and not compiling else sys.maxsize
        # torch 2.7 traces neither _replace nor a slice.
        _, beta, weight_decay, maximize, _ = options
        lr = options.lr.to(device) if isinstance(options.lr, Tensor) else options.lr
        in_place = Options(lr, beta, weight_decay, maximize)
        for portion in portions(in_lists, block):
            _update(portion, block, dtype, in_place)


def _is_plain(p: Tensor) -> bool:
    # A look at the type is quicker than `has_memory`.
    return type(p) in PLAIN or has_memory(p)


def _factor(x: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a number as a tensor on a CPU, where torch would make one for each of a list."""
    if device.type != "cpu" or x is None or isinstance(x, (Tensor, list)):
        return x  # elsewhere, a tensor of a number is a copy to the device
    return torch.tensor(x, dtype=dtype, device="cpu")


def _update(items: list[Item], block: int, dtype: torch.dtype, options: Options) -> None:
    ps, grads, velocities, times, maxima = map(list, zip(*items, strict=True))
    m = [x for x in maxima if x is not None]
    if len(m) < len(items):
        found = iter(max_abs([g for g, x in zip(grads, maxima, strict=True) if x is None]))
        m = [next(found) if x is None else x for x in maxima]
    old: Any
    new: Any
    if isinstance(times[0], Tensor):
        both = coefficients(torch.stack(times), options.beta)
        old, new = (list(x.to(dtype).unbind()) for x in both)
    else:
        old, new = coefficients(times[0], options.beta)
    lr, weight_decay = options.lr, options.weight_decay
    decay = None if weight_decay is None else lr * weight_decay
    device = ps[0].device
    factors = [_factor(x, device, dtype) for x in (1, old, new, lr, decay)]
    if ps[0].numel() > block and (views := flat(ps[0], grads[0], velocities[0])):
        for p, grad, v in zip(*(torch.split(x, block) for x in views), strict=True):
            _move([p], [grad], [v], m, factors, dtype, options.maximize)
    else:
        _move(ps, grads, velocities, m, factors, dtype, options.maximize)


def _move(
    ps: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    m: list[Tensor],
    factors: list[Any],
    dtype: torch.dtype,
    maximize: bool,
) -> None:
    """Update with the operations of `_single_tensor.update_item`, in their order."""
    one, old, new, lr, decay = factors
    grads = _wide(grads, dtype)
    if maximize:
        grads = list(torch._foreach_neg(grads))
    s = torch._foreach_mul(grads, m)
    s = torch._foreach_mul(s, s)  # in place, forward derivatives would read the new s
    torch._foreach_add_(s, [one] * len(s) if isinstance(one, Tensor) else one)
    zeta = torch._foreach_div(grads, s)
    del s, grads
    torch._foreach_mul_(zeta, new)
    v = _wide(velocities, dtype)
    torch._foreach_mul_(v, old)
    torch._foreach_add_(v, zeta)
    del zeta
    v = _store(v, velocities, dtype)
    w = _wide(ps, dtype)
    if decay is not None:
        torch._foreach_sub_(w, torch._foreach_mul(w, decay))
    torch._foreach_sub_(w, torch._foreach_mul(v, lr))
    _store(w, ps, dtype)


def _wide(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the tensors themselves, or wider copies of half types."""
    return tensors if tensors[0].dtype == dtype else [x.to(dtype) for x in tensors]


def _store(wide: list[Tensor], tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Round the wide copies into the tensors, and return what these then hold."""
    if wide is not tensors:
        torch._foreach_copy_(tensors, wide)
    return _wide(tensors, dtype)
