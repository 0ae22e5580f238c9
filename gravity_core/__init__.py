"""Gravity optimizer: the update as pure array-API functions, and the NumPy reference.

Guarantee: importing this package imports no framework. It needs numpy and array-api-compat only.
"""

from gravity_core.coefficients import beta_hat, coefficients
from gravity_core.error_bound import ErrorBound
from gravity_core.reference import Gravity
from gravity_core.state import State
from gravity_core.trajectory import Trace, Trajectory, trace
from gravity_core.update import gradient_term, max_abs_grad, max_step_grad, update
from gravity_core.velocity import initial_velocity

__all__ = [
    "ErrorBound",
    "Gravity",
    "State",
    "Trace",
    "Trajectory",
    "beta_hat",
    "coefficients",
    "gradient_term",
    "initial_velocity",
    "max_abs_grad",
    "max_step_grad",
    "trace",
    "update",
]

__version__ = "0.1.0"
