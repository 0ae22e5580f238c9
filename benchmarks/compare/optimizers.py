"""The optimizers of the comparison, for NumPy and for torch.

Each one is a generator. It gets a gradient from `yield`, and updates the weights in place:

    def sgd(weights, rate, seed):
        w = weights.flat
        while True:
            g = (yield).flat
            w -= rate * g

Gravity is `gravity_core.Gravity` or `gravity_torch.Gravity`. The others follow torch.optim, with
its defaults; a test compares them with it. All options but the learning rate keep their defaults.
"""

import itertools
import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

import gravity_core
from benchmarks.drift import drift
from gravity_core.hyperparameters import ALPHA, BETA
from gravity_core.velocity import initial_velocity

Array = Any
MOMENTUM = 0.9
CLIP = 1.0  # the largest norm of the whole gradient
SMOOTHING = 0.99  # of RMSprop
ADAM_BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.01  # of AdamW


class Tensors(NamedTuple):
    """The weights, or their gradients, twice: as one flat array and as the tensors of the model.

    The tensors of the weights are views of the flat array.
    """

    flat: Array
    parts: list[Array]


Steps = Generator[None, Tensors, None]
Make = Callable[[Tensors, float, int], Steps]


def started(make: Make, weights: Tensors, rate: float, seed: int) -> Callable[[Tensors], None]:
    """Return the function that makes a step with a gradient."""
    steps = make(weights, rate, seed)
    next(steps)
    return steps.send


def sgd(weights: Tensors, rate: float, seed: int) -> Steps:
    """W ← W − η G."""
    w = weights.flat
    while True:
        g = (yield).flat
        w -= rate * g


def momentum(weights: Tensors, rate: float, seed: int) -> Steps:
    """V ← μ V + G;  W ← W − η V."""
    w = weights.flat
    v = 0 * w
    while True:
        g = (yield).flat
        v = MOMENTUM * v + g
        w -= rate * v


def rmsprop(weights: Tensors, rate: float, seed: int) -> Steps:
    """S ← ρ S + (1 − ρ) G²;  W ← W − η G / (√S + ε)."""
    w, xp = weights.flat, array_namespace(weights.flat)
    s = 0 * w
    while True:
        g = (yield).flat
        s = SMOOTHING * s + (1 - SMOOTHING) * (g * g)
        w -= rate * g / (xp.sqrt(s) + EPSILON)


def adam(weights: Tensors, rate: float, seed: int, *, weight_decay: float = 0.0) -> Steps:
    """M ← β₁ M + (1 − β₁) G;  S ← β₂ S + (1 − β₂) G²;  both without their bias.

    AdamW: W ← W − η λ W before each step.
    """
    w, xp = weights.flat, array_namespace(weights.flat)
    beta1, beta2 = ADAM_BETAS
    power1 = power2 = 1.0  # β^t
    m, s = 0 * w, 0 * w
    while True:
        g = (yield).flat
        power1, power2 = power1 * beta1, power2 * beta2
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g * g)
        if weight_decay:
            w *= 1 - rate * weight_decay
        w -= rate / (1 - power1) * m / (xp.sqrt(s) / math.sqrt(1 - power2) + EPSILON)


def adamw(weights: Tensors, rate: float, seed: int) -> Steps:
    """Adam with decoupled weight decay."""
    return adam(weights, rate, seed, weight_decay=WEIGHT_DECAY)


def clipped(make: Make) -> Make:
    """Scale the gradient to a norm of at most CLIP, as torch's clip_grad_norm_ does."""

    def steps(weights: Tensors, rate: float, seed: int) -> Steps:
        step, xp = started(make, weights, rate, seed), array_namespace(weights.flat)
        while True:
            gradient = yield
            norm = float(xp.sqrt(xp.sum(gradient.flat * gradient.flat)))
            scale = CLIP / (norm + 1e-6)
            step(Tensors(gradient.flat * scale, []) if scale < 1 else gradient)

    return steps


def noisy_momentum(weights: Tensors, rate: float, seed: int) -> Steps:
    """Momentum from weights that have moved as V₀ of Gravity moves them, by the same numbers."""
    w = weights.flat
    w -= _normal(weights, drift(BETA, first_step=1) * ALPHA, seed)
    return momentum(weights, rate, seed)


def gravity(
    weights: Tensors, rate: float, seed: int, *, alpha: float = ALPHA, first_step: int = 1
) -> Steps:
    """Gravity, as its users have it."""
    if isinstance(weights.flat, np.ndarray):
        of_numpy = gravity_core.Gravity(rate, alpha, first_step=first_step, seed=seed)
        while True:
            of_numpy.step(weights.parts, (yield).parts)
    import gravity_torch

    of_torch = gravity_torch.Gravity(weights.parts, rate, alpha, first_step=first_step, seed=seed)
    while True:
        for w, g in zip(weights.parts, (yield).parts, strict=True):
            w.grad = g
        of_torch.step()


def gravity_from_0(weights: Tensors, rate: float, seed: int) -> Steps:
    """Gravity as the original Keras code counts: t = 0 at the first step."""
    return gravity(weights, rate, seed, first_step=0)


def gravity_at_rest(weights: Tensors, rate: float, seed: int) -> Steps:
    """Gravity with α = 0, so that V₀ = 0."""
    return gravity(weights, rate, seed, alpha=0.0)


def gravity_fixed_beta(weights: Tensors, rate: float, seed: int) -> Steps:
    """Gravity with β in place of β̂.

    A constant β would let V₀ move the weights by 9 α. V₀ is smaller here, so that it moves them as
    far as in Gravity, and only the average of the gradients differs.
    """
    w, xp = weights.flat, array_namespace(weights.flat)
    v = _normal(weights, ALPHA * drift(BETA, first_step=1) * (1 - BETA) / BETA, seed) / rate
    while True:
        terms = [gravity_core.gradient_term(g, xp=xp) for g in (yield).parts]
        v = BETA * v + (1 - BETA) * xp.concat([xp.reshape(term, (-1,)) for term in terms])
        w -= rate * v


def gravity_without_m(weights: Tensors, rate: float, seed: int) -> Steps:
    """Gravity with m = ∞, so that ζ = G."""
    w = weights.flat
    v = _normal(weights, ALPHA, seed) / rate
    for t in itertools.count(1):
        old, new = gravity_core.coefficients(t)
        v = old * v + new * (yield).flat
        w -= rate * v


def _normal(weights: Tensors, std: float, seed: int) -> Array:
    """Return the numbers of V₀ with another σ, as one flat array."""
    xp = array_namespace(weights.flat)
    dtype = str(weights.flat.dtype).removeprefix("torch.")
    parts = [
        initial_velocity(tuple(w.shape), dtype, std=std, seed=seed, index=i).reshape(-1)
        for i, w in enumerate(weights.parts)
    ]
    return xp.asarray(np.concatenate(parts))


class Optimizer(NamedTuple):
    """An optimizer of the comparison.

    Attributes:
        title: its name in tables and figures.
        make: the generator.
        rates: the range of learning rates to choose from, four decades.
        default: the learning rate that a user gets who gives none.
    """

    title: str
    make: Make
    rates: tuple[float, float]
    default: float


_PLAIN, _MOMENTUM, _ADAPTIVE = (1e-3, 10.0), (1e-4, 1.0), (1e-5, 0.1)
_GRAVITY = gravity_core.hyperparameters.LEARNING_RATE

OPTIMIZERS = {
    "gravity": Optimizer("Gravity", gravity, _PLAIN, _GRAVITY),
    "gravity-t0": Optimizer("Gravity, t from 0", gravity_from_0, _PLAIN, _GRAVITY),
    "alpha-0": Optimizer("Gravity, α = 0", gravity_at_rest, _PLAIN, _GRAVITY),
    "beta-fixed": Optimizer("Gravity, β̂ = β", gravity_fixed_beta, _PLAIN, _GRAVITY),
    "m-infinite": Optimizer("Gravity, m = ∞", gravity_without_m, _PLAIN, _GRAVITY),
    "sgd": Optimizer("SGD", sgd, _PLAIN, 1e-3),
    "momentum": Optimizer("momentum", momentum, _MOMENTUM, 1e-3),
    "momentum-clip": Optimizer("momentum + clipping", clipped(momentum), _MOMENTUM, 1e-3),
    "momentum-noise": Optimizer("momentum + noise", noisy_momentum, _MOMENTUM, 1e-3),
    "rmsprop": Optimizer("RMSprop", rmsprop, _ADAPTIVE, 1e-2),
    "adam": Optimizer("Adam", adam, _ADAPTIVE, 1e-3),
    "adam-clip": Optimizer("Adam + clipping", clipped(adam), _ADAPTIVE, 1e-3),
    "adamw": Optimizer("AdamW", adamw, _ADAPTIVE, 1e-3),
}
