"""The error bound of the half types: computed in float32, and rounded once."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_core import ErrorBound, Gravity, coefficients, update

HALF = {"float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
on_half_types = pytest.mark.parametrize("name", HALF)
STEPS = 30


def normal(rng, size, dtype):
    return (rng.normal(size=size) * 10.0 ** rng.uniform(-2, 1)).astype(dtype)


def exact_run(name, seed, weight_decay, size=50):
    """Yield W₀, and for every step G, V, W before and after it in float64, t and the bound."""
    rng, dtype = np.random.default_rng(seed), HALF[name]
    w = normal(rng, size, dtype)
    bound = ErrorBound(w)
    exact_v, exact_w = np.zeros(size), w.astype(np.float64)
    for t in range(1, STEPS + 1):
        g = normal(rng, size, dtype)
        before_v, before_w = exact_v, exact_w
        exact_v = update(g.astype(np.float64), exact_v, t)
        exact_w = exact_w - 0.1 * weight_decay * exact_w - 0.1 * exact_v
        options = {"t": t, "learning_rate": 0.1, "weight_decay": weight_decay}
        bound.step(g, before_v, exact_v, before_w, exact_w, **options)
        yield w, g, exact_v, exact_w, bound


@on_half_types
@given(seed=st.integers(0, 2**32), weight_decay=st.sampled_from([0.0, 0.3]))
def test_the_reference_stays_inside(name, seed, weight_decay):
    optimizer = Gravity(velocity_std=0.0, weight_decay=weight_decay)
    weights = None
    for w, g, exact_v, exact_w, bound in exact_run(name, seed, weight_decay):
        weights = [w.copy()] if weights is None else weights
        optimizer.step(weights, [g])
        assert (np.abs(optimizer.velocity[0].astype(np.float64) - exact_v) <= bound.v).all()
        assert (np.abs(weights[0].astype(np.float64) - exact_w) <= bound.w).all()


@on_half_types
@given(seed=st.integers(0, 2**32), weight_decay=st.sampled_from([0.0, 0.3]))
def test_weights_may_be_computed_in_the_half_type(name, seed, weight_decay):
    """As optax does: every operation on W is rounded to the half type."""
    half, v, x = HALF[name].type, np.zeros(50, HALF[name]), None
    for t, (w, g, _, exact_w, bound) in enumerate(exact_run(name, seed, weight_decay), start=1):
        x = w if x is None else x
        v = update(g, v, t)
        shrunk = x - half(0.1) * (half(weight_decay) * x) if weight_decay else x
        x = (shrunk - half(0.1) * v).astype(HALF[name])
        assert (np.abs(x.astype(np.float64) - exact_w) <= bound.w).all()


@on_half_types
def test_one_rounding_takes_most_of_the_bound(name):
    """Between 1 and 2 a rounding to nearest is off by up to u, and the bound is u |V| and more."""
    g = np.linspace(1, 2, 4096, dtype=np.float32).astype(HALF[name])
    w, zero = np.zeros(g.shape, HALF[name]), np.zeros(g.shape)
    bound = ErrorBound(w)
    exact = update(g.astype(np.float64), zero, 1)
    bound.step(g, zero, exact, zero, -0.1 * exact, t=1, learning_rate=0.1)
    error = np.abs(update(g, w, 1).astype(np.float64) - exact)
    assert 0.9 < (error / bound.v).max() <= 1


@on_half_types
def test_a_computation_in_the_half_type_has_a_bound_of_its_own(name):
    rng, dtype = np.random.default_rng(0), HALF[name]
    g = rng.normal(size=4096).astype(dtype)
    w, zero = np.zeros(g.shape, dtype), np.zeros(g.shape)
    exact = update(g.astype(np.float64), zero, 1)
    once, every = ErrorBound(w), ErrorBound(w, computed=name)
    for bound in (once, every):
        bound.step(g, zero, exact, zero, -0.1 * exact, t=1, learning_rate=0.1)
    s = (g * np.max(np.abs(g))).astype(dtype)
    zeta = (g / (dtype.type(1) + (s * s).astype(dtype)).astype(dtype)).astype(dtype)
    v = (dtype.type(coefficients(1)[1]) * zeta).astype(dtype)
    error = np.abs(v.astype(np.float64) - exact)
    assert (error <= every.v).all()
    assert not (error <= once.v).all()


def one_step_of_errors(computed):
    """Return the bounds after one step with G = V = W = 0, β̂ = ½, η = 1, λ = ½ and e = 1."""
    zero = np.zeros(1, np.float16)
    bound = ErrorBound(zero, computed=computed)
    assert bound.v == bound.w == bound.scale == 0
    bound.v, bound.w = np.ones(1), np.ones(1)
    bound.step(zero, zero, zero, zero, zero, t=0, learning_rate=1.0, weight_decay=0.5)
    return bound.v.item(), bound.w.item()


def gamma(k, u):
    return k * u / (1 - k * u)


def moved(e_v, u, tiny):
    """Return e_W: what is carried on, the roundings of η λ W and of W, and what is flushed.

    An implementation may be twice the bound away, so |W| is 2 before the step. Then η λ W is 1,
    and W, η V and η λ W are together 2 + 2 e_V + 1.
    """
    flushed = (3 + 2 * e_v + 0.5 + (1 + 0.5) * 2) * tiny
    return 1.5 + e_v + gamma(5, u) * 1 + gamma(4, u) * (2 + 2 * e_v + 1) + flushed


def test_earlier_errors_in_float16_by_hand():
    u, tiny = 2.0**-11, 2.0**-14
    e_v = 0.5 + gamma(12, u) * (2 * 0.5) + 8 * tiny
    assert one_step_of_errors("float16") == pytest.approx((e_v, moved(e_v, u, tiny)), rel=1e-12)


def test_earlier_errors_in_float32_and_rounded_once_by_hand():
    u, tiny = 2.0**-11, 2.0**-126 + 2.0**-11 * 2.0**-14
    computed = 0.5 + gamma(12, 2.0**-24) * (2 * 0.5)
    e_v = (computed + tiny) / (1 - 2 * u)  # e_V = computed + u · 2 e_V + tiny, as V = 0
    assert one_step_of_errors(None) == pytest.approx((e_v, moved(e_v, u, tiny)), rel=1e-12)


@on_half_types
def test_arrays_of_float32_may_stand_for_a_half_type(name):
    """NumPy alone has no bfloat16."""
    g = np.linspace(1, 2, 64, dtype=np.float32).astype(HALF[name])
    bounds = [ErrorBound(np.zeros(64, HALF[name])), ErrorBound(np.zeros(64), stored=name)]
    for bound in bounds:
        zero, exact = np.zeros(64), update(g.astype(np.float64), np.zeros(64), 1)
        bound.step(g, zero, exact, zero, -0.1 * exact, t=1, learning_rate=0.1)
    assert bounds[0].v.tobytes() == bounds[1].v.tobytes()
    assert bounds[0].w.tobytes() == bounds[1].w.tobytes()
    assert bounds[0].unit == bounds[1].unit == 2.0**-24


@pytest.mark.parametrize("argument", ["stored", "computed"])
@pytest.mark.parametrize(
    "dtype", ["int8", "complex64", "float8_e4m3fn", np.dtype("int32")], ids=str
)
def test_other_dtypes_are_refused(argument, dtype):
    message = f"{argument} must be float16, bfloat16, float32 or float64, got .*{dtype}"
    with pytest.raises(TypeError, match=message):
        ErrorBound(np.zeros(1), **{argument: dtype})


@pytest.mark.parametrize(("stored", "computed"), [("float64", "float32"), ("float32", "bfloat16")])
def test_the_coarser_dtype_decides_the_roundings_of_w(stored, computed):
    """W may be computed in either dtype, and here that one is the coarser."""
    dtype = {"float32": np.dtype("float32"), **HALF}[computed]
    rng = np.random.default_rng(0)
    w = normal(rng, 1000, dtype).astype(stored)
    v = normal(rng, 1000, dtype).astype(np.float64)
    bound = ErrorBound(w, computed=computed)
    exact = w.astype(np.float64) - 0.1 * v
    zero = np.zeros(1000)
    bound.step(zero, v, v, w.astype(np.float64), exact, t=1, learning_rate=0.1)
    got = (w.astype(dtype) - dtype.type(0.1) * v.astype(dtype)).astype(np.float64)
    assert (np.abs(got - exact) <= bound.w).all()


@pytest.mark.parametrize("dtype", [">f8", ">f4"])
def test_the_byte_order_does_not_matter(dtype):
    assert ErrorBound(np.zeros(2, dtype)).unit == ErrorBound(np.zeros(2, dtype[1:])).unit


def test_weights_of_another_dtype_are_refused_by_name():
    with pytest.raises(TypeError, match=r"^w must be float16, bfloat16, float32 or float64, got"):
        ErrorBound(np.zeros(2, int))
    for name in ("numpy.float32", "x'float32'>"):
        with pytest.raises(TypeError, match=r"^stored must be"):
            ErrorBound(np.zeros(2), stored=name)
