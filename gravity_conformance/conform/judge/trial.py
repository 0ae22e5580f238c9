"""The input of an implementation, its run, and the exact update from the same start.

Guarantee: a trial simulates the exact update once, in a dtype wider than the weights'.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import Arrays, CannotWriteError, Session
from gravity_conformance.mutations import REFERENCE, Variant
from gravity_core._arrays import FloatInfo, float_info


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
        reload_after: the number of steps after which the state is saved and loaded.
        copied: whether the optimizer is copied with its weights, and not saved and loaded.
        fast: whether the step is compiled, if users of its kind compile it.
        bfloat16: whether the float32 arrays stand for bfloat16.
        strided: whether the memory of arrays is transposed, sliced or expanded.
        array_rate: whether the learning rate is an array of the framework.
        closure: whether a closure computes the gradients.
    """

    weights: Arrays
    gradients: Sequence[Arrays]
    options: Mapping[str, Any]
    velocity: Arrays | None = None
    count: int = 0
    rates: Sequence[float] | None = None
    reload_after: int | None = None
    copied: bool = False
    fast: bool = False
    bfloat16: bool = False
    strided: bool = False
    array_rate: bool = False
    closure: bool = False

    @property
    def info(self) -> FloatInfo:
        """The limits of the dtype of V and W."""
        return float_info("bfloat16" if self.bfloat16 else self.weights[0].dtype)

    @property
    def half(self) -> bool:
        """Whether the dtype is a half type."""
        return self.info.width == 16

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
        overwritten: what else a step changed that belongs to the caller; None if nothing.
        sizes: S of every step, for a variant.
    """

    count: int
    start: tuple[Arrays, Arrays]
    uncertain: Arrays
    states: list[tuple[Arrays | None, Arrays]] = field(default_factory=list)
    left: list[Arrays] = field(default_factory=list)
    sizes: list[Arrays] = field(default_factory=list)
    overwritten: str | None = None


@dataclass(frozen=True)
class Trial:
    """A case and the run of an implementation on it.

    Attributes:
        case: the input.
        run: the implementation's run.
        first_step: t of the first update; the coefficients depend on it.
    """

    case: Case
    run: Run
    first_step: int

    @functools.cached_property
    def exact(self) -> Run:
        """The run of the right update on the case."""
        return self.simulated(REFERENCE)

    def simulated(self, variant: Variant) -> Run:
        """Return the run of `variant` on the case, from the start of the implementation's run."""
        case = self.case
        options: dict[str, Any] = {
            "constructed": float(case.options["learning_rate"]),
            "beta": float(case.options["beta"]),
            "weight_decay": float(case.options.get("weight_decay", 0.0)),
            "maximize": bool(case.options.get("maximize", False)),
            "first_step": self.first_step,
        }
        v, w = map(_wide, self.run.start)
        if any(x.dtype == np.longdouble for x in w):
            v = [x.astype(np.longdouble) for x in v]
        result, count = Run(self.run.count, (v, w), self.run.uncertain), self.run.count
        for index, grads in enumerate(case.gradients):
            if index == case.reload_after:
                v, count = variant.loaded(v, count, result.start[0])
            given = [g.astype(w[0].dtype) for g in grads]
            w, v, s = variant.step(w, v, given, count=count, lr=case.rate(index), **options)
            count += 1
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

        case, run = self.case, self.run
        chosen = replace(
            case,
            weights=some(case.weights),
            gradients=[some(grads) for grads in case.gradients],
            velocity=some(case.velocity),
        )
        start, uncertain = (some(run.start[0]), some(run.start[1])), some(run.uncertain)
        states = [(some(v), some(w)) for v, w in run.states]
        return Trial(chosen, Run(run.count, start, uncertain, states), self.first_step)

    def beginning(self, steps: int) -> "Trial":
        """Return the trial of the first few steps."""
        case = replace(self.case, gradients=self.case.gradients[:steps])
        return Trial(case, replace(self.run, states=self.run.states[:steps]), self.first_step)

    def rest(self, steps: int, later: int = 0) -> "Trial":
        """Return the trial of the other steps, from the implementation's own V and W.

        `later` is added to their numbers. The states must show V.
        """
        v, w = self.run.states[steps - 1]
        assert v is not None
        case = replace(self.case, gradients=self.case.gradients[steps:])
        count, states = self.run.count + steps + later, self.run.states[steps:]
        return Trial(case, Run(count, (v, w), _certain(case), states), self.first_step)


def _wide(arrays: Sequence[np.ndarray]) -> Arrays:
    double = any(a.dtype == np.float64 for a in arrays)
    return [np.asarray(a, np.longdouble if double else np.float64) for a in arrays]


class WrongResultError(ValueError):
    """An implementation returned what no update returns; the message says what."""


@dataclass(frozen=True)
class Group:
    """A group of parameters in an optimizer that has several.

    Attributes:
        case: its input. The group has no gradients after those of the case.
        after: the number of steps after which it is added.
        gap: the number of its steps after which it has no gradients, and for how many steps.
    """

    case: Case
    after: int = 0
    gap: tuple[int, int] = (0, 0)

    def gradients(self, index: int) -> Arrays | None:
        """Return its gradients in a step, counted from the one in which it is added."""
        at, length = self.gap
        if index >= at:
            index = index - length if index >= at + length else -1
        return self.case.gradients[index] if 0 <= index < len(self.case.gradients) else None


def perform(driver: Driver, case: Case, *, at_rest: bool, hidden: bool = False) -> Run:
    """Feed a case to an implementation.

    Args:
        driver: starts the implementation.
        case: the input.
        at_rest: whether `case.options` makes V₀ zero. If not, and if the state does not show V₀,
            a first step with zero gradients makes V known.
        hidden: whether the state holds something else in place of V.

    Raises:
        WrongResultError: if V or W differs from the weights in type, shape or dtype.
        CannotWriteError: if `case.velocity` cannot be written into the state.
        Exception: whatever the implementation raises.
    """
    *_, run = _steps(driver, case, at_rest, hidden)
    return run


def perform_in_turn(
    driver: Driver, cases: Sequence[Case], *, at_rest: bool, hidden: bool = False
) -> list[Run]:
    """Feed several cases step by step in turn, to one optimizer if its kind allows that."""
    shared = None
    if driver.session.shares:
        shared = driver.start(cases[0].weights, cases[0].options).optimizer
    turns = zip(*(_steps(driver, c, at_rest, hidden, shared=shared) for c in cases), strict=True)
    *_, runs = turns
    return list(runs)


def perform_groups(
    driver: Driver,
    groups: Sequence[Group],
    options: Mapping[str, Any],
    *,
    at_rest: bool,
    hidden: bool = False,
    reload_after: int | None = None,
) -> list[Run]:
    """Feed groups of parameters to one optimizer, and return the run of each group.

    Args:
        driver: starts the implementation.
        groups: those that the optimizer is constructed with come first.
        options: by our names, for the constructor.
        at_rest: whether `options` makes V₀ zero.
        hidden: whether the state holds something else in place of V.
        reload_after: the number of steps after which the state is saved and loaded.

    Raises:
        WrongResultError: if a group without gradients moves; otherwise as `perform`.
    """
    first = [group.case for group in groups if not group.after]
    listed = [(len(case.weights), case.options) for case in first]
    if all(case.options == options for case in first):
        listed = []  # one group for all
    session: Any = driver.start([w for case in first for w in case.weights], options, groups=listed)
    runs: list[Run] = []
    parts: list[slice] = []

    def look(k: int, step: int) -> tuple[Arrays | None, Arrays]:
        v = None if hidden else session.velocity(parts[k])
        return _seen(groups[k].case, v, session.weights(parts[k]), step)

    def step(given: Mapping[int, Arrays], number: int) -> None:
        still = {k: look(k, number) for k in range(len(runs)) if k not in given}
        every = [given.get(k, [None] * len(groups[k].case.weights)) for k in range(len(runs))]
        session.step([g for grads in every for g in grads])
        for k, before in still.items():
            for name, old, new in zip(("V", "W"), before, look(k, number), strict=True):
                if old is not None and new is None:
                    raise WrongResultError(f"{name} is lost without a gradient: group {k}")
                for i, (x, y) in enumerate(zip(old or [], new or [], strict=bool(old))):
                    if x.tobytes() != y.tobytes():
                        raise WrongResultError(
                            f"{name} changes without a gradient: tensor {i} of group {k}"
                        )

    # A group whose state does not show V yet gets a step with zero gradients first.
    delays: list[int] = []
    for n in itertools.count():
        if n == reload_after:
            session = session.reloaded()
        while len(runs) < len(groups) and (group := groups[len(runs)]).after <= n:
            case = group.case
            if group.after:
                session.add(case.weights, case.options)
            start = parts[-1].stop if parts else 0
            parts.append(slice(start, start + len(case.weights)))
            runs.append(Run(0, (case.weights, case.weights), _certain(case)))
            v, w = look(len(runs) - 1, n)
            runs[-1].start = ([np.zeros_like(x) for x in w] if v is None else v), w
            delays.append(int(v is None and not at_rest))
        begins = [k for k, delay in enumerate(delays) if delay and groups[k].after == n]
        given = {
            k: grads
            for k, (group, delay) in enumerate(zip(groups, delays, strict=False))
            if (grads := group.gradients(n - group.after - delay)) is not None
        }
        if not given and not begins and len(runs) == len(groups):
            break
        step(given | {k: [np.zeros_like(w) for w in groups[k].case.weights] for k in begins}, n)
        for k in given:
            runs[k].states.append(look(k, n + 1))
        for k in begins:
            v, w = look(k, n + 1)
            if v is None:
                raise CannotWriteError("its state does not show V, and V does not start from 0")
            runs[k].start, runs[k].count = (v, w), 1
    return runs


def _steps(
    driver: Driver, case: Case, at_rest: bool, hidden: bool, *, shared: Any = None
) -> Iterator[Run]:
    """Yield the run before the first step of a case, and after every step."""

    def start(weights: Arrays) -> Session:
        return driver.start(
            weights,
            case.options,
            bfloat16=case.bfloat16,
            schedule=case.rates,
            begun=case.count,
            fast=case.fast,
            strided=case.strided,
            array_rate=case.array_rate,
            closure=case.closure,
            shared=shared,
        )

    def look(session: Session, step: int) -> tuple[Arrays | None, Arrays]:
        return _seen(case, None if hidden else session.velocity(), session.weights(), step)

    session = start(case.weights)
    count, uncertain = 0, _certain(case)
    v, w = look(session, 0)
    if case.velocity is not None:
        if hidden:
            raise CannotWriteError("its state does not show V")
        session.begin(case.velocity, case.count)
        v, count = case.velocity, case.count
    elif v is None and at_rest:
        v = [np.zeros_like(x) for x in case.weights]
    elif v is None:
        lr = case.rate(0)
        session = start([0 * x for x in case.weights])
        session.step([0 * x for x in case.weights], lr)
        (v, w), count = look(session, 1), 1
        if v is None:
            v = [np.asarray(-x / x.dtype.type(lr)) for x in w]
            uncertain = [6 * case.info.unit * np.abs(x).astype(np.float64) for x in v]
    run = Run(count, (v, w), uncertain)
    yield run
    for index, grads in enumerate(case.gradients):
        if index == case.reload_after:
            session = session.copied() if case.copied else session.reloaded()
        run.left.append(session.step([g.copy() for g in grads], case.rate(index)))
        run.overwritten = run.overwritten or session.overwritten
        run.states.append(look(session, index + 1))
        yield run


def _certain(case: Case) -> Arrays:
    return [np.zeros(w.shape) for w in case.weights]


def _seen(case: Case, v: Arrays | None, w: Arrays, step: int) -> tuple[Arrays | None, Arrays]:
    """Return copies of V and W that match the weights of a case, or raise WrongResultError."""
    kinds = [(x.shape, x.dtype) for x in case.weights]
    return v if v is None else _checked("V", v, kinds, step), _checked("W", w, kinds, step)


def _checked(name: str, arrays: Arrays, kinds: Any, step: int) -> Arrays:
    """Return copies of arrays that match the weights, or raise WrongResultError. V may be wider."""
    copies = []
    for i, (x, (shape, dtype)) in enumerate(zip(arrays, kinds, strict=True)):
        own = getattr(x, "dtype", None)
        wider = name == "V" and own is not None and own.kind == "f"
        if (np.shape(x), own) != (shape, own if wider else dtype):
            raise WrongResultError(
                f"{name} of tensor {i} must be {dtype} of shape {shape} after step {step}, "
                f"got {own} of shape {np.shape(x)}"
            )
        if type(x) is not np.ndarray:  # a masked array, for example, has its own arithmetic
            raise WrongResultError(
                f"{name} of tensor {i} must be a plain numpy.ndarray after step {step}, "
                f"got {type(x).__module__}.{type(x).__qualname__}"
            )
        copies.append(x.copy())
    return copies
