"""The error bound is certified: exact trajectories stay inside it, planted mistakes do not."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gravity_core import ErrorBound, Gravity, coefficients, gradient_term, update
from tests.backends import BACKENDS
from tests.core import exact
from tests.core.values import FEW, FULL, specials, tensors

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


def numpy_run(w, grads, **arguments):
    """Yield (V, W, bound) after each step of the reference, with the bound advanced."""
    optimizer = Gravity(LEARNING_RATE, **arguments)
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
            learning_rate=LEARNING_RATE,
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
