"""The implementation under test: what it offers, and how it starts.

Guarantee: this module makes no finding; `findings` judges the implementation. Comparisons here only
show which convention of t fits, and whether the state shows V.
"""

import functools
import itertools
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line, refusal
from gravity_conformance.conform.checks.inputs import (
    LEVELS,
    SCALES,
    SHAPES,
    normal,
    patterned,
    sweep,
    to_dtype,
)
from gravity_conformance.conform.checks.writable import why_unwritable
from gravity_conformance.conform.judge.compare import compare
from gravity_conformance.conform.judge.perform import perform
from gravity_conformance.conform.judge.together import COUNTED, Part, Plan, perform_together
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import IN_TURN, Arrays
from gravity_conformance.drive.spec import parameters
from gravity_core import hyperparameters as hp

OPTIONAL = ("maximize", "weight_decay")
# Arguments of torch's optimizers that choose another path through the same update.
PATHS = (
    ("foreach", False),
    ("foreach", True),
    ("fused", True),
    ("capturable", True),
    ("differentiable", True),
)
DTYPES = ("float32", "float64", "float16", "bfloat16")


class Subject:
    """An implementation and its detected properties.

    Args:
        driver: starts the implementation.
        first_step: the t from which it must start; None detects it.
        seed: of the generated inputs.
        level: a key of `inputs.LEVELS`.
        dtypes: those of `DTYPES` that it is said to offer.
    """

    def __init__(
        self,
        driver: Driver,
        first_step: int | None = None,
        *,
        seed: int = 0,
        level: str = "default",
        dtypes: Collection[str] = DTYPES,
    ) -> None:
        self.driver, self.asked, self.seed = driver, first_step, seed
        self.level, self.dtypes = LEVELS[level], dtypes

    def takes(self, *dtypes: str) -> bool:
        """Tell whether the implementation takes tensors of these dtypes together."""
        weights, (grads,) = self.normal(1, ((4, 3),) * len(dtypes), (1.0,) * len(dtypes))
        try:
            cast = [
                [to_dtype(x, d) for x, d in zip(xs, dtypes, strict=True)] for xs in (weights, grads)
            ]
            session = self.driver.start(cast[0], self.options(), bfloat16="bfloat16" in dtypes)
            session.step(cast[1])
        except ANYTHING:
            return False
        return True

    def begins_compiled(self) -> bool:
        """Compile `init` and a step of JAX before all else, as users do; tell whether that works.

        A cache that compiled code fills has tracers, which raise an error wherever they are used.
        """
        if self.driver.kind != "optax":
            return False
        options = {"learning_rate": hp.LEARNING_RATE, "alpha": hp.ALPHA, "beta": hp.BETA}
        ones = [np.ones(3, np.float32)]
        try:
            options |= self.driver.arguments.fixed
            self.driver.start(ones, options, jitted_init=True, fast=True).step(ones)
        except ANYTHING:
            return False
        return True

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

    @property
    def drawing(self) -> dict[str, Any]:
        """Return `options` with the implementation's own V₀."""
        options = {name: x for name, x in self.options().items() if name not in self.resting}
        if self.offers("alpha"):
            options["alpha"] = self.driver.arguments.fixed.get("alpha", hp.ALPHA)
        return options

    @property
    def in_turn(self) -> dict[str, Any]:
        """Return the arguments of a session whose steps are eager or in a graph, in turn."""
        return {"mode": IN_TURN} if self.driver.session.builds_in_a_graph() else {}

    @property
    def starting(self) -> dict[str, Any]:
        """Return `drawing`, or `options` if the state hides V, which V₀ would make uncertain."""
        return self.options() if self.hidden else self.drawing

    def halved(self, steps: int) -> list[float] | None:
        """Return learning rates that fall after three steps; None if they cannot change."""
        if self.unschedulable is not None:
            return None
        lr = float(self.options()["learning_rate"])
        return [lr] * 3 + [lr / 4] * (steps - 3)

    def rng(self, name: str) -> np.random.Generator:
        """Return the generator of a check's random numbers."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def normal(
        self,
        steps: int,
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        scales: Sequence[float] = SCALES,
        dtype: Any = np.float32,
        seed: int = 0,
    ) -> tuple[Arrays, list[Arrays]]:
        """Return `inputs.normal`; its numbers also depend on the seed of the subject."""
        return normal(steps, shapes, scales, dtype, [self.seed, seed])

    @property
    def decaying(self) -> dict[str, Any]:
        """Return `options` with weight decay, if it is offered and not refused."""
        return self.options(**{n: x for n, x in self.accepted.items() if n == "weight_decay"})

    @functools.cached_property
    def accepted(self) -> dict[str, Any]:
        """Weight decay and maximize, if they are offered and not refused."""
        wanted: dict[str, Any] = {"weight_decay": 0.1, "maximize": True}
        free = {*wanted} - {*self.driver.arguments.fixed}
        offered = {name: x for name, x in wanted.items() if name in free and self.offers(name)}
        return {n: x for n, x in offered.items() if self.refused(**{n: x}) is None}

    def swept(
        self,
        rng: np.random.Generator,
        fast: bool,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Case:
        """Return three steps of tensors of many shapes; `fast` compiles the step."""
        options = self.options() if options is None else options
        traced = self.driver.session.compiles is not None and not fast
        tensors = self.level.traced if traced else self.level.tensors
        shapes = sweep(rng, kwargs.pop("top", self.level.top), tensors)
        weights, gradients = patterned(rng, 3, shapes, **kwargs)
        return Case(weights, gradients, options, self.velocity(weights), fast=fast)

    def velocity(self, weights: Arrays) -> Arrays | None:
        """Return a V to start from, for an implementation that takes V as an argument."""
        rng = np.random.default_rng(3)
        v = [np.asarray(0.1 * rng.standard_normal(w.shape), w.dtype) for w in weights]
        return v if self.driver.stateless else None

    def run(self, case: Case) -> Run:
        """Feed a case to the implementation."""
        at_rest = self.at_rest and self.resting.items() <= case.options.items()
        return perform(self.driver, case, at_rest=at_rest, hidden=self.hidden)

    def together(self, plan: Plan) -> list[Trial]:
        """Feed a plan to the implementation, and return the trial of each part."""
        return [trials[self.counted] for trials in self._together(plan)]

    def _together(self, plan: Plan) -> list[dict[str, Trial]]:
        at_rest = self.at_rest and self.resting.items() <= plan.options[0].items()
        how: dict[str, Any] = {"at_rest": at_rest, "hidden": self.hidden}
        return perform_together(self.driver, plan, self.first_step, **how)

    @functools.cached_property
    def counted(self) -> str:
        """Whose steps t counts, one of `COUNTED`: a gap shows it, or a group that is added."""
        weights, gradients = self.normal(8, ((3,),), (1.0,), seed=48)
        chosen = [{n: gradients[n] for n in steps} for steps in (range(8), (0, 1, 4, 5, 6))]
        groups = int(self.driver.session.groups)
        chosen += [{n: gradients[n] for n in (3, 4, 7)}] * groups
        if self.driver.session.misses:
            parts = [Part(weights, given, int(k == 2)) for k, given in enumerate(chosen)]
            both = (
                Plan(parts, [self.options()] * (1 + groups), (0, 3)[: 1 + groups]),
                Plan(parts[:2], [self.options()]),
            )
            # An optimizer of Keras may refuse None, and take only variables that have a gradient.
            hows: Sequence[Any] = (
                ({}, {"reordered": True}) if self.driver.kind == "keras" else ({},)
            )
            for how, plan in itertools.product(hows, both):
                try:
                    found = self._together(replace(plan, how=how))
                except ANYTHING:
                    continue
                for name in COUNTED if groups else (COUNTED[0], COUNTED[-1]):
                    if all(compare(trials[name]).inside for trials in found):
                        return name
        return COUNTED[0]

    @functools.cached_property
    def resting(self) -> dict[str, Any]:
        """The options that make V₀ zero; empty if there is no such option."""
        for name in ("alpha", "velocity_std"):
            if self.offers(name) and not self.driver.stateless and self._rests({name: 0.0}):
                return {name: 0.0}
        return {}

    @functools.cached_property
    def starts_from_rest(self) -> bool:
        """Whether V₀ is always zero, because the implementation has no option for it."""
        offered = any(map(self.offers, ("alpha", "velocity_std")))
        fixed = {"alpha", "velocity_std"} & {*self.driver.arguments.fixed}
        return not (offered or fixed or self.driver.stateless) and self._rests({})

    def _rests(self, wanted: dict[str, Any]) -> bool:
        zeros = [np.zeros(3, np.float32)]
        options = {"learning_rate": 0.1, "beta": hp.BETA} | self.driver.arguments.fixed
        try:
            session = self.driver.start(zeros, options | wanted)
            session.step(zeros, float(options["learning_rate"]))
            shown = [*(session.velocity() or []), *session.weights()]
        except ANYTHING:
            return False
        return not any(np.asarray(x).any() for x in shown)

    @property
    def at_rest(self) -> bool:
        """Whether `options` makes V₀ zero."""
        return bool(self.resting) or self.driver.stateless or self.starts_from_rest

    def first_steps(self, case: Case) -> tuple[int, ...]:
        """Return the first values of t to try: that of the case if it has one, else both."""
        known = case.options.get("first_step")
        return (1, 0) if known is None else (int(known),)

    @functools.cached_property
    def injects_beta(self) -> bool:
        """Whether its state holds β in an array, as of optax.inject_hyperparams."""
        session: Any = self.driver.start([np.ones(3, np.float32)], self.options())
        held = getattr(getattr(session, "state", None), "hyperparams", ())
        return self.driver.arguments.names.get("beta") in held

    @functools.cached_property
    def convention(self) -> tuple[Trial, bool]:
        """The trial that shows the convention of t, and whether the exact update explains it.

        The gradients are so small that ζ equals the gradient. V then shows the coefficients alone.
        """
        rng = np.random.default_rng(1)
        gradients = [[(1e-8 * rng.standard_normal(5)).astype(np.float32)] for _ in range(12)]
        case = Case([np.zeros(5, np.float32)], gradients, self.options())
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
        """Whether W alone is right: the state holds something else in place of every V."""
        if self.driver.stateless:
            return False
        # A state that keeps vectors may look like V for parameters of one axis alone.
        return self._hides(SHAPES) or self._hides(((3,), (5,)))

    def _hides(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        weights, gradients = self.normal(3, shapes, SCALES[: len(shapes)], seed=23)
        case = Case(weights, gradients, self.options())
        run = perform(self.driver, case, at_rest=self.at_rest)
        found = [compare(Trial(case, run, t)) for t in self.first_steps(case)]
        if any(len(verdict.wrong) < len(weights) for verdict in found):
            return False
        run = perform(self.driver, case, at_rest=self.at_rest, hidden=True)
        return any(compare(Trial(case, run, t)).inside for t in self.first_steps(case))

    @functools.cached_property
    def reloads(self) -> bool:
        """Whether its state can be saved and loaded."""
        try:
            session = self.driver.start([np.zeros(3, np.float32)], self.options())
            session.step([np.ones(3, np.float32)], float(self.options()["learning_rate"]))
            session.reloaded()
        except ANYTHING:
            return False
        return True

    @functools.cached_property
    def takes_a_name(self) -> bool:
        """Whether it is an optimizer of Keras that users may name."""
        if self.driver.kind != "keras":
            return False
        try:
            self.driver.start([np.ones(3, np.float32)], self.options(), more={"name": "named"})
        except ANYTHING:
            return False
        return True

    @functools.cached_property
    def takes_groups(self) -> bool:
        """Whether the implementation takes two groups of parameters."""
        options, ones = self.options(), [np.ones(3, np.float32)] * 2
        try:
            self.driver.start(ones, options, groups=[(1, options)] * 2).step(ones)
        except ANYTHING:
            return False
        return True

    @functools.cached_property
    def paths(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """The arguments of torch that choose another path, by their text, and why others do not."""
        offered = {*parameters(self.driver.found)} - {*self.driver.arguments.extra}
        accepted, refused, ones = {}, [], [np.ones(3, np.float32)]
        for name, value in PATHS if self.driver.kind == "torch" else ():
            if name in offered:
                try:
                    self.driver.start(ones, self.options(), more={name: value}).step(ones)
                except ANYTHING as error:  # a path may need a GPU
                    refused.append(refusal(f"{name}={value}", one_line(error)))
                else:
                    accepted[f"{name}={value}"] = {name: value}
        return accepted, refused

    @functools.cached_property
    def of_groups(self) -> Collection[str]:
        """Our names of the options that a group may have of its own."""
        # torch keeps the options of a group if they are among the defaults.
        session: Any = self.driver.start([np.zeros(1, np.float32)], self.options())
        defaults, names = session.optimizer.defaults, self.driver.arguments.names
        return {name for name, theirs in names.items() if theirs in defaults}

    @functools.cached_property
    def unwritable(self) -> str | None:
        """Why V and t cannot be written into its state; None if they can."""
        if self.hidden:
            return "its state does not show V"
        return why_unwritable(self.driver, self.options(), at_rest=self.at_rest)

    def refused(
        self,
        *,
        shape: tuple[int, ...] | None = None,
        schedule: Sequence[float] | None = None,
        **wanted: Any,
    ) -> str | None:
        """Return the error by which the implementation refuses something; None if it accepts it.

        It refuses it if a step raises with it, and an ordinary one does not.

        Args:
            shape: of one of the tensors.
            schedule: the learning rate of every step; only the first step is made.
            wanted: options.
        """

        def attempt(
            shapes: Sequence[tuple[int, ...]],
            rates: Sequence[float] | None,
            options: dict[str, Any],
        ) -> str | None:
            weights, (grads,) = self.normal(1, shapes, [1.0] * len(shapes), seed=24)
            rate = float(options["learning_rate"] if rates is None else rates[0])
            try:
                self.driver.start(weights, options, schedule=rates).step(grads, rate)
            except ANYTHING as error:
                return one_line(error)
            return None

        special = SHAPES if shape is None else (*SHAPES, shape)
        why = attempt(special, schedule, self.options(**wanted))
        return why if why is not None and attempt(SHAPES, None, self.options()) is None else None

    @functools.cached_property
    def unschedulable(self) -> str | None:
        """Why the learning rate cannot change from step to step; None if it can."""
        why = self.refused(schedule=[hp.LEARNING_RATE] * 2)
        return why and refusal("a schedule", why)
