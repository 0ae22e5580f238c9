"""Checks beside the update: saved states, unchanged gradients, maximize and weight decay."""

from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import SCALES, SHAPES, normal
from gravity_conformance.conform.checks.subject import OPTIONAL, Subject
from gravity_conformance.conform.judge.trial import Case


def resume(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with the state saved after six steps and loaded into a new optimizer."""
    if subject.driver.stateless:
        return Finding("not applicable", "V and t are the caller's")
    weights, gradients = normal(12, seed=17)
    return judge.judge(Case(weights, gradients, subject.options(), reload_after=6))


def gradient(subject: Subject, judge: Judge) -> Finding:
    """No step of any check changes a gradient, and no plain function changes w or v."""
    shapes, scales = (*SHAPES, ()), (*SCALES, 1.0)
    chosen = [{}, *({name: 0.1 if name == "weight_decay" else True} for name in OPTIONAL)]
    for wanted in chosen:
        if not all(map(subject.offers, wanted)):
            continue
        weights, gradients = normal(4, shapes, scales, seed=18)
        options = subject.options(**wanted)
        judge.observe(Case(weights, gradients, options))
        session = subject.driver.start(weights, options)
        session.step(gradients[0], float(options["learning_rate"]))
        if (name := getattr(session, "overwritten", None)) is not None:
            return Finding("differs", "", None, f"the step overwrote {name}", "inputs overwritten")
    return judge.touched or Finding("pass")


def maximize(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with maximize, which negates the gradient."""
    if not subject.offers("maximize"):
        return Finding("not applicable", "not offered")
    weights, gradients = normal(12, seed=19)
    options = subject.options(maximize=True)
    return judge.judge(Case(weights, gradients, options, subject.velocity(weights)))


def weight_decay(subject: Subject, judge: Judge) -> Finding:
    """Decoupled weight decay, W ← W − η λ W."""
    if not subject.offers("weight_decay"):
        return Finding("not applicable", "not offered")
    weights, gradients = normal(12, seed=20)
    options = subject.options(weight_decay=0.1)
    return judge.judge(Case(weights, gradients, options, subject.velocity(weights)))
