"""The command `gravity` in its own process, and modules for it to check."""

import os
import subprocess
import sys
from pathlib import Path

from gravity_conformance.conform import runner
from tests.support.limits import HANG

STRANGERS = Path(__file__).with_name("strangers.py")
COMMAND = [sys.executable, "-m", "gravity_conformance"]

# The beginning of a module `odd.py`.
RIGHT = """
import os, subprocess, sys, time
import numpy as np
def right(w, v, g, t, lr, beta):
    old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
    dtype = w.dtype
    w, v, g = (x.astype(np.result_type(dtype, np.float32)) for x in (w, v, g))
    with np.errstate(all="ignore"):
        s = g * np.max(np.abs(g), initial=0)
        v = old * v + new * (g / (1 + s * s))
        return (w - lr * v).astype(dtype), v.astype(dtype)
"""


def gravity(*arguments, env=None, **kwargs):
    """Run `gravity`; `env` is added to the environment."""
    defaults = {"capture_output": True, "text": True, "encoding": "utf-8", "errors": "replace"}
    if "stdout" in kwargs:
        defaults |= {"capture_output": False, "stderr": subprocess.PIPE}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        timeout=HANG,
        env=os.environ | (env or {}),
        **defaults | kwargs,
    )


def gravity_conform(*arguments, **kwargs):
    return gravity("conform", *arguments, **kwargs)


def quick(*arguments, **kwargs):
    """Return the report of `gravity conform --quick`."""
    return runner.conform(*arguments, level="quick", **kwargs)


def without(modules):
    """Return code that makes a process do without some modules."""
    return f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
"""


def hidden(folder, modules):
    """Return an environment in which no process has some modules; `folder` is for its file."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(without(modules))
    others = filter(None, [os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join([str(folder), *others])}


def written(folder, code, attribute="step"):
    """Write a module that contains `right` and `code`; return the SPEC of its attribute."""
    path = folder / "odd.py"
    path.write_text(RIGHT + code, encoding="utf-8")
    return f"{path}:{attribute}"
