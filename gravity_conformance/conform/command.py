"""The command `gravity conform`."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from gravity_conformance import _terminal
from gravity_conformance._click import FILE, Saving, check_installed, seconds, text_of
from gravity_conformance._output import checked
from gravity_conformance._status import RIGHT, emit, emit_json
from gravity_conformance.conform import report as conform_reports
from gravity_conformance.conform import runner as conforming
from gravity_conformance.conform.checks.registry import CHECKS, selected
from gravity_conformance.conform.checks.subject import DTYPES
from gravity_conformance.drive.spec import KINDS
from gravity_conformance.drive.spec import Kind as SpecKind
from gravity_conformance.drive.spec import files as source_files

# Not a docstring, which -OO drops.
_HELP = """\
Check an implementation of Gravity, and name its mistake.

SPEC is module:attribute or path.py:attribute: a torch.optim.Optimizer class, an optax
transformation factory, a Keras optimizer class, or a function of NumPy arrays
(w, v, g, t, lr, beta) -> (w, v), which changes none of them and returns new arrays. The exit
status is 0 if it conforms, 1 if it differs or a check could not run, 2 if nothing could be
checked.
"""


def _listed(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the dtypes of --dtypes."""
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    if not {*names} <= {*DTYPES}:
        raise click.BadParameter(f"must be some of {','.join(DTYPES)}, got {value!r}")
    if "float32" not in names:
        raise click.BadParameter(f"must contain float32, got {value!r}")
    return names


def _skipped(file: Path) -> list[str]:
    """Return the checks that a file lists."""
    lines = text_of("--skips", file).splitlines()
    names = [line.partition("#")[0].strip() for line in lines]
    for number, name in enumerate(names, start=1):
        if name and name not in CHECKS:
            raise click.UsageError(
                f"--skips must list checks (see --list), got {name!r} in line {number}"
            )
    return [name for name in names if name]


@click.command(help=_HELP)
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
    type=FILE,
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
    callback=seconds,
    help="Seconds for the import and for each check.",
)
@click.option(
    "--json",
    "json_file",
    type=FILE,
    help="File for the report as JSON; - prints JSON instead of the table.",
)
@click.option("--html", "html_file", type=FILE, help="File for the report as a page with plots.")
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
        check_installed("--html", "matplotlib")
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
    saving = Saving()
    if (output := outputs.get("--json")) is not None:
        saving.write(output, conform_reports.as_json(report))
    if to_stdout:
        emit_json(conform_reports.as_json(report))
    else:
        _terminal.show(conform_reports.parts(report))
    if (output := outputs.get("--html")) is not None:
        command = shlex.join(["gravity", *sys.argv[1:]])
        saving.draw(output, lambda: conform_reports.page(report, command))
    return saving.status(report.status)


def _of_checks(names: Sequence[str], advance: _terminal.Advance) -> Callable[[str], None]:
    """Return the function that shows which of some checks runs."""
    titles = [CHECKS[name].title for name in names]
    advance("import", 0, len(titles))

    def started(title: str) -> None:
        what = f"{title}: compiling" if title == CHECKS["compiled"].title else title
        advance(what, titles.index(title) if title in titles else 0, len(titles))

    return started
