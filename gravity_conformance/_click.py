"""What the commands of click share: how one runs, its options, the files it reads and writes.

What a command was asked wrongly is one line, and its status is 2.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from gravity_conformance._guard import clean, one_line
from gravity_conformance._output import Output, write
from gravity_conformance._process import check_timeout
from gravity_conformance._status import COULD_NOT, cannot_write, complain
from gravity_conformance.vectors.check import LARGEST
from gravity_core import _files
from gravity_core._install import install

_LONGEST = 2000  # characters of a complaint


def status_of(program: str, command: click.Command) -> int:
    """Run a command with the arguments of the process, and return its status.

    `command.main` would end with status 1 where the reader closes the pipe.
    """
    try:
        with command.make_context(program, sys.argv[1:]) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.Exit as stop:  # of --help and --version
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return COULD_NOT
    except click.ClickException as error:
        complain(f"{program}: {clean(error.format_message(), _LONGEST)}")
        return COULD_NOT


class OutputPath(click.Path):
    """The path of an output; no text is no path, but an unset variable of a shell."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse no text, which would be the current folder."""
        if value == "":
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


FILE = OutputPath(dir_okay=False, allow_dash=True, path_type=Path)


def seconds(context: click.Context, option: click.Parameter, value: float) -> float:
    """Check the value of --timeout."""
    try:
        return check_timeout(value)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error


def is_installed(package: str) -> bool:
    """Tell whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def check_installed(what: str, package: str) -> None:
    """Refuse what needs a package that is not installed."""
    if not is_installed(package):
        raise click.UsageError(f"{what} needs {package}: {install('cli')}")


def text_of(option: str, file: Path) -> str:
    """Return the text of a file that an option names; - is standard input."""
    name = f"{option} {str(file)!r}"
    if str(file) == "-" and sys.stdin is None:
        raise click.UsageError(f"{name} cannot be read: standard input is closed")
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


class Saving:
    """The files of a command's results.

    What fails is kept to be said after the results, which it must not lose.
    """

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self._faults: list[str] = []

    def write(self, output: Output, content: str | bytes) -> None:
        """Write a file."""
        with self.attempt(output):
            write({output.path: content})
            self.paths.append(output.given)

    def draw(self, output: Output, draw: Callable[[], str | bytes]) -> None:
        """Write a file with plots, which matplotlib or its fonts may fail to draw."""
        try:
            content = draw()
        except Exception as error:
            self._faults.append(f"{output} cannot be drawn: {one_line(error)}")
        else:
            self.write(output, content)

    @contextlib.contextmanager
    def attempt(self, what: object) -> Iterator[None]:
        """Keep what the disk refuses."""
        try:
            yield
        except OSError as error:
            self._faults.append(cannot_write(what, error))

    def status(self, status: int) -> int:
        """Say what failed; return a status, or that of a command that could not write."""
        for fault in self._faults:
            complain(f"gravity: {fault}")
        return COULD_NOT if self._faults else status
