"""Checks of what the base class of Keras optimizers offers, and a subclass may lose.

Each of them is "not applicable" to other kinds.
"""

import itertools
from collections.abc import Sequence
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
    """Each gradient twice or thrice, with gradient_accumulation_steps: t counts the updates."""
    weights, gradients = subject.normal(6, seed=54)
    # Of few digits, so that the sum of three is exact.
    gradients = [[to_dtype(g, "bfloat16") for g in grads] for grads in gradients]
    case = Case(weights, gradients, subject.decaying)

    def judged(number: int) -> Finding:
        fed = [grads for grads in gradients for _ in range(number)]
        # The state is saved in the middle of an accumulation.
        loaded = replace(case, reload_after=number * 4 + 1)
        return _by_keras(subject, judge, loaded, fed, gradient_accumulation_steps=number)

    return first_wrong(map(judged, (2, 3)))


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
    """Gradients of a loss that is scaled by 1024, with loss_scale_factor."""
    weights, gradients = subject.normal(6, seed=67)
    large = [[1024 * g for g in grads] for grads in gradients]
    case = Case(weights, gradients, subject.decaying, reload_after=3)
    return _by_keras(subject, judge, case, large, loss_scale_factor=1024.0)


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
    """Feed gradients of which an option of every Keras optimizer makes those of the case.

    A loaded case runs eagerly, and the same case without a load in a graph of TensorFlow.
    """
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    every = len(fed) // len(case.gradients)

    def judged(mode: str) -> Finding:
        reload_after = case.reload_after if mode == "eager" and subject.reloads else None
        how = {"more": option, "mode": mode}
        run = subject.run(replace(case, gradients=fed, how=how, reload_after=reload_after))
        run.states, run.left = run.states[every - 1 :: every], run.left[every - 1 :: every]
        trial = Trial(replace(case, reload_after=None), run, subject.first_step)
        return judge.found(trial, "" if mode == "eager" else "inside tf.function")

    return first_wrong(map(judged, _modes(subject)))


def _modes(subject: Subject) -> tuple[str, ...]:
    """Return the modes in which a step of Keras runs operation by operation and in a graph."""
    return ("eager", "function") if subject.driver.session.builds_in_a_graph() else ("eager",)


def reordered(subject: Subject, judge: Judge) -> Finding:
    """Steps that get their variables in reverse order, only those with a gradient, or none."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    finding = together(subject, judge, gaps(subject, reordered=True))
    if finding.outcome == "pass":
        weights, gradients = subject.normal(4, seed=107)
        case = Case(weights, gradients, subject.decaying, how={"alone": True})
        try:
            other = judge.judge(case, "apply without variables")
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
    # The first variable, or the second, whose name is bias.
    ways: list[tuple[int, dict[str, Any]]] = [
        (0, {"excluded": 1}),
        (1, {"excluded_names": ["bias"]}),
    ]
    for (left_out, how), mode in itertools.product(ways, _modes(subject)):
        case = Case(weights, gradients, subject.decaying, how=how | {"mode": mode})
        trial = judge.observe(case)
        finding = judge.found(trial.only([i for i in range(len(weights)) if i != left_out]))
        if finding.outcome == "pass":
            trial = trial.only([left_out])
            options = {**case.options, "weight_decay": 0.0}
            finding = judge.found(replace(trial, case=replace(trial.case, options=options)))
            finding.note = "" if finding.outcome == "pass" else "of a variable without weight decay"
        if finding.outcome != "pass":
            break
    return finding


def constraint(subject: Subject, judge: Judge) -> Finding:
    """Variables with a constraint, which keeps |W| below 0.8 after every step."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    weights, gradients = subject.normal(6, seed=60)
    trial = judge.observe(Case(weights, gradients, subject.decaying, how={"limit": 0.8}))
    kept = Variant("kept", weights=lambda *given: np.clip(REFERENCE.weights(*given), -0.8, 0.8))
    verdict = compare(trial, trial.simulated(kept))  # to clip W does not enlarge its error
    return Finding("pass" if verdict.inside else "differs", "", None, verdict.first)


def averaged(subject: Subject, judge: Judge) -> Finding:
    """use_ema with momentum 1/2, where the average of W overwrites W after every step."""
    if subject.driver.kind != "keras":
        return Finding("not applicable", "only in Keras")
    weights, gradients = subject.normal(6, seed=63)
    fed = Case(weights, gradients, subject.options())
    averages = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 1}
    run = subject.run(replace(fed, how={"more": averages}))
    # The first average is W itself. Then (W + W − η V) / 2 = W − (η / 2) V, with one more rounding.
    lr = float(fed.options["learning_rate"])
    trial = Trial(replace(fed, rates=[lr] + [lr / 2] * 5), run, subject.first_step)
    verdict = compare(trial, trial.exact, mistaken=True)
    return Finding("pass" if verdict.inside else "differs", "", None, verdict.first)
