"""An implementation under examination: what is known of it, and how a check is judged."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gravity_core import hyperparameters as hp
from gravity_core.conformance.conform import judge
from gravity_core.conformance.conform.drivers import Driver
from gravity_core.conformance.conform.judge import Case, Run, Verdict
from gravity_core.conformance.conform.mutations import REFERENCE
from gravity_core.conformance.conform.session import Arrays
from gravity_core.conformance.conform.writable import why_unwritable
from gravity_core.conformance.guard import ANYTHING

Outcome = Literal["pass", "differs", "error", "not applicable"]

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
        known = options.get("first_step")
        for first in CONVENTIONS if known is None else (int(known),):
            finding = found(case, run, first, CONVENTIONS[first], what="V")
            if finding.outcome == "pass":
                return first, finding
        first = 1 if known is None else int(known)
        note = f"β̂ fits no step count; taken to be {CONVENTIONS[first]}"
        if known is not None:
            note = f"does not count {CONVENTIONS[first]}"
        return first, found(case, run, first, note, what="V")

    def some_velocity(self, weights: Arrays) -> Arrays | None:
        """Return a V for an implementation to which V is given, as the caller's."""
        rng = np.random.default_rng(3)
        v = [np.asarray(0.1 * rng.standard_normal(w.shape), w.dtype) for w in weights]
        return v if self.driver.stateless else None

    def run(self, case: Case) -> Run:
        """Feed a case to the implementation."""
        return judge.perform(self.driver, case, at_rest=self.at_rest)

    def judged(self, case: Case, note: str = "", *, plot: bool = False) -> Finding:
        """Feed a case to the implementation, and judge every step."""
        return found(case, self.run(case), self.convention[0], note, plot=plot)

    @functools.cached_property
    def unwritable(self) -> str | None:
        """Why V and t cannot be written into its state; None if they can."""
        return why_unwritable(self.driver, self.options(), at_rest=self.at_rest)


def found(
    case: Case, run: Run, first_step: int, note: str = "", *, what: str = "VW", plot: bool = False
) -> Finding:
    """Return what a run of the implementation amounts to, beside the exact one."""
    exact = judge.simulate(REFERENCE, case, run, first_step)
    verdict = judge.compare(case, run, exact, first_step, what=what)
    finding = Finding("pass", note, judge.worst(case, run, first_step))
    if not verdict.inside:
        finding.outcome, finding.first = "differs", verdict.first
        finding.diagnosis = judge.diagnose(case, run, first_step, what=what)
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
