"""Keep a stranger's code from printing into a report, and its exceptions to one line."""

import contextlib
import os
import sys
from collections.abc import Iterator

# What a stranger's code may raise: it is that code's result, never the command's end.
ANYTHING = (Exception, SystemExit)


def one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


@contextlib.contextmanager
def redirected(source: int, target: int) -> Iterator[None]:
    """Let what is written to file descriptor `source` go to `target`.

    By file descriptor, because the libraries of frameworks write past ``sys.stdout``.
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
    """Drop what is written to file descriptor `source`."""
    with open(os.devnull, "w") as sink, redirected(source, sink.fileno()):
        yield
