"""The worker of `gravity conform`, run in this process because that is faster."""

import importlib.util
import json

import pytest

from gravity_conformance.conform import worker
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.conform.checks.subject import DTYPES
from gravity_conformance.drive.drivers import read

# The kinds of implementation, and the modules that each one needs.
KINDS = {"plain": (), "torch": ("torch",), "optax": ("jax", "optax"), "keras": ("keras",)}


JOB = {
    "kind": None,
    "kw": {},
    "first_step": None,
    "seed": 0,
    "level": "quick",
    "dtypes": DTYPES,
}


def events(spec, checks=tuple(CHECKS), **job):
    """Return the events that the worker reports about an implementation."""
    names = KINDS.get(spec.rpartition(":")[2].partition("_")[0], ())
    for module in names:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{spec} needs {module}")
    found = []
    job = JOB | job
    worker._run(
        read(spec, job["kind"], job["kw"]),
        job | {"checks": checks},
        lambda event, **values: found.append(json.loads(json.dumps({"event": event, **values}))),
    )
    return found


def findings(*args, **kwargs):
    return {e["check"]: e for e in events(*args, **kwargs) if e["event"] == "finding"}


def outcomes(path, check, *names, **job):
    """Return the outcome of a check by the name of each implementation in a module."""
    return {x: findings(f"{path}:{x}", [check], **job)[check]["outcome"] for x in names}


def module(tmp_path, code):
    """Write a module; return its path."""
    path = tmp_path / "around.py"
    path.write_text(code, encoding="utf-8")
    return path


def written(tmp_path, imported, code, kind=None):
    """Write a subclass of the right optimizer of a kind; return its SPEC."""
    head = f"from tests.support import planted\nimport {imported}\n\n"
    body = f"class Around(planted.{kind or imported}_right):\n{code}\n"
    return f"{module(tmp_path, head + body)}:Around"


def beside_a_subclass(tmp_path, right, code, check, level):
    """Return the outcomes of a Keras optimizer, Around, and of a subclass of it, Wrong."""
    spec = written(tmp_path, "tensorflow as tf", f"{right}\nclass Wrong(Around):\n{code}", "keras")
    return outcomes(spec.rpartition(":")[0], check, "Wrong", "Around", level=level)
