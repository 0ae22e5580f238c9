"""The numbers and the words that the source code of an implementation contains.

A condition like ``if g.numel() > 1 << 21`` or ``if "bias" in name`` names what it depends on.
Checks can feed just that, as fuzzers do with a dictionary of a program's constants.
"""

import ast
import functools
import inspect
import operator
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_NAMES = re.compile(r"[\w./*-]{2,60}")  # no sentences
_WORD = re.compile(r"[a-z]\w{1,29}", re.ASCII | re.IGNORECASE)  # as frameworks allow in a name
_UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}
_GREATEST = 2**64  # of an operand of a power or a shift, so that none takes long


class Source(NamedTuple):
    """What the source code of an implementation contains.

    Attributes:
        numbers: the absolute values of its numbers and constant expressions, ascending.
        words: its strings that could be names, or parts of names.
    """

    numbers: tuple[float, ...] = ()
    words: tuple[str, ...] = ()


def read(found: Any) -> Source:
    """Read the `modules` of an implementation."""
    numbers: set[float] = set()
    words: dict[str, None] = {}
    for module in modules(found):
        try:
            tree = ast.parse(inspect.getsource(module))
        except (OSError, TypeError, SyntaxError, ValueError):  # it is not written in Python
            continue
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        known = _assigned(tree)
        for node in ast.walk(tree):
            number = _number(node, known)
            if number is not None:
                numbers.add(abs(number))
            elif isinstance(text := getattr(node, "value", None), str) and id(node) not in docs:
                words |= dict.fromkeys(_WORD.findall(text) if _NAMES.fullmatch(text) else ())
    return Source(tuple(sorted(numbers)), tuple(words))


def modules(found: Any) -> list[ModuleType]:
    """Return the modules of an implementation and its bases, and those beside it that it uses."""
    made = found.func if isinstance(found, functools.partial) else found
    made = inspect.unwrap(made) if callable(made) else made
    owners = made.__mro__ if isinstance(made, type) else (made,)
    own = [getattr(owner, "__module__", None) or "" for owner in owners]  # none of a ufunc
    top = own[0].partition(".")[0]
    names = dict.fromkeys(name for name in own if name.partition(".")[0] == top)
    for name in list(names):
        module = sys.modules.get(name)
        for value in list(vars(module).values()) if module else ():
            other = value.__name__ if inspect.ismodule(value) else ""
            if inspect.isfunction(value) or inspect.isclass(value):
                other = value.__module__
            if _beside(module, sys.modules.get(other)):
                names[other] = None
    return [sys.modules[name] for name in names if name in sys.modules]


def file_of(module: ModuleType) -> str | None:
    """Return the file of a module's source; None if it is not written in Python."""
    try:
        return inspect.getsourcefile(module)
    except TypeError:  # it is built in
        return None


def _beside(module: ModuleType | None, other: ModuleType | None) -> bool:
    files = [getattr(m, "__file__", None) for m in (module, other)]
    return all(files) and Path(str(files[0])).parent == Path(str(files[1])).parent


def _assigned(tree: ast.Module) -> dict[str, float]:
    """Return the numbers that are assigned to names of the module."""
    known: dict[str, float] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and (number := _number(node.value, known)) is not None:
            known |= {t.id: number for t in node.targets if isinstance(t, ast.Name)}
    return known


def _number(node: ast.AST, known: dict[str, float]) -> float | None:
    """Return the value of an expression of constants, or None."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as value):
            return _limited(value)
        case ast.Name(id=name):
            return known.get(name)
        case ast.UnaryOp(op=op, operand=x) if type(op) in _UNARY:
            values = [_number(x, known)]
            compute: Any = _UNARY[type(op)]
        case ast.BinOp(left=x, op=op, right=y) if type(op) in _BINARY:
            values = [_number(x, known), _number(y, known)]
            compute = _BINARY[type(op)]
        case _:
            return None
    if None in values or (isinstance(node, ast.BinOp) and not _quick(node.op, *values)):
        return None
    try:
        return _limited(compute(*values))
    except (ArithmeticError, TypeError, ValueError):
        return None


def _quick(op: ast.operator, x: Any, y: Any) -> bool:
    """Tell whether a power or a shift has a result that is not huge."""
    return not isinstance(op, (ast.Pow, ast.LShift)) or (abs(x) <= _GREATEST and abs(y) <= 1074)


def _limited(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and value == value
    return value if is_number and abs(value) <= sys.float_info.max else None
