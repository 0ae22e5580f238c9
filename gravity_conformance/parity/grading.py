"""Grade a backend's trajectory against the reference, step by step, by the derived bound.

exact      bit-identical to the NumPy reference; numbers below the smallest normal number count
           as equal, because JAX and TensorFlow flush them to zero
bounded    within twice the certified bound of `gravity_core.ErrorBound`, the largest difference
           between two implementations that round correctly
divergent  outside

An implementation that ``--also`` names may have another V₀. The reference then starts from its
first state.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gravity_conformance.protocol import Replay, Step
from gravity_core._arrays import float_info
from gravity_core.error_bound import ErrorBound, absolute_error
from gravity_core.reference import Gravity
from gravity_core.update import update
from gravity_core.velocity import initial_velocity

Verdict = Literal["exact", "bounded", "divergent"]


@dataclass
class Grade:
    """The result of comparing one replay with the reference.

    Attributes:
        verdict: exact, bounded or divergent.
        v0_identical: whether V₀ has the reference's bits.
        flushed: the number of values, over all steps, that differ only by a flush to zero or by
            the sign of zero.
        worst: the largest rounding error of a single update of V, in units of u·S. The update
            starts from the backend's own V; the exact value is computed in a wider dtype.
        share: the largest deviation of V or W as a fraction of its bound; divergent above 1.
        deviation: the largest deviation of W after each step.
        bound: the largest certified bound on W after each step.
        first_divergence: a description of the first value outside its bound.
        begun: the number of steps with zero gradients before the first state that shows V.
    """

    verdict: Verdict = "exact"
    v0_identical: bool = True
    flushed: int = 0
    worst: float = 0.0
    share: float = 0.0
    deviation: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)
    first_divergence: str | None = None
    begun: int = 0


def first_state(replay: Replay) -> Step:
    """Return V₀ and W₀ of the reference."""
    options = Gravity(**replay.options)
    velocity = [
        initial_velocity(w.shape, w.dtype, std=options.velocity_std, seed=options.seed, index=i)
        for i, w in enumerate(replay.weights)
    ]
    return Step(velocity, [w.copy() for w in replay.weights])


def reference(replay: Replay, start: Step | None = None) -> Iterator[Step]:
    """Yield the states of the reference: the pure functions, in the replay's dtype.

    Args:
        replay: the gradients and the options.
        start: the state before the first step; None takes `first_state`.
    """
    options = Gravity(**replay.options)
    lr, decay = options.learning_rate, options.learning_rate * options.weight_decay
    velocity, weights, begun = start = start or first_state(replay)
    yield start
    for count, gradients in enumerate(replay.gradients, start=begun):
        t = count + options.first_step
        pairs = zip(gradients, velocity, strict=True)
        velocity = [np.asarray(update(g, v, t, beta=options.beta)) for g, v in pairs]
        pairs = zip(weights, velocity, strict=True)
        weights = [np.asarray((w - decay * w if decay else w) - lr * v) for w, v in pairs]
        yield Step(velocity, weights)


def grade(
    replay: Replay,
    steps: Iterator[Step],
    on_step: Callable[[], None] = lambda: None,
    *,
    own_start: bool = False,
) -> Grade:
    """Compare a backend's steps with the reference's.

    Args:
        replay: the backend's input.
        steps: the states that its `replay` yields.
        on_step: called after each comparison.
        own_start: whether the reference starts from the backend's first state.

    Raises:
        ValueError: if the backend yields too few or too many states, or if an array differs from
            the weights in shape or dtype. With `own_start`, if the first state is not finite.
            Without it, if the first state comes after a step.
    """
    start = drawn = first_state(replay)
    if own_start:
        start, steps = _peeked(replay, steps)
        drawn = _begun(replay, drawn) if start.begun else drawn
    options = Gravity(**replay.options)
    bounds = [ErrorBound(w) for w in replay.weights]
    result, before = Grade(begun=start.begun), None
    for index, (expected, got) in enumerate(_in_step(reference(replay, start), steps)):
        _check_arrays(index, replay, got)
        t = index - 1 + start.begun + options.first_step
        for i, bound in enumerate(bounds):
            if before is not None:
                bound.step(
                    replay.gradients[index - 1][i],
                    before[0].velocity[i],
                    expected.velocity[i],
                    before[0].weights[i],
                    expected.weights[i],
                    t=t,
                    learning_rate=options.learning_rate,
                    beta=options.beta,
                    weight_decay=options.weight_decay,
                )
            for name, a, b, limit in (
                ("V", expected.velocity[i], got.velocity[i], 2 * bound.v),
                ("W", expected.weights[i], got.weights[i], 2 * bound.w),
            ):
                _compare(result, a, b, limit, f"{name} of tensor {i} after step {index}")
            if before is not None:
                g, v = replay.gradients[index - 1][i], before[1].velocity[i]
                units = _error_in_units(g, v, got.velocity[i], t, options.beta)
                result.worst = max(result.worst, units)
        if before is None:
            if got.begun != start.begun:
                raise ValueError("its state does not show V₀; a declaration needs export_state")
            pairs = zip(drawn.velocity, got.velocity, strict=True)
            result.v0_identical = all(a.tobytes() == b.tobytes() for a, b in pairs)
        else:
            result.deviation.append(_greatest(map(_distance, expected.weights, got.weights)))
            result.bound.append(_greatest(2 * bound.w for bound in bounds))
        # A copy, because a backend may yield arrays that it updates later.
        before = expected, Step([v.copy() for v in got.velocity], [])
        on_step()
    return result


def _peeked(replay: Replay, steps: Iterator[Step]) -> tuple[Step, Iterator[Step]]:
    """Return a copy of the first state, and an iterator over all states, the first included."""
    first = next(steps, None)
    if first is None:
        raise ValueError("replay must yield a state for every step, got none")
    _check_arrays(0, replay, first)
    velocity, weights = ([x.copy() for x in arrays] for arrays in first[:2])
    if not all(np.isfinite(x).all() for x in velocity + weights):
        raise ValueError("V and W must be finite in the first state that shows V")
    start = Step(velocity, weights, first.begun)
    _check_weights(replay, start)
    return start, itertools.chain([first], steps)


def _begun(replay: Replay, start: Step) -> Step:
    """Return the state of the reference after a step with zero gradients."""
    zeros = [np.zeros_like(w) for w in replay.weights]
    _, state = reference(dataclasses.replace(replay, gradients=[zeros]), start)
    return state


def _check_weights(replay: Replay, start: Step) -> None:
    """Raise ValueError unless W is W₀, moved by V if a step came before."""
    options = Gravity(**replay.options)
    lr, decay = options.learning_rate, options.learning_rate * options.weight_decay
    for i, (w, v, got) in enumerate(
        zip(replay.weights, start.velocity, start.weights, strict=True)
    ):
        bound, expected = ErrorBound(w), w
        if start.begun:
            expected = np.asarray((w - decay * w if decay else w) - lr * v)
            # V is the backend's own; its bound here covers more than the move needs.
            bound.step(
                np.zeros_like(w),
                v,
                v,
                w,
                expected,
                t=options.first_step,
                learning_rate=lr,
                beta=options.beta,
                weight_decay=options.weight_decay,
            )
        outside = ~(_distance(got, expected) <= 2 * bound.w)
        if outside.any():
            k = tuple(int(n) for n in np.argwhere(outside)[0])
            moved = "W₀ − η V" if start.begun else "W₀"
            raise ValueError(
                f"W of tensor {i} must be {moved} in the first state that shows V, "
                f"got {got[k]!s} for {expected[k]!s} at {k}"
            )


def _in_step(expected: Iterator[Step], steps: Iterator[Step]) -> Iterator[tuple[Step, Step]]:
    count = 0
    for state in expected:
        got = next(steps, None)
        if got is None:
            raise ValueError(
                f"replay must yield the initial state and one per step, got only {count} states"
            )
        yield state, got
        count += 1
    if next(steps, None) is not None:
        raise ValueError(f"replay must yield {count} states, got more")


def _check_arrays(index: int, replay: Replay, got: Step) -> None:
    wanted = [(w.shape, w.dtype) for w in replay.weights]
    for name, arrays in (("velocity", got.velocity), ("weights", got.weights)):
        kinds = [(np.shape(a), getattr(a, "dtype", None)) for a in arrays]
        if kinds != wanted:
            raise ValueError(f"{name} after step {index} must be arrays {wanted}, got {kinds}")


def _compare(result: Grade, a: np.ndarray, b: np.ndarray, limit: np.ndarray, name: str) -> None:
    """Compare an array of the reference, `a`, with the backend's, `b`, and update `result`."""
    differs = _bits(a) != _bits(b)
    tiny = np.finfo(a.dtype).smallest_normal
    flushed = differs & (np.abs(a) < tiny) & (np.abs(b) < tiny)
    result.flushed += int(flushed.sum())
    if not (differs & ~flushed).any():
        return
    distance = _distance(a, b)
    outside = ~(distance <= limit)  # NaN is outside
    if not outside.any():
        share = np.divide(distance, limit, out=np.zeros(a.shape), where=limit > 0)
        result.share = max(result.share, float(share.max()))
        if result.verdict == "exact":
            result.verdict = "bounded"
        return
    result.verdict, result.share = "divergent", float("inf")
    if result.first_divergence is None:
        where = tuple(int(k) for k in np.argwhere(outside)[0])
        result.first_divergence = (
            f"{name}, element {where}: got {b[where]!s}, the reference has {a[where]!s}, "
            f"bound {limit[where]:.3g}"
        )


def _error_in_units(g: np.ndarray, v: np.ndarray, got: np.ndarray, t: int, beta: float) -> float:
    """Return the error of `got`, the result of one update of `v`, in units of u·S."""
    info = float_info(got.dtype)
    wide = np.float64 if got.dtype == np.float32 else np.longdouble
    g, v = g.astype(wide), v.astype(wide)
    # The coefficients are computed in the wider dtype, too.
    coefficients = {"t": np.asarray(t, wide), "beta": np.asarray(beta, wide)}
    exact = update(g, v, **coefficients)
    scale = update(np.abs(g), np.abs(v), **coefficients)  # S, because ζ is odd
    # Errors from underflow and overflow are not relative to S.
    absolute = absolute_error(np.abs(g).astype(np.float64), info)
    return _greatest([np.abs(got - exact) / (scale * info.unit + absolute)])


def _bits(array: np.ndarray) -> np.ndarray:
    return np.asarray(array.view(f"u{array.dtype.itemsize}"))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # inf − inf
        return np.asarray(np.abs(a.astype(np.float64) - b.astype(np.float64)))


def _greatest(arrays: Iterable[np.ndarray]) -> float:
    return float(max((np.max(a, initial=0.0) for a in arrays), default=0.0))
