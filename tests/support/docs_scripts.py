"""The scripts in docs/ as modules."""

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs"


def docs_script(name):
    """Return docs/<name>.py as a module of its own."""
    sys.path.insert(0, str(FOLDER))
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop(name, None)
    return module
