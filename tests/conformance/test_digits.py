"""The digits task and the perceptron that is back-propagated by hand."""

import numpy as np

from gravity_conformance.parity.digits import digits_task, loss_and_gradients


def test_the_task_is_real_fixed_and_reproducible():
    a = digits_task("float32", seed=1, steps=None, options={})
    b = digits_task("float64", seed=2, steps=50, options={})
    assert len(a.x_train) + len(a.x_test) == 1797
    assert [len(e) for e in a.epochs] == [45] * 20
    assert [len(e) for e in b.epochs] == [45, 5]
    assert np.array_equal(a.x_test, b.x_test.astype(np.float32))  # the split has no seed
    assert np.array_equal(np.sort(a.epochs[0].ravel()), np.arange(1440))
    assert not np.array_equal(a.epochs[0], b.epochs[0])
    assert set(a.y_test.tolist()) == set(range(10))


def test_gradients_against_central_differences():
    task = digits_task("float64", seed=0, steps=1, options={})
    x, y = task.x_train[:8], task.y_train[:8]
    _, gradients = loss_and_gradients(task.weights, x, y)
    rng = np.random.default_rng(0)
    for w, g in zip(task.weights, gradients, strict=True):
        direction = rng.normal(size=w.shape)
        h = 1e-5
        w += h * direction
        above, _ = loss_and_gradients(task.weights, x, y)
        w -= 2 * h * direction
        below, _ = loss_and_gradients(task.weights, x, y)
        w += h * direction
        slope = float((g * direction).sum())
        # The difference has an error of O(h²), and the rounding of a loss of about 2 is divided
        # by h. The constant allows third derivatives of order 1e3 along the direction.
        assert abs((above - below) / (2 * h) - slope) < 1e3 * h**2 + 1e-15 / h * 10
