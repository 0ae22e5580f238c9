"""Code of a user of gravity_tf, and mistakes that a type checker must find."""

from gravity_core import State
from gravity_tf import Gravity, export_state, import_state

optimizer = Gravity(learning_rate=0.1, alpha=0.01, beta=0.9, seed=3, clipnorm=1.0)
state: State = export_state(optimizer)
import_state(optimizer, state)
Gravity(velocity_std="0.1")  # type: ignore[arg-type]
