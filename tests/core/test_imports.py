"""Imports: the public names, a core without frameworks, one direction, and no test modules."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

import gravity_core
from tests.support.limits import HANG

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
    """Run `code` in a fresh interpreter with warnings as errors, and return its output."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
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


def test_every_public_name_has_a_docstring():
    assert [name for name in PUBLIC if not getattr(gravity_core, name).__doc__] == []


def test_importing_the_core_imports_no_framework_and_no_conformance_suite():
    loaded = set(run("import sys, gravity_core; print(*sys.modules)").split())
    assert "gravity_core.update" in loaded
    assert "gravity_conformance" not in loaded
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(FRAMEWORKS | OPTIONAL)


def test_the_core_works_with_numpy_and_array_api_compat_alone():
    assert run(ONLY_NUMPY) == "stepped\n"


# Each package or module, and what it must not import.
COMMAND = {f"gravity_conformance.conform.{name}" for name in ("report", "runner", "worker")}
ADAPTERS = {"gravity_torch", "gravity_jax", "gravity_tf"}
FORBIDDEN = {
    "gravity_core": {"gravity_conformance", *ADAPTERS},
    "gravity_conformance": ADAPTERS,
    "gravity_conformance/parity": {"gravity_conformance.conform", "gravity_conformance.vectors"},
    "gravity_conformance/vectors": {
        "gravity_conformance.conform",
        "gravity_conformance.explain",
        "gravity_conformance.parity",
    },
    "gravity_conformance/explain": {
        "gravity_conformance.conform.checks",
        "gravity_conformance.parity",
        *COMMAND,
    },
    "gravity_conformance/conform": {"gravity_conformance.parity"},
    "gravity_conformance/conform/checks": COMMAND,
    "gravity_conformance/conform/judge": {"gravity_conformance.conform.checks", *COMMAND},
    **{
        f"gravity_conformance/{name}.py": {
            f"gravity_conformance.{part}"
            for part in ("conform", "drive", "explain", "parity", "vectors")
        }
        for name in (
            *("_caller", "_drawing", "_guard", "_html", "_output", "_status", "_terminal"),
            *("mutations", "protocol"),
        )
    },
    "gravity_conformance/drive": {
        "gravity_conformance.conform",
        "gravity_conformance.explain",
        "gravity_conformance.parity",
        "gravity_conformance.vectors",
    },
    **{
        f"adapters/{adapter}": {"gravity_conformance", *ADAPTERS - {adapter}}
        for adapter in sorted(ADAPTERS)  # sorted, so that all test processes have one order
    },
}


def imported(path):
    """Yield the dotted names of the modules and attributes that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    place = ROOT / package
    paths = list(place.rglob("*.py")) if place.is_dir() else [place]
    assert paths
    for path in paths:
        for name in imported(path):
            if path.name == "backend.py" and name.startswith("gravity_conformance.protocol."):
                continue  # the interface that an adapter implements for `gravity parity`
            found = {other for other in FORBIDDEN[package] if f"{name}.".startswith(f"{other}.")}
            assert not found, f"{path.relative_to(ROOT)} imports {name}"


def test_no_test_module_imports_a_test_module_and_none_is_long():
    """Helpers belong in tests/support, and a longer file has more than one subject."""
    for path in (ROOT / "tests").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= 600, f"{path.relative_to(ROOT)} has over 600 lines"
        for name in imported(path):
            found = [part for part in name.split(".") if part.startswith("test_")]
            assert not found, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    "package", ["gravity_core", *(f"adapters/{name}" for name in sorted(ADAPTERS))]
)
def test_a_module_is_private_exactly_if_its_package_exports_nothing_from_it(package):
    """Two kinds of modules are public by their own names: entry points and `hyperparameters`."""
    folder = ROOT / package
    imports = ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
    exporting = {n.module.rpartition(".")[2] for n in imports if isinstance(n, ast.ImportFrom)}
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    public = modules & (exporting | {"backend", "hyperparameters"})
    assert exporting
    assert {name for name in modules if not name.startswith("_")} == public
