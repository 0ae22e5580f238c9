"""Show reports and progress to people: at any width of a terminal, and in a pipe.

Guarantee: no word of a table is cut, unless it alone is wider than the terminal. A pipe gets the
same text everywhere, without colour. FORCE_COLOR colours it, and NO_COLOR forbids colours.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from rich import box
from rich import table as tables
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from gravity_conformance._guard import visible
from gravity_conformance._output import Line, Part, Table, joined, mood, plain
from gravity_conformance._status import emit, emit_coloured

_STYLES = {"good": "green", "bad": "bold red", "": ""}
_GAP = 2  # spaces between columns
_LEAST = 44  # characters that a column for long texts needs

Advance = Callable[[str, int, int], None]
"""Shows what runs, how much of it is done, and how much there is; 0 of 0 for an unknown time."""


def show(parts: Iterable[Part]) -> None:
    """Write a report to standard output."""
    parts = [_visible(part) for part in parts]
    forced = bool(os.environ.get("FORCE_COLOR"))
    if not _is_terminal(sys.stdout) and not forced:
        emit(plain(parts))
        return
    # Of a pipe, only the colour is forced: its lines stay as they are.
    width = None if _is_terminal(sys.stdout) else 10_000
    silent = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    size = Console(file=sys.stdout, width=width)
    console = Console(
        file=io.StringIO(),
        width=size.width,
        force_terminal=True,
        legacy_windows=False,
        color_system=None if silent else "standard",
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(*_rendered(part, console.width), sep="\n")
    emit_coloured(joined(capture.get().split("\n")))


def _visible(part: Part) -> Part:
    if isinstance(part, Line):
        return part._replace(text=visible(part.text))
    rows = [[visible(cell) for cell in row] for row in part.rows]
    return part._replace(rows=rows, title=visible(part.title))


@contextlib.contextmanager
def progress() -> Iterator[Advance]:
    """Show on a terminal's last line what runs; yield the function that says it."""
    shown = _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    ) as bar:
        line = bar.add_task("", total=None, count="")

        def advance(what: str, done: int, total: int) -> None:
            count = f"{done}/{total}" if total else ""
            bar.update(line, description=what, completed=done, total=total or None, count=count)

        yield advance


def _is_terminal(stream: object) -> bool:
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError):  # the stream is missing or closed
        return False


def _rendered(part: Part, width: int) -> list[RenderableType]:
    if isinstance(part, Line):
        return [Text(part.text, _STYLES[part.mood])]
    title: list[RenderableType] = [Text(part.title, "bold")] if part.title else []
    return ["", *title, _grid(part, width), ""]


def _grid(table: Table, width: int) -> RenderableType:
    cells = [table.header, *table.rows]
    columns = range(len(table.header))
    natural = [max(cell_len(row[k]) for row in cells) for k in columns]
    least = [max(_longest_word(row[k]) for row in cells) for k in columns]
    if table.long:
        rest = width - sum(natural[:-1]) - _GAP * len(natural[:-1])
        least[:-1], fits = natural[:-1], rest >= min(_LEAST, natural[-1])
        least[-1] = min(least[-1], rest)
    else:
        fits = sum(least) + _GAP * (len(least) - 1) <= width
    if fits:
        return _columns(table, least)
    if table.long and sum(natural[:-1]) + _GAP * (len(natural) - 2) <= width:
        return _texts_below(table, natural)
    return _records(table)


def _longest_word(cell: str) -> int:
    return max(map(cell_len, cell.split()), default=0)


def _columns(table: Table, least: list[int]) -> RenderableType:
    grid = tables.Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0)
    )
    for name, narrowest in zip(table.header, least, strict=True):
        grid.add_column(Text(name), min_width=narrowest, overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(cell, _STYLES[mood(cell)]) for cell in row))
    return grid


def _texts_below(table: Table, natural: list[int]) -> RenderableType:
    """Show the last column, which needs more room, below the others."""
    lines: list[RenderableType] = []
    for row in [table.header, *table.rows]:
        line = Text("", "bold" if row is table.header else "")
        for cell, room in zip(row[:-1], natural[:-1], strict=True):
            line.append(cell, _STYLES[mood(cell)]).append(" " * (room - cell_len(cell) + _GAP))
        line.rstrip()
        lines.append(line)
        if row is not table.header and row[-1]:
            lines.append(Padding(Text(row[-1]), (0, 0, 0, 4)))
    return Group(*lines)


def _records(table: Table) -> RenderableType:
    """Show every row as a paragraph, for a terminal that is too narrow for the columns."""
    lines: list[RenderableType] = []
    for row in table.rows:
        lines.append(Text(" ".join(row[: table.keys]), "bold"))
        pairs = list(zip(table.header, row, strict=True))[table.keys :]
        text = Text(", ").join(
            Text(f"{name}: ").append(cell, _STYLES[mood(cell)]) for name, cell in pairs if cell
        )
        lines.append(Padding(text, (0, 0, 0, 4)))
    return Group(*lines)
