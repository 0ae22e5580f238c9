"""Checks of what the base class of Keras optimizers offers, and a subclass may lose.

Each of them is "not applicable" to other kinds.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks.behaviour import gaps, together
from gravity_conformance.conform.checks.findings import Finding, Judge, first_wrong, joined
from gravity_conformance.conform.checks.inputs import to_dtype
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.compare import compare
from gravity_conformance.conform.judge.trial import Case, Trial, WrongResultError
from gravity_conformance.drive.session import Arrays
from gravity_conformance.mutations import REFERENCE, Variant


def accumulation(subject: Subject, judge: Judge) -> Finding:
    """Parts of each gradient, with gradient_accumulation_steps: t counts the updates."""
    weights, gradients = subject.normal(6, seed=54)
    # Of few digits, so that the sum of three is exact.
    gradients = [[to_dtype(g, "bfloat16") for g in grads] for grads in gradients]
    case = Case(weights, gradients, subject.decaying)

    def judged(parts: Sequence[float], scale: float = 1.0, **more: Any) -> Finding:
        number, limit = len(parts), more.get("clipvalue", np.inf)
        fed = [[scale * part * g for g in grads] for grads in gradients for part in parts]
        # The state is saved in the middle of an accumulation.
        left = [[np.clip(g, -limit, limit) for g in grads] for grads in gradients]
        loaded = replace(case, gradients=left, reload_after=number * 4 + 1)
        return _by_keras(subject, judge, loaded, fed, gradient_accumulation_steps=number, **more)

    finding = judged((3.0, -1.0))
    if finding.outcome != "pass":
        return finding
    three = (2.0, -1.0, 2.0)
    try:
        other = judged(three, 1024.0, loss_scale_factor=1024.0, clipvalue=0.5)
    except WrongResultError:
        raise
    except Exception:  # it may offer neither
        other = judged(three)
    return first_wrong([finding, other])


def clipping(subject: Subject, judge: Judge) -> Finding:
    """Gradients clipped by value, by norm and by the norm of all: max|G| is of what is left."""
    rng = subject.rng("clipping")
    weights, gradients = subject.normal(6, seed=55)
    limited = [[np.clip(g, -0.5, 0.5) for g in grads] for grads in gradients]
    case = Case(weights, limited, subject.decaying, reload_after=3)
    finding = _by_keras(subject, judge, case, gradients, clipvalue=0.5)
    for option, limit, values in (
        ("clipnorm", 2.5, [3.0, -4.0]),
        ("global_clipnorm", 2.0, [1.0, -1.0] * 8),
    ):
        if finding.outcome != "pass":
            break
        # Norms of 5 or 4 times a power of two, so that clipping rounds nothing.
        alone = option == "clipnorm"
        fed, limited = [], []
        for scale in (1.0, 4.0, 0.25, 2.0, 1.0, 8.0):
            placed = [scale * x for x in _placed(rng, weights, values, alone=alone)]
            fed.append(placed)
            norm = scale * float(np.linalg.norm(values))
            limited.append([np.float32(min(1.0, limit / norm)) * x for x in placed])
        case = replace(case, gradients=limited)
        finding = _by_keras(subject, judge, case, fed, **{option: limit})
        if finding.outcome != "pass":
            finding.note = joined(f"with {option}={limit:g}", finding.note)
    return finding


def scaled(subject: Subject, judge: Judge) -> Finding:
    """Gradients of a loss that is scaled by 1024, or by a LossScaleOptimizer, which skips steps."""
    weights, gradients = subject.normal(6, seed=67)
    large = [[1024 * g for g in grads] for grads in gradients]
    case = Case(weights, gradients, subject.decaying, reload_after=3)
    finding = _by_keras(subject, judge, case, large, loss_scale_factor=1024.0)
    if finding.outcome == "pass" and subject.in_turn:  # only on TensorFlow
        short = replace(case, gradients=gradients[:4], reload_after=None)
        note = "inside a LossScaleOptimizer"
        finding = _in_turn(
            subject, lambda how: judge.judge(replace(short, how={"scaled": True, **how}), note)
        )
    return finding


def _placed(
    rng: np.random.Generator, weights: Arrays, values: Sequence[float], *, alone: bool
) -> Arrays:
    """Return zeros with `values` at random places: of each tensor, or of all of them."""
    ends = np.cumsum([w.size for w in weights])
    flat = np.zeros(ends[-1], np.float32)
    parts = np.split(flat, ends[:-1])
    for part in parts if alone else [flat]:
        part[rng.permutation(part.size)[: len(values)]] = values
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


def _by_keras(
    subject: Subject, judge: Judge, case: Case, fed: Sequence[Arrays], **option: Any
) -> Finding:
    """Feed gradients of which an option of every Keras optimizer makes those of the case."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    every = len(fed) // len(case.gradients)

    def judged(how: Mapping[str, Any]) -> Finding:
        reload_after = case.reload_after if subject.reloads else None
        how = {"more": option, **how}
        run = subject.run(replace(case, gradients=fed, how=how, reload_after=reload_after))
        run.states, run.left = run.states[every - 1 :: every], run.left[every - 1 :: every]
        return judge.found(Trial(replace(case, reload_after=None), run, subject.first_step))

    return _in_turn(subject, judged)


def _in_turn(subject: Subject, judged: Callable[[Mapping[str, Any]], Finding]) -> Finding:
    """Judge steps that are eager and in a graph in turn; if those raise, also eager steps alone."""
    try:
        return judged(subject.in_turn)
    except WrongResultError:
        raise
    except Exception:
        if not subject.in_turn or (finding := judged({})).outcome == "pass":
            raise
        return finding


def reordered(subject: Subject, judge: Judge) -> Finding:
    """Steps that get their variables in reverse order, only those with a gradient, or nothing."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    finding = together(subject, judge, gaps(subject, reordered=True))
    if finding.outcome == "pass":
        weights, gradients = subject.normal(4, seed=107)
        case = Case(weights, gradients, subject.decaying, how={"alone": True})
        try:
            other = judge.judge(case, "apply without variables, or without gradients")
        except WrongResultError:
            raise
        except ANYTHING as error:
            return replace(finding, outcome="remark", note=f"it needs variables: {one_line(error)}")
        finding = finding if other.outcome == "pass" else other
    return finding


def alike(subject: Subject, judge: Judge) -> Finding:
    """Variables of one name and path, as in two towers of equal layers."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    weights, gradients = subject.normal(4, ((4, 3), (4, 3), (5,), (5,)), (1.0, 5.0) * 2, seed=69)
    return judge.judge(Case(weights, gradients, subject.decaying, how={"alike": True}))


def replicas(subject: Subject, judge: Judge) -> Finding:
    """Two replicas of a MirroredStrategy: max|G| is that of the sum of their gradients."""
    session: Any = subject.driver.session
    if not session.builds_in_a_graph():
        return Finding("not applicable", "only in Keras on TensorFlow")
    if not session.has_replicas():
        return Finding("not applicable", "TensorFlow starts when SPEC is imported")
    weights, gradients = subject.normal(4, seed=70)
    finding = judge.judge(Case(weights, gradients, subject.decaying, how={"replicas": True}))
    if finding.outcome == "pass":
        session = subject.driver.start(weights, subject.starting, replicas=True)
        session.step(gradients[0])
        if session.disagrees():
            return Finding("differs", "", None, "the replicas have different weights")
    return finding


def excluded(subject: Subject, judge: Judge) -> Finding:
    """Weight decay, with exclude_from_weight_decay for some of the variables."""
    if subject.driver.kind != "keras" or "weight_decay" not in subject.decaying:
        return Finding("not applicable", "only weight decay in Keras has exclusions")
    weights, gradients = subject.normal(6, seed=56)
    # The first variable, or the second, whose name is bias, or both.
    first, named = {"excluded": 1}, {"excluded_names": ["bias"]}
    ways: list[tuple[list[int], dict[str, Any]]] = [
        ([0], first),
        ([1], named),
        ([0, 1], {**first, **named}),
    ]

    def judged(left_out: list[int], own: Mapping[str, Any], how: Mapping[str, Any]) -> Finding:
        case = Case(weights, gradients, subject.decaying, how={**own, **how})
        trial = judge.observe(case)
        finding = judge.found(trial.only([i for i in range(len(weights)) if i not in left_out]))
        if finding.outcome == "pass":
            trial = trial.only(left_out)
            options = {**case.options, "weight_decay": 0.0}
            finding = judge.found(replace(trial, case=replace(trial.case, options=options)))
            finding.note = "" if finding.outcome == "pass" else "of a variable without weight decay"
        return finding

    return first_wrong(_in_turn(subject, functools.partial(judged, *way)) for way in ways)


def constraint(subject: Subject, judge: Judge) -> Finding:
    """Variables with a constraint, which keeps |W| below 0.8 after every step."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    weights, gradients = subject.normal(6, seed=60)
    kept = Variant("kept", weights=lambda *given: np.clip(REFERENCE.weights(*given), -0.8, 0.8))

    def judged(how: Mapping[str, Any]) -> Finding:
        how = {"limit": 0.8, **how}
        trial = judge.observe(Case(weights, gradients, subject.decaying, how=how))
        verdict = compare(trial, trial.simulated(kept))  # to clip W does not enlarge its error
        return Finding("pass" if verdict.inside else "differs", "", None, verdict.first)

    return _in_turn(subject, judged)


def averaged(subject: Subject, judge: Judge) -> Finding:
    """use_ema with momentum 1/2, where the average of W overwrites W after every step."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    weights, gradients = subject.normal(6, seed=63)
    fed = Case(weights, gradients, subject.options())
    averages = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 1}
    lr = float(fed.options["learning_rate"])

    def judged(how: Mapping[str, Any]) -> Finding:
        reload_after = 3 if subject.reloads else None
        how = {"more": averages, **how}
        run = subject.run(replace(fed, how=how, reload_after=reload_after))
        # The first average is W itself. Then (W + W − η V) / 2 = W − (η / 2) V, with one more
        # rounding.
        trial = Trial(replace(fed, rates=[lr] + [lr / 2] * 5), run, subject.first_step)
        verdict = compare(trial, trial.exact, mistaken=True)
        return Finding("pass" if verdict.inside else "differs", "", None, verdict.first)

    finding = _in_turn(subject, judged)
    return finding if finding.outcome != "pass" else _finalised(subject, fed)


def _finalised(subject: Subject, case: Case) -> Finding:
    """Judge what `finalize_variable_values` leaves, as at the end of a training: the average."""
    averages = {"use_ema": True, "ema_momentum": 0.5}
    session: Any = subject.driver.start(case.weights, case.options, more=averages)
    wanted: Arrays = []
    for step, grads in enumerate(case.gradients):
        session.step(grads)
        w = session.weights()
        wanted = [(a + b) / 2 for a, b in zip(wanted, w, strict=True)] if step else w
    for i, (after, average) in enumerate(zip(session.finalised(), wanted, strict=True)):
        # A step adds one rounding and halves those before: at most 2 u |W| here, and as much there.
        bound = 4 * case.info.unit * (np.abs(average).max() + case.info.unit)
        if not (np.abs(after - average) <= bound).all():
            first = f"W of tensor {i} at the end is not the average of its steps"
            return Finding("differs", "", None, first)
    return Finding("pass")
