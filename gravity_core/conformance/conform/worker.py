"""The process in which a stranger's code runs: one JSON line for every event.

    {"event": "ready", …}  {"event": "finding", "check": …, …}  {"event": "cannot", "message": …}

The last ends the process. Whatever the implementation prints goes to a file of its own, so that
it cannot be taken for a finding.
"""

import contextlib
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np

from gravity_core.conformance.conform import spec as specs
from gravity_core.conformance.conform.checks import CHECKS
from gravity_core.conformance.conform.drivers import driver
from gravity_core.conformance.conform.subject import Finding, Subject
from gravity_core.conformance.guard import ANYTHING, one_line, redirected


def main() -> None:
    """Run the checks that ``sys.argv[1]`` asks for."""
    job = json.loads(sys.argv[1])
    # The first descriptor above those that a stranger would write to.
    with (
        os.fdopen(os.dup(1), "w", encoding="utf-8") as report,
        tempfile.TemporaryFile() as said,
        redirected(1, said.fileno()),
        redirected(2, said.fileno()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            _run(job, report)
        except specs.SpecError as error:
            _tell(report, "cannot", message=str(error))
        except ANYTHING as error:
            _tell(report, "cannot", message=f"SPEC cannot be used: {one_line(error)}")
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        _tell(report, "done", printed=os.fstat(said.fileno()).st_size)


def _tell(report: TextIO, event: str, **values: Any) -> None:
    report.write(json.dumps({"event": event, **values}) + "\n")
    report.flush()


def _run(job: dict[str, Any], report: TextIO) -> None:
    found = specs.load(job["spec"])
    try:
        asked = job["kind"] if callable(found) else None
        kind: specs.Kind = asked or specs.recognise(found)
    except ANYTHING as error:
        if isinstance(error, specs.SpecError):
            raise
        raise specs.SpecError(f"SPEC cannot be looked at: {one_line(error)}") from error
    arguments = specs.arguments(found, job["kw"])
    started = driver(found, kind, arguments)
    subject = Subject(started, job["first_step"])
    _try(subject, kind)
    _tell(
        report,
        "ready",
        kind=kind,
        arguments=arguments.names,
        versions=_versions(found, started.session.frameworks),
    )
    for name in job["checks"]:
        _tell(report, "start", check=name)
        start = time.perf_counter()
        _seed()
        try:
            finding = CHECKS[name].function(subject)
        except ANYTHING as error:
            finding = Finding("error", one_line(error))
        _tell(
            report,
            "finding",
            check=name,
            seconds=time.perf_counter() - start,
            **asdict(finding),
        )


def _seed() -> None:
    """Seed what implementations without a seed of their own draw from, so that reports repeat."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # the global generator is meant
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


def _try(subject: Subject, kind: str) -> None:
    """Construct the implementation once; what cannot be constructed cannot be checked."""
    try:
        subject.driver.start([np.ones(3, np.float32)], subject.options())
    except ANYTHING as error:
        raise specs.SpecError(
            f"it cannot be constructed as {kind} (see --kind, --kw): {one_line(error)}"
        ) from error


def _versions(found: Any, frameworks: tuple[str, ...]) -> dict[str, str]:
    top = str(getattr(found, "__module__", "")).partition(".")[0]
    versions = {"python": sys.version.split()[0]}
    for name in ("numpy", *frameworks, top):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
            versions[name] = importlib.metadata.version(name)
    return versions


if __name__ == "__main__":
    main()
