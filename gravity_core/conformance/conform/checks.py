"""What is looked at, check by check. Each gives one `Finding`, and none can pass by not running."""

import collections
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from gravity_core import hyperparameters as hp
from gravity_core.coefficients import beta_hat
from gravity_core.conformance.conform import judge
from gravity_core.conformance.conform.drivers import Arrays, Driver
from gravity_core.conformance.conform.judge import Case, Run, Verdict
from gravity_core.conformance.conform.mutations import MUTATIONS, REFERENCE
from gravity_core.conformance.guard import ANYTHING, one_line
from gravity_core.conformance.vectors import UpdateTest, load_vectors
from gravity_core.velocity import initial_velocity

Outcome = Literal["pass", "differs", "error", "not applicable"]

SHAPES = ((4, 3), (5,), (2, 2, 2))
SCALES = (1.0, 30.0, 0.02)  # of their gradients, so that one maximum for all is another number
LONG = 2_200  # steps: a counter in float16 stops at 2048


@dataclass
class Finding:
    """The outcome of one check.

    Attributes:
        outcome: pass, differs, error or not applicable.
        note: what was recognised, or why it could not be looked at.
        worst: the greatest error, in u·S.
        first: the first differing element, in words.
        diagnosis: the known mistake that explains what differs.
        plot: the curves of a trajectory: deviation and bound of W by step, and some elements.
    """

    outcome: Outcome
    note: str = ""
    worst: float | None = None
    first: str | None = None
    diagnosis: str | None = None
    plot: dict[str, list[float]] = field(default_factory=dict)


class Subject:
    """An implementation, and what has been found out about it so far.

    Args:
        driver: of the implementation.
        first_step: the convention that it must keep; None recognises it.
    """

    def __init__(self, driver: Driver, first_step: int | None = None) -> None:
        self.driver, self.asked = driver, first_step

    def offers(self, name: str) -> bool:
        """Whether the constructor has this argument of ours."""
        return name in self.driver.arguments.names

    def options(self, **wanted: Any) -> dict[str, Any]:
        """Return options of ours, as far as the implementation lets us choose them."""
        options = {"learning_rate": hp.LEARNING_RATE, "beta": hp.BETA} | self.resting | wanted
        if not (self.offers("beta") or self.driver.stateless):
            options["beta"] = hp.BETA
        options |= self.driver.arguments.fixed
        if self.asked is not None or self.offers("first_step") or self.driver.stateless:
            options.setdefault("first_step", 1 if self.asked is None else self.asked)
        return options

    @functools.cached_property
    def resting(self) -> dict[str, Any]:
        """The options with which V₀ is zero; none if there is no such option."""
        for name in ("alpha", "velocity_std"):
            if not self.offers(name) or self.driver.stateless:
                continue
            zeros = [np.zeros(3, np.float32)]
            options = {"learning_rate": 0.1, "beta": hp.BETA} | self.driver.arguments.fixed
            try:
                session = self.driver.start(zeros, options | {name: 0.0})
                session.step(zeros, float(options["learning_rate"]))
                shown = [*(session.velocity() or []), *session.weights()]
            except ANYTHING:
                continue
            if not any(np.asarray(x).any() for x in shown):
                return {name: 0.0}
        return {}

    @property
    def at_rest(self) -> bool:
        """Whether V₀ is zero by `options`."""
        return bool(self.resting) or self.driver.stateless

    @functools.cached_property
    def convention(self) -> tuple[int, Finding]:
        """The first step, and the finding about it.

        From gradients so small that ζ is the gradient, so that it tells the coefficients alone.
        """
        options = self.options()
        rng = np.random.default_rng(1)
        gradients = [[(1e-8 * rng.standard_normal(6)).astype(np.float32)] for _ in range(12)]
        case = Case([np.zeros(6, np.float32)], gradients, options)
        run = judge.perform(self.driver, case, at_rest=self.at_rest)
        names = {1: "t from 1 (Algorithm 1)", 0: "t from 0 (the original Keras code)"}
        known = options.get("first_step")
        for first in (1, 0) if known is None else (int(known),):
            exact = judge.simulate(REFERENCE, case, run, first)
            verdict = judge.compare(case, run, exact, first, what="V")
            if verdict.inside:
                return first, Finding("pass", names[first], worst=judge.worst(case, run, first))
        first = 1 if known is None else int(known)
        exact = judge.simulate(REFERENCE, case, run, first)
        verdict = judge.compare(case, run, exact, first, what="V")
        words = judge.diagnose(case, run, first, what="V")
        note = f"β̂ fits no step count; taken to be {names[first]}"
        if known is not None:
            note = f"does not count {names[first]}"
        return first, Finding("differs", note, judge.worst(case, run, first), verdict.first, words)

    def run(self, case: Case) -> Run:
        """Feed a case to the implementation."""
        return judge.perform(self.driver, case, at_rest=self.at_rest)

    def judged(self, case: Case, note: str = "", *, plot: bool = False) -> Finding:
        """Feed a case to the implementation, and judge every step."""
        first, _ = self.convention
        run = self.run(case)
        exact = judge.simulate(REFERENCE, case, run, first)
        verdict = judge.compare(case, run, exact, first)
        finding = Finding("pass", note, judge.worst(case, run, first))
        if not verdict.inside:
            finding.outcome, finding.first = "differs", verdict.first
            finding.diagnosis = judge.diagnose(case, run, first)
        if plot:
            finding.plot = _plot(run, exact, verdict)
        return finding


def _plot(run: Run, exact: Run, verdict: Verdict) -> dict[str, list[float]]:
    curves = {"deviation": verdict.deviation, "bound": verdict.bound}
    for name, states in (("implementation", run.states), ("reference", exact.states)):
        for i in range(3):
            path = [float(w[i].reshape(-1)[0]) for _, w in states]
            curves[f"{name} {i}"] = path
    return curves


def _normal(
    steps: int,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    scales: Sequence[float] = SCALES,
    dtype: Any = np.float32,
    seed: int = 0,
) -> tuple[Arrays, list[Arrays]]:
    """Return weights and gradients."""
    rng = np.random.default_rng(seed)
    weights = [np.asarray(rng.standard_normal(s), dtype) for s in shapes]
    gradients = [
        [np.asarray(c * rng.standard_normal(s), dtype) for s, c in zip(shapes, scales, strict=True)]
        for _ in range(steps)
    ]
    return weights, gradients


def convention(subject: Subject) -> Finding:
    """Does t start from 1 or 0?"""
    finding = subject.convention[1]
    if finding.outcome != "pass" or not subject.offers("first_step") or subject.driver.stateless:
        return finding
    weights, gradients = _normal(4)
    case = Case(weights, gradients, subject.options() | {"first_step": 0})
    run = subject.run(case)
    exact = judge.simulate(REFERENCE, case, run, 0)
    verdict = judge.compare(case, run, exact, 0)
    if verdict.inside:
        return Finding("pass", f"{finding.note}; from 0 by first_step=0", finding.worst)
    return Finding("differs", "with first_step=0", judge.worst(case, run, 0), verdict.first)


def v0(subject: Subject) -> Finding:
    """V₀: its standard deviation and distribution, and whether two constructions agree."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    first, _ = subject.convention
    options = {k: v for k, v in subject.options().items() if k not in ("alpha", "velocity_std")}
    options["learning_rate"] = 0.05
    if subject.offers("alpha"):
        options["alpha"] = 0.02
    options |= subject.driver.arguments.fixed
    alpha, lr = float(options.get("alpha", hp.ALPHA)), float(options["learning_rate"])
    drawn = [_v0(subject, options, first) for _ in range(2)]
    std = float(subject.driver.arguments.fixed.get("velocity_std", REFERENCE.std(alpha, lr)))
    z = drawn[0][0].reshape(-1).astype(np.float64)
    measured, within = float(np.std(z)), float(np.mean(np.abs(z) <= std))

    def fits(expected: float) -> bool:  # six standard errors of a normal sample
        return bool(abs(measured - expected) <= 6 * expected / (2 * z.size) ** 0.5)

    agree = all(a.tobytes() == b.tobytes() for a, b in zip(*drawn, strict=True))
    note = f"std {measured:.4g} for α / l = {std:.4g}; "
    if agree and measured:
        ours = all(
            a.tobytes()
            == initial_velocity(a.shape, a.dtype, std=std, seed=hp.SEED, index=i).tobytes()
            for i, a in enumerate(drawn[0])
        )
        note += "own seed, two constructions agree" + (", the bits of gravity_core" if ours else "")
    elif measured:
        note += "from a global random state, two constructions differ"
    if not fits(std):
        words = [m.words for m in MUTATIONS if m.std is not REFERENCE.std]
        stds = [m.std(alpha, lr) for m in MUTATIONS if m.std is not REFERENCE.std]
        known = [w for w, s in zip(words, stds, strict=True) if fits(s)]
        first_words = f"std {measured:.4g}, not {std:.4g}"
        return Finding("differs", note, None, first_words, " or ".join(known) or None)
    if abs(float(z.mean())) > 6 * std / z.size**0.5 or abs(within - 0.6827) > 3 / z.size**0.5:
        words_ = f"{100 * within:.1f} % within one σ, not 68.3; mean {float(z.mean()):.3g}, not 0"
        return Finding("differs", note, None, words_, "V₀ is not normal")
    if subject.offers("seed") and not agree:
        return Finding("differs", note, None, "one seed gives two V₀")
    return Finding("pass", note)


def _v0(subject: Subject, options: dict[str, Any], first: int) -> Arrays:
    zeros = [np.zeros((100, 120), np.float32), np.zeros(7, np.float32)]
    session = subject.driver.start(zeros, options)
    v = session.velocity()
    if v is not None:
        return v
    lr = float(options["learning_rate"])
    session.step([z.copy() for z in zeros], lr)
    v = session.velocity()
    if v is None:
        v = [-w / np.float32(lr) for w in session.weights()]
    return [x / np.float32(beta_hat(first, float(options["beta"]))) for x in v]


def update(subject: Subject) -> Finding:
    """One update of three tensors."""
    weights, gradients = _normal(1)
    return subject.judged(Case(weights, gradients, subject.options() | _some_v(subject, weights)))


def _some_v(subject: Subject, weights: Arrays) -> dict[str, Any]:
    """Return V₀ for an implementation to which V is given."""
    rng = np.random.default_rng(3)
    v = [np.asarray(0.1 * rng.standard_normal(w.shape), w.dtype) for w in weights]
    return {"v": v} if subject.driver.stateless else {}


def trajectory(subject: Subject) -> Finding:
    """Sixty steps with other hyper-parameters."""
    weights, gradients = _normal(60, seed=4)
    options = subject.options(learning_rate=0.03, beta=0.75) | _some_v(subject, weights)
    return subject.judged(Case(weights, gradients, options), plot=True)


def drawn(subject: Subject) -> Finding:
    """A trajectory that starts from the implementation's own V₀."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    first, _ = subject.convention
    weights, gradients = _normal(10, seed=5)
    options = {k: v for k, v in subject.options().items() if k not in subject.resting}
    case = Case(weights, gradients, options)
    run = judge.perform(subject.driver, case, at_rest=False)
    verdict = judge.compare(case, run, judge.simulate(REFERENCE, case, run, first), first)
    if verdict.inside:
        return Finding("pass", worst=judge.worst(case, run, first))
    return Finding(
        "differs",
        "",
        judge.worst(case, run, first),
        verdict.first,
        judge.diagnose(case, run, first),
    )


def long(subject: Subject) -> Finding:
    """More steps than float16 can count."""
    weights, gradients = _normal(LONG, ((3,), (2,)), (1.0, 5.0), seed=6)
    return subject.judged(Case(weights, gradients, subject.options(), fast=True), f"{LONG} steps")


def double(subject: Subject) -> Finding:
    """A trajectory in float64."""
    weights, gradients = _normal(20, dtype=np.float64, seed=7)
    return subject.judged(Case(weights, gradients, subject.options()))


def half(subject: Subject) -> Finding:
    """A trajectory in float16."""
    weights, gradients = _normal(20, dtype=np.float16, seed=8)
    return subject.judged(Case(weights, gradients, subject.options()))


def schedule(subject: Subject) -> Finding:
    """A learning rate that changes from step to step, through zero."""
    weights, gradients = _normal(12, seed=9)
    rates = [0.1, 0.1, 0.05, 0.2, 0.0, 0.1, 0.3, 0.01, 0.02, 0.04, 0.08, 0.16]
    options = subject.options(learning_rate=rates[0])
    return subject.judged(Case(weights, gradients, options, rates=rates))


def _scaled(subject: Subject, scale: float, seed: int) -> Finding:
    weights, gradients = _normal(6, SHAPES, (scale,) * 3, seed=seed)
    return subject.judged(Case(weights, gradients, subject.options()))


def zero(subject: Subject) -> Finding:
    """Gradients of zeros, after one that is not."""
    weights, gradients = _normal(6, seed=10)
    for grads in gradients[1:]:
        grads[:] = [0 * g for g in grads]
    return subject.judged(Case(weights, gradients, subject.options()))


def huge(subject: Subject) -> Finding:
    """Gradients of 1e12, and one of 3e38."""
    weights, gradients = _normal(6, SHAPES, (1e12,) * 3, seed=11)
    gradients[3][1][:] = [3e38, 0, 1, -1e-30, 1e19]
    return subject.judged(Case(weights, gradients, subject.options()))


def tiny(subject: Subject) -> Finding:
    """Gradients of 1e-25."""
    return _scaled(subject, 1e-25, 12)


def subnormal(subject: Subject) -> Finding:
    """Gradients of 1e-41, which float32 has as subnormal numbers only."""
    return _scaled(subject, 1e-41, 13)


def nonfinite(subject: Subject) -> Finding:
    """NaN and infinity in the gradient of one tensor show there, and leave the others alone."""
    first, _ = subject.convention
    notes = []
    for value in (np.nan, np.inf):
        weights, gradients = _normal(3, ((5,), (4,)), (1.0, 1.0), seed=14)
        gradients[1][0][2] = value
        run = subject.run(Case(weights, gradients, subject.options()))
        # The other tensor as if it were alone; and again by the mistakes that mix tensors.
        case = Case(weights[1:], [g[1:] for g in gradients], subject.options())
        other = Run(
            run.count,
            (run.start[0][1:], run.start[1][1:]),
            run.uncertain[1:],
            [(None if v is None else v[1:], w[1:]) for v, w in run.states],
        )
        exact = judge.simulate(REFERENCE, case, other, first)
        verdict = judge.compare(case, other, exact, first)
        if not verdict.inside:
            words = judge.diagnose(case, other, first)
            if words is None and not np.isfinite(run.states[-1][1][1]).all():
                words = "m from the whole model, not per tensor"
            first_words = f"of another tensor than that with {value}: {verdict.first}"
            return Finding("differs", "", judge.worst(case, other, first), first_words, words)
        after = run.states[-1][1][0]
        if np.isfinite(after[2]):
            words = f"W of tensor 0 after step 2, element [2]: {after[2]:.9g} from a gradient of"
            return Finding("differs", f"{value} is swallowed", None, f"{words} {value}")
        whole = not np.isfinite(after).any()
        notes.append(f"{value} shows in {'its tensor' if whole else 'its elements'}")
    return Finding("pass", "; ".join(notes))


def empty(subject: Subject) -> Finding:
    """Tensors without elements, among others."""
    weights, gradients = _normal(3, ((0,), (0, 3), (3,)), (1.0, 1.0, 2.0), seed=15)
    return subject.judged(Case(weights, gradients, subject.options()))


def scalar(subject: Subject) -> Finding:
    """0-d tensors."""
    weights, gradients = _normal(4, ((), (2,)), (1.0, 5.0), seed=16)
    return subject.judged(Case(weights, gradients, subject.options()))


def resume(subject: Subject) -> Finding:
    """State saved after six steps and loaded into a new optimizer."""
    if subject.driver.stateless:
        return Finding("not applicable", "V and t are the caller's")
    weights, gradients = _normal(12, seed=17)
    return subject.judged(Case(weights, gradients, subject.options(), reload_after=6))


def gradient(subject: Subject) -> Finding:
    """Gradients are left as they were, also where it maximizes; a function leaves w and v, too."""
    weights, gradients = _normal(2, seed=18)
    options = [subject.options()]
    if subject.offers("maximize"):
        options.append(subject.options(maximize=True))
    for chosen in options:
        session = subject.driver.start(weights, chosen)
        for grads in gradients:
            left = session.step([g.copy() for g in grads], float(chosen["learning_rate"]))
            for i, (g, after) in enumerate(zip(grads, left, strict=True)):
                if g.tobytes() == after.tobytes():
                    continue
                k = tuple(int(n) for n in np.argwhere(g != after)[0])
                where = f"gradient of tensor {i}, element {list(k)}: {after[k]:.9g}, not {g[k]:.9g}"
                words = [
                    m.words
                    for m in MUTATIONS
                    if m.left is not REFERENCE.left and np.allclose(m.left(g), after, rtol=1e-5)
                ]
                when = "with maximize" if chosen.get("maximize") else ""
                return Finding(
                    "differs", when, None, where, " or ".join(words) or "gradient overwritten"
                )
        if (name := getattr(session, "overwritten", None)) is not None:
            return Finding("differs", "", None, f"{name} is not what it was", "inputs overwritten")
    return Finding("pass")


def maximize(subject: Subject) -> Finding:
    """The gradient counts with the other sign."""
    if not subject.offers("maximize"):
        return Finding("not applicable", "not offered")
    weights, gradients = _normal(12, seed=19)
    options = subject.options(maximize=True) | _some_v(subject, weights)
    return subject.judged(Case(weights, gradients, options))


def weight_decay(subject: Subject) -> Finding:
    """Decoupled weight decay, W ← W − l λ W."""
    if not subject.offers("weight_decay"):
        return Finding("not applicable", "not offered")
    weights, gradients = _normal(12, seed=20)
    options = subject.options(weight_decay=0.1) | _some_v(subject, weights)
    return subject.judged(Case(weights, gradients, options))


def vectors(subject: Subject) -> Finding:
    """The published vectors of float32 and float64 that can be fed to it."""
    differing: list[Finding] = []
    raised: list[str] = []
    fit, every, words = 0, 0, collections.Counter[str]()
    for group in load_vectors():
        # Of non-finite gradients and half types more ways are right than a vector has room for;
        # they have checks of their own.
        if group.type != "update" or group.dtype not in ("float32", "float64"):
            continue
        if group.file == "non_finite.json":
            continue
        every += len(group.tests)
        for test in group.tests:
            case = _vector_case(subject, test)
            if case is None:
                continue
            fit += 1
            try:
                run = subject.run(case)
            except ANYTHING as error:
                raised.append(f"{group.file}, test {test.id} ({group.dtype}): {one_line(error)}")
                continue
            first = _outside(test, run)
            if first is None:
                continue
            t = test.steps[0].t
            diagnosis = judge.diagnose(case, run, t)
            where = f"{group.file}, test {test.id} ({group.dtype}): {first}"
            differing.append(Finding("differs", "", judge.worst(case, run, t), where, diagnosis))
            words.update((diagnosis or "").split(" or "))
    if not fit:
        return Finding("not applicable", "none can be fed to it")
    if raised and not differing:
        return Finding("error", f"{len(raised)} of {fit} raise; {raised[0]}")
    if not differing:
        return Finding("pass", f"{fit} of {every} can be fed to it")
    finding = differing[0]
    finding.note = f"{len(differing)} of {fit} differ"
    del words[""]
    # One mistake looks like another in some vectors, but not in most.
    finding.diagnosis = words.most_common(1)[0][0] if words else None
    return finding


def _vector_case(subject: Subject, test: UpdateTest) -> Case | None:
    """Return a vector as a case; None if it cannot be fed to the implementation."""
    given, first = test.hyperparameters, test.steps[0].t
    asked: dict[str, Any] = {"learning_rate": given.learning_rate, "beta": given.beta}
    for name in ("weight_decay", "maximize"):
        if value := getattr(given, name):
            if not subject.offers(name):
                return None
            asked[name] = value
    if subject.driver.stateless:
        options = subject.options(**asked, first_step=first, v=test.v)
    else:
        starts = (0, 1) if subject.offers("first_step") else (subject.convention[0],)
        at_rest = subject.at_rest and not any(v.any() for v in test.v)
        if not at_rest or first not in starts or not given.learning_rate:
            return None
        if subject.offers("first_step"):
            asked["first_step"] = first
        options = subject.options(**asked)
    if any(options[name] != value for name, value in asked.items()):
        return None  # fixed, or not offered
    reloads = [n for n, step in enumerate(test.steps) if step.reload]
    if len(reloads) > 1:
        return None
    return Case(
        test.w,
        [step.g for step in test.steps],
        options,
        rates=[step.learning_rate for step in test.steps],
        reload_after=reloads[0] if reloads and not subject.driver.stateless else None,
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
                    return f"{where}: {float(got[k]):.9g}, not {float(wanted.value[k]):.9g}"
    return None


class Check(NamedTuple):
    """A check: what the report calls it, and the function."""

    title: str
    function: Callable[[Subject], Finding]


CHECKS: dict[str, Check] = {
    "convention": Check("convention of t", convention),
    "v0": Check("V₀", v0),
    "update": Check("one update", update),
    "trajectory": Check("trajectory", trajectory),
    "own-v0": Check("trajectory from its own V₀", drawn),
    "vectors": Check("published vectors", vectors),
    "long": Check("long trajectory", long),
    "float64": Check("float64", double),
    "float16": Check("half precision", half),
    "schedule": Check("scheduled learning rate", schedule),
    "zero": Check("zero gradients", zero),
    "huge": Check("huge gradients", huge),
    "tiny": Check("tiny gradients", tiny),
    "subnormal": Check("subnormal gradients", subnormal),
    "non-finite": Check("non-finite gradients", nonfinite),
    "empty": Check("empty tensors", empty),
    "0-d": Check("0-d tensors", scalar),
    "resume": Check("state saved and loaded", resume),
    "gradient": Check("gradient left untouched", gradient),
    "maximize": Check("maximize", maximize),
    "weight-decay": Check("weight decay", weight_decay),
}
