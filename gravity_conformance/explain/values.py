"""Compare the values that a port computed with those of a known mistake.

Guarantee: a mistake is ruled out only by a value outside a bound on the rounding errors of an
implementation that makes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from gravity_conformance.conform.judge.diagnosis import common, diagnose, refuted
from gravity_conformance.conform.judge.trial import Case, Run, Trial
from gravity_conformance.explain.match import Match, nearest
from gravity_conformance.explain.results import Got
from gravity_conformance.explain.table import FAILS, Form, Table, Vector
from gravity_conformance.mutations import COARSE
from gravity_conformance.vectors import UpdateTest, exact, flags

_ENOUGH = 12  # tests of updates, the simplest ones


class Evidence:
    """The failed tests whose values are given.

    Args:
        table: the known mistakes.
        tests: the failed tests whose values are given.
    """

    def __init__(self, table: Table, tests: Sequence[Vector]) -> None:
        self._forms = {mistake.name: mistake.forms for mistake in table.mistakes}
        self._tests = [vector for vector in tests if vector.ordinary]
        self._table = table
        self.agreeing = set[str]()
        """The mistakes with whose values some were compared, and agreed."""

    def possible(self, match: Match, got: Mapping[str, Got]) -> list[str]:
        """Return those of the mistakes of a match that the values do not rule out."""
        left, updates = list(match.names), 0
        dtypes = set(self._table.dtypes[match.where].tolist())
        for vector in self._tests:
            if vector.dtype not in dtypes:
                continue
            updates += vector.type == "update"
            if vector.type == "update" and updates > _ENOUGH:
                continue
            verdicts = {name: self._agrees(name, vector, got[vector.name]) for name in left}
            self.agreeing |= {name for name, verdict in verdicts.items() if verdict}
            left = [name for name, verdict in verdicts.items() if verdict is not False]
        return left

    def _agrees(self, name: str, vector: Vector, got: Got) -> bool | None:
        """Tell whether values are those of a mistake; None if they cannot be compared."""
        forms = self._forms[name]
        if isinstance(vector.test, UpdateTest):
            trial = _trial(vector, got)
            outside = any(form.outside for form in forms)
            if trial is None or outside or forms[0].variant.replaced <= {"std", "left"}:
                return None
            if not _is_finite(trial.run):
                # No number of these tests overflows, but t may in half precision.
                simulated = (trial.simulated(form.variant) for form in forms)
                is_finite = name != COARSE.description and all(map(_is_finite, simulated))
                return False if is_finite else None
            return not refuted(name, trial)
        if not got.named:
            return None
        return any(_near(form, vector, got) for form in forms)

    def explaining(self, observed: np.ndarray, got: Mapping[str, Got]) -> Match:
        """Return the mistakes that explain the values of all tests of updates.

        Of several, those that agree best with the tests that failed are returned. None is known to
        give NaN or an infinity here.
        """
        trials = [_trial(vector, got[vector.name]) for vector in self._tests]
        some = [trial for trial in trials if trial is not None]
        where = np.isin(self._table.dtypes, self._table.dtypes[observed == FAILS])
        explaining = []
        if all(_is_finite(trial.run) for trial in some):
            explaining = common([diagnose(trial) for trial in some[:_ENOUGH]])
        self.agreeing |= set(explaining)
        return nearest(self._table, observed, where, explaining)


def _trial(vector: Vector, got: Got) -> Trial | None:
    """Return a test of updates with the values that a port computed; None if there are none."""
    test, steps = vector.test, len(got.states)
    if not isinstance(test, UpdateTest) or not got.states:
        return None
    count = test.steps[0].t - test.hyperparameters.first_step
    reloads = [n for n, step in enumerate(test.steps) if step.reload]
    case = Case(
        test.w,
        [step.g for step in test.steps[:steps]],
        asdict(test.hyperparameters),
        velocity=test.v,
        count=count,
        rates=[step.learning_rate for step in test.steps[:steps]],
        reload_after=reloads[0] if reloads else None,
        bfloat16=vector.dtype == "bfloat16",
    )
    run = Run(count, (test.v, test.w), [np.zeros(w.shape) for w in test.w], list(got.states))
    return Trial(case, run, test.hyperparameters.first_step)


def _is_finite(run: Run) -> bool:
    return all(np.isfinite(x).all() for v, w in run.states for x in [*(v or []), *w])


def _near(form: Form, vector: Vector, got: Got) -> bool:
    """Tell whether coefficients, or V₀, are those of a form of a mistake."""
    unit = float(exact.FORMATS[vector.dtype].unit)
    given = {name: computed for name, _, _, computed in got.named}
    try:
        with np.errstate(all="ignore"):
            found = list(flags.simulated(vector.test, vector.dtype, form.variant, form.outside))
    except ZeroDivisionError:
        return True
    symbols = ("β̂", "1 − β̂") if vector.type == "coefficients" else ("V₀",)
    for symbol, (_, simulated) in zip(symbols, found, strict=True):
        # Eight roundings of numbers of the size of 1: 1 − β̂ may be a difference.
        scale = 1.0 if vector.type == "coefficients" else np.abs(simulated.astype(np.float64))
        if symbol in given and not (np.abs(given[symbol] - simulated) <= 8 * unit * scale).all():
            return False
    return True
