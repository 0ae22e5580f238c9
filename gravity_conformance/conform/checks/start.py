"""Checks of the start of an implementation: the first t, its defaults, what it must not touch."""

import importlib
import pickle
import random
from typing import Any

import numpy as np

from gravity_conformance.conform.checks import drawn
from gravity_conformance.conform.checks.findings import Finding, Judge, joined
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge import distribution
from gravity_conformance.conform.judge.trial import Case, Trial
from gravity_conformance.drive.spec import parameters
from gravity_core import hyperparameters as hp

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
    finding = judge.found(trial, what="V")
    finding.note = joined(note, finding.note)
    if finding.outcome != "pass" or not subject.offers("first_step") or subject.driver.stateless:
        return finding
    weights, gradients = subject.normal(4)
    case = Case(weights, gradients, subject.options() | {"first_step": 0})
    other = judge.found(Trial(case, judge.observe(case).run, 0), "with first_step=0")
    if other.outcome == "pass":
        other.note, other.worst = f"{finding.note}; from 0 by first_step=0", finding.worst
    return other


def again(subject: Subject, judge: Judge) -> Finding:
    """A second optimizer for the same parameters: it draws its own V₀, and t starts again."""
    if subject.driver.kind not in ("torch", "keras"):
        return Finding("not applicable", "only in torch and Keras")
    weights, gradients = subject.normal(6, seed=75)
    finding = judge.judge(Case(weights, gradients, subject.starting, how={"again": True}))
    if finding.outcome == "pass" and not subject.starts_from_rest:
        options = drawn.drawing(subject)
        session = subject.driver.start([np.zeros(1000, np.float32)], options, again=True)
        wrong = distribution.wrong_std(
            drawn.shown(subject, session, options), drawn.std_of(subject, options)
        )
        if wrong is not None:
            return Finding("differs", "V₀", None, wrong)
    return finding


def defaults(subject: Subject, judge: Judge) -> Finding:
    """Whether η, α and β are those of the paper where the user gives none."""
    if subject.driver.stateless:
        return Finding("not applicable", "the caller gives all of them")
    own = parameters(subject.driver.found)
    others = []
    for name, ours in hp.DEFAULTS.items():
        theirs = subject.driver.arguments.names.get(name, "")
        default = getattr(own.get(theirs), "default", None)
        is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if name in ("learning_rate", "alpha", "beta") and is_number and default != ours:
            others.append(f"{theirs} is {default:g} by default, not {ours:g}")
    return Finding("remark", "; ".join(others)) if others else Finding("pass")


def randomness(subject: Subject, judge: Judge) -> Finding:
    """The random generators of the user, which no construction and no step may seed."""
    if subject.driver.stateless:
        return Finding("not applicable", "it draws nothing")
    generators: dict[str, tuple[Any, Any]] = {
        "NumPy": (np.random.seed, lambda: pickle.dumps(np.random.get_state())),  # noqa: NPY002
        "the module random": (random.seed, random.getstate),
    }
    if subject.driver.kind == "torch":
        torch = importlib.import_module("torch")
        generators["torch"] = torch.manual_seed, lambda: torch.get_rng_state().numpy().tobytes()
    after: dict[str, set[Any]] = {name: set() for name in generators}
    for seed in (1, 2):
        for sets, _ in generators.values():
            sets(seed)
        session = subject.driver.start([np.zeros(3, np.float32)], drawn.drawing(subject))
        session.step([np.ones(3, np.float32)], drawn.RATE)
        for name, (_, state) in generators.items():
            after[name].add(state())
    seeded = [name for name, states in after.items() if len(states) == 1]
    if seeded:
        of = " and ".join(seeded)
        return Finding("differs", "", None, f"it seeds the global generator of {of}")
    return Finding("pass")
