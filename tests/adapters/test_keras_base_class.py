"""The features of Keras's base class with gravity_tf.Gravity, on any backend."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from keras import ops  # noqa: E402

import gravity_core  # noqa: E402
import gravity_tf  # noqa: E402
from gravity_conformance.parity.digits import digits_task  # noqa: E402
from gravity_core import ErrorBound  # noqa: E402
from gravity_tf import Gravity  # noqa: E402
from tests.support.keras_helpers import (  # noqa: E402
    BOUNDED,
    applying,
    arrays,
    assert_same,
    expected_verdicts,
    fit,
    graded,
    keras_without,
    make_variables,
    perceptron,
    run,
    to_numpy,
    velocities,
)

BACKEND = keras.backend.backend()
AGREES = expected_verdicts()


@pytest.fixture(scope="module")
def task():
    return digits_task("float32", seed=0, steps=45, options={})


def test_weight_decay_and_its_exclusions():
    names = ["kernel", "scale", "empty", "conv_kernel", "bias"]
    plain = run(Gravity(), names=names)
    decayed = run(Gravity(weight_decay=0.5), names=names)
    optimizer = Gravity(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale"])
    mixed = run(optimizer, names=names)
    assert_same([mixed[0], mixed[3]], [decayed[0], decayed[3]])
    assert_same([mixed[1], mixed[4]], [plain[1], plain[4]])
    assert np.abs(to_numpy(decayed)[4] - to_numpy(plain)[4]).max() > 0.01


def test_weight_decay_is_decoupled():
    gradients = [arrays(n) for n in range(1, 5)]
    result = graded(Gravity(weight_decay=0.5), gradients, weight_decay=0.5)
    assert result.verdict in BOUNDED, result.first_divergence


def test_clipvalue():
    gradients = [arrays(n) for n in range(1, 4)]
    clipped = [[np.clip(g, -0.5, 0.5) for g in step] for step in gradients]
    result = graded(Gravity(clipvalue=0.5), gradients, clipped)
    assert result.verdict in AGREES, result.first_divergence


@pytest.mark.parametrize(("argument", "scale"), [("clipnorm", 0.5), ("global_clipnorm", 0.25)])
def test_clipping_by_norm(argument, scale):
    # One gradient has norm 4, and both have √(16 + 48) = 8: powers of two, which do not round.
    weights = [np.zeros(4, np.float32), np.zeros(3, np.float32)]
    gradients = [[np.full(4, 2, np.float32), np.full(3, 4, np.float32)]]
    effective = [[g * np.float32(scale) for g in gradients[0]]]
    if argument == "clipnorm":
        effective[0][1] = gradients[0][1] * np.float32(2 / np.sqrt(48))
    optimizer = Gravity(**{argument: 2.0})
    variables = make_variables(weights)
    optimizer.apply([ops.convert_to_tensor(g) for g in gradients[0]], variables)
    reference = gravity_core.Gravity()
    reference.step(weights, effective[0])
    # |V₀| and |ζ| are below 1 and η is 0.1. W = −η V adds two roundings to those of V, so W is off
    # by at most 0.1 (ROUNDINGS + 2) u on both sides. Keras computes a root (one ulp, 2 u), a
    # product and a quotient, and this test rounds twice. So G is off by 6 u, and ζ by at most
    # 3 times that: |1 − 4 G⁴/(1 + G⁴)| ≤ 3.
    bound = 0.1 * (2 * (ErrorBound.ROUNDINGS + 2) + 3 * 6) * 2.0**-24
    for got, w in zip(to_numpy(variables), weights, strict=True):
        assert np.allclose(got, w, rtol=0, atol=bound)
    assert np.abs(weights[0]).min() > 1e-3


def test_moving_averages():
    optimizer = Gravity(use_ema=True, ema_momentum=0.75)
    variables = make_variables(arrays(0))
    optimizer.build(variables)
    average = None
    for number in range(1, 5):
        optimizer.apply([ops.convert_to_tensor(g) for g in arrays(number)])
        weights = to_numpy(variables)
        average = weights if average is None else average
        average = [0.75 * a + 0.25 * w for a, w in zip(average, weights, strict=True)]
    optimizer.finalize_variable_values(variables)
    for got, expected in zip(to_numpy(variables), average, strict=True):
        # three roundings in each of four averages of numbers below 8
        assert np.allclose(got, expected, rtol=0, atol=2 * 3 * 4 * 8 * 2.0**-24)


def test_accumulated_gradients_count_one_step_per_update():
    fed = [arrays(n) for n in range(1, 9)]
    means = [[(a + b) / 2 for a, b in zip(*fed[n : n + 2], strict=True)] for n in (0, 2, 4, 6)]
    optimizer = Gravity(gradient_accumulation_steps=2)
    result = graded(optimizer, fed, means)
    assert result.verdict in AGREES, result.first_divergence
    assert int(optimizer.iterations) == 4


def test_loss_scale_factor():
    gradients = [arrays(n) for n in range(1, 4)]
    scaled = [[g * 1024 for g in step] for step in gradients]
    optimizer = Gravity(loss_scale_factor=1024.0)
    assert float(optimizer.scale_loss(ops.convert_to_tensor(2.0))) == 2048.0
    result = graded(optimizer, scaled, gradients)
    assert result.verdict in AGREES, result.first_divergence


def test_loss_scale_optimizer_unscales_and_skips():
    gradients = [arrays(n) for n in range(1, 4)]
    scaled = [[g * 2**15 for g in step] for step in gradients]
    optimizer = keras.optimizers.LossScaleOptimizer(Gravity(), initial_scale=2.0**15)
    result = graded(optimizer, scaled, gradients)
    assert result.verdict in AGREES, result.first_divergence

    variables = make_variables(arrays(0))
    optimizer = keras.optimizers.LossScaleOptimizer(Gravity(), initial_scale=2.0**15)
    apply = applying(optimizer, variables)
    before = to_numpy([*variables, *velocities(optimizer.inner_optimizer)])
    bad = scaled[0]
    bad[0][0, 0] = np.inf
    apply(bad)
    assert_same([*variables, *velocities(optimizer.inner_optimizer)], before)
    assert int(optimizer.inner_optimizer.iterations) == 0
    assert float(ops.convert_to_numpy(optimizer.dynamic_scale)) == 2.0**14


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(policy, task):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = perceptron(Gravity())
    finally:
        keras.config.set_dtype_policy(before)
    fit(model, task, 6)
    assert model.evaluate(task.x_test, task.y_test, verbose=0)[1] > 0.85
    wrapped = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert wrapped == (policy == "mixed_float16")
    inner = model.optimizer.inner_optimizer if wrapped else model.optimizer
    assert {keras.backend.standardize_dtype(v.dtype) for v in velocities(inner)} == {"float32"}


def test_stateless_apply():
    if BACKEND != "jax":
        pytest.skip("Keras has stateless_apply for JAX")
    import jax

    expected = run(Gravity())
    optimizer, variables = Gravity(), make_variables(arrays(0))
    optimizer.build(variables)
    state, weights = ([v.value for v in vs] for vs in (optimizer.variables, variables))
    for transform in (lambda f: f, jax.jit):
        apply = transform(optimizer.stateless_apply)
        s, w = state, weights
        for number in range(1, 4):
            w, s = apply(s, [ops.convert_to_tensor(g) for g in arrays(number)], w)
        bound = 2 * 3 * ErrorBound.ROUNDINGS * 2.0**-24 * 8  # three updates on both sides, |W| < 8
        for a, b in zip(to_numpy(w), to_numpy(expected), strict=True):
            assert np.allclose(a, b, rtol=0, atol=bound)
        assert int(s[0]) == 3
    assert_same(variables, arrays(0))  # nothing has changed in place


# Private names of Keras


def test_private_names_do_not_clash_with_keras():
    """Any release of Keras may remove a private name; the only one in use has a guard."""
    optimizer = keras.optimizers.Optimizer(0.1, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build(make_variables(arrays(0)))
    used, own = set(), set()
    for file in Path(gravity_tf.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                (own if isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                own.add(node.name)
    private = {name for name in used | own if re.match(r"_(?!_)", name)}
    assert private <= own
    assert "_velocities" in private
    assert private & set(dir(optimizer)) <= {"_get_variable_index"}


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=str)
def test_variables_are_found_without_keras_private_method(options, monkeypatch):
    def trained():
        variables, optimizer = make_variables(arrays(0)), Gravity(**options)
        optimizer.build(variables)
        for number in range(1, 5):
            gradients = [ops.convert_to_tensor(g) for g in arrays(number)]
            optimizer.apply(gradients[::-1], variables[::-1])
        return [*variables, *velocities(optimizer)]

    expected = trained()
    keras_without("_get_variable_index", monkeypatch.delattr)
    assert_same(trained(), expected)
