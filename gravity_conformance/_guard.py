"""Keep the output of a stranger's code out of a report, and its exceptions to one line."""

import itertools
import re
from collections.abc import Iterable
from typing import TypeVar

# A stranger's code may raise these; they become its result and do not end the command.
ANYTHING = (Exception, SystemExit)

_Value = TypeVar("_Value")
_LONGEST = 500  # characters of an exception's message


def one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line, whatever its ``__str__`` does."""
    try:
        message = str(error)
    except BaseException:
        message = "(it has no message: its __str__ raises)"
    return clean(f"{type(error).__name__}: {message}").removesuffix(":")


# The errors of code that nobody meant to raise them.
_CRASHES = {
    "AttributeError",
    "IndexError",
    "KeyError",
    "NameError",
    "UnboundLocalError",
    "ZeroDivisionError",
}


def refusal(what: str, why: str) -> str:
    """Say that a stranger's code refuses something, or fails at it; `why` is of `one_line`.

    Example:
        >>> refusal("a learning rate of 0", "ValueError: lr must be > 0")
        'it refuses a learning rate of 0: ValueError: lr must be > 0'
        >>> refusal("a learning rate of 0", "ZeroDivisionError: division by zero")
        'it fails at a learning rate of 0: ZeroDivisionError: division by zero'
    """
    verb = "fails at" if why.partition(":")[0] in _CRASHES else "refuses"
    return f"it {verb} {what}: {why}"


def clean(text: str, longest: int = _LONGEST) -> str:
    r"""Return a stranger's text as one line of bounded length that any file and terminal can show.

    Characters that cannot be printed (NUL, ESC, lone surrogates) become escapes.

    Example:
        >>> clean("two\nlines, \x1b[31mred")
        'two lines, \\x1b[31mred'
    """
    line = " ".join(text[: 4 * longest].split())
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
    )
    whole = len(text) <= 4 * longest and len(shown) <= longest
    return shown if whole else f"{shown[: longest - 1]}…"


def clean_names(named: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    """Return what strangers named, by clean names; a number keeps apart those that become equal.

    Example:
        >>> clean_names([("a b", 1), ("a  b", 2)])
        {'a b': 1, 'a b (2)': 2}
    """
    found: dict[str, _Value] = {}
    for name, value in named:
        shown = clean(name)
        others = (f"{shown} ({number})" for number in itertools.count(2))
        found[next(n for n in itertools.chain([shown], others) if n not in found)] = value
    return found


# Control characters, lone surrogates, and those that turn or break lines: a terminal may obey them.
COMMANDS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def visible(text: str, *, keep: str = "") -> str:
    r"""Return a text in which escapes stand for all characters that a terminal may obey.

    Args:
        text: the text, of any origin.
        keep: characters that stay, such as the ends of lines.

    Example:
        >>> visible("\x1b[31mβ̂\n")
        '\\x1b[31mβ̂\\n'
    """
    return COMMANDS.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)
