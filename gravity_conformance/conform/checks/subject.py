"""An implementation under examination: what is known of it, and how a check is judged."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks.inputs import normal
from gravity_conformance.conform.checks.writable import why_unwritable
from gravity_conformance.conform.judge import compare as judge
from gravity_conformance.conform.judge.compare import Case, Run, Verdict
from gravity_conformance.conform.judge.diagnosis import diagnose, how_tolerated
from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import Arrays
from gravity_conformance.mutations import COARSE, MUTATIONS, REFERENCE
from gravity_core import hyperparameters as hp

Outcome = Literal["pass", "differs", "error", "not applicable"]

OPTIONAL = ("maximize", "weight_decay")
CONVENTIONS = {1: "t from 1 (Algorithm 1)", 0: "t from 0 (the original Keras code)"}


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
        self.touched: Finding | None = None  # the first gradient that was written to, in any check
        self._certain: set[str] = set()  # mistakes that a check has named alone

    def offers(self, name: str) -> bool:
        """Whether the constructor has this argument of ours."""
        return name in self.driver.arguments.names

    def options(self, **wanted: Any) -> dict[str, Any]:
        """Return options of ours, as far as the implementation lets us choose them."""
        options = {"learning_rate": hp.LEARNING_RATE, "beta": hp.BETA}
        if self.offers("alpha"):
            options["alpha"] = hp.ALPHA
        options |= self.resting | wanted
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
        run = self.run(case)
        known = options.get("first_step")
        for first in CONVENTIONS if known is None else (int(known),):
            finding = self.found(case, run, first, CONVENTIONS[first], what="V")
            if finding.outcome == "pass":
                if self.hidden:
                    finding.note += "; what its state shows is not V, which is judged by W"
                return first, finding
        first = 1 if known is None else int(known)
        note = f"β̂ fits no step count; taken to be {CONVENTIONS[first]}"
        if known is not None:
            note = f"does not count {CONVENTIONS[first]}"
        return first, self.found(case, run, first, note, what="V")

    def some_velocity(self, weights: Arrays) -> Arrays | None:
        """Return a V for an implementation to which V is given, as the caller's."""
        rng = np.random.default_rng(3)
        v = [np.asarray(0.1 * rng.standard_normal(w.shape), w.dtype) for w in weights]
        return v if self.driver.stateless else None

    @functools.cached_property
    def right_in_float32(self) -> bool:
        """Whether a trajectory in float32 is right, so that a half type alone is to blame."""
        weights, gradients = normal(20, seed=28)
        case, first = Case(weights, gradients, self.options()), self.convention[0]
        run = self.run(case)
        return judge.compare(case, run, judge.simulate(REFERENCE, case, run, first), first).inside

    @functools.cached_property
    def hidden(self) -> bool:
        """Whether what the state shows as V is something else: V is off and W alone is right."""
        weights, gradients = normal(3, seed=23)
        case = Case(weights, gradients, self.options())
        known = case.options.get("first_step")
        for hidden in (False, True):
            run = judge.perform(self.driver, case, at_rest=self.at_rest, hidden=hidden)
            for first in CONVENTIONS if known is None else (int(known),):
                exact = judge.simulate(REFERENCE, case, run, first)
                if judge.compare(case, run, exact, first).inside:
                    return hidden
        return False

    def run(self, case: Case, *, at_rest: bool | None = None) -> Run:
        """Feed a case to the implementation, and look at what is left in the gradients."""
        resting = self.at_rest if at_rest is None else at_rest
        run = judge.perform(self.driver, case, at_rest=resting, hidden=self.hidden)
        self.touched = self.touched or _touched(case, run)
        return run

    def found(
        self,
        case: Case,
        run: Run,
        first_step: int,
        note: str = "",
        *,
        what: str = "VW",
        plot: bool = False,
    ) -> Finding:
        """Return what a run of the implementation amounts to, beside the exact one."""
        exact = judge.simulate(REFERENCE, case, run, first_step)
        verdict = judge.compare(case, run, exact, first_step, what=what)
        finding = Finding("pass", note, judge.worst(case, run, first_step))
        if not verdict.inside:
            if (tolerated := how_tolerated(case, run, first_step)) is not None:
                finding.note = "; ".join(filter(None, (note, tolerated)))
            else:
                finding.outcome, finding.first = "differs", verdict.first
                diagnosis = diagnose(case, run, first_step, what=what)
                finding.diagnosis = self.named(diagnosis.words)
        elif what != "V" and any(
            d > b for d, b in zip(verdict.deviation, verdict.bound, strict=True)
        ):
            return Finding("error", "inside the bound by element, and outside of it as a whole")
        if plot:
            finding.plot = _plot(run, exact, verdict)
        return finding

    def named(self, words: list[str]) -> str | None:
        """Return the diagnosis; of several the one, if any, that another check has left alone."""
        if COARSE.words in words and not self.right_in_float32:
            words = [w for w in words if w != COARSE.words]
        if len(words) == 1:
            self._certain.update(words)
        return " or ".join([w for w in words if w in self._certain] or words) or None

    def judged(self, case: Case, note: str = "", *, plot: bool = False) -> Finding:
        """Feed a case to the implementation, and judge every step."""
        return self.found(case, self.run(case), self.convention[0], note, plot=plot)

    @functools.cached_property
    def unwritable(self) -> str | None:
        """Why V and t cannot be written into its state; None if they can."""
        if self.hidden:
            return "its state does not show V"
        return why_unwritable(self.driver, self.options(), at_rest=self.at_rest)

    def refused(self, **wanted: Any) -> str | None:
        """Why the implementation takes no such options, in its own words; None if it does.

        What is raised in one ordinary step with them, and not without them, is a refusal.
        """
        weights, (grads,) = normal(1, seed=24)
        schedule = wanted.pop("schedule", None)

        def attempt(options: dict[str, Any], rates: list[float] | None) -> str | None:
            try:
                session = self.driver.start(weights, options, schedule=rates)
                session.step([g.copy() for g in grads], float(options["learning_rate"]))
            except ANYTHING as error:
                return one_line(error)
            return None

        why = attempt(self.options(**wanted), schedule)
        return why if why is not None and attempt(self.options(), None) is None else None

    @functools.cached_property
    def unschedulable(self) -> str | None:
        """Why the learning rate cannot change from step to step; None if it can."""
        why = self.refused(schedule=[hp.LEARNING_RATE] * 2)
        return why and f"it refuses a schedule: {why}"


def _touched(case: Case, run: Run) -> Finding | None:
    """Return what was found in a gradient after a step, if it is not what was given."""
    for number, (grads, left) in enumerate(zip(case.gradients, run.left, strict=True), start=1):
        for i, (g, after) in enumerate(zip(grads, left, strict=True)):
            if g.tobytes() == after.tobytes():
                continue
            differs = np.argwhere(~((g == after) | (np.isnan(g) & np.isnan(after))))
            k = tuple(int(n) for n in differs[0]) if len(differs) else (0,) * g.ndim
            where = f"gradient of tensor {i} after step {number}, element {list(k)}"
            known = [m for m in MUTATIONS if m.left is not REFERENCE.left and len(differs)]
            with np.errstate(all="ignore"):
                words = [m.words for m in known if np.allclose(m.left(g), after, atol=0)]
            asked = [name.replace("_", " ") for name in OPTIONAL if case.options.get(name)]
            when = f"with {' and '.join(asked)}" if asked else ""
            diagnosis = " or ".join(words) or "gradient overwritten"
            first = f"{where}: {float(after[k]):.17g}, not {float(g[k]):.17g}"
            return Finding("differs", when, None, first, diagnosis)
    return None


def _plot(run: Run, exact: Run, verdict: Verdict) -> dict[str, list[float]]:
    curves = {"deviation": verdict.deviation, "bound": verdict.bound}
    for name, states in (("implementation", run.states), ("reference", exact.states)):
        for i in range(3):
            path = [float(w[i].reshape(-1)[0]) for _, w in states]
            curves[f"{name} {i}"] = path
    return curves
