"""NaN and infinity in gradients, which an implementation may lose on one of its paths."""

from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import to_dtype
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.compare import compare
from gravity_conformance.conform.judge.trial import Case, Run, Trial, WrongResultError
from gravity_conformance.drive.session import Arrays

_VALUES = (np.nan, np.inf, -np.inf)


def nonfinite(subject: Subject, judge: Judge) -> Finding:
    """NaN and infinity in the gradient of one tensor show in that tensor, and in no other."""
    notes = []
    for value in _VALUES:
        weights, gradients = subject.normal(3, ((5,), (3,)), (1.0, 1.0), seed=14)
        gradients[1][0][2] = value
        trial = judge.observe(Case(weights, gradients, subject.options()))
        run = trial.run
        finding = judge.found(trial.only([1]))
        if finding.outcome != "pass":
            stayed = [bool(np.isfinite(w[1]).all()) for _, w in run.states]
            if finding.diagnosis is None and stayed[0] and not stayed[-1]:
                finding.diagnosis = "m from the whole model, not per tensor"
            finding.first = f"in a tensor without {value}: {finding.first}"
            return finding
        after = run.states[-1][1][0]
        if np.isfinite(after[2]):
            first = f"W of tensor 0 after step 2, element [2]: {after[2]:.9g} from a gradient of"
            return Finding("differs", f"{value} is swallowed", None, f"{first} {value}")
        if (found := _restarted(run)) is not None:
            return Finding("differs", f"V does not stay as {value} made it", None, found)
        if np.isinf(value) and (found := _beside_infinity(trial.only([0]))) is not None:
            return Finding("differs", "an infinity is left out of max|G|", None, found)
        whole = not np.isfinite(after).any()
        notes.append(f"{value} shows in {'its tensor' if whole else 'its elements'}")
    if subject.driver.session.strides and (found := _nan_lost(subject)) is not None:
        return Finding("differs", "NaN is left out of max|G|", None, found)
    return Finding("pass", "; ".join(notes))


def _restarted(run: Run) -> str | None:
    """Describe an element of V that a bad step made non-finite and the next step made finite."""
    (_, _), (bad, _), (after, _) = run.states
    if bad is None or after is None:
        return None
    places = np.argwhere(~np.isfinite(bad[0]) & np.isfinite(after[0]))
    if not places.size:
        return None
    place = tuple(map(int, places[0]))
    return f"V of tensor 0 after step 3, element {[*place]}: {after[0][place]:.9g}"


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


def swallowed(judge: Judge, dtype: str = "float32", **case: Any) -> Finding:
    """Judge whether W shows NaN and infinities of a matrix and of a vector.

    It is a pass if the implementation refuses them, or if the check "non-finite" has not passed.

    Args:
        judge: judges the implementation.
        dtype: of the tensors.
        case: more fields of the case, as `how`.
    """
    known = judge.findings.get("non-finite")
    if known is not None and known.outcome != "pass":
        return Finding("pass")
    places = ((1, 1), (2,))
    for value in _VALUES:
        weights, gradients = judge.subject.normal(2, ((4, 3), (5,)), (1.0, 1.0), seed=103)
        for g, place in zip(gradients[1], places, strict=True):
            g[place] = value
        fed = [[to_dtype(g, dtype) for g in grads] for grads in gradients]
        weights = [to_dtype(w, dtype) for w in weights]
        made = Case(weights, fed, judge.subject.options(), bfloat16=dtype == "bfloat16", **case)
        try:
            _, after = judge.subject.run(made).states[-1]
        except WrongResultError:
            raise
        except ANYTHING:
            return Finding("pass")
        for w, place in zip(after, places, strict=True):
            if np.isfinite(w[place]):
                first = f"W of shape {w.shape} after step 2, element {list(place)}: {w[place]:.9g}"
                note = f"{value} is swallowed in {dtype}"
                return Finding("differs", note, None, f"{first} from a gradient of {value}")
    return Finding("pass")
