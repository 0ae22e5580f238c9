"""Find the known mistake that an implementation made, by running the mistaken variants.

Guarantee: a mistake that is named explains all that was seen in a run, inside its own bound, and
the run tells it from the right update.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gravity_conformance.conform.judge.compare import Case, Run, compare, simulate
from gravity_conformance.mutations import (
    COARSE,
    MUTATIONS,
    REFERENCE,
    TOLERATED,
    Variant,
)

_FEW = 8  # steps


def _idle(variant: Variant, case: Case) -> bool:
    """Tell whether a case has no use for the parts that a variant replaces."""
    unused = {"std", "left"}
    if case.reload_after is None:
        unused.add("loaded")
    if case.rates is None:
        unused.add("learning_rate")
    return variant.replaced <= unused


def how_tolerated(case: Case, run: Run, first_step: int) -> str | None:
    """Return in words which of `TOLERATED` explains a run in float64; None if none does."""
    if case.weights[0].dtype != np.float64:
        return None
    for variant in TOLERATED:
        if compare(case, run, simulate(variant, case, run, first_step), first_step).inside:
            return variant.words
    return None


def _same(run: Run, other: Run) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True)
        for state, state_b in zip(run.states, other.states, strict=True)
        for arrays, arrays_b in zip(state, state_b, strict=True)
        for a, b in zip(arrays or (), arrays_b or (), strict=True)
    )


@dataclass
class Diagnosis:
    """What may have become of a run that the right update does not explain.

    Attributes:
        words: the mistakes that explain it, and that it tells from the right update.
        possible: all mistakes that it may have, told or not.
    """

    words: list[str]
    possible: set[str]


def common(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Return the mistakes that explain one of several runs and are possible in all of them."""
    told = dict.fromkeys(words for each in diagnoses for words in each.words)
    return [words for words in told if all(words in each.possible for each in diagnoses)]


def refuted(words: str, case: Case, run: Run, first_step: int) -> bool:
    """Tell whether a run shows that its implementation does not make this mistake."""
    return words != COARSE.words and not any(
        compare(
            case, run, simulate(variant, case, run, first_step), first_step, mistaken=True
        ).inside
        for variant in MUTATIONS
        if variant.words == words
    )


def diagnose(case: Case, run: Run, first_step: int, *, what: str = "VW") -> Diagnosis:
    """Find the mistakes that explain a run which the right update does not."""
    found = _explanations(case, run, first_step, what, coarse=False)
    if not case.half:
        return found
    coarse = _explanations(case, run, first_step, what, coarse=True)
    right = simulate(REFERENCE, case, run, first_step)
    possible = found.possible | coarse.possible
    if compare(case, run, right, first_step, coarse=True, what=what).inside:
        possible |= {COARSE.words}
        return Diagnosis(found.words or [COARSE.words], possible)
    return Diagnosis(found.words or coarse.words, possible)


def _explanations(case: Case, run: Run, first_step: int, what: str, *, coarse: bool) -> Diagnosis:
    how: dict[str, Any] = {"mistaken": True, "coarse": coarse, "what": what}
    right = simulate(REFERENCE, case, run, first_step)
    told: list[str] = []
    hardly: list[str] = []
    # Most mistakes are out of the question after a few steps of a long trajectory.
    short = replace(case, gradients=case.gradients[:_FEW])
    begun = replace(run, states=run.states[:_FEW])
    for variant in MUTATIONS:
        if variant.words in told or _idle(variant, case):
            continue
        start = simulate(variant, short, begun, first_step)
        if not compare(short, begun, start, first_step, **how).inside:
            continue
        wrong = simulate(variant, case, run, first_step)
        # A part that this case has no use for explains nothing.
        if _same(wrong, right) or not compare(case, run, wrong, first_step, **how).inside:
            continue
        # Where the bounds around the mistake and around the right update meet, a run that is in one
        # of them tells little.
        if not compare(case, run, wrong, first_step, beside=right, **how).inside:
            told.append(variant.words)
        else:
            hardly.append(variant.words)
    return Diagnosis(told, {*told, *hardly})
