"""The tests of any backend again, on Keras's JAX and torch backends: Keras has one per process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import HANG

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
PARTS = ("", "_base_class", "_dtypes", "_faults", "_hand_over", "_rates", "_state")
FILES = [HERE / f"test_keras{part}.py" for part in PARTS]
X64 = ("-k", "float64 or reference")


@pytest.mark.parametrize(
    ("backend", "selection"),
    [("jax", ()), ("jax", X64), ("torch", ())],
    ids=["jax", "x64", "torch"],
)
def test_on_backend(backend, selection):
    for module in ("keras", backend):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_here, *selection, *map(str, FILES)],
        env=os.environ | {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": str(int(bool(selection)))},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
