"""The error bound is certified: exact trajectories stay inside it, planted mistakes do not."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gravity_core import ErrorBound, Gravity, coefficients, gradient_term, update
from tests.support import exact
from tests.support.adversary import ORDERS, Adversary
from tests.support.backends import BACKENDS
from tests.support.values import FEW, FULL, specials, tensors

on_dtypes = pytest.mark.parametrize("dtype", FULL)
on_backends = pytest.mark.parametrize("backend", BACKENDS, ids=str)
STEPS = 50
LEARNING_RATE = 0.1


@st.composite
def runs(draw, dtype, steps=STEPS, size=3):
    """Weights and a sequence of gradients whose scale changes from step to step."""
    limits = np.finfo(dtype)
    low, high = np.log10(float(limits.smallest_subnormal)), np.log10(float(limits.max))
    wide = st.floats(float(low), float(high) - 0.1)
    scales = draw(st.lists(st.one_of(st.floats(-3, 3), wide), min_size=steps, max_size=steps))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = rng.uniform(-1, 1, (steps, size))
    grads = [
        (10.0**scale * shape).astype(dtype) for scale, shape in zip(scales, shapes, strict=True)
    ]
    return draw(tensors((size,), dtype, limit=1e3)), grads


def numpy_run(w, grads, learning_rate=LEARNING_RATE, **arguments):
    """Yield (V, W, bound) after each step of the reference, with the bound advanced."""
    optimizer = Gravity(learning_rate, **arguments)
    w, bound = w.copy(), ErrorBound(w)
    optimizer.init([w])
    for n, g in enumerate(grads):
        v_before, w_before = optimizer.velocity[0].copy(), w.copy()
        optimizer.step([w], [g])
        v = optimizer.velocity[0].copy()
        bound.step(
            g,
            v_before,
            v,
            w_before,
            w.copy(),
            t=n + optimizer.first_step,
            learning_rate=learning_rate,
            beta=optimizer.beta,
            weight_decay=optimizer.weight_decay,
        )
        yield v, w.copy(), bound


@on_dtypes
@given(
    data=st.data(),
    beta=st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_exact_trajectories_stay_inside(dtype, data, beta, weight_decay):
    w, grads = data.draw(runs(dtype, size=2))
    start = Gravity(LEARNING_RATE)
    start.init([w])
    exact_v, exact_w = exact.fractions(start.velocity[0]), exact.fractions(w)
    run = numpy_run(w, grads, beta=beta, weight_decay=weight_decay)
    for t, (g, (v, w, bound)) in enumerate(zip(grads, run, strict=True), start=1):
        exact_v = exact.velocity(exact.fractions(g), exact_v, t, beta)
        exact_w = exact.weights(exact_w, exact_v, LEARNING_RATE, weight_decay)
        if t in (1, 2, STEPS):
            exact.assert_within(v, exact_v, bound.v)
            exact.assert_within(w, exact_w, bound.w)


def ordinary_run(dtype, size=100):
    """Return weights and gradients of ordinary size, all away from the ends of the range."""
    rng = np.random.default_rng(1)
    grads = rng.standard_normal((STEPS, size)).astype(dtype)
    return rng.standard_normal(size).astype(dtype), list(grads)


@on_dtypes
def test_the_bound_is_not_vacuous(dtype):
    """e_V ≤ n γ_k S, and e_W ≤ n (l e_V + the roundings of one step), with little to spare."""
    largest_s = largest_w = 0.0
    for v, w, bound in numpy_run(*ordinary_run(dtype)):
        largest_s = max(largest_s, bound.scale.max())
        largest_w = max(largest_w, np.abs(w).max(), np.abs(v).max())
    # One rounding more than the bound's own k + 1 covers what is of second order.
    limit_v = STEPS * exact.gamma(ErrorBound.ROUNDINGS + 2, dtype) * largest_s
    # l, l V and two sums, with one more again
    limit_w = STEPS * (LEARNING_RATE * limit_v + exact.gamma(5, dtype) * largest_w)
    assert (bound.v > 0).all()
    assert (bound.v <= limit_v).all()
    assert (bound.w > 0).all()
    assert (bound.w <= limit_w).all()
    if dtype == "float32":
        assert limit_v < 1e-3 * largest_s
        assert limit_w < 1e-3 * largest_w


def step_by_counter(g, v, w, t, *, xp):
    """One step with t on the device, so that compiled code is compiled once."""
    v = update(g, v, t, xp=xp)
    return v, w - LEARNING_RATE * v


@on_backends
@on_dtypes
@settings(max_examples=FEW)
@given(data=st.data())
def test_trajectories_on_every_backend_stay_inside_twice_the_bound(backend, dtype, data):
    backend.load()
    w, grads = data.draw(runs(dtype, steps=STEPS // 2))
    run = numpy_run(w, grads, velocity_std=0.0)
    v = np.zeros_like(w)
    for t, (g, (want_v, want_w, bound)) in enumerate(zip(grads, run, strict=True), start=1):
        v, w = backend.call(step_by_counter, g, v, w, np.asarray(t, dtype))
        assert (np.abs(v.astype(np.float64) - want_v) <= 2 * bound.v).all()
        assert (np.abs(w.astype(np.float64) - want_w) <= 2 * bound.w).all()


def velocity(g, v, t, *, max_abs=None, shift=0, coefficient=float, power=2):
    """One update, with room for mistakes."""
    max_abs = np.abs(g).max() if max_abs is None else max_abs(np.abs(g))
    old, new = (float(coefficient(c)) for c in coefficients(t + shift))
    return old * v + new * (g / (1 + np.abs(g * max_abs) ** power))


MISTAKES = {
    "none": {},
    "mean instead of max": {"max_abs": np.mean},
    "first instead of max": {"max_abs": lambda a: a[0]},
    "t too large": {"shift": 1},
    "t too small": {"shift": -1},
    "coefficients in float16": {"coefficient": np.float16},
    "missing square": {"power": 1},
    "cube": {"power": 3},
}


@on_dtypes
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_leave_twice_the_bound(dtype, mistake):
    w_wrong, grads = ordinary_run(dtype)
    run = numpy_run(w_wrong, grads, velocity_std=0.0)
    wrong, v_wrong = partial(velocity, **MISTAKES[mistake]), np.zeros_like(w_wrong)
    left_v, left_w = [], []
    for t, (v, w, bound) in enumerate(run, start=1):
        v_wrong = wrong(grads[t - 1], v_wrong, t)
        w_wrong = w_wrong - LEARNING_RATE * v_wrong
        left_v.append((np.abs(v_wrong.astype(np.float64) - v) > 2 * bound.v).any())
        left_w.append((np.abs(w_wrong.astype(np.float64) - w) > 2 * bound.w).any())
    assert any(left_v) == (mistake != "none")
    assert any(left_w) == (mistake != "none")
    if mistake != "none":
        assert left_v[0]  # one update tells


@on_dtypes
def test_a_coefficient_of_float32_leaves_the_bound_of_float64_only(dtype):
    w, grads = ordinary_run(dtype)
    v = np.ones_like(w)
    bound, want = ErrorBound(w), update(grads[0], v, 1)
    bound.step(grads[0], v, want, w, w - want, t=1, learning_rate=1.0)
    got = velocity(grads[0], v, 1, coefficient=np.float32)
    assert (np.abs(got - want) > 2 * bound.v).any() == (dtype == "float64")


@on_dtypes
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)], ids=str)
def test_the_bound_has_the_shape_of_the_weights(dtype, shape):
    g = np.ones(shape, dtype)
    bound = ErrorBound(g)
    bound.step(g, g, update(g, g, 1), g, g, t=1, learning_rate=0.1)
    for part in (bound.v, bound.w, bound.scale):
        assert (part.shape, part.dtype) == (shape, np.float64)
        assert (part > 0).all()


@on_dtypes
def test_no_warning(dtype):
    """Warnings are errors: the bound of extreme gradients gives none, and is a number."""
    for size in specials(dtype):
        g = np.asarray([size, 1.0], dtype)
        bound, v = ErrorBound(g), np.zeros_like(g)
        bound.step(g, v, update(g, v, 0), v, v, t=0, learning_rate=0.1)
        assert np.isfinite(bound.v).all()
        assert (bound.scale >= np.abs(gradient_term(g)) * (1 - exact.gamma(6, dtype)) / 2).all()


def flush(x):
    return np.where(np.abs(x) < np.finfo(x.dtype).smallest_normal, x.dtype.type(0), x)


@on_dtypes
@pytest.mark.parametrize("tinies", [0.9, 2.0], ids=["subnormal", "normal"])
def test_a_flushed_learning_rate_stays_inside(dtype, tinies):
    """JAX and TF take a subnormal learning rate as zero, however large V is."""
    learning_rate = tinies * float(np.finfo(dtype).smallest_normal)
    g, v, w = np.zeros(2, dtype), np.asarray([1e3, -1e6], dtype), np.zeros(2, dtype)
    v_next = update(g, v, 1)
    rounded = np.asarray(learning_rate, dtype)
    w_next = w - rounded * v_next
    bound = ErrorBound(w)
    bound.step(g, v, v_next, w, w_next, t=1, learning_rate=learning_rate)
    flushed = w - flush(rounded) * v_next
    assert (np.abs(flushed.astype(np.float64) - w_next) <= 2 * bound.w).all()


def share(computed, want, bound):
    """Return the greatest error as a share of its bound, rounded only once at the end."""
    errors = [abs(c - e) for c, e in zip(computed, want, strict=True)]
    limits = exact.fractions(bound)
    return float(max(e / b for e, b in zip(errors, limits, strict=True)))


# The limits below leave out what is 2⁻¹⁸ or less of the bound: 1 against s², 1 against t,
# products of several u, the smallest normal number against u S. All of it together:
NEARLY = 1 - 2.0**-16
LATE = 10**6  # t: of a coefficient's roundings all four count, where its constant is not 0


@on_dtypes
@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize(
    ("g", "v", "roundings"),
    [
        (2.0**10, 0.0, 11),  # ζ with s² ≫ 1: all of them
        (-(2.0**10), 0.0, 11),
        (0.0, 1.0, 6),  # β̂ V: those of ζ are missing
        (0.0, -1.0, 6),
        (2.0**-10, 0.0, 11 - 3),  # ζ with s² ≪ 1: those of s and s·s do not count
    ],
)
def test_one_update_needs_every_rounding_that_the_bound_counts(dtype, direction, g, v, roundings):
    """γ_(k + 1) S is the bound and k u S the error, so that k / (k + 1) of it is needed."""
    g, v = np.asarray([g], dtype), np.asarray([v], dtype)
    bound, v_next = ErrorBound(v), update(g, v, LATE, beta=0.5)
    bound.step(g, v, v_next, v, v, t=LATE, learning_rate=0.0, beta=0.5)
    inputs = exact.fractions(g), exact.fractions(v), LATE, 0.5
    computed = Adversary(dtype).velocity(*inputs, direction)
    error = abs(computed[0] - exact.velocity(*inputs)[0])
    counted = float(error / Fraction(bound.unit * bound.scale[0]))
    assert roundings * NEARLY <= counted <= roundings / NEARLY
    assert counted * NEARLY <= ErrorBound.ROUNDINGS
    assert roundings / 12 * NEARLY <= share(computed, exact.velocity(*inputs), bound.v) <= 1


@on_dtypes
@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize(
    ("order", "w", "v", "learning_rate", "weight_decay", "needed"),
    [
        # W = l V: l and the product, of the two that are counted. The sum is 0.
        (None, 1.0, 2.0, 0.5, 0.0, 2 / 2),
        (None, 0.0, 1.0, 0.5, 0.0, 3 / 4),  # |W| = |l V| after the step: twice two are counted
        (None, 1.0, 0.0, 0.5, 0.0, 1 / 2),  # the sum alone
        # l λ = 1, W becomes 0: l, λ, their product, that with W, the sum; and 5 + 4 counted.
        ("together", 1.0, 0.0, 0.5, 2.0, 5 / 9),
        ("in turn", 1.0, 0.0, 0.5, 2.0, 4 / 9),
        # W − l λ W = l V and l λ ≪ 1. The factor 1 − l λ and its product, l and its product;
        # without the factor the difference or the sum in place of the first two.
        ("factor", 1.0, 2 - 2.0**-19, 0.5, 2.0**-19, 4 / 4),
        ("in turn", 1.0, 2 - 2.0**-19, 0.5, 2.0**-19, 3 / 4),
        ("together", 1.0, 2 - 2.0**-19, 0.5, 2.0**-19, 3 / 4),
        ("factor", 1.0, 0.0, 0.5, 2.0**-19, 3 / 4),  # the factor, its product, the sum
    ],
)
def test_one_move_needs_what_the_bound_counts(
    dtype, direction, order, w, v, learning_rate, weight_decay, needed
):
    """The roundings of W alone: V has come about without any."""
    w, v, zero = np.asarray([w], dtype), np.asarray([v], dtype), np.zeros(1, dtype)
    w_next = w - dtype_product(learning_rate * weight_decay, w) - dtype_product(learning_rate, v)
    bound = ErrorBound(w)
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    bound.step(zero, zero, v, w, w_next, t=1, **rates)
    inputs = exact.fractions(w), exact.fractions(v)
    computed = Adversary(dtype).weights(*inputs, *rates.values(), order, direction)
    assert needed * NEARLY <= share(computed, exact.weights(*inputs, *rates.values()), bound.w) <= 1


def dtype_product(number, array):
    return array.dtype.type(number) * array


@on_dtypes
@pytest.mark.parametrize("weight_decay", [0.0, 2.0**-10])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [2.0**10, -(2.0**10)])
def test_trajectories_need_their_share_of_the_bound(dtype, size, order, weight_decay):
    """All errors add up: of a sum of terms the share is at least the smallest of any term.

    V ← ½ V + ½ ζ with one ζ in all steps and V₀ = 0, so that |V| ≤ |ζ|: the two terms have
    6 and 11 roundings of 12, together at least (6 + 11) / 24. W moves one way, from 0: at
    least 2 of 4 for l V, 1 of 2 for |W|; with weight decay 1 of 4 for |W|, 3 of 9 for l λ W,
    and what W was off by shrinks by 1 − l λ where the bound grows by 1 + l λ.
    """
    learning_rate, steps, tensor = 1.0, 8, np.zeros(1, dtype)
    g, v, w = tensor + dtype_product(size, tensor + 1), tensor, tensor
    bound, adversary, direction = ErrorBound(w), Adversary(dtype), np.sign(size).astype(int)
    direction = int(direction)
    exact_v, exact_w = exact.fractions(v), exact.fractions(w)
    bad_v, bad_w = exact_v, exact_w
    for t in range(LATE, LATE + steps):
        v_before, w_before = v, w
        v = update(g, v, t, beta=0.5)
        w = w - dtype_product(learning_rate * weight_decay, w) - dtype_product(learning_rate, v)
        rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        bound.step(g, v_before, v, w_before, w, t=t, beta=0.5, **rates)
        exact_v = exact.velocity(exact.fractions(g), exact_v, t, 0.5)
        exact_w = exact.weights(exact_w, exact_v, *rates.values())
        bad_v = adversary.velocity(exact.fractions(g), bad_v, t, 0.5, direction)
        bad_w = adversary.weights(bad_w, bad_v, *rates.values(), order, -direction)
        carried = ((1 - weight_decay) / (1 + weight_decay)) ** steps
        assert 17 / 24 * NEARLY <= share(bad_v, exact_v, bound.v) <= 1
        least = 1 / 4 * carried if weight_decay else 1 / 2
        assert least * NEARLY <= share(bad_w, exact_w, bound.w) <= 1


DIRECTIONS = {"up": (1, 1), "down": (-1, -1), "turning": (1, -1)}


@on_dtypes
@given(
    data=st.data(),
    beta=st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]),
    rates=st.sampled_from([(0.1, 0.0), (0.1, 0.1), (0.5, 2.0), (1.0, 4.0)]),
    order=st.sampled_from(ORDERS),
    directions=st.sampled_from(sorted(DIRECTIONS)),
    flushes=st.booleans(),
)
def test_the_worst_honest_implementation_stays_inside(
    dtype, data, beta, rates, order, directions, flushes
):
    learning_rate, weight_decay = rates
    # A subnormal W that is flushed as it is read counts l λ times: of no consequence to l λ ≤ 1.
    adversary = Adversary(dtype, flushes=flushes and learning_rate * weight_decay <= 1)
    w, grads = data.draw(runs(dtype, steps=8, size=2))
    start = Gravity(learning_rate)
    start.init([w])
    exact_v, exact_w = exact.fractions(start.velocity[0]), exact.fractions(w)
    bad_v, bad_w = exact_v, exact_w
    run = numpy_run(w, grads, learning_rate, beta=beta, weight_decay=weight_decay)
    for t, (g, (_, _, bound)) in enumerate(zip(grads, run, strict=True), start=1):
        g, direction = exact.fractions(g), DIRECTIONS[directions][t % 2]
        exact_v = exact.velocity(g, exact_v, t, beta)
        exact_w = exact.weights(exact_w, exact_v, *rates)
        bad_v = adversary.velocity(g, bad_v, t, beta, direction)
        bad_w = adversary.weights(bad_w, bad_v, *rates, order, -direction)
        assert share(bad_v, exact_v, bound.v) <= 1
        assert share(bad_w, exact_w, bound.w) <= 1


@on_dtypes
@pytest.mark.parametrize("weight_decay", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("order", ORDERS)
def test_errors_made_before_are_carried_on(dtype, order, weight_decay):
    """The reference is off by the bound to one side, the other implementation to the other.

    So it is twice the bound away from the reference, has that much more to round, and what it
    is off by grows with W by |1 − l λ|. Between them lies the exact W = ±1, with V = −1.
    """
    learning_rate, zero = 1.0, np.zeros(1, dtype)
    bound, adversary = ErrorBound(zero), Adversary(dtype)
    bound.v, bound.w = np.ones(1), np.ones(1)
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    bound.step(zero, zero, zero, zero, zero, t=LATE, beta=0.5, **rates)
    side = -1 if learning_rate * weight_decay > 1 else 1  # W changes sign
    g, v, w = [Fraction(0)], Fraction(-1), Fraction(side)
    exact_v = exact.velocity(g, [v], LATE, 0.5)
    bad_v = adversary.velocity(g, [2 * v], LATE, 0.5, -1)
    exact_w = exact.weights([w], exact_v, *rates.values())
    bad_w = adversary.weights([2 * w], bad_v, *rates.values(), order, 1)
    assert share(bad_v, exact_v, bound.v) <= 1
    assert share(bad_w, exact_w, bound.w) <= 1
    # Nearly: of γ_12 · 2 β̂ only 6 · 2 β̂ are needed, and |1 − l λ| of 1 + l λ, and l e_V = β̂.
    assert share(bad_v, exact_v, bound.v) >= NEARLY
    needed = (abs(1 - weight_decay) + 0.5) / (1 + weight_decay + 0.5)
    assert share(bad_w, exact_w, bound.w) >= needed * NEARLY


@on_dtypes
def test_what_w_was_off_by_is_rounded_too(dtype):
    """As above, with V = 0 without any error, and no weight decay: the sum alone is rounded."""
    zero = np.zeros(1, dtype)
    bound = ErrorBound(zero)
    bound.w = np.ones(1)
    bound.step(zero, zero, zero, zero, zero, t=1, learning_rate=0.1)
    bad_w = Adversary(dtype).weights([Fraction(2)], [Fraction(0)], 0.1, 0.0, None, 1)
    assert NEARLY <= share(bad_w, [Fraction(1)], bound.w) <= 1


@on_dtypes
@pytest.mark.parametrize("sign", [-1, 1])
def test_overflow_of_the_square_stays_inside(dtype, sign):
    """Where s·s overflows for one implementation, ζ = 0 there; exactly it is G⁻³ = max^-¾.

    The bound has 3 max^-¾ for it, because it begins at √max / 2, where ζ may be 4^¾ = 2.83 max^-¾.
    """
    edge = 2.0 ** (np.finfo(dtype).maxexp // 4)  # edge⁴ is the first number beyond the range
    below = np.nextafter(np.asarray(edge, dtype), dtype_product(0, np.ones((), dtype)))
    # The second does not overflow, but with three roundings up it does.
    g, v = sign * np.asarray([edge, below], dtype), np.zeros(2, dtype)
    inputs = exact.fractions(g), exact.fractions(v), LATE, 0.0
    assert all((x * inputs[0][0]) ** 2 < Adversary(dtype).max for x in inputs[0][1:])
    computed = Adversary(dtype).velocity(*inputs, -sign)
    assert computed == [0, 0]
    bound = ErrorBound(v)
    bound.step(g, v, update(g, v, LATE, beta=0.0), v, v, t=LATE, learning_rate=0.1, beta=0.0)
    assert 1 / 3 * NEARLY <= share(computed, exact.velocity(*inputs), bound.v) <= 1


@on_dtypes
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_step_with_everything_flushed_stays_inside(dtype, sign):
    """β̂ V and (1 − β̂) ζ are just subnormal, and so is W: two lost in V, and one in W.

    More than two cannot be lost in V: the sum is subnormal only where a product was not.
    The bound has 8 for V, and 3 + |V| for W.
    """
    info, learning_rate = np.finfo(dtype), 2.0**-20
    w = sign * np.nextafter(info.smallest_normal, dtype_product(0, info.max))
    w = np.asarray([w], dtype)
    g = v = -2 * w  # β̂ = ½ at t = 0, and ζ = G
    bound, v_next = ErrorBound(w), update(g, v, 0)
    bound.step(g, v, v_next, w, w, t=0, learning_rate=learning_rate)
    inputs = exact.fractions(g), exact.fractions(v), 0, 0.9
    exact_v = exact.velocity(*inputs)
    exact_w = exact.weights(exact.fractions(w), exact_v, learning_rate)
    adversary = Adversary(dtype, flushes=True)
    bad_v = adversary.velocity(*inputs, 0)
    bad_w = adversary.weights(exact.fractions(w), bad_v, learning_rate, 0.0, None, 0)
    assert bad_v == bad_w == [0]
    assert 2 / 8 * NEARLY <= share(bad_v, exact_v, bound.v) <= 1
    assert 1 / 3 * NEARLY <= share(bad_w, exact_w, bound.w) <= 1


@pytest.mark.parametrize(
    ("w", "lr", "decay", "flushed"),
    [
        (1.158e-38, 1.0, 16.0, "w"),  # W is flushed as it is read, and enters with l λ
        (1.0, 1e-39, 1e38, "lr"),
        (1.0, 1e38, 1e-39, "decay"),
    ],
)
def test_what_is_flushed_in_the_weight_decay_is_covered(w, lr, decay, flushed):
    zero, weight = np.zeros(1, np.float32), np.asarray([w], np.float32)
    exact = float(weight[0]) * (1 - lr * decay)
    got = 0.0 if flushed == "w" else float(weight[0])  # nothing is left, or nothing decays
    bound = ErrorBound(weight)
    after = np.asarray([exact], np.float32)
    bound.step(zero, zero, zero, weight, after, t=1, learning_rate=lr, weight_decay=decay)
    assert abs(got - exact) <= bound.w[0]
