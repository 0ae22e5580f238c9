"""The NumPy optimizer: the pure functions in place, block by block, all or nothing."""

import copy
import pickle
import re
import warnings
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gravity_core import Gravity, beta_hat, initial_velocity, reference, trace, update
from gravity_core import hyperparameters as hp
from tests.support.backends import numpy_dtype
from tests.support.values import FULL, HALF, tensors

BLOCK = 8  # in place of 65 536, so that small arrays have many blocks
LAYOUTS = {
    "contiguous": lambda a: a.copy(),
    "fortran": lambda a: a.copy(order="F"),
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a.copy(),
    "reversed": lambda a: a[::-1].copy()[::-1] if a.ndim else a.copy(),
    "in a row": lambda a: np.stack([a, a], axis=-1)[..., 0],
}
shapes = st.one_of(
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.sampled_from([(BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (3 * BLOCK + 2,), (2, BLOCK + 1)]),
)


@st.composite
def parameters(draw):
    """Draw lists of (weights, two gradients) in all dtypes and memory layouts."""
    params = []
    for _ in range(draw(st.integers(1, 3))):
        shape, dtype = draw(shapes), draw(st.sampled_from((*FULL, *HALF)))
        layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
        w, *grads = (draw(tensors(shape, dtype, limit=1e3)) for _ in range(3))
        params.append((layout(w), [layout(g) for g in grads]))
    return params


def pure_step(w, g, v, t, learning_rate, weight_decay, beta=0.9):
    """Return W and V after one step of `gravity_core.update`; half types use float32."""
    wide = np.promote_types(w.dtype, np.float32) if w.dtype.itemsize >= 4 else np.float32
    v = update(g, v, t, beta=beta)
    w_wide = w.astype(wide)
    if weight_decay:
        w_wide = w_wide - learning_rate * weight_decay * w_wide
    return (w_wide - learning_rate * np.asarray(v).astype(wide)).astype(w.dtype), v


def assert_same(got, want):
    want = np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.tobytes() == want.tobytes()


@given(
    params=parameters(),
    weight_decay=st.sampled_from([0.0, 0.01]),
    beta=st.floats(0, 1),
    first_step=st.integers(0, 1),
)
def test_steps_in_place_have_the_bits_of_the_pure_functions(params, weight_decay, beta, first_step):
    rates = (0.1, 0.03)  # assigned between the steps
    optimizer = Gravity(rates[0], beta=beta, weight_decay=weight_decay, first_step=first_step)
    ws = [w for w, _ in params]
    want_w = [w.copy() for w in ws]
    want_v = [initial_velocity(w.shape, w.dtype, std=0.1, index=i) for i, w in enumerate(ws)]
    optimizer.velocity_std = 0.1  # 0.01 / 0.1 is a rounding away from it
    with mock.patch.object(reference, "BLOCK", BLOCK):
        for n, rate in enumerate(rates):
            grads = [gs[n] for _, gs in params]
            before = [g.copy() for g in grads]
            optimizer.learning_rate = rate
            optimizer.step(ws, grads)
            for i, g in enumerate(before):
                stepped = pure_step(
                    want_w[i], g, want_v[i], n + first_step, rate, weight_decay, beta
                )
                want_w[i], want_v[i] = stepped
                assert_same(grads[i], g)  # gradients are not modified
    for i, w in enumerate(ws):
        assert_same(w, want_w[i])
        assert_same(optimizer.velocity[i], want_v[i])
    assert optimizer.count == 2


SIZES = [reference.BLOCK - 1, reference.BLOCK, reference.BLOCK + 1, 2 * reference.BLOCK + 3]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_of_large_arrays(size, layout):
    rng = np.random.default_rng(size)
    w, g = (LAYOUTS[layout](rng.standard_normal(size)) for _ in range(2))
    v = initial_velocity(w.shape, w.dtype, std=0.1)
    want, _ = pure_step(w.copy(), g, v, 1, 0.1, 0.0)
    Gravity(velocity_std=0.1).step([w], [g])
    assert_same(w, want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK, 3 * BLOCK + 1])
def test_non_finite_gradients_poison_the_tensor_and_no_other(value, place):
    ws = [np.ones(3 * BLOCK + 2), np.ones(3)]
    grads = [np.ones_like(w) for w in ws]
    grads[0][place] = value
    v = initial_velocity(ws[0].shape, float, std=0.1)
    with np.errstate(invalid="ignore"), mock.patch.object(reference, "BLOCK", BLOCK):
        want, _ = pure_step(ws[0], grads[0], v, 1, 0.1, 0.0)
        Gravity(velocity_std=0.1).step(ws, grads)
    np.testing.assert_array_equal(ws[0], want)
    assert np.isnan(ws[0][place])
    assert np.isfinite(ws[1]).all()


@pytest.mark.parametrize(("dtype", "real"), [("complex64", "float32"), ("complex128", "float64")])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (5,), (0, 2), (3, 2)], ids=str)
def test_complex_weights_are_pairs_of_reals(dtype, real, layout, shape):
    rng = np.random.default_rng(0)
    pairs = [rng.standard_normal((*shape, 2)).astype(real) for _ in range(2)]
    w, g = (LAYOUTS[layout](np.asarray(p.view(dtype)[..., 0])) for p in pairs)
    for _ in range(2):
        optimizer, of_pairs = Gravity(weight_decay=0.1), Gravity(weight_decay=0.1)
        optimizer.step([w], [g])
        of_pairs.step([pairs[0]], [pairs[1]])
        assert_same(w, pairs[0].view(dtype)[..., 0])


def bad_lists():
    good = np.ones(3)
    locked = np.ones(3)
    locked.flags.writeable = False
    kind = (
        TypeError,
        ValueError,
    )  # not a real floating dtype, and after the first step another dtype
    return {
        "fewer gradients": ([good], [], ValueError, "grads must have one array .* 2, got 1"),
        "more gradients": ([good], [good, good], ValueError, "one array .* 2, got 3"),
        "shape": ([good], [np.ones(4)], ValueError, r"grads\[1\] must .* \(3,\) .* \(4,\)"),
        "dtype": ([good], [np.ones(3, "f")], ValueError, r"grads\[1\] must .* float64, .* float32"),
        "integers": ([np.ones(3, int)], [np.ones(3, int)], kind, r"params\[1\] .* int64"),
        "longdouble": ([np.ones(3, "g")], [np.ones(3, "g")], kind, r"params\[1\] .* \w*float\d+"),
        "list": (
            [[1.0]],
            [good],
            TypeError,
            r"params\[1\] must be a numpy.ndarray or .*, got list",
        ),
        "none": ([good], [None], TypeError, r"grads\[1\] must be a .*, got NoneType"),
        "read-only": ([locked], [good], ValueError, r"params\[1\] must be writable"),
    }


def state(optimizer):
    velocity = optimizer.velocity
    return optimizer.count, None if velocity is None else [v.tobytes() for v in velocity]


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("case", bad_lists())
def test_bad_lists_change_nothing(case, steps_before):
    params, grads, error, message = bad_lists()[case]
    optimizer = Gravity()
    w, good = np.ones((2, 3)), np.ones(3)
    for _ in range(steps_before):
        optimizer.step([w, good], [w.copy(), good.copy()])
    before, w_before = state(optimizer), w.copy()
    with pytest.raises(error, match=message):
        optimizer.step([w, *params], [np.ones((2, 3)), *grads])
    assert state(optimizer) == before
    assert_same(w, w_before)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([np.ones(3)], "params must have the 2 arrays of the first step, got 1"),
        ([np.ones(3), np.ones((1, 2))], r"params\[1\] must keep .* \(2,\) float64, .* \(1, 2\)"),
        ([np.ones(3), np.ones(2, "f")], r"params\[1\] must keep .* float64, got \(2,\) float32"),
    ],
    ids=["fewer", "shape", "dtype"],
)
def test_parameters_that_differ_from_the_first_step_are_refused(params, message):
    optimizer = Gravity()
    optimizer.step([np.ones(3), np.ones(2)], [np.ones(3), np.ones(2)])
    before = state(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.step(params, [np.ones_like(w) for w in params])
    assert state(optimizer) == before
    assert all((w == 1).all() for w in params)


def test_gradients_of_0d_weights_may_be_numpy_scalars():
    w = np.asarray(1.0)
    Gravity(velocity_std=0.0).step([w], [2 * w])
    assert w < 1


def test_weight_decay_is_decoupled_and_precedes_the_step():
    w, without = np.asarray([1.0, -2.0]), np.asarray([0.0, 0.0])
    g = np.asarray([0.5, 0.25])
    Gravity(0.5, weight_decay=0.25).step([w], [g])
    Gravity(0.5).step([without], [g])  # from 0, so W is the step alone
    # 1 − η λ = 7/8, and every number here is exact except for the step
    assert_same(w, np.asarray([0.875, -1.75]) + without)


def test_a_step_with_a_zero_learning_rate_moves_nothing():
    w, g = np.asarray([1.0, -2.0]), np.asarray([0.5, 0.25])
    optimizer = Gravity(weight_decay=0.1)
    optimizer.learning_rate = 0.0
    optimizer.step([w], [g])
    assert_same(w, np.asarray([1.0, -2.0]))
    assert_same(
        optimizer.velocity[0],
        update(g, initial_velocity((2,), float, std=optimizer.velocity_std), 1),
    )


def test_a_zero_learning_rate_at_construction_warns_once_and_starts_from_rest():
    with pytest.warns(UserWarning, match=r"^learning_rate is 0") as caught:
        optimizer = Gravity(0.0)
    assert len(caught) == 1
    w, g = np.asarray([1.0, -2.0]), np.asarray([0.5, 0.25])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step([w], [g])
        assert_same(w, np.asarray([1.0, -2.0]))
        optimizer.learning_rate = 0.1
        optimizer.step([w], [g])
    rest = np.zeros(2)
    assert_same(optimizer.velocity[0], update(g, update(g, rest, 1), 2))


def test_each_warning_names_the_file_of_the_caller():
    with pytest.warns(UserWarning, match=r"^learning_rate is 0") as at_construction:
        Gravity(0.0)
    optimizer = Gravity(1e-3)
    optimizer.learning_rate = 0.1
    with pytest.warns(UserWarning, match=r"pass velocity_std=0\.1 ") as at_the_first_step:
        optimizer.step([np.ones(2)], [np.ones(2)])
    files = [warning.filename for warning in (*at_construction, *at_the_first_step)]
    assert files == [__file__] * 2


def test_sigma_keeps_the_first_learning_rate():
    optimizer = Gravity(0.1, alpha=0.02)
    optimizer.learning_rate = 1e-6
    w = np.ones(4)
    optimizer.init([w])
    assert_same(optimizer.velocity[0], initial_velocity((4,), float, std=0.02 / 0.1))


@pytest.mark.parametrize("built", [False, True])
def test_a_first_rate_far_above_that_of_sigma_warns_once(built):
    optimizer, w, g = Gravity(1e-3), [np.ones(2)], [np.ones(2)]
    if built:
        optimizer.init(w)
    optimizer.learning_rate = 0.1
    with pytest.warns(UserWarning, match=r"pass velocity_std=0\.1 ") as caught:
        optimizer.step(w, g)
    optimizer.step(w, g)
    assert len(caught) == 1


def test_a_first_rate_just_above_ten_times_that_of_sigma_warns():
    optimizer = Gravity(0.01)
    optimizer.learning_rate = 0.105
    with pytest.warns(UserWarning, match=r"^learning_rate is 0\.105 at the first step"):
        optimizer.step([np.ones(2)], [np.ones(2)])


def test_a_rate_after_a_zero_one_does_not_warn_again():
    with pytest.warns(UserWarning, match=r"^learning_rate is 0"):
        optimizer = Gravity(0.0)
    optimizer.learning_rate = 0.1
    optimizer.step([np.ones(2)], [np.ones(2)])


def test_overflow_and_non_finite_gradients_are_silent():
    w = np.ones(3)
    Gravity(velocity_std=0.0).step([w], [np.asarray([1e200, 0, -1e200])])
    assert (w == 1).all()  # s·s overflows, so ζ is 0
    Gravity(velocity_std=0.0).step([w], [np.asarray([1.0, np.inf, 0])])
    assert np.isnan(w[1])


def test_trace_by_hand():
    """max|G| = 2, β̂ = (½ · 2 + 1) / 4 = ½, ζ = (1/5, −2/17), V = ½ (2, 4) + ½ ζ."""
    step = trace(np.asarray([1.0, -2.0]), np.asarray([2.0, 4.0]), 2, beta=0.5)
    assert (step.t, step.beta_hat, step.m) == (2, 0.5, 0.5)
    assert step.zeta == pytest.approx([1 / 5, -2 / 17], rel=1e-15)
    assert step.v == pytest.approx([1.1, 33 / 17], rel=1e-15)


@pytest.mark.parametrize("options", [{"velocity_std": 10.0}, {"alpha": 0.0}, {}], ids=str)
def test_other_first_rates_do_not_warn(options):
    optimizer = Gravity(1e-3, **options)
    optimizer.learning_rate = 0.1 if options else 0.01  # ten times is not too much
    optimizer.step([np.ones(2)], [np.ones(2)])


BAD = {
    "learning_rate": [-0.1, float("nan"), "0.1", True],
    "alpha": [-1, None],
    "beta": [2, None],
    "weight_decay": [-1, float("inf")],
    "velocity_std": [-1, "x"],
    "seed": [-1, 0.5, True],
    "first_step": [2, "1"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_number_is_not_assigned(name, value):
    optimizer = Gravity(0.1)
    before = vars(optimizer).copy()
    with pytest.raises(ValueError, match=rf"^{name} must be .* got {re.escape(repr(value))}"):
        setattr(optimizer, name, value)
    assert vars(optimizer) == before


def test_a_number_is_assigned_as_a_python_number():
    optimizer = Gravity(0.2)
    optimizer.alpha, optimizer.seed = np.float32(0.5), np.int64(3)
    optimizer.velocity_std = None  # alpha / learning_rate again
    assert [type(x) for x in (optimizer.alpha, optimizer.seed)] == [float, int]
    assert optimizer.velocity_std == 0.5 / 0.2


@pytest.mark.parametrize("first_step", [0, 1])
def test_first_step_sets_t_of_the_first_update(first_step):
    w, g = np.ones(2), np.asarray([0.5, 0.25])
    optimizer = Gravity(first_step=first_step, velocity_std=1.0)
    v = initial_velocity((2,), float, std=1.0)
    optimizer.step([w], [g])
    assert_same(optimizer.velocity[0], update(g, v, first_step))
    optimizer.step([w], [g])
    assert_same(optimizer.velocity[0], update(g, update(g, v, first_step), first_step + 1))


def test_seed_and_position_choose_the_velocity():
    ws = [np.ones(3), np.ones(3)]
    optimizer = Gravity(velocity_std=1.0, seed=7)
    optimizer.init(ws)
    for i in (0, 1):
        assert_same(optimizer.velocity[i], initial_velocity((3,), float, std=1.0, seed=7, index=i))
    assert (optimizer.velocity[0] != optimizer.velocity[1]).all()


def by_pickle(optimizer):
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("duplicate", [by_pickle, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_copy_resumes_with_the_same_bits(duplicate, steps_before):
    rng = np.random.default_rng(0)
    optimizer = Gravity(0.2, beta=0.8, weight_decay=0.01, seed=3)
    ws = [rng.standard_normal((3, 2)), rng.standard_normal(5).astype(np.float32)]
    grads = [[rng.standard_normal(w.shape).astype(w.dtype) for w in ws] for _ in range(6)]
    for g in grads[:steps_before]:
        optimizer.step(ws, g)
    optimizer.learning_rate = 0.05
    twin, twin_ws = duplicate(optimizer), [w.copy() for w in ws]
    for g in grads[steps_before:]:
        optimizer.step(ws, g)
    for g in grads[steps_before:]:
        twin.step(twin_ws, g)
    assert twin.learning_rate == 0.05
    for got, want in zip((*twin_ws, *twin.velocity), (*ws, *optimizer.velocity), strict=True):
        assert_same(got, want)


def bowl(x):
    return float(x @ x), 2 * x


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("first_step", [0, 1])
def test_minimize_is_consistent_with_itself(dtype, first_step):
    optimizer = Gravity(0.05, beta=0.8, weight_decay=0.01, seed=2, first_step=first_step)
    x0 = np.asarray([0.3, -0.2, 0.1], dtype)
    run = optimizer.minimize(bowl, x0, steps=7)
    assert (run.x.shape, run.v.shape, run.f.shape) == ((8, 3), (8, 3), (8,))
    assert run.x.dtype == run.v.dtype == dtype
    assert_same(run.x[0], x0)
    assert_same(run.v[0], initial_velocity((3,), dtype, std=optimizer.velocity_std, seed=2))
    for n, step in enumerate(run.steps):
        t, (value, g) = n + first_step, bowl(run.x[n])
        want = trace(g, run.v[n], t, beta=0.8)
        assert (step.t, step.beta_hat) == (t, beta_hat(t, 0.8))
        assert [np.asarray(a).tobytes() for a in step[2:]] == [
            np.asarray(a).tobytes() for a in want[2:]
        ]
        x, v = pure_step(run.x[n], g, run.v[n], t, 0.05, 0.01, beta=0.8)
        assert_same(run.v[n + 1], v)
        assert_same(run.x[n + 1], x)
        assert run.f[n] == value
    assert len(run.steps) == 7
    assert run.f[7] == bowl(run.x[7])[0]


def test_minimize_modifies_neither_the_optimizer_nor_the_start():
    optimizer = Gravity()
    x0 = np.asarray([0.3, -0.2])
    first, second = (optimizer.minimize(bowl, x0, steps=3) for _ in range(2))
    assert state(optimizer) == (0, None)
    assert_same(x0, np.asarray([0.3, -0.2]))
    assert_same(first.x, second.x)
    assert optimizer.minimize(bowl, [1, 2], steps=0).x.tolist() == [[1.0, 2.0]]


def test_minimize_passes_copies_of_x():
    """A function may keep its argument and write into it."""
    given = []

    def careless(x):
        result = bowl(x)
        x *= 2
        given.append(x)
        return result

    run, want = (Gravity().minimize(f, [1.0, -2.0], steps=3) for f in (careless, bowl))
    assert_same(run.x, want.x)
    assert_same(run.f, want.f)
    assert_same(np.asarray(given), 2 * want.x)


@pytest.mark.parametrize(("name", "last"), [("float16", -10), ("bfloat16", -7)])
def test_half_types_move_by_rates_in_float32(name, last):
    """Halfway between two numbers of the half type, a float64 rate would decide otherwise.

    1 + 2^last is the number after 1. The rates' part 2⁻⁴⁰ is lost in float32.
    """
    rate = 1 + 2.0 ** (last - 1) + 2.0**-40
    w, v = np.zeros(1, numpy_dtype(name)), np.full(1, 2, numpy_dtype(name))
    optimizer = Gravity(rate, first_step=0)
    optimizer.velocity = [v]  # β̂ = ½ and ζ = 0, so V becomes 1
    optimizer.step([w], [np.zeros_like(w)])
    assert (w.item(), v.item()) == (-1, 1)  # the tie goes to the even number
    # Below 1 the numbers are half as far apart.
    shrinking = Gravity(1.0, weight_decay=2.0 ** (last - 2) + 2.0**-40, velocity_std=0.0)
    w = np.ones(1, numpy_dtype(name))
    shrinking.step([w], [np.zeros_like(w)])
    assert w.item() == 1


def test_half_types_keep_their_dtype():
    for name in HALF:
        dtype = numpy_dtype(name)
        w = np.ones(3, dtype)
        optimizer = Gravity()
        optimizer.step([w], [np.ones(3, dtype)])
        assert w.dtype == optimizer.velocity[0].dtype == dtype


@pytest.mark.parametrize(
    ("x0", "steps", "f_and_grad", "error", "message"),
    [
        ([1.0], -1, lambda x: (0.0, x), ValueError, "steps must be an integer >= 0, got -1"),
        ([1.0], 1.5, lambda x: (0.0, x), ValueError, "steps must be an integer >= 0, got 1.5"),
        ([1.0], True, lambda x: (0.0, x), ValueError, "steps must be an integer >= 0, got True"),
        ([], 1, lambda x: (0.0, x), ValueError, r"x0 must not be empty, got shape \(0,\)"),
        ([1j], 1, lambda x: (0.0, x), TypeError, "x0 must be an array of real numbers, got"),
        ([1.0], 1, lambda x: (0.0, x * 1j), TypeError, "the gradient must be an array of real"),
        ([1.0, 2.0], 1, lambda x: (0.0, x[:1]), ValueError, r"x0's shape, \(2,\), got \(1,\)"),
        ([1.0, 2.0], 1, lambda x: (x, x), TypeError, r"f\(x\) must be a real number, got array"),
        ([1.0], 1, lambda x: (None, x), TypeError, r"f\(x\) must be a real number, got None"),
        ([1.0], 1, lambda x: ("1", x), TypeError, r"f\(x\) must be a real number, got '1'"),
        ([1.0], 1, lambda x: (10**400, x), TypeError, r"f\(x\) must be .* integer of 1329 bits"),
        ([1.0], 1, lambda x: (np.ma.masked, x), TypeError, r"f\(x\) must be .* got masked"),
        ([1.0], 1, lambda x: None, TypeError, "must return f.x. and its gradient, got None"),
        ([1.0], 1, lambda x: (1.0, x, x), TypeError, "must return f.x. and its gradient, got"),
        ([1.0], 1, lambda x: (1.0, None), TypeError, "the gradient must be .* got NoneType"),
        ([1.0], 1, lambda x: (1.0, "a"), TypeError, "the gradient must be .* got str"),
        ([1.0], 1, lambda x: (1.0, np.ma.masked_array(x, [1])), TypeError, "got MaskedArray"),
        (np.ma.masked_array([1.0]), 1, lambda x: (1.0, x), TypeError, "x0 .* got MaskedArray"),
        ([[1.0], [2.0, 3.0]], 1, lambda x: (1.0, x), TypeError, "x0 must be an array of real"),
        ([1.0], 1, None, TypeError, "f_and_grad must be a function, got None"),
    ],
)
def test_minimize_refuses_bad_arguments(x0, steps, f_and_grad, error, message):
    with pytest.raises(error, match=message):
        Gravity().minimize(f_and_grad, x0, steps)


@pytest.mark.parametrize("count", ["x", 1.5, None, -1, True])
def test_a_count_that_is_no_count_is_refused(count):
    optimizer = Gravity()
    with pytest.raises(ValueError, match=f"count must be an integer >= 0, got {count!r}"):
        optimizer.count = count
    optimizer.count = np.int64(7)
    optimizer.step([np.ones(2)], [np.ones(2)])
    assert optimizer.count == 8


def test_minimize_computes_in_float64_also_from_a_long_double():
    run = Gravity().minimize(lambda x: (1.0, x), np.ones(2, np.longdouble), steps=1)
    assert run.x.dtype == run.v.dtype == np.float64


def test_minimize_starts_with_the_optimizers_velocity():
    def flat(x):
        return 0.0, 0 * x

    run = Gravity(velocity_std=0.5, seed=3).minimize(flat, np.ones(4), steps=1)
    expected = initial_velocity((4,), np.float64, std=0.5, seed=3)
    assert np.array_equal(run.v[0], expected)


def test_hyperparameters_are_held_as_python_numbers():
    optimizer = Gravity(
        *map(np.float32, (0.25, 0.5, 0.75)),
        weight_decay=np.float64(0.125),
        velocity_std=np.float32(2),
        seed=np.uint64(7),
        first_step=np.int8(0),
    )
    optimizer.learning_rate = np.float32(0.5)
    held = {name: getattr(optimizer, name) for name in hp.DEFAULTS}
    assert list(held.values()) == [0.5, 0.5, 0.75, 0.125, 2.0, 7, 0]
    assert [type(value) for value in held.values()] == [float] * 5 + [int] * 2


def test_numpy_scalars_give_the_same_bits():
    runs = []
    for number in (float, np.float64):
        w = np.linspace(-1, 1, 1000).astype(np.float32)
        optimizer = Gravity(number(0.3), number(0.02), number(0.8), weight_decay=number(0.3))
        for _ in range(3):
            optimizer.step([w], [w.copy()])
        runs.append(w)
    assert runs[0].tobytes() == runs[1].tobytes()
    pair = Gravity(seed=np.int32(7), first_step=np.int8(0)), Gravity(seed=7, first_step=0)
    for optimizer in pair:
        optimizer.step([np.ones(3)], [np.ones(3)])
    assert np.array_equal(*(optimizer.velocity[0] for optimizer in pair))
