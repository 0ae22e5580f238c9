"""The table of mistake × test: which tests fail in an implementation that has a known mistake.

Guarantee: every entry was simulated. A mistake may take several forms; each is a row of its own.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gravity_conformance.mutations import COARSE, MUTATIONS, REFERENCE, Variant
from gravity_conformance.vectors import UpdateTest, exact, flags, load_vectors
from gravity_conformance.vectors.making.notes import NOTES

PASSES, FAILS, UNKNOWN = 0, 1, -1
"""The entries of the table."""
NON_FINITE = "non_finite.json"
# The term η λ W is computed where λ = 0. Only an infinite W shows it.
_NO_DECAY = Variant("0 · ∞", weights=lambda w, v, lr, decay: w - lr * decay * w - lr * v)


@dataclass(frozen=True)
class Vector:
    """A test, and the place where it stands; `name` is that of the file of results."""

    name: str
    file: str
    type: str
    dtype: str
    test: Any

    @property
    def ordinary(self) -> bool:
        """Whether the numbers are ordinary, so that nothing overflows or underflows."""
        return self.file not in ("edge_cases.json", NON_FINITE)


@functools.cache
def vectors() -> dict[str, Vector]:
    """Return every test by its name.

    Example:
        >>> vectors()["one_step.json/1"].test.comment
        'the first update of Algorithm 1'
    """
    return {
        vector.name: vector
        for group in load_vectors()
        for test in group.tests
        for vector in [Vector(f"{group.file}/{test.id}", group.file, group.type, group.dtype, test)]
    }


@dataclass(frozen=True, eq=False)  # the hash is that of the object, for `_entry`
class Form:
    """One form of a mistake, and of the program that runs the tests.

    Attributes:
        variant: the update.
        outside: the flag of a mistake outside the update.
        only: the option with which the mistake shows, "maximize" or "weight_decay"; any if empty.
        hidden: a type of tests in which the mistake does not show: "update" if the program sets V
            there in place of drawing V₀; "coefficients" if the function for β̂ is right, and is
            called with a wrong t, for example.
    """

    variant: Variant = REFERENCE
    outside: str = ""
    only: str = ""
    hidden: str = ""

    def fails(self, vector: Vector) -> int:
        """Return whether an implementation fails a test: FAILS, PASSES or UNKNOWN."""
        if not self._uses(vector):
            return PASSES
        if self.outside == "half_overflow" and vector.dtype == "bfloat16":
            return UNKNOWN  # NumPy has no bfloat16 to compute in
        if self._is_ambiguous(vector):
            return UNKNOWN
        if vector.type == "threefry":
            return PASSES
        given = (vector.test, vector.dtype, self.variant, self.outside)
        try:
            accepted = flags.accepts(*given)
            # A mistake may overflow or underflow in the working dtype, and not in a wider one.
            if vector.type == "update" and not (self.outside or vector.ordinary):
                narrow = flags.accepts(*given, computed=exact.working_dtype(vector.dtype))
                if narrow != accepted:
                    return UNKNOWN
        except ZeroDivisionError:  # α / 0: some languages raise an error, others return ∞ or NaN
            return UNKNOWN
        return PASSES if accepted else FAILS

    def _is_ambiguous(self, vector: Vector) -> bool:
        """Tell whether implementations with the mistake may differ in a test."""
        test = vector.test
        if self.outside == flags.ANOTHER_GENERATOR:
            # It may be Threefry with a mistake. σ = 0 hides the numbers, but not the key.
            return vector.type == "threefry" or (vector.type == "initial_velocity" and not test.std)
        if not isinstance(test, UpdateTest) or self.variant is _NO_DECAY:
            return False
        # Where W is infinite before a step, (1 − η λ) W and W − η λ W differ.
        before = [*test.w, *(w.value for step in test.steps[:-1] for w in step.w)]
        infinite = any(np.isinf(w).any() for w in before)
        return infinite and "weights" in self.variant.replaced

    def _uses(self, vector: Vector) -> bool:
        """Tell whether a test uses what is wrong."""
        if vector.type == self.hidden:
            return False
        parts, test = self.variant.replaced, vector.test
        if not isinstance(test, UpdateTest):
            used = {"coefficients": {"counter", "coefficients"}, "initial_velocity": {"std"}}
            outside = self.outside and vector.type in ("initial_velocity", "threefry")
            return bool(outside or parts & used.get(vector.type, set()))
        options = test.hyperparameters
        if self.only and not getattr(options, self.only):
            return False
        if parts == {"std"} or (self.outside and self.outside != "half_overflow"):
            return options.seed is not None
        return parts != {"left"} or test.same_gradients


@dataclass(frozen=True)
class Mistake:
    """A known mistake.

    Attributes:
        name: its name in reports.
        help: what it is, in a sentence or two; it may be empty.
        forms: its forms.
    """

    name: str
    help: str
    forms: tuple[Form, ...]


@functools.cache
def known() -> tuple[Mistake, ...]:
    """Return the known mistakes: those of the update, then those of V₀."""
    forms: dict[str, list[Form]] = {}
    notes: dict[str, str] = {}
    for variant in MUTATIONS:
        if variant is not COARSE:
            forms.setdefault(variant.description, []).extend(_forms(variant))
            notes[variant.description] = variant.flag
    found = [
        Mistake(name, NOTES[notes[name]]["description"] if notes[name] else "", tuple(each))
        for name, each in forms.items()
    ]
    text = "W ← W − η λ W − η V is NaN where W is infinite and η λ = 0. Omit the middle term there."
    found.append(Mistake("0 · ∞ in W where there is no weight decay", text, (Form(_NO_DECAY),)))
    coarse = NOTES["half_overflow"]["description"]
    found.append(Mistake(COARSE.description, coarse, (Form(outside="half_overflow"),)))
    velocity = {flag: NOTES[flag]["description"] for flag in _of_the_velocity()}
    velocity[flags.ANOTHER_GENERATOR] = "V₀ has other bits: the generator is not that of the paper"
    for flag, text in velocity.items():
        name, _, rest = text.rstrip(".").partition(": ")
        form = Form(outside=flag)
        found.append(Mistake(name, rest and f"{text}", (form, replace(form, hidden="update"))))
    return tuple(found)


def _of_the_velocity() -> list[str]:
    every = [flag for each in flags.OUTSIDE.values() for flag in each if flag != "half_overflow"]
    return list(dict.fromkeys(every))


def _forms(variant: Variant) -> list[Form]:
    form = Form(variant)
    if variant.replaced == {"std"}:
        return [form, replace(form, hidden="update")]
    if variant.replaced <= {"counter", "coefficients"}:
        return [form, replace(form, hidden="coefficients")]
    if variant.replaced == {"left"}:
        return [Form(variant, only=only) for only in ("", "maximize", "weight_decay")]
    if variant.replaced == {"gradient", "weights"} and _ignores_maximize(variant):
        return [Form(variant, only="maximize")]
    return [form]


def _ignores_maximize(variant: Variant) -> bool:
    """Tell whether the variant's gradient is the same with and without maximize."""
    one = np.ones(1)
    with_it, without = (variant.gradient(one, one, 0.0, maximize) for maximize in (True, False))
    return bool(np.array_equal(with_it, without))


@functools.cache
def _entry(form: Form, name: str) -> int:
    return form.fails(vectors()[name])


class Table:
    """The rows of all known mistakes for some tests, in the order of the tests.

    Args:
        tests: the tests that were run.
    """

    def __init__(self, tests: Sequence[Vector]) -> None:
        self.tests = list(tests)
        self.dtypes = np.asarray([vector.dtype for vector in tests])
        """The dtype of each test."""
        self.mistakes = known()
        """The known mistakes."""
        self.rows = {
            mistake.name: np.unique(
                [[_entry(form, vector.name) for vector in tests] for form in mistake.forms], axis=0
            )
            for mistake in self.mistakes
        }
        """By the name of a mistake, an array of forms × tests."""

    def disagreements(self, name: str, observed: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Return the tests in which a mistake and the observed results disagree, as booleans.

        An implementation may make a mistake in another form in each dtype, so the form that
        agrees best is taken in each.

        Args:
            name: the mistake.
            observed: FAILS or PASSES for every test.
            where: the tests that count.
        """
        result = np.zeros(len(self.tests), bool)
        for dtype in np.unique(self.dtypes[where]):
            these = where & (self.dtypes == dtype)
            differs = (self.rows[name] != observed) & (self.rows[name] != UNKNOWN) & these
            result |= differs[np.argmin(differs.sum(axis=1))]
        return result

    def distance(self, name: str, where: np.ndarray) -> int:
        """Return in how many tests a mistake differs at least from every other and from none.

        Mistakes that make the same tests fail count as one.
        """
        others = [np.zeros((1, len(self.tests)), int)]
        others += [row for other, row in self.rows.items() if other != name]
        found = [int(self.disagreements(name, row, where).sum()) for rows in others for row in rows]
        return min((each for each in found if each), default=0)
