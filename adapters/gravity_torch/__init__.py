"""Gravity for PyTorch: `gravity_torch.Gravity`, a `torch.optim.Optimizer`.

Guarantee: importing this package imports torch and no other framework.
"""

from gravity_torch.diagnosis import diagnose
from gravity_torch.optimizer import Gravity
from gravity_torch.state import export_state, import_state

__all__ = ["Gravity", "diagnose", "export_state", "import_state"]
