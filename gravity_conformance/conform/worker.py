"""The program of the process that checks an implementation.

Its events, in order:

{"event": "ready", …}  {"event": "start", "check": …}  {"event": "finding", "check": …, …}
{"event": "unseen", "lines": …}  {"event": "error", "message": …}  {"event": "done"}
"""

import platform
import random
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from gravity_conformance._guard import one_line, refusal
from gravity_conformance._worker import ANYTHING, Inbox, Tell, serve
from gravity_conformance.conform import unseen
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.registry import CHECKS, Check
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.trial import WrongResultError
from gravity_conformance.drive import spec as specs
from gravity_conformance.drive.drivers import Driver, read
from gravity_conformance.drive.session import CannotWriteError


def main() -> None:
    """Run the checks of the job."""
    serve(_serve)


def _serve(job: dict[str, Any], inbox: Inbox, tell: Tell) -> None:
    try:
        driver = read(job["spec"], job["kind"], job["kw"])
        driver.session.prepare()
        # SPEC may have set others, in which the numbers of the checks would raise errors.
        with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
            if not job["trace"]:
                _run(driver, job, tell)
            else:
                with unseen.traced(driver.found) as described:
                    _run(driver, job, tell)
                    tell("unseen", lines=described())
    except specs.SpecError as error:
        tell("error", message=str(error))
    except ANYTHING as error:
        tell("error", message=f"SPEC cannot be used: {one_line(error)}")


def _run(driver: Driver, job: dict[str, Any], tell: Tell) -> None:
    settings = {name: job[name] for name in ("seed", "level", "dtypes")}
    subject = Subject(driver, job["first_step"], **settings)
    _try(subject)
    judge = Judge(subject)
    tell(
        "ready",
        kind=driver.kind,
        arguments=driver.arguments.names,
        versions={"python": platform.python_version(), "numpy": np.__version__} | driver.versions(),
    )
    for name in job["checks"]:
        tell("start", check=name)
        start = time.perf_counter()
        _seed()
        judge.findings[name] = finding = _run_check(CHECKS[name], subject, judge)
        tell("finding", check=name, seconds=time.perf_counter() - start, **asdict(finding))


def _run_check(check: Check, subject: Subject, judge: Judge) -> Finding:
    if not any(dtype in subject.dtypes for dtype in check.tier):
        return Finding("not applicable", "left out by --dtypes")
    try:
        return check.function(subject, judge)
    except WrongResultError as error:
        return Finding("differs", "", None, str(error))
    except CannotWriteError as error:
        return Finding("not applicable", str(error))
    except Exception as error:
        if check.special is None:
            return Finding("error", one_line(error))
        return Finding("remark", refusal(check.special, one_line(error)))
    except ANYTHING as error:
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
    is_usable = subject.begins_compiled()
    try:
        subject.driver.start([np.ones(3, np.float32)], subject.options())
    except ANYTHING as error:
        if is_usable:  # the checks report what the compiled code has left behind
            return
        kind, why = subject.driver.kind, one_line(error)
        given = " from an iterator of one parameter" if kind == "torch" else ""
        message = f"it cannot be constructed as {kind}{given} (see --kind, --kw): {why}"
        raise specs.SpecError(message) from error
