"""Time one optimizer step relative to the framework's own optimizer.

    python -m benchmarks.step --backend numpy [--case resnet50] [--rounds 15] [--json FILE]

Every contender makes one step in each round, in shuffled order, so that a disturbance of the
machine affects all of them. The table shows the ratio of the medians to the baseline's, and the
quartiles of the ratio within a round. Only the JSON has absolute times, which hold for one machine
and one run. The case gpt2 needs several gigabytes.

`--also path.py:Gravity` or `module:Gravity` adds another torch optimizer to the torch table, such
as the original Gravity code, whose license keeps it out of this repository.
"""

import importlib
import importlib.metadata
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.memory import peak_extra_bytes
from benchmarks.shapes import CASES
from gravity_conformance.drive.spec import SpecError, load

Step = Callable[[], Any]
# Each has a module `benchmarks.<name>_step`. Its contenders(shapes, threads) sets the number of
# threads and returns the steps by name, the baseline first.
BACKENDS = ("numpy", "torch", "jax", "tf", "tf_jit")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def measure(contenders: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every contender's steps, one per round, after two warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    for number in range(-2, rounds):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            contenders[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return the ratio of every contender to the first, and its quartiles over the rounds."""
    baseline, *_ = seconds.values()
    summary = {}
    for name, times in seconds.items():
        ratios = [t / b for t, b in zip(times, baseline, strict=True)]
        lower, _, upper = statistics.quantiles(ratios, n=4)
        summary[name] = {
            "ratio": statistics.median(times) / statistics.median(baseline),
            "quartiles": [lower, upper],
            "median_seconds": statistics.median(times),
        }
    return summary


def _cell(result: dict[str, Any]) -> str:
    lower, upper = result["quartiles"]
    cell = f"{result['ratio']:.2f} ({lower:.2f}–{upper:.2f})"
    extra = result.get("extra_bytes")
    return cell if extra is None else f"{cell}\n{extra / 2**20:.1f} MiB extra"


def _versions() -> dict[str, str]:
    found = {}
    names = ("numpy", "torch", "jax", "tensorflow", "pytorch_optimizer", "gravity-optimizer")
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@click.command()
@click.option("--backend", type=click.Choice(BACKENDS), required=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="All.")
@click.option("--rounds", type=click.IntRange(min=2), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--also", multiple=True, metavar="SPEC", help="Another torch optimizer to time.")
@click.option("--dtype", type=click.Choice(DTYPES), default=DTYPES[0], help="Of torch's tensors.")
@click.option("--json", "file", type=click.File("w", encoding="utf-8", lazy=False))
def main(
    backend: str,
    cases: tuple[str, ...],
    rounds: int,
    threads: int,
    also: tuple[str, ...],
    dtype: str,
    file: Any,
) -> None:
    """Time one optimizer step relative to the framework's own, interleaved."""
    chosen = cases or tuple(CASES)
    for option, given in (("--also", also), ("--dtype", dtype != DTYPES[0])):
        if given and backend != "torch":
            raise click.UsageError(f"{option} is for --backend torch, got {backend}")
    try:
        others = {spec: load(spec) for spec in also}
    except SpecError as error:
        raise click.BadParameter(str(error), param_hint="--also") from error
    module = importlib.import_module(f"benchmarks.{backend}_step")
    options = {"also": others, "dtype": dtype} if backend == "torch" else {}
    results = {}
    for case in chosen:
        contenders = module.contenders(CASES[case], threads, **options)
        results[case] = summarise(measure(contenders, rounds))
        if backend == "torch":
            for name, step in contenders.items():
                results[case][name]["extra_bytes"] = peak_extra_bytes(step)
        del contenders
    device = module.device_name() if backend == "torch" else None
    where = f"{backend} on {device}" if device else backend
    run = f"{where}, {dtype}, {threads} thread(s)"
    title = f"{run}: ratio of medians (quartiles of the rounds' ratios)"
    table = Table("step", *chosen, title=title)
    for name in results[chosen[0]]:
        cells = (results[case][name] for case in chosen)
        table.add_row(name, *map(_cell, cells))
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    if file is not None:
        report = {
            "backend": backend,
            "rounds": rounds,
            "threads": threads,
            "dtype": dtype,
            "device": device,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": _versions(),
            "results": results,
        }
        file.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
