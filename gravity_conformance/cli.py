"""The command ``gravity``."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

import gravity_core
from gravity_conformance import _terminal
from gravity_conformance._guard import one_line, visible
from gravity_conformance._output import Output, check_no_links, checked, write
from gravity_conformance._process import check_timeout
from gravity_conformance._status import (
    COULD_NOT,
    DIFFERS,
    MEANINGS,
    RIGHT,
    cannot_write,
    complain,
    emit,
    emit_json,
)
from gravity_conformance.conform import report as conform_reports
from gravity_conformance.conform import runner as conforming
from gravity_conformance.conform.checks.registry import CHECKS, selected
from gravity_conformance.conform.checks.subject import DTYPES
from gravity_conformance.drive.spec import KINDS, SpecError, place_and_attribute
from gravity_conformance.drive.spec import Kind as SpecKind
from gravity_conformance.drive.spec import files as source_files
from gravity_conformance.explain import explain
from gravity_conformance.parity import connection, plots
from gravity_conformance.parity import report as reports
from gravity_conformance.parity import run as runner
from gravity_conformance.parity.page import page
from gravity_conformance.protocol import Kind
from gravity_conformance.vectors.check import LARGEST, check
from gravity_conformance.vectors.making import writing
from gravity_conformance.versions import versions as lines_of_versions
from gravity_core import _files


class _Path(click.Path):
    """The path of an output; no text is no path, but an unset variable of a shell."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse no text, which would be the current folder."""
        if value == "":
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


_FILE = _Path(dir_okay=False, allow_dash=True, path_type=Path)
# Not docstrings, which -OO drops.
_HELP = {
    "cli": "The Gravity optimizer: prove that implementations agree.",
    "parity": """\
Train one network with every installed backend and prove that they agree.

Recorded gradients are replayed through each backend and graded exact, bounded or
divergent against the NumPy reference; then each trains with its own gradients. The
exit status is 0 only if every backend present is exact or bounded. It is 2 at once if a backend
that --backend or --require names is missing.

SPEC is module:attribute or path.py:attribute. Its V₀ may differ from the reference's. Each
backend and each SPEC runs in a process of its own.
""",
    "conform": """\
Check an implementation of Gravity, and name its mistake.

SPEC is module:attribute or path.py:attribute: a torch.optim.Optimizer class, an optax
transformation factory, a Keras optimizer class, or a function of NumPy arrays
(w, v, g, t, lr, beta) -> (w, v). The exit status is 0 if it conforms, 1 if it differs or a
check could not run, 2 if nothing could be checked.
""",
    "vectors": """\
Write the conformance vectors, check files of vectors, or explain a port's results.

Expected values come from exact arithmetic, not from an implementation. The exit status
is 1 if a checked file has a fault: it violates the schema, its numbers are wrong, or a test
does not catch a mistake that its flags name. It is 0 after an explanation, whatever it says.
""",
    "versions": "Print the versions and devices that a bug report needs.",
}
_STATUSES = "\n".join(f"  {status:<4} {meaning}" for status, meaning in MEANINGS.items())


def _seconds(context: click.Context, option: click.Parameter, value: float) -> float:
    try:
        return check_timeout(value)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error


@click.group(
    help=_HELP["cli"],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\nExit status:\n{_STATUSES}",
)
@click.version_option(gravity_core.__version__, prog_name="gravity")
def cli() -> None:
    """The Gravity optimizer: prove that implementations agree."""


@cli.command(help=_HELP["parity"])
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
    type=_Path(file_okay=False, path_type=Path),
    help="Folder for parity.json, parity.md and parity.png.",
)
@click.option(
    "--force", is_flag=True, help="Replace files of these names that no earlier run has written."
)
@click.option(
    "--timeout",
    default=connection.TIMEOUT,
    show_default=True,
    type=float,
    callback=_seconds,
    help="Seconds for a backend's import, each of its steps, and its training.",
)
@click.option("--json", "as_json", is_flag=True, help="Print parity.json in place of the tables.")
@click.option(
    "--html",
    type=_Path(path_type=Path),
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
    force: bool,
    timeout: float,
    as_json: bool,
    html: Path | None,
) -> int:
    """Train one network with every installed backend and prove that they agree."""
    chosen = _choose(names, required)
    check_no_links("--out", out, reports.FILES)
    if not force:
        reports.check_folder(out)
    files = [("--out", out / name) for name in reports.FILES]
    inputs = [(f"--also {spec}", file) for spec in specs for file in source_files(spec)]
    outputs = checked(files if html is None else [*files, ("--html", html)], inputs)
    _check_specs(specs)
    _check_installed("parity", "sklearn")
    if html is not None:
        _check_installed("--html", "matplotlib")
    if not names and not specs:
        # Of all backends, Keras is the one on TensorFlow, which is its default.
        os.environ.pop("KERAS_BACKEND", None)
    report = runner.new_report(seed)
    report.command = _command()
    dtypes = tuple(dict.fromkeys(dtypes)) or runner.DTYPES
    kinds: tuple[Kind, ...] = ("eager", "compiled")
    if mode != "all":
        kinds = tuple(kind for kind in kinds if kind == mode)
    with _terminal.progress() as advance, connection.processes(chosen, specs, timeout) as started:
        backends = _imported(started, (*names, *required), report, advance)
        _check_dtypes(backends, dtypes)
        runner.run(report, backends, dtypes=dtypes, kinds=kinds, steps=steps, progress=advance)
        if not report.replays:
            report.failures.append("nothing was compared")
        try:
            paths = reports.write(report, out)
        except OSError as error:
            raise click.UsageError(cannot_write(f"--out {str(out)!r}", error)) from error
        advance("plots", 0, 0)
        drawings = []
        if _is_installed("matplotlib"):
            picture = outputs[reports.FILES.index(reports.PICTURE)]
            drawings.append(_drawn(picture, lambda: plots.picture(report), paths))
        else:
            needed = "it needs matplotlib: pip install 'gravity-optimizer[cli]'"
            complain(f"gravity: {reports.PICTURE} is not drawn: {needed}")
        if html is not None:
            drawings.append(_drawn(outputs[-1], lambda: page(report), paths))
    if as_json:
        emit_json(reports.as_json(report))
    else:
        _terminal.show(reports.parts(report, paths))
    return reports.status(report) if all(drawings) else COULD_NOT


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def _check_installed(what: str, package: str) -> None:
    if not _is_installed(package):
        raise click.UsageError(f"{what} needs {package}: pip install 'gravity-optimizer[cli]'")


def _listed(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the dtypes of --dtypes."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in DTYPES:
            raise click.BadParameter(f"must be some of {','.join(DTYPES)}, got {name!r}")
    if "float32" not in names:
        raise click.BadParameter(f"must contain float32, got {value!r}")
    return names


def _skipped(file: Path) -> list[str]:
    """Return the checks that a file lists."""
    lines = _text("--skips", file).splitlines()
    names = [line.partition("#")[0].strip() for line in lines]
    for number, name in enumerate(names, start=1):
        if name and name not in CHECKS:
            raise click.UsageError(
                f"--skips must list checks (see --list), got {name!r} in line {number}"
            )
    return [name for name in names if name]


@cli.command(help=_HELP["conform"])
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
    type=_FILE,
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
    type=float,
    callback=_seconds,
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
    skips: Path | None,
    dtypes: tuple[str, ...],
    seed: int,
    level: str | None,
    strict: bool,
    listed: bool,
    timeout: float,
    json_file: Path | None,
    html_file: Path | None,
) -> int:
    """Check an implementation of Gravity, and name its mistake."""
    if listed:
        emit(conform_reports.listing())
        return RIGHT
    if spec is None:
        raise click.UsageError("Missing argument 'SPEC'.")
    for item in kw:
        if not item.partition("=")[0].isidentifier() or "=" not in item:
            raise click.UsageError(f"--kw must be NAME=VALUE, got {item!r}")
    if html_file is not None:
        _check_installed("--html", "matplotlib")
    to_stdout = json_file == Path("-")
    files = (("--json", None if to_stdout else json_file), ("--html", html_file))
    inputs = [("SPEC", file) for file in source_files(spec)]
    if skips is not None:
        inputs.append(("--skips", skips))
    outputs = {
        output.option: output
        for output in checked(((option, file) for option, file in files if file), inputs)
    }
    skip = (*skip, *(() if skips is None else _skipped(skips)))
    level = level or "default"
    with _terminal.progress() as advance:
        report = conforming.conform(
            spec,
            kind=kind,
            kw={name: value for name, _, value in (item.partition("=") for item in kw)},
            first_step=None if first_step is None else int(first_step),
            only=only,
            skip=skip,
            dtypes=dtypes,
            seed=seed,
            level=level,
            strict=strict,
            timeout=timeout,
            progress=_of_checks(selected(level, only, skip), advance),
        )
    # First the results, which a failure to draw must not lose.
    if (output := outputs.get("--json")) is not None:
        try:
            write({output.path: conform_reports.as_json(report)})
        except OSError as error:
            raise click.UsageError(cannot_write(output, error)) from error
    if to_stdout:
        emit_json(conform_reports.as_json(report))
    else:
        _terminal.show(conform_reports.parts(report))
    if (output := outputs.get("--html")) is not None:
        command = shlex.join(["gravity", *sys.argv[1:]])
        if not _drawn(output, lambda: conform_reports.page(report, command), []):
            return COULD_NOT
    return report.status


def _of_checks(names: Sequence[str], advance: _terminal.Advance) -> Callable[[str], None]:
    """Return the function that shows which of some checks runs."""
    titles = [CHECKS[name].title for name in names]
    advance("import", 0, len(titles))

    def started(title: str) -> None:
        what = f"{title}: compiling" if title == CHECKS["compiled"].title else title
        advance(what, titles.index(title) if title in titles else 0, len(titles))

    return started


def _drawn(output: Output, draw: Callable[[], str | bytes], paths: list[Path]) -> bool:
    """Write a file with plots and add its path, or say why that failed; return whether it is there.

    A failure is that of matplotlib, its fonts or the disk. It must not lose the results.
    """
    try:
        content = draw()
    except Exception as error:
        complain(f"gravity: {output} cannot be drawn: {one_line(error)}")
        return False
    try:
        write({output.path: content})
    except OSError as error:
        complain(f"gravity: {cannot_write(output, error)}")
        return False
    paths.append(output.given)
    return True


@cli.command(help=_HELP["vectors"])
@click.option(
    "--out",
    type=_Path(file_okay=False, path_type=Path),
    help="New folder to write the vectors, their schemas, examples and README.md to.",
)
@click.option("--force", is_flag=True, help="Write to --out although it holds other things.")
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
def vectors(out: Path | None, force: bool, files: tuple[Path, ...], failed: Path | None) -> int:
    """Write the conformance vectors, check files of vectors, or explain a port's results."""
    if [out is not None, bool(files), failed is not None].count(True) != 1:
        raise click.UsageError(
            "vectors takes --out DIR, --explain FILE, or --check FILE one or more times"
        )
    if force and out is None:
        raise click.UsageError("--force needs --out")
    try:
        explanation = None if failed is None else _explained(failed)
        written = [] if out is None else _written(out, force)
        faults = {path: check(path) for path in files}
    except ModuleNotFoundError as error:
        needed = "pip install 'gravity-optimizer[cli]'"
        raise click.UsageError(f"vectors needs {error.name}: {needed}") from error
    except OSError as error:
        name = error.filename or "a file"
        raise click.UsageError(f"{name}: {error.strerror or error}") from error
    if explanation is not None:
        emit(f"{explanation}\n")
    for path in written:
        emit(f"wrote {visible(str(path))}\n")
    for path, lines in faults.items():
        for line in lines or ["no fault"]:
            emit(f"{visible(f'{path}: {line}')}\n")
    return DIFFERS if any(faults.values()) else RIGHT


def _written(out: Path, force: bool) -> list[Path]:
    try:
        return writing.write(out, force=force)
    except OSError as error:
        raise click.UsageError(cannot_write(f"--out {str(out)!r}", error)) from error


def _text(option: str, file: Path) -> str:
    """Return the text of a file that an option names; - is standard input."""
    name = f"{option} {str(file)!r}"
    try:
        opened = click.open_file("-", "rb") if str(file) == "-" else _files.open_input(file)
        with opened as source:
            data: bytes = source.read(LARGEST + 1)
    except OSError as error:
        raise click.UsageError(f"{name} cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST:
        raise click.UsageError(f"{name} is larger than {LARGEST:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} must be text in UTF-8: {error}") from error


def _explained(file: Path) -> str:
    text = _text("--explain", file)
    try:
        return explain(text)
    except ValueError as error:
        raise click.UsageError(f"--explain {str(file)!r}: {error}") from error


@cli.command(help=_HELP["versions"])
def versions() -> int:
    """Print the versions and devices that a bug report needs."""
    for line in lines_of_versions():
        emit(f"{line}\n")
    return RIGHT


def _choose(names: tuple[str, ...], required: tuple[str, ...]) -> list[str]:
    try:
        known = list(connection.entry_points())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for option, values in (("--backend", names), ("--require", required)):
        for name in values:
            if name not in known:
                raise click.UsageError(f"{option} must be one of {', '.join(known)}, got {name!r}")
    return [name for name in known if not names or name in (*names, *required)]


def _check_specs(specs: Sequence[str]) -> None:
    """Refuse a SPEC that can name nothing, before anything is imported."""
    try:
        for spec in specs:
            place_and_attribute(spec)
    except SpecError as error:
        raise click.UsageError(f"--also: {error}") from error


def _imported(
    started: Mapping[str, connection.Speaker],
    asked: Sequence[str],
    report: runner.Report,
    advance: _terminal.Advance,
) -> dict[str, connection.Connection]:
    """Wait until the backends and the SPECs are imported.

    Those that the user asked for come first, and one that cannot be imported ends the command.
    """
    found: dict[str, connection.Connection] = {}
    points = connection.entry_points()
    for name in sorted(started, key=lambda name: name in points and name not in asked):
        advance(f"{name}: import", 0, 0)
        backend = runner.imported(name, started[name], report)
        if backend is not None:
            found[name] = backend
        elif name not in points:
            raise click.UsageError(f"--also: {report.failures[-1].removeprefix(f'{name}: ')}")
        elif name in asked:
            if (missing := report.not_installed.get(name)) is not None:
                raise click.UsageError(f"the backend {name} is not installed (no {missing})")
            raise click.UsageError(f"the backend cannot be imported: {report.failures[-1]}")
    return {name: found[name] for name in started if name in found}


def _command() -> str:
    """Return the command line that reproduces this report."""
    context, words = click.get_current_context(), ["gravity", "parity"]
    for option in context.command.params:
        value = context.params[str(option.name)]
        outputs = option.name in ("out", "force", "as_json", "html", "timeout")
        if outputs or not value or value == option.get_default(context):
            continue
        for given in value if option.multiple else [value]:
            words += [option.opts[0], str(given)]
    # JSON and UTF-8 cannot hold surrogates.
    return shlex.join(words).encode("utf-8", "backslashreplace").decode("utf-8")


def _check_dtypes(backends: Mapping[str, connection.Connection], dtypes: tuple[str, ...]) -> None:
    for name, loaded in backends.items():
        for dtype in dtypes:
            if dtype not in loaded.dtypes:
                raise click.UsageError(
                    f"--dtype must be one of {', '.join(loaded.dtypes)} for the backend "
                    f"{name}, got {dtype!r}"
                )
