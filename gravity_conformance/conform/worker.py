"""The process that runs third-party code. It writes a line for every event: a token and JSON.

    {"event": "ready", …}  {"event": "start", "check": …}  {"event": "finding", "check": …, …}
    {"event": "error", "message": …}  {"event": "done"}

The job comes from standard input. The lines go to a descriptor that programs rarely write to or
close. They begin with a token that only `runner` and this module know. So the output of an
implementation is not mistaken for a finding. This guards against accidents, not against malicious
code, which can reach everything in its process.
"""

import contextlib
import json
import os
import platform
import random
import sys
import time
import warnings
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from gravity_conformance._guard import one_line
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.registry import CHECKS, Check
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.trial import WrongResultError
from gravity_conformance.drive import spec as specs
from gravity_conformance.drive.drivers import read

# Includes KeyboardInterrupt: users do not interrupt this process, so the implementation raised it.
_ANYTHING = BaseException


class Writer(Protocol):
    """The methods of a file that are needed to write events."""

    def write(self, text: str, /) -> object:
        """Write a line."""

    def flush(self) -> object:
        """Flush the file."""


class _Channel:
    """Standard output, moved to a descriptor that only `runner` reads."""

    def __init__(self, token: str) -> None:
        self._token, self._process = token, os.getpid()
        self._file = os.fdopen(_moved(1), "w", encoding="ascii")
        os.dup2(2, 1)

    def write(self, text: str) -> None:
        """Write a separate line, even after other output without a final newline."""
        if os.getpid() == self._process:  # not in a forked child
            self._file.write(f"\n{self._token} {text}")

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


def _moved(descriptor: int) -> int:
    """Return a duplicate of a descriptor, with a high number that is hard to guess."""
    try:
        import fcntl
        import resource
    except ImportError:  # Windows
        return os.dup(descriptor)
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1024)
    lowest = random.SystemRandom().randrange(limit // 2, limit)
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)


def main() -> None:
    """Run the checks of the job on standard input."""
    job = json.load(sys.stdin)
    report = _Channel(job.pop("token"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _run(job, report)
        except specs.SpecError as error:
            _tell(report, "error", message=str(error))
        except _ANYTHING as error:
            _tell(report, "error", message=f"SPEC cannot be used: {one_line(error)}")
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
    _tell(report, "done")


def _tell(report: Writer, event: str, **values: Any) -> None:
    report.write(json.dumps({"event": event, **values}) + "\n")
    report.flush()


def _run(job: dict[str, Any], report: Writer) -> None:
    driver = read(job["spec"], job["kind"], job["kw"])
    settings = {name: job[name] for name in ("seed", "level", "dtypes")}
    subject = Subject(driver, job["first_step"], **settings)
    _try(subject)
    judge = Judge(subject)
    _tell(
        report,
        "ready",
        kind=driver.kind,
        arguments=driver.arguments.names,
        versions={"python": platform.python_version(), "numpy": np.__version__} | driver.versions(),
    )
    for name in job["checks"]:
        _tell(report, "start", check=name)
        start = time.perf_counter()
        _seed()
        judge.findings[name] = finding = _run_check(CHECKS[name], subject, judge)
        _tell(
            report,
            "finding",
            check=name,
            seconds=time.perf_counter() - start,
            **asdict(finding),
        )


def _run_check(check: Check, subject: Subject, judge: Judge) -> Finding:
    if not any(dtype in subject.dtypes for dtype in check.tier):
        return Finding("not applicable", "left out by --dtypes")
    try:
        return check.function(subject, judge)
    except WrongResultError as error:
        return Finding("differs", "", None, str(error))
    except Exception as error:
        if check.special is None:
            return Finding("error", one_line(error))
        return Finding("remark", f"it refuses {check.special}: {one_line(error)}")
    except _ANYTHING as error:
        return Finding("error", one_line(error))


def _seed() -> None:
    """Seed the global generators, so that the report repeats for implementations that use them."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # implementations may use it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


def _try(subject: Subject) -> None:
    """Construct the implementation once; raise SpecError if that fails."""
    try:
        subject.driver.start([np.ones(3, np.float32)], subject.options())
    except _ANYTHING as error:
        kind, why = subject.driver.kind, one_line(error)
        message = f"it cannot be constructed as {kind} (see --kind, --kw): {why}"
        raise specs.SpecError(message) from error
