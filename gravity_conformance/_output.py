"""The parts that all reports share: writing files, JSON, and the policy of pages."""

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# The content security policy of a page: it fetches nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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


def replace(path: Path, text: str) -> None:
    """Write a text file whole or not at all; escape lone surrogates, which UTF-8 cannot encode."""
    data = text.encode("utf-8", "backslashreplace")
    if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/stdout, a pipe
        path.write_bytes(data)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".parity-") as scratch:
        whole = Path(scratch, "text")
        whole.write_bytes(data)
        os.replace(whole, path)
