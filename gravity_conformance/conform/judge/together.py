"""Feed one optimizer several groups of tensors, of several dtypes, that miss gradients.

Guarantee: a tensor without a gradient must not change, bit by bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gravity_conformance.conform.judge.perform import certain, is_undrawn, seen
from gravity_conformance.conform.judge.trial import Case, Run, Trial, WrongResultError
from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import Arrays, CannotWriteError

# Whose steps t counts. An optimizer may choose, but it must count in one way throughout.
COUNTED = ("each tensor", "each group", "each group with a gradient", "the optimizer")


@dataclass(frozen=True)
class Part:
    """Tensors of one dtype that have their gradients in the same steps.

    Attributes:
        weights: W of each tensor before the first step.
        gradients: the step of the optimizer, counted from 0 → the gradient of each tensor.
        group: the index of their group of parameters; the groups come in order.
        velocity: V before the first step; None leaves V₀ to the implementation.
        wide: whether they are float32 in a plan of bfloat16.
    """

    weights: Arrays
    gradients: Mapping[int, Arrays]
    group: int = 0
    velocity: Arrays | None = None
    wide: bool = False


@dataclass(frozen=True)
class Plan:
    """What one optimizer is fed.

    Attributes:
        parts: its tensors.
        options: those of each group of parameters, by our names.
        added: the number of steps after which each group is added.
        rates: the learning rate of every step as a multiple of a group's; None if it is constant.
            Each group follows the one before it a step later.
        count: the number of steps before the first one; only if the parts have a velocity.
        reload_after, continued: as those of a case.
        how: more arguments of `Driver.start`: bfloat16, strided, rows, array_rate, fast, reordered.
        silent: whether there are steps without any gradient; t must not count them.
    """

    parts: Sequence[Part]
    options: Sequence[Mapping[str, Any]]
    added: Sequence[int] = (0,)
    rates: Sequence[float] | None = None
    count: int = 0
    reload_after: int | None = None
    continued: str = "reloaded"
    how: Mapping[str, Any] = field(default_factory=dict)
    silent: bool = False

    def rate(self, group: int, step: int) -> float:
        """Return the learning rate of a group in a step."""
        lr = float(self.options[group]["learning_rate"])
        return lr if self.rates is None else lr * self.rates[max(step - group, 0)]

    def case(self, part: Part) -> Case:
        """Return the input of a part as a case of its own steps."""
        steps = sorted(part.gradients)
        loads = (
            [i for i, n in enumerate(steps) if n >= self.reload_after] if self.reload_after else []
        )
        return Case(
            part.weights,
            [part.gradients[n] for n in steps],
            self.options[part.group],
            part.velocity,
            self.count,
            rates=[self.rate(part.group, n) for n in steps],
            reload_after=loads[0] if loads else None,
            continued=self.continued,
            bfloat16=self.how.get("bfloat16", False) and not part.wide,
        )


class _Together:
    """One optimizer under way through a plan."""

    def __init__(self, driver: Driver, plan: Plan, at_rest: bool, hidden: bool) -> None:
        self.plan, self.at_rest, self.hidden = plan, at_rest, hidden
        first = [p for p in plan.parts if not plan.added[p.group]]
        lengths = [
            (sum(len(p.weights) for p in first if p.group == k), options)
            for k, options in enumerate(plan.options)
            if not plan.added[k]
        ]
        schedule = None
        if plan.rates is not None:
            schedule = [plan.rate(0, n) for n in range(len(plan.rates))]
        tensors = [(w, p) for p in first for w in p.weights]
        self.session: Any = driver.start(
            [w for w, _ in tensors],
            plan.options[0],
            wide={i for i, (_, p) in enumerate(tensors) if p.wide},
            groups=lengths if len(plan.options) > 1 else (),
            schedule=schedule,
            begun=plan.count,
            **plan.how,
        )
        self.cases = [plan.case(part) for part in plan.parts]
        self.runs: list[Run] = []
        self.counts: list[dict[str, list[int]]] = []
        self.spans: list[slice] = []
        self._latest: list[tuple[Arrays | None, Arrays]] = []
        self._made, self._begun = 0, [0] * len(plan.options)
        self._given = [0] * len(plan.options)  # the steps in which a group had a gradient

    def _look(self, step: int) -> list[tuple[Arrays | None, Arrays]]:
        """Return V and W of every part under way."""
        weights, v = self.session.weights(), None if self.hidden else self.session.velocity()
        found = []
        for case, span in zip(self.cases, self.spans, strict=False):
            shown = None if v is None else v[span]
            if v is None and self.session.groups and not self.hidden:
                shown = self.session.velocity(span)  # another part may have none yet
            found.append(seen(case, shown, weights[span], step))
        return found

    def begin(self, groups: Sequence[int], step: int) -> None:
        """Observe the start of the parts of new groups."""
        new = range(len(self.runs), len(self.runs))
        for part, case in zip(self.plan.parts, self.cases, strict=True):
            if part.group in groups:
                start = self.spans[-1].stop if self.spans else 0
                self.spans.append(slice(start, start + len(part.weights)))
                self.runs.append(Run(0, (case.weights, case.weights), certain(case)))
                self.counts.append({name: [] for name in COUNTED})
                new = range(new.start, len(self.runs))
        for k in groups:
            self._begun[k] = self._made
        given = [v for k in new for v in self.cases[k].velocity or ()]
        if given:
            if self.hidden:
                raise CannotWriteError("its state does not show V")
            self.session.begin(given, self.plan.count)
        found = self._look(step)
        unknown = [
            k
            for k in new
            if not self.at_rest and self.cases[k].velocity is None
            if (v := found[k][0]) is None or is_undrawn(v)
        ]
        if unknown:  # a step with zero gradients makes V known
            zeros = {k: [np.zeros_like(w) for w in self.cases[k].weights] for k in unknown}
            if self.plan.rates is not None and not self.session.steps_at_given_rate:
                raise CannotWriteError("its schedule would count the step that makes V known")
            self.session.step(self._listed(zeros))
            self._made += 1
            for group in {self.plan.parts[k].group for k in unknown}:
                self._given[group] += 1
            found = self._look(step)
            if any(found[k][0] is None for k in unknown):
                raise CannotWriteError("its state does not show V, and V does not start from 0")
        for k in new:
            v, w = found[k]
            run, case = self.runs[k], self.cases[k]
            v = case.velocity or ([np.zeros_like(x) for x in w] if v is None else v)
            run.start, run.count = (v, w), self.plan.count * bool(given) + (k in unknown)
        self._latest = found

    def _listed(self, given: Mapping[int, Arrays]) -> list[np.ndarray | None]:
        none: list[Any] = [[None] * (span.stop - span.start) for span in self.spans]
        return [g for k, grads in enumerate(none) for g in given.get(k, grads)]

    def step(self, n: int, rates: list[float] | None) -> None:
        """Make one step."""
        parts = self.plan.parts[: len(self.runs)]
        given = {k: p.gradients[n] for k, p in enumerate(parts) if n in p.gradients}
        if not given and not self.plan.silent:
            return
        rate = rates if rates is None or self.session.groups else rates[0]
        left = self.session.step(self._listed(given), rate)
        before, self._latest = self._latest, self._look(n + 1)
        for k, (run, part) in enumerate(zip(self.runs, parts, strict=True)):
            if k not in given:
                _still(k, before[k], self._latest[k])
                continue
            own = run.count + len(run.states)
            far = self.plan.count if part.velocity is not None else 0
            of_group = far + self._made - self._begun[part.group]
            given_to = far + self._given[part.group]
            numbers = own, of_group, given_to, self.plan.count + self._made
            for name, number in zip(COUNTED, numbers, strict=True):
                self.counts[k][name].append(number)
            run.states.append(self._latest[k])
            run.left.append([left.pop(0) for _ in part.weights])
            run.fault = run.fault or self.session.fault
        self._made += bool(given)
        for group in {parts[k].group for k in given}:
            self._given[group] += 1


def _still(
    part: int, before: tuple[Arrays | None, Arrays], after: tuple[Arrays | None, Arrays]
) -> None:
    for name, old, new in zip(("V", "W"), before, after, strict=True):
        if old is not None and new is None:
            raise WrongResultError(f"{name} is lost without a gradient: part {part}")
        for x, y in zip(old or [], new or [], strict=bool(old)):
            if x.tobytes() != y.tobytes():
                shape = f"a tensor of shape {x.shape}"
                raise WrongResultError(f"{name} changes without a gradient: {shape}")


def perform_together(
    driver: Driver, plan: Plan, first_step: int, *, at_rest: bool, hidden: bool = False
) -> list[dict[str, Trial]]:
    """Feed a plan to an implementation.

    Args:
        driver: starts the implementation.
        plan: the input.
        first_step: t of the first update.
        at_rest: whether the options make V₀ zero. If not, and if the state does not show V₀, a
            first step with zero gradients makes V known.
        hidden: whether the state holds something else in place of V.

    Returns:
        For each part, its trial by each of `COUNTED`.

    Raises:
        WrongResultError: if a tensor without a gradient changes; otherwise as `perform`.
    """
    under_way = _Together(driver, plan, at_rest, hidden)
    steps = 1 + max(n for part in plan.parts for n in part.gradients)
    for n in range(steps):
        if n == plan.reload_after:
            under_way.session = getattr(under_way.session, plan.continued)()
        new = [k for k, after in enumerate(plan.added) if after == n]
        for k in new if n else ():
            tensors = [w for p in plan.parts if p.group == k for w in p.weights]
            under_way.session.add(tensors, plan.options[k])
        if new:
            under_way.begin(new, n)
        rates = [plan.rate(k, n) for k, after in enumerate(plan.added) if after <= n]
        # A constant rate is not set again, but `begin` sets one rate for all groups.
        sets = plan.rates is not None or (plan.count and not n)
        under_way.step(n, rates if sets else None)
    return [
        {name: Trial(case, replace(run), first_step, counts[name]) for name in COUNTED}
        for case, run, counts in zip(under_way.cases, under_way.runs, under_way.counts, strict=True)
    ]
