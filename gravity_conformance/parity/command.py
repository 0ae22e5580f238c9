"""The command `gravity parity`."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from gravity_conformance import _terminal
from gravity_conformance._click import (
    OutputPath,
    Saving,
    check_installed,
    is_installed,
    seconds,
)
from gravity_conformance._output import check_no_links, checked
from gravity_conformance._status import complain, emit_json
from gravity_conformance.drive.spec import SpecError, place_and_attribute
from gravity_conformance.drive.spec import files as source_files
from gravity_conformance.parity import connection, plots
from gravity_conformance.parity import report as reports
from gravity_conformance.parity import run as runner
from gravity_conformance.parity.page import page
from gravity_conformance.protocol import Kind
from gravity_core._install import install

# Not a docstring, which -OO drops.
_HELP = """\
Train one network with every installed backend and prove that they agree.

Recorded gradients are replayed through each backend and graded exact, bounded or
divergent against the NumPy reference; then each trains with its own gradients. The
exit status is 0 only if every backend present is exact or bounded. It is 2 at once if a backend
that --backend or --require names is missing.

SPEC is module:attribute or path.py:attribute. Its V₀ may differ from the reference's. Each
backend and each SPEC runs in a process of its own.
"""


@click.command(help=_HELP)
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
    type=OutputPath(file_okay=False, path_type=Path),
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
    callback=seconds,
    help="Seconds for a backend's import, each of its steps, and its training.",
)
@click.option("--json", "as_json", is_flag=True, help="Print parity.json in place of the tables.")
@click.option(
    "--html",
    type=OutputPath(path_type=Path),
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
    check_installed("parity", "sklearn")
    if html is not None:
        check_installed("--html", "matplotlib")
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
        saving = Saving()
        with saving.attempt(f"--out {str(out)!r}"):
            saving.paths += reports.write(report, out)
        advance("plots", 0, 0)
        if not is_installed("matplotlib"):
            needed = f"it needs matplotlib: {install('cli')}"
            complain(f"gravity: {reports.PICTURE} is not drawn: {needed}")
        elif saving.paths:  # beside the report of an earlier run, it would mislead
            picture = outputs[reports.FILES.index(reports.PICTURE)]
            saving.draw(picture, lambda: plots.picture(report))
        if html is not None:
            saving.draw(outputs[-1], lambda: page(report))
    if as_json:
        emit_json(reports.as_json(report))
    else:
        _terminal.show(reports.parts(report, saving.paths))
    return saving.status(reports.status(report))


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
