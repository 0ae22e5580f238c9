"""Grading distinguishes rounding from mistakes: every planted mistake is divergent."""

from unittest import mock

import numpy as np
import pytest

import gravity_core
from gravity_conformance.parity import grading, numpy_backend
from gravity_conformance.parity.grading import grade, reference
from gravity_conformance.protocol import Replay, Step

SHAPES = [(6, 5), (5,), (), (0,)]
STEPS = 8


def replay(dtype="float32", **options):
    rng = np.random.default_rng(0)

    def draw():
        return [np.asarray(rng.normal(size=s), dtype) for s in SHAPES]

    return Replay(draw(), [draw() for _ in range(STEPS)], options)


def implementation(
    replay, velocity=None, *, beta_hat=gravity_core.coefficients, zeta=gravity_core.gradient_term
):
    """Yield the steps of a simple implementation with replaceable parts."""
    start = next(iter(reference(replay)))
    v, w = velocity or start.velocity, start.weights
    yield Step(v, w)
    for t, gradients in enumerate(replay.gradients, start=replay.options.get("first_step", 1)):
        old, new = beta_hat(t)
        # Scalars of the dtype, because a float64 scalar would widen the arrays.
        old, new, lr = (w[0].dtype.type(x) for x in (old, new, 0.1))
        v = [np.asarray(old * a + new * zeta(g)) for a, g in zip(v, gradients, strict=True)]
        w = [np.asarray(a - lr * b) for a, b in zip(w, v, strict=True)]
        yield Step(v, w)


def mean_for_max(g):
    s = g * np.abs(g).mean() if g.size else g
    return g / (1 + s * s)


def square_left_out(g):
    return g / (1 + np.abs(g) * np.abs(g).max(initial=0))


def half_precision(t):
    return tuple(float(np.float16(c)) for c in gravity_core.coefficients(t))


MISTAKES = {
    "t off by one": {"beta_hat": lambda t: gravity_core.coefficients(t - 1)},
    "β for β̂": {"beta_hat": lambda t: (0.9, 0.1)},
    "1 − β̂ left out": {"beta_hat": lambda t: (gravity_core.beta_hat(t), 1.0)},
    "β̂ in half precision": {"beta_hat": half_precision},
    "mean for max": {"zeta": mean_for_max},
    "square left out": {"zeta": square_left_out},
    "plain momentum": {"zeta": lambda g: g},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numpy_optimizer_is_exact(dtype):
    fed = replay(dtype, seed=3, first_step=0, beta=0.8)
    result = grade(fed, numpy_backend.replay(fed, "blocked"))
    assert result.verdict == "exact"
    assert result.v0_identical
    assert result.share == 0.0
    assert 0 < result.worst < gravity_core.ErrorBound.ROUNDINGS
    assert result.deviation == [0.0] * STEPS
    assert all(b > 0 for b in result.bound)


def test_a_straightforward_implementation_is_exact():
    fed = replay()
    assert grade(fed, implementation(fed)).verdict == "exact"


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mistakes_are_divergent(name, dtype):
    fed = replay(dtype)
    result = grade(fed, implementation(fed, **MISTAKES[name]))
    assert result.verdict == "divergent"
    assert result.share == float("inf")
    assert result.first_divergence.startswith("V of tensor 0 after step 1, element (0, 0): ")


def literal(g):
    """Return ζ by the paper's formula, whose roundings differ from the product form's."""
    if not g.size:
        return g
    m = 1 / np.abs(g).max()
    return g / (1 + np.square(g / m))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("first_step", [0, 1])
def test_other_roundings_are_bounded_and_measured(dtype, first_step):
    fed = replay(dtype, first_step=first_step)
    result = grade(fed, implementation(fed, zeta=literal))
    assert result.verdict == "bounded"
    assert result.v0_identical
    assert 0 < result.worst < gravity_core.ErrorBound.ROUNDINGS
    assert 0 < result.share < 1


def without_rounding(dtype):
    """Return a replay without roundings: all coefficients, gradients and ζ are powers of two.

    ζ = ½ for G = 1, β̂ = ½ for β = ½ and every t. After the first step V = S = ¼ and W = −⅛.
    """
    one = np.ones(2, dtype)
    options = {"beta": 0.5, "velocity_std": 0.0, "learning_rate": 0.5}
    return Replay([0 * one], [[one]] * 3, options)


def first_bound(fed):
    """Return the states of `without_rounding`, and the bound after the first step."""
    states = list(reference(fed))
    (v, w), (v_next, w_next) = ([s.velocity[0], s.weights[0]] for s in states[:2])
    assert (v_next == 0.25).all()
    assert (w_next == -0.125).all()
    bound = gravity_core.ErrorBound(w)
    bound.step(fed.gradients[0][0], v, v_next, w, w_next, t=1, learning_rate=0.5, beta=0.5)
    return states, {"velocity": bound.v[1], "weights": bound.w[1]}


def perturbed(states, name, units):
    """Add units in the last place to one element of V or W after the first step."""
    array = getattr(states[1], name)[0].copy()
    array[1] += units * np.finfo(array.dtype).eps * np.abs(array[1])
    return [states[0], states[1]._replace(**{name: [array]}), *states[2:]]


PLANTED = {"velocity": 0.25, "weights": 0.125}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("units", [-4, -1, 0, 1, 4])
def test_worst_is_the_planted_error_in_units_of_u_s(dtype, units):
    """One unit in the last place of ¼ is 2u · ¼, and S = ¼.

    The second update would keep half of the error of V, with S = ⅜.
    """
    fed = without_rounding(dtype)
    states, _ = first_bound(fed)
    result = grade(fed, iter(perturbed(states, "velocity", units)))
    assert result.verdict == ("bounded" if units else "exact")
    assert result.worst == 2 * abs(units)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PLANTED)
def test_share_is_relative_to_twice_the_bound(dtype, name):
    fed = without_rounding(dtype)
    states, bound = first_bound(fed)
    result = grade(fed, iter(perturbed(states, name, 3)))
    error = 3 * float(np.finfo(dtype).eps) * PLANTED[name]
    assert result.share == error / (2 * bound[name])
    assert result.deviation == [error if name == "weights" else 0.0, 0.0, 0.0]
    assert result.bound[0] == 2 * bound["weights"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("side", [-1, 1])
def test_two_errors_at_the_bound_in_opposite_directions_are_bounded(dtype, name, side):
    fed = without_rounding(dtype)
    states, bound = first_bound(fed)
    most = int(bound[name] // (float(np.finfo(dtype).eps) * PLANTED[name]))
    assert most >= 1
    one = perturbed(states, name, -side * most)
    with mock.patch.object(grading, "reference", return_value=one):
        result = grade(fed, iter(perturbed(states, name, side * most)))
        beyond = grade(fed, iter(perturbed(states, name, side * (most + 1))))
    assert result.verdict == "bounded"
    # Each of the two is below the bound by less than a unit in the last place.
    assert most / (most + 1) <= result.share <= 1
    assert beyond.verdict == "divergent"
    assert beyond.first_divergence.startswith(f"{name[0].upper()} of tensor 0 after step 1")


@pytest.mark.parametrize("flushes", [False, True])
def test_a_flushed_v0_is_exact_but_not_identical(flushes):
    tiny = float(np.finfo("float32").smallest_normal)
    one = np.ones(3, "float32")
    fed = Replay([one], [[one]], {"velocity_std": tiny / 8})  # |z| < 8: V₀ is subnormal

    def steps():
        start, *after = implementation(fed)
        yield Step([v * (not flushes) for v in start.velocity], start.weights)
        yield from after

    result = grade(fed, steps())
    assert result.verdict == "exact"
    assert result.flushed == (3 if flushes else 0)
    assert result.v0_identical == (not flushes)


def test_another_v0_is_divergent():
    fed = replay()
    start = next(iter(reference(fed)))
    other = [v + np.float32(1e-6) for v in start.velocity]
    result = grade(fed, implementation(fed, [np.asarray(v) for v in other]))
    assert not result.v0_identical
    assert result.verdict == "divergent"
    assert "V of tensor 0 after step 0" in result.first_divergence


def test_nan_is_divergent():
    fed = replay()

    def steps():
        for step in implementation(fed):
            weights = [w.copy() for w in step.weights]
            weights[1][2] = np.nan
            yield Step(step.velocity, weights)

    result = grade(fed, steps())
    assert result.verdict == "divergent"
    assert "W of tensor 1 after step 0, element (2,): got nan" in result.first_divergence


def test_flushed_subnormals_count_as_equal():
    tiny = np.float32(1e-40)
    fed = Replay([np.full(3, tiny)], [[np.full(3, tiny)]], {"velocity_std": 0.0})

    def steps():
        for step in implementation(fed):
            yield Step(step.velocity, [w * 0 for w in step.weights])

    result = grade(fed, steps())
    assert result.verdict == "exact"
    assert result.flushed == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda steps: steps[:-1], "got only 8"),
        (lambda steps: [*steps, steps[-1]], "must yield 9 states, got more"),
        (lambda steps: [Step(s.velocity[:-1], s.weights) for s in steps], "velocity after step 0"),
        (
            lambda steps: [Step(s.velocity, [w.astype("f8") for w in s.weights]) for s in steps],
            "weights after step 0",
        ),
    ],
)
def test_wrong_answers_are_refused(change, message):
    fed = replay()
    with pytest.raises(ValueError, match=message):
        grade(fed, iter(change([*implementation(fed)])))


def test_overflow_of_the_product_form_is_not_an_error():
    big = np.asarray([2.0**32], np.float32)  # s·s overflows, so ζ is 0 in place of 1e-29
    fed = Replay([np.zeros(1, np.float32)], [[big]], {"velocity_std": 0.0})
    result = grade(fed, numpy_backend.replay(fed, "blocked"))
    assert result.verdict == "exact"
    assert result.worst <= 1  # below the absolute term


def test_v0_is_graded_separately():
    fed = Replay([np.full(3, 1e-40, np.float32)], [[np.zeros(3, np.float32)]], {})

    def steps():
        for step in implementation(fed):
            yield Step(step.velocity, [w * (np.abs(w) > 1e-38) for w in step.weights])

    result = grade(fed, steps())
    assert result.v0_identical
    assert result.flushed > 0
