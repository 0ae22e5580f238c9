"""One number has one meaning in gravity_jax: kinds of numbers, x64 on and off, dtypes of V."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

import gravity_core  # noqa: E402
from gravity_core import ErrorBound, Gravity, initial_velocity  # noqa: E402
from gravity_jax import ScaleByGravityState, export_state, gravity, scale_by_gravity  # noqa: E402

W = np.asarray([0.25, -0.5, 1.0], np.float32)


def stepped(optimizer):
    """Return the weights after one step, from the gradient W."""
    w = jnp.asarray(W)
    updates, _ = optimizer.update(w, optimizer.init(w), w)
    return np.asarray(optax.apply_updates(w, updates))


def with_own(state, **values):
    """Return an optax state with other values in its `ScaleByGravityState`."""
    if isinstance(state, ScaleByGravityState):
        return state._replace(**values)
    return (state[0]._replace(**values), *state[1:])


KINDS = [np.float32, np.float64, np.longdouble, Decimal, Fraction, np.asarray]
RATES = ["learning_rate", "alpha", "beta", "weight_decay", "velocity_std"]


@pytest.mark.parametrize("name", RATES)
def test_a_number_of_any_kind_means_the_same(name):
    expected = stepped(gravity(**{name: 0.3}))
    for kind in KINDS:
        got = stepped(gravity(**{name: kind(0.3) if kind is np.asarray else kind("0.3")}))
        assert got.tobytes() == expected.tobytes(), kind
    if name in ("alpha", "velocity_std"):
        assert np.isfinite(stepped(gravity(**{name: 10**30}))).all()


BAD = [10**400, 10**5000, "1", True, 1j, float("nan"), float("inf"), [0.1], np.ones(1), object()]


@pytest.mark.parametrize("name", [*RATES, "seed", "first_step"])
def test_what_is_no_number_is_refused_by_name(name):
    for bad in BAD:
        with pytest.raises(ValueError, match=f"^{name} must be .* got"):
            gravity(**{name: bad})
        if name in ("beta", "velocity_std", "seed", "first_step"):
            with pytest.raises(ValueError, match=f"^{name} must be .* got"):
                scale_by_gravity(**{name: bad})
    with pytest.raises(ValueError, match=f"^{name} must be .* got"):
        gravity(**{name: jnp.ones(1)})


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize("late", [-0.1, np.nan, np.inf, 1j, "x", None, np.ones(2, np.float32)])
def test_each_value_of_a_schedule_is_checked(name, late):
    optimizer, w = gravity(**{name: lambda count: 0.1 if count < 1 else late}), jnp.asarray(W)
    _, state = optimizer.update(w, optimizer.init(w), w)
    with pytest.raises(ValueError, match=f"^{name} must be a finite number >= 0, got "):
        optimizer.update(w, state, w)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_the_shape_of_a_schedule_is_checked_under_jit(name):
    shapes: list = [()]
    optimizer = gravity(**{name: lambda count: 0.1 * jnp.ones(shapes[0])})
    state, shapes[0] = optimizer.init(W), 3
    with pytest.raises(ValueError, match=rf"^{name} must be a scalar, got shape \(3,\)"):
        jax.jit(optimizer.update)(W, state, W)


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
def test_v0_has_the_same_bits_under_x64(kind):
    with jax.enable_x64(True):
        for std in ({"velocity_std": kind(0.1)}, {"alpha": 0.02, "learning_rate": kind(0.2)}):
            sigma = 0.1 if "velocity_std" in std else 0.02 / 0.2
            got = gravity(**std).init(jnp.ones(9))[0].velocity
            want = initial_velocity((9,), np.float64, std=sigma)
            assert np.asarray(got).tobytes() == want.tobytes()


def test_a_numpy_rate_keeps_the_dtype_of_the_updates_under_x64():
    with jax.enable_x64(True):
        w, optimizer = jnp.asarray(W), gravity(np.float64(0.3), weight_decay=np.float64(0.3))
        updates, _ = optimizer.update(w, optimizer.init(w), w)
        assert updates.dtype == w.dtype == np.float32


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_arrays_made_under_x64_are_computed_in_single_precision_outside(transform, dtype):
    optimizer = gravity()
    with jax.enable_x64(True):
        wide = jnp.asarray(W, dtype)
        state = optimizer.init(wide)
    narrow = jnp.asarray(W, "complex64" if dtype.startswith("c") else "float32")
    expected, _ = optimizer.update(narrow, optimizer.init(narrow))
    # Two results, each with the roundings of V and of the product with the rate; |V0| is below
    # 5 sigma = 0.5, and |zeta| below 0.5. Real and imaginary parts are numbers of their own.
    bound = 0.1 * 2 * (ErrorBound.ROUNDINGS + 1) * 2.0**-24 * 0.5
    assert np.asarray(transform(optimizer.init)(wide)[0].velocity).dtype == narrow.dtype

    for arguments in (
        (wide, optimizer.init(narrow), narrow),
        (narrow, optimizer.init(narrow), wide),
        (narrow, state, narrow),
        (wide, state, wide),
    ):
        updates, new = transform(optimizer.update)(*arguments)
        got, wanted = (np.asarray(x).view(np.float32) for x in (updates, expected))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)
        assert updates.dtype == new[0].velocity.dtype == narrow.dtype


@pytest.mark.parametrize(
    "dtype",
    [
        *(jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn, jnp.int4, np.longdouble, "x"),
        *(np.float32(0.3), jnp.float32(0.3)),
    ],
)
def test_a_velocity_of_fewer_bits_is_refused(dtype):
    for make in (gravity, scale_by_gravity):
        with pytest.raises(ValueError, match=r"^velocity_dtype must be a floating dtype of 16 to"):
            make(velocity_dtype=dtype)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("count", [2.5, np.float32(2.5), jnp.uint8(255), np.uint32(3), True, None])
def test_a_count_that_is_no_int32_is_refused(transform, count):
    for make in (gravity, scale_by_gravity):
        optimizer = make()
        state = optimizer.init(W)
        state = with_own(state, count=count)
        with pytest.raises(TypeError, match=r"^count must be an int32 scalar, got"):
            transform(optimizer.update)(jnp.asarray(W), state, jnp.asarray(W))
        with pytest.raises(TypeError, match=r"^count must be an int32 scalar, got"):
            export_state(state)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_state_of_an_ensemble_needs_vmap(transform):
    weights, optimizer = jnp.stack([jnp.asarray(W)] * 3), gravity()
    state = jax.vmap(optimizer.init)(weights)
    with pytest.raises(ValueError, match=r"^count must be a scalar.*, got shape \(3,\) \(jax.vmap"):
        transform(optimizer.update)(weights, state, weights)
    with pytest.raises(ValueError, match=r"^count must be a scalar"):
        export_state(state)
    _, new = transform(jax.vmap(optimizer.update))(weights, state, weights)
    assert new[0].count.tolist() == [1, 1, 1]


@pytest.mark.parametrize("count", [-1, np.int32(-2), 2**31])
def test_a_known_count_out_of_its_range_is_refused(count):
    state = with_own(gravity().init(W), count=count)
    for use in (lambda s: gravity().update(jnp.asarray(W), s), export_state):
        with pytest.raises(ValueError, match=rf"^count must be an integer in .*, got {count}$"):
            use(state)


@pytest.mark.parametrize("x64", [False, True])
def test_a_python_int_is_a_count(x64):
    with jax.enable_x64(x64):
        optimizer = gravity()
        state = with_own(optimizer.init(W), count=2)
        assert export_state(state).count == 2
        for transform in (lambda f: f, jax.jit):
            _, new = transform(optimizer.update)(jnp.asarray(W), state)
            assert (int(new[0].count), new[0].count.dtype) == (3, np.int32)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_largest_count_does_not_overflow(transform):
    """For beta = 1 the update is V + (1 - beta_hat)(zeta - V), so that it shows the sign of t."""
    largest, optimizer = np.int32(2**31 - 1), scale_by_gravity(beta=1.0, velocity_std=0)
    state = optimizer.init(W)._replace(count=largest)
    updates, _ = transform(optimizer.update)(jnp.asarray(W), state)
    expected = gravity_core.update(np.asarray(W), np.zeros(3, np.float32), 2**31, beta=1.0)
    # V₀ is 0, so the roundings are relative to (1 - beta_hat) zeta.
    np.testing.assert_allclose(updates, expected, rtol=2 * ErrorBound.ROUNDINGS * 2.0**-24)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", ["int32", "bool", jnp.float8_e5m2])
def test_a_velocity_that_cannot_move_its_parameter_is_refused(transform, dtype):
    params = {"a": jnp.asarray(W), "b": jnp.asarray(W)}
    for make in (gravity, scale_by_gravity):
        optimizer = make()
        state = optimizer.init(params)
        state = with_own(state, velocity=params | {"b": jnp.ones(3, dtype)})
        with pytest.raises((TypeError, ValueError), match=r"^velocity\['b'\] must be .* got"):
            transform(optimizer.update)(params, state, params)


@pytest.mark.parametrize("v", [[0.5, 0.5, 0.5], "x", jax.ShapeDtypeStruct((3,), np.float32)])
def test_a_velocity_that_is_no_array_is_refused(v):
    state = with_own(gravity().init(W), velocity=v)
    with pytest.raises(TypeError, match=r"^velocity.* must be an array, got "):
        gravity().update(jnp.asarray(W), state)


def test_a_gradient_without_values_is_refused():
    shape = jax.ShapeDtypeStruct((3,), np.float32)
    with pytest.raises(TypeError, match=r"^updates must be a floating .* got ShapeDtypeStruct"):
        gravity().update(shape, gravity().init(W))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
def test_integers_that_optax_cannot_multiply_are_refused(dtype):
    params = {"a": jnp.asarray(W), "n": jnp.ones(3, dtype)}
    with pytest.raises(TypeError, match=rf"^params\['n'\] must be .* got dtype {dtype}"):
        gravity().init(params)


@pytest.mark.parametrize("axis_name", [["a"], np.ones(2)], ids=["list", "array"])
def test_an_axis_name_is_hashable(axis_name):
    for make in (gravity, scale_by_gravity):
        with pytest.raises(ValueError, match=r"^axis_name must be a name or a tuple of names, got"):
            make(axis_name=axis_name)


def test_sigma_equals_that_of_the_reference():
    for kind in (np.float32, np.float64, jnp.float32):
        velocity = gravity(kind(0.3)).init(jnp.ones(9))[0].velocity
        reference = Gravity(np.float32(0.3))
        reference.init([np.ones(9, np.float32)])
        assert np.asarray(velocity).tobytes() == reference.velocity[0].tobytes()
