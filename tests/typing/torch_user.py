"""Code of a user of gravity_torch, and mistakes that a type checker must find."""

import torch

from gravity_core import State
from gravity_torch import Gravity, export_state, import_state

model = torch.nn.Linear(2, 1)
optimizer: torch.optim.Optimizer = Gravity(model.parameters(), lr=0.1, weight_decay=0.01)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
Gravity([{"params": model.parameters(), "lr": torch.tensor(0.1)}], velocity_std=0.0, fused=True)
Gravity(model.named_parameters())
optimizer.step()
gravity = Gravity(model.parameters())
state: State = export_state(gravity)
import_state(gravity, state)
Gravity(model.parameters(), lr="0.1")  # type: ignore[arg-type]
Gravity(model.parameters(), 0.1, 0.01, 0.9, 0.0)  # type: ignore[call-arg]
