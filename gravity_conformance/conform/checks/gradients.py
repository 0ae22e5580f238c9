"""Checks that feed gradients and judge every element of V and W after every step."""

from dataclasses import replace

import numpy as np

from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import (
    NO_BFLOAT16,
    SCALES,
    SHAPES,
    has_bfloat16,
    normal,
)
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_core import hyperparameters as hp

LARGE = ((2, 3, 4, 5), (5_000,))
LONG = 2_200  # steps: a counter in float16 stops at 2048, one in bfloat16 at 256
LATE = 2_100  # steps, after which neither half type can count


def update(subject: Subject, judge: Judge) -> Finding:
    """One update of three tensors, and one of two larger tensors."""
    findings = []
    for shapes, scales in ((SHAPES, SCALES), (LARGE, (3.0, 1.0))):
        weights, gradients = normal(1, shapes, scales)
        gradients[0][-1].flat[-1] = 9.0  # a maximum that misses the last element is wrong
        v = subject.velocity(weights)
        findings.append(judge.judge(Case(weights, gradients, subject.options(), v)))
        if findings[-1].outcome != "pass":
            return findings[-1]
    return max(findings, key=lambda finding: finding.worst or 0.0)


def trajectory(subject: Subject, judge: Judge) -> Finding:
    """Sixty steps, with η and β other than their defaults."""
    weights, gradients = normal(60, seed=4)
    options = subject.options(learning_rate=0.03, beta=0.75)
    case = Case(weights, gradients, options, subject.velocity(weights))
    return judge.judge(case, plot=True)


def drawn(subject: Subject, judge: Judge) -> Finding:
    """A trajectory that starts from the implementation's own V₀."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    weights, gradients = normal(10, seed=5)
    options = {k: v for k, v in subject.options().items() if k not in subject.resting}
    if subject.offers("alpha"):
        options["alpha"] = subject.driver.arguments.fixed.get("alpha", hp.ALPHA)
    case = Case(weights, gradients, options)
    return judge.found(judge.observe(case, at_rest=False))


def long(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with more steps than float16 can count."""
    weights, gradients = normal(LONG, ((3,), (2,)), (1.0, 5.0), seed=6)
    return judge.judge(Case(weights, gradients, subject.options(), fast=True), f"{LONG} steps")


def double(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in float64."""
    weights, gradients = normal(20, dtype=np.float64, seed=7)
    return judge.judge(Case(weights, gradients, subject.options()))


def float16(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in float16, and late steps, which float16 cannot count."""
    weights, gradients = normal(20, dtype=np.float16, seed=8)
    return _half(subject, judge, Case(weights, gradients, subject.options()))


def bfloat16(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in bfloat16, and late steps, which bfloat16 cannot count."""
    if subject.driver.stateless and not has_bfloat16():
        return Finding("not applicable", NO_BFLOAT16)
    weights, gradients = normal(20, seed=22)
    rounded = [_to_bfloat16(x) for x in weights], [[_to_bfloat16(g) for g in x] for x in gradients]
    return _half(subject, judge, Case(*rounded, subject.options(), bfloat16=True))


def _half(subject: Subject, judge: Judge, case: Case) -> Finding:
    """Judge a trajectory in a half type. If it passes, judge three late steps of another.

    The late steps use β = 1, so 1 − β̂ is small. They start from V = 0, so no rounding of V hides
    an error of 1 − β̂.
    """
    finding = judge.judge(case)
    if finding.outcome != "pass" or not subject.at_rest:
        return finding
    options = subject.options(beta=1.0)
    if (why := subject.refused(beta=1.0)) is not None:
        options, finding.note = subject.options(), f"it refuses β = 1: {why}"
    weights, gradients = normal(3, ((3,), (2,)), (1.0, 5.0), seed=25)
    to_half = _to_bfloat16 if case.bfloat16 else _to_float16
    weights = [to_half(w) for w in weights]
    gradients = [[to_half(g) for g in grads] for grads in gradients]
    v = [0 * w for w in weights]
    if subject.unwritable is None:
        late = Case(weights, gradients, options, v, LATE, bfloat16=case.bfloat16)
        trial = judge.observe(late)
    else:
        late = Case(weights, [v] * LATE + gradients, options, fast=True, bfloat16=case.bfloat16)
        trial = judge.observe(late)
        v_late, w_late = trial.run.states[LATE - 1]
        uncertain, states = trial.run.uncertain, trial.run.states[LATE:]
        run = Run(LATE, (v_late or v, w_late), uncertain, states)
        trial = Trial(replace(late, gradients=gradients), run, trial.first_step)
    other = judge.found(trial, f"after {LATE} steps")
    if other.outcome == "pass":
        other.note, other.worst = finding.note, max(other.worst or 0.0, finding.worst or 0.0)
    return other


def _to_float16(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16)


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Truncate numbers to bfloat16. The result is float32, with the last 16 bits 0."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def compiled(subject: Subject, judge: Judge) -> Finding:
    """A trajectory compiled as users compile it: by jax.jit or by Keras's trainer."""
    if not subject.driver.session.compiles:
        return Finding("not applicable", "nothing is compiled")
    weights, gradients = normal(12, seed=26)
    return judge.judge(Case(weights, gradients, subject.options(), fast=True))


def groups(subject: Subject, judge: Judge) -> Finding:
    """Two groups of parameters; one parameter has no gradient."""
    if not subject.driver.session.groups:
        return Finding("not applicable", "it has no groups")
    weights, gradients = normal(4, seed=27)
    return judge.judge(Case(weights, gradients, subject.options(), grouped=True))


def schedule(subject: Subject, judge: Judge) -> Finding:
    """A learning rate that changes during the run, and is 0 at one step."""
    if subject.unschedulable is not None:
        return Finding("not applicable", subject.unschedulable)
    weights, gradients = normal(12, seed=9)
    rates = [0.1, 0.1, 0.05, 0.2, 0.0, 0.1, 0.3, 0.01, 0.02, 0.04, 0.08, 0.16]
    options = subject.options(learning_rate=rates[0])
    return judge.judge(Case(weights, gradients, options, rates=rates))


def _scaled(subject: Subject, judge: Judge, scale: float, seed: int) -> Finding:
    weights, gradients = normal(6, SHAPES, (scale,) * 3, seed=seed)
    return judge.judge(Case(weights, gradients, subject.options()))


def zero(subject: Subject, judge: Judge) -> Finding:
    """Zero gradients, after one step with other gradients."""
    weights, gradients = normal(6, seed=10)
    for grads in gradients[1:]:
        grads[:] = [0 * g for g in grads]
    return judge.judge(Case(weights, gradients, subject.options()))


def huge(subject: Subject, judge: Judge) -> Finding:
    """Gradients of about 1e12, and one element of 3e38."""
    weights, gradients = normal(6, SHAPES, (1e12,) * 3, seed=11)
    gradients[3][1][:] = [3e38, 0, 1, -1e-30, 1e19]
    return judge.judge(Case(weights, gradients, subject.options()))


def tiny(subject: Subject, judge: Judge) -> Finding:
    """Gradients of 1e-25."""
    return _scaled(subject, judge, 1e-25, 12)


def subnormal(subject: Subject, judge: Judge) -> Finding:
    """Gradients of 1e-41, which are subnormal numbers in float32."""
    return _scaled(subject, judge, 1e-41, 13)


def nonfinite(subject: Subject, judge: Judge) -> Finding:
    """NaN and infinity in the gradient of one tensor show in that tensor, and in no other."""
    notes = []
    for value in (np.nan, np.inf):
        weights, gradients = normal(3, ((5,), (4,)), (1.0, 1.0), seed=14)
        gradients[1][0][2] = value
        trial = judge.observe(Case(weights, gradients, subject.options()))
        run = trial.run
        # Judge the other tensor alone.
        case = Case(weights[1:], [g[1:] for g in gradients], subject.options())
        other = Run(
            run.count,
            (run.start[0][1:], run.start[1][1:]),
            run.uncertain[1:],
            [(None if v is None else v[1:], w[1:]) for v, w in run.states],
        )
        finding = judge.found(Trial(case, other, trial.first_step))
        if finding.outcome != "pass":
            if finding.diagnosis is None and not np.isfinite(run.states[-1][1][1]).all():
                finding.diagnosis = "m from the whole model, not per tensor"
            finding.first = f"in a tensor without {value}: {finding.first}"
            return finding
        after = run.states[-1][1][0]
        if np.isfinite(after[2]):
            first = f"W of tensor 0 after step 2, element [2]: {after[2]:.9g} from a gradient of"
            return Finding("differs", f"{value} is swallowed", None, f"{first} {value}")
        whole = not np.isfinite(after).any()
        notes.append(f"{value} shows in {'its tensor' if whole else 'its elements'}")
    return Finding("pass", "; ".join(notes))


def empty(subject: Subject, judge: Judge) -> Finding:
    """Empty tensors, next to one that is not empty."""
    weights, gradients = normal(3, ((0,), (0, 3), (3,)), (1.0, 1.0, 2.0), seed=15)
    return judge.judge(Case(weights, gradients, subject.options()))


def scalar(subject: Subject, judge: Judge) -> Finding:
    """0-d tensors."""
    weights, gradients = normal(4, ((), (2,)), (1.0, 5.0), seed=16)
    return judge.judge(Case(weights, gradients, subject.options()))
