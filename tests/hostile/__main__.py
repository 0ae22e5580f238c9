"""Try faults for some minutes: `make hostile`, or `python -m tests.hostile --help`.

Every fault comes from the seed. A promise that is broken ends its part, and the status is 1.
"""

import json
import os
import re
import secrets
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of torch sleep

import click
from rich.console import Console

from gravity_conformance.versions import installed
from tests.support.pages import is_there

Run = Callable[..., Counter[str]]


def parts() -> dict[str, Run]:
    """Return what tries each kind of fault, by name; a framework that is missing has none."""
    from tests.hostile import commands, numbers, state_files, vector_files

    found: dict[str, Run] = {
        "files of a State": state_files.run,
        "killed saves": state_files.run_kills,
        "files of vectors": vector_files.run,
        "numbers": numbers.run,
        "code and environments of commands": commands.run,
    }
    if is_there("torch"):
        from tests.hostile import torch_faults

        found["steps and loads of torch"] = torch_faults.run
    if is_there("keras"):
        from tests.hostile import keras_faults

        found["steps and imports of Keras"] = keras_faults.run
    return found


def try_part(run: Run, random: Random, seconds: float) -> dict[str, Any]:
    """Run one part; return its counts, and the promise that was broken, if any."""
    counts: Counter[str] = Counter()
    fault = None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the frameworks, about the faults
        try:
            counts = run(random, Path(folder), seconds=seconds)
        except AssertionError as broken:
            fault = str(broken)
        except Exception:
            fault = traceback.format_exc()
    return {"tried": counts.total(), "outcomes": dict(sorted(counts.items())), "fault": fault}


@click.command()
@click.option("--seed", type=int, help="Chooses the faults; a random one by default.")
@click.option("--minutes", type=click.FloatRange(min=0), default=10.0, show_default=True)
@click.option("--only", help="The parts whose names match this regular expression.")
@click.option("--json", "output", type=click.Path(dir_okay=False), help="Write the counts here.")
def main(seed: int | None, minutes: float, only: str | None, output: str | None) -> None:
    """Try faults, and count what came of them."""
    seed = secrets.randbits(32) if seed is None else seed
    console = Console(highlight=False, soft_wrap=True)
    chosen = {name: run for name, run in parts().items() if re.search(only or "", name)}
    if not chosen:
        raise click.BadParameter(f"no part matches {only!r}", param_hint="--only")
    console.print(f"seed {seed}, {minutes:g} minutes")
    found = {}
    for name, run in chosen.items():
        random = Random(f"{seed} {name}")
        found[name] = part = try_part(run, random, 60 * minutes / len(chosen))
        console.print(f"{name}: {part['fault'] or str(part['tried']) + ' tried'}", markup=False)
    report = {"seed": seed, "minutes": minutes, "versions": list(installed()), "parts": found}
    if output:
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        Path(output).write_text(text, encoding="utf-8")
    sys.exit(any(part["fault"] for part in found.values()))


main()
