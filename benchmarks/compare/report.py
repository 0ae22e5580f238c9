"""One JSON of a folder of results, with all that is needed to make it again."""

import dataclasses
import datetime
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.compare import analysis, protocol, store
from benchmarks.compare.optimizers import OPTIMIZERS
from benchmarks.compare.problems import PROBLEMS, with_images
from gravity_conformance._status import CouldNotError

Json = dict[str, Any]


def report(folder: Path) -> Json:
    """Return the report on all cells that are there.

    Raises:
        CouldNotError: if the folder has no cells.
    """
    plan, every = store.read_plan(folder), with_images(None)
    found: Json = {}
    studies: Json = {}
    missing = []
    for name in (*every, *protocol.STUDIES):
        cells = store.read_cells(folder, name)
        cells = {optimizer: cells[optimizer] for optimizer in OPTIMIZERS if optimizer in cells}
        if cells or name in PROBLEMS or name in protocol.STUDIES:
            missing += [f"{name}/{o}" for o in OPTIMIZERS if o not in cells]
        if not cells:
            continue
        if name in protocol.STUDIES:
            study = protocol.STUDIES[name]
            studies[name] = analysis.study_report(study, every[study.problem], cells)
        else:
            found[name] = analysis.problem_report(every[name], cells)
    if not found and not studies:
        raise CouldNotError(f"{folder} has no results yet")
    budget = plan["budget"]
    return {
        "command": _command(budget, [*found, *studies]),
        "date": datetime.date.today().isoformat(),
        **plan,
        "missing": missing,
        "protocol": {
            "full": dataclasses.asdict(protocol.FULL.scaled(budget)),
            "small": dataclasses.asdict(protocol.SMALL.scaled(budget)),
            "confidence": analysis.CONFIDENCE,
        },
        "optimizers": {
            name: {"title": o.title, "range": list(o.rates), "default": o.default}
            for name, o in OPTIMIZERS.items()
        },
        "problems": found,
        "profile": analysis.profile(found, list(OPTIMIZERS)) if found else None,
        "studies": studies,
    }


def _command(budget: float, names: list[str]) -> str:
    """Return the command that makes the cells of these problems and studies."""
    every = with_images(None)
    options = [f"--budget {budget:g}"] if budget != 1 else []
    if any(name in every and every[name].images for name in names):
        options.append("--data-dir DIR")
    if not {*PROBLEMS, *protocol.STUDIES} <= {*names}:
        options += [f"--problem {name}" for name in names]
    return " ".join(["python -m benchmarks.compare", *options])


def as_text(found: Json) -> str:
    """Return the report as JSON, with each list of numbers on one line."""
    text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)
