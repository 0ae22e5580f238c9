"""Arrays of other libraries where a number or a list is expected, and of two libraries at once."""

import numpy as np
import pytest

from gravity_core import Gravity, State, beta_hat, update


def array(library, *args):
    if library == "torch":
        return pytest.importorskip("torch", reason="tensors of torch").tensor(*args)
    return pytest.importorskip("jax.numpy", reason="arrays of JAX").asarray(*args)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_a_saturated_counter_does_not_wrap_around(library):
    """optax's counters stop at 2³¹ − 1, to which no int32 can add 2."""
    t = array(library, 2**31 - 1)
    t = t.int() if library == "torch" else t
    assert float(beta_hat(t)) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_the_rows_of_a_tensor_are_no_velocities(library):
    with pytest.raises(TypeError, match=r"^velocities must be a list of arrays, one for each"):
        State(1, array(library, [[0.0, 1.0]]))


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("t", [True, [3]])
def test_neither_a_truth_value_nor_a_vector_is_a_step(library, t):
    with pytest.raises(ValueError, match=r"^t must be an integer >= 0, or one for each velocity"):
        State(array(library, t), [np.zeros(2)])


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64:UserWarning")
def test_v_keeps_its_dtype_or_is_refused():
    v, one = np.asarray([0.1, 0.2]), array("jax", 1.0)
    numpy = pytest.importorskip("jax.numpy", reason="arrays of JAX")
    for arguments in ({"t": 3, "beta": 0 * one}, {"t": 3 * one}, {"t": 3, "xp": numpy}):
        with pytest.raises(TypeError, match=r"^V must stay float64, but .* makes it float32"):
            update(v, v, **arguments)
    single = v.astype(np.float32)
    assert update(single, single, 3 * one).dtype == np.float32


def test_a_namespace_does_not_drop_a_mask():
    v = np.ma.masked_array([1.0, 5.0], [False, True])
    with pytest.raises(TypeError, match=r"^grad must be a numpy.ndarray or numpy.memmap, got Ma"):
        update(v, v, 3, xp=pytest.importorskip("jax.numpy", reason="arrays of JAX"))


def test_bytes_are_no_number():
    with pytest.raises(
        ValueError, match=r"^learning_rate must be a finite number >= 0, got bytearray"
    ):
        Gravity(bytearray(b"0.3"))


def test_another_run_counts_from_0():
    optimizer, w = Gravity(), [np.ones(3)]
    optimizer.count = 5
    optimizer.init(w)
    assert optimizer.count == 5  # no step has used the velocity before
    optimizer.step(w, w)
    first = optimizer.velocity[0].copy()
    optimizer.init(w)
    assert optimizer.count == 0
    assert (optimizer.velocity[0] != first).all()
