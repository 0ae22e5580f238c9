"""Checks of half types. Code that computes in half precision gets a remark: the paper allows it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, refusal
from gravity_conformance.conform.checks import combined, drawn, nonfinite
from gravity_conformance.conform.checks import gradients as gradients_of
from gravity_conformance.conform.checks.findings import Finding, Judge, joined
from gravity_conformance.conform.checks.inputs import (
    NO_BFLOAT16,
    SCALES,
    SHAPES,
    has_bfloat16,
    to_dtype,
)
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.together import Part, Plan
from gravity_conformance.conform.judge.trial import Case, Run, Trial, WrongResultError
from gravity_conformance.drive.session import Arrays
from gravity_conformance.mutations import COARSE

LATE = 2_100  # steps, after which neither half type can count


def float16(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in float16, late steps, which it cannot count, and gradients beside float32."""
    finding = _beside_float32(subject, judge, "float16", _half(subject, judge, "float16", 8))
    if finding.outcome != "pass" or subject.driver.kind not in ("plain", "optax"):
        return finding  # in torch and Keras, a gradient has the dtype of its weights
    weights, gradients = subject.normal(3, seed=50)
    half = [[g.astype(np.float16) for g in grads] for grads in gradients]
    options = subject.options(**subject.accepted)
    case = Case(weights, half, options, subject.velocity(weights))
    wide = replace(case, gradients=[[g.astype(np.float32) for g in grads] for grads in half])
    trial = Trial(wide, subject.run(case), subject.first_step)
    # An update in optax may have the dtype of the gradient, so W is not judged.
    what = "V" if subject.driver.kind == "optax" else "VW"
    if what == "V" and trial.run.states[0][0] is None:
        return finding
    other = judge.found(trial, "float16 gradients beside float32 weights", what=what)
    return finding if other.outcome == "pass" else other


def bfloat16(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in bfloat16, and late steps, which bfloat16 cannot count."""
    if subject.driver.stateless and not has_bfloat16():
        return Finding("not applicable", NO_BFLOAT16)
    return _beside_float32(subject, judge, "bfloat16", _half(subject, judge, "bfloat16", 22))


def _half(subject: Subject, judge: Judge, dtype: str, seed: int) -> Finding:
    """Judge a trajectory in a half type. If it is right, judge late steps, V₀ and combinations.

    The late steps use β = 1, so 1 − β̂ is small. They start from V = 0, so no rounding of V hides
    an error of 1 − β̂. If the state can be loaded, it is, and 300 steps with zero gradients follow.
    """
    bfloat16 = dtype == "bfloat16"
    shapes, scales = (*SHAPES, (65,), (7, 3, 5)), (*SCALES, 1.0, 3.0)
    weights, gradients = subject.normal(20, shapes, scales, seed=seed)
    weights, gradients = _to_half(weights, dtype), [_to_half(g, dtype) for g in gradients]
    case = Case(weights, gradients, subject.options(), bfloat16=bfloat16)
    finding = _found(judge, judge.observe(case))
    if finding.outcome not in ("pass", "remark") or not subject.at_rest:
        return finding
    # Also in half precision, where 20 steps show a large decay only.
    values: tuple[tuple[str, Any], ...] = ("maximize", True), ("weight_decay", 0.5)
    for name, value in values:
        if name in subject.accepted:
            options = subject.options(**{name: value})
            trial = judge.observe(replace(case, options=options))
            other = _found(judge, trial, f"with {name.replace('_', ' ')}")
            if other.outcome not in ("pass", "remark"):
                return other
    _, large = subject.normal(3, shapes, (0.01,) * len(shapes), seed=108)
    for grads in large:
        for g in grads:
            g.flat[0], g.flat[-1] = 300.0, -500.0  # float16 does not hold their squares
    trial = judge.observe(replace(case, gradients=[_to_half(grads, dtype) for grads in large]))
    other = _found(judge, trial, "with a few large elements")
    if other.outcome not in ("pass", "remark"):
        return other
    others, _ = subject.normal(0, shapes, scales, seed=64)
    others = _to_half(others, dtype)
    chosen = replace(case, gradients=gradients[:9], reload_after=6, assigned=others)
    other = _found(judge, judge.observe(chosen), "with weights assigned by the user")
    if other.outcome not in ("pass", "remark"):
        return other
    options = subject.options(beta=1.0)
    if (why := subject.refused(beta=1.0)) is not None:
        options = subject.options()
        finding.note = joined(finding.note, refusal("β = 1", why))
    weights, gradients = subject.normal(3, ((3,), (2,)), (1.0, 5.0), seed=25)
    weights, gradients = _to_half(weights, dtype), [_to_half(g, dtype) for g in gradients]
    v = [0 * w for w in weights]
    # A state that is loaded may have another dtype, in which t no longer grows.
    resumed = judge.findings.get("resume")
    loads = not subject.driver.stateless and subject.reloads
    loads = loads and (resumed is None or resumed.outcome in ("pass", "remark"))
    if subject.unwritable is None:
        late = Case(weights, gradients, options, v, LATE, bfloat16=bfloat16)
        if loads:
            late = replace(late, gradients=[v] * 300 + gradients, reload_after=0)
        trial = judge.observe(late)
        other = _found(judge, trial, f"after {LATE} steps")
        if other.outcome in ("pass", "remark") and subject.driver.session.compiles:
            trial = judge.observe(replace(late, gradients=late.gradients[-3:], fast=True))
    else:
        late = Case(weights, [v] * LATE + gradients, options, fast=True, bfloat16=bfloat16)
        trial = judge.observe(replace(late, reload_after=300 if loads else None))
        v_late, w_late = trial.run.states[LATE - 1]
        uncertain, states = trial.run.uncertain, trial.run.states[LATE:]
        run = Run(LATE, (v_late or v, w_late), uncertain, states)
        trial = Trial(replace(late, gradients=gradients), run, trial.first_step)
    other = _found(judge, trial, f"after {LATE} steps")
    if other.outcome not in ("pass", "remark"):
        return other
    finding.worst = max(other.worst or 0.0, finding.worst or 0.0)
    if "remark" in (finding.outcome, other.outcome):
        return finding if finding.outcome == "remark" else other
    if (wrong := drawn.wrong_drawn(subject, dtype)) is not None:
        return Finding("differs", "V₀", None, wrong)
    if (lost := nonfinite.swallowed(judge, dtype)).outcome != "pass":
        return lost
    if subject.driver.kind == "optax":
        other = gradients_of.in_one_call(subject, judge, dtype)
        if other.outcome not in ("pass", "not applicable"):
            return other
    found = combined.half(subject, judge, dtype, finding)
    if found.diagnosis == COARSE.description:
        return Finding("remark", COARSE.description, found.worst)
    return found


def _beside_float32(subject: Subject, judge: Judge, dtype: str, finding: Finding) -> Finding:
    """Judge half tensors before and after float32 ones, if what is found so far is right."""
    for wide_ones in ((1, 3), (0, 2)):
        if finding.outcome in ("pass", "remark") and not subject.driver.stateless:
            other = _mixed(subject, judge, dtype, wide_ones)
            finding = finding if other.outcome in ("pass", "remark") else other
    return finding


def _mixed(subject: Subject, judge: Judge, half: str, wide_ones: Sequence[int]) -> Finding:
    """Judge half tensors beside float32 ones, as of normalisations, each by its own dtype."""
    parts = []
    for k in range(4):
        dtype = "float32" if k in wide_ones else half
        weights, gradients = subject.normal(8, seed=71 + k)
        given = {n: _to_half(grads, dtype) for n, grads in enumerate(gradients)}
        parts.append(Part(_to_half(weights, dtype), given, wide=k in wide_ones))
    how = {"bfloat16": half == "bfloat16"}
    try:
        trials = subject.together(Plan(parts, [subject.options()], how=how))
    except WrongResultError:
        raise
    except ANYTHING:  # the paper does not ask for several dtypes together
        return Finding("pass")
    for trial in trials:
        finding = _found(judge, trial, f"{trial.case.info.name} beside another dtype")
        if finding.outcome not in ("pass", "remark"):
            return finding
    return Finding("pass")


def _to_half(arrays: Arrays, dtype: str) -> Arrays:
    return [to_dtype(array, dtype) for array in arrays]


def _found(judge: Judge, trial: Trial, note: str = "") -> Finding:
    """Return the finding on a trial; the errors of half precision are a remark.

    They are no excuse for a known mistake, nor for what is wrong in float32.
    """
    finding = judge.found(trial, note)
    if finding.diagnosis == COARSE.description:
        return Finding("remark", COARSE.description, finding.worst)
    return finding
