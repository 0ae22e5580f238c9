"""The update as pure functions: equal on every backend, with the properties of the formulas."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gravity_core import (
    ErrorBound,
    coefficients,
    gradient_term,
    max_abs_grad,
    max_step_grad,
    trace,
    update,
)
from tests.support import exact
from tests.support.backends import BACKENDS, NUMPY, numpy_dtype
from tests.support.values import FEW, FULL, HALF, info, shapes, tensors

BETA = 0.9
on_backends = pytest.mark.parametrize("backend", BACKENDS, ids=str)
on_dtypes = pytest.mark.parametrize("dtype", FULL)

# Compiled backends compile for each shape, t and β, so there are only a few of each.
CASES = [
    ((), 1, BETA),
    ((0,), 1, BETA),
    ((3, 0), 1, BETA),
    ((1,), 0, 0.5),
    ((17,), 1, BETA),
    ((17,), 10**6, 1.0),
    ((4, 5), 8, 0.0),
    ((70_001,), 1, BETA),
]


def is_subnormal(x):
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).smallest_normal)


def bound_of(g, v, t, beta=BETA):
    """Return the certified bound on the error of one update, and its result in NumPy."""
    want = update(g, v, t, beta=beta)
    bound = ErrorBound(g)
    bound.step(g, v, want, 0 * g, 0 * g, t=t, learning_rate=0.0, beta=beta)
    return bound.v, want


def touched_by_flushing(g, v, t, beta):
    """Return where an input, the result or a relevant intermediate value is subnormal."""
    old, new = (g.dtype.type(c) for c in coefficients(t, beta))
    zeta = gradient_term(g)
    values = (g, v, zeta, old * v, new * zeta, update(g, v, t, beta=beta))
    return np.logical_or.reduce([is_subnormal(np.asarray(x)) for x in values])


def assert_same_bits(got, want, where=True):
    where = np.broadcast_to(where, want.shape)
    assert got[where].tobytes() == want[where].tobytes(), (got, want)


def assert_matches(backend, got, g, v, t, beta=BETA):
    """Assert that `got` has the bits of the NumPy update if exact, else twice its error bound."""
    bound, want = bound_of(g, v, t, beta)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    difference = np.abs(got.astype(np.float64) - want)
    assert (difference <= 2 * bound).all(), (difference, bound)
    if backend.exact:
        kept = ~touched_by_flushing(g, v, t, beta) if backend.flushes else True
        assert_same_bits(got, want, kept)


@on_backends
@on_dtypes
@pytest.mark.parametrize(("shape", "t", "beta"), CASES)
@given(data=st.data())
def test_update_equals_the_numpy_update(backend, dtype, shape, t, beta, data):
    backend.load()
    g, v = data.draw(tensors(shape, dtype)), data.draw(tensors(shape, dtype))
    assert_matches(backend, backend.call(update, g, v, t=t, beta=beta), g, v, t, beta)


@given(shape=shapes(), t=st.integers(0, 10**9), beta=st.floats(0, 1), data=st.data())
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.mode == "eager"], ids=str)
def test_update_for_any_shape_step_and_beta(backend, shape, t, beta, data):
    backend.load()
    g, v = data.draw(tensors(shape)), data.draw(tensors(shape))
    assert_matches(backend, backend.call(update, g, v, t=t, beta=beta), g, v, t, beta)


def update_by_counter(g, v, t, *, xp):
    return update(g, v, t, xp=xp)


@on_backends
@on_dtypes
@pytest.mark.parametrize("counter", ["int32", "float"])
@given(t=st.integers(0, 10**6), data=st.data())
def test_a_counter_on_the_device_stays_inside_the_bound(backend, dtype, counter, t, data):
    backend.load()
    g, v = data.draw(tensors((17,), dtype)), data.draw(tensors((17,), dtype))
    counter = np.asarray(t, dtype if counter == "float" else counter)
    got = backend.call(update_by_counter, g, v, counter)
    bound, want = bound_of(g, v, t)
    assert got.dtype == want.dtype
    assert (np.abs(got.astype(np.float64) - want) <= 2 * bound).all()


@on_backends
@pytest.mark.parametrize("dtype", HALF)
@given(data=st.data())
def test_half_types_are_computed_in_float32_and_rounded_once(backend, dtype, data):
    dtype = numpy_dtype(dtype)
    backend.load(dtype)
    g, v = data.draw(tensors((17,), dtype.name)), data.draw(tensors((17,), dtype.name))
    wide_g, wide_v = g.astype(np.float32), v.astype(np.float32)
    bound, wide = bound_of(wide_g, wide_v, 1)
    want = wide.astype(dtype)
    got = backend.call(update, g, v, t=1)
    assert got.dtype == dtype
    # Both are rounded to the half type, by half a unit in the last place each.
    unit = np.maximum(float(info(dtype).eps) * np.abs(wide), float(info(dtype).smallest_subnormal))
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    assert (difference <= 2 * bound + unit).all()
    if backend.exact:
        kept = ~touched_by_flushing(wide_g, wide_v, 1, BETA) if backend.flushes else True
        assert_same_bits(got, want, kept)


@on_backends
@pytest.mark.parametrize("dtype", HALF)
def test_half_types_do_not_overflow_internally(backend, dtype):
    dtype = numpy_dtype(dtype)
    backend.load(dtype)
    g = np.asarray([16.0, 1.0], dtype)  # (16 · 16)² is beyond float16
    got = backend.call(update, g, np.zeros_like(g), t=1)
    assert (got.astype(np.float32) > 0).all()


@on_backends
@pytest.mark.parametrize("types", [FULL, FULL[::-1], ("float16", "float32")], ids="-".join)
def test_mixed_dtypes_are_computed_in_the_wider_and_returned_in_vs(backend, types):
    backend.load(np.dtype(min(types)))
    rng = np.random.default_rng(0)
    g, v = (rng.standard_normal(17).astype(t) for t in types)
    wide = np.result_type(g, v)
    wide_bound, want = bound_of(g.astype(wide), v.astype(wide), 1)
    got = backend.call(update, g, v, t=1)
    assert got.dtype == v.dtype
    # if v is narrower, got has another rounding of half a unit in the last place
    last = np.abs(want) * float(info(v.dtype).eps) if v.dtype != wide else 0
    assert (np.abs(got.astype(np.float64) - want) <= 2 * wide_bound + last).all()
    if backend.exact:
        assert_same_bits(got, want.astype(v.dtype))


def assert_gradient_term_properties(backend, g):
    zeta = backend.call(gradient_term, g)
    assert (zeta.dtype, zeta.shape) == (g.dtype, g.shape)
    assert_same_bits(backend.call(gradient_term, np.asarray(-g)), np.asarray(-zeta))
    assert (np.abs(zeta) <= np.abs(g)).all()  # exactly, because the divisor is at least 1
    # ζ has five roundings; a sixth covers the second order.
    slack, tiny = exact.gamma(6, g.dtype), float(np.finfo(g.dtype).smallest_normal)
    max_abs = np.abs(g.astype(np.longdouble)).max(initial=0)
    if max_abs > 0:
        assert (np.abs(zeta) <= (1 + slack) / (2 * max_abs)).all()
    # ζ − g = −ζ s² with s = g max|G|, and |ζ| ≤ |g|
    away = np.abs(zeta.astype(np.longdouble) - g)
    assert (away <= np.abs(g) * ((g * max_abs) ** 2 + slack) + tiny).all()


@on_backends
@on_dtypes
@given(data=st.data())
def test_gradient_term_properties(backend, dtype, data):
    """|ζ| ≤ min(|g|, 1 / (2 max|G|)), ζ is odd, and ζ ≈ g for small g."""
    backend.load()
    assert_gradient_term_properties(backend, data.draw(tensors((17,), dtype)))


@on_backends
@on_dtypes
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (4, 5), (2, 3, 4), (70_001,)], ids=str)
@settings(max_examples=FEW)
@given(data=st.data())
def test_gradient_term_properties_in_every_shape(backend, dtype, shape, data):
    backend.load()
    assert_gradient_term_properties(backend, data.draw(tensors(shape, dtype)))


@on_backends
@on_dtypes
@pytest.mark.parametrize("shape", [(17,), (1, 17), (2, 3, 3), (70_001,)], ids=str)
@settings(max_examples=FEW)
@given(data=st.data())
def test_gradient_term_is_largest_at_m(backend, dtype, shape, data):
    backend.load()
    # m and max|G| are powers of two, so nothing is rounded at m.
    power = data.draw(st.integers(0, np.finfo(dtype).maxexp // 3))
    max_abs, m = np.asarray([2.0**power, 2.0**-power], dtype)
    others = data.draw(tensors((math.prod(shape) - 2,), dtype, limit=float(max_abs)))
    g = np.concatenate([np.asarray([m, max_abs], dtype), others])
    order = np.random.default_rng(power).permutation(g.size)
    g = g[order].reshape(shape)
    zeta = backend.call(gradient_term, g)
    assert (zeta[g == m] == m / 2).all()
    assert (np.abs(zeta) <= m / 2 * (1 + exact.gamma(6, dtype))).all()


@on_backends
@on_dtypes
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_single_element_of_one_is_at_m(backend, dtype, sign):
    backend.load()
    assert backend.call(gradient_term, np.asarray(sign, dtype)) == sign / 2


@on_backends
@on_dtypes
@pytest.mark.parametrize("shape", [(17,), (4, 5), (70_001,)], ids=str)
@settings(max_examples=FEW)
@given(data=st.data())
def test_update_does_not_depend_on_the_order_of_the_elements(backend, dtype, shape, data):
    backend.load()
    g, v = data.draw(tensors(shape, dtype)), data.draw(tensors(shape, dtype))
    straight = backend.call(update, g, v, t=1).ravel()
    ascending = np.argsort(np.abs(g), axis=None)
    for order in (ascending, ascending[::-1]):  # max|G| last and first
        mixed = backend.call(update, *(x.ravel()[order].reshape(shape) for x in (g, v)), t=1)
        assert_same_bits(mixed.ravel(), straight[order])


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.mode == "eager"], ids=str)
@on_dtypes
@given(data=st.data(), t=st.integers(0, 1000), beta=st.floats(0, 1))
def test_zeta_and_update_against_rational_arithmetic(backend, dtype, data, t, beta):
    assert_near_rational_arithmetic(backend, dtype, data, t, beta)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.mode != "eager"], ids=str)
@on_dtypes
@pytest.mark.parametrize(("t", "beta"), [(0, 0.5), (1, BETA), (1000, 1.0)])
@given(data=st.data())
def test_compiled_zeta_and_update_against_rational_arithmetic(backend, dtype, t, beta, data):
    assert_near_rational_arithmetic(backend, dtype, data, t, beta)


def assert_near_rational_arithmetic(backend, dtype, data, t, beta):
    backend.load()
    g, v = data.draw(tensors((5,), dtype)), data.draw(tensors((5,), dtype))
    exact_g, exact_v = exact.fractions(g), exact.fractions(v)
    v_next = backend.call(update, g, v, t=t, beta=beta)
    exact.assert_within(
        v_next, exact.velocity(exact_g, exact_v, t, beta), bound_of(g, v, t, beta)[0]
    )
    bound, _ = bound_of(g, np.zeros_like(g), 0)  # V = ζ / 2
    exact.assert_within(backend.call(gradient_term, g), exact.zeta(exact_g), 2 * bound)


def literal_gradient_term(grad, *, xp):
    """Return ζ by the paper's formula, which divides by max|G|."""
    m = 1.0 / xp.max(xp.abs(grad))
    return grad / (1.0 + (grad / m) ** 2)


@on_backends
@on_dtypes
@given(data=st.data())
def test_literal_form_agrees_with_the_product_form(backend, dtype, data):
    backend.load()
    g = data.draw(tensors((17,), dtype))
    limits = np.finfo(dtype)
    with np.errstate(all="ignore"):
        literal, m = backend.call(literal_gradient_term, g), max_step_grad(g)
    product = backend.call(gradient_term, g)
    assert np.isfinite(product).all()
    if m < limits.smallest_normal or not np.isfinite(literal).all():
        return  # m has lost some or all of its digits
    # The literal form has one rounding in m and one in G / m, both doubled by the square, and
    # one each in the square, the sum and the quotient. The product form has five. One more
    # covers the second order. Near overflow of the square, one form may give 0 and the other
    # at most 1 / (2 max|G|) with (G max|G|)² > max / 4.
    bound = exact.gamma(7 + 5 + 1, dtype) * np.abs(product) + 2 * limits.smallest_normal
    with np.errstate(over="ignore"):
        near_overflow = np.abs(g) / m > 0.5 * limits.max**0.5
    bound = bound + near_overflow * 3 * float(limits.max) ** -0.75
    assert (np.abs(literal - product) <= bound).all()


@on_backends
def test_product_form_is_finite_where_the_literal_form_is_not(backend):
    backend.load()
    g = np.asarray([3e38, 0.0, 1.0], np.float32)
    assert np.isfinite(backend.call(gradient_term, g)).all()
    if backend.mode == "eager":  # compilers rewrite the division by 1 / max|G|
        with np.errstate(over="ignore"):
            literal = backend.call(literal_gradient_term, g)
        assert np.isnan(literal).any() == backend.flushes  # 1 / 3e38 is subnormal


@on_backends
@on_dtypes
@given(data=st.data())
def test_max_step_grad(backend, dtype, data):
    backend.load()
    g = data.draw(tensors((17,), dtype))
    m, max_abs = backend.call(max_step_grad, g), np.abs(g).max()
    assert (m.shape, m.dtype) == ((), g.dtype)
    tiny = np.finfo(dtype).smallest_normal
    if max_abs == 0 or (backend.flushes and max_abs < tiny):
        assert m == np.inf
    elif backend.flushes and max_abs > 1 / tiny:
        assert m == 0
    else:
        with np.errstate(over="ignore"):
            assert m == 1 / max_abs


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_max_step_grad_of_a_subnormal_gradient_is_silently_infinite(dtype):
    g = np.full(3, np.finfo(dtype).smallest_subnormal)
    assert max_step_grad(g) == np.inf


def update_by_parts(g, v, *, xp):
    largest = max_abs_grad(g, xp=xp)
    return tuple(update(g[a:b], v[a:b], 1, max_abs=largest, xp=xp) for a, b in ((0, 5), (5, 17)))


@on_backends
@on_dtypes
@given(data=st.data())
def test_slices_of_a_tensor_share_its_maximum(backend, dtype, data):
    backend.load()
    g, v = data.draw(tensors((17,), dtype)), data.draw(tensors((17,), dtype))
    first, rest = backend.call(update_by_parts, g, v)
    assert_matches(backend, np.concatenate([first, rest]), g, v, 1)


def update_stacked(g, v, *, axes, xp):
    return update(g, v, 1, max_abs=max_abs_grad(g, axes=axes, xp=xp), xp=xp)


@on_backends
@on_dtypes
@pytest.mark.parametrize("leading", [0, 1, 2, 3])
@settings(max_examples=2 * FEW)
@given(data=st.data())
def test_a_stack_is_updated_like_separate_tensors(backend, dtype, leading, data):
    backend.load()
    shape = (2, 3, 4)
    g, v = data.draw(tensors(shape, dtype)), data.draw(tensors(shape, dtype))
    got = backend.call(update_stacked, g, v, axes=tuple(range(leading, 3)))
    assert got.shape == shape
    for layer in np.ndindex(shape[:leading]):
        apart = [np.asarray(x[layer]) for x in (got, g, v)]
        assert_matches(backend, *apart, 1)


@on_backends
@on_dtypes
@given(data=st.data())
def test_max_abs_grad(backend, dtype, data):
    backend.load()
    g = data.draw(tensors((17,), dtype))
    found, expected = backend.call(max_abs_grad, g), np.abs(g).max()
    flushed = backend.flushes and found == 0 and expected < np.finfo(dtype).smallest_normal
    assert found == expected or flushed


@on_backends
@pytest.mark.parametrize("signs", [(0.0, 0.0), (-0.0, -0.0), (-0.0, 0.0), (0.0, -0.0)], ids=str)
def test_max_step_grad_of_zeros_is_plus_infinity(backend, signs):
    backend.load()
    assert backend.call(max_step_grad, np.asarray(signs, np.float32)) == np.inf


@on_backends
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_gradients_poison_the_tensor(backend, value):
    backend.load()
    g = np.asarray([1.0, value, 2.0, 0.0], np.float32)
    with np.errstate(invalid="ignore"):
        zeta = backend.call(gradient_term, g)
    assert np.isnan(zeta[1])
    if np.isnan(value) and backend.drops_nan:  # a documented fact: the other elements stay finite
        assert_same_bits(zeta[[0, 2, 3]], backend.call(gradient_term, g[[0, 2, 3]]))
    elif np.isnan(value):
        assert np.isnan(zeta).all()
    else:
        np.testing.assert_array_equal(zeta, [0, np.nan, 0, np.nan])  # finite / inf, inf · 0


@on_backends
def test_trace_has_every_intermediate_value(backend):
    backend.load()
    rng = np.random.default_rng(0)
    g, v = rng.standard_normal((2, 17)).astype(np.float32)
    names = ("m", "zeta", "v")

    def parts(g, v, *, xp):
        step = trace(g, v, 3, xp=xp)
        assert (step.t, step.beta_hat) == (3, coefficients(3)[0])
        return tuple(getattr(step, name) for name in names)

    step = SimpleNamespace(**dict(zip(names, backend.call(parts, g, v), strict=True)))
    assert step.m == 1 / np.abs(g).max()
    assert_matches(backend, step.v, g, v, 3)
    slack = exact.gamma(2 * 6, np.float32) if not backend.exact else 0
    assert (np.abs(step.zeta - gradient_term(g)) <= slack * np.abs(g)).all()


@on_backends
def test_arguments_are_not_modified(backend):
    backend.load()
    g, v = np.asarray([1.0, -2.0], np.float32), np.asarray([3.0, 4.0], np.float32)
    arrays = backend.asarray(g), backend.asarray(v)
    backend.bare_call(update, *arrays, t=1)
    assert_same_bits(backend.to_numpy(arrays[0]), np.asarray([1.0, -2.0], np.float32))
    assert_same_bits(backend.to_numpy(arrays[1]), np.asarray([3.0, 4.0], np.float32))


@pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if not b.name.startswith("keras")], ids=str
)
def test_namespace_is_inferred(backend):
    backend.load()
    g, v = np.asarray([1.0, -2.0], np.float32), np.asarray([3.0, 4.0], np.float32)
    got = update(backend.asarray(g), backend.asarray(v), 1)
    assert_same_bits(backend.to_numpy(got), update(g, v, 1))


@pytest.mark.parametrize("compiled", [False, True], ids=["function", "xla"])
def test_unknown_dimensions_in_a_tensorflow_graph(compiled):
    keras = BACKENDS[-1]
    keras.load()
    import tensorflow as tf

    shape = tf.TensorSpec([None, 3], tf.float32)
    step = tf.function(
        lambda g, v: update(g, v, 1, xp=keras.xp),
        input_signature=[shape, shape],
        autograph=False,
        jit_compile=compiled,
    )
    for rows in (4, 1, 0):
        g, v = np.random.default_rng(0).standard_normal((2, rows, 3)).astype(np.float32)
        bound, want = bound_of(g, v, 1)
        got = step(g, v).numpy()
        assert got.shape == want.shape
        assert (np.abs(got.astype(np.float64) - want) <= 2 * bound).all()


MATRIX = np.ones((2, 2)).view(np.matrix)
BAD_ARGUMENTS = [
    (
        {"v": np.zeros(3)},
        ValueError,
        r"v must have the shape of grad, \(2,\), got \(3,\)",
    ),
    ({"v": np.zeros((2, 1))}, ValueError, r"v must .* \(2,\), got \(2, 1\)"),
    ({"grad": np.zeros(2, int)}, TypeError, "grad must be .* got dtype int64"),
    ({"grad": np.zeros(2, complex)}, TypeError, "grad must be .* got dtype complex128"),
    ({"v": np.zeros(2, bool)}, TypeError, "v must be .* got dtype bool"),
    ({"t": -1}, ValueError, "t must be an integer >= 0, got -1"),
    ({"t": np.int64(-3)}, ValueError, "t must be an integer >= 0, got -3"),
    ({"t": "1"}, TypeError, "t must be an integer >= 0, got '1'"),
    ({"t": True}, TypeError, "t must be an integer >= 0, got True"),
    ({"t": np.asarray(True)}, TypeError, r"t must be an integer >= 0, got array\(True\)"),
    ({"beta": 1.5}, ValueError, r"beta must be a number in \[0, 1\], got 1.5"),
    ({"beta": float("nan")}, ValueError, r"beta must be .* got nan"),
    ({"grad": [1.0, 2.0]}, TypeError, "namespace of grad list, v ndarray"),
    ({"grad": "ab"}, TypeError, "namespace of grad str"),
    ({"grad": MATRIX}, TypeError, "grad must be a numpy.ndarray .* got matrix"),
    ({"v": np.ma.masked_array([1.0, 2.0], [0, 1])}, TypeError, "v must be .* got MaskedArray"),
    ({"beta": np.ma.masked_array([0.5, 2.0], [0, 1])}, TypeError, "beta must .* MaskedArray"),
    ({"beta": np.full((3, 2), 0.5)}, ValueError, r"the new V, after .* \(2,\), got \(3, 2\)"),
    ({"t": MATRIX}, TypeError, "t must be a numpy.ndarray .* got matrix"),
    ({"t": np.ones((3, 1))}, ValueError, r"the new V, after .* of v, \(2,\), got \(3, 2\)"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    BAD_ARGUMENTS,
    ids=[f"{name}-{i}" for i, case in enumerate(BAD_ARGUMENTS) for name in case[0]],
)
def test_bad_arguments_are_named_with_their_value(arguments, error, message):
    call = {"grad": np.ones(2), "v": np.zeros(2), "t": 1, "beta": BETA} | arguments
    grad, v, t = (call.pop(name) for name in ("grad", "v", "t"))
    with pytest.raises(error, match=message):
        update(grad, v, t, **call)
    with pytest.raises(error, match=message):
        trace(grad, v, t, **call)


@pytest.mark.parametrize(
    ("max_abs", "error", "message"),
    [
        ("1", TypeError, "max_abs must be a real number, got '1'"),
        (1j, TypeError, "max_abs must be a real number, got 1j"),
        (np.ma.masked, TypeError, "max_abs must be a real number, got masked"),
        (MATRIX, TypeError, "max_abs must be a numpy.ndarray or numpy.memmap, got matrix"),
        (np.ones((3, 1)), ValueError, r"the new V, after t, beta and max_abs, must .* \(3, 2\)"),
    ],
)
def test_a_bad_maximum_is_named(max_abs, error, message):
    with pytest.raises(error, match=message):
        update(np.ones(2), np.ones(2), 1, max_abs=max_abs)


def test_max_step_grad_of_an_empty_tensor():
    with pytest.raises(ValueError, match=r"grad must not be empty, got shape \(0, 2\)"):
        max_step_grad(np.zeros((0, 2)))


def test_arrays_of_two_libraries_are_refused():
    BACKENDS[1].load()
    with pytest.raises(TypeError, match="namespace of grad Array, v ndarray"):
        update(BACKENDS[1].asarray(np.ones(2)), np.zeros(2), 1)


def test_update_of_algorithm_1_by_hand():
    """G = (1, −2), V = 0, t = 1, β = 0.9: max|G| = 2, ζ = (1/5, −2/17), 1 − β̂ = 1.1/3."""
    new = (Fraction(1, 10) + 1) / 3
    want = [new / 5, -new * 2 / 17]
    got = NUMPY.call(update, np.asarray([1.0, -2.0]), np.zeros(2), t=1)
    # 0.9 is rounded by at most half a unit, which adds γ₁ · 0.9 / 0.1 to the error of 0.1.
    slack = exact.gamma(ErrorBound.ROUNDINGS, np.float64) + exact.gamma(1, np.float64)
    exact.assert_within(got, want, [float(abs(x)) * slack for x in want])


def test_what_the_squares_lose_is_no_error():
    """Also where the caller lets NumPy raise errors: s·s underflows, or overflows."""
    grads = np.asarray([1e-30, 1.0], np.float32), np.asarray([1.0, 1e30], np.float32)
    with np.errstate(all="raise"):
        small, large = map(gradient_term, grads)
    assert small.tolist() == [float(grads[0][0]), 0.5]
    assert large.tolist() == [0.0, 0.0]
