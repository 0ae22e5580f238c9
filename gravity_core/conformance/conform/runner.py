"""Run the checks in a process of their own, watch over it, and gather the report.

Guarantee: a check of which no finding arrives counts as an error, however its process ended.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import gravity_core
from gravity_core.conformance.conform.checks import CHECKS
from gravity_core.conformance.conform.spec import Kind
from gravity_core.conformance.conform.subject import Finding

TIMEOUT = 60.0
_LIVES = 3  # processes; an implementation that ends two of them ends the third as well


@dataclass(kw_only=True)
class Line(Finding):
    """One check in the report: its name, its title, what was found and how long it took."""

    check: str
    title: str
    seconds: float = 0.0


@dataclass
class Report:
    """What is known of an implementation; `cannot` says why nothing is."""

    spec: str
    kind: Kind | None
    arguments: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    printed: int = 0
    cannot: str | None = None

    @property
    def status(self) -> int:
        """0: conforms; 1: differs, or a check could not run; 2: nothing could be checked."""
        outcomes = {line.outcome for line in self.lines}
        if self.cannot is not None or not outcomes & {"pass", "differs"}:
            return 2
        return 0 if outcomes <= {"pass", "not applicable"} else 1

    @property
    def diagnoses(self) -> list[str]:
        """The mistakes found, each once."""
        return list(dict.fromkeys(line.diagnosis for line in self.lines if line.diagnosis))

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        head = {"gravity": gravity_core.__version__, "status": self.status}
        return head | {"diagnoses": self.diagnoses} | asdict(self)


def conform(
    spec: str,
    *,
    kind: Kind | None = None,
    kw: Mapping[str, str] | None = None,
    first_step: int | None = None,
    only: Sequence[str] = (),
    timeout: float = TIMEOUT,
    progress: Callable[[str], None] = lambda title: None,
) -> Report:
    """Check an implementation.

    Args:
        spec: ``module:attribute`` or ``path.py:attribute``.
        kind: what it is; recognised if None.
        kw: constructor arguments, name → value as text; ``{beta}`` for what we call beta.
        first_step: the convention that it must keep; recognised if None.
        only: names of `checks.CHECKS`; all if empty.
        timeout: seconds for the import, and for each check.
        progress: called with the title of each check that starts.

    Returns:
        The report; nothing is raised for what the implementation does.

    Raises:
        ValueError: for an unknown check.
    """
    for name in only:
        if name not in CHECKS:
            raise ValueError(f"only must be of {', '.join(CHECKS)}, got {name!r}")
    report = Report(spec, kind)
    left = [name for name in CHECKS if not only or name in only]
    for _ in range(_LIVES):
        job = {
            "spec": spec,
            "kind": kind,
            "kw": dict(kw or {}),
            "first_step": first_step,
            "checks": left,
        }
        left = _live(report, job, timeout, progress)
        if not left or report.cannot is not None:
            return report
    for name in left:
        why = f"not run: the implementation ended its process {_LIVES} times"
        report.lines.append(Line("error", why, check=name, title=CHECKS[name].title))
    return report


def _live(
    report: Report, job: dict[str, Any], timeout: float, progress: Callable[[str], None]
) -> list[str]:
    """Run one process to its end; return the checks that are left for another."""
    left, under_way, done = list(job["checks"]), None, False
    with _process(job) as (events, end):
        while True:
            try:
                event = events.get(timeout=timeout)
            except queue.Empty:
                why = f"no answer in {timeout:g} s"
                break
            if event is None:
                why = f"its process ended with status {end()}"
                break
            match event.pop("event"):
                case "ready":
                    report.kind = event["kind"]
                    report.arguments, report.versions = event["arguments"], event["versions"]
                case "start":
                    under_way = event["check"]
                    progress(CHECKS[under_way].title)
                case "finding":
                    left.remove(event["check"])
                    under_way = None
                    report.lines.append(Line(title=CHECKS[event["check"]].title, **event))
                case "cannot":
                    report.cannot = event["message"]
                case "done":
                    report.printed += event["printed"]
                    done = True
                    break
    if done:
        return left if report.cannot is None else []
    if under_way is None:
        report.cannot = f"before the first check: {why}"
        return left
    left.remove(under_way)
    report.lines.append(Line("error", why, check=under_way, title=CHECKS[under_way].title))
    return left


@contextlib.contextmanager
def _process(job: dict[str, Any]) -> Iterator[tuple["queue.Queue[Any]", Callable[[], int]]]:
    command = [sys.executable, "-m", "gravity_core.conformance.conform.worker", json.dumps(job)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"},
        start_new_session=os.name == "posix",  # so that what it starts ends with it
    )
    assert process.stdout is not None
    events: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for text in process.stdout:
            with contextlib.suppress(ValueError):
                events.put(json.loads(text))
        events.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield events, process.wait
    finally:
        _end(process)
        reader.join()
        process.stdout.close()


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, 9)
        else:
            process.kill()
    process.wait()
