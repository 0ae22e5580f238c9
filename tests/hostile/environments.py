"""Environments in which every command must say the same, in one table.

A command's status and its JSON do not depend on them.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.limits import HANG


class Environment(NamedTuple):
    """Variables of the environment, and descriptors that are closed, which needs POSIX."""

    variables: dict[str, str]
    closed: tuple[int, ...] = ()


_C = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

ENVIRONMENTS = {
    "plain": Environment({}),
    "cp1252": Environment({"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}),
    "cp437": Environment({"PYTHONIOENCODING": "cp437:strict"}),
    "ascii": Environment({"PYTHONIOENCODING": "ascii:strict"}),
    "utf-16": Environment({"PYTHONIOENCODING": "utf-16"}),
    "C": Environment(_C),
    "dumb": Environment({"TERM": "dumb", "NO_COLOR": "1"}),
    "coloured": Environment({"FORCE_COLOR": "1", "TERM": "xterm-256color"}),
    "without docstrings": Environment({"PYTHONOPTIMIZE": "2"}),
    "development": Environment({"PYTHONDEVMODE": "1"}),
    "unbuffered": Environment({"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}),
    "narrow": Environment({"COLUMNS": "1"}),
    "no home": Environment({"HOME": "/nonexistent", "USERPROFILE": "/nonexistent"}),
    "no stdin": Environment({}, closed=(0,)),
    "no stdout": Environment({}, closed=(1,)),
    "no stderr": Environment({}, closed=(2,)),
    "no output": Environment({}, closed=(1, 2)),
    "no stream": Environment({}, closed=(0, 1, 2)),
}


def run(
    command: Sequence[Any], environment: Environment, folder: Path
) -> subprocess.CompletedProcess[bytes]:
    """Run a Python command, such as ``-m gravity_conformance --help``, in an environment."""
    words = [sys.executable, *map(str, command)]
    if environment.closed:
        closing = " ".join(f"{descriptor}>&-" for descriptor in environment.closed)
        words = ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *words]
    return subprocess.run(
        words,
        capture_output=True,
        cwd=folder,
        env=os.environ | environment.variables,
        timeout=HANG,
        check=False,
    )
