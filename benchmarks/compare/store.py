"""A folder of results: `plan.json`, and FOLDER/PROBLEM/OPTIMIZER.json for each cell.

Guarantees: a file is there whole or not at all, so a run that was killed at any point continues,
and ends with the same bytes. A folder never mixes results of different budgets, versions or CPUs.
"""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from benchmarks.compare.topics import topics_md5
from gravity_conformance._output import write
from gravity_conformance._status import CouldNotError
from gravity_core import _files

PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "numba", "gravity-optimizer")
PLAN = "plan.json"
Json = dict[str, Any]


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def new_plan(budget: float) -> Json:
    """Return what must be the same for all cells of a folder."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "budget": budget,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "text_md5": topics_md5(),
        "versions": versions,
    }


def begin(folder: Path, plan: Json) -> None:
    """Make a folder for a plan, or check that it is for this plan.

    Raises:
        CouldNotError: if it is for another plan, holds something else, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _files.check_writable(folder / PLAN)
        if not (folder / PLAN).exists():
            if any(folder.iterdir()):
                raise CouldNotError(f"--out must be an empty folder or one of results: {folder}")
            write({folder / PLAN: _text(plan)})
    except OSError as error:
        raise CouldNotError(
            f"--out must be a folder that can be written, got {folder}: {error.strerror or error}"
        ) from error
    old = read_plan(folder)
    for key, value in plan.items():
        if old.get(key) != value:
            raise CouldNotError(
                f"--out {folder} has results with {key} {_shown(old.get(key))}, "
                f"not {_shown(value)}: choose another folder"
            )


def read_plan(folder: Path) -> Json:
    """Return the plan of a folder.

    Raises:
        CouldNotError: if it has none.
    """
    return _read(folder / PLAN)


def path_of(folder: Path, problem: str, optimizer: str) -> Path:
    """Return the file of a cell."""
    return folder / problem / f"{optimizer}.json"


def write_cell(folder: Path, problem: str, optimizer: str, found: Json) -> None:
    """Write a cell."""
    path = path_of(folder, problem, optimizer)
    path.parent.mkdir(exist_ok=True)
    write({path: _text({"problem": problem, "optimizer": optimizer, **found})})


def read_cells(folder: Path, problem: str) -> dict[str, Json]:
    """Return the cells of a problem or study that are there, by optimizer."""
    return {path.stem: _read(path) for path in sorted((folder / problem).glob("*.json"))}


def _text(content: Json) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"


def _read(path: Path) -> Json:
    try:
        with _files.open_regular(path) as file:
            found: Json = json.load(file)
    except OSError as error:
        raise CouldNotError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CouldNotError(f"{path} is not what this command writes: {error}") from error
    return found


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace('"', "")
