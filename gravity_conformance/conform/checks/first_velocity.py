"""The check of V₀: its standard deviation, its distribution, and its independence."""

import contextlib
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING
from gravity_conformance.conform.checks.drawn import RATE, draw, drawing, shown, std_of
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import LEVELS
from gravity_conformance.conform.checks.starts import elsewhere, is_of_build
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge import distribution
from gravity_conformance.drive.session import Arrays
from gravity_conformance.mutations import MUTATIONS, REFERENCE
from gravity_core import hyperparameters as hp
from gravity_core.velocity import initial_velocity

_LARGEST = 1
_FEW = 8  # tensors whose numbers are compared at every distance


def v0(subject: Subject, judge: Judge) -> Finding:
    """V₀: its σ, its distribution, and that no numbers of it depend on each other."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    if subject.starts_from_rest:
        return Finding("remark", "V starts from rest: there is no argument for α or σ")
    options = drawing(subject)
    alpha, lr = float(options.get("alpha", hp.ALPHA)), float(options["learning_rate"])
    std = std_of(subject, options)
    shapes = _shapes(subject)
    drawn = [draw(subject, options, s) for s in (shapes, shapes[: 4 * _FEW])]
    measured = float(np.std(drawn[0][_LARGEST].astype(np.float64)))
    agree = all(a.tobytes() == b.tobytes() for a, b in zip(*drawn, strict=False))
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
    at_build = is_of_build(subject, options, std)
    few, many = drawn[0][:_FEW], drawn[0]
    if (found := distribution.dependent(few) or distribution.equal(many)) is not None:
        finding.first, finding.diagnosis = found, "the numbers of V₀ depend on each other"
    elif (found := distribution.wrong_std(drawn[0], std)) is not None:
        mistakes = [m for m in MUTATIONS if m.std is not REFERENCE.std]
        fits = [m for m in mistakes if not distribution.wrong_std(drawn[0], m.std(alpha, lr, RATE))]
        finding.first, finding.diagnosis = found, " or ".join(m.description for m in fits) or None
    elif (found := _abnormal(drawn[0], std)) is not None:
        finding.first, finding.diagnosis = found, "V₀ is not normal"
    elif (
        found := elsewhere(subject, options, std, at_build=at_build) or _repeated(subject, options)
    ) is not None:
        finding.note, finding.first = "", found
    elif subject.offers("seed") and not agree:
        finding.first = "two constructions with one seed have different V₀"
    elif subject.offers("seed") and (found := _seeds(subject, options)) is not None:
        finding.first, finding.diagnosis = found, "V₀ of one seed depends on that of another"
    elif at_build:
        note += "; a learning rate that is set before build gives σ, not that of the constructor"
        return Finding("remark", note)
    else:
        return Finding("pass", note)
    return finding


def _shapes(subject: Subject) -> list[tuple[int, ...]]:
    """Return shapes of weights and biases of which no two have equal rows of numbers."""
    largest = 2**18 + 1003 if subject.level.top >= 17 else 2**subject.level.top + 3
    few = [(100, 120), (largest,), (64,), (100, 120), (64,), (16, 4, 3, 3), (120,), (1000,)]
    assert len(few) == _FEW
    more = [(8, 5, 25), (2, 3, 4, 5, 6), (3, 2, 2, 3, 4, 5), (2, 3, 2, 3, 2, 3, 3)]
    if subject.refused(shape=()) is None:
        more += [()] * 100
    return [*few, *more, *[(16,)] * subject.level.listed, *[(1,), (2,)] * 100]


def _abnormal(drawn: Arrays, std: float) -> str | None:
    """Describe the distribution of the largest array, of a number of axes, or of tiny arrays."""
    rest = [v for i, v in enumerate(drawn) if i != _LARGEST]
    parts = [[drawn[_LARGEST]], *([v for v in rest if v.ndim == n] for n in range(8))]
    parts += [[v for v in rest if v.size == n] for n in (1, 2)]
    for part in filter(None, parts):
        every = np.concatenate([v.reshape(-1) for v in part])
        found = distribution.wrong_std([every], std) or distribution.not_normal(part, std)
        if found is not None:
            return f"of shape {part[0].shape}: {found}"
    return None


def _repeated(subject: Subject, options: dict[str, Any]) -> str | None:
    """Describe numbers that four million of them repeat, or None."""
    if subject.level.top < 17:
        return None
    return distribution.repeated(draw(subject, options, [(1024, 1025)] * 4))


def _seeds(subject: Subject, options: dict[str, Any]) -> str | None:
    """Draw with several seeds, and return how the numbers depend on each other, or None."""
    twice = [draw(subject, options | {"seed": 0}, [(300,)]) for _ in range(2)]
    if twice[0][0].tobytes() != twice[1][0].tobytes():
        return "two constructions with seed=0 have different V₀"
    if subject.driver.kind == "keras" and (found := _configured(subject, options)) is not None:
        return found
    drawn, names = [], []
    for seed in (0, 1, 2, 3, 100, 10**9 + 7):
        for i, v in enumerate(draw(subject, options | {"seed": seed}, [(300,)] * 4)):
            drawn.append(v)
            names.append(f"tensor {i} with seed {seed}")
    if (found := distribution.dependent(drawn, names)) is not None:
        return found
    # One that loses high digits of a seed takes 2³⁰ for 0.
    each = 1 if subject.level.top >= LEVELS["default"].top else 5
    for seed in (2**k for k in range(30, 3, -each)):
        for i, v in enumerate(draw(subject, options | {"seed": seed}, [(300,)] * 4)):
            drawn.append(v)
            names.append(f"tensor {i} with seed {seed}")
    return distribution.equal(drawn, names)


def _configured(subject: Subject, options: dict[str, Any]) -> str | None:
    """Describe a V₀ that differs after from_config, which may be refused; None if it agrees."""
    if "learning_rate" in subject.driver.arguments.fixed:
        return None
    with contextlib.suppress(*ANYTHING):
        # Keras keeps the rate in float32, which has this one.
        options = options | {"seed": 5, "learning_rate": 0.0625}
        session: Any = subject.driver.start([np.zeros(300, np.float32)], options)
        pair = [shown(subject, each, options)[0] for each in (session.configured(), session)]
        if pair[0].tobytes() != pair[1].tobytes():
            return "with seed=5, an optimizer made by from_config has another V₀"
    return None
