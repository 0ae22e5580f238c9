"""gravity_jax: max|G| of single gradients, of batches of small ones, and of stacked layers."""

import contextlib
import math

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

import gravity_core  # noqa: E402
from gravity_core import ErrorBound, coefficients  # noqa: E402
from gravity_jax import (  # noqa: E402
    gravity,
    scale_by_gravity,
)
from gravity_jax._reduction import SMALL, TOGETHER, largest_magnitudes  # noqa: E402
from tests.support.jax_helpers import assert_same  # noqa: E402


def test_complex_gradients_share_one_maximum():
    gradient = jnp.asarray([1 + 2j, -3j], jnp.complex64)
    transform = scale_by_gravity(velocity_std=0.0)
    updates, _ = transform.update([gradient], transform.init([gradient]))
    pairs = np.asarray([[1, 2], [0, -3]], np.float32)
    expected = gravity_core.update(pairs, np.zeros_like(pairs), 1)
    assert np.array_equal(np.stack([updates[0].real, updates[0].imag], axis=-1), expected)


# Batches of small gradients


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(lambda f: f, id="eager", marks=pytest.mark.slow),
        pytest.param(jax.jit, id="jit"),
    ],
)
def test_every_gradient_has_its_own_maximum(transform, dtype):
    rng = np.random.default_rng(2)
    grads = []
    for size in (1, 2, 60, SMALL, SMALL + 1):
        for i, shape in enumerate([(size,), (1, size), (size, 1, 1)] * 3):
            g = rng.normal(size=(2, *shape)) * 10.0 ** rng.integers(-4, 4)
            mixed = "float32" if i == 4 else dtype
            grads.append(jnp.asarray(g[0] + 1j * g[1] if mixed == "complex64" else g[0], mixed))
    found = transform(lambda *g: largest_magnitudes(g, (0,) * len(g)))(*[g.real for g in grads])
    expected = [np.abs(np.asarray(g.real, np.float32)).max() for g in grads]
    assert [float(m) for m in found] == [float(m) for m in expected]
    # Each gradient uses its own maximum; a complex gradient uses that of both its parts.
    transform_ = scale_by_gravity(velocity_std=0.0)
    updates, _ = transform_.update(grads, transform_.init(grads))
    for g, update in zip(grads, updates, strict=True):
        pairs = np.stack([g.real, g.imag], axis=-1) if jnp.iscomplexobj(g) else np.asarray(g)
        velocity = gravity_core.update(pairs, np.zeros_like(pairs), 1)
        assert np.array_equal(velocity[..., 0] if jnp.iscomplexobj(g) else velocity, update.real)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_maxima_under_vmap(transform):
    """vmap may be over any axis, map only some gradients, apply to stacks, and nest."""
    rng = np.random.default_rng(5)
    a, b, c = (rng.normal(size=s).astype(np.float32) for s in ((5, 4), (3, 7), (2, 4, 6)))

    def maxima(a, b, c):
        return largest_magnitudes((a, b, c), (0, 0, 1))

    found = transform(jax.vmap(maxima, in_axes=(1, None, 1)))(a, b, c)
    expected = abs(a).max(axis=0), np.full(4, abs(b).max()), abs(c).max(axis=2).T[..., None]
    assert_same(found, list(expected))
    nested = jax.vmap(jax.vmap(lambda c: largest_magnitudes((c,), (0,))[0], in_axes=1))
    assert np.array_equal(transform(nested)(c), abs(c).max(axis=1))


def mesh_of_one():
    return jax.make_mesh((1,), ("one",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def by_the_context(monkeypatch, arrays):
    return jax.set_mesh(mesh_of_one()), arrays


def by_their_mesh(monkeypatch, arrays):
    sharding = NamedSharding(mesh_of_one(), PartitionSpec())
    return contextlib.nullcontext(), [jax.device_put(a, sharding) for a in arrays]


def by_the_number_of_devices(monkeypatch, arrays):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    return contextlib.nullcontext(), arrays


# The ways in which code under jit finds out that it is for one device.
KNOWN = [by_the_context, by_their_mesh, by_the_number_of_devices]


@pytest.mark.parametrize("known", KNOWN)
def test_small_gradients_of_one_size_share_reductions(known, monkeypatch):
    grads = [jnp.ones(shape) for shape in [(12,), (3, 4), (2, 2, 3)] * 4 + [(SMALL + 1,)] * 2]
    context, grads = known(monkeypatch, grads)
    with context:
        lowered = jax.jit(lambda *g: largest_magnitudes(g, (0,) * len(g))).lower(*grads)
    assert lowered.as_text().count("stablehlo.reduce(") == 12 / TOGETHER + 2


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2000,), (20_000,), (400, 50), (20, 10, 100)])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_one_non_finite_number_poisons_the_tensor(jit, shape, dtype, value, at):
    g = np.random.default_rng(1).normal(size=math.prod(shape)).astype(np.float32)
    g[at] = value
    transform_ = scale_by_gravity(velocity_std=0.0)
    g = jnp.asarray(g.reshape(shape), dtype)
    if jit:
        with jax.set_mesh(mesh_of_one()):
            updates, _ = jax.jit(transform_.update)(g, transform_.init(g))
    else:
        updates, _ = transform_.update(g, transform_.init(g))
    expected = gravity_core.update(np.asarray(g), np.zeros(shape, g.dtype), 1)
    assert np.array_equal(np.isnan(updates), np.isnan(expected))
    assert not np.any(updates, where=~np.isnan(updates))


def test_taking_a_derivative_does_not_change_the_value():
    """This includes a NaN, which the differentiable form would drop."""
    transform = scale_by_gravity(velocity_std=0.0)
    g = jnp.asarray(np.random.default_rng(1).normal(size=20_000), jnp.float32).at[7].set(jnp.nan)
    velocity = lambda g: transform.update(g, transform.init(g))[0]  # noqa: E731
    with jax.set_mesh(mesh_of_one()):
        for wrapped in (velocity, jax.jit(velocity)):
            assert np.isnan(jax.jvp(wrapped, (g,), (jnp.ones_like(g),))[0]).all()
            assert np.isnan(jax.vjp(wrapped, g)[0]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_derivatives_with_respect_to_the_gradient(dtype):
    """Learned optimizers and unrolled training need these derivatives."""
    g = jnp.asarray([0.5, -2.0, 1.0, 0.25, -0.75, 1.5], dtype)
    transform = scale_by_gravity(velocity_std=0.0, velocity_dtype=jnp.float32)

    def velocity(g):
        return transform.update(g, transform.init(g))[1].velocity

    for shape in ((6,), (2, 3), (1, 2, 3)):
        by_g = jax.jit(jax.jacrev(velocity))(g.reshape(shape)).reshape(6, 6)
        x, m = np.asarray(g, np.float64), 2.0  # max|G| is −g₁
        s = (m * x) ** 2
        zeta_by_m = -2 * m * x**3 / (1 + s) ** 2
        zeta_by_g = np.diag((1 - s) / (1 + s) ** 2)
        zeta_by_g[:, 1] -= zeta_by_m
        expected = coefficients(1, 0.9)[1] * zeta_by_g
        # The derivative is a sum of at most three terms below 1 with at most ten roundings each. It
        # is rounded to G's dtype, and so may be each term.
        u = 2.0**-24 if dtype == jnp.float32 else 2.0**-8
        assert np.abs(np.asarray(by_g, np.float64) - expected).max() <= (3 * 10 * 2.0**-24 + 6 * u)


# Stacked layers


def layers_apart(w, g, velocity, leading):
    """Return the updates of the layers, each run separately from its slice of V₀."""
    transform = scale_by_gravity()
    updates = np.zeros(w.shape, np.float32)
    for at in np.ndindex(w.shape[:leading]):
        state = transform.init(w[at])._replace(velocity=velocity[at])
        updates[at] = transform.update(g[at], state)[0]
    return updates


@pytest.mark.parametrize("leading", [0, 1, 2, 3])
def test_stacked_layers_equal_separate_layers(leading):
    rng = np.random.default_rng(6)
    w, g = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
    transform = scale_by_gravity(stacked=leading)
    state = transform.init(w)
    updates, _ = transform.update(g, state)
    assert np.array_equal(updates, layers_apart(w, g, state.velocity, leading))
    if leading:  # stacked layers differ from the whole array
        assert not np.array_equal(updates, layers_apart(w, g, state.velocity, 0))


@pytest.mark.parametrize(
    "stacked",
    [
        {"blocks": 1, "head": 0},
        lambda updates: {"blocks": {"w": 1, "b": 1}, "head": 0},
        lambda updates: jax.tree.map(lambda g: g.ndim - 1, updates) | {"head": 0},
    ],
    ids=["prefix", "callable", "callable of the updates"],
)
def test_stacked_as_a_prefix_and_as_a_callable(stacked):
    rng = np.random.default_rng(6)
    shapes = {"blocks": {"w": (3, 4), "b": (3, 2)}, "head": (4,)}
    is_shape = {"is_leaf": lambda x: isinstance(x, tuple)}
    g = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, **is_shape)
    transform = scale_by_gravity(stacked=stacked)
    state = transform.init(g)
    updates, _ = jax.jit(transform.update)(g, state)
    plain, _ = jax.jit(scale_by_gravity().update)(g, state)
    assert_same(updates["head"], plain["head"])
    for name in ("w", "b"):
        apart = layers_apart(
            g["blocks"][name], g["blocks"][name], state.velocity["blocks"][name], 1
        )
        # the bound's roundings on both sides, relative to |β̂V| + |(1 − β̂)ζ| <= max|V| + max|G|
        size = np.abs(state.velocity["blocks"][name]).max() + np.abs(g["blocks"][name]).max()
        units = 2 * ErrorBound.ROUNDINGS
        assert np.abs(updates["blocks"][name] - apart).max() <= units * 2.0**-24 * size


def test_stacked_works_through_the_alias_and_on_complex_numbers():
    g = jnp.asarray([[1 + 2j, 3], [0.5j, 0.25]], jnp.complex64)
    optimizer = gravity(1.0, velocity_std=0.0, stacked=1)
    updates, _ = optimizer.update(g, optimizer.init(g))
    for layer in range(2):
        one, _ = gravity(1.0, velocity_std=0.0).update(g[layer], optimizer.init(g[layer]))
        assert np.array_equal(updates[layer], one)


@pytest.mark.parametrize(
    ("stacked", "message"),
    [
        (2, r"stacked\['w'\] must be an integer in \[0, 1\].*got 2"),
        ({"w": -1}, r"stacked\['w'\] must be an integer in \[0, 1\].*got -1"),
        ({"w": 0.5}, r"stacked\['w'\] must be an integer.*got 0.5"),
        (lambda _: {"w": True}, r"stacked\['w'\] must be an integer.*got True"),
        ({"v": 0}, r"^stacked must be a pytree prefix of the updates: "),
    ],
)
def test_bad_stacked(stacked, message):
    params = {"w": jnp.ones(3)}
    transform = scale_by_gravity(stacked=stacked)
    with pytest.raises(ValueError, match=message):
        transform.init(params)
    with pytest.raises(ValueError, match=message):
        transform.update(params, scale_by_gravity().init(params))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_none_in_stacked_means_not_stacked(transform):
    params = {"blocks": jnp.ones((2, 3)), "head": {"w": jnp.ones(3), "b": None}}
    for none in ({"blocks": 1, "head": None}, {"blocks": 1, "head": {"w": None, "b": None}}):
        a, b = (scale_by_gravity(stacked=s) for s in (none, {"blocks": 1, "head": 0}))
        state = a.init(params)
        assert_same(transform(a.update)(params, state), transform(b.update)(params, state))


def test_a_callable_for_stacked_sees_arrays_at_init_too():
    params = {"blocks": np.ones((2, 3)), "number": 0.5}
    transform = scale_by_gravity(stacked=lambda updates: jax.tree.map(lambda g: g.ndim, updates))
    assert transform.init(params).velocity["number"].shape == ()
