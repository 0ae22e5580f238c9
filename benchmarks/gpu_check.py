"""Check gravity_torch and gravity_jax on a GPU, and write one JSON.

    python -m benchmarks.gpu_check --json FILE

Each part of `benchmarks.gpu_parts` runs in a process of its own with a time limit, so that a crash
or a hang loses only this part. The exit status is 0 if all targets hold, 1 if one is missed, and 2
if one could not be tested. `--device cpu` rehearses what a CPU can run; no time is a target there.
"""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.shapes import CASES
from benchmarks.step import load_average
from gravity_conformance._output import finite, write

# The seconds that each part may take, the most important first.
LIMITS = {
    "machine": 60,
    "vectors": 80,
    "launches": 60,
    "graph": 60,
    "table": 120,
    "tests": 120,
    "jax_table": 90,
}
RATIO = 0.9  # of the time of torch's fused Adam, at most
KERNELS = 4  # of a step with any number of tensors, at most
EXACT = ("foreach=False", "fused=True")  # and also with capturable=True
FUSED = "gravity_torch.Gravity(fused=True)"  # in the tables


@dataclasses.dataclass(frozen=True)
class Options:
    """What the parts need to know.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        cases: of the tables.
        rounds: of one run.
        runs: of the tables.
    """

    device: str
    cases: tuple[str, ...]
    rounds: int
    runs: int


def run(part: str, options: Options, seconds: float) -> dict[str, Any]:
    """Run a part in its own process, and return its result or the reason why it has none."""
    if seconds <= 0:
        return {"not run": "no time was left"}
    environment = {"CUDA_VISIBLE_DEVICES": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment |= os.environ
    if options.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, given = Path(folder, "part.json"), json.dumps(dataclasses.asdict(options))
        command = [sys.executable, "-m", "benchmarks.gpu_parts", part, given, str(path)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"it took more than {seconds:.0f} s"}
        if not path.exists():
            output = done.stdout.decode("utf-8", "replace")[-2000:]
            return {"error": f"it ended with status {done.returncode}: {output}"}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def targets(parts: dict[str, dict[str, Any]], device: str) -> dict[str, bool | None]:
    """Return whether each target holds; None if it could not be tested."""

    def holds(test: Callable[[Any], bool], *keys: str) -> bool | None:
        """Apply a test to an entry of a result. What raised an error has missed its target."""
        entry: Any = parts.get(keys[0], {}).get("result")
        for key in keys[1:]:
            if entry is None or "error" in entry or "not run" in entry:
                break
            entry = entry.get(key)
        if entry is None or "not run" in entry:
            return None
        return "error" not in entry and test(entry)

    def is_exact(counts: dict[str, Any]) -> bool:
        return all(count["same"] == count["values"] for count in counts.values())

    def is_bounded(counts: dict[str, Any]) -> bool:
        return not any(count["outside"] for count in counts.values())

    found = {}
    for path in ("foreach=False", "foreach=True", "fused=True"):
        name, test = ("exact", is_exact) if path in EXACT else ("bounded", is_bounded)
        for option in ("", ", capturable=True"):
            found[f"{name}: {path}{option}"] = holds(test, "vectors", path + option)
    if device == "cpu":
        return found
    for path in ("fused=True", "fused=True, capturable=True"):
        for number in ("1", "1000"):
            keys = "launches", path, number
            start = f"{path}, {number} tensors"
            found[f"{start}: at most {KERNELS} kernels"] = holds(
                lambda entry: entry["kernels"] <= KERNELS, *keys
            )
            found[f"{start}: the host never waits"] = holds(
                lambda entry: entry["waits"] is None, *keys
            )
    for path in ("foreach=True, capturable=True", "fused=True, capturable=True"):
        found[f"graph replays are exact: {path}"] = holds(
            lambda entry: entry["same"], "graph", path
        )
    for dtype, case in (("float32", "gpt2"), ("bfloat16", "gpt2"), ("bfloat16", "1B")):
        found[f"{case}, {dtype}: at most {RATIO} of Adam"] = holds(
            lambda row: row["ratio"] <= RATIO, "table", dtype, case, FUSED
        )
    found["the tests on a GPU pass"] = holds(
        lambda outcomes: {*outcomes} <= {"passed", "skipped"} and outcomes.get("passed", 0) > 0,
        "tests",
        "outcomes",
    )
    return found


def status(found: dict[str, bool | None]) -> int:
    """Return the exit status for the targets."""
    return 1 if False in found.values() else 2 if None in found.values() else 0


@click.command()
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--part", "parts", type=click.Choice(list(LIMITS)), multiple=True, help="All.")
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="All.")
@click.option("--rounds", type=click.IntRange(min=2), default=10, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.IntRange(min=1), default=300, show_default=True)
def main(
    file: Path,
    device: str,
    parts: tuple[str, ...],
    cases: tuple[str, ...],
    rounds: int,
    runs: int,
    seconds: int,
) -> None:
    """Check gravity_torch and gravity_jax on a GPU, and write one JSON."""
    end = time.monotonic() + seconds
    options = Options(device, cases or tuple(CASES), rounds, runs)
    chosen = [part for part in LIMITS if part == "machine" or not parts or part in parts]
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **dataclasses.asdict(options),
        "load_average": {"start": load_average()},
        "parts": {},
    }
    for part in chosen:
        found = run(part, options, min(LIMITS[part], end - time.monotonic()))
        report["parts"][part] = found
        report["load_average"]["end"] = load_average()
        report["targets"] = targets(report["parts"], device)
        try:  # after each part, for whoever interrupts the check
            write({file: json.dumps(finite(report), indent=1, allow_nan=False) + "\n"})
        except OSError as error:
            raise _CannotRun(f"{file}: {error.strerror}") from error
        why = found.get("error") or found.get("not run")
        if part == "machine" and why is not None:
            raise _CannotRun(why.splitlines()[-1])
        click.echo(f"{part}: {why or 'done'}")
    words = {True: "holds", False: "MISSED", None: "not tested"}
    for name, outcome in report["targets"].items():
        click.echo(f"{words[outcome]:10} {name}")
    sys.exit(status(report["targets"]))


class _CannotRun(click.ClickException):
    exit_code = 2


if __name__ == "__main__":
    main()
