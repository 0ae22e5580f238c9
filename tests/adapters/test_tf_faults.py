"""gravity_tf.Gravity in graphs of TensorFlow under faults: nothing is torn, nothing mixes."""

import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="gravity_tf needs tensorflow")
keras = pytest.importorskip("keras", reason="gravity_tf needs keras")

from gravity_tf import Gravity  # noqa: E402
from tests.support.keras_helpers import assert_same, make_variables, to_numpy  # noqa: E402


@pytest.fixture
def built():
    variables = make_variables([np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)])
    optimizer = Gravity(weight_decay=0.1)
    optimizer.build(variables)
    return optimizer, variables


@pytest.mark.parametrize("shape", [(), (8,), (2, 4)], ids=str)
def test_a_shape_that_only_the_running_graph_knows_moves_nothing(built, shape):
    optimizer, variables = built

    @tf.function(input_signature=[tf.TensorSpec(None)] * 2, autograph=False)
    def step(first, last):
        optimizer.apply([first, last])

    step(tf.ones((4, 2)), tf.ones((4, 2)))
    before = to_numpy([*variables, *optimizer.variables])
    for _ in range(5):  # the order of independent operations varies
        with pytest.raises(tf.errors.InvalidArgumentError):
            step(tf.ones((4, 2)), tf.ones(shape))
        assert_same([*variables, *optimizer.variables], before)


@pytest.mark.parametrize("bad", [4, -1])
def test_an_index_out_of_range_moves_nothing(built, bad):
    optimizer, variables = built

    def step(index):
        rows = tf.IndexedSlices(tf.ones((1, 2)), index)
        optimizer.apply([tf.ones((4, 2)), rows])

    traced = tf.function(step, input_signature=[tf.TensorSpec([1], tf.int32)], autograph=False)
    before = to_numpy([*variables, *optimizer.variables])
    for way in (step, traced):
        for _ in range(5):
            with pytest.raises(tf.errors.InvalidArgumentError):
                way(tf.constant([bad]))
            assert_same([*variables, *optimizer.variables], before)


GRADIENTS = [np.asarray, np.ndarray.tolist, keras.Variable, tf.sparse.from_dense, tf.Variable]


@pytest.mark.parametrize("kind", GRADIENTS, ids=lambda kind: kind.__name__)
def test_a_graph_takes_the_gradients_of_an_eager_step(built, kind):
    optimizer, variables = built
    everything = [*variables, *optimizer.variables]
    before, gradient = to_numpy(everything), kind(np.ones((4, 2), np.float32))
    optimizer.apply([gradient, gradient])
    after = to_numpy(everything)
    for variable, value in zip(everything, before, strict=True):
        variable.assign(value)
    tf.function(lambda: optimizer.apply([gradient, gradient]), autograph=False)()
    assert_same(everything, after)


@pytest.mark.parametrize("bad", ["x", {}, object, [1.0, "x"]], ids=str)
def test_a_graph_refuses_what_is_no_gradient(built, bad):
    optimizer, variables = built
    before = to_numpy([*variables, *optimizer.variables])
    with pytest.raises(TypeError, match=r"^the gradient of w1 must be a tensor of numbers, got"):
        tf.function(lambda: optimizer.apply([tf.ones((4, 2)), bad]), autograph=False)()
    assert_same([*variables, *optimizer.variables], before)


@pytest.mark.parametrize("wrap", [tf.function, lambda step, autograph: step])
def test_rows_under_a_mask_are_refused(built, wrap):
    optimizer, variables = built
    before = to_numpy([*variables, *optimizer.variables])
    masked = np.ma.masked_array(np.ones((1, 2), np.float32), True)
    rows = tf.IndexedSlices(masked, tf.constant([0]))
    with pytest.raises(TypeError, match=r"^the gradient of w1 must be a tensor of numbers, got"):
        wrap(lambda: optimizer.apply([tf.ones((4, 2)), rows]), autograph=False)()
    assert_same([*variables, *optimizer.variables], before)


def test_threads_may_trace_functions_of_their_own(built, monkeypatch):
    optimizer, errors = built[0], []
    together, update = threading.Barrier(2), optimizer.update_step

    def update_together(*arguments):
        together.wait()  # both threads are inside `apply`
        update(*arguments)

    monkeypatch.setattr(optimizer, "update_step", update_together)

    def work():
        step = tf.function(lambda: optimizer.apply([tf.ones((4, 2))] * 2), autograph=False)
        try:
            step()
        except Exception as error:  # a thread's exception is lost otherwise
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_autograph_converts_a_step_without_a_warning(caplog):
    optimizer = Gravity()
    variables = make_variables([np.ones(3, np.float32)])
    optimizer.build(variables)

    @tf.function
    def step():
        optimizer.apply([tf.ones(3)])

    step()
    assert [record.getMessage() for record in caplog.records] == []
