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
from tests.support.jax_helpers import assert_same, tree  # noqa: E402


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


class ArrayLike:
    def __init__(self, array):
        self.array = array

    def __jax_array__(self):
        return self.array


@pytest.mark.parametrize("wrap", [ArrayLike, jax.new_ref])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_leaves_that_stand_for_arrays(wrap, transform):
    params, optimizer = tree(0), gravity(seed=3)

    def two_updates(wrap):
        state = optimizer.init(jax.tree.map(wrap, params))
        for number in (1, 2):
            updates, state = optimizer.update(jax.tree.map(wrap, tree(number)), state)
        return updates, state

    expected = transform(lambda: two_updates(lambda x: x))()
    assert_same(transform(lambda: two_updates(wrap))(), expected)


LARGE = 2**24 + 1  # float32 cannot represent it
INTEGERS = {"n": jnp.asarray([0, -3, LARGE], jnp.int32), "on": jnp.asarray([True, False])}


def gradients_of_integers(kind):
    if kind == "none":
        return dict.fromkeys(INTEGERS)
    dtype = {"float0": jax.dtypes.float0, "float": np.float32}.get(kind)
    return {k: np.zeros(v.shape, dtype or v.dtype) for k, v in INTEGERS.items()}


@pytest.mark.parametrize("kind", ["float0", "float", "own", "none"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.5}, {"stacked": 2, "seed": 1}])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_integer_parameters_stay(kind, options, transform):
    w = jnp.asarray([[1.0, -2.0]])
    params = INTEGERS | {"a": w}
    optimizer, alone = gravity(**options), gravity(**options)
    state, expected = optimizer.init(params), alone.init({"a": w})
    assert all(state[0].velocity[name].dtype == x.dtype for name, x in params.items())
    for _ in range(2):  # the state of an update is accepted, too
        gradients = {"a": w} | gradients_of_integers(kind)
        step = transform(lambda p, s: optimizer.update(gradients, s, p))  # noqa: B023
        updates, state = step(params, state)
        (reference, expected) = transform(alone.update)({"a": w}, expected, {"a": w})
        assert_same(updates["a"], reference["a"])
        if kind != "none":
            assert_same(optax.apply_updates(params, updates) | {"a": w}, params)
        else:
            assert updates["n"] is updates["on"] is None


def test_gradients_with_allow_int_train_beside_integers():
    params = INTEGERS | {"w": jnp.asarray([1.0, 2.0])}
    optimizer = gravity(velocity_std=0.0)
    state = optimizer.init(params)
    loss_of = lambda p: jnp.sum(p["on"] * p["w"] ** 2)  # noqa: E731
    before = loss_of(params)
    for _ in range(20):
        updates, state = optimizer.update(jax.grad(loss_of, allow_int=True)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss_of(params) < before
    assert_same({k: params[k] for k in INTEGERS}, INTEGERS)


def test_a_gradient_that_does_not_fit_an_integer_is_refused():
    state = gravity().init(INTEGERS)
    for bad, error, message in (
        (
            jnp.ones(2),
            ValueError,
            r"updates\['n'\] must have the shape .* \(3,\) int32, got \(2,\)",
        ),
        ("text", TypeError, r"updates\['n'\] must be .*, got 'text'"),
    ):
        with pytest.raises(error, match=message):
            gravity().update(INTEGERS | {"n": bad}, state)


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
        (lambda **k: gravity(optax.constant_schedule(1e-7), **k), TOO_SMALL),
        (lambda **k: gravity(velocity_std=2e4, **k), "^velocity_std must be .* got 20000.0"),
        # Equal to alpha / learning_rate, but given.
        (lambda **k: gravity(5e-7, velocity_std=0.01 / 5e-7, **k), "^velocity_std must be "),
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


def test_an_axis_without_places_in_v0_is_refused():
    jax.eval_shape(gravity().init, jax.ShapeDtypeStruct((2**32,), jnp.float32))
    with pytest.raises(ValueError, match=r"at most 2\*\*32 elements, got shape \(4294967297,\)"):
        jax.eval_shape(gravity().init, jax.ShapeDtypeStruct((2**32 + 1,), jnp.float32))


def test_a_traced_velocity_std_is_not_refused():
    state = jax.jit(lambda rate: gravity(rate).init(jnp.ones(3, jnp.float16)))(1e-12)
    assert jnp.isinf(state[0].velocity).any()


def test_a_gradient_tree_of_another_structure_is_refused():
    optimizer = gravity()
    state = optimizer.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="'b'"):
        optimizer.update({"a": jnp.ones(2)}, state)
