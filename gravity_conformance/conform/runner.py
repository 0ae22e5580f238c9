"""Run the checks in a separate process, monitor it, and collect the report.

Guarantee: a check without a finding counts as an error, however its process ended. No check takes
longer than the timeout, even if it leaves other processes running.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import gravity_core
from gravity_conformance._guard import clean, clean_names
from gravity_conformance._process import EndedError, Process, check_timeout
from gravity_conformance.conform.checks.findings import Finding
from gravity_conformance.conform.checks.inputs import LEVELS
from gravity_conformance.conform.checks.registry import CHECKS, selected
from gravity_conformance.conform.checks.subject import DTYPES
from gravity_conformance.drive.spec import Kind

TIMEOUT = 300.0  # a step that users compile may take a minute in one check
_LIVES = 3  # processes at most; an implementation that ended three would end more
_LONGEST = 2000  # characters of a note, which can quote several exceptions


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
        unseen: the lines of its source that no check ran; empty if not all checks ran.
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
    unseen: str = ""
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
        head = {"format": "gravity-conform", "version": 4, "gravity": gravity_core.__version__}
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
        ValueError: for an unknown check, dtype or level, or a timeout out of range.
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
    check_timeout(timeout)
    report = Report(spec, kind, seed, level, tuple(dtypes), tuple(skip), strict)
    left = selected(level, only, skip)
    for life in range(_LIVES):
        job = {
            "spec": spec,
            "kind": kind,
            "kw": dict(kw or {}),
            "first_step": first_step,
            "seed": seed,
            "level": level,
            "dtypes": list(dtypes),
            "checks": left,
            "trace": level != "quick" and not only and not life,
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
    with Process("gravity_conformance.conform.worker", job, timeout) as process:
        while True:
            try:
                event = process.event()
            except EndedError as error:
                why = str(error)
                break
            # The worker sends events in order. Any other event is not the worker's, and is ignored.
            match event:
                case {"event": "ready", "kind": str(), "arguments": dict(), "versions": dict()}:
                    report.kind = event["kind"]
                    report.arguments = _cleaned(event["arguments"])
                    report.versions = _cleaned(event["versions"])
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
                case {"event": "unseen", "lines": str(lines)}:
                    report.unseen = clean(lines, _LONGEST)
                case {"event": "error", "message": str(message)}:
                    report.error = clean(message, _LONGEST)
                case {"event": "done"}:
                    break
    report.printed += process.said.size
    if not why:
        return left if report.error is None else []
    if under_way is None:
        report.error = f"before the first check: {why}"
        return left
    left.remove(under_way)
    report.results.append(Result("error", why, check=under_way, title=CHECKS[under_way].title))
    return left


def _cleaned(values: dict[str, Any]) -> dict[str, str]:
    return clean_names((name, clean(str(value))) for name, value in values.items())


def _result(event: dict[str, Any]) -> Result:
    names = [name for name in ("note", "first", "diagnosis") if event[name]]
    texts = {name: clean(event[name], _LONGEST) for name in names}
    values = {item.name: event[item.name] for item in fields(Result) if item.name in event}
    return Result(**values | texts | {"title": CHECKS[event["check"]].title})
