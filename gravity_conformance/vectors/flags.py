"""Try the mistakes in a vector's flags.

Guarantee: a flag is right unless `untrue` returns it. Each known variant of that mistake moves some
result of the vector out of its tolerance. Without a mistake, all results are inside.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from gravity_conformance.mutations import MUTATIONS, REFERENCE, Variant
from gravity_conformance.vectors import (
    CoefficientsTest,
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


def accepts(test: Test, dtype: str, variant: Variant = REFERENCE, outside: str = "") -> bool:
    """Return whether an implementation with a mistake passes.

    Args:
        test: the vector.
        dtype: the dtype of its group.
        variant: the update, with or without a mistake.
        outside: the flag of a mistake outside the update; none if empty.
    """
    with np.errstate(all="ignore"):
        if isinstance(test, UpdateTest):
            return _updates(test, dtype, variant, outside)
        if isinstance(test, CoefficientsTest):
            return _coefficients(test, dtype, variant)
        if isinstance(test, InitialVelocityTest):
            return _initial_velocity(test, dtype, variant, outside)
    return True


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


def _updates(test: UpdateTest, dtype: str, variant: Variant, outside: str) -> bool:
    options, wide = test.hyperparameters, _wide(dtype)
    if outside == "half_overflow" and dtype == "float16":
        wide = np.float16
    w, v = test.w, _first_velocity(test, dtype, variant, outside)
    if not all(np.array_equal(x, y, equal_nan=True) for x, y in zip(v, test.v, strict=True)):
        return False
    start, count, buffers = v, test.steps[0].t - options.first_step, test.steps[0].g
    for step in test.steps:
        if step.reload:
            v, count = variant.loaded(v, count, start)
        if not test.same_gradients:
            buffers = step.g
        w, v, _ = variant.step(
            *([x.astype(wide) for x in arrays] for arrays in (w, v, buffers)),
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
        results = zip([*step.v, *step.w], [*v, *w], strict=True)
        if not all(expected.accepts(x).all() for expected, x in results):
            return False
    return True


def _first_velocity(test: UpdateTest, dtype: str, variant: Variant, outside: str) -> Arrays:
    options = test.hyperparameters
    if options.seed is None:
        return test.v
    std = options.velocity_std
    if std is None:
        std = variant.std(options.alpha, options.learning_rate, test.steps[0].learning_rate)
    found = []
    for i, w in enumerate(test.w):
        key = exact.tensor_key(options.seed, 0 if outside == "velocity_shared" else i)
        found.append(_draw(key, range(w.size), std, dtype).reshape(w.shape))
    return found


def _draw(key: exact.Words, elements: Iterable[int], std: float, dtype: str) -> np.ndarray:
    ks = [exact.halfword(key, i) for i in elements]
    numbers = [float(exact.initial_velocity(k, Fraction(std), dtype)) for k in ks]
    return np.asarray(numbers, "float32" if dtype == "bfloat16" else dtype)


def _coefficients(test: CoefficientsTest, dtype: str, variant: Variant) -> bool:
    t = _wide(dtype)(variant.counter(test.t, 0, 0, 1))
    pair = (np.dtype(dtype).type(x) for x in variant.coefficients(t, t.dtype.type(test.beta)))
    expected = (test.beta_hat, test.one_minus_beta_hat)
    return all(e.accepts(x).all() for e, x in zip(expected, pair, strict=True))


def _initial_velocity(
    test: InitialVelocityTest, dtype: str, variant: Variant, outside: str
) -> bool:
    seeds = {"seed_ignored": 0, "seed_truncated": test.seed & 0xFFFFFFFF}
    key = exact.tensor_key(
        seeds.get(outside, test.seed), 0 if outside == "velocity_shared" else test.index
    )
    wrap = {"element_truncated": 2**32, "counter_truncated": 2**34}.get(outside, 2**64)
    elements = (i % wrap for i in range(test.first_element, test.first_element + test.elements))
    std = test.velocity_std
    if std is None:
        std = variant.std(test.alpha, test.learning_rate, test.learning_rate)
    return np.array_equal(_draw(key, elements, std, dtype), test.v)
