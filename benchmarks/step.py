"""Time one optimizer step, side by side with the framework's own optimizer.

    python -m benchmarks.step --backend numpy [--case resnet50] [--rounds 15] [--json FILE]

Every contender is stepped once in each round, in an order that is shuffled, so that a
disturbance of the machine hits all alike. What is reported is the ratio of the medians to the
baseline's, and behind it the spread: the quartiles of the ratio within a round. Absolute times
go into the JSON only; they hold for the machine and the moment of the run. The case gpt2 needs
several gigabytes.
"""

import importlib.metadata
import importlib.util
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.memory import peak_extra_bytes
from benchmarks.shapes import CASES, Shape

Step = Callable[[], Any]


def _gradients(shapes: list[Shape]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.asarray(0.1 * rng.standard_normal(s, np.float32)) for s in shapes]


def _torch_parameters(shapes: list[Shape]) -> list[Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    params = [torch.nn.Parameter(torch.zeros(s, device=device)) for s in shapes]
    for p, g in zip(params, _gradients(shapes), strict=True):
        p.grad = torch.from_numpy(g).to(device)
    return params


def numpy_contenders(shapes: list[Shape], threads: int) -> dict[str, Step]:
    """Return the NumPy optimizer and the update written straight, after torch's fused Adam."""
    import torch

    import gravity_core

    torch.set_num_threads(threads)
    grads = _gradients(shapes)
    adam = torch.optim.Adam(_torch_parameters(shapes), fused=True)
    weights = [np.zeros(s, np.float32) for s in shapes]
    optimizer = gravity_core.Gravity()
    straight_w = [np.zeros(s, np.float32) for s in shapes]
    straight_v = [np.zeros(s, np.float32) for s in shapes]

    def straight() -> None:
        for i, g in enumerate(grads):
            straight_v[i] = gravity_core.update(g, straight_v[i], 1)
            straight_w[i] = straight_w[i] - 0.1 * straight_v[i]

    return {
        "torch.optim.Adam(fused=True)": adam.step,
        "gravity_core.Gravity": lambda: optimizer.step(weights, grads),
        "gravity_core.update, straight": straight,
    }


def torch_contenders(shapes: list[Shape], threads: int) -> dict[str, Step]:
    """Return the paths of gravity_torch.Gravity, after torch's fused Adam and fused SGD."""
    import torch

    from gravity_torch import Gravity

    torch.set_num_threads(threads)
    optimizers: dict[str, Any] = {
        "torch.optim.Adam(fused=True)": lambda p: torch.optim.Adam(p, fused=True),
        "torch.optim.SGD(momentum, fused=True)": lambda p: torch.optim.SGD(
            p, momentum=0.9, fused=True
        ),
        "gravity_torch.Gravity()": lambda p: Gravity(p),
        "gravity_torch.Gravity(fused=True)": lambda p: Gravity(p, fused=True),
        "gravity_torch.Gravity(foreach=False)": lambda p: Gravity(p, foreach=False),
    }
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import Gravity as Other

        optimizers["pytorch_optimizer.Gravity()"] = lambda p: Other(p)

    def step(make: Callable[[Any], Any]) -> Step:
        optimizer = make(_torch_parameters(shapes))

        def timed() -> None:
            optimizer.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return timed

    return {name: step(make) for name, make in optimizers.items()}


BACKENDS: dict[str, Callable[[list[Shape], int], dict[str, Step]]] = {
    "numpy": numpy_contenders,
    "torch": torch_contenders,
}


def measure(contenders: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every contender's steps, one a round, after two to warm up."""
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


def _cell(result: dict[str, Any]) -> str:
    lower, upper = result["quartiles"]
    cell = f"{result['ratio']:.2f} ({lower:.2f}–{upper:.2f})"
    extra = result.get("extra_bytes")
    return cell if extra is None else f"{cell}\n{extra / 2**20:.1f} MiB extra"


def _versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "torch", "jax", "tensorflow", "gravity-optimizer"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), required=True)
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="All.")
@click.option("--rounds", type=click.IntRange(min=2), default=15, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--json", "file", type=click.File("w", encoding="utf-8", lazy=False))
def main(backend: str, cases: tuple[str, ...], rounds: int, threads: int, file: Any) -> None:
    """Time one optimizer step against the framework's own, interleaved."""
    chosen = cases or tuple(CASES)
    results = {}
    for case in chosen:
        contenders = BACKENDS[backend](CASES[case], threads)
        results[case] = summarise(measure(contenders, rounds))
        if backend == "torch":
            for name, step in contenders.items():
                results[case][name]["extra_bytes"] = peak_extra_bytes(step)
        del contenders
    title = f"{backend}, {threads} thread(s): ratio of medians (quartiles of the rounds' ratios)"
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
            "machine": platform.machine(),
            "python": platform.python_version(),
            "versions": _versions(),
            "results": results,
        }
        file.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
