"""`gravity vectors --explain`: name the mistake of a port from the tests that it failed.

Guarantee: a mistake is named if exactly the tests that failed fail with it, if fewer than half as
many tests disagree with it as tell it from any other mistake, or if it explains the values that the
port computed. If there are such values, they rule out no mistake that is named.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from gravity_conformance.conform.judge.compare import difference
from gravity_conformance.explain.match import Match, matches, nearest
from gravity_conformance.explain.results import Results, read
from gravity_conformance.explain.table import (
    FAILS,
    NON_FINITE,
    PASSES,
    Table,
    Vector,
    vectors,
)
from gravity_conformance.explain.values import Evidence

WIDTH = 100
"""The characters in a line of a report."""
_SHOWN = 5  # tests in a list


def explain(text: str) -> str:
    """Return a report on a file of results.

    Args:
        text: the file's content; results_schema.json describes it.

    Raises:
        ValueError: if it does not conform, with the reason in one line.
        ModuleNotFoundError: if jsonschema or mpmath is not installed.

    Example:
        >>> print(explain('{"failed": [], "passed": ["one_step.json/1"]}'))
        1 test was run, and none failed. There is nothing to explain.
    """
    every = vectors()
    results = read(text, every)
    run = len(results.failed) + len(results.passed)
    if not results.failed:
        tests = "1 test was" if run == 1 else f"{run} tests were"
        return f"{tests} run, and none failed. There is nothing to explain."
    lines = [_summary(results, len(every) - run), *_first_wrong(results)]
    if results.gradients_changed:
        lines.append(
            f"A step changed a gradient array in {_list(sorted(results.gradients_changed))}. It "
            "must leave the caller's gradients as they are. Mend this first."
        )
    rest = [v for v in results.failed if v.name not in results.gradients_changed]
    if rest:
        lines += _named(results, Table([*rest, *results.passed]), len(rest))
    return "\n".join(_wrapped(lines))


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()))
        yield from textwrap.wrap(
            line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )


def _summary(results: Results, left: int) -> str:
    failed, run = (
        Counter(vector.dtype for vector in tests)
        for tests in (results.failed, [*results.failed, *results.passed])
    )
    parts = ", ".join(f"{dtype} {failed[dtype]} of {n}" for dtype, n in run.items())
    return f"Tests that failed: {parts}; {left} were not run."


def _first_wrong(results: Results) -> Iterator[str]:
    """Yield a line on the first wrong result of the simplest failed test whose values are given."""
    for vector in sorted(results.failed, key=_simplicity):
        if vector.name not in results.got:
            continue
        right: list[str] = []
        for name, step, expected, computed in results.got[vector.name].named:
            accepted = expected.accepts(computed)
            if accepted.all():
                right.append(name if not step else f"{name} of step {step}")
                continue
            k = tuple(int(i) for i in np.argwhere(~accepted)[0])
            numbers = difference(computed[k], expected.value[k], expected.tolerance[k])
            at = "" if step is None else f", step {step}"
            element = f", element {list(k)}" if k else ""
            yield (
                f"First wrong result of {vector.name} ({vector.dtype}, {vector.test.comment}): "
                f"{name}{at}{element}: {numbers}." + _right_before(right)
            )
            return


def _right_before(names: list[str]) -> str:
    return f" Right before it: {', '.join(names[-_SHOWN:])}." if names else ""


def _simplicity(vector: Vector) -> tuple[bool, bool, int]:
    steps = len(vector.test.steps) if vector.type == "update" else 0
    # One update of ordinary numbers shows more than β̂ alone.
    return vector.file != "one_step.json", not vector.ordinary, steps


def _named(results: Results, table: Table, failed: int) -> Iterator[str]:
    """Yield what is known about the mistake; the first `failed` tests of the table failed."""
    observed = np.asarray([FAILS] * failed + [PASSES] * (len(table.tests) - failed))
    evidence = Evidence(table, [v for v in table.tests[:failed] if v.name in results.got])
    found = matches(table, observed)
    left = [replace(match, names=evidence.possible(match, results.got)) for match in found]
    left = [match for match in left if match.names]
    if not left and (match := evidence.explaining(observed, results.got)).names:
        left = [match]
    for match in left:
        yield from _says(table, match, observed)
    if left and all(name in evidence.agreeing for match in left for name in match.names):
        yield "The values that the port computed are those of this mistake, within rounding."
    elif left:
        yield (
            "This is what the list of failed tests shows. A mistake that is not known can make the "
            "same tests fail."
        )
        yield (
            "The values that the port computed (got) cannot rule that out: such a mistake does not "
            "determine them."
            if results.got
            else "Give the values that the port computed (got) to rule that out."
        )
    else:
        yield from _nothing(table, observed, bool(found))


def _says(table: Table, match: Match, observed: np.ndarray) -> Iterator[str]:
    dtypes = list(dict.fromkeys(table.dtypes[match.where].tolist()))
    left_out = set(table.dtypes.tolist()) - {*dtypes, "uint32"}
    where = f" in {' and '.join(dtypes)}" if left_out else ""
    of_help: dict[str, list[str]] = {}
    for mistake in table.mistakes:
        if mistake.name in match.names:
            of_help.setdefault(mistake.help, []).append(mistake.name)
    if len(match.names) == 1:
        yield f"Mistake{where}: {match.names[0]}."
    else:
        yield f"One of these mistakes{where}; the tests that were run do not tell them apart:"
    for text, names in of_help.items():
        if len(match.names) > 1:
            yield from (f"  - {name}." for name in names)
        if text:
            yield f"    {text}"
    if match.disagree.any():
        yield f"It is the nearest known mistake. {_disagreement(table, match.disagree, observed)}"
    yield from _elsewhere(table, match, observed)


def _elsewhere(table: Table, match: Match, observed: np.ndarray) -> Iterator[str]:
    """Yield what is known about the tests of NaN and infinities, if these were left out."""
    where = np.asarray([vector.file == NON_FINITE for vector in table.tests]) & ~match.where
    others = table.disagreements(match.names[0], observed, where)
    if others.any():
        yield (
            "NaN and infinities were left out, because they may have a mistake of their own. "
            + _disagreement(table, others, observed)
        )
        second = nearest(table, np.where(others, FAILS, PASSES), where)
        everywhere = np.ones(len(observed), bool)
        possible = [
            name
            for name in second.names
            if not (table.disagreements(name, observed, everywhere) & (observed == PASSES)).any()
        ]
        if second.exact and possible:
            yield f"It may be this: {' or '.join(possible)}."


def _nothing(table: Table, observed: np.ndarray, refuted: bool) -> Iterator[str]:
    near = nearest(table, observed, np.ones(len(observed), bool))
    if refuted:
        yield (
            "No known mistake: some make these tests fail, but the values that the port computed "
            "are those of none."
        )
    elif near.names:
        names = "” or “".join(near.names)
        yield f"No known mistake. The nearest: “{names}”."
        yield _disagreement(table, near.disagree, observed)
    else:
        yield "No known mistake."
    yield (
        "Compare β̂, 1 − β̂, m, ζ, V and W in this order; “Finding the mistake” in the README of "
        "the vectors shows how."
    )


def _disagreement(table: Table, tests: np.ndarray, observed: np.ndarray) -> str:
    parts = []
    for outcome, what in ((FAILS, "failed without it"), (PASSES, "passed in spite of it")):
        if names := [table.tests[i].name for i in np.flatnonzero(tests & (observed == outcome))]:
            parts.append(f"{_list(names)} {what}")
    count = int(tests.sum())
    verb = "disagrees" if count == 1 else "disagree"
    return f"{count} of {len(table.tests)} tests {verb} with it: {'; '.join(parts)}."


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
