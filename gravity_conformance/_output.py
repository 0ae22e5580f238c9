"""What all reports share: their parts, as plain text and Markdown, JSON, and writing files."""

import errno
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gravity_conformance._status import CouldNotError
from gravity_core import _files

GOOD = ("pass", "exact", "bounded")
BAD = ("differs", "divergent", "error")
"""The words of a table that a report colours."""


class Line(NamedTuple):
    """A line of a report; `good` and `bad` give it a colour where there is one."""

    text: str
    mood: str = ""


class Table(NamedTuple):
    """A table of a report.

    Attributes:
        header: the names of the columns.
        rows: the cells, as many as there are columns.
        title: what stands above it, or nothing.
        keys: so many of the first columns name a row.
        long: whether the last column is a text of any length.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    keys: int = 1
    long: bool = False


Part = Line | Table


def mood(word: str) -> str:
    """Return "good", "bad" or "" for a cell of a table.

    Example:
        >>> mood("exact"), mood("error"), mood("float32")
        ('good', 'bad', '')
    """
    return "good" if word in GOOD else "bad" if word in BAD else ""


def plain(parts: Iterable[Part]) -> str:
    """Return a report as text that depends on no terminal: no colour, and no line is wrapped."""
    lines: list[str] = []
    for part in parts:
        lines += [part.text] if isinstance(part, Line) else ["", *_aligned(part), ""]
    return joined(lines)


def joined(lines: Iterable[str]) -> str:
    """Return lines as one text, without spaces at their ends, and with one blank line at a time."""
    kept: list[str] = []
    for line in map(str.rstrip, lines):
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept) + "\n"


def _aligned(table: Table) -> Iterable[str]:
    if table.title:
        yield table.title
    cells = [table.header, *table.rows]
    columns = range(len(table.header) - 1)
    widths = [max(len(row[k]) for row in cells) for k in columns]
    for row in cells:
        yield "  ".join([*(row[k].ljust(widths[k]) for k in columns), row[-1]]).rstrip()


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by their names, at any depth.

    Example:
        >>> finite({"worst": [1.0, float("inf")]})
        {'worst': [1.0, 'inf']}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return [f"| {' | '.join(cells)} |" for cells in escaped]


class Output(NamedTuple):
    """A file that a command will write.

    Attributes:
        option: the option that names it.
        given: its path as the user gave it, for messages.
        path: its absolute path, which no change of the current folder moves.
    """

    option: str
    given: Path
    path: Path

    def __str__(self) -> str:
        return f"{self.option} {str(self.given)!r}"


def checked(
    files: Iterable[tuple[str, Path]], inputs: Iterable[tuple[str, Path]] = ()
) -> list[Output]:
    """Return the files that a command will write, checked before it runs.

    Missing folders are made.

    Args:
        files: an option and the path that it was given, for each file.
        inputs: what names a file that the command reads, and the file's path.

    Raises:
        CouldNotError: if a file cannot be written, is standard output, is an input, or is there
            twice.
    """
    found: list[Output] = []
    inputs = list(inputs)
    for option, given in files:
        if given == Path("-"):
            raise CouldNotError(f"{option} must be a file, got '-'")
        try:
            given.parent.mkdir(parents=True, exist_ok=True)
            output = Output(option, given, Path(_files.check_writable(given)))
            if _is_standard_output(output.path):
                raise OSError(errno.EINVAL, "standard output goes there")
        except OSError as error:
            raise CouldNotError(
                f"{option} cannot write {str(given)!r}: {error.strerror or error}"
            ) from error
        for name, other in [*((str(o), o.path) for o in found), *inputs]:
            if _same(other, output.path):
                raise CouldNotError(f"{output} must be another file than {name}")
        found.append(output)
    return found


def check_no_links(option: str, folder: Path, names: Iterable[str]) -> None:
    """Raise if one of the files that a command writes to a folder is a link, or is behind one.

    Only a link that the user names is followed. These names are the command's own, and a link that
    came with the folder could lead to any file.

    Raises:
        CouldNotError: naming the option, the folder and the file.
    """
    real = Path(os.path.realpath(folder))
    for name in names:
        if Path(os.path.realpath(folder / name)) != real / name:
            raise CouldNotError(
                f"{option} must be a folder where {name!r} is no link, got {str(folder)!r}"
            )


def _same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _is_standard_output(path: Path) -> bool:
    """Return whether a report in `path` would end what standard output or error writes there."""
    if not path.exists():
        return False
    for descriptor in (1, 2):
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return True
        except OSError:  # it is closed
            continue
    return False


def write(contents: Mapping[Path, str | bytes | None]) -> None:
    """Write files, all of them or none, and remove those whose content is None.

    Lone surrogates of a text, which UTF-8 cannot encode, become escapes.
    """
    _files.write({path: _writer(content) for path, content in contents.items()})


def _writer(content: str | bytes | None) -> Callable[[BinaryIO], object] | None:
    if content is None:
        return None
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    return lambda file: file.write(data)
