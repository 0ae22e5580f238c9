"""Hold what an implementation did to the exact update.

Guarantee: what passes lies inside `gravity_core.ErrorBound` around the update in a wider dtype,
in every element of V (where it is shown) and W after every step; NaN lies outside. Half types
are held to `bounds.HalfBound`: computed in float32, and rounded once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gravity_conformance.conform.judge.bounds import HalfBound, MistakenBound
from gravity_conformance.drive.drivers import Driver
from gravity_conformance.drive.session import Arrays, CannotWriteError, Session
from gravity_conformance.mutations import (
    REFERENCE,
    Variant,
)
from gravity_conformance.vectors.exact import FORMATS
from gravity_core.error_bound import ErrorBound, absolute_error


class _Bfloat16:
    """What `numpy.finfo` tells of other dtypes."""

    eps = float(2 * FORMATS["bfloat16"].unit)
    smallest_normal = float(FORMATS["bfloat16"].smallest_normal)
    max = float(FORMATS["bfloat16"].max)


@dataclass(frozen=True)
class Case:
    """What an implementation is fed.

    Attributes:
        weights: W of each tensor before the first step, float16, float32 or float64.
        gradients: for every step the gradient of each tensor.
        options: learning_rate, beta, weight_decay, maximize, …, by our names.
        velocity: V before the first step; None leaves V₀ to the implementation.
        count: with a velocity, the number of steps made before the first.
        rates: the learning rate of every step, if it is not ``options["learning_rate"]``.
        reload_after: the number of steps after which the state is saved and loaded.
        fast: whether it may be compiled.
        bfloat16: whether float32 stands for bfloat16.
        grouped: whether the parameters come in groups, with one that has no gradient (torch).
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
    def half(self) -> bool:
        """Whether the dtype is a half type."""
        return self.bfloat16 or self.weights[0].dtype == np.float16

    @property
    def info(self) -> Any:
        """What `numpy.finfo` tells of the dtype."""
        return _Bfloat16 if self.bfloat16 else np.finfo(self.weights[0].dtype)

    def rate(self, number: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return float(self.options["learning_rate"] if self.rates is None else self.rates[number])


@dataclass
class Run:
    """What an implementation, or a variant of the update, made of a case.

    Attributes:
        count: the steps made before the first of the case.
        start: V and W before it.
        uncertain: what V may be off from the implementation's own, where that is not shown.
        states: V (None where it is not shown) and W after every step.
        left: what was left in the gradients, for every step.
        sizes: S of every step, of a variant.
    """

    count: int
    start: tuple[Arrays, Arrays]
    uncertain: Arrays
    states: list[tuple[Arrays | None, Arrays]] = field(default_factory=list)
    left: list[Arrays] = field(default_factory=list)
    sizes: list[Arrays] = field(default_factory=list)


@dataclass
class Verdict:
    """How a run compares with the update; `first` is the first value outside, in words."""

    inside: bool = True
    first: str | None = None
    deviation: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)


def perform(driver: Driver, case: Case, *, at_rest: bool, hidden: bool = False) -> Run:
    """Feed a case to an implementation.

    Args:
        driver: of the implementation.
        case: what to feed.
        at_rest: whether V₀ is 0 by `case.options`. Else V is made known by a step with zero
            gradients first, where the implementation does not show V₀ itself.
        hidden: whether what the state shows is not V.

    Raises:
        ValueError: for arrays of another type, shape or dtype than the weights'.
        whatever the implementation raises.
    """
    kinds = [(w.shape, w.dtype) for w in case.weights]

    def start(weights: Arrays) -> Session:
        how = {"schedule": case.rates, "begun": case.count, "fast": case.fast}
        how["grouped"] = case.grouped
        return driver.start(weights, case.options, bfloat16=case.bfloat16, **how)

    def look(session: Session, number: int) -> tuple[Arrays | None, Arrays]:
        v = None if hidden else session.velocity()
        return (
            v if v is None else _checked("V", v, kinds, number),
            _checked("W", session.weights(), kinds, number),
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
            uncertain = [3 * float(case.info.eps) * np.abs(x).astype(np.float64) for x in v]
    run = Run(count, (v, w), uncertain)
    for number, grads in enumerate(case.gradients):
        if number == case.reload_after:
            session = session.reloaded()
        run.left.append(session.step([g.copy() for g in grads], case.rate(number)))
        run.states.append(look(session, number + 1))
    return run


def _checked(name: str, arrays: Arrays, kinds: Any, number: int) -> Arrays:
    """Return copies; raise for what is not an array like the weights, but V may be wider."""
    copies = []
    for i, (x, (shape, dtype)) in enumerate(zip(arrays, kinds, strict=True)):
        own = getattr(x, "dtype", None)
        wider = name == "V" and own is not None and own.kind == "f"
        if (np.shape(x), own) != (shape, own if wider else dtype):
            raise ValueError(
                f"{name} of tensor {i} must be {dtype} of shape {shape} after step {number}, "
                f"got {own} of shape {np.shape(x)}"
            )
        if type(x) is not np.ndarray:  # whose arithmetic may be its own, as that of a masked array
            raise ValueError(
                f"{name} of tensor {i} must be a plain numpy.ndarray after step {number}, "
                f"got {type(x).__module__}.{type(x).__qualname__}"
            )
        copies.append(x.copy())
    return copies


def _wide(arrays: Sequence[np.ndarray]) -> Arrays:
    double = any(a.dtype == np.float64 for a in arrays)
    return [np.asarray(a, np.longdouble if double else np.float64) for a in arrays]


def simulate(variant: Variant, case: Case, run: Run, first_step: int) -> Run:
    """Return what `variant` makes of a case, from where the implementation's `run` started."""
    options: dict[str, Any] = {
        "constructed": float(case.options["learning_rate"]),
        "beta": float(case.options["beta"]),
        "weight_decay": float(case.options.get("weight_decay", 0.0)),
        "maximize": bool(case.options.get("maximize", False)),
    }
    v, w = _wide(run.start[0]), _wide(run.start[1])
    if any(x.dtype == np.longdouble for x in w):
        v = [x.astype(np.longdouble) for x in v]
    result, count = Run(run.count, (v, w), run.uncertain), run.count
    for number, grads in enumerate(case.gradients):
        if number == case.reload_after:
            v, count = variant.loaded(v, count, result.start[0])
        given = [g.astype(w[0].dtype) for g in grads]
        lr = case.rate(number)
        w, v, s = variant.step(w, v, given, count=count, first_step=first_step, lr=lr, **options)
        count += 1
        result.states.append((v, w))
        result.sizes.append(s)
    return result


def compare(
    case: Case,
    run: Run,
    exact: Run,
    first_step: int,
    *,
    mistaken: bool = False,
    coarse: bool = False,
    what: str = "VW",
    beside: Run | None = None,
) -> Verdict:
    """Compare a run with the simulated one, `exact`, by the certified bound.

    Args:
        case: what both were fed.
        run: of the implementation.
        exact: of `simulate`.
        first_step: t of the first update, by which the bound has its coefficients.
        mistaken: whether `exact` is of a mistaken variant. A mistaken variant may produce larger
            numbers, so its own rounding errors are added to the bound.
        coarse: whether every operation may be rounded to the half type, if it is one.
        what: "V" compares V alone where it is shown.
        beside: with another simulated run, that one is compared with `exact`.
    """
    result, beta = Verdict(), float(case.options["beta"])
    make = HalfBound if case.half and not coarse else ErrorBound
    bounds = [make(w, case.info) for w in case.weights]
    own = [MistakenBound(w, b, case.info, beta) for w, b in zip(case.weights, bounds, strict=True)]
    for bound, error in zip(bounds, run.uncertain, strict=True):
        bound.v = bound.v + error
    before_v, before_w = exact.start
    states = run.states if beside is None else beside.states
    for number, ((v, w), (exact_v, exact_w)) in enumerate(zip(states, exact.states, strict=True)):
        t, rate = run.count + number + first_step, case.rate(number)
        assert exact_v is not None
        deviation, limit = [0.0], [0.0]
        for i, bound in enumerate(bounds):
            with np.errstate(all="ignore"):
                bound.step(
                    case.gradients[number][i],
                    before_v[i],
                    exact_v[i],
                    before_w[i],
                    exact_w[i],
                    t=t,
                    learning_rate=rate,
                    beta=beta,
                    weight_decay=float(case.options.get("weight_decay", 0.0)),
                )
                allowed_v, allowed_w = bound.v, bound.w
                if mistaken:
                    own[i].step(exact.sizes[number][i], exact_v[i], before_w[i], exact_w[i], rate)
                    allowed_v, allowed_w = bound.v + own[i].v, bound.w + own[i].w
                if beside is not None:  # each of the two may be as far from what was seen
                    allowed_v, allowed_w = allowed_v + bound.v, allowed_w + bound.w
                off = np.abs(np.asarray(w[i], np.float64) - exact_w[i].astype(np.float64))
            arrays = [] if v is None else [("V", v[i], exact_v[i], allowed_v)]
            if what != "V" or v is None:
                arrays.append(("W", w[i], exact_w[i], allowed_w))
            for name, got, expected, allowed in arrays:
                where = f"{name} of tensor {i} after step {number + 1}"
                _look(result, got, expected, allowed, where)
            deviation.append(float(np.max(off, initial=0.0)))
            limit.append(float(np.max(allowed_w, initial=0.0)))
        result.deviation.append(max(deviation))
        result.bound.append(max(limit))
        before_v, before_w = exact_v, exact_w
    return result


def _look(
    result: Verdict, got: np.ndarray, expected: np.ndarray, allowed: np.ndarray, where: str
) -> None:
    with np.errstate(all="ignore"):
        error = np.abs(np.asarray(got, expected.dtype) - expected).astype(np.float64)
        # Nothing is inside a bound that has overflowed.
        inside = (error <= allowed) & np.isfinite(allowed)
        inside |= np.isnan(got) & np.isnan(expected)
    if inside.all():
        return
    result.inside = False
    if result.first is None:
        k = tuple(int(n) for n in np.argwhere(~inside)[0])
        result.first = f"{where}, element {list(k)}: {difference(got[k], expected[k], allowed[k])}"


def difference(got: Any, expected: Any, allowed: Any) -> str:
    """Return in words how a number is not the expected one, with the digits that tell."""
    allowed = float(allowed)
    for digits in range(9, 18):
        texts = [f"{float(x):.{digits}g}" for x in (got, expected)]
        if texts[0] != texts[1]:
            break
    # What 17 digits do not tell apart differs beyond float64.
    return f"{texts[0]}, not {texts[1]} ± {allowed:.1g}"


def worst(case: Case, run: Run, first_step: int) -> float:
    """Return the greatest error of a single update, in units of u·S.

    Each update is taken from the implementation's own V and W before it. For W, S is
    |W| + l |V|; where V is not shown, it is that of the simulated update.
    """
    simulated, info = simulate(REFERENCE, case, run, first_step), case.info
    (before_v, before_w), greatest = run.start, 0.0
    for number, (grads, (v, w)) in enumerate(zip(case.gradients, run.states, strict=True)):
        one = Case([], [grads], case.options, rates=[case.rate(number)])
        here = Run(run.count + number, (before_v, before_w), [])
        ((exact_v, exact_w),) = simulate(REFERENCE, one, here, first_step).states
        sizes = Case([], [[np.abs(g) for g in grads]], {**case.options, "maximize": False})
        here = Run(here.count, ([np.abs(x) for x in before_v], before_w), [])
        ((scales, _),) = simulate(REFERENCE, sizes, here, first_step).states  # S: ζ is odd
        assert exact_v is not None
        assert scales is not None
        for i, grad in enumerate(grads):
            tiny = absolute_error(np.abs(grad.astype(np.float64)), info)
            moved = np.abs(before_w[i].astype(np.float64)) + case.rate(number) * np.abs(exact_v[i])
            pairs = [(w[i], exact_w[i], moved)]
            if v is not None:
                pairs.append((v[i], exact_v[i], scales[i]))
            for got, expected, scale in pairs:
                with np.errstate(all="ignore"):
                    error = np.abs(np.asarray(got, expected.dtype) - expected)
                    units = np.asarray(error / (scale * (float(info.eps) / 2) + tiny), np.float64)
                greatest = max(greatest, float(np.max(np.nan_to_num(units, nan=np.inf), initial=0)))
        before_w = w
        before_v = simulated.states[number][0] if v is None else v  # type: ignore[assignment]
    return greatest
