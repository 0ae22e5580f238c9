"""A right optimizer with the options of torch's own, as the base of those that are wrong."""

from tests.support.worker import module

FULL = """
import copy
import torch
from tests.support import planted

class Full(planted.torch_right):
    def __init__(self, params, lr=0.1, beta=0.9, weight_decay=0.0, maximize=False, foreach=False,
                 *, alpha=0.01, seed=0):
        self.more = {"maximize": maximize, "foreach": foreach}
        super().__init__(params, lr, beta, weight_decay, alpha=alpha, seed=seed)
        self.defaults.update(self.more)

    def add_param_group(self, group):
        own = {name: self.defaults.get(name) for name in ("maximize", "foreach")}
        super().add_param_group(getattr(self, "more", own) | group)

    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = p.grad.to_dense()
        super().step()
        return loss

    def one(self, p, owner, place, group):
        given = p.grad
        if group["maximize"]:
            p.grad = -given
        super().one(p, owner, place, group)
        p.grad = given
"""


def full(tmp_path, code="    pass"):
    """Write the full optimizer, and a subclass with the code; return the SPEC."""
    path = module(tmp_path, f"{FULL}\nclass Around(Full):\n{code}")
    return f"{path}:Around"
