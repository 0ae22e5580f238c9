"""JAX as a backend of ``gravity parity`` (`gravity_conformance.protocol`)."""

from collections import Counter
from typing import Literal

import jax

from gravity_jax.transform import gravity

__all__ = ["devices", "kind", "optimizer"]

optimizer = gravity
kind: Literal["optax"] = "optax"


def devices() -> list[str]:
    """Return the number of devices of each kind."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return [f"{number} × {kind}" for kind, number in kinds.items()]
