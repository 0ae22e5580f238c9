"""A check at the numbers and the words that the source code of the implementation contains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance.conform.checks import drawn, first_velocity, structures
from gravity_conformance.conform.checks.findings import Finding, Judge, first_wrong
from gravity_conformance.conform.checks.gradients import far
from gravity_conformance.conform.checks.inputs import patterned
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.trial import Case
from gravity_conformance.drive import source
from gravity_conformance.drive.session import Arrays

_ORDINARY = (0, 1, 2)
_MOST = 40  # numbers, and words, of each use
_ELEMENTS = 2**23  # of all tensors
_LISTED = 2**12  # tensors in one list
_LIMITS = {np.float32: (1e-30, 1e15), np.float64: (1e-200, 1e120)}  # squares and more are finite


def constants(subject: Subject, judge: Judge) -> Finding:
    """Sizes, steps, magnitudes, options and names at the numbers and words of its source code."""
    found = source.read(subject.driver.found)
    numbers = [x for x in found.numbers if x not in _ORDINARY]
    if not numbers and not found.words:
        return Finding("not applicable", "its source code is not there, or contains no numbers")
    return first_wrong(_findings(subject, judge, numbers, found.words[:_MOST]))


def _findings(
    subject: Subject, judge: Judge, numbers: list[float], words: Sequence[str]
) -> Iterator[Finding]:
    yield from _named(subject, judge, words)
    yield from _magnitudes(subject, judge, numbers, np.float32)
    if "float64" in subject.dtypes and subject.takes("float64"):
        yield from _magnitudes(subject, judge, numbers, np.float64)
    yield from _options(subject, judge, numbers[:_MOST])
    whole = [int(x) for x in numbers if x == int(x)]
    most = 2**53 if subject.driver.stateless else 2**24 - 8  # as counters in float32
    counts = [count for n in whole for count in (n - 3, 2 * n) if 0 < count <= most]
    yield from far(subject, judge, counts[:_MOST], (False,))
    yield from _sizes(subject, judge, whole)


def _sizes(subject: Subject, judge: Judge, numbers: Sequence[int]) -> Iterator[Finding]:
    """Judge tensors whose length, or number of rows or columns, is beside a number."""
    rng, left = subject.rng("constants"), _ELEMENTS
    traced = subject.driver.session.compiles is not None
    for n in () if traced else numbers:
        if subject.level.listed - 3 < n <= _LISTED:
            yield _judged(subject, judge, patterned(rng, 2, [(3,)] * (n + 3)))
    small: list[tuple[int, ...]] = []
    for n in numbers:
        shapes: list[tuple[int, ...]] = [(n + 3,)]
        if n <= 2**16:
            shapes.append((n + 1, 3))
        if n <= 2**16 and not traced:  # each shape takes long there
            shapes += [(n + 1,), (2 * n + 3,), (n, 2)]
        if n <= 2**12 and not traced:
            shapes += [(n - 1,), (n,), (3, n), (5, n + 1), (2, 2, n)]
        shapes += [(n, n), (n, n, 2)] if n <= 16 else []
        left -= sum(map(math.prod, shapes))
        if left < 0 or (traced and len(small) > _MOST):
            break
        if n <= 2**12:
            small += shapes
        else:
            yield _judged(subject, judge, patterned(rng, 3, shapes))
    if small:
        yield _judged(subject, judge, patterned(rng, 3, small))


def _magnitudes(
    subject: Subject, judge: Judge, numbers: Sequence[float], dtype: Any
) -> Iterator[Finding]:
    """Judge gradients, and W and V, whose elements lie on both sides of a number or its root."""
    least, greatest = _LIMITS[dtype]
    powers = [x**p for x in map(float, numbers) if x < greatest for p in (1.0, -1.0, 0.5, -0.5)]
    scales = list(dict.fromkeys(x for x in powers if least <= x <= greatest))[: 4 * _MOST]
    if not scales:
        return
    shapes = ((4, 3),) * len(scales)
    weights, gradients = subject.normal(3, shapes, scales, dtype, seed=107)
    at_zero = [0 * w for w in weights]  # where small numbers show
    case = Case(at_zero, gradients, subject.options())
    yield judge.judge(case, "gradients as numbers of its source")
    large = [np.asarray(c * w, dtype) for c, w in zip(scales, weights, strict=True)]
    _, ordinary = subject.normal(3, shapes, (1.0,) * len(scales), dtype, seed=108)
    case = Case(large, ordinary, subject.options())
    if subject.unwritable is None:
        case = replace(case, velocity=large[::-1])
    yield judge.judge(case, "W and V as numbers of its source")


def _options(subject: Subject, judge: Judge, numbers: Sequence[float]) -> Iterator[Finding]:
    """Judge rates, β and weight decay on both sides of a number."""
    weights, gradients = subject.normal(3, seed=109)
    fixed = subject.driver.arguments.fixed
    wanted = [("learning_rate", c * x) for x in numbers if 1e-12 < x < 1e3 for c in (0.8, 1.0, 1.2)]
    if "weight_decay" in subject.accepted:
        wanted += [("weight_decay", x) for _, x in wanted if x < 10]
    if subject.offers("beta") or subject.driver.stateless:
        below = [x for x in numbers if 0 < x < 1]
        wanted += [("beta", b) for x in below for b in (0.9 * x, x, x + (1 - x) / 8)]
    for name, x in dict.fromkeys(wanted):
        own: dict[str, Any] = {name: float(x)}
        if name in fixed or subject.refused(**own) is not None:
            continue
        case = Case(weights, gradients, subject.options(**own))
        yield judge.judge(case, f"{name.replace('_', ' ')} = {x:g}")


def _named(subject: Subject, judge: Judge, words: Sequence[str]) -> Iterator[Finding]:
    """Judge matrices and vectors whose name, or the name of whose layer, is a word."""
    if words and judge.passes("layers", structures.layers):
        pairs = [pair for word in words for pair in ((word, "x"), ("x", word))]
        paths = [f"{layer}/{name}" for layer, name in pairs for _ in range(2)]
        weights, gradients = patterned(subject.rng("words"), 3, ((4, 3), (5,)) * len(pairs))
        case = Case(weights, gradients, subject.decaying, how={"layers": paths})
        yield judge.judge(case, "names of its source")
        if judge.passes("v0", first_velocity.v0):
            for word in words:
                four = [f"{word}/x", f"{word}/y", f"x/{word}", f"y/{word}"]
                if (wrong := drawn.wrong_drawn(subject, layers=four)) is not None:
                    yield Finding("differs", f"V₀ of {', '.join(four)}", None, wrong)


def _judged(subject: Subject, judge: Judge, given: tuple[Arrays, list[Arrays]]) -> Finding:
    weights, gradients = given
    return judge.judge(Case(weights, gradients, subject.options(), subject.velocity(weights)))
