"""gravity_jax: the leaves that it accepts, and the errors for other leaves."""

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

from gravity_jax import (  # noqa: E402
    gravity,
    scale_by_gravity,
)


@pytest.mark.filterwarnings("error")
def test_numpy_leaves_and_numbers():
    params = {"w": np.ones(3), "x": 0.5}
    optimizer = gravity()
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["w"].dtype == jnp.float32
    assert updates["x"].shape == ()


def test_missing_empty_and_scalar_leaves():
    params = {"none": None, "empty": jnp.ones((0, 3)), "scalar": jnp.ones(())}
    optimizer = gravity()
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["none"] is None
    assert updates["empty"].shape == (0, 3)
    assert updates["scalar"].shape == ()


@pytest.mark.parametrize("dtype", [jnp.int32, bool])
def test_integer_parameters_are_refused_by_name(dtype):
    with pytest.raises(TypeError, match=r"params\['a'\]\[1\] must be a floating or complex"):
        gravity().init({"a": [jnp.ones(2), jnp.ones(2, dtype)]})


NO_ARRAYS = {
    "masked": (optax.MaskedNode(), r"MaskedNode\(\)"),
    "list": ([1.0, 2.0, 3.0], r"\[1.0, 2.0, 3.0\]"),
    "string": ("float32", "'float32'"),
    "function": (np.sin, "<ufunc 'sin'>"),
    "float8": (np.ones(3, jnp.float8_e4m3fn), "dtype float8_e4m3fn"),
}


@pytest.mark.parametrize("leaf", ["string", "function", "float8"])
def test_init_names_leaves_that_are_not_arrays(leaf):
    bad, received = NO_ARRAYS[leaf]
    with pytest.raises(TypeError, match=rf"params\['w'\] must be a floating .*got {received}"):
        gravity().init({"w": bad})


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (
            jnp.ones(3, jnp.int32),
            TypeError,
            r"must be a floating or complex array .*got dtype int32",
        ),
        (np.zeros(3, jax.dtypes.float0), TypeError, r"must be a floating .*got dtype .*float0"),
        (None, ValueError, r"is missing: a parameter without a gradient needs zeros"),
        (jnp.ones(2), ValueError, r"must have the shape of its parameter, .*\(3,\).*got \(2,\)"),
        (jnp.ones(3, jnp.complex64), ValueError, r".* both complex: expected \(3,\) float32"),
        *[
            (leaf, TypeError, f"must be a floating or complex array .*got {received}")
            for leaf, received in NO_ARRAYS.values()
        ],
    ],
    ids=["integer", "float0", "missing", "shape", "complex", *NO_ARRAYS],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_bad_gradients_are_refused_by_name(gradient, error, message, transform):
    params = {"a": {"w": jnp.ones(3)}, "b": jnp.ones(2)}
    optimizer = gravity()
    state = optimizer.init(params)
    bad = {"a": {"w": gradient}, "b": jnp.ones(2)}
    with pytest.raises(error, match=r"updates\['a'\]\['w'\] " + message):
        transform(lambda: optimizer.update(bad, state))()


TOO_SMALL = "learning_rate must not be so small that alpha / learning_rate overflows float16"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda **k: gravity(1e-7, **k), TOO_SMALL + " .* got 1e-07"),
        (lambda **k: gravity(jnp.asarray(1e-7), **k), TOO_SMALL + " .* got 1e-07"),
        (lambda **k: gravity(optax.linear_schedule(1e-7, 0.1, 10), **k), TOO_SMALL),
        (lambda **k: gravity(velocity_std=2e4, **k), "^velocity_std must be .* got 20000.0"),
        (lambda **k: scale_by_gravity(velocity_std=2e4, **k), "^velocity_std must be .* 20000.0"),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_overflowing_v0_is_refused(make, message, transform):
    whole, half = jnp.ones(1000), jnp.ones(3, jnp.float16)
    for params, options in (
        ([whole, half], {}),
        ([whole], {"velocity_dtype": jnp.float16}),
    ):
        with pytest.raises(ValueError, match=message):
            transform(make(**options).init)(params)
    for params, options in (
        ([whole, half], {"velocity_dtype": jnp.float32}),
        ([whole, half.astype(jnp.bfloat16), half.astype(jnp.complex64)], {}),
    ):
        state = transform(make(**options).init)(params)
        assert all(jnp.isfinite(v).all() for v in jax.tree.leaves(state))


def test_a_traced_velocity_std_is_not_refused():
    state = jax.jit(lambda rate: gravity(rate).init(jnp.ones(3, jnp.float16)))(1e-12)
    assert jnp.isinf(state[0].velocity).any()


def test_a_gradient_tree_of_another_structure_is_refused():
    optimizer = gravity()
    state = optimizer.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="'b'"):
        optimizer.update({"a": jnp.ones(2)}, state)
