"""The input of an implementation, its run, and the exact update from the same start.

Guarantee: a trial simulates the exact update once, in a dtype wider than the weights'.
"""

import functools
from collections.abc import Mapping, Sequence
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
        fast: whether the step is compiled, if users of its kind compile it.
        bfloat16: whether the float32 arrays stand for bfloat16.
        grouped: whether there are two groups of parameters, and one parameter without a gradient
            (torch).
    """

    weights: Arrays
    gradients: Sequence[Arrays]
    options: Mapping[str, Any]
    velocity: Arrays | None = None
    count: int = 0
    rates: Sequence[float] | None = None
    reload_after: int | None = None
    fast: bool = False
    bfloat16: bool = False
    grouped: bool = False

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
        sizes: S of every step, for a variant.
    """

    count: int
    start: tuple[Arrays, Arrays]
    uncertain: Arrays
    states: list[tuple[Arrays | None, Arrays]] = field(default_factory=list)
    left: list[Arrays] = field(default_factory=list)
    sizes: list[Arrays] = field(default_factory=list)


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

    def beginning(self, steps: int) -> "Trial":
        """Return the trial of the first few steps."""
        case = replace(self.case, gradients=self.case.gradients[:steps])
        return Trial(case, replace(self.run, states=self.run.states[:steps]), self.first_step)


def _wide(arrays: Sequence[np.ndarray]) -> Arrays:
    double = any(a.dtype == np.float64 for a in arrays)
    return [np.asarray(a, np.longdouble if double else np.float64) for a in arrays]


def perform(driver: Driver, case: Case, *, at_rest: bool, hidden: bool = False) -> Run:
    """Feed a case to an implementation.

    Args:
        driver: starts the implementation.
        case: the input.
        at_rest: whether `case.options` makes V₀ zero. If not, and if the state does not show V₀,
            a first step with zero gradients makes V known.
        hidden: whether the state holds something else in place of V.

    Raises:
        ValueError: if V or W differs from the weights in type, shape or dtype.
        CannotWriteError: if `case.velocity` cannot be written into the state.
        Exception: whatever the implementation raises.
    """
    kinds = [(w.shape, w.dtype) for w in case.weights]

    def start(weights: Arrays) -> Session:
        how = {"schedule": case.rates, "begun": case.count, "fast": case.fast}
        how["grouped"] = case.grouped
        return driver.start(weights, case.options, bfloat16=case.bfloat16, **how)

    def look(session: Session, step: int) -> tuple[Arrays | None, Arrays]:
        v = None if hidden else session.velocity()
        return (
            v if v is None else _checked("V", v, kinds, step),
            _checked("W", session.weights(), kinds, step),
        )

    session = start(case.weights)
    count, uncertain = 0, [np.zeros(w.shape) for w in case.weights]
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
    for index, grads in enumerate(case.gradients):
        if index == case.reload_after:
            session = session.reloaded()
        run.left.append(session.step([g.copy() for g in grads], case.rate(index)))
        run.states.append(look(session, index + 1))
    return run


def _checked(name: str, arrays: Arrays, kinds: Any, step: int) -> Arrays:
    """Return copies of arrays that match the weights, or raise ValueError. V may be wider."""
    copies = []
    for i, (x, (shape, dtype)) in enumerate(zip(arrays, kinds, strict=True)):
        own = getattr(x, "dtype", None)
        wider = name == "V" and own is not None and own.kind == "f"
        if (np.shape(x), own) != (shape, own if wider else dtype):
            raise ValueError(
                f"{name} of tensor {i} must be {dtype} of shape {shape} after step {step}, "
                f"got {own} of shape {np.shape(x)}"
            )
        if type(x) is not np.ndarray:  # a masked array, for example, has its own arithmetic
            raise ValueError(
                f"{name} of tensor {i} must be a plain numpy.ndarray after step {step}, "
                f"got {type(x).__module__}.{type(x).__qualname__}"
            )
        copies.append(x.copy())
    return copies
