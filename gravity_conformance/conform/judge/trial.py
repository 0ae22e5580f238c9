"""The input of an implementation, its run, and the exact update from the same start.

Guarantee: a trial simulates the exact update once, in a dtype wider than the weights'.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gravity_conformance.drive.session import Arrays
from gravity_conformance.mutations import REFERENCE, Variant
from gravity_core._arrays import FloatInfo, float_info

_RESTORING = ("reloaded", "restored", "rolled_back", "loaded_again")


@dataclass(frozen=True)
class Case:
    """The input of an implementation.

    Attributes:
        weights: W of each tensor before the first step, float16, float32 or float64.
        gradients: for every step the gradient of each tensor.
        options: learning_rate, beta, weight_decay, maximize, …, by our names.
        velocity: V before the first step; None leaves V₀ to the implementation.
        count: the number of steps before the first one; only with `velocity`.
        rates: the learning rate of every step; None means ``options["learning_rate"]``.
        reload_after: the number of steps after which the state is saved and loaded, or something
            else happens.
        continued: the way to continue then, one of `Session.ways`.
        assigned: W that the user assigns then; the state is not loaded.
        later: the options of groups that the user changes then; the state is not loaded.
        fast: whether the step is compiled, if users of its kind compile it.
        bfloat16: whether the float32 arrays stand for bfloat16.
        how: more arguments of `Driver.start`: strided, swapped, packed, rows, array_rate, closure,
            scaled, excluded.
    """

    weights: Arrays
    gradients: Sequence[Arrays]
    options: Mapping[str, Any]
    velocity: Arrays | None = None
    count: int = 0
    rates: Sequence[float] | None = None
    reload_after: int | None = None
    continued: str = "reloaded"
    assigned: Arrays | None = None
    later: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = False
    bfloat16: bool = False
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def info(self) -> FloatInfo:
        """The limits of the dtype of V and W."""
        return float_info("bfloat16" if self.bfloat16 else self.weights[0].dtype)

    @property
    def half(self) -> bool:
        """Whether the dtype is a half type."""
        return self.info.width == 16

    @property
    def loads(self) -> bool:
        """Whether the session continues in the way `continued`."""
        return self.reload_after is not None and self.assigned is None and not self.later

    @property
    def restores(self) -> bool:
        """Whether what is loaded has been saved: a mistake may lose some of it."""
        return self.loads and self.continued in _RESTORING

    def options_at(self, index: int) -> Mapping[str, Any]:
        """Return the options of a step, counted from 0."""
        changed = self.reload_after is not None and index >= self.reload_after
        return {**self.options, **self.later} if changed else self.options

    def only(self, tensors: Sequence[int]) -> "Case":
        """Return the case of some of the tensors."""

        def some(arrays: Any) -> Any:
            return None if arrays is None else [arrays[i] for i in tensors]

        return replace(
            self,
            weights=some(self.weights),
            gradients=[some(grads) for grads in self.gradients],
            velocity=some(self.velocity),
            assigned=some(self.assigned),
        )

    def rate(self, index: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return float(self.options["learning_rate"] if self.rates is None else self.rates[index])


@dataclass
class Run:
    """The states that an implementation, or a variant of the update, produces from a case.

    Attributes:
        count: the number of steps before the first step of the case.
        start: V and W before the first step of the case.
        uncertain: a bound on the error of V in `start`; it is 0 unless V was inferred from W.
        states: V (None if the state does not show it) and W after every step.
        left: the gradients of every step, as the step left them.
        fault: what else a step did to what belongs to the caller; None if nothing.
        sizes: S of every step, for a variant.
    """

    count: int
    start: tuple[Arrays, Arrays]
    uncertain: Arrays
    states: list[tuple[Arrays | None, Arrays]] = field(default_factory=list)
    left: list[Arrays] = field(default_factory=list)
    sizes: list[Arrays] = field(default_factory=list)
    fault: str | None = None


@dataclass(frozen=True)
class Trial:
    """A case and the run of an implementation on it.

    Attributes:
        case: the input.
        run: the implementation's run.
        first_step: t of the first update; the coefficients depend on it.
        counts: the number of steps before each step; None if none was missed.
    """

    case: Case
    run: Run
    first_step: int
    counts: Sequence[int] | None = None

    def count(self, index: int) -> int:
        """Return the number of steps before a step, counted from 0."""
        return self.run.count + index if self.counts is None else self.counts[index]

    def before(self, index: int, weights: Arrays) -> Arrays:
        """Return W before a step: `weights`, unless the user assigns others."""
        case = self.case
        return weights if case.assigned is None or index != case.reload_after else case.assigned

    @functools.cached_property
    def exact(self) -> Run:
        """The run of the right update on the case."""
        return self.simulated(REFERENCE)

    def simulated(self, variant: Variant) -> Run:
        """Return the run of `variant` on the case, from the start of the implementation's run."""
        case = self.case
        v, w = map(_wide, self.run.start)
        if any(x.dtype == np.longdouble for x in w):
            v = [x.astype(np.longdouble) for x in v]
        result, lost = Run(self.run.count, (v, w), self.run.uncertain), 0
        for index, grads in enumerate(case.gradients):
            count = self.count(index) - lost
            w = [np.asarray(x, w[0].dtype) for x in self.before(index, w)]
            if index == case.reload_after and case.restores:
                v, kept = variant.loaded(v, count, result.start[0])
                count, lost = kept, lost + count - kept
            given = [g.astype(w[0].dtype) for g in grads]
            options = case.options_at(index)
            w, v, s = variant.step(
                w,
                v,
                given,
                count=count,
                first_step=self.first_step,
                lr=case.rate(index),
                constructed=float(case.options["learning_rate"]),
                beta=float(options["beta"]),
                weight_decay=float(options.get("weight_decay", 0.0)),
                maximize=bool(options.get("maximize", False)),
            )
            result.states.append((v, w))
            result.sizes.append(s)
        return result

    def size(self, tensor: int) -> int:
        """Return the number of elements of a tensor."""
        return self.case.weights[tensor].size

    def only(self, tensors: Sequence[int]) -> "Trial":
        """Return the trial of some of the tensors."""

        def some(arrays: Any) -> Any:
            return None if arrays is None else [arrays[i] for i in tensors]

        run, chosen = self.run, self.case.only(tensors)
        start, uncertain = (some(run.start[0]), some(run.start[1])), some(run.uncertain)
        states = [(some(v), some(w)) for v, w in run.states]
        chosen_run = Run(run.count, start, uncertain, states)
        return replace(self, case=chosen, run=chosen_run)

    def beginning(self, steps: int) -> "Trial":
        """Return the trial of the first few steps."""
        case = replace(self.case, gradients=self.case.gradients[:steps])
        return replace(self, case=case, run=replace(self.run, states=self.run.states[:steps]))


def _wide(arrays: Sequence[np.ndarray]) -> Arrays:
    double = any(a.dtype == np.float64 for a in arrays)
    return [np.asarray(a, np.longdouble if double else np.float64) for a in arrays]


class WrongResultError(ValueError):
    """An implementation returned what no update returns; the message says what."""
