"""The implementation under test: what it offers, and how it starts.

Guarantee: this module makes no finding; `findings` judges the implementation. Comparisons here only
show which convention of t fits, and whether the state shows V.
"""

import functools
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks.inputs import normal
from gravity_conformance.conform.checks.writable import why_unwritable
from gravity_conformance.conform.judge.compare import compare
from gravity_conformance.conform.judge.trial import Case, Run, Trial, perform
from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import Arrays
from gravity_core import hyperparameters as hp

OPTIONAL = ("maximize", "weight_decay")


class Subject:
    """An implementation and its detected properties.

    Args:
        driver: starts the implementation.
        first_step: the t from which it must start; None detects it.
    """

    def __init__(self, driver: Driver, first_step: int | None = None) -> None:
        self.driver, self.asked = driver, first_step

    def offers(self, name: str) -> bool:
        """Tell whether the implementation has an argument for our hyper-parameter `name`."""
        return name in self.driver.arguments.names

    def options(self, **wanted: Any) -> dict[str, Any]:
        """Return our defaults and `wanted`, except where the implementation fixes a value."""
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

    def velocity(self, weights: Arrays) -> Arrays | None:
        """Return a V to start from, for an implementation that takes V as an argument."""
        rng = np.random.default_rng(3)
        v = [np.asarray(0.1 * rng.standard_normal(w.shape), w.dtype) for w in weights]
        return v if self.driver.stateless else None

    def run(self, case: Case, *, at_rest: bool | None = None) -> Run:
        """Feed a case to the implementation."""
        resting = self.at_rest if at_rest is None else at_rest
        return perform(self.driver, case, at_rest=resting, hidden=self.hidden)

    @functools.cached_property
    def resting(self) -> dict[str, Any]:
        """The options that make V₀ zero; empty if there is no such option."""
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
        """Whether `options` makes V₀ zero."""
        return bool(self.resting) or self.driver.stateless

    def first_steps(self, case: Case) -> tuple[int, ...]:
        """Return the first values of t to try: that of the case if it has one, else both."""
        known = case.options.get("first_step")
        return (1, 0) if known is None else (int(known),)

    @functools.cached_property
    def convention(self) -> tuple[Trial, bool]:
        """The trial that shows the convention of t, and whether the exact update explains it.

        The gradients are so small that ζ equals the gradient. V then shows the coefficients alone.
        """
        rng = np.random.default_rng(1)
        gradients = [[(1e-8 * rng.standard_normal(6)).astype(np.float32)] for _ in range(12)]
        case = Case([np.zeros(6, np.float32)], gradients, self.options())
        run = self.run(case)
        trials = [Trial(case, run, first) for first in self.first_steps(case)]
        for trial in trials:
            if compare(trial, what="V").inside:
                return trial, True
        return trials[0], False

    @property
    def first_step(self) -> int:
        """The t of the first update."""
        return self.convention[0].first_step

    @functools.cached_property
    def hidden(self) -> bool:
        """Whether W alone is right: the state holds something else in place of V."""
        weights, gradients = normal(3, seed=23)
        case = Case(weights, gradients, self.options())
        for hidden in (False, True):
            run = perform(self.driver, case, at_rest=self.at_rest, hidden=hidden)
            if any(compare(Trial(case, run, t)).inside for t in self.first_steps(case)):
                return hidden
        return False

    @functools.cached_property
    def unwritable(self) -> str | None:
        """Why V and t cannot be written into its state; None if they can."""
        if self.hidden:
            return "its state does not show V"
        return why_unwritable(self.driver, self.options(), at_rest=self.at_rest)

    def refused(self, **wanted: Any) -> str | None:
        """Return the error by which the implementation refuses options; None if it accepts them.

        It refuses them if an ordinary step raises with them, and does not without them.
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
