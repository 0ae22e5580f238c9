"""Arrays that share memory: how they are found, and what a step of the NumPy optimizer makes of it.

The expected numbers come from steps of arrays of their own, which hold the same numbers.
"""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_core import Gravity, State, reference
from gravity_core._memory import meets, overlaps_itself, spans
from tests.support.backends import numpy_dtype

BUFFER = np.arange(60.0)
ends = st.one_of(st.none(), st.integers(-61, 61))
views = st.builds(
    lambda *ends: BUFFER[slice(*ends)], ends, ends, st.integers(-7, 7).filter(bool)
) | st.builds(lambda a, b: BUFFER.reshape(6, 10)[a:, b:], st.integers(0, 6), st.integers(0, 10))


@given(views, st.lists(views, max_size=6), st.lists(views, max_size=2))
def test_arrays_meet_where_numpy_says_that_they_may(array, some, others):
    want = any(np.may_share_memory(array, other) for other in (*some, *others))
    assert meets(array, spans(some), spans(others)) == want


@given(views)
def test_slices_do_not_overlap_themselves(view):
    assert not overlaps_itself(view)
    assert not overlaps_itself(view.T)


@pytest.mark.parametrize("strides", [(0, 8), (8, 0), (8, 8), (16, 8), (-8, 8), (4, 64)], ids=str)
def test_elements_in_one_place_are_found(strides):
    array = np.lib.stride_tricks.as_strided(BUFFER[20:], (3, 4), strides)
    assert overlaps_itself(array)


@pytest.fixture(params=[8, reference.BLOCK], ids=["small blocks", "large blocks"])
def block(request):
    with mock.patch.object(reference, "BLOCK", request.param):
        yield


def stepped(params, grads_of, steps=3, **options):
    """Return the optimizer after some steps; `grads_of` makes each step's gradients."""
    optimizer = Gravity(**options)
    for _ in range(steps):
        optimizer.step(params, grads_of())
    return optimizer


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_gradient_may_be_a_parameter(block, dtype, decay):
    x, y = (f(np.linspace(-1, 1, 99)).astype(dtype) for f in (np.cos, np.sin))
    a, b = x.copy(), y.copy()
    stepped([x, y], lambda: [-y, x], weight_decay=decay)
    stepped([a, b], lambda: [-b, a.copy()], weight_decay=decay)
    assert x.tobytes() == a.tobytes()
    assert y.tobytes() == b.tobytes()


@pytest.mark.parametrize("view", [lambda w: w, lambda w: w[::-1], lambda w: np.roll(w, 1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.complex64])
def test_a_gradient_may_be_a_view_of_its_weights(block, dtype, view):
    w = np.linspace(-1, 1, 200).astype(dtype)
    other = w.copy()
    stepped([w], lambda: [view(w)])
    stepped([other], lambda: [view(other).copy()])
    assert w.tobytes() == other.tobytes()


def test_a_gradient_of_many_blocks_may_be_a_view_of_its_weights():
    w = np.linspace(-1, 1, 200_000)
    other = w.copy()
    stepped([w], lambda: [w[::-1]], steps=1)
    stepped([other], lambda: [other[::-1].copy()], steps=1)
    assert w.tobytes() == other.tobytes()


def test_a_gradient_may_be_a_velocity(block):
    w, other = np.ones(30), np.ones(30)
    optimizer, plain = Gravity(), Gravity()
    optimizer.init([w])
    plain.init([other])
    optimizer.step([w], [optimizer.velocity[0][::-1]])
    plain.step([other], [plain.velocity[0][::-1].copy()])
    assert w.tobytes() == other.tobytes()


def test_parameters_that_overlap_move_in_the_order_of_the_list(block):
    memory = np.linspace(-1, 1, 90)
    first, second = memory[:60], memory[30:]
    stepped([first, second], lambda: [memory[15:75], np.cos(second)], steps=2)
    apart, velocities = np.linspace(-1, 1, 90), stepped([np.ones(60)] * 2, list, steps=0)
    velocities.init([np.ones(60)] * 2)
    # Each tensor has an optimizer of its own, which has the velocity of its place in the list.
    alone = [Gravity(), Gravity()]
    for one, v in zip(alone, velocities.velocity, strict=True):
        one.velocity = [v]
    for _ in range(2):
        gradients = [apart[15:75].copy(), np.cos(apart[30:])]
        for one, w, g in zip(alone, (apart[:60], apart[30:]), gradients, strict=True):
            one.step([w], [g])
    assert memory.tobytes() == apart.tobytes()


def refused():
    ones = np.ones(6)
    yield "masked", [np.ma.masked_array(ones.copy(), ones)], TypeError, r"params\[0\] .* Masked"
    yield "matrix", [ones.reshape(1, 6).view(np.matrix)], TypeError, "got matrix"
    yield "array", np.ones((2, 6)), TypeError, "params must be a list of arrays, .* got ndarray"
    yield "dict", {"w": ones.copy()}, TypeError, "params must be a list of arrays, .* got dict"
    yield "none", None, TypeError, "params must be a list of arrays, .* got NoneType"
    yield "bytes", b"ab", TypeError, "params must be a list of arrays, .* got bytes"
    yield "no arrays", [None], TypeError, r"params\[0\] must be a numpy.ndarray .* got NoneType"
    yield "rows", [[1.0, 2.0]], TypeError, r"params\[0\] must be a numpy.ndarray .* got list"
    yield "integers", [np.ones(6, int)], TypeError, r"params\[0\] must be a real floating"
    windows = np.lib.stride_tricks.as_strided(ones.copy(), (2, 3), (8, 8))
    yield "overlap", [ones.copy(), windows], ValueError, r"params\[1\] must have each element in"


@pytest.mark.parametrize(("params", "error", "message"), [p[1:] for p in refused()])
def test_other_arrays_than_those_of_one_tensor_are_refused(params, error, message):
    optimizer = Gravity()
    before = np.array(list(params)[0]) if isinstance(params, list) else None  # noqa: RUF015
    with pytest.raises(error, match=message):
        optimizer.step(params, [np.ones_like(w) for w in params] if before is not None else [])
    assert optimizer.count == 0
    assert optimizer.velocity is None
    assert before is None or (np.asarray(params[0]) == before).all()
    if error is TypeError:  # the others can be read
        with pytest.raises(error, match=message):
            optimizer.init(params)
        with pytest.raises(error, match=message):
            optimizer.import_state(State(1, [np.ones(6)]), params)
        assert optimizer.count == 0
        assert optimizer.velocity is None
    w = np.ones(3)
    with pytest.raises(TypeError, match=r"grads must be a list of arrays, .* got ndarray"):
        optimizer.step([w], np.ones((1, 3)))
    with pytest.raises(TypeError, match=r"grads\[0\] must be a numpy.ndarray or numpy.memmap"):
        optimizer.step([w], [np.ma.masked_array(w, w)])


def test_init_takes_what_can_be_iterated_over_once():
    optimizer = Gravity()
    optimizer.init(np.ones(n) for n in (1, 2))
    assert [v.shape for v in optimizer.velocity] == [(1,), (2,)]


@pytest.mark.parametrize("velocity", [3, "ab", {0: 1.0}, np.ones((1, 3)), [None], [[1.0] * 3]])
def test_a_velocity_that_is_no_list_of_arrays_is_refused(velocity):
    optimizer, w = Gravity(), np.ones(3)
    optimizer.velocity = velocity
    with pytest.raises(TypeError, match=r"^velocity(\[0\])? must be a (list|numpy.ndarray)"):
        optimizer.step([w], [w])
    assert optimizer.count == 0
    assert (w == 1).all()


def test_a_velocity_is_no_parameter():
    optimizer, w = Gravity(), np.ones(3)
    optimizer.init([w])
    with pytest.raises(ValueError, match=r"params\[0\] must not share memory with a velocity"):
        optimizer.step([optimizer.velocity[0][::-1]], [w])
    assert optimizer.count == 0


def test_weights_may_be_a_file(tmp_path):
    weights = np.memmap(tmp_path / "w", np.float32, "w+", shape=(4,))
    plain = np.zeros(4, np.float32)
    stepped([weights], lambda: [np.ones(4, np.float32)])
    stepped([plain], lambda: [np.ones(4, np.float32)])
    assert (np.fromfile(tmp_path / "w", np.float32) == plain).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_too_little_memory_moves_nothing(dtype):
    w = [np.ones(3, dtype), np.ones(3, dtype)]
    optimizer = stepped(w, lambda: [x.copy() for x in w], steps=1)
    before = [x.tobytes() for x in [*w, *optimizer.velocity]]
    with (
        mock.patch.object(np, "empty", side_effect=MemoryError),
        pytest.raises(MemoryError),
    ):
        optimizer.step(w, [w[1], w[0]])
    assert [x.tobytes() for x in [*w, *optimizer.velocity]] == before
    assert optimizer.count == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v[1].setflags(write=False),
        lambda v: v.__setitem__(1, np.broadcast_to(np.zeros(1), (3,))),
        lambda v: v.__setitem__(1, np.lib.stride_tricks.as_strided(v[1], (3,), (0,))),
        lambda v: v.__setitem__(1, np.ma.masked_array(v[1])),
        lambda v: v.__setitem__(1, v[0]),
    ],
    ids=["read-only", "broadcast", "one place", "masked", "shared"],
)
def test_a_velocity_that_cannot_be_updated_moves_nothing(spoil):
    w = [np.ones(3), np.ones(3)]
    optimizer = stepped(w, lambda: [x.copy() for x in w], steps=1)
    spoil(optimizer.velocity)
    before = [x.tobytes() for x in [*w, *optimizer.velocity]]
    with pytest.raises((TypeError, ValueError), match="velocity"):
        optimizer.step(w, [np.ones(3), np.ones(3)])
    assert [x.tobytes() for x in [*w, *optimizer.velocity]] == before
    assert optimizer.count == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_step_that_has_begun_allocates_next_to_nothing(dtype):
    """So too little memory cannot end it in the middle."""
    dtype = numpy_dtype(dtype)
    w, g, v = (np.ones(200_000, dtype) for _ in range(3))
    scratch = reference._scratch(reference.BLOCK, w.dtype)
    tracemalloc.start()
    try:
        reference._step_blocked(w, g, v, 0.5, 0.5, 0.1, 0.01, scratch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (w != 1).all()
    assert peak < 10_000
