"""Checks that feed gradients and judge every element of V and W after every step."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import SHAPES, patterned
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.compare import compare
from gravity_conformance.conform.judge.perform import certain, seen
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_conformance.drive.session import Arrays

# Steps after which counters of 8, 11, 15, 16 and 24 bits stop or start again.
FAR = (2**8 - 2, 2**11 - 2, 2**15 - 2, 2**16 - 2, 2**24 - 8)


def update(subject: Subject, judge: Judge) -> Finding:
    """Updates of a few tensors, of a long list, and of tensors of many sizes and shapes."""
    rng = subject.rng("update")
    weights, gradients = subject.normal(3)
    small = Case(weights, gradients, subject.options(), subject.velocity(weights))
    finding = judge.judge(small)
    for lr in (1e-5, 5.0):  # η has no limits
        if finding.outcome == "pass" and "learning_rate" not in subject.driver.arguments.fixed:
            options = subject.options(learning_rate=lr)
            finding = judge.judge(replace(small, options=options), f"η = {lr:g}")
    finding.note = "" if finding.outcome == "pass" else finding.note
    if finding.outcome == "pass":  # a list that is longer than a block of tensors
        weights, gradients = patterned(rng, 2, [(3,)] * subject.level.listed)
        finding = judge.judge(
            Case(weights, gradients, subject.options(), subject.velocity(weights))
        )
    for _ in range(subject.level.repeats):
        if finding.outcome == "pass":
            other = judge.judge(subject.swept(rng, fast=False))
            other.worst = max(other.worst or 0.0, finding.worst or 0.0)
            finding = other
    return finding


def large(subject: Subject, judge: Judge) -> Finding:
    """Two updates of a table as large as those of language models, and of a wide and a tall one."""
    rows = subject.level.vocabulary + int(subject.rng("large").integers(64))
    shapes = ((rows, 768), (5, 9 * rows), (9 * rows, 5))
    weights, gradients = subject.normal(2, shapes, (1.0, 1.0, 1.0), seed=51)
    for g in gradients[0]:
        g.flat[-1] = 10.0  # the greatest: no other number is as far from 0
    case = Case(weights, gradients, subject.options(), subject.velocity(weights))
    return judge.judge(case, f"shapes {', '.join(map(str, shapes))}")


def trajectory(subject: Subject, judge: Judge) -> Finding:
    """Sixty steps, with η and β other than their defaults."""
    rng = subject.rng("trajectory")
    weights, gradients = subject.normal(60, seed=4)
    lr, beta = float(rng.uniform(0.02, 0.05)), float(rng.uniform(0.5, 0.8))
    options = subject.options(learning_rate=lr, beta=beta)
    case = Case(weights, gradients, options, subject.velocity(weights))
    return judge.judge(case, plot=True)


def drawn(subject: Subject, judge: Judge) -> Finding:
    """A trajectory that starts from the implementation's own V₀."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    weights, gradients = subject.normal(10, seed=5)
    return judge.judge(Case(weights, gradients, subject.drawing))


def long(subject: Subject, judge: Judge) -> Finding:
    """A long trajectory; where t can be set, also steps far from the first."""
    settable = subject.unwritable is None
    steps = subject.level.steps[settable]
    weights, gradients = subject.normal(steps, ((3,), (2,)), (1.0, 5.0), seed=6)
    finding = judge.judge(Case(weights, gradients, subject.options(), fast=True), f"{steps} steps")
    if not settable:
        return finding
    # With β = 1, 1 − β̂ is small, so an error of t shows.
    options = subject.decaying
    if subject.refused(beta=1.0) is None:
        options["beta"] = subject.options(beta=1.0)["beta"]
    weights, gradients = subject.normal(5, ((3,), (2,)), (1.0, 5.0), seed=29)
    # A step that writes a scheduled rate is compiled for every number of steps.
    paths = (False, True) if subject.driver.session.compiles else (False,)
    for count, fast in ((count, fast) for count in FAR for fast in paths):
        if finding.outcome == "pass":
            v = [0 * w for w in weights]
            other = judge.judge(Case(weights, gradients, options, v, count, fast=fast))
            other.note = f"{finding.note}; after {count:,} steps".replace("pass; ", "")
            finding = other if other.outcome != "pass" else finding
    return finding


def double(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in float64, and gradients of many sizes, at which 1 differs from 1 + (G/m)²."""
    weights, gradients = subject.normal(20, dtype=np.float64, seed=7)
    finding = judge.judge(Case(weights, gradients, subject.options()))
    if finding.outcome == "pass":
        shapes, scales = ((200,),) * 5, (10.0, 100.0, 1e3, 3e3, 1e4)
        weights, gradients = subject.normal(3, shapes, scales, np.float64, seed=76)
        finding = judge.judge(Case(weights, gradients, subject.options()), "large gradients")
        finding.note = "" if finding.outcome == "pass" else finding.note
    return finding


def compiled(subject: Subject, judge: Judge) -> Finding:
    """Compiled as users compile it, by jax.jit or by Keras's trainer: tensors of many sizes."""
    if not subject.driver.session.compiles:
        return Finding("not applicable", "nothing is compiled")
    weights, gradients = subject.normal(12, seed=26)
    # β is new, so whatever is cached for it is made while a step is traced.
    options = subject.options(beta=0.8125) | subject.accepted
    case = Case(weights, gradients, options, rates=subject.halved(12), fast=True)
    finding = judge.judge(case)
    if finding.outcome == "pass" and subject.driver.kind == "optax":
        finding = _donated(judge, case)
    if finding.outcome == "pass" and subject.driver.session.builds_in_a_graph():
        started = replace(case, options=subject.starting, rates=None, fast=False)
        finding = judge.judge(replace(started, how={"mode": "function", "unbuilt": True}))
        finding.note = "" if finding.outcome == "pass" else "built inside tf.function"
    if finding.outcome == "pass":
        return judge.judge(subject.swept(subject.rng("compiled"), True, options))
    return finding


def _donated(judge: Judge, case: Case) -> Finding:
    """Judge steps that get the memory of the state, and a training after them."""
    finding = judge.judge(replace(case, how={"donated": True}))
    if finding.outcome == "pass":  # nothing that the first training donated may be needed
        finding = judge.judge(replace(case, gradients=case.gradients[:2], rates=None, fast=False))
    finding.note = "" if finding.outcome == "pass" else "with donated buffers"
    return finding


def transformed(subject: Subject, judge: Judge) -> Finding:
    """All steps of a training inside `jax.lax.scan`, also inside `jax.vmap` beside another one."""
    if subject.driver.kind != "optax":
        return Finding("not applicable", "only in JAX")
    weights, gradients = subject.normal(5, seed=66)
    case = Case(weights, gradients, subject.decaying)
    finding = Finding("pass")
    for mapped in (False, True):
        session: Any = subject.driver.start(weights, case.options)
        v = [0 * w for w in weights] if subject.at_rest else session.velocity()
        if v is None:
            return Finding("not applicable", "its state does not show V")
        run = Run(0, (v, weights), certain(case))
        for k, (v, w) in enumerate(session.scanned(gradients, mapped=mapped)):
            run.states.append(seen(case, None if subject.hidden else v, w, k + 1))
        where = "in lax.scan under vmap" if mapped else "in lax.scan"
        finding = judge.found(Trial(case, run, subject.first_step), where)
        if finding.outcome != "pass":
            return finding
    finding.note = ""
    return finding


def schedule(subject: Subject, judge: Judge) -> Finding:
    """A learning rate that changes during the run, and is 0 at one step."""
    if subject.unschedulable is not None:
        return Finding("not applicable", subject.unschedulable)
    weights, gradients = subject.normal(12, seed=9)
    rates = [0.1, 0.1, 0.05, 0.2, 0.0, 0.1, 0.3, 0.01, 0.02, 0.04, 0.08, 0.16]
    options, why = subject.starting, subject.refused(schedule=[0.0, 0.1])
    options["learning_rate"] = rates[0]
    if why is not None:
        rates[rates.index(0.0)] = 0.15
    finding = judge.judge(Case(weights, gradients, options, rates=rates))
    if why is not None and finding.outcome == "pass":
        finding.outcome, finding.note = "remark", f"it refuses a learning rate of 0: {why}"
    return finding


def rate(subject: Subject, judge: Judge) -> Finding:
    """A learning rate that is an array of the framework."""
    weights, gradients = subject.normal(3, seed=30)
    options = subject.options(learning_rate=0.0625)  # every dtype has it
    v = subject.velocity(weights)
    return judge.judge(Case(weights, gradients, options, v, how={"array_rate": True}))


def strides(subject: Subject, judge: Judge) -> Finding:
    """Weights and gradients that are transposed, sliced or expanded, or lie in one buffer."""
    if not subject.driver.session.strides:
        return Finding("not applicable", "its arrays have no strides")
    case = _of_six_shapes(subject, "strides")
    for grads in case.gradients:
        for g in grads[::2] + grads[9:18]:
            g[:] = g[:1]  # one row in memory can hold such a gradient
    finding = judge.judge(replace(case, how={"strided": True}))
    if finding.outcome == "pass" and subject.driver.kind == "torch":
        finding = judge.judge(replace(case, how={"packed": True}))
        finding.note = "" if finding.outcome == "pass" else "of parameters that lie in one buffer"
    return finding


def swapped(subject: Subject, judge: Judge) -> Finding:
    """Arrays of the byte order that the machine does not have, as from some files."""
    if subject.driver.kind != "plain":
        return Finding("not applicable", "only in NumPy")
    return judge.judge(replace(_of_six_shapes(subject, "swapped"), how={"swapped": True}))


def _of_six_shapes(subject: Subject, name: str) -> Case:
    """Return steps of tensors of six shapes; in a list of 36, each gets every layout."""
    shapes = ((4, 3), (5,), (2, 3, 4), (33, 17), (70,), (3, 2, 2, 2)) * 6
    weights, gradients = patterned(subject.rng(name), 4, shapes)
    return Case(weights, gradients, subject.options(), subject.velocity(weights))


def turns(subject: Subject, judge: Judge) -> Finding:
    """Two trainings step by step in turn: nothing of one may be used in the other."""
    rng = subject.rng("turns")
    findings = []
    others = {"learning_rate": 0.04}
    if "weight_decay" in subject.decaying:
        others["weight_decay"] = 0.2
    alike, different = (SHAPES, SHAPES), (((6,), (3, 4)), ((40,), (2, 5), (3,)))
    # The shapes of both trainings, β of the second one, and whether both have schedules.
    pairs = [(alike, 0.9, False), (alike, 0.7, False), (different, 0.7, False)]
    if subject.unschedulable is None:
        pairs.append((alike, 0.9, True))
    shares = (False, True) if subject.driver.session.shares else (False,)
    for (pair, beta, scheduled), shared in itertools.product(pairs, shares):
        if shared and scheduled:  # one optimizer has one schedule
            continue
        cases: list[Case] = []
        for shapes in pair:
            options = subject.decaying
            if cases and not shared:
                options = subject.options(**others, beta=beta)
            weights, gradients = patterned(rng, 5, shapes)
            factors = (1.0, 2.0, 0.5, 1.0, 2.0) if cases else (1.0, 0.5, 0.25, 0.5, 1.0)
            rates = [float(options["learning_rate"]) * x for x in factors] if scheduled else None
            velocity = subject.velocity(weights)
            cases.append(Case(weights, gradients, options, velocity, rates=rates))
        findings += [judge.found(trial) for trial in judge.in_turn(cases, shared=shared)]
    wrong = [finding for finding in findings if finding.outcome != "pass"]
    return wrong[0] if wrong else max(findings, key=lambda finding: finding.worst or 0.0)


def _scaled(subject: Subject, judge: Judge, scale: float, seed: int) -> Finding:
    weights, gradients = subject.normal(6, SHAPES, (scale,) * 3, seed=seed)
    return judge.judge(Case(weights, gradients, subject.options()))


def zero(subject: Subject, judge: Judge) -> Finding:
    """Zero gradients, after one step with other gradients."""
    weights, gradients = subject.normal(6, seed=10)
    for grads in gradients[1:]:
        grads[:] = [0 * g for g in grads]
    return judge.judge(Case(weights, gradients, subject.options()))


def huge(subject: Subject, judge: Judge) -> Finding:
    """Gradients of about 1e12, and one element of 3e38."""
    weights, gradients = subject.normal(6, SHAPES, (1e12,) * 3, seed=11)
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
    for value in (np.nan, np.inf, -np.inf):
        weights, gradients = subject.normal(3, ((5,), (4,)), (1.0, 1.0), seed=14)
        gradients[1][0][2] = value
        trial = judge.observe(Case(weights, gradients, subject.options()))
        run = trial.run
        finding = judge.found(trial.only([1]))
        if finding.outcome != "pass":
            if finding.diagnosis is None and not np.isfinite(run.states[-1][1][1]).all():
                finding.diagnosis = "m from the whole model, not per tensor"
            finding.first = f"in a tensor without {value}: {finding.first}"
            return finding
        after = run.states[-1][1][0]
        if np.isfinite(after[2]):
            first = f"W of tensor 0 after step 2, element [2]: {after[2]:.9g} from a gradient of"
            return Finding("differs", f"{value} is swallowed", None, f"{first} {value}")
        if np.isinf(value) and (found := _beside_infinity(trial.only([0]))) is not None:
            return Finding("differs", "an infinity is left out of max|G|", None, found)
        whole = not np.isfinite(after).any()
        notes.append(f"{value} shows in {'its tensor' if whole else 'its elements'}")
    if subject.driver.session.strides and (found := _nan_lost(subject)) is not None:
        return Finding("differs", "NaN is left out of max|G|", None, found)
    return Finding("pass", "; ".join(notes))


def _beside_infinity(trial: Trial) -> str | None:
    """Describe an element that is finite beside an infinite one, and wrong: there, ζ is 0."""
    zeros = [np.zeros_like(g) for g in trial.case.gradients[1]]
    gradients = [trial.case.gradients[0], zeros, *trial.case.gradients[2:]]
    still = replace(trial, case=replace(trial.case, gradients=gradients))

    def finite(arrays: Arrays, exact: Arrays | None) -> Arrays:
        pairs = zip(arrays, exact or (), strict=True)
        return [np.where(np.isfinite(x), x, e.astype(x.dtype)) for x, e in pairs]

    states = [
        (v if v is None else finite(v, exact_v), finite(w, exact_w))
        for (v, w), (exact_v, exact_w) in zip(trial.run.states, still.exact.states, strict=True)
    ]
    return compare(replace(still, run=replace(trial.run, states=states))).first


def _nan_lost(subject: Subject) -> str | None:
    """Describe a finite element of a tensor whose gradient has one NaN, by its size and place.

    In Keras and JAX, XLA's maximum may lose it.
    """
    for size in (3, 100, 5_003, 2**16 + 9, 2**20 + 9):
        for place in (0, size // 2, size - 1):
            weights, gradients = subject.normal(1, ((size,),), (1.0,), seed=49)
            gradients[0][0][place] = np.nan
            _, (w,) = subject.run(Case(weights, gradients, subject.options())).states[0]
            if (finite := np.flatnonzero(np.isfinite(w))).size:
                where = f"W after a gradient of {size:,} elements with NaN in element [{place}]"
                return f"{where}, element [{finite[0]}]: {w[finite[0]]:.9g}"
    return None


def empty(subject: Subject, judge: Judge) -> Finding:
    """Empty tensors, next to one that is not empty."""
    weights, gradients = subject.normal(3, ((0,), (0, 3), (3,)), (1.0, 1.0, 2.0), seed=15)
    return judge.judge(Case(weights, gradients, subject.options()))


def scalar(subject: Subject, judge: Judge) -> Finding:
    """0-d tensors."""
    weights, gradients = subject.normal(4, ((), (2,)), (1.0, 5.0), seed=16)
    return judge.judge(Case(weights, gradients, subject.options()))
