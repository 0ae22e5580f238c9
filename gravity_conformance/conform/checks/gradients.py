"""Checks that feed gradients and judge every element of V and W after every step."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line, refusal
from gravity_conformance.conform.checks import nonfinite
from gravity_conformance.conform.checks.findings import Finding, Judge, first_wrong, joined
from gravity_conformance.conform.checks.inputs import LEVELS, SHAPES, patterned, to_dtype
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge.perform import certain, inferred, seen
from gravity_conformance.conform.judge.trial import Case, Run, Trial, WrongResultError
from gravity_conformance.drive.optax_session import CONSTANT
from gravity_conformance.drive.session import Arrays
from gravity_core import hyperparameters as hp

# Steps after which counters of 8, 11, 15, 16 and 24 bits stop or start again.
FARTHER = (10**8 - 2, 2**31 - 3)  # where a counter of users may go, but none in float32
FAR = (2**8 - 2, 2**11 - 2, 2**15 - 2, 2**16 - 2, 2**24 - 8)


def update(subject: Subject, judge: Judge) -> Finding:
    """Updates of a few tensors, of a long list, and of tensors of many sizes and shapes."""
    return first_wrong(_updates(subject, judge))


def _updates(subject: Subject, judge: Judge) -> Iterator[Finding]:
    rng = subject.rng("update")
    weights, gradients = subject.normal(3)
    small = Case(weights, gradients, subject.options(), subject.velocity(weights))
    yield judge.judge(small)
    if "learning_rate" not in subject.driver.arguments.fixed:  # η has no limits, and may be an int
        at_zero = replace(small, weights=[0 * w for w in weights])  # where a small step shows
        for lr in (1e-9, 1e-5, 1, 5.0, 200.0):
            if isinstance(lr, float) or subject.refused(learning_rate=lr) is None:
                options = subject.options(learning_rate=lr)
                yield judge.judge(replace(at_zero, options=options), f"η = {lr:g}")
    yield judge.judge(_damped(subject, "float32"), "with gradients whose damping is small")
    yield judge.judge(_agreeing(subject, "float32"), "with gradients that nearly agree")
    # A list that is longer than a block of tensors.
    weights, gradients = patterned(rng, 2, [(3,)] * subject.level.listed)
    yield judge.judge(Case(weights, gradients, subject.options(), subject.velocity(weights)))
    for _ in range(subject.level.repeats):
        yield judge.judge(subject.swept(rng, fast=False))


def _damped(subject: Subject, dtype: str) -> Case:
    """Return updates from W = 0 in which (G/m)² is from a few roundings of 1 to about 1."""
    first = {"float32": 0.01, "float64": 1e-4}[dtype]
    scales = np.geomspace(first, 0.3, 6).tolist()
    shapes = ((200,),) * len(scales)
    weights, gradients = subject.normal(2, shapes, scales, np.dtype(dtype), seed=118)
    weights = [0 * w for w in weights]
    return Case(weights, gradients, subject.options(), subject.velocity(weights))


def _agreeing(subject: Subject, dtype: str) -> Case:
    """Return updates by gradients that agree in all that a quick comparison of two looks at.

    In the second step, all elements agree up to 2⁻¹⁷ or 2⁻³⁰ of themselves. In the fourth, they
    are in another order, and in the fifth one has another maximum; their ends and their sum stay.
    """
    weights, (given, _) = subject.normal(2, dtype=np.dtype(dtype), seed=120)
    first = [np.round(64 * g) / 64 for g in given]  # so that sums are exact
    close = 2.0 ** {"float32": -17, "float64": -30}[dtype]
    gradients = [[g * g.dtype.type(c) for g in first] for c in (1, 1 + close, 1, 1, 1)]
    for g, other in zip(gradients[3], gradients[4], strict=True):
        g.flat[1:-1] = g.flat[1:-1][::-1].copy()
        other.flat[1:3] += np.array([-8, 8], dtype)
    return Case(weights, gradients, subject.options(), subject.velocity(weights))


def large(subject: Subject, judge: Judge) -> Finding:
    """Two updates of a table as of language models, of a wide and a tall one, and of a vector."""
    rows = subject.level.vocabulary + int(subject.rng("large").integers(64))
    shapes = ((rows, 768), (5, 9 * rows), (9 * rows, 5), (768 * rows - 9,))
    weights, gradients = subject.normal(2, shapes, (1.0,) * 4, seed=51)
    for g in gradients[0]:
        g.flat[-1] = 10.0  # the greatest: no other number is as far from 0
    case = Case(weights, gradients, subject.options(), subject.velocity(weights))
    finding, note = judge.judge(case), f"shapes {', '.join(map(str, shapes))}"
    finding.note = joined(note, finding.note)
    return finding


def trajectory(subject: Subject, judge: Judge) -> Finding:
    """Sixty steps, with η and β other than their defaults."""
    rng = subject.rng("trajectory")
    weights, gradients = subject.normal(60, seed=4)
    lr, beta = float(rng.uniform(0.02, 0.05)), float(rng.uniform(0.5, 0.8))
    options = subject.options(learning_rate=lr, beta=beta)
    case = Case(weights, gradients, options, subject.velocity(weights), how=subject.in_turn)
    return judge.judge(case, plot=True)


def drawn(subject: Subject, judge: Judge) -> Finding:
    """A trajectory that starts from the implementation's own V₀."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    weights, gradients = subject.normal(10, seed=5)
    return judge.judge(Case(weights, gradients, subject.drawing))


def long(subject: Subject, judge: Judge) -> Finding:
    """A long trajectory; where t can be set, also steps far from the first."""
    steps = subject.level.steps[subject.unwritable is None]
    weights, gradients = subject.normal(steps, ((3,), (2,)), (1.0, 5.0), seed=6)
    case = Case(weights, gradients, subject.options(), fast=True)
    counts = FAR + (FARTHER if subject.driver.stateless else ())
    # A step that writes a scheduled rate is compiled for every number of steps.
    paths = (False, True) if subject.driver.session.compiles else (False,)
    steps_far = far(subject, judge, counts, paths)
    finding = first_wrong(itertools.chain([judge.judge(case)], steps_far))
    finding.note = joined(f"{steps} steps", finding.note)
    return finding


def far(
    subject: Subject, judge: Judge, counts: Iterable[int], paths: Iterable[bool]
) -> Iterator[Finding]:
    """Judge five steps after each of `counts`, compiled or not, if t can be set."""
    if subject.unwritable is not None:
        return
    weights, gradients = subject.normal(5, ((3,), (2,)), (1.0, 5.0), seed=29)
    # With β = 1, 1 − β̂ = 1 / (t + 2) shows an error of t, and with β = 0.9999 one of 1 − β.
    betas = [b for b in (1.0, 0.9999) if subject.refused(beta=b) is None] or [hp.BETA]
    for count, fast, beta in itertools.product(counts, paths, betas):
        v, options = [0 * w for w in weights], subject.decaying
        options["beta"] = subject.options(beta=beta)["beta"]
        case = Case(weights, gradients, options, v, count, fast=fast)
        yield judge.judge(case, f"after {count:,} steps")


def double(subject: Subject, judge: Judge) -> Finding:
    """A trajectory in float64, and gradients of many sizes, at which 1 differs from 1 + (G/m)²."""
    return first_wrong(_doubles(subject, judge))


def _doubles(subject: Subject, judge: Judge) -> Iterator[Finding]:
    weights, gradients = subject.normal(20, dtype=np.float64, seed=7)
    case = Case(weights, gradients, subject.options())
    yield judge.judge(case)
    if subject.driver.session.compiles and subject.level.top >= LEVELS["default"].top:
        yield judge.judge(replace(case, fast=True), "compiled")
        if subject.driver.kind == "optax":
            yield in_one_call(subject, judge, "float64")
    yield judge.judge(_damped(subject, "float64"), "with gradients whose damping is small")
    yield judge.judge(_agreeing(subject, "float64"), "with gradients that nearly agree")
    yield from _by_numpy(judge, replace(case, gradients=gradients[:3]))
    yield from _close(subject, judge, replace(case, gradients=gradients[:4]))
    if subject.driver.kind not in ("keras", "torch"):
        # Keras keeps a rate in float32. The combinations have those of torch.
        short = replace(case, gradients=gradients[:3], how={"array_rate": True})
        yield judge.judge(short, "a rate that is an array")
    shapes, scales = ((200,),) * 5, (10.0, 100.0, 1e3, 3e3, 1e4)
    weights, gradients = subject.normal(3, shapes, scales, np.float64, seed=76)
    yield judge.judge(Case(weights, gradients, subject.options()), "large gradients")
    weights, gradients = subject.normal(3, SHAPES, (1e100,) * 3, np.float64, seed=105)
    gradients[1][1][:] = [1e300, 0, 1, -1e-30, 1e150]
    yield judge.judge(Case(weights, gradients, subject.options()), "huge gradients")
    yield nonfinite.swallowed(judge, "float64")


def _close(subject: Subject, judge: Judge, case: Case) -> Iterator[Finding]:
    """Judge rates and β that nearly agree, as a cosine's first rates do."""
    if subject.driver.kind == "keras":  # it keeps a rate in float32
        return
    rate = float(case.options["learning_rate"])
    if subject.unschedulable is None:
        rates = [rate * (1 - 1e-9 * k) for k in range(len(case.gradients))]
        yield judge.judge(replace(case, rates=rates), "with rates that nearly agree")
    if subject.driver.stateless or subject.offers("beta"):
        for beta in (0.9375, 0.9375 + 2.0**-30):
            options = {**case.options, "beta": subject.options(beta=beta)["beta"]}
            yield judge.judge(replace(case, options=options), "with β that nearly agree")
    if "weight_decay" in subject.accepted:
        for decay in (0.125, 0.125 + 2.0**-26):  # float32 has both
            options = {**case.options, "weight_decay": decay}
            yield judge.judge(
                replace(case, options=options), "with weight decays that nearly agree"
            )


def _by_numpy(judge: Judge, case: Case) -> Iterator[Finding]:
    """Judge a function with t, η and β that are scalars of NumPy, which one in C may refuse."""
    if judge.subject.driver.stateless:
        try:
            yield judge.judge(replace(case, how={"rates_by": "NumPy"}), "t, η and β of NumPy")
        except WrongResultError:
            raise
        except ANYTHING:
            return


def compiled(subject: Subject, judge: Judge) -> Finding:
    """Compiled as users compile it, by jax.jit or by Keras's trainer: tensors of many sizes."""
    if not subject.driver.session.compiles:
        return Finding("not applicable", "nothing is compiled")
    return first_wrong(_compiled(subject, judge))


def _compiled(subject: Subject, judge: Judge) -> Iterator[Finding]:
    weights, gradients = subject.normal(12, seed=26)
    # β is new, so whatever is cached for it is made while a step is traced.
    options = subject.options(beta=0.8125) | subject.accepted
    case = Case(weights, gradients, options, rates=subject.halved(12), fast=True)
    yield judge.judge(case)
    if subject.driver.kind == "optax":
        yield judge.judge(replace(case, how={"donated": True}), "with donated buffers")
        # Nothing that the first training donated may be needed.
        short = replace(case, gradients=gradients[:2], rates=None, fast=False)
        yield judge.judge(short, "after a training with donated buffers")
        if subject.unschedulable is None:
            with_rates = replace(case, options=options | _representable(subject))
            finding = _by_other_ways(judge, with_rates, Finding("pass"))
            # A rate that only compiled code refuses is no reason to feed nothing else.
            yield Finding("pass", finding.note) if finding.outcome == "remark" else finding
    for scale in (1e-25, 1e12):
        weights, gradients = subject.normal(3, SHAPES, (scale,) * 3, seed=106)
        small = Case(weights, gradients, options, fast=True)
        yield judge.judge(small, f"gradients of about {scale:g}")
    yield nonfinite.swallowed(judge, fast=True)
    if subject.driver.session.builds_in_a_graph():
        started = replace(case, options=subject.starting, rates=None, fast=False)
        how = {"mode": "function", "unbuilt": True}
        yield judge.judge(replace(started, how=how), "built inside tf.function")
    yield judge.judge(subject.swept(subject.rng("compiled"), True, options))


def transformed(subject: Subject, judge: Judge) -> Finding:
    """All steps of a training in one call: `jax.lax.scan`, also in `jax.vmap`, jit, tf.function."""
    calls = subject.driver.session.ways_in_one_call()
    if not calls:
        return Finding("not applicable", "nothing is compiled")
    return first_wrong(in_one_call(subject, judge, "float32", way) for way in calls)


def in_one_call(subject: Subject, judge: Judge, dtype: str, way: str = "") -> Finding:
    """Judge a training whose steps are made in one compiled call, by default in the first way."""
    way = way or subject.driver.session.ways_in_one_call()[0]
    weights, gradients = subject.normal(5, seed=66)
    weights = [to_dtype(w, dtype) for w in weights]
    gradients = [[to_dtype(g, dtype) for g in grads] for grads in gradients]
    bfloat16 = dtype == "bfloat16"
    case = Case(weights, gradients, subject.decaying, bfloat16=bfloat16)

    def begun(weights: Arrays) -> Any:
        return subject.driver.start(weights, case.options, bfloat16=bfloat16)

    session = begun(weights)
    v = [0 * w for w in weights] if subject.at_rest else session.velocity()
    run = Run(0, (v, weights), certain(case))
    if not subject.at_rest and (subject.hidden or v is None):
        # W = 0 and a step with zero gradients make V known.
        zeros = [0 * w for w in weights]
        made = begun(zeros).in_one_call([zeros, *gradients], way)
        _, w = seen(case, None, made[0][1], 1)
        v, uncertain = inferred(case, w)
        run, made = Run(1, (v, w), uncertain), made[1:]
    else:
        made = session.in_one_call(gradients, way)
    for k, (v, w) in enumerate(made):
        run.states.append(seen(case, None if subject.hidden else v, w, run.count + k + 1))
    return judge.found(Trial(case, run, subject.first_step), way)


def schedule(subject: Subject, judge: Judge) -> Finding:
    """A learning rate that changes during the run, and is 0 at one step."""
    if subject.unschedulable is not None:
        return Finding("not applicable", subject.unschedulable)
    weights, gradients = subject.normal(12, seed=9)
    rates = [0.1, 0.1, 0.05, 0.2, 0.0, 0.1, 0.3, 0.01, 0.02, 0.04, 0.08, 0.16]
    options, why = _representable(subject), subject.refused(schedule=[0.0, 0.1])
    options["learning_rate"] = rates[0]
    if why is not None:
        rates[rates.index(0.0)] = 0.15
    finding = judge.judge(Case(weights, gradients, options, rates=rates))
    if why is not None and finding.outcome == "pass":
        finding.outcome, finding.note = "remark", refusal("a learning rate of 0", why)
    if subject.driver.kind == "optax" and finding.outcome in ("pass", "remark"):
        own = options | ({"learning_rate": 0.0625} if subject.offers("learning_rate") else {})
        constant = Case(weights, gradients[:3], own, how={"rates_by": CONSTANT})
        other = judge.judge(constant, f"with {CONSTANT}")
        finding = finding if other.outcome == "pass" else other
    short = Case(weights, gradients[:8], options, rates=rates[:8])  # 0 included
    return _by_other_ways(judge, short, finding)


def _representable(subject: Subject) -> dict[str, Any]:
    """Return options with β and λ that every dtype has, since an array may hold them."""
    wanted = {"beta": 0.875} | subject.accepted
    if "weight_decay" in wanted:
        wanted["weight_decay"] = 0.125
    return subject.starting | {name: subject.options(**wanted)[name] for name in wanted}


def _by_other_ways(judge: Judge, case: Case, finding: Finding) -> Finding:
    """Judge a case whose rates come in the other ways of the framework; refusals are remarks."""
    refused = []
    for way in judge.subject.driver.session.rate_ways:
        if finding.outcome not in ("pass", "remark"):
            break
        try:
            other = judge.judge(_by_way(judge.subject, case, way), f"with {way}")
        except WrongResultError:
            raise
        except ANYTHING as error:
            refused.append(refusal(way, one_line(error)))
        else:
            finding = finding if other.outcome == "pass" else other
    if refused and finding.outcome in ("pass", "remark"):
        finding.outcome = "remark"
        finding.note = joined(finding.note, *refused)
    return finding


def _by_way(subject: Subject, case: Case, way: str) -> Case:
    """Return a case whose rates come in a way; if a configuration has them, it is loaded."""
    how = {"rates_by": way}
    if way not in subject.driver.session.rates_saved:
        return replace(case, how=how)
    after = 6 if subject.reloads else None
    return replace(case, how=how | subject.in_turn, reload_after=after)


def rate(subject: Subject, judge: Judge) -> Finding:
    """A learning rate that is an array of the framework."""
    weights, gradients = subject.normal(3, seed=30)
    options = subject.options(learning_rate=0.0625)  # every dtype has it
    v = subject.velocity(weights)
    return judge.judge(Case(weights, gradients, options, v, how={"array_rate": True}))


def strides(subject: Subject, judge: Judge) -> Finding:
    """Weights and gradients that are transposed, sliced or expanded, or lie in one buffer."""
    if not subject.driver.session.strides:
        return Finding("not applicable", "its arrays have no strides")
    case = _of_six_shapes(subject, "strides")
    for grads in case.gradients:
        for g in grads[::2] + grads[9:18]:
            g[:] = g[:1]  # one row in memory can hold such a gradient
    ways = {"strided": "", "packed": "of parameters that lie in one buffer"}
    cases = ((replace(case, how={way: True}), note) for way, note in ways.items())
    return first_wrong(_with_options(judge, *each) for each in cases)


def swapped(subject: Subject, judge: Judge) -> Finding:
    """Arrays of the byte order that the machine does not have, as from some files."""
    if subject.driver.kind != "plain":
        return Finding("not applicable", "only in NumPy")
    return _with_options(judge, replace(_of_six_shapes(subject, "swapped"), how={"swapped": True}))


def _with_options(judge: Judge, case: Case, note: str = "") -> Finding:
    """Judge a case, and the same case with weight decay and maximize, which is no refusal of it."""
    finding, accepted = judge.judge(case, note), judge.subject.accepted
    if finding.outcome != "pass" or not accepted:
        return finding
    names = " and ".join(name.replace("_", " ") for name in accepted)
    note = joined(note, f"with {names}")
    try:
        return judge.judge(replace(case, options=judge.subject.options(**accepted)), note)
    except WrongResultError:
        raise
    except ANYTHING as error:
        return Finding("error", f"{note}: {one_line(error)}")


def _of_six_shapes(subject: Subject, name: str) -> Case:
    """Return steps of tensors of six shapes; in a list of 36, each gets every layout."""
    shapes = ((4, 3), (5,), (2, 3, 4), (33, 17), (70,), (3, 2, 2, 2)) * 6
    weights, gradients = patterned(subject.rng(name), 4, shapes)
    return Case(weights, gradients, subject.options(), subject.velocity(weights))


def turns(subject: Subject, judge: Judge) -> Finding:
    """Two trainings step by step in turn: nothing of one may be used in the other."""
    rng = subject.rng("turns")
    findings: list[Finding] = []
    others, accepted = {"learning_rate": 0.04}, subject.accepted
    others |= {n: x for n, x in {"weight_decay": 0.2, "maximize": True}.items() if n in accepted}
    alike, different = (SHAPES, SHAPES), (((3,), (2, 3, 2, 2)), ((5,), (4, 3), (3,)))
    # The shapes of both trainings, β of the second one, and whether both have schedules.
    pairs = [(alike, 0.9, False), (alike, 0.7, False), (different, 0.7, False)]
    if subject.unschedulable is None:
        pairs.append((alike, 0.9, True))
    shares = (False, True) if subject.driver.session.shares else (False,)
    for number, ((pair, beta, scheduled), shared) in enumerate(itertools.product(pairs, shares)):
        if shared and scheduled:  # one optimizer has one schedule
            continue
        cases: list[Case] = []
        how = {"more": {"name": f"gravity_{number}"}} if subject.takes_a_name else {}
        for shapes in pair:
            options = subject.decaying
            if cases and not shared:
                options = subject.options(**others, beta=beta)
            weights, gradients = patterned(rng, 5, shapes)
            factors = (1.0, 2.0, 0.5, 1.0, 2.0) if cases else (1.0, 0.5, 0.25, 0.5, 1.0)
            rates = [float(options["learning_rate"]) * x for x in factors] if scheduled else None
            velocity = subject.velocity(weights)
            cases.append(Case(weights, gradients, options, velocity, rates=rates, how=how))
        findings += [judge.found(trial) for trial in judge.in_turn(cases, shared=shared)]
    wrong = [finding for finding in findings if finding.outcome != "pass"]
    return wrong[0] if wrong else max(findings, key=lambda finding: finding.worst or 0.0)


def _scaled(subject: Subject, judge: Judge, scale: float, seed: int) -> Finding:
    weights, gradients = subject.normal(6, SHAPES, (scale,) * 3, seed=seed)
    return judge.judge(Case(weights, gradients, subject.options()))


def zero(subject: Subject, judge: Judge) -> Finding:
    """Zero gradients, after one step with other gradients; also from the first step on."""
    weights, gradients = subject.normal(6, seed=10)
    for grads in gradients[1:]:
        grads[:] = [0 * g for g in grads]
    late = [gradients[1]] * 3 + gradients[:1] * 2
    cases = (
        (Case(weights, gradients, subject.options()), ""),
        (Case(weights, late, subject.decaying), "in the first three steps"),
    )
    return first_wrong(judge.judge(*each) for each in cases)


def huge(subject: Subject, judge: Judge) -> Finding:
    """Gradients of about 1e12, and one element of 3e38; W and V of about a million."""
    weights, gradients = subject.normal(6, SHAPES, (1e12,) * 3, seed=11)
    gradients[3][1][:] = [3e38, 0, 1, -1e-30, 1e19]
    return first_wrong(_huge(subject, judge, Case(weights, gradients, subject.options())))


def _huge(subject: Subject, judge: Judge, case: Case) -> Iterator[Finding]:
    yield judge.judge(case)
    weights, gradients = subject.normal(3, seed=121)
    large = [np.asarray(1e6 * w, w.dtype) for w in weights]  # no float16 has it
    case = Case(large, gradients, subject.options())
    if subject.unwritable is None:
        case = replace(case, velocity=[-w for w in large])
    yield judge.judge(case, "with W and V of about a million")


def tiny(subject: Subject, judge: Judge) -> Finding:
    """Gradients of 1e-25."""
    return _scaled(subject, judge, 1e-25, 12)


def subnormal(subject: Subject, judge: Judge) -> Finding:
    """Gradients of 1e-41, which are subnormal numbers in float32."""
    return _scaled(subject, judge, 1e-41, 13)


def empty(subject: Subject, judge: Judge) -> Finding:
    """Empty tensors, next to one that is not empty."""
    weights, gradients = subject.normal(3, ((0,), (0, 3), (3,)), (1.0, 1.0, 2.0), seed=15)
    return judge.judge(Case(weights, gradients, subject.options()))


def scalar(subject: Subject, judge: Judge) -> Finding:
    """0-d tensors."""
    weights, gradients = subject.normal(4, ((), (3,)), (1.0, 5.0), seed=16)
    return judge.judge(Case(weights, gradients, subject.options()))
