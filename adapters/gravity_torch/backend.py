"""PyTorch as a backend of ``gravity parity`` (`gravity_conformance.protocol`)."""

from collections import Counter
from typing import Literal

import torch

from gravity_conformance.protocol import Mode
from gravity_torch.optimizer import Gravity
from gravity_torch.state import export_state

__all__ = ["devices", "export_state", "kind", "modes", "optimizer"]

optimizer = Gravity
kind: Literal["torch"] = "torch"


def devices() -> list[str]:
    """Return the CPU with its number of threads, and the accelerators."""
    kinds = Counter(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    if not kinds and torch.accelerator.is_available():
        kinds[str(torch.accelerator.current_accelerator())] = torch.accelerator.device_count()
    accelerators = [f"{number} × {kind}" for kind, number in kinds.items()]
    return [f"cpu with {torch.get_num_threads()} threads", *accelerators]


def modes() -> dict[str, Mode]:
    """Return the optimizer's paths; the default on a CPU is the one of `fused=True`."""
    return {
        "loop": Mode("eager", options={"foreach": False}),
        "default": Mode("eager"),
        "foreach": Mode("eager", options={"foreach": True}),
    }
