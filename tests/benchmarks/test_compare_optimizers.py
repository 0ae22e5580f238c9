"""Each optimizer of the comparison, against an independent statement of it."""

import inspect
import math

import numpy as np
import pytest

import gravity_core
from benchmarks.compare.optimizers import CLIP, OPTIMIZERS, Tensors, started
from benchmarks.drift import drift
from gravity_core.hyperparameters import BETA
from gravity_core.velocity import initial_velocity

torch = pytest.importorskip("torch", reason="the optimizers are compared with torch's")

SHAPES = ((3, 4), (5,))
STEPS = 20
RATE = 0.03
# A step rounds a weight, and what it comes from, fewer than 20 times. Each rounding is relative to
# a number that is smaller than 10 here.
ROUNDINGS = 20 * STEPS * 2**-53 * 10


def gradients():
    """Return STEPS gradients of both tensors; every third one is large, to be clipped."""
    rng = np.random.default_rng(1)
    return [
        [rng.standard_normal(shape) * (3.0 if step % 3 else 0.1) for shape in SHAPES]
        for step in range(STEPS)
    ]


def weights():
    rng = np.random.default_rng(2)
    return [rng.standard_normal(shape) for shape in SHAPES]


def tensors(arrays, of_torch):
    """Return arrays as Tensors whose parts are views of the flat array."""
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    flat = torch.tensor(flat) if of_torch else flat
    ends = np.cumsum([array.size for array in arrays])[:-1].tolist()
    split = torch.tensor_split if of_torch else np.split
    parts = [p.reshape(a.shape) for p, a in zip(split(flat, ends), arrays, strict=True)]
    return Tensors(flat, [p.detach().requires_grad_() for p in parts] if of_torch else parts)


def ours(name, grads, of_torch=False, seed=0, rate=RATE):
    """Return the weights after steps with these gradients."""
    w = tensors(weights(), of_torch)
    step = started(OPTIMIZERS[name].make, w, rate, seed)
    for g in grads:
        given = tensors(g, of_torch)
        step(
            Tensors(
                given.flat, [part.detach() for part in given.parts] if of_torch else given.parts
            )
        )
    return np.asarray(w.flat)


def test_all_have_titles_and_ranges_of_four_decades():
    assert len({o.title for o in OPTIMIZERS.values()}) == len(OPTIMIZERS) == 13
    for optimizer in OPTIMIZERS.values():
        low, high = optimizer.rates
        assert math.isclose(high / low, 1e4)
        assert low <= optimizer.default <= high


TORCH = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "momentum-clip": (torch.optim.SGD, {"momentum": 0.9}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "adam-clip": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("of_torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", TORCH)
def test_the_usual_ones_are_those_of_torch(name, of_torch):
    make, options = TORCH[name]
    params = [torch.tensor(w, requires_grad=True) for w in weights()]
    optimizer = make(params, lr=RATE, **options)
    for grads in gradients():
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        if name.endswith("-clip"):
            torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in params]).numpy()
    np.testing.assert_allclose(ours(name, gradients(), of_torch), expected, rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize("name", TORCH)
def test_the_default_rates_are_those_of_torch(name):
    make, _ = TORCH[name]
    assert OPTIMIZERS[name].default == inspect.signature(make).parameters["lr"].default


GRAVITY = {"gravity": {}, "gravity-t0": {"first_step": 0}, "alpha-0": {"alpha": 0.0}}


@pytest.mark.parametrize("of_torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", GRAVITY)
def test_gravity_is_the_reference_to_the_last_bit(name, of_torch):
    expected = weights()
    optimizer = gravity_core.Gravity(RATE, seed=3, **GRAVITY[name])
    for grads in gradients():
        optimizer.step(expected, grads)
    expected = np.concatenate([w.reshape(-1) for w in expected])
    np.testing.assert_array_equal(ours(name, gradients(), of_torch, seed=3), expected)


def moved_by_v0(name, steps=1000):
    """Return how far V₀ alone moves the weights, with gradients of zeros."""
    zeros = [[np.zeros(shape) for shape in SHAPES]] * steps
    return ours(name, zeros) - np.concatenate([w.reshape(-1) for w in weights()])


@pytest.mark.parametrize("name", ["momentum-noise", "beta-fixed", "m-infinite"])
def test_the_controls_have_the_kick_of_gravity(name):
    kicked = moved_by_v0("gravity")
    assert np.abs(kicked).max() > gravity_core.hyperparameters.ALPHA
    # Up to 1,000 roundings of numbers below 10.
    np.testing.assert_allclose(moved_by_v0(name), kicked, rtol=0, atol=1000 * 2**-53 * 10)


def test_the_drift_is_that_of_the_running_average():
    # The products of β̂ for 400 steps; what is left of V₀ then is below 0.9 ** 400 < 1e-18.
    for first_step in (0, 1):
        averages = [(0.9 * t + 1) / (t + 2) for t in range(first_step, first_step + 400)]
        assert math.isclose(drift(BETA, first_step), math.fsum(np.cumprod(averages)), rel_tol=1e-14)


def stated(zeta, coefficients, std):
    """Return the weights of a variant: V ← β̂ V + (1 − β̂) ζ and W ← W − η V, tensor by tensor."""
    found = []
    for index, w in enumerate(weights()):
        v = initial_velocity(w.shape, w.dtype, std=std, seed=0, index=index)
        for t, grads in enumerate(gradients(), start=1):
            old, new = coefficients(t)
            v = old * v + new * zeta(grads[index])
            w = w - RATE * v
        found.append(w.reshape(-1))
    return np.concatenate(found)


VARIANTS = {
    "m-infinite": (lambda g: g, lambda t: ((0.9 * t + 1) / (t + 2), (0.1 * t + 1) / (t + 2)), 1.0),
    "beta-fixed": (
        lambda g: g / (1 + (g * np.abs(g).max()) ** 2),
        lambda t: (0.9, 0.1),
        drift(BETA, 1) / 9,  # 0.9 + 0.9² + … = 9
    ),
}


@pytest.mark.parametrize("of_torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_differ_from_gravity_in_one_thing(name, of_torch):
    zeta, coefficients, factor = VARIANTS[name]
    expected = stated(zeta, coefficients, factor * gravity_core.hyperparameters.ALPHA / RATE)
    np.testing.assert_allclose(ours(name, gradients(), of_torch), expected, rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_seed_decides_the_noise_and_nothing_else(name):
    same = np.array_equal(ours(name, gradients(), seed=0), ours(name, gradients(), seed=1))
    noisy = ("gravity", "gravity-t0", "beta-fixed", "m-infinite", "momentum-noise")
    assert same == (name not in noisy)
