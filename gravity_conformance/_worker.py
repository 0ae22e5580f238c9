"""The process that runs a stranger's code, seen from inside. `_process` is the other side.

Every event is a line: a token and JSON. The lines go to a descriptor that programs rarely write to
or close. They begin with a token that only the two sides know. So the output of an implementation
is not mistaken for an event. This guards against accidents, not against malicious code, which can
reach everything in its process.
"""

import contextlib
import json
import os
import pickle
import queue
import random
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, Protocol

# Includes KeyboardInterrupt: users do not interrupt this process, so the implementation raised it.
ANYTHING = BaseException

Inbox = Callable[[], Any]
"""Returns the next message of the command, and waits for it."""


class Tell(Protocol):
    """Sends an event."""

    def __call__(self, event: str, /, **values: Any) -> None:
        """Send an event and its values, which JSON can hold."""


def serve(run: Callable[[Any, Inbox, Tell], None]) -> None:
    """Call `run` with the job, an inbox and the function that sends events, and end with "done".

    The process ends as soon as the command is gone.
    """
    inbox = _inbox()
    job = inbox()
    channel = _Channel(job.pop("token"))
    tell = channel.tell
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(job, inbox, tell)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
    tell("done")
    channel.close()


class _Channel:
    """Standard output, moved to a descriptor that only the command reads."""

    def __init__(self, token: str) -> None:
        self._token, self._process = token.encode("ascii"), os.getpid()
        self._file = os.fdopen(_moved(1), "wb")
        os.dup2(2, 1)

    def tell(self, event: str, /, **values: Any) -> None:
        """Write a separate line, even after other output without a final newline."""
        if os.getpid() == self._process:  # not in a forked child
            text = json.dumps({"event": event, **values}).encode("ascii")
            self._file.write(b"\n%b %b\n" % (self._token, text))
            self._file.flush()

    def close(self) -> None:
        """Close the descriptor."""
        with contextlib.suppress(OSError):
            self._file.close()


def _moved(descriptor: int) -> int:
    """Return a duplicate of a descriptor, with a high number that is hard to guess."""
    try:
        import fcntl
        import resource
    except ImportError:  # Windows
        return os.dup(descriptor)
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1024)
    lowest = random.SystemRandom().randrange(limit // 2, limit - 9)  # two find room there
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)


def _inbox() -> Inbox:
    """Return the inbox of what comes from standard input, which the implementation finds empty."""
    messages: queue.Queue[bytearray] = queue.Queue()
    source = _moved(0)
    with open(os.devnull) as empty:
        os.dup2(empty.fileno(), 0)

    def read() -> None:
        # An implementation that closes the descriptor ends neither itself nor its checks.
        with contextlib.suppress(OSError):
            while (head := _exactly(source, 8)) is not None:
                data = _exactly(source, int.from_bytes(head, "little"))
                if data is None:
                    break
                messages.put(data)
            os._exit(0)  # the command is gone

    threading.Thread(target=read, daemon=True).start()
    return lambda: pickle.loads(messages.get())


def _exactly(descriptor: int, size: int) -> bytearray | None:
    """Read so many bytes; return None at the end of the file."""
    found = bytearray()
    while len(found) < size:
        chunk = os.read(descriptor, min(size - len(found), 1 << 20))
        if not chunk:
            return None
        found += chunk
    return found
