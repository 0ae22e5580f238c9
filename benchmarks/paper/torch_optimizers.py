"""Keras's Adam and RMSprop in PyTorch: torch's own place ε elsewhere.

The published runs used Keras's. At the start, gradients of VGG are small enough for ε to matter.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-7
_RHO = 0.9  # of RMSprop


class Adam(torch.optim.Adam):
    """torch's Adam with Keras's ε, which is added to √v before the bias is corrected."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, lr)
        self.register_step_pre_hook(self._set_epsilon)

    @staticmethod
    def _set_epsilon(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # torch adds ε to √(v / (1 − β₂ᵗ)).
        for group in optimizer.param_groups:
            states = (optimizer.state[p] for p in group["params"] if p in optimizer.state)
            t = next((float(state["step"]) for state in states), 0.0) + 1
            group["eps"] = EPSILON / (1 - group["betas"][1] ** t) ** 0.5


class RMSprop(torch.optim.Optimizer):
    """v ← ρ v + (1 − ρ) G²; W ← W − η G / √(v + ε): torch's own adds ε to √v."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                v = state["velocity"].mul_(_RHO).addcmul_(p.grad, p.grad, value=1 - _RHO)
                p.addcdiv_(p.grad, (v + EPSILON).sqrt_(), value=-group["lr"])
