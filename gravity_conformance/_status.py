"""The exit statuses of all commands, and the frame that every command runs in.

Guarantee: a command ends with a status of `MEANINGS`, or by the signal that ended it, after it has
cleaned up. An interruption, a full disk or a wrong argument gives one line on standard error, and a
closed pipe none. What comes from elsewhere reaches no terminal as a command.
"""

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from gravity_conformance._guard import COMMANDS, visible

RIGHT, DIFFERS, COULD_NOT, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141

MEANINGS = {
    RIGHT: "right: all that was compared or checked is right",
    DIFFERS: "differs: something that was compared or checked is wrong, or it raised an error",
    COULD_NOT: "could not run, or was asked wrongly: nothing was compared or checked, an argument "
    "is wrong, a package is missing, or a file cannot be written",
    INTERRUPTED: "interrupted, by Ctrl-C for example",
    CLOSED_PIPE: "closed pipe: the reader left before the end, as head does",
}
"""Every exit status, and when a command ends with it."""


class CouldNotError(Exception):
    """A command cannot run, or was asked wrongly; the message is one line."""


class _SignalError(BaseException):
    """The process was told to end; the argument is the signal."""


def run(program: str, command: Callable[[], int]) -> NoReturn:
    """Run a command, which returns its status, and end the process with that status.

    What the encoding of the terminal lacks is replaced, so that no β ends a command.
    """
    _occupy_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _signals_raised():
            status = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
        complain(f"{program}: interrupted")
    except _SignalError as error:
        (number,) = error.args
        complain(f"{program}: ended by {signal.Signals(number).name}")
        os.kill(os.getpid(), number)
        status = COULD_NOT
    except BrokenPipeError:
        status = CLOSED_PIPE
    except OSError as error:
        status = COULD_NOT
        complain(f"{program}: {_fault(error)}")
    except CouldNotError as error:
        status = COULD_NOT
        complain(f"{program}: {error}")
    except Exception:  # a fault of ours must not look like a verdict
        status = COULD_NOT
        complain(f"{traceback.format_exc()}{program}: this is a fault of {program} itself")
    sys.exit(status)


def _occupy_descriptors() -> None:
    """Open what the caller closed, so that no file of ours becomes standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Turn the signals that end a process into exceptions, so that it cleans up."""
    before = {}

    def ended(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        raise _SignalError(number)

    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, ended)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cannot_write(what: object, error: OSError) -> str:
    """Return one line on a file that cannot be written.

    Raises:
        BrokenPipeError: if `error` is one, because the reader wants no more.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    return f"{what} cannot be written: {error.strerror or error}"


def _fault(error: OSError) -> str:
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current folder does not exist any more"
    return cannot_write(error.filename or "standard output", error)


def complain(line: str) -> None:
    """Write a line to standard error, if it takes any."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(visible(line, keep="\n"), file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Write a text for people to standard output; what its encoding lacks is replaced."""
    emit_coloured(visible(text, keep="\n"))


def emit_coloured(text: str) -> None:
    """Write a text of which only our own escapes are left."""
    if sys.stdout is not None:
        print(text, end="", flush=True)


def emit_json(text: str) -> None:
    """Write a text for programs to standard output: UTF-8, whatever the terminal's encoding."""
    if sys.stdout is not None:
        escaped = COMMANDS.sub(
            lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text
        )
        sys.stdout.flush()
        sys.stdout.buffer.write(escaped.encode("utf-8"))
        sys.stdout.buffer.flush()
