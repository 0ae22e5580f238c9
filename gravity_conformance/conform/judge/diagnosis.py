"""Find the known mistake that an implementation made, by running the mistaken variants.

Guarantee: a named mistake explains every value of a run, within the bound around the mistake. The
run also distinguishes it from the right update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gravity_conformance.conform.judge.compare import compare
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_conformance.mutations import (
    COARSE,
    DIFFERENCE,
    FLOAT32_BETA,
    FLOAT32_DECAY,
    MUTATIONS,
    Variant,
)

_FEW = 8  # steps


@dataclass
class Diagnosis:
    """The mistakes that may explain a run which the right update does not explain.

    Attributes:
        distinct: descriptions of the mistakes that explain the run, and that the run
            distinguishes from the right update.
        possible: descriptions of all mistakes that explain the run, distinct or not.
    """

    distinct: list[str]
    possible: set[str]


def how_tolerated(trial: Trial, *, injects_beta: bool = False) -> str | None:
    """Describe what explains a run and is no mistake; None if nothing does.

    Args:
        trial: the run.
        injects_beta: whether an array of the framework holds β.
    """
    if injects_beta and trial.case.info.name == "float32":
        array = trial.simulated(FLOAT32_BETA)
        return FLOAT32_BETA.description if compare(trial, array).inside else None
    if trial.case.info.name != "float64":
        return None
    if compare(trial, difference=True).inside:
        return DIFFERENCE
    decay = trial.simulated(FLOAT32_DECAY)
    return FLOAT32_DECAY.description if compare(trial, decay).inside else None


def common(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Return the mistakes that are distinct in at least one run and possible in all."""
    found = dict.fromkeys(description for each in diagnoses for description in each.distinct)
    return [mistake for mistake in found if all(mistake in each.possible for each in diagnoses)]


def refuted(description: str, trial: Trial) -> bool:
    """Tell whether a run rules out that its implementation makes this mistake."""
    return description != COARSE.description and not any(
        compare(trial, trial.simulated(variant), mistaken=True).inside
        for variant in MUTATIONS
        if variant.description == description
    )


def diagnose(trial: Trial, *, what: str = "VW") -> Diagnosis:
    """Find the mistakes that explain a run, for a run that the right update does not explain."""
    found = _explanations(trial, what, coarse=False)
    if not trial.case.half:
        return found
    coarse = _explanations(trial, what, coarse=True)
    possible = found.possible | coarse.possible
    if compare(trial, coarse=True, what=what).inside:
        possible |= {COARSE.description}
        return Diagnosis(found.distinct or [COARSE.description], possible)
    return Diagnosis(found.distinct or coarse.distinct, possible)


def _explanations(trial: Trial, what: str, *, coarse: bool) -> Diagnosis:
    how: dict[str, Any] = {"mistaken": True, "coarse": coarse, "what": what}
    distinct: list[str] = []
    indistinct: list[str] = []
    # A few steps of a long trajectory rule out most mistakes.
    beginning = trial.beginning(_FEW)
    for variant in MUTATIONS:
        if variant.description in distinct or _idle(variant, trial.case):
            continue
        if not compare(beginning, beginning.simulated(variant), **how).inside:
            continue
        wrong = trial.simulated(variant)
        # If the case does not use the replaced part, the variant explains nothing.
        if _same(wrong, trial.exact) or _still(wrong) or not compare(trial, wrong, **how).inside:
            continue
        # If the bounds around the mistake and around the right update overlap, the run cannot
        # distinguish the two.
        apart = not compare(trial, wrong, beside=trial.exact, **how).inside
        (distinct if apart else indistinct).append(variant.description)
    return Diagnosis(distinct, {*distinct, *indistinct})


def _idle(variant: Variant, case: Case) -> bool:
    """Tell whether a case does not use the parts that a variant replaces."""
    unused = {"std", "left"}
    if not case.restores:
        unused.add("loaded")
    if case.rates is None:
        unused.add("learning_rate")
    return variant.replaced <= unused


def _still(run: Run) -> bool:
    """Tell whether nothing moves, which says nothing about the part that is replaced."""
    return all(
        _same(Run(0, run.start, [], [state]), Run(0, run.start, [], [run.start]))
        for state in run.states
    )


def _same(run: Run, other: Run) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True)
        for state, state_b in zip(run.states, other.states, strict=True)
        for arrays, arrays_b in zip(state, state_b, strict=True)
        for a, b in zip(arrays or (), arrays_b or (), strict=True)
    )
