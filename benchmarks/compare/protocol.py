"""The protocol: how a learning rate is chosen, and what is reported.

For each pair of problem and optimizer, a *cell*:

1. **Tuning.** 16 learning rates, one in each of 16 equal parts of four decades (`stratified`), are
   trained from 2 tuning seeds. The rate with the least mean error on validation wins. While the
   winner is at an edge, the range grows there by half a decade, and by two decades in all.
2. **Report.** The winner is trained from 10 fresh seeds. Validation gives the curves and the steps
   to the target. Test is read once, at the end of each run.
3. **Untuned.** The same fresh seeds with the default rate of the optimizer.

All runs of a problem have the same number of steps and a constant rate; nothing but the rate is
tuned. The same seed gives all optimizers the same initial weights and batches. A run whose loss is
not finite has diverged: it ends, and counts as its untrained start (`settled`), as does a run that
ends worse than it began.

A problem whose runs take seconds has a smaller protocol (`SMALL`): 8 rates, 1 tuning seed and 5
fresh seeds. A study (`STUDIES`) repeats steps 1 and 2 with it for one problem under other settings,
and also reports the rate of the ordinary setting there. `--budget` multiplies the work, see
`Plan.scaled`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import qmc

from benchmarks.compare.optimizers import Optimizer, started
from benchmarks.compare.problems import Problem

FRESH = 1000  # the first seed of the report; those of tuning count from 0
EVALUATIONS = 25  # of a curve, besides its start
GROWTH, LARGEST_GROWTH = 0.5, 2.0  # of the range, in decades, at each edge
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much work a cell is.

    Attributes:
        rates: the number of learning rates in the range.
        tuning_seeds: runs for each of them.
        seeds: runs that are reported.
        steps: a factor of the steps of every run.
    """

    rates: int
    tuning_seeds: int
    seeds: int
    steps: float = 1.0

    def scaled(self, budget: float) -> "Plan":
        """Return the plan for a share of the work.

        Rates, seeds and steps are multiplied by √budget. At least four rates, one tuning seed and
        two seeds are left.
        """
        root = math.sqrt(budget)
        return Plan(
            rates=max(4, round(self.rates * root)),
            tuning_seeds=max(1, round(self.tuning_seeds * root)),
            seeds=max(2, round(self.seeds * root)),
            steps=self.steps * root,
        )

    def steps_of(self, problem: Problem) -> int:
        """Return the steps of a run, at least one for each evaluation."""
        return max(EVALUATIONS, round(problem.steps * self.steps))


FULL = Plan(rates=16, tuning_seeds=2, seeds=10)
SMALL = Plan(rates=8, tuning_seeds=1, seeds=5)


class Study(NamedTuple):
    """One problem under several settings of one option.

    Attributes:
        title: its name in tables and figures.
        problem: a key of PROBLEMS.
        option: what `Problem.start` gets.
        settings: its values.
        ordinary: the one whose rate is tried under all settings.
    """

    title: str
    problem: str
    option: str
    settings: tuple[float, ...]
    ordinary: float


STUDIES = {
    "loss-scale": Study(
        "factor of the loss", "digits-mlp", "loss_scale", (0.01, 0.1, 1, 10, 100, 1000), 1
    ),
    "batch-size": Study("batch size", "digits-mlp", "batch_size", (8, 32, 128, 512), 32),
}


def stratified(low: float, high: float, number: int, seed: int = 0) -> list[float]:
    """Return learning rates, one in each of `number` equal parts of [low, high] on a log scale.

    They have three digits, so that a rate in a table is the rate that was used.

    Example:
        >>> rates = stratified(0.01, 1.0, 2)
        >>> 0.01 <= rates[0] <= 0.1 <= rates[1] <= 1.0
        True
    """
    places = np.sort(qmc.LatinHypercube(d=1, rng=seed).random(number)[:, 0])
    exponents = math.log10(low) + places * math.log10(high / low)
    return [float(f"{10**exponent:.3g}") for exponent in exponents]


def run(
    problem: Problem,
    optimizer: Optimizer,
    rate: float,
    seed: int,
    steps: int,
    *,
    curve: bool = True,
    **study: Any,
) -> Json:
    """Train once.

    Returns:
        The error and the loss at the start and the end on validation; and with `curve`, those at
        the end on test, and the error on validation after each 25th of the steps. None stands for
        a number that is not finite.
    """
    task = problem.start(seed, **study)
    start = task.score("validation")
    errors: list[float | None] = [start[0]]
    marks = {round(steps * k / EVALUATIONS) for k in range(1, EVALUATIONS)} if curve else set()
    with np.errstate(all="ignore"):
        step, diverged = started(optimizer.make, task.weights, rate, seed), False
        for number in range(steps):
            loss, gradient = task.gradient()
            if not math.isfinite(loss):
                diverged = True
                break
            if number in marks:
                errors.append(task.score("validation")[0])
            step(gradient)
        end = (math.nan, math.nan) if diverged else task.score("validation")
        found: Json = {"start": list(start), "validation": _finite(end)}
        if curve:
            test = (math.nan, math.nan) if diverged else task.score("test")
            missing = [None] * (EVALUATIONS - len(errors))
            errors = [*_finite(errors), *missing, found["validation"][0]]
            found |= {"seed": seed, "test": _finite(test), "curve": errors}
    return found


def _finite(numbers: Sequence[float | None]) -> list[float | None]:
    return [None if x is None or not math.isfinite(x) else x for x in numbers]


def settled(end: Sequence[float | None], start: Sequence[float]) -> tuple[float, ...]:
    """Return the error and the loss at the end, at most those at the start.

    Example:
        >>> settled([None, None], [0.9, 2.3]), settled([0.1, 5.0], [0.9, 2.3])
        ((0.9, 2.3), (0.1, 2.3))
    """
    return tuple(s if e is None else min(e, s) for e, s in zip(end, start, strict=True))


def mean_score(runs: Sequence[Json]) -> tuple[float, int, float]:
    """Return what a rate is judged by: less is better, and the first number that differs decides.

    These are the mean error on validation, the number of runs that diverged, and the mean loss.
    """
    scores = [settled(run["validation"], run["start"]) for run in runs]
    diverged = sum(None in run["validation"] for run in runs)
    error, loss = (math.fsum(column) / len(runs) for column in zip(*scores, strict=True))
    return error, diverged, loss


Try = Callable[[float], list[Json]]


def tuned(attempt: Try, low: float, high: float, number: int) -> Json:
    """Choose a learning rate.

    Args:
        attempt: trains with a rate from all tuning seeds; each run has "validation" and "start".
        low: the least learning rate of the range.
        high: the largest.
        number: how many rates the range has.

    Returns:
        "rate", the chosen one; "at_edge", whether it is the least or the largest after all
        extensions; and "tuning", the rates in order with their runs.
    """
    tried = {rate: attempt(rate) for rate in stratified(low, high, number)}
    more = max(1, round(number * GROWTH / math.log10(high / low)))  # as dense as in the range
    grown = {-1: 0.0, 1: 0.0}  # decades, below and above
    while True:
        best = min(tried, key=lambda rate: (*mean_score(tried[rate]), rate))
        side = {min(tried): -1, max(tried): 1}.get(best)
        if side is None or grown[side] >= LARGEST_GROWTH:
            break
        nearer = low / 10 ** grown[-1] if side < 0 else high * 10 ** grown[1]
        grown[side] += GROWTH
        farther = nearer * 10 ** (side * GROWTH)
        new = stratified(min(nearer, farther), max(nearer, farther), more, seed=len(tried))
        tried |= {rate: attempt(rate) for rate in new}
    tuning = [{"rate": rate, "runs": tried[rate]} for rate in sorted(tried)]
    return {"rate": best, "at_edge": side is not None, "tuning": tuning}


def cell(problem: Problem, optimizer: Optimizer, plan: Plan) -> Json:
    """Return all runs of an optimizer on a problem."""
    steps = plan.steps_of(problem)
    found = _tuned(problem, optimizer, plan, steps)
    for name, rate in (("tuned", found["rate"]), ("untuned", optimizer.default)):
        found[name] = [run(problem, optimizer, rate, s, steps) for s in _fresh(plan)]
    return {"steps": steps, **found}


def study_cell(study: Study, problem: Problem, optimizer: Optimizer, plan: Plan) -> Json:
    """Return all runs of an optimizer in a study, a cell for each setting.

    Under each setting "tuned" has the rate that is best there, and "ordinary" that of the ordinary
    setting.
    """
    steps = plan.steps_of(problem)
    options: list[Json] = [{study.option: setting} for setting in study.settings]
    cells = [_tuned(problem, optimizer, plan, steps, **option) for option in options]
    ordinary = cells[study.settings.index(study.ordinary)]["rate"]
    for found, option in zip(cells, options, strict=True):
        for name, rate in (("tuned", found["rate"]), ("ordinary", ordinary)):
            found[name] = [run(problem, optimizer, rate, s, steps, **option) for s in _fresh(plan)]
    return {"steps": steps, "settings": list(study.settings), "cells": cells}


def _fresh(plan: Plan) -> range:
    return range(FRESH, FRESH + plan.seeds)


def _tuned(problem: Problem, optimizer: Optimizer, plan: Plan, steps: int, **study: Any) -> Json:
    def attempt(rate: float) -> list[Json]:
        return [
            run(problem, optimizer, rate, seed, steps, curve=False, **study)
            for seed in range(plan.tuning_seeds)
        ]

    low, high = optimizer.rates
    return tuned(attempt, low, high, plan.rates)
