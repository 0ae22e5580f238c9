"""Hold what an implementation did to the exact update, and find the mistake that it made.

Guarantee: what passes lies inside `gravity_core.ErrorBound` around the update in a wider dtype,
in every element of V (where it is shown) and W after every step; NaN lies outside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gravity_core.coefficients import beta_hat
from gravity_core.conformance.conform.drivers import Driver
from gravity_core.conformance.conform.mutations import MUTATIONS, REFERENCE, Variant
from gravity_core.conformance.conform.session import Arrays, Session
from gravity_core.conformance.vectors.exact import FORMATS
from gravity_core.error_bound import ErrorBound, absolute_error

# Of a mistaken update no bound is certified. It is allowed this many times the roundings of the
# right one, which covers a mean over the few elements of a case, and what is added to more.
SLACK = 4
_FEW = 8  # steps


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


def perform(driver: Driver, case: Case, *, at_rest: bool) -> Run:
    """Feed a case to an implementation.

    Args:
        driver: of the implementation.
        case: what to feed.
        at_rest: whether V₀ is 0 by `case.options`. Else V is made known by a step with zero
            gradients first, where the implementation does not show V₀ itself.

    Raises:
        ValueError: for arrays of another shape or dtype than the weights'.
        whatever the implementation raises.
    """

    def start(weights: Arrays) -> Session:
        how = {"schedule": case.rates, "begun": case.count, "fast": case.fast}
        return driver.start(weights, case.options, bfloat16=case.bfloat16, **how)

    session = start(case.weights)
    kinds = [(w.shape, w.dtype) for w in case.weights]
    v, count, uncertain = session.velocity(), 0, [np.zeros(w.shape) for w in case.weights]
    w = session.weights()
    if case.velocity is not None:
        session.begin(case.velocity, case.count)
        v, count = case.velocity, case.count
    elif v is None and at_rest:
        v = [np.zeros_like(x) for x in case.weights]
    elif v is None:
        lr = case.rate(0)
        session = start([0 * x for x in case.weights])
        session.step([0 * x for x in case.weights], lr)
        v, w, count = session.velocity(), session.weights(), 1
        if v is None:
            v = [np.asarray(-x / x.dtype.type(lr)) for x in w]
            uncertain = [3 * float(case.info.eps) * np.abs(x).astype(np.float64) for x in v]
    _check_velocity(v, kinds, 0)
    run = Run(count, (v, w), uncertain)
    for number, grads in enumerate(case.gradients):
        if number == case.reload_after:
            session = session.reloaded()
        run.left.append(session.step([g.copy() for g in grads], case.rate(number)))
        v, w = session.velocity(), session.weights()
        _check("W", [(np.shape(x), getattr(x, "dtype", None)) for x in w], kinds, number + 1)
        if v is not None:
            _check_velocity(v, kinds, number + 1)
        run.states.append((v, w))
    return run


def _check_velocity(v: Arrays, kinds: Any, number: int) -> None:
    """Raise for another shape than the weights'; V may well be kept in a wider dtype."""
    shown = []
    for x, (_, dtype) in zip(v, kinds, strict=True):
        own = getattr(x, "dtype", None)
        shown.append((np.shape(x), dtype if own is not None and own.kind == "f" else own))
    _check("V", shown, kinds, number)


def _check(name: str, got: Any, wanted: Any, number: int) -> None:
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a != b:
            kind, expected = (f"{x[1]} of shape {x[0]}" for x in (a, b))
            raise ValueError(
                f"{name} of tensor {i} must be {expected} after step {number}, got {kind}"
            )


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
    case: Case, run: Run, exact: Run, first_step: int, *, slack: float = 1.0, what: str = "VW"
) -> Verdict:
    """Compare a run with the simulated one, `exact`, by the certified bound times `slack`.

    Args:
        case: what both were fed.
        run: of the implementation.
        exact: of `simulate`.
        first_step: t of the first update, by which the bound has its coefficients.
        slack: 1 for the right update, `SLACK` for a mistaken one, to which the bound of the
            right one is too narrow where it makes greater numbers: they count, too.
        what: "V" compares V alone where it is shown.
    """
    result = Verdict()
    bounds = [ErrorBound(w, case.info) for w in case.weights]
    for bound, error in zip(bounds, run.uncertain, strict=True):
        bound.v = bound.v + error
    # Roundings of the mistaken update that the bound does not know of, in V and W.
    more = [(np.zeros(w.shape), np.zeros(w.shape)) for w in case.weights]
    before_v, before_w = exact.start
    for number, ((v, w), (exact_v, exact_w)) in enumerate(
        zip(run.states, exact.states, strict=True)
    ):
        t = run.count + number + first_step
        assert exact_v is not None
        deviation, limit = [0.0], [0.0]
        for i, bound in enumerate(bounds):
            grad = case.gradients[number][i]
            with np.errstate(all="ignore"):
                bound.step(
                    grad,
                    before_v[i],
                    exact_v[i],
                    before_w[i],
                    exact_w[i],
                    t=t,
                    learning_rate=case.rate(number),
                    beta=float(case.options["beta"]),
                    weight_decay=float(case.options.get("weight_decay", 0.0)),
                )
            if slack > 1:
                own = bound.ROUNDINGS * bound.unit * exact.sizes[number][i].astype(np.float64)
                more_v = beta_hat(t, float(case.options["beta"])) * more[i][0] + own
                rounding = bound.unit * np.abs(exact_w[i].astype(np.float64))
                more[i] = more_v, more[i][1] + case.rate(number) * more_v + rounding
            allowed_v, allowed_w = (
                slack * (b + extra) for b, extra in zip((bound.v, bound.w), more[i], strict=True)
            )
            arrays = [] if v is None else [("V", v[i], exact_v[i], allowed_v)]
            if what != "V" or v is None:
                arrays.append(("W", w[i], exact_w[i], allowed_w))
            for name, got, expected, allowed in arrays:
                where = f"{name} of tensor {i} after step {number + 1}"
                _look(result, got, expected, allowed, where)
            with np.errstate(all="ignore"):
                off = np.abs(np.asarray(w[i], np.float64) - exact_w[i].astype(np.float64))
            deviation.append(float(np.max(off, initial=0.0)))
            limit.append(float(np.max(bound.w, initial=0.0)))
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
        outside = ~(inside | (np.isnan(got) & np.isnan(expected)))
    if not outside.any():
        return
    result.inside = False
    if result.first is None:
        k = tuple(int(n) for n in np.argwhere(outside)[0])
        result.first = (
            f"{where}, element {list(k)}: {number(got[k], got.dtype)}, "
            f"not {number(expected[k], got.dtype)} ± {float(allowed[k]):.1g}"
        )


def number(x: Any, dtype: np.dtype) -> str:
    """Return a number with the digits that a dtype has."""
    return f"{float(x):.{17 if dtype == np.float64 else 9}g}"


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


def _idle(variant: Variant, case: Case) -> bool:
    """Tell whether a case has no use for the parts that a variant replaces."""
    unused = {"std", "left"}
    if case.reload_after is None:
        unused.add("loaded")
    if case.rates is None:
        unused.add("learning_rate")
    return variant.replaced <= unused


def _same(run: Run, other: Run) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True)
        for (_, w), (_, x) in zip(run.states, other.states, strict=True)
        for a, b in zip(w, x, strict=True)
    )


def diagnose(case: Case, run: Run, first_step: int, *, what: str = "VW") -> str | None:
    """Return in words the mistake that explains a run which the right update does not."""
    right = simulate(REFERENCE, case, run, first_step)
    found: list[str] = []
    # Most mistakes are out of the question after a few steps of a long trajectory.
    short = replace(case, gradients=case.gradients[:_FEW])
    begun = replace(run, states=run.states[:_FEW])
    for variant in MUTATIONS:
        if variant.words in found or _idle(variant, case):
            continue
        start = simulate(variant, short, begun, first_step)
        if not compare(short, begun, start, first_step, slack=SLACK, what=what).inside:
            continue
        wrong = simulate(variant, case, run, first_step)
        # One that this case does not tell from the right update explains nothing.
        if _same(wrong, right) or (
            compare(case, wrong, right, first_step, slack=2 * SLACK, what=what).inside
        ):
            continue
        if compare(case, run, wrong, first_step, slack=SLACK, what=what).inside:
            found.append(variant.words)
    # Half types round 2¹³ times as coarsely as float32, in ways too many to list.
    coarse = float(np.finfo(np.float16).eps / case.info.eps)
    if not found and coarse > 1:
        rounded = compare(case, run, right, first_step, slack=coarse, what=what).inside
        if rounded and coarse / 64 < worst(case, run, first_step) < np.inf:
            return "something in half precision"
    return " or ".join(found) or None
