"""Checks beside the update: states, groups, unchanged gradients, maximize and weight decay."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line, refusal
from gravity_conformance.conform.checks import nonfinite
from gravity_conformance.conform.checks.findings import Finding, Judge, first_wrong, joined
from gravity_conformance.conform.checks.inputs import SCALES, SHAPES, to_dtype
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.together import COUNTED, Part, Plan
from gravity_conformance.conform.judge.trial import Case, WrongResultError


def resume(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with the state saved after six steps and loaded, also after another step."""
    if subject.driver.stateless:  # the caller keeps V and t, in the arrays that it was given
        return judge.judge(
            continued(subject, 17, "rolled_back"), "w and v overwritten by the caller"
        )
    return first_wrong(_resumed(subject, judge))


# The ways to go on from a state, other than to load it once.
_WAYS = {
    "rolled_back": "loaded after another step",
    "saved": "after a state_dict",
    "loaded_again": "its own state_dict loaded",
    "built_again": "built again, and its variables set after another step",
    "restored": "its state as arrays of NumPy",
}


def _resumed(subject: Subject, judge: Judge) -> Iterator[Finding]:
    ways = subject.driver.session.ways
    yield judge.judge(continued(subject, 17, "reloaded"))
    for way, note in _WAYS.items():
        if way in ways:
            yield judge.judge(continued(subject, 17, way), note)
    if "rolled_back" in ways and subject.at_rest:
        first = replace(continued(subject, 17, "rolled_back"), options=subject.options())
        note = "the state before the first step, loaded after another step"
        yield judge.judge(replace(first, reload_after=0), note)
    grouped = judge.findings.get("groups")
    if grouped is not None and grouped.outcome == "pass":
        yield together(subject, judge, replace(_grouped(subject), reload_after=4))


def assigned(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with other weights, which the user assigns after six steps."""
    case = continued(subject, 57, "")
    others, _ = subject.normal(0, [w.shape for w in case.weights], seed=58)
    return judge.judge(replace(case, assigned=others))


def continued(subject: Subject, seed: int, way: str) -> Case:
    """Return a case that continues after six steps, at a rate that changed after three."""
    shapes: list[tuple[int, ...]] = [(4, 3), (5,), (2, 3, 2, 2)]
    if way == "exchanged":  # one takes the place of another one of its shape
        shapes.append(shapes[-1])
    weights, gradients = subject.normal(12, shapes, (*SCALES, 1.0)[: len(shapes)], seed=seed)
    options = subject.starting | subject.accepted
    options["beta"] = subject.options(beta=0.6)["beta"]  # not the default of a constructor
    rates = subject.halved(12)
    how = subject.in_turn
    return Case(weights, gradients, options, rates=rates, reload_after=6, continued=way, how=how)


def groups(subject: Subject, judge: Judge) -> Finding:
    """Groups that differ in every option, or in one; some are added later."""
    if not subject.driver.session.groups:
        return Finding("not applicable", "it has no groups")
    plans = itertools.chain(
        [_grouped(subject), _layered(subject)], _alike(subject), _scheduled(subject)
    )
    finding = first_wrong(together(subject, judge, plan) for plan in plans)
    finding.note = finding.note or f"they differ in {', '.join(chosen(subject))}"
    return finding


def _scheduled(subject: Subject) -> Iterator[Plan]:
    """Yield groups of which each has a schedule of its own."""
    if subject.unschedulable is None:
        yield replace(_grouped(subject), rates=[1.0, 0.5, 0.25, 2.0, 1.5, 0.75])


def _layered(subject: Subject) -> Plan:
    """Return forty groups of one tensor each, as users make who give each layer its own rate."""
    weights, gradients = subject.normal(3, ((3,),) * 40, (1.0,) * 40, seed=119)
    parts = [
        Part([w], {n: [g[k]] for n, g in enumerate(gradients)}, k) for k, w in enumerate(weights)
    ]
    own, options = chosen(subject), []
    for k in range(len(parts)):
        other = {name: values[k // 3 % 4] for name, values in own.items()}
        if "learning_rate" in other:
            other["learning_rate"] = 0.1 * 0.95**k
        options.append(subject.options() | other)
    return Plan(parts, options, (0,) * len(parts))


def _alike(subject: Subject) -> Iterator[Plan]:
    """Yield groups that differ in one option; the last one has those of the constructor."""
    base, added = subject.options(learning_rate=0.07, beta=0.6), (0, 0, 2, 3)
    for name, values in chosen(subject).items():
        options = [base, base | {name: values[1]}, base | {name: values[2]}, base]
        parts = [normal_part(subject, 80 + k, range(n, 6), k) for k, n in enumerate(added)]
        yield Plan(parts, options, added)


def chosen(subject: Subject) -> dict[str, Sequence[Any]]:
    """Return the options that groups may have of their own, and their values."""
    wanted: dict[str, Sequence[Any]] = {
        "learning_rate": (0.1, 0.03, 0.2, 0.05),
        "beta": (0.9, 0.5, 0.75, 0.6),
        "weight_decay": (0.0, 0.1, 0.05, 0.2),
        "maximize": (False, True, False, True),
    }
    return {name: values for name, values in wanted.items() if name in subject.of_groups}


def changed(subject: Subject, judge: Judge) -> Finding:
    """Options of groups, in a state or of a Keras optimizer, that change after three steps."""
    if subject.driver.kind == "optax":
        return _changed_in_state(subject, judge)
    if subject.driver.kind == "keras":
        return _changed_decay(subject, judge)
    if not subject.driver.session.groups:
        return Finding("not applicable", "only in torch")
    wanted: dict[str, Any] = {"beta": 0.6, "weight_decay": 0.1, "maximize": True}
    later = {n: x for n, x in wanted.items() if n in subject.of_groups}
    later = {n: x for n, x in later.items() if subject.refused(**{n: x}) is None}
    if not later:
        return Finding("not applicable", "no option belongs to its groups")
    off = {"weight_decay": 0.0, "maximize": False}
    off = {n: x for n, x in off.items() if n in later and n in subject.accepted}
    weights, gradients = subject.normal(6, seed=61)
    base = subject.options()
    how = {"groups": [(1, base), (len(weights) - 1, base)]} if subject.takes_groups else {}
    case = Case(weights, gradients, base, reload_after=3, later=later, how=how)
    back = replace(case, options=subject.options(**subject.accepted), later=off)
    note = f"it changes {', '.join(later)}"
    cases = [(case, note), (back, f"it sets {' and '.join(off)} back")][: 1 + bool(off)]
    finding = first_wrong(judge.judge(*each) for each in cases)
    finding.note = finding.note or note
    return finding


def _changed_in_state(subject: Subject, judge: Judge) -> Finding:
    """Judge β and weight decay that the user changes where `optax.inject_hyperparams` has them."""
    way = subject.driver.session.rate_ways[-1]  # of all options
    how: dict[str, Any] = {"rates_by": way}
    # A factory may leave out a decay of 0, so that its state has no place for another one.
    decay = {n: 0.25 for n in subject.accepted if n == "weight_decay"}
    start = subject.options(beta=0.875, **decay)
    try:
        session: Any = subject.driver.start([np.ones(5, np.float32)], start, **how)
        held, names = session.state.hyperparams, subject.driver.arguments.names
    except ANYTHING as error:
        return Finding("not applicable", refusal(way, one_line(error)))
    # A float32 has these values.
    wanted = {"beta": 0.625, "weight_decay": 0.125}
    later = {n: x for n, x in wanted.items() if names.get(n) in held}
    later = {n: x for n, x in later.items() if n == "beta" or n in subject.accepted}
    if not later:
        return Finding("not applicable", "its state holds no option")
    weights, gradients = subject.normal(6, seed=61)
    case = Case(weights, gradients, start, reload_after=3, later=later, how=how)
    note = f"it changes {', '.join(later)} in the state"
    finding = judge.judge(case, note)
    if finding.outcome == "pass" and "weight_decay" in later:
        with contextlib.suppress(*ANYTHING):
            from_0 = replace(case, options=start | {"weight_decay": 0.0})
            finding = judge.judge(from_0, f"{note}, from a decay of 0")
    finding.note = finding.note or note
    return finding


def _changed_decay(subject: Subject, judge: Judge) -> Finding:
    """Judge a run in which the user changes `weight_decay` of the base class of Keras."""
    weights, gradients = subject.normal(6, seed=61)
    case = Case(weights, gradients, subject.decaying)
    given: Any = case.options.get("weight_decay")
    optimizer = subject.driver.start(weights, case.options).optimizer
    if not given or optimizer.weight_decay != given:
        return Finding("not applicable", "its weight decay is not that of the base class")
    later = {"weight_decay": 0.25 * given}
    return judge.judge(replace(case, reload_after=3, later=later), "it changes weight_decay")


def _grouped(subject: Subject) -> Plan:
    added, options, own = (0, 0, 0, 3), [], chosen(subject)
    for k in range(len(added)):
        options.append(subject.options() | {name: values[k] for name, values in own.items()})
    steps = [range(after, 6) for after in added]
    return Plan(
        [normal_part(subject, 40 + k, steps[k], k) for k in range(len(added))], options, added
    )


def normal_part(subject: Subject, seed: int, steps: Sequence[int], group: int = 0) -> Part:
    """Return normally distributed tensors of a group, with their gradients in the given steps."""
    weights, gradients = subject.normal(len(steps), seed=seed)
    return Part(weights, dict(zip(steps, gradients, strict=True)), group)


def missing(subject: Subject, judge: Judge) -> Finding:
    """Tensors without a gradient: after two steps, in between, and before the third step."""
    if not subject.driver.session.misses:
        return Finding("not applicable", "every tensor has a gradient")
    try:
        finding = together(subject, judge, gaps(subject, **subject.in_turn))
    except AttributeError as error:  # it asks None for something, which is no refusal
        return Finding("error", one_line(error))
    if finding.outcome == "pass" and subject.driver.session.groups:
        weights, gradients = subject.normal(4, seed=62)
        case = Case(weights, gradients, subject.options(), how={"frozen": True})
        other = judge.judge(case, "where requires_grad was set after construction")
        finding = finding if other.outcome == "pass" else other
    if finding.outcome == "pass" and subject.counted in COUNTED[::2]:  # what others count is open
        other = together(subject, judge, _silent(subject))
        if other.outcome != "pass":
            other.note = joined("with steps without any gradient", other.note)
            finding = other
    finding.note = finding.note or f"t counts the steps of {subject.counted}"
    return finding


def _silent(subject: Subject) -> Plan:
    """Return tensors of which none has a gradient in the first step, nor in the fourth one."""
    parts = [normal_part(subject, 114 + k, (1, 2, 4, 5)) for k in range(2)]
    return Plan(parts, [subject.decaying], silent=True)


def gaps(subject: Subject, **how: Any) -> Plan:
    """Return tensors that miss gradients, in different steps."""
    steps: Sequence[Sequence[int]] = ((0, 1, 4, 5), range(6), range(2), (2, 3, 5))
    parts = [normal_part(subject, 44 + k, given) for k, given in enumerate(steps)]
    return Plan(parts, [subject.decaying], how=how)


def together(subject: Subject, judge: Judge, plan: Plan) -> Finding:
    """Judge each part of a plan."""
    worst = 0.0
    for part, trial in zip(plan.parts, subject.together(plan), strict=True):
        finding = judge.found(trial)
        if finding.outcome != "pass":
            of = [f"{name} {value:g}" for name, value in trial.case.options.items()]
            after = plan.added[part.group]
            of += [f"added after {after} steps"] if after else []
            finding.note = joined(f"group of {', '.join(of)}", finding.note)
            return finding
        worst = max(worst, finding.worst or 0.0)
    return Finding("pass", "", worst)


def rows(subject: Subject, judge: Judge) -> Finding:
    """Gradients as their rows that are not zero, each as a sum of two, as of an embedding."""
    if not subject.driver.session.takes_rows():
        return Finding("not applicable", "only in torch and TensorFlow")
    shapes = ((40, 3), (7,), (300, 8), (5, 4, 3), (subject.level.vocabulary * 9, 2))
    weights, gradients = subject.normal(6, shapes, (1.0, 30.0, 0.02, 5.0, 0.3), seed=59)
    for step, grads in enumerate(gradients[1:]):
        for g in grads:
            g[step % 2 :: 2] = 0
    case = Case(weights, gradients, subject.decaying, how={"rows": True})
    tables = [i for i, w in enumerate(weights) if w.ndim == 2]
    for only in (range(len(weights)), tables):
        try:
            finding = judge.judge(case.only(only))
        except WrongResultError:
            raise
        except Exception:
            if subject.driver.kind != "torch":
                raise
            continue
        finding = first_wrong(itertools.chain([finding], _more_rows(subject, judge, case)))
        if only is tables and finding.outcome == "pass":
            return replace(finding, outcome="remark", note="it takes those of tables only")
        return finding
    return Finding("not applicable", "it takes none, like most optimizers of torch")


def _more_rows(subject: Subject, judge: Judge, case: Case) -> Iterator[Finding]:
    yield nonfinite.swallowed(judge, how=case.how)
    short = case.only(range(3))
    no_rows = [[0 * g for g in grads] for grads in short.gradients[2:4]]
    gradients = [*short.gradients[:2], *no_rows, *short.gradients[4:]]
    how = {**case.how, **subject.in_turn}
    note = joined("with no rows in two steps", "also inside tf.function" if subject.in_turn else "")
    yield judge.judge(replace(short, gradients=gradients, how=how), note)


def default_dtype(subject: Subject, judge: Judge) -> Finding:
    """Three hundred steps where a half type is the default dtype, in which no counter may stop."""
    if (found := subject.driver.session.in_half_precision()) is None:
        return Finding("not applicable", "only in torch and Keras")
    name, setting = found
    weights, gradients = subject.normal(300, ((3,), (2,)), (1.0, 5.0), seed=68)
    options = subject.decaying | subject.options(learning_rate=0.125)
    rate = float(options["learning_rate"])
    exact = float(to_dtype(np.array(rate, np.float32), "bfloat16")) == rate
    if subject.driver.kind == "keras" and not exact:
        return Finding("not applicable", f"Keras would round the learning rate {rate:g}")
    with setting:
        finding = judge.judge(Case(weights, gradients, options))
    finding.note = joined(f"with {name}", finding.note)
    return finding


def gradient(subject: Subject, judge: Judge) -> Finding:
    """No step of any check changes a gradient, and no plain function changes w or v."""
    shapes: Sequence[tuple[int, ...]] = SHAPES
    scales: Sequence[float] = SCALES
    if subject.refused(shape=()) is None:
        shapes, scales = (*SHAPES, ()), (*SCALES, 1.0)
    for wanted in ({}, *({name: value} for name, value in subject.accepted.items())):
        weights, gradients = subject.normal(4, shapes, scales, seed=18)
        options = subject.options(**wanted)
        judge.observe(Case(weights, gradients, options))
        if subject.driver.kind in ("optax", "keras"):
            host = Case(weights, gradients, options, how={"host": True})
            with contextlib.suppress(*ANYTHING):  # it may need arrays of its framework
                found = judge.judge(host, "with gradients of NumPy")
                if found.outcome != "pass":
                    return judge.touched or found
    return judge.touched or Finding("pass")


def maximize(subject: Subject, judge: Judge) -> Finding:
    """A trajectory with maximize, which negates the gradient."""
    if not subject.offers("maximize"):
        return Finding("not applicable", "not offered")
    weights, gradients = subject.normal(12, seed=19)
    options = subject.options(maximize=True)
    return judge.judge(Case(weights, gradients, options, subject.velocity(weights)))


def weight_decay(subject: Subject, judge: Judge) -> Finding:
    """Decoupled weight decay, W ← W − η λ W; also η λ > 1, with a schedule, and with maximize."""
    if not subject.offers("weight_decay"):
        return Finding("not applicable", "not offered")
    return first_wrong(_decaying(subject, judge))


def _decaying(subject: Subject, judge: Judge) -> Iterator[Finding]:
    weights, gradients = subject.normal(12, SHAPES * 4, SCALES * 4, seed=20)
    options = subject.options(weight_decay=0.1)
    case = Case(weights, gradients, options, subject.velocity(weights))
    yield judge.judge(case)
    if subject.refused(weight_decay=30.0) is None:
        large = subject.options(weight_decay=30.0)
        yield judge.judge(replace(case, gradients=gradients[:4], options=large), "λ = 30")
    if "maximize" in subject.accepted:
        options = options | {"maximize": True}
    yield judge.judge(Case(weights, gradients[:6], options, rates=subject.halved(6)))
