"""Checks beside the update: states, groups, unchanged gradients, maximize and weight decay."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import SCALES, SHAPES
from gravity_conformance.conform.checks.subject import OPTIONAL, Subject
from gravity_conformance.conform.judge.trial import Case, Group, Trial, perform_groups


def resume(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with the state saved after six steps and loaded into a new optimizer."""
    if subject.driver.stateless:
        return Finding("not applicable", "V and t are the caller's")
    finding = judge.judge(_continued(subject, 17, copied=False))
    grouped = judge.findings.get("groups")
    if finding.outcome == "pass" and grouped is not None and grouped.outcome == "pass":
        return _together(subject, judge, _grouped(subject), reload_after=4)
    return finding


def copied(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with the optimizer and its weights copied after six steps."""
    if not subject.driver.session.copies:
        return Finding("not applicable", "users do not copy it")
    return judge.judge(_continued(subject, 31, copied=True))


def _continued(subject: Subject, seed: int, *, copied: bool) -> Case:
    """Return a case that continues after six steps, at a rate that changed after three."""
    weights, gradients = subject.normal(12, seed=seed)
    options = subject.starting
    options["beta"] = subject.options(beta=0.6)["beta"]  # not the default of a constructor
    rates = subject.halved(12)
    return Case(weights, gradients, options, rates=rates, reload_after=6, copied=copied)


def groups(subject: Subject, judge: Judge) -> Finding:
    """Groups that differ in every option; one is added later."""
    if not subject.driver.session.groups:
        return Finding("not applicable", "it has no groups")
    finding = _together(subject, judge, _grouped(subject))
    finding.note = finding.note or f"they differ in {', '.join(_chosen(subject))}"
    return finding


def _chosen(subject: Subject) -> dict[str, Sequence[Any]]:
    """Return the options that groups may have of their own, and their values."""
    wanted: dict[str, Sequence[Any]] = {
        "learning_rate": (0.1, 0.03, 0.2, 0.05),
        "beta": (0.9, 0.5, 0.75, 0.6),
        "weight_decay": (0.0, 0.1, 0.05, 0.2),
        "maximize": (False, True, False, True),
    }
    # torch keeps the options of a group if they are among the defaults.
    defaults = subject.driver.start([np.zeros(1, np.float32)], subject.options()).optimizer.defaults
    names = subject.driver.arguments.names
    return {n: values for n, values in wanted.items() if names.get(n) in defaults}


def _grouped(subject: Subject) -> list[Group]:
    given = []
    for k, (steps, after) in enumerate(((6, 0), (6, 0), (6, 0), (3, 3))):
        weights, gradients = subject.normal(steps, seed=40 + k)
        options = subject.options() | {name: values[k] for name, values in _chosen(subject).items()}
        given.append(Group(Case(weights, gradients, options), after))
    return given


def missing(subject: Subject, judge: Judge) -> Finding:
    """A tensor that has no gradient after two steps, and one that has none in between."""
    if not subject.driver.session.groups:
        return Finding("not applicable", "every tensor has a gradient")
    options = subject.options()
    if subject.offers("weight_decay"):
        options["weight_decay"] = 0.1
    given = []
    for seed, steps, gap in ((44, 6, (0, 0)), (45, 2, (0, 0)), (46, 4, (2, 2))):
        weights, gradients = subject.normal(steps, seed=seed)
        given.append(Group(Case(weights, gradients, options), gap=gap))
    return _together(subject, judge, given)


def _together(subject: Subject, judge: Judge, given: Sequence[Group], **how: Any) -> Finding:
    """Judge each of several groups of one optimizer."""
    how |= {"at_rest": subject.at_rest, "hidden": subject.hidden}
    runs = perform_groups(subject.driver, given, given[0].case.options, **how)
    worst = 0.0
    for group, run in zip(given, runs, strict=True):
        # An optimizer may count the steps of a tensor, or its own.
        starts = dict.fromkeys((subject.first_step, subject.first_step + group.after))
        trials = [[Trial(group.case, run, first)] for first in starts]
        at, length = group.gap
        if length and all(v is not None for v, _ in run.states):
            (whole,) = trials[0]
            trials.append([whole.beginning(at), whole.rest(at, length)])
        findings = [_worst([judge.found(trial) for trial in parts]) for parts in trials]
        finding = next((f for f in findings if f.outcome == "pass"), findings[0])
        if finding.outcome != "pass":
            of = [f"{name} {value:g}" for name, value in group.case.options.items()]
            of += [f"added after {group.after} steps"] if group.after else []
            finding.note = "; ".join(filter(None, (f"group of {', '.join(of)}", finding.note)))
            return finding
        worst = max(worst, finding.worst or 0.0)
    return Finding("pass", "", worst)


def _worst(findings: Sequence[Finding]) -> Finding:
    return max(findings, key=lambda f: (f.outcome != "pass", f.worst or 0.0))


def closure(subject: Subject, judge: Judge) -> Finding:
    """Steps with a closure that computes the gradients."""
    if not subject.driver.session.groups:
        return Finding("not applicable", "users pass no closure")
    session: Any = subject.driver.start([np.zeros(1, np.float32)], subject.options())
    if not session.takes_closure:
        return Finding("not applicable", "its step takes none")
    weights, gradients = subject.normal(4, seed=47)
    return judge.judge(Case(weights, gradients, subject.options(), closure=True))


def gradient(subject: Subject, judge: Judge) -> Finding:
    """No step of any check changes a gradient, and no plain function changes w or v."""
    shapes: Sequence[tuple[int, ...]] = SHAPES
    scales: Sequence[float] = SCALES
    if subject.refused(shape=()) is None:
        shapes, scales = (*SHAPES, ()), (*SCALES, 1.0)
    chosen = [{}, *({name: 0.1 if name == "weight_decay" else True} for name in OPTIONAL)]
    for wanted in chosen:
        if not all(map(subject.offers, wanted)):
            continue
        weights, gradients = subject.normal(4, shapes, scales, seed=18)
        options = subject.options(**wanted)
        judge.observe(Case(weights, gradients, options))
    return judge.touched or Finding("pass")


def maximize(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with maximize, which negates the gradient."""
    if not subject.offers("maximize"):
        return Finding("not applicable", "not offered")
    weights, gradients = subject.normal(12, seed=19)
    options = subject.options(maximize=True)
    return judge.judge(Case(weights, gradients, options, subject.velocity(weights)))


def weight_decay(subject: Subject, judge: Judge) -> Finding:
    """Decoupled weight decay, W ← W − η λ W; also with a schedule, and with maximize."""
    if not subject.offers("weight_decay"):
        return Finding("not applicable", "not offered")
    weights, gradients = subject.normal(12, seed=20)
    options = subject.options(weight_decay=0.1)
    finding = judge.judge(Case(weights, gradients, options, subject.velocity(weights)))
    if finding.outcome != "pass":
        return finding
    if subject.offers("maximize") and subject.refused(maximize=True) is None:
        options["maximize"] = True
    finding = judge.judge(Case(weights, gradients, options, rates=subject.halved(12)))
    if finding.outcome != "pass" or subject.driver.session.compiles:
        return finding  # the check "compiled" has tensors of many sizes with weight decay
    return judge.judge(subject.swept(subject.rng("weight-decay"), False, options))
