"""Messages need no more than ASCII: a user may print them on any terminal, or log them anywhere."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path
    for folder in ("gravity_core", "adapters/gravity_jax", "adapters/gravity_tf")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "backend.py"  # the text of a report, which parity writes
]


def texts(source):
    """Return the strings of a module, with their lines, except the docstrings."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]


def test_texts_are_found():
    source = '"""η."""\nx = "σ"\nraise ValueError(f"V₀ is {x}")\n'
    assert texts(source) == [(2, "σ"), (3, "V₀ is ")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_messages_are_ascii(path):
    assert [text for text in texts(path.read_text(encoding="utf-8")) if not text[1].isascii()] == []
