"""The exit statuses of all commands, and the frame that every command runs in.

Guarantee: a command ends with a status of `MEANINGS`. An interruption, a full disk or a wrong
argument gives one line on standard error, and a closed pipe none.
"""

import contextlib
import io
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

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


def run(program: str, command: Callable[[], int]) -> NoReturn:
    """Run a command, which returns its status, and end the process with that status.

    What the encoding of the terminal lacks is replaced, so that no β ends a command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
        complain(f"{program}: interrupted")
    except BrokenPipeError:
        status = CLOSED_PIPE
    except OSError as error:
        status = COULD_NOT
        complain(f"{program}: {cannot_write(error.filename or 'standard output', error)}")
    except CouldNotError as error:
        status = COULD_NOT
        complain(f"{program}: {error}")
    except Exception:  # a fault of ours must not look like a verdict
        status = COULD_NOT
        complain(f"{traceback.format_exc()}{program}: this is a fault of {program} itself")
    sys.exit(status)


def cannot_write(what: object, error: OSError) -> str:
    """Return one line on a file that cannot be written.

    Raises:
        BrokenPipeError: if `error` is one, because the reader wants no more.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    return f"{what} cannot be written: {error.strerror or error}"


def complain(line: str) -> None:
    """Write a line to standard error, if it takes any."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Write a text for people to standard output; what its encoding lacks is replaced."""
    if sys.stdout is not None:
        # The encodings lack lone surrogates.
        print(text.encode("utf-8", "backslashreplace").decode("utf-8"), end="", flush=True)


def emit_json(text: str) -> None:
    """Write a text for programs to standard output: UTF-8, whatever the terminal's encoding."""
    if sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()
