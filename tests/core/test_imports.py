"""The public surface, that the core needs no framework, and that imports point one way."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

import gravity_core

ROOT = Path(__file__).resolve().parents[2]

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
    assert "gravity_conformance" not in loaded
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(FRAMEWORKS | OPTIONAL)


def test_the_core_works_where_only_numpy_and_array_api_compat_can_be_imported():
    assert run(ONLY_NUMPY) == "stepped\n"


# Each part of the house, and the parts of it that it must not import.
ADAPTERS = {"gravity_torch", "gravity_jax", "gravity_tf"}
FORBIDDEN = {
    "gravity_core": {"gravity_conformance", *ADAPTERS},
    "gravity_conformance": ADAPTERS,
    "gravity_conformance/parity": {"gravity_conformance.conform", "gravity_conformance.vectors"},
    "gravity_conformance/vectors": {"gravity_conformance.conform", "gravity_conformance.parity"},
    "gravity_conformance/conform": {"gravity_conformance.parity"},
    "gravity_conformance/conform/judge": {"gravity_conformance.conform.checks"},
    "gravity_conformance/drive": {
        "gravity_conformance.conform",
        "gravity_conformance.parity",
        "gravity_conformance.vectors",
    },
    **{
        f"adapters/{adapter}": {"gravity_conformance", *ADAPTERS - {adapter}}
        for adapter in sorted(ADAPTERS)  # in one order for all processes of a test run
    },
}


def imported(path):
    """Yield the dotted names of the modules and attributes that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_one_way(part):
    paths = list((ROOT / part).rglob("*.py"))
    assert paths
    for path in paths:
        for name in imported(path):
            if path.name == "backend.py" and name.startswith("gravity_conformance.protocol."):
                continue  # what an adapter implements for `gravity parity`
            found = {other for other in FORBIDDEN[part] if f"{name}.".startswith(f"{other}.")}
            assert not found, f"{path.relative_to(ROOT)} imports {name}"
