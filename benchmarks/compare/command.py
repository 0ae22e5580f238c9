"""The command: run the cells that are missing, and make the report."""

import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import click
from joblib import Parallel, delayed, parallel_config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.compare import protocol, store
from benchmarks.compare.optimizers import OPTIMIZERS
from benchmarks.compare.problems import with_images
from benchmarks.data import MD5, has_images, load_images
from gravity_conformance._output import checked, write
from gravity_conformance._status import RIGHT, CouldNotError

NAMES = (*with_images(None), *protocol.STUDIES)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(invoke_without_command=True)
@click.option("--out", type=FOLDER, default="compare", show_default=True, help="For the results.")
@click.option("--problem", "problems", type=click.Choice(NAMES), multiple=True, help="All.")
@click.option(
    "--optimizer", "optimizers", type=click.Choice(list(OPTIMIZERS)), multiple=True, help="All."
)
@click.option(
    "--budget",
    type=click.FloatRange(0, 16, min_open=True),
    default=1.0,
    show_default=True,
    help="A factor of the work; rates, seeds and steps get its root.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes. One for each core.")
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Has the folders mnist and fashion-mnist with IDX files.",
)
@click.pass_context
def cli(
    context: click.Context,
    out: Path,
    problems: tuple[str, ...],
    optimizers: tuple[str, ...],
    budget: float,
    jobs: int | None,
    data_dir: Path | None,
) -> int | None:
    """Compare Gravity with other optimizers: each at its best learning rate, on fresh seeds.

    The results are a JSON for each pair of problem and optimizer in the folder --out. A run that
    was interrupted continues there. The default budget takes about 35 minutes on two quiet cores.
    """
    if context.invoked_subcommand is not None:
        return None
    if not math.isfinite(budget):
        raise CouldNotError(f"--budget must be a finite number, got {budget}")
    chosen = problems or _available(data_dir)
    _check_images([name for name in chosen if name in PROBLEMS_WITH_IMAGES], data_dir)
    store.begin(out, store.new_plan(budget))
    pairs = [
        (name, optimizer)
        for name in sorted(chosen, key=NAMES.index)
        for optimizer in optimizers or OPTIMIZERS
        if not store.path_of(out, name, optimizer).exists()
    ]
    # Those that take longest come first, so that no core is left with one at the end.
    pairs.sort(key=lambda pair: pair[0] not in (*protocol.STUDIES, "transformer"))
    _run(pairs, out, budget, data_dir, jobs or os.cpu_count() or 1)
    return RIGHT


PROBLEMS_WITH_IMAGES = {
    name: problem.images for name, problem in with_images(None).items() if problem.images
}


def _available(data_dir: Path | None) -> tuple[str, ...]:
    """Return all problems; those with images only if their files are there."""
    if data_dir is not None and not any(has_images(name, data_dir) for name in MD5):
        _check_images(list(PROBLEMS_WITH_IMAGES), data_dir)
    return tuple(
        name
        for name in NAMES
        if name not in PROBLEMS_WITH_IMAGES
        or (data_dir is not None and has_images(PROBLEMS_WITH_IMAGES[name], data_dir))
    )


def _check_images(names: list[str], data_dir: Path | None) -> None:
    """Read the files of problems with images, so that a wrong one is named before all work."""
    for name in names:
        if data_dir is None:
            raise CouldNotError(f"--problem {name} needs --data-dir: it has its own data")
        load_images(PROBLEMS_WITH_IMAGES[name], data_dir)


def _run(
    pairs: list[tuple[str, str]], out: Path, budget: float, data_dir: Path | None, jobs: int
) -> None:
    seconds: dict[str, float] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress,
        parallel_config("loky", inner_max_num_threads=1) if jobs > 1 else parallel_config(),
    ):
        bar = progress.add_task("cells", total=len(pairs))
        work = Parallel(n_jobs=min(jobs, max(1, len(pairs))), return_as="generator_unordered")
        parent = os.getpid()
        for name, used in work(
            delayed(make_cell)(*pair, out, budget, data_dir, parent) for pair in pairs
        ):
            seconds[name] = seconds.get(name, 0.0) + used
            progress.update(bar, advance=1, description=name)
    table = Table("problem", "CPU seconds", title=f"{len(pairs)} cells made in {out}")
    for name, used in seconds.items():
        table.add_row(name, f"{used:.0f}")
    Console().print(table)


def make_cell(
    name: str, optimizer: str, out: Path, budget: float, data_dir: Path | None, parent: int
) -> tuple[str, float]:
    """Make one cell, write it, and return the CPU seconds that it took."""
    if os.getpid() != parent:
        _end_with(parent)
    start = time.process_time()
    problems, method = with_images(data_dir), OPTIMIZERS[optimizer]
    if name in protocol.STUDIES:
        study = protocol.STUDIES[name]
        plan = protocol.SMALL.scaled(budget)
        found = protocol.study_cell(study, problems[study.problem], method, plan)
    else:
        problem = problems[name]
        plan = (protocol.SMALL if problem.small else protocol.FULL).scaled(budget)
        found = protocol.cell(problem, method, plan)
    store.write_cell(out, name, optimizer, found)
    return name, time.process_time() - start


_FOLLOWED: set[int] = set()


def _end_with(parent: int) -> None:
    """End this process with its parent, also if that is killed."""
    if parent in _FOLLOWED:
        return
    _FOLLOWED.add(parent)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@cli.command("report")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Of numbers.")
@click.option("--plots", type=FOLDER, help="A folder for the figures.")
def write_report(folder: Path, file: Path | None, plots: Path | None) -> int:
    """Print what the results in FOLDER say, and write them as one JSON and as figures."""
    from benchmarks.compare.report import as_text, report

    outputs = checked([] if file is None else [("--json", file)])
    found = report(folder)
    _print(found)
    for output in outputs:
        write({output.path: as_text(found)})
    if plots is not None:
        from benchmarks.compare.plots import save

        save(found, plots)
    return RIGHT


def _print(found: dict[str, Any]) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    titles = [optimizer["title"] for optimizer in found["optimizers"].values()]
    for key, words in (("tuned", "* ties with the best"), ("untuned", "at the default rate")):
        table = Table("", *titles, title=f"median error on test ({words})")
        for problem in found["problems"].values():
            row = [problem["title"]]
            for name in found["optimizers"]:
                result = problem["results"].get(name)
                star = "*" if result and key == "tuned" and result["ties_with_best"] else ""
                row.append(f"{result[key]['median']:.3g}{star}" if result else "")
            table.add_row(*row)
        console.print(table)
    if found["missing"]:
        click.echo(f"{len(found['missing'])} cells are missing, {found['missing'][0]} first")
