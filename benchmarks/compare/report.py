"""One JSON of a folder of results, with all that is needed to make it again."""

import dataclasses
import datetime
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
        CouldNotError: if there is none.
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
    images = any(every[name].images for name in found)
    return {
        "command": "python -m benchmarks.compare"
        + (f" --budget {budget:g}" if budget != 1 else "")
        + (" --data-dir DIR" if images else ""),
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
