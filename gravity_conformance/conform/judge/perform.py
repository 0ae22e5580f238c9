"""Feed cases to an implementation, and observe V and W before and after every step."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gravity_conformance.conform.judge.trial import Case, Run, WrongResultError
from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import Arrays, CannotWriteError, Session


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
    driver: Driver, cases: Sequence[Case], *, at_rest: bool, hidden: bool, shared: bool
) -> list[Run]:
    """Feed several cases step by step in turn, to one optimizer if it is shared."""
    one = driver.start(cases[0].weights, cases[0].options).optimizer if shared else None
    turns = zip(*(_steps(driver, c, at_rest, hidden, shared=one) for c in cases), strict=True)
    *_, runs = turns
    return list(runs)


def _steps(
    driver: Driver, case: Case, at_rest: bool, hidden: bool, *, shared: Any = None
) -> Iterator[Run]:
    """Yield the run before the first step of a case, and after every step."""

    def start(weights: Arrays, rates: Sequence[float] | None = case.rates) -> Session:
        return driver.start(
            weights,
            case.options,
            bfloat16=case.bfloat16,
            schedule=rates,
            begun=case.count,
            fast=case.fast,
            shared=shared,
            **case.how,
        )

    def look(session: Session, step: int) -> tuple[Arrays | None, Arrays]:
        return seen(case, None if hidden else session.velocity(), session.weights(), step)

    session: Session = start(case.weights)
    count, uncertain = 0, certain(case)
    v, w = look(session, 0)
    if case.velocity is not None:
        if hidden:
            raise CannotWriteError("its state does not show V")
        session.begin(case.velocity, case.count)
        v, count = case.velocity, case.count
    elif at_rest:
        v = [np.zeros_like(x) for x in case.weights] if v is None else v
    elif v is None or is_undrawn(v):
        lr = case.rate(0)
        # A schedule counts this step, too.
        rates = case.rates and [lr, *case.rates]
        session = start([0 * x for x in case.weights], rates)
        session.step([0 * x for x in case.weights], lr)
        (v, w), count = look(session, 1), 1
        if v is None:
            v, uncertain = inferred(case, w)
    # The rate of the constructor holds until another is set, and what writes a state sets one.
    offers = "learning_rate" in driver.arguments.names
    sets = case.rates is not None or case.velocity is not None or not offers
    run = Run(count, (v, w), uncertain)
    yield run
    for index, grads in enumerate(case.gradients):
        if index == case.reload_after:
            session = _continued(session, case)
        changes = not index or case.rate(index) != case.rate(index - 1)
        rate = None
        if sets and (changes or not session.keeps_rate):  # an int stays one
            rate = case.options["learning_rate"] if case.rates is None else case.rate(index)
        run.left.append(session.step([g.copy() for g in grads], rate))
        run.fault = run.fault or session.fault
        run.states.append(look(session, index + 1))
        yield run


def _continued(session: Any, case: Case) -> Any:
    """Do what happens in the middle of a case, and return the session that goes on."""
    if case.loads:
        return getattr(session, case.continued)()
    if case.assigned is not None:
        session.assign(case.assigned)
    if case.later:
        session.change(case.later)
    return session


def is_undrawn(v: Arrays) -> bool:
    """Return whether the first step has yet to draw V₀, so that V is zero."""
    return not any(x.any() for x in v)


def inferred(case: Case, w: Arrays) -> tuple[Arrays, Arrays]:
    """Return V, and bounds on its errors, from W = 0 after one step with zero gradients."""
    v = [np.asarray(-x / x.dtype.type(case.rate(0))) for x in w]
    return v, [6 * case.info.unit * np.abs(x).astype(np.float64) for x in v]


def certain(case: Case) -> Arrays:
    """Return bounds of 0 on the errors of V."""
    return [np.zeros(w.shape) for w in case.weights]


def seen(case: Case, v: Arrays | None, w: Arrays, step: int) -> tuple[Arrays | None, Arrays]:
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
            got = type(x).__name__ if own is None else f"{own} of shape {np.shape(x)}"
            raise WrongResultError(
                f"{name} of tensor {i} must be {dtype} of shape {shape} after step {step}, "
                f"got {got}"
            )
        if type(x) is not np.ndarray:  # a masked array, for example, has its own arithmetic
            raise WrongResultError(
                f"{name} of tensor {i} must be a plain numpy.ndarray after step {step}, "
                f"got {type(x).__module__}.{type(x).__qualname__}"
            )
        copies.append(x.copy())
    return copies
