"""Keep the output of a stranger's code out of a report, and its exceptions to one line."""

import contextlib
import os
import sys
from collections.abc import Iterator

# A stranger's code may raise these; they become its result and do not end the command.
ANYTHING = (Exception, SystemExit)

_LONGEST = 500  # characters of an exception's message


def one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line, whatever its ``__str__`` does."""
    try:
        message = str(error)
    except BaseException:
        message = "(it has no message: its __str__ raises)"
    return clean(f"{type(error).__name__}: {message}").removesuffix(":")


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


@contextlib.contextmanager
def redirected(source: int, target: int) -> Iterator[None]:
    """Send everything written to file descriptor `source` to `target`.

    Descriptors, because the libraries of frameworks do not write through ``sys.stdout``.
    """
    streams = {1: sys.stdout, 2: sys.stderr}
    with contextlib.suppress(OSError, ValueError):
        streams[source].flush()
    try:
        saved = os.dup(source)
        os.dup2(target, source)
    except OSError:  # one of them is closed
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            streams[source].flush()
        os.dup2(saved, source)
        os.close(saved)


@contextlib.contextmanager
def silenced(source: int) -> Iterator[None]:
    """Drop everything written to file descriptor `source`."""
    with open(os.devnull, "w") as sink, redirected(source, sink.fileno()):
        yield
