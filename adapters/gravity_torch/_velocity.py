"""V₀ of a parameter. Each process draws only its own shard, on the device of the parameter."""

from collections.abc import Iterator
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

from gravity_core.velocity import normal_elements, normal_quantiles, standard_normal, tensor_key
from gravity_torch import _distributed
from gravity_torch._tensors import working_dtype

_CHUNK = 2**16  # number of elements of a shard to draw at a time


def as_reals(x: Tensor) -> Tensor:
    """Return a complex tensor as a view of pairs of reals, and a real one unchanged."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def initial_velocity(p: Tensor, std: float, seed: int, index: int) -> Tensor:
    """Return V₀ = σ z in the parameter's dtype, memory format and placement.

    Args:
        p: the parameter; for a DTensor, each process draws its own shard of V₀.
        std: σ.
        seed: an integer in [0, 2**64).
        index: the parameter's position among all parameters of the optimizer.
    """
    velocity = torch.empty_like(_distributed.local(p), memory_format=torch.preserve_format)
    real = as_reals(velocity)
    flat = torch.empty(real.numel(), dtype=real.dtype, device=real.device)
    for a, b, z in _normal(p, flat.numel(), seed, index):
        flat[a:b] = z.to(working_dtype(real.dtype)) * std
    real.copy_(flat.view(real.shape))
    return _distributed.like(p, velocity)


def _normal(p: Tensor, size: int, seed: int, index: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (a, b, z), where z are the normal numbers of the local elements a to b − 1."""
    device = _distributed.local(p).device

    def asarray(array: np.ndarray) -> Tensor:
        # PyTorch has no arithmetic on uint32; int32 wraps around and gives the same bits.
        signed = array.view(np.int32) if array.dtype == np.uint32 else array.copy()
        return torch.from_numpy(signed).to(device)

    elements = _distributed.elements(p)
    if isinstance(elements, range):
        start = elements.start
        # On a CPU, NumPy takes less than half the time.
        how: dict[str, Any] = {} if device.type == "cpu" else {"asarray": asarray, "xp": xp}
        for a, b, z in standard_normal(start, start + size, seed=seed, index=index, **how):
            # The user may have set another default device, so `torch.as_tensor` will not do.
            yield a - start, b - start, z if how else torch.from_numpy(z)
        return
    k0, k1 = (asarray(word) for word in tensor_key(seed, index))
    quantiles = asarray(normal_quantiles())
    for a in range(0, size, _CHUNK):
        b = min(a + _CHUNK, size)
        i = elements(a, b)
        words = (i >> 32).int(), (i & 0xFFFFFFFF).int()
        yield a, b, normal_elements((k0, k1), words, quantiles, xp=xp)
