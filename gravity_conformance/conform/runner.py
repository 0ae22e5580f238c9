"""Run the checks in a separate process, monitor it, and collect the report.

Guarantee: a check without a finding counts as an error, however its process ended. No check takes
longer than the timeout, even if it leaves other processes running.
"""

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import gravity_core
from gravity_conformance._guard import clean
from gravity_conformance.conform.checks.findings import Finding
from gravity_conformance.conform.checks.inputs import LEVELS
from gravity_conformance.conform.checks.registry import CHECKS, selected
from gravity_conformance.conform.checks.subject import DTYPES
from gravity_conformance.drive.spec import Kind

TIMEOUT = 60.0
_LIVES = 3  # processes at most; an implementation that ended three would end more
_PATIENCE = 1.0  # seconds to read what a process wrote before it ended
_LONGEST = 2000  # characters of a note, which can quote several exceptions
_TAIL = 4096  # bytes kept from the end of an implementation's output


@dataclass(kw_only=True)
class Result(Finding):
    """The result of one check: the finding, the name and title of the check, and its duration."""

    check: str
    title: str
    seconds: float = 0.0


@dataclass
class Report:
    """The results of all checks; `error` is the reason if nothing could be checked.

    Attributes:
        spec: the implementation.
        kind: its kind.
        seed: of the generated inputs.
        level: how thorough the checks are.
        dtypes: those that the implementation is said to offer.
        skipped: the names of the checks that were left out.
        strict: whether a remark counts as a difference.
        arguments: our name → the implementation's, for the hyper-parameters that it offers.
        versions: of Python, NumPy, the framework and the implementation's package.
        results: one for each check.
        printed: the number of bytes that the implementation printed.
        error: why nothing could be checked.
    """

    spec: str
    kind: Kind | None
    seed: int = 0
    level: str = "default"
    dtypes: tuple[str, ...] = DTYPES
    skipped: tuple[str, ...] = ()
    strict: bool = False
    arguments: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    printed: int = 0
    error: str | None = None

    @property
    def status(self) -> int:
        """0: conforms; 1: differs, or a check could not run; 2: nothing could be checked."""
        outcomes = {result.outcome for result in self.results}
        if self.error is not None or not outcomes & {"pass", "differs"}:
            return 2
        right = {"pass", "not applicable"} | (set() if self.strict else {"remark"})
        return 0 if outcomes <= right else 1

    @property
    def remarks(self) -> list[str]:
        """What the implementation does not offer, or computes with less precision."""
        return [r.note for r in self.results if r.outcome == "remark"]

    @property
    def diagnoses(self) -> list[str]:
        """The mistakes found, each once."""
        return list(dict.fromkeys(r.diagnosis for r in self.results if r.diagnosis))

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; schema.json describes them."""
        head = {"format": "gravity-conform", "version": 3, "gravity": gravity_core.__version__}
        found = {"status": self.status, "diagnoses": self.diagnoses, "remarks": self.remarks}
        return head | found | asdict(self)


def conform(
    spec: str,
    *,
    kind: Kind | None = None,
    kw: Mapping[str, str] | None = None,
    first_step: int | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    dtypes: Sequence[str] = DTYPES,
    seed: int = 0,
    level: str = "default",
    strict: bool = False,
    timeout: float = TIMEOUT,
    progress: Callable[[str], None] = lambda title: None,
) -> Report:
    """Check an implementation.

    Args:
        spec: ``module:attribute`` or ``path.py:attribute``.
        kind: "torch", "optax", "keras" or "plain"; detected if None.
        kw: constructor arguments, name → value as text. The value ``{beta}`` means that the
            implementation calls our beta by this name.
        first_step: the t from which it must start, 0 or 1; detected if None.
        only: names of `checks.CHECKS`; all if empty.
        skip: names of checks to leave out.
        dtypes: those that the implementation offers, float32 among them.
        seed: of the generated inputs.
        level: "quick", "default" or "thorough".
        strict: whether a remark counts as a difference.
        timeout: seconds for the import, and for each check.
        progress: called with the title of each check that starts.

    Returns:
        The report. An error of the implementation is a result, and is not raised.

    Raises:
        ValueError: for an unknown check, dtype or level.
    """
    for what, names, known in (
        ("only", only, CHECKS),
        ("skip", skip, CHECKS),
        ("dtypes", dtypes, DTYPES),
        ("level", [level], LEVELS),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    if "float32" not in dtypes:
        raise ValueError(f"dtypes must contain float32, got {', '.join(dtypes)}")
    report = Report(spec, kind, seed, level, tuple(dtypes), tuple(skip), strict)
    left = selected(level, only, skip)
    for _ in range(_LIVES):
        job = {
            "spec": spec,
            "kind": kind,
            "kw": dict(kw or {}),
            "first_step": first_step,
            "seed": seed,
            "level": level,
            "dtypes": list(dtypes),
            "checks": left,
        }
        left = _live(report, job, timeout, progress)
        if not left or report.error is not None:
            return report
    for name in left:
        why = f"not run: the implementation ended its process {_LIVES} times"
        report.results.append(Result("error", why, check=name, title=CHECKS[name].title))
    return report


def _live(
    report: Report, job: dict[str, Any], timeout: float, progress: Callable[[str], None]
) -> list[str]:
    """Run one process until it ends; return the checks that remain."""
    left, under_way, why = list(job["checks"]), None, ""
    with _process(job) as (process, events, said):
        while True:
            try:
                event = events.get(timeout=timeout)
            except queue.Empty:
                why = f"no answer in {timeout:g} s (see --timeout)"
                break
            # The worker sends events in order. Any other event is not the worker's, and is ignored.
            match event:
                case None:
                    why = _ended(process.returncode, said.last_line)
                    break
                case {"event": "ready", "kind": str(), "arguments": dict(), "versions": dict()}:
                    report.kind = event["kind"]
                    report.arguments, report.versions = event["arguments"], event["versions"]
                case {"event": "start", "check": str(name)} if name in left:
                    under_way = name
                    progress(CHECKS[name].title)
                case {
                    "event": "finding",
                    "check": str(name),
                    "outcome": "pass" | "differs" | "error" | "remark" | "not applicable",
                    "note": str(),
                    "worst": int() | float() | None,
                    "first": str() | None,
                    "diagnosis": str() | None,
                    "plot": dict(),
                    "seconds": int() | float(),
                } if name == under_way:
                    left.remove(name)
                    under_way = None
                    report.results.append(_result(event))
                case {"event": "error", "message": str(message)}:
                    report.error = clean(message, _LONGEST)
                case {"event": "done"}:
                    break
    report.printed += said.size  # complete, because the process ended
    if not why:
        return left if report.error is None else []
    if under_way is None:
        report.error = f"before the first check: {why}"
        return left
    left.remove(under_way)
    report.results.append(Result("error", why, check=under_way, title=CHECKS[under_way].title))
    return left


def _result(event: dict[str, Any]) -> Result:
    names = [name for name in ("note", "first", "diagnosis") if event[name]]
    texts = {name: clean(event[name], _LONGEST) for name in names}
    values = {item.name: event[item.name] for item in fields(Result) if item.name in event}
    return Result(**values | texts | {"title": CHECKS[event["check"]].title})


def _ended(status: int, last_line: str) -> str:
    """Describe the end of a process that ended too early."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-status).name}"
    why = f"its process ended with status {status}"
    return f"{why}; its last line of output: {last_line}" if status and last_line else why


class _Reader(threading.Thread):
    """Reads a pipe to its end, so that its writer never waits.

    A process that outlives the worker can hold the pipe open, so this thread is a daemon.
    """

    def __init__(self, pipe: Any, take: Callable[[bytes], None]) -> None:
        super().__init__(daemon=True)
        self._pipe, self._take = pipe, take
        self.start()

    def run(self) -> None:
        with self._pipe:
            while chunk := self._pipe.read(1 << 16):
                self._take(chunk)


class _Said:
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


class _Lines:
    """Finds the worker's lines in a stream of bytes, and passes on their events."""

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


_Running = tuple["subprocess.Popen[bytes]", "queue.Queue[Any]", _Said]


@contextlib.contextmanager
def _process(job: dict[str, Any]) -> Iterator[_Running]:
    """Start a worker. Yield it, the queue of its events (None ends it), and its other output."""
    token = secrets.token_hex()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _program()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"},
        start_new_session=os.name == "posix",  # so that its child processes end with it
    )
    assert process.stdin is not None
    events: queue.Queue[Any] = queue.Queue()
    said = _Said()
    events_reader = _Reader(process.stdout, _Lines(token, events.put).take)
    noise = _Reader(process.stderr, said.take)

    def watch() -> None:
        process.wait()
        for reader in (events_reader, noise):
            reader.join(_PATIENCE)
        events.put(None)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with contextlib.suppress(OSError), process.stdin:  # it may have ended
            process.stdin.write(json.dumps(job | {"token": token}).encode("ascii"))
        yield process, events, said
    finally:
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        watcher.join()


def _program() -> str:
    """Return the worker's program.

    It imports this package from the location of the running one. With -P, it does not import from
    the current directory, where a json.py would hide Python's. `spec` adds that directory if SPEC
    names a module.
    """
    root = str(Path(gravity_core.__file__).parents[1])
    return (
        f"import sys\nif {root!a} not in sys.path: sys.path.insert(0, {root!a})\n"
        "from gravity_conformance.conform.worker import main\nmain()"
    )
