"""Gravity for PyTorch: `gravity_torch.Gravity`, a `torch.optim.Optimizer`.

Guarantee: importing this package imports torch and no other framework.
"""

from gravity_torch.optimizer import Gravity

__all__ = ["Gravity"]
