"""The lines of an implementation that no check ran, and of which a report therefore proves nothing.

Guarantee: without the package coverage, nothing is traced, and no line is named.
"""

import ast
import contextlib
import importlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from gravity_conformance.drive import source

# Python runs no line for these, or, in the case of definitions, that of a decorator.
_NOT_RUN = (ast.Global, ast.Nonlocal, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@contextlib.contextmanager
def traced(found: Any) -> Iterator[Callable[[], str]]:
    """Trace the modules of an implementation.

    Yields:
        A function that ends the tracing and returns "port.py: 31-33, 40", or nothing if every line
        ran of each function that was called. A line that raises an error counts as run.
    """
    files = list(filter(None, map(source.file_of, source.modules(found))))
    try:
        coverage = importlib.import_module("coverage")
    except ModuleNotFoundError:
        yield str
        return
    trace = coverage.Coverage(data_file=None, config_file=False, include=files)

    def described() -> str:
        trace.stop()
        lines = [(Path(f), unseen(Path(f), trace.get_data().lines(f) or ())) for f in files]
        return "; ".join(f"{file.name}: {_ranges(n)}" for file, n in lines if n)

    trace.start()
    try:
        yield described
    finally:
        trace.stop()


def unseen(file: Path, ran: Collection[int]) -> list[int]:
    """Return the lines of statements that did not run, in functions of which others ran.

    There are none if the file can no longer be read.
    """
    lines: list[int] = []
    try:
        tree = ast.parse(file.read_bytes())  # which may declare an encoding
    except (OSError, SyntaxError, ValueError):
        return lines
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            every = [line for line, _ in _statements(node.body)]
            if any(line in ran for line in every):
                lines += [n for n, raises in _statements(node.body) if n not in ran and not raises]
    return sorted(set(lines))


def _statements(body: list[ast.stmt]) -> Iterator[tuple[int, bool]]:
    """Yield the line of every statement, and whether its block ends by raising an error."""
    raises = isinstance(body[-1], ast.Raise)
    for node in body:
        if isinstance(node, _NOT_RUN):
            continue
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield node.lineno, raises
        blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
        blocks += [part.body for name in ("handlers", "cases") for part in getattr(node, name, [])]
        for block in filter(None, blocks):
            yield from _statements(block)


def _ranges(lines: list[int]) -> str:
    """Return ascending lines as text: "31-33, 40"."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line <= runs[-1][-1] + 1:
            runs[-1].append(line)
        else:
            runs.append([line])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
