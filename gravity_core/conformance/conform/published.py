"""The check that feeds the published vectors, each from the V and t where it starts."""

import collections
from typing import Any

import numpy as np

from gravity_core import hyperparameters as hp
from gravity_core.conformance.conform import judge
from gravity_core.conformance.conform.judge import Case, Run
from gravity_core.conformance.conform.session import CannotWriteError
from gravity_core.conformance.conform.subject import Finding, Subject
from gravity_core.conformance.guard import ANYTHING, one_line
from gravity_core.conformance.vectors import UpdateTest, load_vectors


class _CannotFeedError(Exception):
    """A vector that the implementation has no way to be fed; the message says why."""


def vectors(subject: Subject) -> Finding:
    """The published vectors of float32 and float64 that can be fed to it."""
    differing: list[Finding] = []
    raised: dict[str, list[str]] = {}  # message → the vectors
    fit, words, left_out = 0, collections.Counter[str](), collections.Counter[str]()
    for group in load_vectors():
        # Of non-finite gradients and half types more ways are right than a vector has room for;
        # they have checks of their own.
        if group.type != "update" or group.dtype not in ("float32", "float64"):
            continue
        if group.file == "non_finite.json":
            continue
        for test in group.tests:
            where = f"{group.file}, test {test.id} ({group.dtype})"
            try:
                first, case = _fed(subject, test)
                run = subject.run(case)
            except (_CannotFeedError, CannotWriteError) as error:
                left_out[str(error)] += 1
                continue
            except ANYTHING as error:
                raised.setdefault(one_line(error), []).append(where)
                fit += 1
                continue
            fit += 1
            if (outside := _outside(test, run)) is None:
                continue
            diagnosis = judge.diagnose(case, run, first)
            worst = judge.worst(case, run, first)
            differing.append(Finding("differs", "", worst, f"{where}: {outside}", diagnosis))
            words.update((diagnosis or "").split(" or "))
    every = fit + left_out.total()
    notes = [f"{len(at)} of {fit} raise {what} ({at[0]})" for what, at in raised.items()]
    notes.append(f"{fit} of {every} can be fed to it")
    notes += [f"not {count}: {why}" for why, count in left_out.most_common()]
    if not fit:
        return Finding("not applicable", "; ".join(notes))
    if not (raised or differing):
        return Finding("pass", "; ".join(notes))
    if not differing:
        return Finding("error", "; ".join(notes))
    finding = differing[0]
    finding.note = "; ".join([f"{len(differing)} of {fit} differ", *notes])
    del words[""]
    # One mistake looks like another in some vectors, but not in most.
    finding.diagnosis = words.most_common(1)[0][0] if words else None
    return finding


def _fed(subject: Subject, test: UpdateTest) -> tuple[int, Case]:
    """Return the first step of the implementation, and a vector as a case."""
    given, t = test.hyperparameters, test.steps[0].t
    # V₀ is not looked at here, so neither is the learning rate of the construction, which may
    # be 0 in the vector and must not be for an alpha / 0.
    asked: dict[str, Any] = {"learning_rate": given.learning_rate or hp.LEARNING_RATE}
    asked["beta"] = given.beta
    for name in ("weight_decay", "maximize"):
        if value := getattr(given, name):
            if not subject.offers(name):
                raise _CannotFeedError(f"{name} is not offered")
            asked[name] = value
    chosen = subject.driver.stateless or subject.offers("first_step")
    first = given.first_step if chosen else subject.convention[0]
    if chosen:
        asked["first_step"] = first
    if t < first:
        raise _CannotFeedError(f"it starts from t = {first}, not {t}")
    options = subject.options(**asked)
    for name, value in asked.items():
        if options[name] != value:
            raise _CannotFeedError(f"{name} stays at {options[name]}")
    reloads = [n for n, step in enumerate(test.steps) if step.reload]
    if len(reloads) > 1:
        raise _CannotFeedError("state is saved and loaded more than once")
    as_constructed = subject.at_rest and t == first and not any(v.any() for v in test.v)
    if not as_constructed and subject.unwritable is not None:
        raise _CannotFeedError(subject.unwritable)
    rates = [step.learning_rate for step in test.steps]
    return first, Case(
        test.w,
        [step.g for step in test.steps],
        options,
        None if as_constructed else test.v,
        t - first,
        rates=None if set(rates) == {options["learning_rate"]} else rates,
        reload_after=reloads[0] if reloads else None,
    )


def _outside(test: UpdateTest, run: Run) -> str | None:
    """Return the first element outside the vector's tolerance, in words."""
    for n, ((v, w), step) in enumerate(zip(run.states, test.steps, strict=True), start=1):
        for name, arrays, expected in (("V", v, step.v), ("W", w, step.w)):
            pairs = zip(arrays or [], expected, strict=arrays is not None)
            for i, (got, wanted) in enumerate(pairs):
                if not (accepted := wanted.accepts(got)).all():
                    k = tuple(int(x) for x in np.argwhere(~accepted)[0])
                    where = f"{name} of tensor {i} after step {n}, element {list(k)}"
                    shown, right = (judge.number(x[k], got.dtype) for x in (got, wanted.value))
                    return f"{where}: {shown}, not {right}"
    return None
