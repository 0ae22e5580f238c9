"""Checks of combinations: paths that an implementation may take, and what it may forget on them.

Guarantee: from the default level on, every pair of values of two factors occurs in a row. If users
compile the step, which takes time for every shape, only the rows with the most new pairs remain. A
factor takes part only if the implementation offers it and its own check passes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks import behaviour, gradients, of_torch
from gravity_conformance.conform.checks.covering import Row, covering
from gravity_conformance.conform.checks.findings import Finding, Judge, joined, touched
from gravity_conformance.conform.checks.inputs import LEVELS, SHAPES, to_dtype
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.compare import compare, worst
from gravity_conformance.conform.judge.diagnosis import how_tolerated
from gravity_conformance.conform.judge.together import Part, Plan
from gravity_conformance.conform.judge.trial import Trial, WrongResultError
from gravity_conformance.drive.session import CannotWriteError

_DOUBLE = "a trajectory in float64"
_STEPS = 4
_SIZES = ("small", "5,000", "2^16", "2^17", "2^20", "10,000 rows", "(3n, n)", "4-d", "5-d")
_WAYS = {"kept": "", "loaded": "reloaded", "rolled back": "rolled_back", "moved": "moved"}
# JAX compiles every operation for every shape, so these are mostly those of other checks.
_SMALL = (*SHAPES, (3,), (5, 2), (2, 3, 2, 2))


def combined(subject: Subject, judge: Judge) -> Finding:
    """Combinations of sizes, layouts, gradients, options, groups and states in float32."""
    return _judged(subject, judge, lambda row: row["dtype"] == "float32" and not row["fast"])


def compiled(subject: Subject, judge: Judge) -> Finding:
    """A trajectory, many sizes and combinations, compiled as by jax.jit or Keras's trainer."""
    finding = gradients.compiled(subject, judge)
    if finding.outcome != "pass":
        return finding
    return _judged(subject, judge, lambda row: row["fast"], finding)


def double(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in float64, and combinations in it, also beside float32."""
    finding = gradients.double(subject, judge)
    if finding.outcome != "pass":
        return finding
    judge.findings[_DOUBLE] = finding
    return _judged(
        subject, judge, lambda row: row["dtype"] != "float32" and not row["fast"], finding
    )


def half(subject: Subject, judge: Judge, dtype: str, before: Finding) -> Finding:
    """Combinations in a half type: each value of each factor occurs with it."""
    # A state that is loaded may round V to the half type.
    fixed = {"dtype": (dtype,), "fast": (False,), "state": ("kept",)}
    return _judged(subject, judge, lambda row: True, before, fixed)


def _factors(
    subject: Subject, judge: Judge, fixed: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """Return the values of every factor that the implementation offers; the first is plain."""
    session = subject.driver.session

    def if_passes(name: str, check: Any, *values: Any) -> tuple[Any, ...]:
        return values if judge.passes(name, check) else ()

    def if_offered(name: str) -> tuple[bool, ...]:
        return (False, True) if name in subject.accepted else (False,)

    betas = [0.9]
    if subject.offers("beta") or subject.driver.stateless:
        betas += [0.5, 0.999]
        betas += [b for b in (0.0, 1.0) if subject.refused(beta=b) is None]
    moving = subject.unschedulable is None
    scalar = if_passes("0-d", gradients.scalar, "0-d")
    double = "float64" in subject.dtypes and "dtype" not in fixed
    double = double and judge.passes(_DOUBLE, gradients.double)
    dtypes = ("float32", "float64") if double else ("float32",)
    mixed = ("mixed",) if double and subject.takes("float64", "float32") else ()
    missing = if_passes("missing", behaviour.missing, "some", "the first ones")
    states = if_passes("resume", behaviour.resume, "loaded")
    states += ("rolled back",) if states and "rolled_back" in session.ways else ()
    states += if_passes("moved", of_torch.moved, "moved")
    factors: dict[str, Sequence[Any]] = {
        "fast": (False, False, True) if session.compiles else (False,),
        "size": (*_SIZES, *scalar),
        "tensors": (3, 1, 25, 40) if session.compiles is None else (3, 1, 25),
        "content": ("ordinary", "zero", "zero rows", "outlier", "negative", "tiny"),
        "dtype": (*dtypes, *mixed),
        "strided": (False, *if_passes("strides", gradients.strides, True)),
        "beta": betas,
        "rate": (
            "constant",
            *(("changed",) if moving else ()),
            *(if_passes("schedule", gradients.schedule, "0 once") if moving else ()),
        ),
        "array": (False, *if_passes("rate", gradients.rate, True)),
        "weight_decay": if_offered("weight_decay"),
        "maximize": if_offered("maximize"),
        "groups": ("one", *if_passes("groups", behaviour.groups, "two", "one added later")),
        "missing": ("none", *missing),
        "t": ("from the start", *(() if subject.unwritable else ("far",))),
        "state": ("kept", *states),
        "rows": (False, *if_passes("rows", behaviour.rows, True)),
        "path": ("default", *if_passes("paths", of_torch.paths, *subject.paths[0])),
    }
    return factors | dict(fixed)


def _judged(
    subject: Subject,
    judge: Judge,
    belongs: Any,
    before: Finding | None = None,
    fixed: Mapping[str, Sequence[Any]] | None = None,
) -> Finding:
    """Judge the rows of one check; each has a generator of its own."""
    factors = _factors(subject, judge, fixed or {})
    rows = covering(subject.rng("combined"), factors, subject.level.strength)
    judged = 0
    limits = subject.level.halves if fixed else subject.level.rows
    most = limits[subject.driver.session.compiles is not None]
    for i, row in enumerate(rows[:most]):
        if not belongs(row):
            continue
        wrong = _wrong(subject, judge, i, row)
        judged += not isinstance(wrong, CannotWriteError)
        if wrong is None or isinstance(wrong, CannotWriteError):
            continue
        row, wrong = _smallest(subject, judge, i, row, wrong, factors, belongs)
        return _finding(judge, wrong, _described(row, factors))
    if before is None and not judged:
        return Finding("not applicable", "its state does not show V")
    finding = before or Finding("pass")
    finding.note = joined(finding.note, f"{judged} combinations")
    return finding


def _smallest(
    subject: Subject,
    judge: Judge,
    seed: int,
    row: Row,
    wrong: Any,
    factors: Mapping[str, Sequence[Any]],
    belongs: Any,
) -> tuple[Row, Any]:
    """Return a row with as few special values as show the difference, and what is wrong with it.

    One value may do. Another row has other random numbers, so each is tried with several, unless
    it has to be compiled.
    """
    tries = 3 if subject.driver.session.compiles is None else 1

    def found(fewer: Row) -> Any:
        for more in range(tries) if belongs(fewer) else ():
            other = _wrong(subject, judge, seed + 1000 * more, fewer)
            if type(other) is type(wrong):
                return other
        return None

    plain = {name: values[0] for name, values in factors.items()}
    special = [name for name in factors if row[name] != plain[name]]
    for name in special:
        alone = plain | {name: row[name]}
        if (other := found(alone)) is not None:
            return alone, other
    for name in special:
        fewer = row | {name: plain[name]}
        if (other := found(fewer)) is not None:
            row, wrong = fewer, other
    return row, wrong


def _described(row: Row, factors: Mapping[str, Sequence[Any]]) -> str:
    def text(name: str, value: Any) -> str:
        return name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value}"

    chosen = [text(n, x) for n, x in row.items() if x != factors[n][0] or n in ("size", "dtype")]
    return f"needs {', '.join(chosen)}"


def _finding(judge: Judge, wrong: Any, note: str) -> Finding:
    """Return the finding on what is wrong with a row."""
    if isinstance(wrong, WrongResultError):
        return Finding("differs", note, None, str(wrong))
    if isinstance(wrong, BaseException):
        return Finding("error", f"{note}; {one_line(wrong)}")
    note += f"; in the tensor of shape {wrong.case.weights[0].shape}"
    # NumPy's longdouble, in which mistakes in float64 would be simulated, is slow.
    if wrong.size(0) <= (2**14 if wrong.case.weights[0].dtype == np.float64 else 2**18):
        return judge.found(wrong, note)
    return Finding("differs", note, worst(wrong), compare(wrong).first)


def _wrong(subject: Subject, judge: Judge, seed: int, row: Row) -> Trial | BaseException | None:
    """Return the trial of the smallest tensor that differs, or what is raised, or None."""
    try:
        trials = subject.together(_plan(subject, subject.rng(f"combined {seed}"), row))
    except (*ANYTHING, CannotWriteError) as error:
        return error
    for trial in trials:
        judge.touched = judge.touched or touched(trial.case, trial.run)
    wrong = [t for t in trials if not compare(t).inside]
    wrong = [t for t in wrong if how_tolerated(t, injects_beta=subject.injects_beta) is None]
    return min(wrong, key=lambda t: t.size(0), default=None)


def _plan(subject: Subject, rng: np.random.Generator, row: Row) -> Plan:
    """Return what an optimizer is fed: one tensor has all values of the row, and others differ."""
    if row["fast"]:  # such steps have all gradients, and long lists take minutes to compile
        row = row | {"missing": "none", "dtype": "float32", "tensors": min(row["tensors"], 3)}
    several = row["missing"] != "none" or row["groups"] != "one"
    number = max(row["tensors"], 4) if several else row["tensors"]
    special = int(rng.integers(number))
    groups = 1 if row["groups"] == "one" else 2
    later = 2 if row["groups"] == "one added later" else 0
    parts, first = [], int(rng.integers(2))
    is_short = subject.driver.session.compiles and subject.level.top < LEVELS["default"].top
    small = SHAPES if is_short else _SMALL
    for i in range(number):
        group = i * groups // number
        after = later * group
        shape = (
            _shape(row["size"], subject.rng("shape"))
            if i == special
            else small[int(rng.integers(len(small)))]
        )
        content = row["content"] if i == special else None
        dtype = row["dtype"]
        if dtype == "mixed":  # either may be the first
            dtype = ("float64", "float32")[(i + first) % 2 if i < 2 else int(rng.integers(2))]
        misses = row["missing"]
        if i != special and (rng.integers(2) or i in (0, number - 1)):
            misses = "none"
        steps = {
            "none": range(after, _STEPS + later),
            "some": (after, after + 1, after + 3, after + 4),
            "the first ones": range(after + 2, _STEPS + after),
        }[misses]
        w = to_dtype(rng.standard_normal(shape), dtype)
        far = subject.driver.stateless or (row["t"] == "far" and not after)
        v = [to_dtype(0.1 * rng.standard_normal(shape), dtype)] if far else None
        made = _gradients(rng, shape, content, len(steps))
        given = {n: [to_dtype(g, dtype)] for n, g in zip(steps, made, strict=True)}
        parts.append(Part([w], given, group, v))
    rates = None
    if row["rate"] != "constant":
        last = max(n for part in parts for n in part.gradients)
        # Not before a load, after the second step: σ is not defined for a configuration with η = 0.
        rates = [1.0, 0.5, 0.0 if row["rate"] == "0 once" else 0.5, 0.25, 2.0, 1.5, 1.5][: last + 1]
    own = _options(subject, rng, row)
    chosen = [own]
    if groups == 2:
        others = _others(subject, own)
        # What a group does not name, it takes from the constructor.
        plain = {"weight_decay": 0.0, "maximize": False}
        own = {name: x for name, x in plain.items() if name in others} | own
        chosen = [own, own | others]
        if special * groups // number:  # the special tensor has the options of the row
            chosen.reverse()
    return Plan(
        parts,
        chosen,
        (0, later)[:groups],
        rates,
        int(2 ** rng.uniform(10, 23.9)) if row["t"] == "far" else 0,
        None if row["state"] == "kept" else later or 2,
        _WAYS[row["state"]],
        {
            "strided": row["strided"],
            "rows": row["rows"] and not row["fast"],
            "array_rate": row["array"],
            "fast": row["fast"],
            "bfloat16": row["dtype"] == "bfloat16",
            "more": subject.paths[0].get(row["path"], {}),
        },
    )


def _options(subject: Subject, rng: np.random.Generator, row: Row) -> dict[str, Any]:
    # With β = 0, late steps forget V, and an update by a difference loses what V has.
    wanted = {"beta": 0.5 if row["t"] == "far" and row["beta"] == 0 else row["beta"]}
    # Every dtype has 1/16, and a scheduled array must start from the constructor's rate.
    lr = 0.0625 if row["array"] else float(rng.uniform(0.02, 0.2))
    if "learning_rate" not in subject.driver.arguments.fixed:
        wanted["learning_rate"] = lr
    wanted |= {"weight_decay": float(rng.uniform(0.1, 0.5))} if row["weight_decay"] else {}
    wanted |= {"maximize": True} if row["maximize"] else {}
    return subject.options(**wanted)


def _others(subject: Subject, options: dict[str, Any]) -> dict[str, Any]:
    """Return other values of the options that a group may have of its own."""
    other = {
        "learning_rate": options["learning_rate"] / 2,
        "beta": 0.75 if options["beta"] != 0.75 else 0.25,
        "weight_decay": 0.0 if options.get("weight_decay") else 0.2,
        "maximize": not options.get("maximize"),
    }
    return {name: x for name, x in other.items() if name in behaviour.chosen(subject)}


def _shape(size: str, rng: np.random.Generator) -> tuple[int, ...]:
    n = int(rng.integers(64, 90))
    shapes: dict[str, tuple[int, ...]] = {
        "0-d": (),
        "small": (33, 17),
        "5,000": (5_000 + n,),
        "2^16": (2**16 + n,),
        "2^17": (2**10 + 1, 2**7 + 1),
        "2^20": (2**20 + n,),
        "10,000 rows": (10_000 + n, 3),
        "(3n, n)": (3 * n, n),
        "4-d": (32, 16, 3, 3),
        "5-d": (3, 4, 2, 3, 5),
    }
    return shapes[size]


def _gradients(
    rng: np.random.Generator, shape: tuple[int, ...], content: str | None, steps: int
) -> Iterator[np.ndarray]:
    """Yield gradients; from the second step on, most have the content, which None draws."""
    kinds = ("ordinary", "zero", "zero rows", "outlier", "negative", "tiny")
    for step in range(steps):
        kind = content if step and (step == 1 or rng.integers(2)) else "ordinary"
        kind = kind or kinds[int(rng.integers(len(kinds)))]
        g = np.asarray(rng.standard_normal(shape) * 10 ** rng.uniform(-1, 1))
        if kind == "zero":
            g = np.zeros(shape)  # not -0: one row in memory can hold it
        elif kind == "zero rows" and g.ndim:
            g[np.arange(len(g)) != rng.integers(len(g))] = 0
        elif kind == "outlier":
            g.flat[int(rng.integers(g.size))] = 1e4 * rng.choice([-1, 1])
        elif kind == "negative":
            g = -np.abs(g)
        elif kind == "tiny":
            g = 1e-9 * g
        yield g
