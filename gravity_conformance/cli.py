"""The command ``gravity``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

import gravity_core
from gravity_conformance._click import FILE, OutputPath, text_of
from gravity_conformance._guard import visible
from gravity_conformance._status import DIFFERS, MEANINGS, RIGHT, cannot_write, emit
from gravity_conformance.conform.command import conform
from gravity_conformance.explain import explain
from gravity_conformance.parity.command import parity
from gravity_conformance.vectors.check import check
from gravity_conformance.vectors.making import writing
from gravity_conformance.versions import versions as lines_of_versions
from gravity_core._install import install

_STATUSES = "\n".join(f"  {status:<4} {meaning}" for status, meaning in MEANINGS.items())
# Not a docstring, which -OO drops.
_VECTORS = """\
Write the conformance vectors, check files of vectors, or explain a port's results.

Expected values come from exact arithmetic, not from an implementation. The exit status
is 1 if a checked file has a fault: it violates the schema, its numbers are wrong, or a test
does not catch a mistake that its flags name. It is 0 after an explanation, whatever it says.
"""


@click.group(
    help="The Gravity optimizer: prove that implementations agree.",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\nExit status:\n{_STATUSES}",
)
@click.version_option(gravity_core.__version__, prog_name="gravity")
def cli() -> None:
    """The Gravity optimizer: prove that implementations agree."""


for command in (parity, conform):
    cli.add_command(command)


@cli.command(help=_VECTORS)
@click.option(
    "--out",
    type=OutputPath(file_okay=False, path_type=Path),
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
    type=FILE,
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
    if failed is not None:
        with _named():
            explanation = _explained(failed)
        emit(f"{explanation}\n")
    for path in [] if out is None else _written(out, force):
        emit(f"wrote {visible(str(path))}\n")
    status = RIGHT
    for path in files:  # what is found is printed, whatever the next file is
        with _named():
            faults = check(path)
        status = DIFFERS if faults else status
        for line in faults or ["no fault"]:
            emit(f"{visible(f'{path}: {line}')}\n")
    return status


@contextmanager
def _named() -> Iterator[None]:
    """Name a package that is missing, or a file that cannot be read."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise click.UsageError(f"vectors needs {error.name}: {install('cli')}") from error
    except OSError as error:
        name = error.filename or "a file"
        raise click.UsageError(f"{name}: {error.strerror or error}") from error


def _written(out: Path, force: bool) -> list[Path]:
    try:
        return writing.write(out, force=force)
    except OSError as error:
        raise click.UsageError(cannot_write(f"--out {str(out)!r}", error)) from error


def _explained(file: Path) -> str:
    text = text_of("--explain", file)
    try:
        return explain(text)
    except ValueError as error:
        raise click.UsageError(f"--explain {str(file)!r}: {error}") from error


@cli.command(help="Print the versions and devices that a bug report needs.")
def versions() -> int:
    """Print the versions and devices that a bug report needs."""
    for line in lines_of_versions():
        emit(f"{line}\n")
    return RIGHT
