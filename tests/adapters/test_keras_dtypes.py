"""gravity_tf.Gravity with complex, double and sparse numbers, on the backend that Keras runs on."""

import warnings

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from keras import ops  # noqa: E402

import gravity_core  # noqa: E402
from gravity_core import ErrorBound  # noqa: E402
from gravity_tf import Gravity, export_state, import_state  # noqa: E402
from tests.support.keras_helpers import (  # noqa: E402
    arrays,
    assert_same,
    make_variables,
    to_numpy,
    velocities,
)

BACKEND = keras.backend.backend()


# Complex variables


def complexes(number, dtype="complex64", shapes=((3, 4), (), (0,), (70,))):
    parts = [arrays(number + n, np.empty(0, dtype).real.dtype, shapes) for n in (0, 100)]
    return [np.asarray(x + 1j * y, dtype) for x, y in zip(*parts, strict=True)]


@pytest.mark.parametrize("decay", [{}, {"weight_decay": 0.25}], ids=str)
@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_variables_take_the_steps_of_the_reference(dtype, decay):
    if (BACKEND, dtype) == ("jax", "complex128"):
        import jax

        if not jax.config.jax_enable_x64:
            pytest.skip("JAX has doubles with JAX_ENABLE_X64 only")
    weights = complexes(0, dtype)
    # Keras keeps the rate in float32, whatever the variable: one that every dtype holds.
    reference = gravity_core.Gravity(0.25, seed=3, **decay)
    optimizer, variables = Gravity(0.25, seed=3, **decay), make_variables(weights)
    optimizer.build(variables)
    reference.init(weights)
    assert_same(velocities(optimizer), reference.velocity)
    for number in range(1, 5):
        gradients = [np.asarray(g / 3, dtype) for g in complexes(number, dtype)]  # all digits
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients])
        reference.step(weights, gradients)
    # Four updates of numbers below 16.
    bound = 4 * (ErrorBound.ROUNDINGS + 4) * np.finfo(dtype).eps / 2 * 16
    for got, expected in zip(to_numpy(variables), weights, strict=True):
        assert got.dtype == expected.dtype
        assert np.allclose(got, expected, rtol=0, atol=bound)
    assert np.abs(weights[0] - complexes(0)[0]).max() > 1e-3


def test_complex_runs_are_handed_over():
    optimizer, variables = Gravity(seed=3), make_variables(complexes(0))
    optimizer.build(variables)
    step(optimizer, 1)
    state = export_state(optimizer)
    assert state.dtypes == ("complex64",) * 4
    other, moved = Gravity(), make_variables(to_numpy(variables))
    other.build(moved)
    import_state(other, state)
    step(optimizer, 2)
    step(other, 2)
    assert_same(moved, variables)


def step(optimizer, number):
    optimizer.apply([ops.convert_to_tensor(g) for g in complexes(number)])


def test_a_complex_variable_of_tensorflow_trains():
    if BACKEND != "tensorflow":
        pytest.skip("a tf.Variable needs TensorFlow as the backend")
    import tensorflow as tf

    w, target = tf.Variable(tf.zeros(3, tf.complex64)), tf.constant([0.1 + 0.2j, -0.1j, 0.05])
    optimizer = Gravity(0.1, velocity_std=0.01)
    optimizer.build([w])

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.abs(w - tf.cast(target, tf.complex64)) ** 2)
        optimizer.apply(tape.gradient(loss, [w]), [w])
        return loss

    first = train()
    for _ in range(100):
        loss = train()
    assert loss < 1e-3 * first


# float64 without x64 on JAX


def test_a_double_variable_is_exported_as_it_is_held():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        weights = arrays(0, "float64", [(3, 4)])
        variables = make_variables(weights)
        optimizer = Gravity()
        optimizer.build(variables)
        optimizer.apply([ops.convert_to_tensor(g) for g in arrays(1, "float64", [(3, 4)])])
        state = export_state(optimizer)
        held = str(to_numpy(variables)[0].dtype)
        assert state.dtypes == (held,)
        other = Gravity()
        other.build(make_variables(weights))
        import_state(other, state)
        assert_same(velocities(other), state.velocities)
    reference = gravity_core.Gravity()
    reference.init([w.astype(held) for w in weights])
    fresh = Gravity()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
        fresh.build(make_variables(weights))
    assert_same(velocities(fresh), reference.velocity)


# Sparse gradients

ROWS, SHAPE = [1, 4, 1], (6, 3)


def sparse(values):
    """Return a gradient whose row 1 comes twice, in the form of the backend."""
    if BACKEND == "jax":
        from jax.experimental.sparse import BCOO

        return BCOO((ops.convert_to_tensor(values), np.asarray(ROWS)[:, None]), shape=SHAPE)
    if BACKEND == "torch":
        import torch

        return torch.sparse_coo_tensor([ROWS], torch.tensor(values), SHAPE, check_invariants=True)
    import tensorflow as tf

    return tf.IndexedSlices(tf.constant(values), tf.constant(ROWS), tf.constant(SHAPE))


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2}, {"global_clipnorm": 1.0}, {"loss_scale_factor": 2.0}],
    ids=" ".join,
)
def test_sparse_gradients_are_the_dense_ones(options):
    def trained(convert):
        variables, optimizer = make_variables(arrays(0, shapes=[SHAPE, (2,)])), Gravity(**options)
        optimizer.build(variables)
        for number in range(1, 5):
            values, other = arrays(number, shapes=[(3, 3), (2,)])
            optimizer.apply([convert(values), ops.convert_to_tensor(other)])
        return [*variables, *velocities(optimizer)]

    def dense(values):
        whole = np.zeros(SHAPE, np.float32)
        np.add.at(whole, ROWS, values)
        return ops.convert_to_tensor(whole)

    assert_same(trained(sparse), trained(dense))


@pytest.mark.parametrize("jit", [False, True])
def test_a_sparse_gradient_in_stateless_apply(jit):
    if BACKEND != "jax":
        pytest.skip("Keras has stateless_apply for JAX")
    import jax

    def applied(gradient):
        (variable,) = make_variables(arrays(0, shapes=[SHAPE]))
        optimizer = Gravity()
        optimizer.build([variable])
        apply = jax.jit(optimizer.stateless_apply) if jit else optimizer.stateless_apply
        weights, state = apply([v.value for v in optimizer.variables], [gradient], [variable.value])
        return [*weights, *state]

    gradient = sparse(arrays(1, shapes=[(3, 3)])[0])
    assert_same(applied(gradient), applied(gradient.todense()))


def test_the_values_of_a_dict_are_gradients():
    variables, optimizer = make_variables(arrays(0)), Gravity()
    gradients = {n: ops.convert_to_tensor(g) for n, g in enumerate(arrays(1))}
    optimizer.apply(gradients.values(), variables)
    assert int(optimizer.iterations) == 1


@pytest.mark.parametrize("shape", [(4,), (130,), (6, 5)])
def test_float64_gradients_keep_their_digits(shape):
    if keras.backend.standardize_dtype(ops.convert_to_tensor(np.zeros(1)).dtype) != "float64":
        pytest.skip("JAX has doubles with JAX_ENABLE_X64 only")
    rng = np.random.default_rng(5)
    weights, options = [rng.standard_normal(shape)], {"velocity_std": 0.0}
    reference = gravity_core.Gravity(0.25, **options)  # a rate that every dtype holds
    optimizer, variables = Gravity(0.25, **options), make_variables(weights)
    large = rng.standard_normal(shape)
    large.flat[0] = 1e39
    bound = ErrorBound(weights[0], stored="float64")
    for t, grad in enumerate((rng.standard_normal(shape), large), start=1):
        optimizer.apply([ops.convert_to_tensor(grad)], variables)
        before = weights[0].copy(), (reference.velocity or [np.zeros(shape)])[0].copy()
        reference.step(weights, [grad])
        (v,) = reference.velocity
        bound.step(grad, before[1], v, before[0], weights[0], t=t, learning_rate=0.25, beta=0.9)
        assert (np.abs(to_numpy(variables)[0] - weights[0]) <= bound.w).all()
