"""The command ``gravity``."""

import contextlib
import errno
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import gravity_core
from gravity_core.conformance import parity as runner
from gravity_core.conformance import report as reports
from gravity_core.conformance.page import page
from gravity_core.conformance.protocol import Kind
from gravity_core.conformance.vectors import writing
from gravity_core.conformance.vectors.check import check


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gravity_core.__version__, prog_name="gravity")
def cli() -> None:
    """The Gravity optimizer: prove that implementations agree."""


@cli.command()
@click.option("--backend", "names", multiple=True, help="Backend to compare; repeatable. All.")
@click.option(
    "--require", "required", multiple=True, help="Backend that must be installed; repeatable."
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(runner.DTYPES),
    help="Dtype to compute in; repeatable. Both.",
)
@click.option("--mode", default="all", type=click.Choice(["eager", "compiled", "all"]))
@click.option("--steps", type=click.IntRange(1, 20_000), help="Updates to make. 20 epochs, 900.")
@click.option("--seed", default=0, type=click.IntRange(0, 2**64 - 1), show_default=True)
@click.option(
    "--out",
    default="parity",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for parity.json, parity.md and parity.png.",
)
@click.option("--json", "as_json", is_flag=True, help="Print parity.json in place of the tables.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="File for the whole report as one page, plots included.",
)
def parity(
    names: tuple[str, ...],
    required: tuple[str, ...],
    dtypes: tuple[str, ...],
    mode: str,
    steps: int | None,
    seed: int,
    out: Path,
    as_json: bool,
    html: Path | None,
) -> None:
    """Train one network with every installed backend and prove that they agree.

    Recorded gradients are replayed through each backend and graded exact, bounded or
    divergent against the NumPy reference; then each trains with its own gradients. The
    exit status is 0 only if every backend present is exact or bounded.
    """
    chosen = _choose(names, required)
    _check_writable("--out must be", out, reports.FILES)
    if html is not None:
        _check_writable("--html must be a file in", html.parent, [html.name])
    report = runner.new_report(seed)
    report.command = _command(names, required, dtypes, mode, steps, seed)
    with _stdout_to_stderr():
        backends = runner.load(chosen, report)
    dtypes = tuple(dict.fromkeys(dtypes)) or runner.DTYPES
    _check_dtypes(backends, dtypes)
    kinds: tuple[Kind, ...] = ("eager", "compiled")
    if mode != "all":
        kinds = tuple(kind for kind in kinds if kind == mode)

    console = Console(stderr=True)
    with (
        _stdout_to_stderr(),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as bar,
    ):
        line = bar.add_task("", total=1)
        runner.run(
            report,
            backends,
            dtypes=dtypes,
            kinds=kinds,
            steps=steps,
            progress=lambda what, done, total: bar.update(
                line, description=what, completed=done, total=total
            ),
        )
    report.failures += [
        f"{name}: required, but not installed" for name in required if name in report.not_installed
    ]
    if not report.replays:
        report.failures.append("nothing was compared")
    try:
        paths = reports.write(report, out)
    except OSError as error:
        raise click.UsageError(f"--out {str(out)!r} cannot be written: {error}") from error
    if html is not None:
        picture = (out / "parity.png").read_bytes()
        try:
            reports.replace(html, page(report, picture))
        except OSError as error:
            raise click.UsageError(f"--html {str(html)!r} cannot be written: {error}") from error
        paths.append(html)

    if as_json:
        click.echo(paths[0].read_text(encoding="utf-8"), nl=False)
    else:
        _print(report, paths)
    sys.exit(0 if report.passed else 1)


@cli.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write the vectors, their schema and README.md to.",
)
@click.option(
    "--check", "files", multiple=True, type=click.Path(path_type=Path), help="File; repeatable."
)
def vectors(out: Path | None, files: tuple[Path, ...]) -> None:
    """Write the conformance vectors, or verify files of them.

    Expected values come from exact arithmetic, not from an implementation. The exit status
    is 1 if a file that was checked has a fault, by the schema or by the mathematics.
    """
    if (out is None) == (not files):
        raise click.UsageError("vectors takes --out DIR, or --check FILE one or more times")
    try:
        if out is not None:
            for path in writing.write(out):
                click.echo(f"wrote {path}")
            return
        faults = {path: check(path) for path in files}
    except ModuleNotFoundError as error:
        needed = "pip install 'gravity-optimizer[cli]'"
        raise click.UsageError(f"vectors needs {error.name}: {needed}") from error
    except OSError as error:
        raise click.UsageError(f"{error.filename}: {error.strerror}") from error
    for path, lines in faults.items():
        for line in lines or ["no fault"]:
            click.echo(f"{path}: {line}")
    sys.exit(any(faults.values()))


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep what backends print out of the report, which may be read by a program."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        yield
        return
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _choose(names: tuple[str, ...], required: tuple[str, ...]) -> list[str]:
    try:
        known = list(runner.entry_points())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for option, values in (("--backend", names), ("--require", required)):
        for name in values:
            if name not in known:
                raise click.UsageError(f"{option} must be one of {', '.join(known)}, got {name!r}")
    return [name for name in known if not names or name in (*names, *required)]


def _command(
    names: tuple[str, ...],
    required: tuple[str, ...],
    dtypes: tuple[str, ...],
    mode: str,
    steps: int | None,
    seed: int,
) -> str:
    """Return the command line that makes this report again."""
    options: list[tuple[str, str]] = []
    for option, values in (("--backend", names), ("--require", required), ("--dtype", dtypes)):
        options += [(option, value) for value in values]
    options += [("--mode", mode)] if mode != "all" else []
    options += [("--steps", str(steps))] if steps is not None else []
    options += [("--seed", str(seed))] if seed else []
    return shlex.join(["gravity", "parity", *(word for pair in options for word in pair)])


def _check_writable(what: str, folder: Path, files: Sequence[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in files:
            if not name or (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"its {name} is a folder")
    except OSError as error:
        reason = error.strerror or error
        raise click.UsageError(
            f"{what} a writable folder, got {str(folder)!r}: {reason}"
        ) from error


def _check_dtypes(backends: dict[str, runner.Loaded], dtypes: tuple[str, ...]) -> None:
    for name, loaded in backends.items():
        for dtype in dtypes:
            if dtype not in loaded.dtypes:
                raise click.UsageError(
                    f"--dtype must be one of {', '.join(loaded.dtypes)} for the backend "
                    f"{name}, got {dtype!r}"
                )


def _print(report: runner.Report, paths: list[Path]) -> None:
    console = Console()
    if not console.is_terminal:  # a pipe or a file has no width; 80 columns would break the cells
        console = Console(width=110)
    for title, header, rows in (
        (
            f"Recorded gradients, replayed for {report.steps} steps",
            reports.REPLAY_HEADER,
            reports.replay_rows(report),
        ),
        ("Own gradients", reports.TRAINING_HEADER, reports.training_rows(report)),
    ):
        table = Table(*header, title=title, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in [reports.LEGEND, *reports.notes(report)]:
        console.print(f"• {note}", markup=False, highlight=False)
    for path in paths:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    verdict = "every backend present is exact or bounded" if report.passed else "FAILED"
    console.print(f"parity: {verdict}", markup=False, highlight=False)
