"""What all reports share: their parts, as plain text and Markdown, JSON, and writing files."""

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


def replace(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all.

    Lone surrogates of a text, which UTF-8 cannot encode, become escapes.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/stdout, a pipe
        path.write_bytes(data)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".parity-") as scratch:
        whole = Path(scratch, "whole")
        whole.write_bytes(data)
        os.replace(whole, path)
