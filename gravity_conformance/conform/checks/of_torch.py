"""Checks of what torch offers around an update: its memory, closures, scalers, paths and hooks.

Each of them is "not applicable" to other kinds.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks import drawn, nonfinite
from gravity_conformance.conform.checks.behaviour import (
    chosen,
    continued,
    normal_part,
    together,
)
from gravity_conformance.conform.checks.findings import Finding, Judge, first_wrong, joined
from gravity_conformance.conform.checks.inputs import SHAPES, patterned
from gravity_conformance.conform.checks.subject import OPTIONAL, Subject
from gravity_conformance.conform.judge.together import Plan
from gravity_conformance.conform.judge.trial import Case
from gravity_conformance.drive.session import ClosureRefusedError


def copied(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with the optimizer and its weights copied after six steps."""
    return _in_memory(subject, judge, 31, "copied")


def pickled(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with the optimizer and its weights pickled after six steps."""
    return _in_memory(subject, judge, 111, "pickled")


def moved(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with other tensors in p.data after six steps."""
    return _in_memory(subject, judge, 52, "moved")


def exchanged(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with other parameters in the groups after six steps, and their states."""
    return _in_memory(subject, judge, 109, "exchanged")


def autocast(subject: Subject, judge: Judge) -> Finding:
    """Steps inside torch.autocast, which computes some operations in bfloat16."""
    if subject.driver.kind != "torch":
        return Finding("not applicable", "only in torch")
    weights, gradients = subject.normal(6, seed=110)
    options = subject.options(**subject.accepted)
    return judge.judge(Case(weights, gradients, options, how={"autocast": True}))


def hooks(subject: Subject, judge: Judge) -> Finding:
    """A step, a save and a load that call the hooks of the user, each of them once."""
    if subject.driver.kind != "torch":
        return Finding("not applicable", "only in torch")
    session = _begun(subject)
    if missed := session.missed_hooks():
        return Finding("differs", "", None, missed)
    try:
        missed = session.missed_hooks_of_state()
    except ANYTHING:  # the check "resume" tells that its state cannot be saved or loaded
        missed = ""
    return Finding("remark", missed) if missed else Finding("pass")


def safe(subject: Subject, judge: Judge) -> Finding:
    """A saved state that torch.load takes without weights_only=False."""
    if subject.driver.kind != "torch":
        return Finding("not applicable", "only in torch")
    is_safe = _begun(subject).loads_by_default()
    return Finding("pass") if is_safe else Finding("remark", "torch.load needs weights_only=False")


def placed(subject: Subject, judge: Judge) -> Finding:
    """Copies that a user puts into the state in place of its tensors."""
    if subject.driver.kind != "torch":
        return Finding("not applicable", "only in torch")
    try:
        finding = judge.judge(continued(subject, 17, "placed"))
    except ANYTHING as error:
        return Finding("remark", f"it needs its own tensors in its state: {one_line(error)}")
    if finding.outcome == "pass":
        return finding
    return Finding("remark", f"V is not read from the state: {finding.first}")


def in_place(subject: Subject, judge: Judge) -> Finding:
    """A step that writes to the memory of the parameters, which others may share."""
    if subject.driver.kind != "torch":
        return Finding("not applicable", "only in torch")
    if _begun(subject).steps_in_place():
        return Finding("pass")
    return Finding("remark", "a step replaces p.data; what shares the old memory does not follow")


def _begun(subject: Subject, **how: Any) -> Any:
    """Return a session after one step."""
    session = subject.driver.start([np.zeros(3, np.float32)], subject.options(), **how)
    session.step([np.ones(3, np.float32)])
    return session


def _in_memory(subject: Subject, judge: Judge, seed: int, way: str) -> Finding:
    if way not in subject.driver.session.ways:
        return Finding("not applicable", "only in torch")
    return judge.judge(continued(subject, seed, way))


def closure(subject: Subject, judge: Judge) -> Finding:
    """Steps with a closure that computes the gradients."""
    if not subject.driver.session.groups:
        return Finding("not applicable", "users pass no closure")
    session: Any = subject.driver.start([np.zeros(1, np.float32)], subject.options())
    if not session.takes_closure:
        return Finding("not applicable", "its step takes none")
    weights, gradients = subject.normal(4, seed=47)
    options = subject.options(**subject.accepted)
    try:
        finding = judge.judge(Case(weights, gradients, options, how={"closure": True}))
        if finding.outcome == "pass":
            finding = together(subject, judge, _in_two_groups(subject, closure=True))
        if finding.outcome == "pass":
            case = Case(weights, gradients, options, how={"closure": True, "raising": True})
            finding = judge.judge(case, "after a closure that raised an error")
    except ClosureRefusedError as error:
        return Finding("remark", f"it refuses a closure: {error}")
    if finding.outcome == "pass":
        pair = [np.zeros(3, np.float32)] * 2
        groups = [(1, options)] * 2 if subject.takes_groups else ()
        session = subject.driver.start(pair, options, closure=True, groups=groups)
        session.step([np.ones(3, np.float32)] * 2)
        if session.calls != 1:
            return Finding("differs", "", None, f"a step calls its closure {session.calls} times")
        if session.loss is None:
            return replace(finding, outcome="remark", note="step(closure) does not return the loss")
    return finding


def _in_two_groups(subject: Subject, **how: Any) -> Plan:
    """Return two groups, with weight decay and maximize in one of them; or one, if it must be."""
    base, own = subject.options(**subject.accepted), chosen(subject)
    if not subject.takes_groups:
        return Plan([normal_part(subject, 90, range(4))], [base], how=how)
    second = base | {name: values[0] for name, values in own.items() if name in OPTIONAL}
    parts = [normal_part(subject, 90 + k, range(4), k) for k in range(2)]
    return Plan(parts, [base, second], (0, 0), how=how)


def paths(subject: Subject, judge: Judge) -> Finding:
    """Steps with foreach, fused, capturable and differentiable, where the constructor has them."""
    accepted, refused = subject.paths
    if subject.driver.kind != "torch" or not (accepted or refused):
        return Finding("not applicable", "the constructor has none of them")
    if not accepted:
        return Finding("not applicable", "; ".join(refused))
    for way, argument in accepted.items():
        finding = first_wrong(_on_path(subject, judge, {"more": argument}))
        if finding.outcome != "pass":
            finding.note = joined(f"with {way}", finding.note)
            return finding
    return Finding("pass", "; ".join([f"with {', '.join(accepted)}", *refused]))


def _on_path(subject: Subject, judge: Judge, how: dict[str, Any]) -> Iterator[Finding]:
    """Judge what an optimizer of torch may forget on a path: options, a load, float64, V₀, NaN."""
    shapes = [*SHAPES, (2**16 + 9,)] * 4 + [(3,)] * subject.level.listed  # more than a chunk
    weights, gradients = patterned(subject.rng("paths"), 4, shapes)
    case = Case(weights, gradients, subject.options(**subject.accepted), how=how)
    yield judge.judge(case)
    short = case.only(range(8))
    yield judge.judge(replace(short, how={**how, "packed": True}), "parameters in one buffer")
    yield judge.judge(replace(continued(subject, 101, "reloaded"), how=how))
    if "float64" in subject.dtypes and subject.takes("float64"):
        weights, gradients = subject.normal(6, dtype=np.float64, seed=102)
        yield judge.judge(Case(weights, gradients, subject.options(), how=how))
    if (wrong := drawn.wrong_drawn(subject, **how)) is not None:
        yield Finding("differs", "V₀", None, wrong)
    yield nonfinite.swallowed(judge, how=how)


def scaler(subject: Subject, judge: Judge) -> Finding:
    """Steps by a gradient scaler, which skips one with an infinite loss before each."""
    if not subject.driver.session.groups:
        return Finding("not applicable", "only in torch")
    ways: dict[str, dict[str, Any]] = {"": {}} | subject.paths[0]
    for way, argument in ways.items():
        if "differentiable" in argument:  # its parameters here require no gradients
            continue
        finding = together(subject, judge, _in_two_groups(subject, scaled=True, more=argument))
        if finding.outcome != "pass":
            finding.note = joined(f"with {way}" if way else "", finding.note)
            break
    return finding
