"""Simulate implementations with a mistake on a vector, and try the mistakes in its flags.

Guarantee: a flag is right unless `untrue` returns it. Each known variant of that mistake moves some
result of the vector out of its tolerance. Without a mistake, all results are inside.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from gravity_conformance.mutations import MUTATIONS, REFERENCE, Variant
from gravity_conformance.vectors import (
    CoefficientsTest,
    Expected,
    InitialVelocityTest,
    ThreefryTest,
    UpdateTest,
    exact,
)

Test = CoefficientsTest | InitialVelocityTest | ThreefryTest | UpdateTest
Arrays = list[np.ndarray]

# Mistakes outside the update: in the drawing of V₀, and in the working dtype.
OUTSIDE = {
    UpdateTest: ("velocity_shared", "half_overflow"),
    InitialVelocityTest: (
        *("velocity_shared", "seed_ignored", "seed_truncated"),
        *("element_truncated", "counter_truncated"),
    ),
}
# No mistake: V₀ has the right σ, but other bits.
ANOTHER_GENERATOR = "another_generator"


def untrue(test: Test, dtype: str, mistakes: Iterable[str]) -> list[str]:
    """Return those of `mistakes` that a test does not catch, or that are unknown."""
    return [flag for flag in mistakes if any(_ways(test, dtype, flag))]


def _ways(test: Test, dtype: str, flag: str) -> Iterable[bool]:
    """Yield, for each known variant of a mistake, whether the test accepts it."""
    outside = flag in OUTSIDE.get(type(test), ())
    variants = [variant for variant in MUTATIONS if variant.flag == flag]
    if not (outside or variants):
        yield True
    if outside:
        yield accepts(test, dtype, outside=flag)
    for variant in variants:
        yield accepts(test, dtype, variant)


def accepts(
    test: Test, dtype: str, variant: Variant = REFERENCE, outside: str = "", computed: Any = None
) -> bool:
    """Return whether an implementation with a mistake passes.

    Args:
        test: the vector.
        dtype: the dtype of its group.
        variant: the update, with or without a mistake.
        outside: the flag of a mistake outside the update, or `ANOTHER_GENERATOR`; none if empty.
        computed: the NumPy type in which updates are computed. By default, it is wider than the
            working dtype, so that only mistakes make a difference.
    """
    with np.errstate(all="ignore"):
        return all(
            expected.accepts(found).all()
            for expected, found in simulated(test, dtype, variant, outside, computed)
        )


Results = Iterator[tuple[Expected, np.ndarray]]


def simulated(
    test: Test, dtype: str, variant: Variant = REFERENCE, outside: str = "", computed: Any = None
) -> Results:
    """Yield each result that a vector expects, with what an implementation with a mistake computes.

    The arguments are those of `accepts`. A result of the generator has no mistake, and is left out.
    """
    if isinstance(test, UpdateTest):
        wide = np.float16 if outside == "half_overflow" and dtype == "float16" else _wide(dtype)
        yield from _updates(test, dtype, variant, outside, computed or wide)
    elif isinstance(test, CoefficientsTest):
        yield from _coefficients(test, dtype, variant)
    elif isinstance(test, InitialVelocityTest):
        yield exactly(test.v), _initial_velocity(test, dtype, variant, outside)


def exactly(value: np.ndarray) -> Expected:
    """Return an expected result that must be equal."""
    return Expected(value, np.zeros(value.shape))


def _wide(dtype: str) -> Any:
    """Return a dtype wider than the working dtype, so that only mistakes make a difference."""
    return np.longdouble if dtype == "float64" else np.float64


def _stored(arrays: Arrays, dtype: str) -> Arrays:
    """Return arrays rounded to `dtype`; bfloat16 is held in float32, as NumPy lacks it."""
    if dtype != "bfloat16":
        return [x.astype(dtype) for x in arrays]
    return [_rounded(x) for x in arrays]


def _rounded(x: np.ndarray) -> np.ndarray:
    numbers = [Fraction(y) if np.isfinite(y) else y for y in x.astype(np.float64).ravel().tolist()]
    found = [float(exact.round_to(y, "bfloat16")) for y in numbers]
    return np.asarray(found, np.float32).reshape(x.shape)


def _updates(
    test: UpdateTest, dtype: str, variant: Variant, outside: str, computed: Any
) -> Results:
    options = test.hyperparameters
    w, v = test.w, _first_velocity(test, dtype, variant, outside)
    yield from zip(map(exactly, test.v), v, strict=True)
    start, count, buffers = v, test.steps[0].t - options.first_step, test.steps[0].g
    for step in test.steps:
        if step.reload:
            v, count = variant.loaded(v, count, start)
        if not test.same_gradients:
            buffers = step.g
        w, v, _ = variant.step(
            *([x.astype(computed) for x in arrays] for arrays in (w, v, buffers)),
            count=count,
            first_step=options.first_step,
            lr=step.learning_rate,
            constructed=options.learning_rate,
            beta=options.beta,
            weight_decay=options.weight_decay,
            maximize=options.maximize,
        )
        w, v = _stored(w, dtype), _stored(v, dtype)
        buffers, count = [np.asarray(variant.left(g)) for g in buffers], count + 1
        yield from zip([*step.v, *step.w], [*v, *w], strict=True)


def _first_velocity(test: UpdateTest, dtype: str, variant: Variant, outside: str) -> Arrays:
    options = test.hyperparameters
    if options.seed is None:
        return test.v
    std = options.velocity_std
    if std is None:
        std = variant.std(options.alpha, options.learning_rate, test.steps[0].learning_rate)
    keys = (_key(options.seed, i, outside) for i in range(len(test.w)))
    return [
        _draw(key, range(w.size), std, dtype).reshape(w.shape)
        for key, w in zip(keys, test.w, strict=True)
    ]


def _key(seed: int, index: int, outside: str) -> exact.Words:
    seeds = {"seed_ignored": 0, "seed_truncated": seed & 0xFFFFFFFF, ANOTHER_GENERATOR: seed ^ 1}
    return exact.tensor_key(seeds.get(outside, seed), 0 if outside == "velocity_shared" else index)


def _draw(key: exact.Words, elements: Iterable[int], std: float, dtype: str) -> np.ndarray:
    ks = [exact.halfword(key, i) for i in elements]
    numbers = [float(exact.initial_velocity(k, Fraction(std), dtype)) for k in ks]
    return np.asarray(numbers, "float32" if dtype == "bfloat16" else dtype)


def _coefficients(test: CoefficientsTest, dtype: str, variant: Variant) -> Results:
    t = _wide(dtype)(variant.counter(test.t, 0, 0, 1))
    pair = (np.asarray(x, dtype) for x in variant.coefficients(t, t.dtype.type(test.beta)))
    yield from zip((test.beta_hat, test.one_minus_beta_hat), pair, strict=True)


def _initial_velocity(
    test: InitialVelocityTest, dtype: str, variant: Variant, outside: str
) -> np.ndarray:
    wrap = {"element_truncated": 2**32, "counter_truncated": 2**34}.get(outside, 2**64)
    elements = (i % wrap for i in range(test.first_element, test.first_element + test.elements))
    std = test.velocity_std
    if std is None:
        std = variant.std(test.alpha, test.learning_rate, test.learning_rate)
    return _draw(_key(test.seed, test.index, outside), elements, std, dtype)
