"""Checks of the start of an implementation: the first t, and V₀."""

from typing import Any

import numpy as np

from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import normal
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.trial import Case, Trial
from gravity_conformance.drive.session import Arrays
from gravity_conformance.mutations import MUTATIONS, REFERENCE
from gravity_core import hyperparameters as hp
from gravity_core.coefficients import beta_hat
from gravity_core.velocity import initial_velocity

CONVENTIONS = {1: "t from 1 (Algorithm 1)", 0: "t from 0 (the original Keras code)"}


def convention(subject: Subject, judge: Judge) -> Finding:
    """Whether t starts from 1 or from 0."""
    trial, recognised = subject.convention
    named = CONVENTIONS[trial.first_step]
    if recognised:
        note = named
        if subject.hidden:
            note += "; its state does not show V, so W alone is judged"
    elif "first_step" in trial.case.options:
        note = f"does not count {named}"
    else:
        note = f"β̂ fits no step count; taken to be {named}"
    finding = judge.found(trial, note, what="V")
    if finding.outcome != "pass" or not subject.offers("first_step") or subject.driver.stateless:
        return finding
    weights, gradients = normal(4)
    case = Case(weights, gradients, subject.options() | {"first_step": 0})
    other = judge.found(Trial(case, judge.observe(case).run, 0), "with first_step=0")
    if other.outcome == "pass":
        other.note, other.worst = f"{finding.note}; from 0 by first_step=0", finding.worst
    return other


def v0(subject: Subject, judge: Judge) -> Finding:
    """V₀: its standard deviation and distribution, and whether two constructions agree."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    options = {k: v for k, v in subject.options().items() if k not in ("alpha", "velocity_std")}
    options["learning_rate"] = 0.05
    if subject.offers("alpha"):
        options["alpha"] = 0.02
    options |= subject.driver.arguments.fixed
    alpha, lr = float(options.get("alpha", hp.ALPHA)), float(options["learning_rate"])
    drawn = [_v0(subject, options) for _ in range(2)]
    std = float(subject.driver.arguments.fixed.get("velocity_std", REFERENCE.std(alpha, lr, _RATE)))
    z = drawn[0][0].reshape(-1).astype(np.float64)
    measured, within = float(np.std(z)), float(np.mean(np.abs(z) <= std))

    def fits(expected: float) -> bool:  # six standard errors of a normal sample
        return bool(abs(measured - expected) <= 6 * expected / (2 * z.size) ** 0.5)

    agree = all(a.tobytes() == b.tobytes() for a, b in zip(*drawn, strict=True))
    note = f"std {measured:.4g} for α / η = {std:.4g}; "
    if agree and measured:
        ours = all(
            a.tobytes()
            == initial_velocity(a.shape, a.dtype, std=std, seed=hp.SEED, index=i).tobytes()
            for i, a in enumerate(drawn[0])
        )
        note += "own seed, two constructions agree" + (", the bits of gravity_core" if ours else "")
    elif measured:
        note += "from a global random state, two constructions differ"
    one, other = (x.astype(np.float64) / (measured or 1.0) for x in drawn[0])
    for what, a, b in (
        ("rows", one[1:], one[:-1]),
        ("columns", one[:, 1:], one[:, :-1]),
        ("tensors", one, other),
    ):
        # The mean of n products of independent numbers of variance 1 has the standard error 1 / √n.
        if abs(correlation := float(np.mean(a * b))) > 6 / a.size**0.5:
            first = f"two successive {what} have the correlation {correlation:.2g}, not 0"
            return Finding("differs", note, None, first, f"V₀ of several {what} is not independent")
    if not fits(std):
        mistakes = [m for m in MUTATIONS if m.std is not REFERENCE.std]
        known = [m.description for m in mistakes if fits(m.std(alpha, lr, _RATE))]
        first = f"std {measured:.4g}, not {std:.4g}"
        return Finding("differs", note, None, first, " or ".join(known) or None)
    if abs(float(z.mean())) > 6 * std / z.size**0.5 or abs(within - 0.6827) > 3 / z.size**0.5:
        first = f"{100 * within:.1f} % within one σ, not 68.3; mean {float(z.mean()):.3g}, not 0"
        return Finding("differs", note, None, first, "V₀ is not normal")
    if subject.offers("seed") and not agree:
        return Finding("differs", note, None, "two constructions with one seed have different V₀")
    return Finding("pass", note)


_RATE = 0.025  # the learning rate of the first step; V₀ must not depend on it


def _v0(subject: Subject, options: dict[str, Any]) -> Arrays:
    zeros = [np.zeros((100, 120), np.float32), np.zeros((100, 120), np.float32)]
    session = subject.driver.start(zeros, options)
    v = None if subject.hidden else session.velocity()
    if v is not None:
        return v
    session.step([z.copy() for z in zeros], _RATE)
    v = None if subject.hidden else session.velocity()
    if v is None:
        # W moved by η V. Without a schedule, an optax transformation uses η of the constructor.
        steps = subject.driver.session.steps_at_given_rate
        rate = _RATE if steps else float(options["learning_rate"])
        v = [-w / np.float32(rate) for w in session.weights()]
    return [x / np.float32(beta_hat(subject.first_step, float(options["beta"]))) for x in v]
