"""Checks of the start of an implementation: the first t, and V₀."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge import distribution
from gravity_conformance.conform.judge.perform import is_undrawn
from gravity_conformance.conform.judge.trial import Case, Trial
from gravity_conformance.drive.session import Arrays, Session
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
    weights, gradients = subject.normal(4)
    case = Case(weights, gradients, subject.options() | {"first_step": 0})
    other = judge.found(Trial(case, judge.observe(case).run, 0), "with first_step=0")
    if other.outcome == "pass":
        other.note, other.worst = f"{finding.note}; from 0 by first_step=0", finding.worst
    return other


def v0(subject: Subject, judge: Judge) -> Finding:
    """V₀: its σ, its distribution, and that no numbers of it depend on each other."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    if subject.starts_from_rest:
        return Finding("remark", "V starts from rest: there is no argument for α or σ")
    options = _drawing(subject)
    alpha, lr = float(options.get("alpha", hp.ALPHA)), float(options["learning_rate"])
    std = _std(subject, options)
    shapes = _shapes(subject)
    drawn = [_drawn(subject, options, shapes) for _ in range(2)]
    measured = float(np.std(drawn[0][_LARGEST].astype(np.float64)))
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
    note = note.removesuffix("; ")
    finding = Finding("differs", note)
    few, many = drawn[0][:_FEW], drawn[0]
    if (found := distribution.dependent(few) or distribution.equal(many)) is not None:
        finding.first, finding.diagnosis = found, "the numbers of V₀ depend on each other"
    elif (found := distribution.wrong_std(drawn[0], std)) is not None:
        mistakes = [m for m in MUTATIONS if m.std is not REFERENCE.std]
        fits = [
            m for m in mistakes if not distribution.wrong_std(drawn[0], m.std(alpha, lr, _RATE))
        ]
        finding.first, finding.diagnosis = found, " or ".join(m.description for m in fits) or None
    elif (found := _abnormal(drawn[0], std)) is not None:
        finding.first, finding.diagnosis = found, "V₀ is not normal"
    elif (found := _elsewhere(subject, options, std) or _repeated(subject, options)) is not None:
        finding.note, finding.first = "", found
    elif subject.offers("seed") and not agree:
        finding.first = "two constructions with one seed have different V₀"
    elif subject.offers("seed") and (found := _seeds(subject, options)) is not None:
        finding.first, finding.diagnosis = found, "V₀ of one seed depends on that of another"
    else:
        return Finding("pass", note)
    return finding


def again(subject: Subject, judge: Judge) -> Finding:
    """A second optimizer for the same parameters: it draws its own V₀, and t starts again."""
    if subject.driver.kind not in ("torch", "keras"):
        return Finding("not applicable", "only in torch and Keras")
    weights, gradients = subject.normal(6, seed=75)
    finding = judge.judge(Case(weights, gradients, subject.starting, how={"again": True}))
    if finding.outcome == "pass" and not subject.starts_from_rest:
        options = _drawing(subject)
        session = subject.driver.start([np.zeros(1000, np.float32)], options, again=True)
        wrong = distribution.wrong_std(_shown(subject, session, options), _std(subject, options))
        if wrong is not None:
            return Finding("differs", "V₀", None, wrong)
    return finding


def wrong_half(subject: Subject, dtype: str) -> str | None:
    """Describe a V₀ of another σ in a half type, or None."""
    if subject.driver.stateless or subject.starts_from_rest:
        return None
    options = _drawing(subject)
    zeros = [np.zeros(n, np.float32 if dtype == "bfloat16" else np.float16) for n in (1000, 300)]
    session = subject.driver.start(zeros, options, bfloat16=dtype == "bfloat16")
    v = _shown(subject, session, options)
    return distribution.wrong_std(v, _std(subject, options))


def _drawing(subject: Subject) -> dict[str, Any]:
    """Return options with which V₀ is drawn."""
    options = {k: v for k, v in subject.options().items() if k not in ("alpha", "velocity_std")}
    options["learning_rate"] = 0.05
    if subject.offers("alpha"):
        options["alpha"] = 0.02
    return options | subject.driver.arguments.fixed


def _std(subject: Subject, options: Mapping[str, Any]) -> float:
    """Return σ = α / η of a group with these options."""
    alpha, lr = float(options.get("alpha", hp.ALPHA)), float(options["learning_rate"])
    return float(
        subject.driver.arguments.fixed.get("velocity_std", REFERENCE.std(alpha, lr, _RATE))
    )


_RATE = 0.025  # the learning rate of the first step; V₀ must not depend on it
_LARGEST = 1
_FEW = 8  # tensors whose numbers are compared at every distance


def _shapes(subject: Subject) -> list[tuple[int, ...]]:
    """Return shapes of weights and biases of which no two have equal rows of numbers."""
    largest = 2**18 + 1003 if subject.level.top >= 17 else 2**subject.level.top + 3
    few = [(100, 120), (largest,), (64,), (100, 120), (64,), (16, 4, 3, 3), (120,), (1000,)]
    assert len(few) == _FEW
    return [*few, *[(16,)] * subject.level.listed, *[(1,), (2,)] * 100]


def _abnormal(drawn: Arrays, std: float) -> str | None:
    """Describe the distribution of the largest array, of a number of axes, or of tiny arrays."""
    rest = [v for i, v in enumerate(drawn) if i != _LARGEST]
    parts = [[drawn[_LARGEST]], *([v for v in rest if v.ndim == n] for n in (1, 2))]
    parts += [[v for v in rest if v.size == n] for n in (1, 2)]
    found = (distribution.not_normal(part, std) for part in parts)
    return next((text for text in found if text is not None), None)


def _elsewhere(subject: Subject, options: dict[str, Any], std: float) -> str | None:
    """Describe a wrong V₀ of another rate, of float64 tensors, of late ones or of groups."""
    zeros = [np.zeros(shape, np.float32) for shape in ((100, 120), (64,), (1000,))]

    def wrong(session: Session) -> str | None:
        return distribution.wrong_std(_shown(subject, session, options), std)

    if "learning_rate" not in subject.driver.arguments.fixed:
        other = options | {"learning_rate": 8 * options["learning_rate"]}
        found = distribution.wrong_std(_drawn(subject, other, _shapes(subject)[:_LARGEST]), std / 8)
        if found is not None:
            return f"with another learning rate, {other['learning_rate']:g}: {found}"
    if subject.driver.kind in ("optax", "keras") and subject.unschedulable is None:
        # The first rate counts in a schedule, and the constructor's elsewhere.
        first = 1 if subject.driver.kind == "optax" else 8
        rates = [options["learning_rate"] * k for k in (first, 8, 1)]
        if (found := wrong(subject.driver.start(zeros, options, schedule=rates))) is not None:
            return f"with the rates {rates[0]:g}, {rates[1]:g}, …: {found}"
    if subject.driver.session.builds_in_a_graph():
        traced = subject.driver.start(zeros, options, mode="function", unbuilt=True)
        if (found := wrong(traced)) is not None:
            return f"where a step inside tf.function builds: {found}"
    if "float64" in subject.dtypes:
        with contextlib.suppress(*ANYTHING):
            doubles = [z.astype(np.float64) for z in zeros]
            if (found := wrong(subject.driver.start(doubles, options))) is not None:
                return f"in float64: {found}"
    if subject.driver.session.groups:
        zeros = [np.zeros(300, np.float32)] * 6
        with contextlib.suppress(*ANYTHING):
            own = [options, options | _another_std(subject, options, 0.5)]
            own.append(options | _another_std(subject, options, 4.0))
            listed = [(2, chosen) for chosen in own[:2]]
            session: Any = subject.driver.start(zeros[:4], options, groups=listed)
            session.add(zeros[4:], own[2])
            v = _shown(subject, session, options)
            found = distribution.dependent(v)
            for k, chosen in enumerate(own):
                of_group = v[2 * k : 2 * k + 2]
                found = found or distribution.wrong_std(of_group, _std(subject, chosen))
            if found is not None:
                return f"in three groups of two tensors: {found}"
        with contextlib.suppress(*ANYTHING):
            if (found := wrong(subject.driver.start(zeros, options, array_rate=True))) is not None:
                return f"with a rate in a tensor that is filled before the first step: {found}"
        with contextlib.suppress(*ANYTHING):
            session = subject.driver.start(zeros, options)
            session.warm_up(float(options["learning_rate"]))
            if (found := wrong(session)) is not None:
                return f"with OneCycleLR, which sets lr and initial_lr: {found}"
    for loaded in (False, True)[: 1 + subject.reloads] if subject.driver.session.misses else ():
        with contextlib.suppress(*ANYTHING):
            v = _late(subject, options, loaded=loaded)
            found = distribution.dependent(v) or distribution.wrong_std(v, std)
            if found is not None:
                after = ", after the state was saved and loaded" if loaded else ""
                return f"where tensors 0, 2 and 3 have their first gradients late{after}: {found}"
    if subject.offers("velocity_std"):
        for given in (0.0, 0.07):
            if subject.refused(velocity_std=given) is None:
                v = _drawn(subject, options | {"velocity_std": given}, [(1000,), (30, 40)])
                if (found := distribution.wrong_std(v, given)) is not None:
                    return f"with velocity_std={given:g}: {found}"
    return None


def _another_std(subject: Subject, options: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return another η for a group, and another α, if a group may have its own."""
    free = {*subject.of_groups} - {*subject.driver.arguments.fixed}
    other = {"alpha": 2.5 * float(options.get("alpha", hp.ALPHA))}
    other["learning_rate"] = factor * float(options["learning_rate"])
    return {name: x for name, x in other.items() if name in free}


def _repeated(subject: Subject, options: dict[str, Any]) -> str | None:
    """Describe numbers that four million of them repeat, or None."""
    if subject.level.top < 17:
        return None
    return distribution.repeated(_drawn(subject, options, [(1024, 1025)] * 4))


def _late(subject: Subject, options: dict[str, Any], *, loaded: bool) -> Arrays:
    """Return V₀ of four tensors: three have late first gradients, two are in any late group.

    Tensor 1 has the first gradient, then tensor 0, so a place among those with a gradient is no
    place among all.
    """
    zero = np.zeros(1500, np.float32)
    groups = subject.driver.session.groups
    session: Any = subject.driver.start([zero] * (2 if groups else 4), options)
    found: dict[int, np.ndarray] = {}
    for n, given in enumerate(({1}, {0, 1, 2}, {0, 1, 2, 3})):
        if n == 1:
            session = session.reloaded() if loaded else session
            if groups:
                session.add([zero, zero], options)
        number = 2 if groups and n == 0 else 4
        session.step([zero if i in given else None for i in range(number)], _RATE)
        for i in given - {*found}:
            of_group = n - (i > 1)  # the last two are in the late group
            before = {"each tensor": 0, "the optimizer": n}.get(subject.counted, of_group)
            # W moved by η β̂ V₀.
            t = subject.first_step + before
            w = session.weights()[i]
            found[i] = -w / np.float32(_RATE * beta_hat(t, float(options["beta"])))
    return [found[i] for i in sorted(found)]


def _seeds(subject: Subject, options: dict[str, Any]) -> str | None:
    """Draw with several seeds, and return how the numbers depend on each other, or None."""
    twice = [_drawn(subject, options | {"seed": 0}, [(300,)]) for _ in range(2)]
    if twice[0][0].tobytes() != twice[1][0].tobytes():
        return "two constructions with seed=0 have different V₀"
    drawn, names = [], []
    for seed in (0, 1, 2, 3, 100, 10**9 + 7):
        for i, v in enumerate(_drawn(subject, options | {"seed": seed}, [(300,)] * 4)):
            drawn.append(v)
            names.append(f"tensor {i} with seed {seed}")
    if (found := distribution.dependent(drawn, names)) is not None:
        return found
    for seed in (2**k for k in range(4, 31)):
        for i, v in enumerate(_drawn(subject, options | {"seed": seed}, [(300,)] * 4)):
            drawn.append(v)
            names.append(f"tensor {i} with seed {seed}")
    return distribution.equal(drawn, names)


def _drawn(subject: Subject, options: dict[str, Any], shapes: list[tuple[int, ...]]) -> Arrays:
    zeros = [np.zeros(shape, np.float32) for shape in shapes]
    return _shown(subject, subject.driver.start(zeros, options), options)


def _shown(subject: Subject, session: Session, options: dict[str, Any]) -> Arrays:
    """Return V₀ from the state, or from what the first step with zero gradients makes of it.

    The weights are 0, too.
    """
    v = None if subject.hidden else session.velocity()
    if v is not None and not is_undrawn(v):
        return v
    session.step(session.weights(), _RATE)
    v = None if subject.hidden else session.velocity()
    if v is None:
        # W moved by η V. Without a schedule, an optax transformation uses η of the constructor.
        steps = subject.driver.session.steps_at_given_rate
        rate = _RATE if steps else float(options["learning_rate"])
        v = [-w / w.dtype.type(rate) for w in session.weights()]
    return [x / x.dtype.type(beta_hat(subject.first_step, float(options["beta"]))) for x in v]
