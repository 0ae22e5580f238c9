"""Time one optimizer step, side by side with the framework's own optimizer.

    python -m benchmarks.step --backend numpy [--case resnet50] [--rounds 15] [--json FILE]

Every contender is stepped once in each round, so that a disturbance of the machine hits
all alike. What is reported is the ratio of the medians to the baseline's, and the spread:
the quartiles of the ratio within a round. Absolute times go into the JSON only; they hold
for the machine and the moment of the run.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.shapes import CASES, Shape

Step = Callable[[], Any]


def numpy_contenders(shapes: list[Shape]) -> dict[str, Step]:
    """Return the NumPy optimizer and the update written straight, after torch's fused Adam."""
    import torch

    import gravity_core

    torch.set_num_threads(1)  # NumPy's elementwise loops run on one thread
    grads = [np.asarray(np.random.default_rng(0).standard_normal(s, np.float32)) for s in shapes]

    params = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())
    adam = torch.optim.Adam(params, fused=True)

    weights = [np.zeros(s, np.float32) for s in shapes]
    optimizer = gravity_core.Gravity()

    straight_w = [np.zeros(s, np.float32) for s in shapes]
    straight_v = [np.zeros(s, np.float32) for s in shapes]

    def straight() -> None:
        for i, g in enumerate(grads):
            straight_v[i] = gravity_core.update(g, straight_v[i], 1)
            straight_w[i] = straight_w[i] - 0.1 * straight_v[i]

    return {
        "torch.optim.Adam(fused=True), 1 thread": adam.step,
        "gravity_core.Gravity": lambda: optimizer.step(weights, grads),
        "gravity_core.update, straight": straight,
    }


BACKENDS: dict[str, Callable[[list[Shape]], dict[str, Step]]] = {"numpy": numpy_contenders}


def measure(contenders: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every contender's steps, one a round, after two to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-2, rounds):
        for name, step in contenders.items():
            start = time.perf_counter()
            step()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return for every contender the ratio to the first one, and its quartiles over rounds."""
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


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="All.")
@click.option("--rounds", type=click.IntRange(min=2), default=15, show_default=True)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path))
def main(backend: str, cases: tuple[str, ...], rounds: int, path: Path | None) -> None:
    """Time one optimizer step against the framework's own, interleaved."""
    chosen = cases or tuple(CASES)
    results = {}
    for case in chosen:
        contenders = BACKENDS[backend](CASES[case])
        results[case] = summarise(measure(contenders, rounds))
    table = Table("step", *chosen, title=f"{backend}: time as a ratio (quartiles over rounds)")
    for name in results[chosen[0]]:
        cells = (results[case][name] for case in chosen)
        table.add_row(
            name,
            *(f"{c['ratio']:.2f} ({c['quartiles'][0]:.2f}–{c['quartiles'][1]:.2f})" for c in cells),
        )
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    if path is not None:
        report = {
            "backend": backend,
            "rounds": rounds,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "results": results,
        }
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
