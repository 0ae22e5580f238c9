"""The steps of gravity_torch.Gravity and of torch's own optimizers, and a copy beside them."""

import importlib.util
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch

from benchmarks.shapes import Shape
from benchmarks.traffic import COPY, Traffic
from gravity_torch import Gravity

ADAM = "torch.optim.Adam(fused=True)"
SGD = "torch.optim.SGD(momentum, fused=True)"
DEFAULT = "gravity_torch.Gravity()"
FUSED = "gravity_torch.Gravity(fused=True)"

# Tensors that the algorithm reads or writes for each element. Adam reads W, G, M, V and writes W,
# M, V. SGD has one moment less. Gravity reads W, V and twice G (max|G| comes first), and writes
# W, V and nothing else.
MOVED = {ADAM: 7, SGD: 5}
MOVED_BY_GRAVITY = 6
# Bytes that the copy reads, and writes: more than the cache of a large processor.
COPIED = 2**28

Make = Callable[[Any], Any]


def device_name() -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def parameters(shapes: list[Shape], dtype: str = "float32") -> list[torch.nn.Parameter]:
    """Return a parameter with a normal gradient for each shape, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"device": device, "dtype": getattr(torch, dtype)}
    generator = torch.Generator(device).manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(s, **options)) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, **options).mul_(0.1)
    return params


def optimizers() -> dict[str, Make]:
    """Return torch's fused Adam, the baseline, torch's fused SGD, and every path of Gravity."""
    found: dict[str, Make] = {
        ADAM: lambda p: torch.optim.Adam(p, fused=True),
        SGD: lambda p: torch.optim.SGD(p, momentum=0.9, fused=True),
        DEFAULT: lambda p: Gravity(p),
        "gravity_torch.Gravity(foreach=True)": lambda p: Gravity(p, foreach=True),
        "gravity_torch.Gravity(foreach=False)": lambda p: Gravity(p, foreach=False),
    }
    # On a CPU it is the default.
    if torch.cuda.is_available() and importlib.util.find_spec("triton"):
        found[FUSED] = lambda p: Gravity(p, fused=True)
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import Gravity as Other

        found["pytorch_optimizer.Gravity()"] = lambda p: Other(p)
    return found


def contenders(
    shapes: list[Shape],
    threads: int,
    also: Mapping[str, Make] | None = None,
    dtype: str = "float32",
    *,
    grouped: bool = False,
    only: Container[str] | None = None,
) -> dict[str, Callable[[], Any]]:
    """Return the steps of the optimizers, the baseline first, and a copy of a large tensor.

    `also` has more optimizers by name; each is called with the parameters alone. With `grouped`,
    each parameter has its own group. `only` has the names of the optimizers to take.
    """
    torch.set_num_threads(threads)

    def step(make: Make) -> Callable[[], Any]:
        params: list[Any] = parameters(shapes, dtype)
        optimizer = make([{"params": [p]} for p in params] if grouped else params)
        return _finished(optimizer.step)

    chosen = optimizers() | dict(also or {})
    steps = {name: step(make) for name, make in chosen.items() if only is None or name in only}
    return steps | {COPY: _copy()}


def traffic(shapes: list[Shape], dtype: str = "float32") -> Traffic:
    """Return what the steps of `contenders` must move."""
    itemsize = getattr(torch, dtype).itemsize
    moved = MOVED | {n: MOVED_BY_GRAVITY for n in optimizers() if n.startswith("gravity_torch")}
    return Traffic(
        elements=sum(map(math.prod, shapes)),
        moved={name: tensors * itemsize for name, tensors in moved.items()},
        copied=2 * COPIED,
    )


def _copy() -> Callable[[], Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Ones, because memory of zeros may not exist before it is written.
    source, target = torch.ones(2, COPIED // 4, device=device)
    return _finished(lambda: target.copy_(source))


def _finished(step: Callable[[], Any]) -> Callable[[], Any]:
    def timed() -> None:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return timed
