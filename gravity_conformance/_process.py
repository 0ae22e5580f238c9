"""The process that runs a stranger's code, seen from the command that judges it.

Guarantees: whatever the code does, its process only ends, sends events, or is late. The process and
the children that stay in its session end with the command, however the command ends: `close` ends
them, and where the command is killed, their guard does. `_worker` is the other side.
"""

import contextlib
import itertools
import json
import math
import os
import pickle
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import gravity_conformance
import gravity_core
from gravity_conformance._guard import clean
from gravity_conformance._status import CouldNotError

Event = dict[str, Any]

LONGEST_TIMEOUT = 1e6  # seconds; Python's own limit differs between systems
_PATIENCE = 1.0  # seconds to read what a process wrote before it ended
_SLICE = 0.1  # seconds, see `_slices`
_TAIL = 4096  # bytes kept from the end of an implementation's output
_AHEAD = 16  # events that a process may be ahead of their reader
# Processes run side by side: idle threads sleep, and none takes all memory of a GPU.
_SHARING = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}
# Ends the session of process $0, unless it reads a line before the end of its input.
_GUARD = 'read -r line || kill -9 "-$0"'
# Loads the packages of the command, whatever sys.path says, and puts nothing before other modules.
# What lies beside the packages may be what they need, so it is found last. It runs with -P: the
# current directory may have a json.py, which would hide Python's. `spec` adds that directory if
# SPEC names a module. With -I, Python ignores PYTHONIOENCODING.
_PROGRAM = """
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
class Beside:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, list(roots.values())) if path is None else None
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(encoding="utf-8", errors=stream.errors)
roots = {roots!a}
sys.meta_path.append(Beside)
for name, root in roots.items():
    found = PathFinder.find_spec(name, [root])
    sys.modules[name] = package = module_from_spec(found)
    found.loader.exec_module(package)
from {module} import main
main()
"""


class EndedError(Exception):
    """The process ended, or sent nothing in time; the message says which, in one line."""


def check_timeout(seconds: float) -> float:
    """Return a limit of time.

    Raises:
        ValueError: unless it is above 0 and at most `LONGEST_TIMEOUT`.
    """
    if not 0 < seconds <= LONGEST_TIMEOUT:  # NaN is not either
        raise ValueError(
            f"timeout must be seconds above 0 and at most {LONGEST_TIMEOUT:,.0f}, got {seconds:g}"
        )
    return seconds


class Process:
    """A process that runs a stranger's code and sends events.

    Args:
        module: its program, a module of this package; its function ``main`` calls `_worker.serve`.
        job: what the program gets first.
        timeout: seconds that it has for each event.

    Raises:
        CouldNotError: if the system starts no process.
    """

    def __init__(self, module: str, job: Event, timeout: float) -> None:
        self._timeout = check_timeout(timeout)
        self.said = Said()
        self._events: queue.Queue[Event | None] = queue.Queue(_AHEAD)
        self._messages: queue.Queue[bytes | None] = queue.Queue()
        self._closing = False
        self._reaping = threading.Lock()
        token = secrets.token_hex()
        try:
            self._process = _started(module)
        except OSError as error:  # of too many processes, for example
            why = error.strerror or error
            raise CouldNotError(f"no process can be started: {why}") from error
        self._guard = _guard(self._process.pid)
        self._readers = [
            _Reader(self._process.stdout, Lines(token, self._put).take),
            _Reader(self._process.stderr, self.said.take),
        ]
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        threading.Thread(target=self._write, daemon=True).start()
        self.send(job | {"token": token})

    def send(self, message: Any) -> None:
        """Send an object to the program; never wait for it."""
        data = pickle.dumps(message, protocol=5)
        self._messages.put(len(data).to_bytes(8, "little") + data)

    def event(self) -> Event:
        """Return the next event.

        Time in which this process itself is stopped does not count.

        Raises:
            EndedError: if the process has ended, or sends none before the time is up.
        """
        for seconds in _slices(self._timeout):
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=seconds)
                break
        else:
            raise EndedError(f"no answer in {self._timeout:g} s (see --timeout)")
        if event is None:
            self._events.put(None)  # for the next call
            raise EndedError(_ended(self._process.returncode, self.said.last_line))
        return event

    def close(self) -> None:
        """End the process and its session; `said` is complete then."""
        if self._closing:
            return
        self._closing = True
        with self._reaping:
            if self._process.returncode is None:
                self._kill()
        self._messages.put(None)
        self._watcher.join()

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _put(self, event: Event | None) -> None:
        while not self._closing:
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=0.1)
                return

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it may have ended
            while (data := self._messages.get()) is not None:
                view = memoryview(data)
                while view:
                    view = view[pipe.write(view) :]

    def _watch(self) -> None:
        """Wait for the end, and for the readers, which a process that is left may never let end."""
        self._reap()
        if self._guard is not None:
            self._guard.communicate(b"\n")
        for reader in self._readers:
            taken = -1
            while reader.is_alive() and (reader.taken > taken or self._events.full()):
                if self._closing and reader.taken == taken:
                    break
                taken = reader.taken
                for seconds in _slices(_PATIENCE):
                    reader.join(seconds)
        self._put(None)

    def _reap(self) -> None:
        """Wait for the end of the process, and end what it leaves in its session.

        The session is ended first: once a process is reaped, another one can get its number.
        """
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):  # reaped, where SIGCHLD is ignored
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
                with self._reaping:
                    self._kill()
                    self._process.wait()
        self._process.wait()


def _slices(seconds: float) -> Iterator[float]:
    """Yield the parts of a wait of `seconds`.

    While this process is stopped, by Ctrl-Z for example, at most the part under way passes.
    """
    parts = math.ceil(seconds / _SLICE)
    return itertools.repeat(seconds / parts, parts)


def _started(module: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", _program(module)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=_SHARING | os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"},
        start_new_session=os.name == "posix",  # so that its child processes end with it
    )


def _guard(process: int) -> "subprocess.Popen[bytes] | None":
    """Start what ends a process and its session as soon as this command is gone.

    Only another process can: a command that is killed runs no code, and a thread of the stranger's
    process does not run while C code holds the interpreter. It reads a pipe that this command
    alone holds open, in a session of its own, so that no signal to a terminal's group reaches it.
    """
    if os.name != "posix":
        return None
    with contextlib.suppress(OSError):  # there may be no shell
        return subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(process)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    return None


def _ended(status: int, last_line: str) -> str:
    """Describe the end of a process that ended too early."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
    why = f"its process ended with status {status}"
    return f"{why}; its last line of output: {last_line}" if status and last_line else why


def _program(module: str) -> str:
    """Return the text of a program, which imports the packages that this process has."""
    packages = (gravity_core, gravity_conformance)
    roots = {p.__name__: str(Path(str(p.__file__)).absolute().parents[1]) for p in packages}
    return _PROGRAM.format(roots=roots, module=module)


class _Reader(threading.Thread):
    """Reads a pipe to its end, so that its writer never waits.

    A process that outlives the worker can hold the pipe open, so this thread is a daemon.
    """

    def __init__(self, pipe: Any, take: Callable[[bytes], None]) -> None:
        super().__init__(daemon=True)
        self._pipe, self._take, self.taken = pipe, take, 0
        self.start()

    def run(self) -> None:
        with self._pipe:
            while chunk := self._pipe.read(1 << 16):
                self._take(chunk)
                self.taken += len(chunk)


class Said:
    """The output of an implementation: its size, and its end."""

    def __init__(self) -> None:
        self.size, self._end = 0, b""

    def take(self, chunk: bytes) -> None:
        """Add a chunk of output."""
        self.size += len(chunk)
        self._end = (self._end + chunk)[-_TAIL:]

    @property
    def last_line(self) -> str:
        """The last line that is not empty."""
        lines = self._end.decode("utf-8", "replace").split("\n")
        return next((clean(line) for line in reversed(lines) if line.strip()), "")


class Lines:
    """Finds a worker's lines in a stream of bytes, and passes on their events."""

    def __init__(self, token: str, put: Callable[[Any], None]) -> None:
        self._start, self._put, self._rest = f"{token} ".encode("ascii"), put, b""

    def take(self, chunk: bytes) -> None:
        """Take more of the stream."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not self._start.startswith(self._rest[: len(self._start)]):
            self._rest = b"."  # not the worker's, however long it becomes
        for line in lines:
            if line.startswith(self._start):
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(line.removeprefix(self._start))
                    if isinstance(event, dict):
                        self._put(event)
