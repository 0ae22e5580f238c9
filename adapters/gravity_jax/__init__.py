"""Gravity for JAX: `gravity_jax.gravity`, an `optax.GradientTransformation`.

Guarantee: importing this package imports jax and optax and no other framework.
"""

from gravity_jax.state import export_state, import_state
from gravity_jax.transform import ScaleByGravityState, gravity, scale_by_gravity

__all__ = [
    "ScaleByGravityState",
    "export_state",
    "gravity",
    "import_state",
    "scale_by_gravity",
]
