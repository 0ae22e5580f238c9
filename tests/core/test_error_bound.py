"""The error bound is certified: exact trajectories stay inside it, and mistakes do not."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gravity_core import ErrorBound, Gravity, coefficients, gradient_term, update
from gravity_core._arrays import float_info
from gravity_core.error_bound import absolute_error
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
    """Draw weights, and gradients whose scale changes from step to step."""
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
@settings(max_examples=2 * FEW)
@given(
    data=st.data(),
    beta=st.sampled_from([0.0, 0.5, 0.9, 0.999, 1.0]),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_exact_trajectories_stay_inside_the_bound(dtype, data, beta, weight_decay):
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
    """Return weights and gradients of ordinary size, far from the ends of the range."""
    rng = np.random.default_rng(1)
    grads = rng.standard_normal((STEPS, size)).astype(dtype)
    return rng.standard_normal(size).astype(dtype), list(grads)


@on_dtypes
def test_the_bound_is_not_vacuous(dtype):
    """e_V ≤ n γ_k S and e_W ≤ n (η e_V + the roundings of one step), with a small margin."""
    largest_s = largest_w = 0.0
    for v, w, bound in numpy_run(*ordinary_run(dtype)):
        largest_s = max(largest_s, bound.scale.max())
        largest_w = max(largest_w, np.abs(w).max(), np.abs(v).max())
    # One rounding more than the bound's k + 1 covers the second order.
    limit_v = STEPS * exact.gamma(ErrorBound.ROUNDINGS + 2, dtype) * largest_s
    # η, η V and two sums, and one more again
    limit_w = STEPS * (LEARNING_RATE * limit_v + exact.gamma(5, dtype) * largest_w)
    assert (bound.v > 0).all()
    assert (bound.v <= limit_v).all()
    assert (bound.w > 0).all()
    assert (bound.w <= limit_w).all()
    if dtype == "float32":
        assert limit_v < 1e-3 * largest_s
        assert limit_w < 1e-3 * largest_w


def step_by_counter(g, v, w, t, *, xp):
    """Make one step with t on the device, so that the code compiles once."""
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
    """Make one update; the arguments allow mistakes."""
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
def test_planted_mistakes_exceed_twice_the_bound(dtype, mistake):
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
        assert left_v[0]  # one update suffices


@on_dtypes
def test_a_float32_coefficient_exceeds_the_bound_of_float64_only(dtype):
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
def test_extreme_gradients_give_no_warning(dtype):
    """The bound is finite, and no operation gives a warning, which would be an error."""
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
def test_a_flushed_learning_rate_stays_inside_the_bound(dtype, tinies):
    """JAX and TF read a subnormal learning rate as zero, even if V is large."""
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


# The limits below neglect terms of at most 2⁻¹⁸ of the bound: 1 against s², 1 against t,
# products of several u, and the smallest normal number against u S. This covers their sum:
NEARLY = 1 - 2.0**-16
LATE = 10**6  # t; all four roundings of a coefficient count if its constant is not 0


@on_dtypes
@pytest.mark.parametrize("direction", [-1, 1])
@pytest.mark.parametrize(
    ("g", "v", "roundings"),
    [
        (2.0**10, 0.0, 11),  # ζ with s² ≫ 1: all
        (-(2.0**10), 0.0, 11),
        (0.0, 1.0, 6),  # β̂ V: without those of ζ
        (0.0, -1.0, 6),
        (2.0**-10, 0.0, 11 - 3),  # ζ with s² ≪ 1: those of s and s·s do not count
    ],
)
def test_one_update_uses_every_rounding_that_the_bound_counts(dtype, direction, g, v, roundings):
    """The bound is γ_(k + 1) S and the error is k u S, which is k / (k + 1) of it."""
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
        # W = η V: the roundings of η and of the product are two of two. The sum is 0.
        (None, 1.0, 2.0, 0.5, 0.0, 2 / 2),
        (None, 0.0, 1.0, 0.5, 0.0, 3 / 4),  # |W| = |η V| after the step: the bound counts twice two
        (None, 1.0, 0.0, 0.5, 0.0, 1 / 2),  # the sum alone
        # η λ = 1, and W becomes 0: η, λ, their product, that with W, the sum; 5 + 4 are counted.
        ("together", 1.0, 0.0, 0.5, 2.0, 5 / 9),
        ("in turn", 1.0, 0.0, 0.5, 2.0, 4 / 9),
        # W − η λ W = η V and η λ ≪ 1: the factor 1 − η λ and its product, η and its product.
        # Without the factor, the difference or the sum replaces the first two.
        ("factor", 1.0, 2 - 2.0**-19, 0.5, 2.0**-19, 4 / 4),
        ("in turn", 1.0, 2 - 2.0**-19, 0.5, 2.0**-19, 3 / 4),
        ("together", 1.0, 2 - 2.0**-19, 0.5, 2.0**-19, 3 / 4),
        ("factor", 1.0, 0.0, 0.5, 2.0**-19, 3 / 4),  # the factor, its product, the sum
    ],
)
def test_one_move_uses_its_share_of_the_bound(
    dtype, direction, order, w, v, learning_rate, weight_decay, needed
):
    """Only W is rounded; V is exact."""
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
def test_trajectories_use_their_share_of_the_bound(dtype, size, order, weight_decay):
    """All errors add up, so the share of a sum is at least the smallest share of any term.

    V ← ½ V + ½ ζ with the same ζ in all steps and V₀ = 0, so |V| ≤ |ζ|. The two terms have 6 and
    11 roundings of 12, together at least (6 + 11) / 24. W moves in one direction from 0, with at
    least 2 of 4 for η V and 1 of 2 for |W|. With weight decay it has 1 of 4 for |W| and 3 of 9 for
    η λ W; earlier errors of W shrink by 1 − η λ, and the bound grows by 1 + η λ.
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
def test_the_worst_correct_implementation_stays_inside_the_bound(
    dtype, data, beta, rates, order, directions, flushes
):
    learning_rate, weight_decay = rates
    # Flushing a subnormal W on reading counts η λ times, which is negligible for η λ ≤ 1.
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
def test_earlier_errors_are_carried_on(dtype, order, weight_decay):
    """The reference and the implementation are off by the bound in opposite directions.

    So the implementation is twice the bound away from the reference and has that much more to
    round. Its error grows with W by |1 − η λ|. Between them lies the exact W = ±1, with V = −1.
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
    # Not all of it: 6 · 2 β̂ of γ_12 · 2 β̂, and |1 − η λ| of 1 + η λ, with η e_V = β̂.
    assert share(bad_v, exact_v, bound.v) >= NEARLY
    needed = (abs(1 - weight_decay) + 0.5) / (1 + weight_decay + 0.5)
    assert share(bad_w, exact_w, bound.w) >= needed * NEARLY


@on_dtypes
def test_an_earlier_error_of_w_is_rounded_too(dtype):
    """V = 0 is exact and there is no weight decay, so only the sum is rounded."""
    zero = np.zeros(1, dtype)
    bound = ErrorBound(zero)
    bound.w = np.ones(1)
    bound.step(zero, zero, zero, zero, zero, t=1, learning_rate=0.1)
    bad_w = Adversary(dtype).weights([Fraction(2)], [Fraction(0)], 0.1, 0.0, None, 1)
    assert NEARLY <= share(bad_w, [Fraction(1)], bound.w) <= 1


@on_dtypes
@pytest.mark.parametrize("sign", [-1, 1])
def test_overflow_of_the_square_stays_inside_the_bound(dtype, sign):
    """If s·s overflows in an implementation, its ζ is 0; the exact value is G⁻³ = max^-¾.

    The bound allows 3 max^-¾, because it starts at √max / 2, where ζ may be 4^¾ = 2.83 max^-¾.
    """
    edge = 2.0 ** (np.finfo(dtype).maxexp // 4)  # edge⁴ is the first number beyond the range
    below = np.nextafter(np.asarray(edge, dtype), dtype_product(0, np.ones((), dtype)))
    # The second element overflows only with three roundings up.
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
def test_a_step_with_everything_flushed_stays_inside_the_bound(dtype, sign):
    """β̂ V, (1 − β̂) ζ and W are just subnormal, so V loses two numbers and W loses one.

    V cannot lose more than two: the sum is subnormal only if one of the products is not.
    The bound allows 8 for V, and 3 + |V| for W.
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
        (1.158e-38, 1.0, 16.0, "w"),  # W is flushed on reading, and enters with η λ
        (1.0, 1e-39, 1e38, "lr"),
        (1.0, 1e38, 1e-39, "decay"),
    ],
)
def test_the_bound_covers_flushing_in_the_weight_decay(w, lr, decay, flushed):
    zero, weight = np.zeros(1, np.float32), np.asarray([w], np.float32)
    exact = float(weight[0]) * (1 - lr * decay)
    got = 0.0 if flushed == "w" else float(weight[0])  # W is lost, or it does not decay
    bound = ErrorBound(weight)
    after = np.asarray([exact], np.float32)
    bound.step(zero, zero, zero, weight, after, t=1, learning_rate=lr, weight_decay=decay)
    assert abs(got - exact) <= bound.w[0]


def test_overflow_is_allowed_for_from_half_the_root_of_the_greatest_number_on():
    """s·s overflows for |s| > √max; half of that leaves room for rounding."""
    info, root = float_info("float32"), float(np.finfo(np.float32).max) ** 0.5
    # The only element is the maximum, so s is its square.
    below, above = (
        float(absolute_error(np.array([(k * root) ** 0.5]), info)[0]) for k in (0.4, 0.6)
    )
    assert below == 8 * float(np.finfo(np.float32).smallest_normal)
    assert above > below


FITTING = {name: np.ones(2, np.float32) for name in ("grad", "v", "v_next", "w", "w_next")}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be a finite number >= 0, got"),
        ({"weight_decay": np.nan}, ValueError, "weight_decay must be a finite number >= 0, got"),
        ({"beta": 1.5}, ValueError, r"beta must be a number in \[0, 1\], got 1.5"),
        ({"t": -1}, ValueError, "t must be"),
        ({"grad": np.ones((2, 2))}, ValueError, r"grad must have the shape of w, \(2,\), got"),
        ({"v_next": np.ones(3)}, ValueError, r"v_next must have the shape of w, \(2,\), got"),
        ({"w_next": np.ones(1)}, ValueError, r"w_next must have the shape of w, \(2,\), got"),
        ({"grad": np.ones(2, complex)}, TypeError, "grad must be float16, bfloat16, float32 or"),
        ({"v": [1.0, 1.0]}, TypeError, "v must be a NumPy array, got list"),
        ({"w": "ab"}, TypeError, "w must be a NumPy array, got str"),
    ],
)
def test_a_step_that_is_refused_leaves_the_bound(wrong, error, message):
    bound = ErrorBound(np.zeros(2, np.float32))
    given = FITTING | {"t": 1, "learning_rate": 0.1}
    bound.step(**given)
    before = [x.copy() for x in (bound.v, bound.w, bound.scale)]
    with pytest.raises(error, match=f"^{message}"):
        bound.step(**given | wrong)
    for x, old in zip((bound.v, bound.w, bound.scale), before, strict=True):
        assert np.array_equal(x, old)
