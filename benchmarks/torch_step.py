"""The steps of gravity_torch.Gravity and of torch's own optimizers."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.shapes import Shape, gradients
from gravity_torch import Gravity


def device_name() -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def parameters(shapes: list[Shape], dtype: str = "float32") -> list[torch.nn.Parameter]:
    """Return a parameter with a gradient for each shape, on the GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind: torch.dtype = getattr(torch, dtype)
    params = [torch.nn.Parameter(torch.zeros(s, device=device, dtype=kind)) for s in shapes]
    for p, g in zip(params, gradients(shapes), strict=True):
        p.grad = torch.from_numpy(g).to(device, kind)
    return params


def contenders(
    shapes: list[Shape],
    threads: int,
    also: Mapping[str, Callable[..., Any]] | None = None,
    dtype: str = "float32",
) -> dict[str, Callable[[], Any]]:
    """Return the steps of torch's fused Adam and SGD, and of every path of gravity_torch.Gravity.

    `also` has more optimizers by name; each is called with the parameters alone.
    """
    torch.set_num_threads(threads)
    optimizers: dict[str, Any] = {
        "torch.optim.Adam(fused=True)": lambda p: torch.optim.Adam(p, fused=True),
        "torch.optim.SGD(momentum, fused=True)": lambda p: torch.optim.SGD(
            p, momentum=0.9, fused=True
        ),
        "gravity_torch.Gravity()": lambda p: Gravity(p),
        "gravity_torch.Gravity(foreach=True)": lambda p: Gravity(p, foreach=True),
        "gravity_torch.Gravity(foreach=False)": lambda p: Gravity(p, foreach=False),
    }
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import Gravity as Other

        optimizers["pytorch_optimizer.Gravity()"] = lambda p: Other(p)

    optimizers |= also or {}

    def step(make: Callable[[Any], Any]) -> Callable[[], Any]:
        optimizer = make(parameters(shapes, dtype))

        def timed() -> None:
            optimizer.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return timed

    return {name: step(make) for name, make in optimizers.items()}
