"""The check that feeds the published vectors. Each vector has its own initial V and t."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line, refusal
from gravity_conformance.conform.checks import halves as half_types
from gravity_conformance.conform.checks.findings import Finding, Judge, joined
from gravity_conformance.conform.checks.inputs import NO_BFLOAT16, has_bfloat16
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.compare import difference, worst
from gravity_conformance.conform.judge.diagnosis import (
    Diagnosis,
    common,
    diagnose,
    how_tolerated,
    refuted,
)
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_conformance.drive.session import CannotWriteError
from gravity_conformance.vectors import UpdateTest, load_vectors
from gravity_core import hyperparameters as hp


class _CannotFeedError(Exception):
    """A vector cannot be fed to the implementation; the message says why."""


def vectors(subject: Subject, judge: Judge) -> Finding:
    """The published vectors of updates in float32, except those that cannot be fed to it."""
    return _vectors(subject, judge, ["float32"])


def double(subject: Subject, judge: Judge) -> Finding:
    """The published vectors of updates in float64."""
    return _vectors(subject, judge, ["float64"])


def halves(subject: Subject, judge: Judge) -> Finding:
    """The published vectors of updates in the half types in which its trajectories are right."""
    chosen, notes = [], []
    for name, check in (("float16", half_types.float16), ("bfloat16", half_types.bfloat16)):
        finding = judge.findings.get(name) or check(subject, judge)
        if name in subject.dtypes and finding.outcome == "pass":
            chosen.append(name)
        else:
            notes.append(f"none in {name}, see there")
    finding = _vectors(subject, judge, chosen) if chosen else Finding("not applicable")
    finding.note = joined(*notes, finding.note)
    return finding


def _vectors(subject: Subject, judge: Judge, chosen: Sequence[str]) -> Finding:
    differing: list[Finding] = []
    raised: dict[str, list[str]] = {}  # message → the vectors that raise it
    explained: list[Diagnosis] = []  # of the vectors that differ and end with finite weights
    dtypes: set[str] = set()
    passed: list[tuple[str, Trial]] = []
    fit, left_out = 0, collections.Counter[str]()
    tolerated = collections.Counter[str]()
    for group in load_vectors():
        # Non-finite gradients have several right answers, and a vector can hold only one. The
        # check "non-finite" judges them instead.
        if group.type != "update" or group.file == "non_finite.json":
            continue
        if group.dtype not in chosen:
            continue
        for test in group.tests:
            where = f"{group.file}, test {test.id} ({group.dtype})"
            try:
                first, case = _fed(subject, test, group.dtype)
            except (_CannotFeedError, CannotWriteError) as error:
                left_out[str(error)] += 1
                continue
            try:
                trial = Trial(case, judge.observe(case).run, first)
            except CannotWriteError as error:
                left_out[str(error)] += 1
                continue
            except ANYTHING as error:
                if (why := _refusal(subject, test)) is not None:
                    left_out[why] += 1
                    continue
                raised.setdefault(one_line(error), []).append(where)
                fit += 1
                continue
            fit += 1
            if not _has_std(subject, trial):
                fit -= 1
                left_out["σ = α / η is not defined at η = 0"] += 1
                continue
            if (outside := _outside(test, trial.run)) is None:
                passed.append((group.dtype, trial))
                continue
            if (how := how_tolerated(trial, injects_beta=subject.injects_beta)) is not None:
                tolerated[how] += 1
                continue
            # The mistakes are simulated in a wider dtype, which overflows elsewhere.
            if all(np.isfinite(w).all() for w in trial.run.states[-1][1]):
                explained.append(diagnose(trial))
                dtypes.add(group.dtype)
            differing.append(Finding("differs", "", worst(trial), f"{where}: {outside}"))
    every = fit + left_out.total()
    notes = [f"{len(at)} of {fit} raise {what} ({at[0]})" for what, at in raised.items()]
    notes.append(f"{fit} of {every} can be fed to it")
    notes += [f"not {count}: {why}" for why, count in left_out.most_common()]
    notes += [f"{count} with {how}" for how, count in tolerated.items()]
    if not fit:
        return Finding("not applicable", "; ".join(notes))
    if not (raised or differing):
        return Finding("pass", "; ".join(notes))
    if not differing:
        return Finding("error", "; ".join(notes))
    finding = differing[0]
    finding.note = "; ".join([f"{len(differing)} of {fit} differ", *notes])
    # A mistake may affect only one dtype. If a vector of that dtype passes, it rules out every
    # mistake that would make it fail.
    same = [trial for dtype, trial in passed if dtype in dtypes]
    finding.diagnosis = judge.named(
        [mistake for mistake in common(explained) if not any(refuted(mistake, t) for t in same)]
    )
    return finding


def _has_std(subject: Subject, trial: Trial) -> bool:
    """Tell whether η > 0 in the first step, or V is no NaN, which α / η may be for α = 0."""
    drawn = not subject.driver.stateless and trial.case.rate(0) == 0
    return not drawn or all(np.isfinite(w).all() for w in trial.run.states[-1][1])


def _refusal(subject: Subject, test: UpdateTest) -> str | None:
    """Describe what the implementation refuses in a vector; None if it accepts all of it."""
    for w in test.w:
        if not (w.size and w.ndim) and (why := subject.refused(shape=w.shape)) is not None:
            return refusal(f"tensors of shape {w.shape}", why)
    stops = any(not step.learning_rate for step in test.steps)
    if stops and (why := subject.refused(schedule=[0.0, 0.1])) is not None:
        return refusal("a learning rate of 0", why)
    first = test.hyperparameters.first_step
    if subject.driver.stateless and (why := subject.refused(first_step=first)) is not None:
        return refusal(f"t = {first}", why)
    for name in ("beta", "weight_decay", "maximize"):
        value = getattr(test.hyperparameters, name)
        if name != "beta" and not value:
            continue
        if (why := subject.refused(**{name: value})) is not None:
            return refusal(f"{name} = {value:g}", why)
    return None


def _fed(subject: Subject, test: UpdateTest, dtype: str) -> tuple[int, Case]:
    """Return t of the implementation's first step, and the vector as a case."""
    given, t = test.hyperparameters, test.steps[0].t
    # V₀ plays no role here, so the constructor may get another learning rate than the vector's.
    # The vector's may be 0, and the constructor may divide α by it.
    asked: dict[str, Any] = {"learning_rate": given.learning_rate or hp.LEARNING_RATE}
    rates = [step.learning_rate for step in test.steps]
    if set(rates) != {asked["learning_rate"]} and subject.unschedulable is not None:
        if len(set(rates)) > 1 or not rates[0]:
            raise _CannotFeedError(subject.unschedulable)
        asked["learning_rate"] = rates[0]
    asked["beta"] = given.beta
    for name in ("weight_decay", "maximize"):
        if value := getattr(given, name):
            if not subject.offers(name):
                raise _CannotFeedError(f"{name} is not offered")
            asked[name] = value
    chosen = subject.driver.stateless or subject.offers("first_step")
    first = given.first_step if chosen else subject.first_step
    if chosen:
        asked["first_step"] = first
    if dtype == "bfloat16" and subject.driver.stateless and not has_bfloat16():
        raise _CannotFeedError(NO_BFLOAT16)
    if t < first:
        raise _CannotFeedError(f"it starts from t = {first}, not {t}")
    options = subject.options(**asked)
    for name, value in asked.items():
        if options[name] != value:
            raise _CannotFeedError(f"{name} stays at {options[name]}")
    reloads = [n for n, step in enumerate(test.steps) if step.reload]
    if len(reloads) > 1:
        raise _CannotFeedError("state is saved and loaded more than once")
    # If the first rate is 0, an implementation may have no V₀, because σ = α / η.
    as_constructed = subject.at_rest and t == first and not any(v.any() for v in test.v)
    as_constructed = as_constructed and bool(rates and rates[0])
    if not as_constructed and subject.unwritable is not None:
        raise _CannotFeedError(subject.unwritable)
    return first, Case(
        test.w,
        [step.g for step in test.steps],
        options,
        None if as_constructed else test.v,
        t - first,
        rates=None if set(rates) == {options["learning_rate"]} else rates,
        reload_after=reloads[0] if reloads else None,
        bfloat16=dtype == "bfloat16",
    )


def _outside(test: UpdateTest, run: Run) -> str | None:
    """Describe the first element outside the vector's tolerance; None if all are inside."""
    for n, ((v, w), step) in enumerate(zip(run.states, test.steps, strict=True), start=1):
        for name, arrays, expected in (("V", v, step.v), ("W", w, step.w)):
            pairs = zip(arrays or [], expected, strict=arrays is not None)
            for i, (got, wanted) in enumerate(pairs):
                if not (accepted := wanted.accepts(got)).all():
                    k = tuple(int(x) for x in np.argwhere(~accepted)[0])
                    where = f"{name} of tensor {i} after step {n}, element {list(k)}"
                    numbers = (x[k] for x in (got, wanted.value, wanted.tolerance))
                    return f"{where}: {difference(*numbers)}"
    return None
