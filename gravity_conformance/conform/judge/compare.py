"""Compare the run of an implementation with the exact update.

Guarantee: a run passes only if every element of V (if the state shows V) and of W is inside
`gravity_core.ErrorBound` after every step. The bound is around the update in a wider dtype. A NaN
is outside, unless the update in the wider dtype also gives NaN.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gravity_conformance.conform.judge.mistaken_bound import MistakenBound
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_core.error_bound import ErrorBound, absolute_error
from gravity_core.update import gradient_term


@dataclass
class Verdict:
    """How a run compares with the update.

    Attributes:
        inside: whether every element is inside its bound.
        first: a description of the first value outside.
        wrong: the indices of the tensors that have a value outside.
        deviation: the greatest deviation of W after every step.
        bound: the greatest bound on W after every step.
    """

    inside: bool = True
    first: str | None = None
    wrong: set[int] = field(default_factory=set)
    deviation: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)


def compare(
    trial: Trial,
    simulated: Run | None = None,
    *,
    mistaken: bool = False,
    coarse: bool = False,
    difference: bool = False,
    what: str = "VW",
    beside: Run | None = None,
) -> Verdict:
    """Compare the run of a trial with a simulated one, by the certified bound.

    Args:
        trial: what was fed, and what came of it.
        simulated: the run to compare with; the right update if None.
        mistaken: whether `simulated` is the run of a mistaken variant. Its numbers may be larger,
            so the bound includes their rounding errors.
        coarse: whether every operation may be rounded to the dtype of the weights, a half type.
        difference: whether 1 − β̂ may be a difference of numbers of its dtype. Its error is then
            up to 4 u: the numbers are at most 1, or at most t + 2 before the division by it.
        what: "VW", or "V" to compare V alone. If the state does not show V, W is compared.
        beside: another simulated run; it is compared in place of the implementation's.
    """
    case, run = trial.case, trial.run
    target = trial.exact if simulated is None else simulated
    result, beta = Verdict(), float(case.options["beta"])
    computed = case.info.name if coarse else None
    bounds = [ErrorBound(w, stored=case.info.name, computed=computed) for w in case.weights]
    own = [MistakenBound(w, b, case.info, beta) for w, b in zip(case.weights, bounds, strict=True)]
    for bound, error in zip(bounds, run.uncertain, strict=True):
        bound.v = bound.v + error
    before_v, before_w = target.start
    states = run.states if beside is None else beside.states
    for index, ((v, w), (exact_v, exact_w)) in enumerate(zip(states, target.states, strict=True)):
        options = case.options_at(index)
        t, rate = trial.count(index) + trial.first_step, case.rate(index)
        before_w = trial.before(index, before_w)
        assert exact_v is not None
        deviation, limit = [0.0], [0.0]
        for i, bound in enumerate(bounds):
            with np.errstate(all="ignore"):
                bound.step(
                    case.gradients[index][i],
                    before_v[i],
                    exact_v[i],
                    before_w[i],
                    exact_w[i],
                    t=t,
                    learning_rate=rate,
                    beta=float(options["beta"]),
                    weight_decay=float(options.get("weight_decay", 0.0)),
                )
                if difference:
                    g = case.gradients[index][i].astype(np.float64)
                    more = 4 * bound.unit * np.abs(gradient_term(g))
                    bound.v, bound.w = bound.v + more, bound.w + rate * more
                allowed_v, allowed_w = bound.v, bound.w
                if mistaken:
                    own[i].step(target.sizes[index][i], exact_v[i], before_w[i], exact_w[i], rate)
                    allowed_v, allowed_w = bound.v + own[i].v, bound.w + own[i].w
                if beside is not None:  # the implementation may be this far from each
                    allowed_v, allowed_w = allowed_v + bound.v, allowed_w + bound.w
                off = np.abs(np.asarray(w[i], np.float64) - exact_w[i].astype(np.float64))
            arrays = [] if v is None else [("V", v[i], exact_v[i], allowed_v)]
            if what != "V" or v is None:
                arrays.append(("W", w[i], exact_w[i], allowed_w))
            for name, got, expected, allowed in arrays:
                where = f"{name} of tensor {i} after step {index + 1}"
                if not _inside(result, got, expected, allowed, where):
                    result.wrong.add(i)
            deviation.append(float(np.max(off, initial=0.0)))
            limit.append(float(np.max(allowed_w, initial=0.0)))
        result.deviation.append(max(deviation))
        result.bound.append(max(limit))
        before_v, before_w = exact_v, exact_w
    return result


def _inside(
    result: Verdict, got: np.ndarray, expected: np.ndarray, allowed: np.ndarray, where: str
) -> bool:
    with np.errstate(all="ignore"):
        error = np.abs(np.asarray(got, expected.dtype) - expected).astype(np.float64)
        # Nothing is inside a bound that has overflowed.
        inside = (error <= allowed) & np.isfinite(allowed)
        # NaN beside NaN, also if the code that is judged has patched np.isnan.
        inside |= (got != got) & (expected != expected)
    if inside.all():
        return True
    result.inside = False
    if result.first is None:
        k = tuple(int(n) for n in np.argwhere(~inside)[0])
        result.first = f"{where}, element {list(k)}: {difference(got[k], expected[k], allowed[k])}"
    return False


def difference(got: Any, expected: Any, allowed: Any) -> str:
    """Describe how a number differs from the expected one, with enough digits to show it."""
    allowed = float(allowed)
    for digits in range(9, 18):
        texts = [f"{float(x):.{digits}g}" for x in (got, expected)]
        if texts[0] != texts[1]:
            break
    # If 17 digits are equal, the numbers differ beyond float64.
    return f"{texts[0]}, not {texts[1]} ± {allowed:.1g}"


def worst(trial: Trial) -> float:
    """Return the greatest error of a single update, in units of u·S.

    Each update starts from the implementation's own V and W before it. If the state does not
    show V, the simulated V takes its place. For W, S is |W| + η S, with the S of V.
    """
    case, run, info = trial.case, trial.run, trial.case.info
    (before_v, before_w), greatest = run.start, 0.0
    for index, (grads, (v, w)) in enumerate(zip(case.gradients, run.states, strict=True)):
        before_w = trial.before(index, before_w)
        options = case.options_at(index)
        one = Case([], [grads], options, rates=[case.rate(index)])
        here = Run(trial.count(index), (before_v, before_w), [])
        ((exact_v, exact_w),) = Trial(one, here, trial.first_step).exact.states
        sizes = Case([], [[np.abs(g) for g in grads]], {**options, "maximize": False})
        here = Run(here.count, ([np.abs(x) for x in before_v], before_w), [])
        ((scales, _),) = Trial(sizes, here, trial.first_step).exact.states  # S, because ζ is odd
        assert exact_v is not None
        assert scales is not None
        for i, grad in enumerate(grads):
            tiny = absolute_error(np.abs(grad.astype(np.float64)), info)
            moved = np.abs(before_w[i].astype(np.float64)) + case.rate(index) * scales[i]
            pairs = [(w[i], exact_w[i], moved)]
            if v is not None:
                pairs.append((v[i], exact_v[i], scales[i]))
            for got, expected, scale in pairs:
                with np.errstate(all="ignore"):
                    error = np.abs(np.asarray(got, expected.dtype) - expected)
                    units = np.asarray(error / (scale * info.unit + tiny), np.float64)
                greatest = max(greatest, float(np.max(np.nan_to_num(units, nan=np.inf), initial=0)))
        before_w = w
        before_v = trial.exact.states[index][0] if v is None else v  # type: ignore[assignment]
    return greatest
