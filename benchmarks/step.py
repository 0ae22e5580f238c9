"""Time one optimizer step relative to the framework's own optimizer.

    python -m benchmarks.step --backend numpy [--case resnet50] [--rounds 15] [--json FILE]

Every contender makes one step in each round, in shuffled order, so that a disturbance of the
machine affects all of them. The table shows the ratio of the medians to the baseline's, and the
quartiles of the ratio within a round. `--runs 5` repeats everything, and shows the median of the
ratio over the runs and its range. Absolute times hold for one machine and one run; the JSON also
has the load of the machine at the start and at the end. The case gpt2 needs several gigabytes.

With `--backend torch` each cell also has the picoseconds per element; the bytes per element that a
copy of a large tensor moves in that time, with the same number of threads; and the share of these
bytes that the algorithm needs: see `benchmarks.traffic`. The case 100-groups shows what a group of
parameters costs: each of its tiny tensors has its own.

`--also path.py:Gravity` or `module:Gravity` adds another torch optimizer to the torch table, such
as the original Gravity code, whose license keeps it out of this repository.
"""

import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.profiling import peak_extra_bytes
from benchmarks.shapes import CASES, GROUPED
from benchmarks.traffic import COPY, Traffic
from gravity_conformance._output import checked, write
from gravity_conformance._status import CouldNotError
from gravity_conformance.drive.spec import SpecError, load

Step = Callable[[], Any]
# Each has a module `benchmarks.<name>_step`. Its contenders(shapes, threads) sets the number of
# threads and returns the steps by name, the baseline first.
BACKENDS = ("numpy", "torch", "jax", "tf", "tf_jit")
DTYPES = ("float32", "float64", "bfloat16", "float16")
PACKAGES = (
    *("numpy", "numba", "torch", "triton", "jax", "optax", "tensorflow", "keras"),
    *("pytorch_optimizer", "gravity-optimizer"),
)


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


def summarise(
    seconds: dict[str, list[float]], traffic: Traffic | None = None
) -> dict[str, dict[str, Any]]:
    """Return the ratio of every contender to the first, and its quartiles over the rounds.

    With `traffic`, each also gets the numbers that compare it with the copy.
    """
    baseline, *_ = seconds.values()
    summary: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        ratios = [t / b for t, b in zip(times, baseline, strict=True)]
        lower, _, upper = statistics.quantiles(ratios, n=4)
        summary[name] = {
            "ratio": statistics.median(times) / statistics.median(baseline),
            "quartiles": [lower, upper],
            "median_seconds": statistics.median(times),
        }
        if traffic is not None:
            summary[name] |= traffic.of(name, seconds)
    return summary


def over_runs(summaries: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the median of every number over the runs, and the range of the ratio."""
    merged: dict[str, dict[str, Any]] = {}
    for name, first in summaries[0].items():
        runs = [summary[name] for summary in summaries]
        merged[name] = {key: _median([run[key] for run in runs]) for key in first}
        ratios = [run["ratio"] for run in runs]
        merged[name]["range"] = [min(ratios), max(ratios)]
    return merged


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [_median(list(column)) for column in zip(*values, strict=True)]
    return statistics.median(values)


def _cell(result: dict[str, Any], spread: str) -> str:
    lower, upper = result[spread]
    lines = [f"{result['ratio']:.2f} ({lower:.2f}–{upper:.2f})"]
    if (ps := result.get("picoseconds_per_element")) is not None:
        traffic = f"{ps:.0f} ps, {result['bytes_per_element']:.1f} B"
        share = result.get("share_of_limit")
        lines.append(traffic if share is None else f"{traffic}, {share:.0%}")
    if (extra := result.get("extra_bytes")) is not None:
        lines.append(f"{extra / 2**20:.1f} MiB extra")
    return "\n".join(lines)


def _without(texts: tuple[str, ...], contenders: dict[str, Step]) -> dict[str, Step]:
    """Leave out contenders by a part of their names, but not the baseline and the copy."""
    kept = {next(iter(contenders)), COPY}
    return {
        name: step
        for name, step in contenders.items()
        if name in kept or not any(text in name for text in texts)
    }


def load_average() -> list[float] | None:
    """Return the load of the machine over 1, 5 and 15 minutes; None where it is unknown."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@click.command()
@click.option("--backend", type=click.Choice(BACKENDS), required=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="All.")
@click.option("--rounds", type=click.IntRange(min=2), default=15, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--also", multiple=True, metavar="SPEC", help="Another torch optimizer to time.")
@click.option("--without", multiple=True, metavar="TEXT", help="Leave out steps named like this.")
@click.option("--dtype", type=click.Choice(DTYPES), default=DTYPES[0], help="Of torch's tensors.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    backend: str,
    cases: tuple[str, ...],
    rounds: int,
    runs: int,
    threads: int,
    also: tuple[str, ...],
    without: tuple[str, ...],
    dtype: str,
    file: Path | None,
) -> None:
    """Time one optimizer step relative to the framework's own, interleaved."""
    try:
        outputs = checked([] if file is None else [("--json", file)])
    except CouldNotError as error:
        raise click.UsageError(str(error)) from error
    of_torch = backend == "torch"
    chosen = cases or tuple(case for case in CASES if of_torch or case not in GROUPED)
    for option, given in (
        ("--also", also),
        ("--dtype", dtype != DTYPES[0]),
        *((f"--case {case}", case in chosen) for case in GROUPED),
    ):
        if given and not of_torch:
            raise click.UsageError(f"{option} is for --backend torch, got {backend}")
    try:
        others = {spec: load(spec) for spec in also}
    except SpecError as error:
        raise click.BadParameter(str(error), param_hint="--also") from error
    module = importlib.import_module(f"benchmarks.{backend}_step")
    results, loads = {}, [load_average()]
    for case in chosen:
        shapes, options, traffic = CASES[case], {}, None
        if of_torch:
            options = {"also": others, "dtype": dtype, "grouped": case in GROUPED}
            # The memory does not limit the steps of groups of tiny tensors.
            traffic = None if case in GROUPED else module.traffic(shapes, dtype)
        summaries = []
        for _ in range(runs):
            contenders = _without(without, module.contenders(shapes, threads, **options))
            summaries.append(summarise(measure(contenders, rounds), traffic))
            if of_torch:
                for name, step in contenders.items():
                    summaries[-1][name]["extra_bytes"] = peak_extra_bytes(step)
            del contenders
        results[case] = over_runs(summaries)
    loads.append(load_average())
    device = module.device_name() if of_torch else None
    where = f"{backend} on {device}" if device else backend
    spread, name = ("range", f"range of {runs} runs") if runs > 1 else ("quartiles", "quartiles")
    title = f"{where}, {dtype}, {threads} thread(s): ratio of medians ({name})"
    if of_torch:
        title += "\ntime per element, the bytes that a copy moves in it, the share of the limit"
    table = Table("step", *chosen, title=title)
    for name in results[chosen[0]]:
        if name != COPY:
            table.add_row(name, *(_cell(results[case][name], spread) for case in chosen))
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    for output in outputs:
        report = {
            "backend": backend,
            "date": datetime.date.today().isoformat(),
            "rounds": rounds,
            "runs": runs,
            "threads": threads,
            "dtype": dtype,
            "device": device,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": versions(),
            "load_average": dict(zip(("start", "end"), loads, strict=True)),
            "results": results,
        }
        write({output.path: json.dumps(report, indent=1) + "\n"})


if __name__ == "__main__":
    main()
