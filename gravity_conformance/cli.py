"""The command ``gravity``."""

import errno
import importlib.util
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import gravity_core
from gravity_conformance._guard import redirected
from gravity_conformance._output import replace
from gravity_conformance.conform import report as conform_reports
from gravity_conformance.conform import runner as conforming
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.conform.checks.subject import DTYPES
from gravity_conformance.drive.spec import KINDS, SpecError
from gravity_conformance.drive.spec import Kind as SpecKind
from gravity_conformance.parity import report as reports
from gravity_conformance.parity import run as runner
from gravity_conformance.parity.page import page
from gravity_conformance.protocol import Kind
from gravity_conformance.vectors.check import check
from gravity_conformance.vectors.explain import explain
from gravity_conformance.vectors.making import writing
from gravity_conformance.versions import versions as lines_of_versions

_FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gravity_core.__version__, prog_name="gravity")
def cli() -> None:
    """The Gravity optimizer: prove that implementations agree."""


@cli.command()
@click.option(
    "--backend",
    "names",
    multiple=True,
    help="Backend to compare (repeatable; default: every installed one).",
)
@click.option(
    "--require", "required", multiple=True, help="Backend that must be installed (repeatable)."
)
@click.option(
    "--also",
    "specs",
    multiple=True,
    metavar="SPEC",
    help="Class or function to compare as well; SPEC as in `gravity conform` (repeatable).",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(runner.DTYPES),
    help="Dtype to compute in (repeatable; default: both).",
)
@click.option("--mode", default="all", type=click.Choice(["eager", "compiled", "all"]))
@click.option(
    "--steps",
    type=click.IntRange(1, 20_000),
    help="Number of updates (default: 900, which is 20 epochs).",
)
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
    specs: tuple[str, ...],
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

    SPEC is module:attribute or path.py:attribute. It is imported into the process of this
    command. Its V₀ may differ from the reference's.
    """
    chosen = _choose(names, required)
    _check_writable("--out must be", out, reports.FILES)
    if html is not None:
        _check_writable("--html must be a file in", html.parent, [html.name])
    report = runner.new_report(seed)
    report.command = _command()
    with redirected(1, 2):
        try:
            # After the backends, so that no module of a SPEC replaces one of theirs.
            backends = runner.load(chosen, report)
            backends |= runner.also(specs)
        except SpecError as error:
            raise click.UsageError(f"--also: {error}") from error
    dtypes = tuple(dict.fromkeys(dtypes)) or runner.DTYPES
    _check_dtypes(backends, dtypes)
    kinds: tuple[Kind, ...] = ("eager", "compiled")
    if mode != "all":
        kinds = tuple(kind for kind in kinds if kind == mode)

    console = Console(stderr=True)
    with (
        redirected(1, 2),
        Progress(
            TextColumn("{task.description}", markup=False),
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
            replace(html, page(report, picture))
        except OSError as error:
            raise click.UsageError(f"--html {str(html)!r} cannot be written: {error}") from error
        paths.append(html)

    if as_json:
        click.echo(paths[0].read_text(encoding="utf-8"), nl=False)
    else:
        _print(report, paths)
    sys.exit(0 if report.passed else 1)


def _listed(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the dtypes of --dtypes."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in DTYPES:
            raise click.BadParameter(f"must be some of {','.join(DTYPES)}, got {name!r}")
    if "float32" not in names:
        raise click.BadParameter(f"must contain float32, got {value!r}")
    return names


def _skipped(file: TextIO) -> list[str]:
    """Return the checks that a file lists."""
    names = [line.partition("#")[0].strip() for line in file]
    for number, name in enumerate(names, start=1):
        if name and name not in CHECKS:
            raise click.UsageError(
                f"--skips must list checks (see --list), got {name!r} in line {number}"
            )
    return [name for name in names if name]


@cli.command()
@click.argument("spec", required=False)
@click.option("--kind", type=click.Choice(KINDS), help="Kind of SPEC (default: detected).")
@click.option(
    "--kw",
    multiple=True,
    metavar="NAME=VALUE",
    help="Constructor argument (repeatable). The VALUE {beta} means that NAME is our beta.",
)
@click.option(
    "--first-step", type=click.Choice(["0", "1"]), help="First value of t (default: detected)."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(CHECKS)),
    help="Check to run (repeatable; default: all).",
)
@click.option(
    "--skip",
    multiple=True,
    type=click.Choice(list(CHECKS)),
    help="Check to leave out (repeatable).",
)
@click.option(
    "--skips",
    type=click.File(encoding="utf-8"),
    help="File with a check to leave out in each line; # starts a comment.",
)
@click.option(
    "--dtypes",
    default=",".join(DTYPES),
    show_default=True,
    callback=_listed,
    help="Dtypes that SPEC offers.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**64 - 1),
    help="Seed of the generated inputs.",
)
@click.option("--quick", "level", flag_value="quick", help="Run the quick checks, on less input.")
@click.option("--thorough", "level", flag_value="thorough", help="Feed more input.")
@click.option("--strict", is_flag=True, help="Count every remark as a difference.")
@click.option("--list", "listed", is_flag=True, help="List the checks and the known mistakes.")
@click.option(
    "--timeout",
    default=conforming.TIMEOUT,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds for the import and for each check.",
)
@click.option(
    "--json",
    "json_file",
    type=_FILE,
    help="File for the report as JSON; - prints JSON instead of the table.",
)
@click.option("--html", "html_file", type=_FILE, help="File for the report as a page with plots.")
def conform(
    spec: str | None,
    kind: SpecKind | None,
    kw: tuple[str, ...],
    first_step: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    skips: TextIO | None,
    dtypes: tuple[str, ...],
    seed: int,
    level: str | None,
    strict: bool,
    listed: bool,
    timeout: float,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Check an implementation of Gravity, and name its mistake.

    SPEC is module:attribute or path.py:attribute: a torch.optim.Optimizer class, an optax
    transformation factory, a Keras optimizer class, or a function of NumPy arrays
    (w, v, g, t, lr, beta) -> (w, v). The exit status is 0 if it conforms, 1 if it differs or a
    check could not run, 2 if nothing could be checked.
    """
    if listed:
        click.echo(conform_reports.listing(), nl=False)
        return
    if spec is None:
        raise click.UsageError("Missing argument 'SPEC'.")
    for item in kw:
        if not item.partition("=")[0].isidentifier() or "=" not in item:
            raise click.UsageError(f"--kw must be NAME=VALUE, got {item!r}")
    if html_file is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--html needs matplotlib: pip install 'gravity-optimizer[cli]'")
    if html_file == Path("-"):
        raise click.UsageError("--html must be a file, got '-'")
    to_stdout = json_file == Path("-")
    for option, file in (("--json", None if to_stdout else json_file), ("--html", html_file)):
        if file is not None and not file.exists():
            _check_writable(f"{option} must be a file in", file.parent, [file.name])
    report = conforming.conform(
        spec,
        kind=kind,
        kw={name: value for name, _, value in (item.partition("=") for item in kw)},
        first_step=None if first_step is None else int(first_step),
        only=only,
        skip=(*skip, *(() if skips is None else _skipped(skips))),
        dtypes=dtypes,
        seed=seed,
        level=level or "default",
        strict=strict,
        timeout=timeout,
        progress=_on_terminal,
    )
    # A terminal cannot encode surrogates.
    shown = conform_reports.as_json(report) if to_stdout else conform_reports.text(report)
    click.echo(shown.encode("utf-8", "backslashreplace").decode("utf-8"), nl=False)
    command = shlex.join(["gravity", *sys.argv[1:]])
    try:
        if json_file is not None and not to_stdout:
            replace(json_file, conform_reports.as_json(report))
        if html_file is not None:
            replace(html_file, conform_reports.page(report, command))
    except OSError as error:
        raise click.UsageError(f"the report cannot be written: {error}") from error
    sys.exit(report.status)


def _on_terminal(title: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{title} …\r", nl=False, err=True)


@cli.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write the vectors, their schemas, examples and README.md to.",
)
@click.option(
    "--check",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File to check (repeatable).",
)
@click.option(
    "--explain",
    "failed",
    type=_FILE,
    help="File of a port's results, to name its mistake; - reads standard input.",
)
def vectors(out: Path | None, files: tuple[Path, ...], failed: Path | None) -> None:
    """Write the conformance vectors, check files of vectors, or explain a port's results.

    Expected values come from exact arithmetic, not from an implementation. The exit status
    is 1 if a checked file has a fault: it violates the schema, its numbers are wrong, or a test
    does not catch a mistake that its flags name. It is 0 after an explanation, whatever it says.
    """
    if [out is not None, bool(files), failed is not None].count(True) != 1:
        raise click.UsageError(
            "vectors takes --out DIR, --explain FILE, or --check FILE one or more times"
        )
    try:
        if failed is not None:
            try:
                with click.open_file(str(failed), encoding="utf-8") as file:
                    click.echo(explain(file.read()))
            except ValueError as error:
                raise click.UsageError(f"--explain {str(failed)!r}: {error}") from error
            return
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


@cli.command()
def versions() -> None:
    """Print the versions and devices that a bug report needs."""
    for line in lines_of_versions():
        click.echo(line)


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


def _command() -> str:
    """Return the command line that reproduces this report."""
    context, words = click.get_current_context(), ["gravity", "parity"]
    for option in context.command.params:
        value = context.params[str(option.name)]
        outputs = option.name in ("out", "as_json", "html")
        if outputs or not value or value == option.get_default(context):
            continue
        for given in value if option.multiple else [value]:
            words += [option.opts[0], str(given)]
    # JSON and UTF-8 cannot hold surrogates.
    return shlex.join(words).encode("utf-8", "backslashreplace").decode("utf-8")


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
    console = Console(markup=False)
    if not console.is_terminal:  # a pipe or a file has no width; 80 columns would break the cells
        longest = max((len(row.backend) for row in report.replays), default=0)
        console = Console(width=100 + longest, markup=False)
    for title, header, rows in (
        (
            f"Recorded gradients, replayed for {report.steps} steps",
            reports.REPLAY_HEADER,
            reports.replay_rows(report),
        ),
        ("Own gradients", reports.TRAINING_HEADER, reports.training_rows(report)),
    ):
        table = Table(*header, title=title, box=box.SIMPLE_HEAD)
        table.columns[0].overflow = "fold"
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for note in [reports.LEGEND, *reports.notes(report)]:
        console.print(f"• {note}", markup=False, highlight=False)
    for path in paths:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    verdict = "every backend present is exact or bounded" if report.passed else "FAILED"
    console.print(f"parity: {verdict}", markup=False, highlight=False)
