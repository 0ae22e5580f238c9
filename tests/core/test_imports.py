"""The public surface, and that the core needs no framework."""

import subprocess
import sys
import types

import gravity_core

PUBLIC = [
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
FRAMEWORKS = {"torch", "jax", "optax", "tensorflow", "keras", "cupy", "array_api_strict"}
OPTIONAL = {"ml_dtypes", "scipy", "sklearn", "click", "rich", "matplotlib"}

ONLY_NUMPY = """
import sys

allowed = {*sys.stdlib_module_names, "numpy", "array_api_compat", "gravity_core"}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"{name} is not to be imported", name=name)

sys.meta_path.insert(0, Refuse())
import numpy as np
import gravity_core
import gravity_core.hyperparameters
import gravity_core.velocity

for dtype in ("float16", "float32", "float64", "complex64", "complex128"):
    w = np.ones(3, dtype)
    gravity_core.Gravity().step([w], [w.copy()])
    assert np.isfinite(w).all() and (w != 1).all(), w
print("stepped")
"""


def run(code):
    """Run `code` in a fresh interpreter, warnings being errors, and return what it printed."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names_are_pinned_and_nothing_else_is_public():
    assert gravity_core.__all__ == PUBLIC
    visible = {
        name
        for name, value in vars(gravity_core).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible == set(PUBLIC)
    assert isinstance(gravity_core.__version__, str)


def test_every_public_name_says_what_it_is():
    assert [name for name in PUBLIC if not getattr(gravity_core, name).__doc__] == []


def test_importing_the_core_imports_no_framework_and_no_conformance_suite():
    loaded = set(run("import sys, gravity_core; print(*sys.modules)").split())
    assert "gravity_core.update" in loaded
    assert "gravity_core.conformance" not in loaded
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(FRAMEWORKS | OPTIONAL)


def test_the_core_works_where_only_numpy_and_array_api_compat_can_be_imported():
    assert run(ONLY_NUMPY) == "stepped\n"
