"""Arrays in the other byte order, as files and networks give them: the same numbers everywhere."""

import pickle

import numpy as np
import pytest

from gravity_core import ErrorBound, Gravity, State, coefficients, initial_velocity, trace, update
from gravity_core import hyperparameters as hp

REAL = ("float16", "float32", "float64")


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


def arrays(dtype):
    rng = np.random.default_rng(3)
    return [np.asarray(rng.integers(-256, 257, 5) / 64, dtype) for _ in range(2)]


def assert_same(got, expected):
    assert got.dtype.name == expected.dtype.name
    assert got.astype(expected.dtype).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", REAL)
def test_the_update(dtype):
    g, v = arrays(dtype)
    expected, got = trace(g, v, 1), trace(swapped(g), swapped(v), 1)
    for a, b in zip(got[2:], expected[2:], strict=True):
        assert_same(a, b)
    assert update(swapped(g), swapped(v), 1).dtype == swapped(v).dtype
    assert coefficients(swapped(np.asarray(3.0)))[0] == coefficients(3)[0]


@pytest.mark.parametrize("dtype", [*REAL, "complex64", "complex128"])
def test_the_optimizer_and_its_state(dtype):
    (w, g), kind = arrays(dtype), np.dtype(dtype).newbyteorder()
    weights, others = w.copy(), swapped(w)
    here, there = Gravity(), Gravity()
    for _ in range(2):
        here.step([weights], [g])
        there.step([others], [swapped(g)])
    assert others.dtype == kind
    assert_same(others, weights)
    (v,) = there.velocity
    assert v.dtype == kind
    state = there.export_state()
    assert_same(state.velocities[0], here.velocity[0])
    assert_same(State(1, [v]).velocities[0], here.velocity[0])
    assert_same(initial_velocity((5,), kind, std=0.3), initial_velocity((5,), dtype, std=0.3))
    there.import_state(state, [others])
    there = pickle.loads(pickle.dumps(there))
    there.step([others], [swapped(g)])
    here.step([weights], [g])
    assert_same(others, weights)


def test_the_bound_and_numbers():
    g, v = arrays("float32")
    bounds = []
    for change in (lambda x: x, swapped):
        bound = ErrorBound(change(v))
        bound.step(*map(change, (g, v, v, v, v)), t=1, learning_rate=0.1)
        bounds.append(bound.w)
    assert np.array_equal(*bounds)
    assert hp.as_float(swapped(np.asarray(0.3, np.float32))) == 0.3
