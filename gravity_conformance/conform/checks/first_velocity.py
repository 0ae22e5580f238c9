"""The check of V₀: its standard deviation, its distribution, and its independence."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.inputs import LEVELS, SHAPES, to_dtype
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge import distribution
from gravity_conformance.conform.judge.perform import is_undrawn
from gravity_conformance.drive.session import Arrays, Session
from gravity_conformance.mutations import MUTATIONS, REFERENCE
from gravity_core import hyperparameters as hp
from gravity_core.coefficients import beta_hat
from gravity_core.velocity import initial_velocity


def v0(subject: Subject, judge: Judge) -> Finding:
    """V₀: its σ, its distribution, and that no numbers of it depend on each other."""
    if subject.driver.stateless:
        return Finding("not applicable", "V is the caller's")
    if subject.starts_from_rest:
        return Finding("remark", "V starts from rest: there is no argument for α or σ")
    options = drawing(subject)
    alpha, lr = float(options.get("alpha", hp.ALPHA)), float(options["learning_rate"])
    std = std_of(subject, options)
    shapes = _shapes(subject)
    drawn = [_drawn(subject, options, s) for s in (shapes, shapes[: 4 * _FEW])]
    measured = float(np.std(drawn[0][_LARGEST].astype(np.float64)))
    agree = all(a.tobytes() == b.tobytes() for a, b in zip(*drawn, strict=False))
    note = f"std {measured:.4g} for α / η = {std:.4g}; "
    if agree and measured:
        ours = all(
            a.tobytes()
            == initial_velocity(a.shape, a.dtype, std=std, seed=hp.SEED, index=i).tobytes()
            for i, a in enumerate(drawn[0])
        )
        note += "own seed, two constructions agree" + (", the bits of gravity_core" if ours else "")
    elif measured:
        note += "from a global random state, two constructions differ"
    note = note.removesuffix("; ")
    finding = Finding("differs", note)
    few, many = drawn[0][:_FEW], drawn[0]
    if (found := distribution.dependent(few) or distribution.equal(many)) is not None:
        finding.first, finding.diagnosis = found, "the numbers of V₀ depend on each other"
    elif (found := distribution.wrong_std(drawn[0], std)) is not None:
        mistakes = [m for m in MUTATIONS if m.std is not REFERENCE.std]
        fits = [m for m in mistakes if not distribution.wrong_std(drawn[0], m.std(alpha, lr, RATE))]
        finding.first, finding.diagnosis = found, " or ".join(m.description for m in fits) or None
    elif (found := _abnormal(drawn[0], std)) is not None:
        finding.first, finding.diagnosis = found, "V₀ is not normal"
    elif (found := _elsewhere(subject, options, std) or _repeated(subject, options)) is not None:
        finding.note, finding.first = "", found
    elif subject.offers("seed") and not agree:
        finding.first = "two constructions with one seed have different V₀"
    elif subject.offers("seed") and (found := _seeds(subject, options)) is not None:
        finding.first, finding.diagnosis = found, "V₀ of one seed depends on that of another"
    elif _is_of_build(subject, options, std):
        note += "; a learning rate that is set before build gives σ, not that of the constructor"
        return Finding("remark", note)
    else:
        return Finding("pass", note)
    return finding


def wrong_drawn(
    subject: Subject,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    scale: float = 0.0,
    shapes: Sequence[tuple[int, ...]] | None = None,
    rate: float | None = None,
    **how: Any,
) -> str | None:
    """Describe a wrong V₀ of an optimizer that is constructed in another way, or None.

    Args:
        subject: the implementation.
        dtype: of the tensors.
        options: more options.
        scale: the standard deviation of W.
        shapes: of the tensors; by default, of a few.
        rate: to which σ belongs; by default, that of the constructor.
        how: more arguments of `Driver.start`; of a session, ``then`` gives the one that draws.
    """
    if subject.driver.stateless or subject.starts_from_rest:
        return None
    chosen, then = drawing(subject) | dict(options or {}), how.pop("then", lambda session: session)
    std = std_of(subject, chosen if rate is None else chosen | {"learning_rate": rate})
    # A V₀ of 0 shows in any tensor, and JAX compiles the step that may draw it.
    if shapes is None:
        shapes = [(100, 120), (1000,), (1000,), (16, 4, 3, 3)] if std else SHAPES
    weights, _ = subject.normal(0, shapes, seed=104)
    weights = [to_dtype(scale * w + 0.0, dtype) for w in weights]  # 0, not -0
    session = then(subject.driver.start(weights, chosen, bfloat16=dtype == "bfloat16", **how))
    v = shown(subject, session, chosen)
    found = distribution.dependent(v) or distribution.wrong_std(v, std)
    return found or (distribution.not_normal(v, std) if std else None)


def drawing(subject: Subject) -> dict[str, Any]:
    """Return options with which V₀ is drawn."""
    options = {k: v for k, v in subject.options().items() if k not in ("alpha", "velocity_std")}
    options["learning_rate"] = 0.05
    if subject.offers("alpha"):
        options["alpha"] = 0.02
    return options | subject.driver.arguments.fixed


def std_of(subject: Subject, options: Mapping[str, Any]) -> float:
    """Return σ = α / η of a group with these options."""
    alpha, lr = float(options.get("alpha", hp.ALPHA)), float(options["learning_rate"])
    return float(subject.driver.arguments.fixed.get("velocity_std", REFERENCE.std(alpha, lr, RATE)))


RATE = 0.025  # the learning rate of the first step; V₀ must not depend on it
_LARGEST = 1
_FEW = 8  # tensors whose numbers are compared at every distance


def _shapes(subject: Subject) -> list[tuple[int, ...]]:
    """Return shapes of weights and biases of which no two have equal rows of numbers."""
    largest = 2**18 + 1003 if subject.level.top >= 17 else 2**subject.level.top + 3
    few = [(100, 120), (largest,), (64,), (100, 120), (64,), (16, 4, 3, 3), (120,), (1000,)]
    assert len(few) == _FEW
    more = [(8, 5, 25), (2, 3, 4, 5, 6), (3, 2, 2, 3, 4, 5), (2, 3, 2, 3, 2, 3, 3)]
    if subject.refused(shape=()) is None:
        more += [()] * 100
    return [*few, *more, *[(16,)] * subject.level.listed, *[(1,), (2,)] * 100]


def _abnormal(drawn: Arrays, std: float) -> str | None:
    """Describe the distribution of the largest array, of a number of axes, or of tiny arrays."""
    rest = [v for i, v in enumerate(drawn) if i != _LARGEST]
    parts = [[drawn[_LARGEST]], *([v for v in rest if v.ndim == n] for n in range(8))]
    parts += [[v for v in rest if v.size == n] for n in (1, 2)]
    for part in filter(None, parts):
        every = np.concatenate([v.reshape(-1) for v in part])
        found = distribution.wrong_std([every], std) or distribution.not_normal(part, std)
        if found is not None:
            return f"of shape {part[0].shape}: {found}"
    return None


def _elsewhere(subject: Subject, options: dict[str, Any], std: float) -> str | None:
    """Describe a wrong V₀ of another rate, of float64 tensors, of late ones or of groups."""
    zeros = [np.zeros(shape, np.float32) for shape in ((100, 120), (64,), (1000,))]

    def wrong(session: Session, rate: float = float(options["learning_rate"])) -> str | None:
        expected = std_of(subject, options | {"learning_rate": rate})
        return distribution.wrong_std(shown(subject, session, options), expected)

    at_build = _is_of_build(subject, options, std)

    if "learning_rate" not in subject.driver.arguments.fixed:
        other = options | {"learning_rate": 8 * options["learning_rate"]}
        found = distribution.wrong_std(_drawn(subject, other, _shapes(subject)[:_LARGEST]), std / 8)
        if found is not None:
            return f"with another learning rate, {other['learning_rate']:g}: {found}"
    if subject.driver.kind in ("optax", "keras") and subject.unschedulable is None:
        # The first rate counts in a schedule, and the constructor's elsewhere.
        first = 1 if subject.driver.kind == "optax" else 8
        rates = [options["learning_rate"] * k for k in (first, 8, 1)]
        begun = subject.driver.start(zeros, options, schedule=rates)
        if (found := wrong(begun, rates[0 if at_build else 2])) is not None:
            which = f"with the rates {rates[0]:g}, {rates[1]:g}, …"
            if first != 1:
                which = f"constructed with η = {rates[2]:g}; before the first step, η is set to "
                which += f"{rates[0]:g}"
            return f"{which}: {found}"
        rates[0] = options["learning_rate"]
        for way in subject.driver.session.rate_ways:
            with contextlib.suppress(*ANYTHING):
                by_way = subject.driver.start(zeros, options, schedule=rates, rates_by=way)
                if (found := wrong(by_way)) is not None:
                    return f"with {way} of the rates {rates[0]:g}, {rates[1]:g}, …: {found}"
    if subject.driver.session.builds_in_a_graph():
        traced = subject.driver.start(zeros, options, mode="function", unbuilt=True)
        if (
            found := wrong(traced, RATE if at_build else float(options["learning_rate"]))
        ) is not None:
            return f"where a step inside tf.function builds: {found}"
    if (found := _after_a_compiled_init(subject, options)) is not None:
        return found
    for where, given in _situations(subject, options, at_build):
        with contextlib.suppress(*ANYTHING):
            if (found := wrong_drawn(subject, **given)) is not None:
                return f"{where}: {found}"
    if subject.driver.session.groups:
        zeros = [np.zeros(300, np.float32)] * 2
        with contextlib.suppress(*ANYTHING):
            own = [options, options | _another_std(subject, options, 0.5)]
            own.append(options | _another_std(subject, options, 4.0))
            if "alpha" in _another_std(subject, options, 1.0):
                own[:0] = [options | {"alpha": 0.0}]
            listed = [(2, chosen) for chosen in own[:-1]]
            session: Any = subject.driver.start(zeros * (len(own) - 1), options, groups=listed)
            session.add(zeros, own[-1])
            v = shown(subject, session, options)
            if (found := distribution.dependent(v)) is not None:
                return f"in groups of two tensors: {found}"
            for k, chosen in enumerate(own):
                found = distribution.wrong_std(v[2 * k : 2 * k + 2], std_of(subject, chosen))
                if found is not None:
                    which = f"group {k}" if k < len(listed) else "a group that is added later"
                    return f"in {which}, where every group has options of its own: {found}"
        with contextlib.suppress(*ANYTHING):
            if (found := wrong(subject.driver.start(zeros, options, array_rate=True))) is not None:
                return f"with a rate in a tensor that is filled before the first step: {found}"
        with contextlib.suppress(*ANYTHING):
            session = subject.driver.start(zeros, options)
            session.warm_up(float(options["learning_rate"]))
            if (found := wrong(session)) is not None:
                return f"with OneCycleLR, which sets lr and initial_lr: {found}"
    for loaded in (False, True)[: 1 + subject.reloads] if subject.driver.session.misses else ():
        with contextlib.suppress(*ANYTHING):
            v = _late(subject, options, loaded=loaded)
            found = distribution.dependent(v) or distribution.wrong_std(v, std)
            if found is not None:
                after = ", after the state was saved and loaded" if loaded else ""
                return f"where tensors 0, 2 and 3 have their first gradients late{after}: {found}"
    if subject.offers("velocity_std"):
        for given in (0.0, 0.07):
            if subject.refused(velocity_std=given) is None:
                shapes = [(1000,), (100, 120)] if given else [*SHAPES]
                v = _drawn(subject, options | {"velocity_std": given}, shapes)
                if (found := distribution.wrong_std(v, given)) is not None:
                    return f"with velocity_std={given:g}: {found}"
    return None


def _is_of_build(subject: Subject, options: dict[str, Any], std: float) -> bool:
    """Tell whether σ is that of a rate which the user of Keras assigns before it builds."""
    if subject.driver.kind != "keras" or "learning_rate" in subject.driver.arguments.fixed:
        return False
    later = [8 * float(options["learning_rate"])]
    session = subject.driver.start([np.zeros((100, 120), np.float32)], options, schedule=later)
    return distribution.wrong_std(shown(subject, session, options), std / 8) is None


def _situations(
    subject: Subject, options: Mapping[str, Any], at_build: bool
) -> Iterator[tuple[str, Any]]:
    """Yield situations in which V₀ is the same as ever, and the arguments of `wrong_drawn`.

    If σ is by the rate at build, the rate of the step that builds counts.
    """
    if "float64" in subject.dtypes:
        yield "in float64", {"dtype": "float64"}
    free = {*subject.driver.arguments.names} - {*subject.driver.arguments.fixed}
    own = {"beta": 0.5} if "beta" in free else {}
    given = ", ".join(f"{name} = {x:g}" for name, x in (own | subject.accepted).items())
    yield f"with W of other numbers, {given}", {"scale": 3.0, "options": own | subject.accepted}
    if "alpha" in free:
        alpha = 100 * float(options["alpha"])
        yield f"with alpha = {alpha:g}", {"options": {"alpha": alpha}}
        if subject.refused(alpha=0.0) is None:
            yield "with alpha = 0", {"options": {"alpha": 0.0}}
    if "learning_rate" in free and subject.driver.kind != "plain":
        yield "with learning_rate = 1, an int", {"options": {"learning_rate": 1}}
        # What is added to η, or the least η, shows where η is tiny.
        yield "with learning_rate = 1e-9", {"options": {"learning_rate": 1e-9}}
    session: Any = subject.driver.session
    if session.compiles:
        yield "where the first step is compiled", {"fast": True}
    if subject.driver.kind == "optax":
        yield "with a rate that is an array", {"array_rate": True}
        yield "where init is compiled", {"jitted_init": True}
        few = [(1000,)]  # other compiled ones are larger
        for way in session.rate_ways[:1]:
            by_way = {"jitted_init": True, "rates_by": way, "shapes": few}
            yield f"where init is compiled with {way}", by_way
        rates = [float(options["learning_rate"]) * k for k in (1, 8, 1)]
        scheduled = {"jitted_init": True, "schedule": rates, "shapes": few}
        if subject.unschedulable is None:
            yield "where init is compiled with a schedule", scheduled
        yield "of arrays of NumPy", {"host": True}
        for tree in session.trees[1:]:
            yield f"of parameters that are {tree}", {"tree": tree}
        yield "of a second training by one object", {"then": session.begun_again}
    if subject.driver.kind == "keras":
        accumulates = {"gradient_accumulation_steps": 2}
        yield "of variables of one name", {"alike": True}
        rate = RATE if at_build else None
        yield "where the first step builds", {"unbuilt": True, "rate": rate}
        yield "of an optimizer made by from_config", {"then": session.configured}
        yield "with gradient accumulation", {"more": accumulates, "then": _two_steps}
    if subject.driver.kind == "torch":
        yield "where requires_grad was set after construction", {"frozen": True}
        yield "of sparse gradients", {"rows": True}
        of_layouts = [(100, 120), (1000,), (16, 4, 3, 3), (1000,)]  # channels_last is one of them
        yield "of tensors with strides", {"strided": True, "shapes": of_layouts}
        yield "of parameters that lie in one buffer", {"packed": True}
        yield "of a copy before the first step", {"then": lambda session: session.copied()}


def _after_a_compiled_init(subject: Subject, options: Mapping[str, Any]) -> str | None:
    """Describe what an `init` that is compiled first leaves to the next one, such as a tracer."""
    if subject.driver.kind != "optax":
        return None
    free = {*subject.driver.arguments.names} - {*subject.driver.arguments.fixed}
    wanted = {"alpha": 0.03, "learning_rate": 0.0625, "beta": 0.4375, "seed": 4321}
    own = {**options} | {name: x for name, x in wanted.items() if name in free}
    zeros, how = [np.zeros(77, np.float32)], {"jitted_init": True}
    try:
        subject.driver.start(zeros, own, **how)
    except ANYTHING:
        return None
    try:
        subject.driver.start(zeros, own)
    except ANYTHING as error:
        return f"after a compiled init with the same options: {one_line(error)}"
    return None


def _two_steps(session: Session) -> Session:
    """Make the first of two steps that accumulate gradients."""
    session.step([0 * w for w in session.weights()], RATE)
    return session


def _another_std(subject: Subject, options: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return another η for a group, and another α, if a group may have its own."""
    free = {*subject.of_groups} - {*subject.driver.arguments.fixed}
    other = {"alpha": 2.5 * float(options.get("alpha", hp.ALPHA))}
    other["learning_rate"] = factor * float(options["learning_rate"])
    return {name: x for name, x in other.items() if name in free}


def _repeated(subject: Subject, options: dict[str, Any]) -> str | None:
    """Describe numbers that four million of them repeat, or None."""
    if subject.level.top < 17:
        return None
    return distribution.repeated(_drawn(subject, options, [(1024, 1025)] * 4))


def _late(subject: Subject, options: dict[str, Any], *, loaded: bool) -> Arrays:
    """Return V₀ of four tensors: three have late first gradients, two are in any late group.

    Tensor 1 has the first gradient, then tensor 0, so a place among those with a gradient is no
    place among all.
    """
    zero = np.zeros(1500, np.float32)
    groups = subject.driver.session.groups
    session: Any = subject.driver.start([zero] * (2 if groups else 4), options)
    found: dict[int, np.ndarray] = {}
    # A configuration of Keras has the rate of the last step, and none other that σ could have.
    saves = loaded and subject.driver.kind == "keras"
    rate = float(options["learning_rate"]) if saves else RATE
    for n, given in enumerate(({1}, {0, 1, 2}, {0, 1, 2, 3})):
        if n == 1:
            session = session.reloaded() if loaded else session
            if groups:
                session.add([zero, zero], options)
        number = 2 if groups and n == 0 else 4
        session.step([zero if i in given else None for i in range(number)], rate)
        for i in given - {*found}:
            of_group = n - (i > 1)  # the last two are in the late group
            before = {"each tensor": 0, "the optimizer": n}.get(subject.counted, of_group)
            # W moved by η β̂ V₀.
            t = subject.first_step + before
            w = session.weights()[i]
            found[i] = -w / np.float32(rate * beta_hat(t, float(options["beta"])))
    return [found[i] for i in sorted(found)]


def _seeds(subject: Subject, options: dict[str, Any]) -> str | None:
    """Draw with several seeds, and return how the numbers depend on each other, or None."""
    twice = [_drawn(subject, options | {"seed": 0}, [(300,)]) for _ in range(2)]
    if twice[0][0].tobytes() != twice[1][0].tobytes():
        return "two constructions with seed=0 have different V₀"
    if subject.driver.kind == "keras" and (found := _configured(subject, options)) is not None:
        return found
    drawn, names = [], []
    for seed in (0, 1, 2, 3, 100, 10**9 + 7):
        for i, v in enumerate(_drawn(subject, options | {"seed": seed}, [(300,)] * 4)):
            drawn.append(v)
            names.append(f"tensor {i} with seed {seed}")
    if (found := distribution.dependent(drawn, names)) is not None:
        return found
    # One that loses high digits of a seed takes 2³⁰ for 0.
    each = 1 if subject.level.top >= LEVELS["default"].top else 5
    for seed in (2**k for k in range(30, 3, -each)):
        for i, v in enumerate(_drawn(subject, options | {"seed": seed}, [(300,)] * 4)):
            drawn.append(v)
            names.append(f"tensor {i} with seed {seed}")
    return distribution.equal(drawn, names)


def _configured(subject: Subject, options: dict[str, Any]) -> str | None:
    """Describe a V₀ that differs after from_config, which may be refused; None if it agrees."""
    if "learning_rate" in subject.driver.arguments.fixed:
        return None
    with contextlib.suppress(*ANYTHING):
        # Keras keeps the rate in float32, which has this one.
        options = options | {"seed": 5, "learning_rate": 0.0625}
        session: Any = subject.driver.start([np.zeros(300, np.float32)], options)
        pair = [shown(subject, each, options)[0] for each in (session.configured(), session)]
        if pair[0].tobytes() != pair[1].tobytes():
            return "with seed=5, an optimizer made by from_config has another V₀"
    return None


def _drawn(subject: Subject, options: dict[str, Any], shapes: list[tuple[int, ...]]) -> Arrays:
    zeros = [np.zeros(shape, np.float32) for shape in shapes]
    return shown(subject, subject.driver.start(zeros, options), options)


def shown(subject: Subject, session: Session, options: dict[str, Any]) -> Arrays:
    """Return V₀ from the state, or from what the first step with zero gradients makes of it."""
    v = None if subject.hidden else session.velocity()
    if v is not None and not is_undrawn(v):
        return v
    # Without a schedule, an optax transformation uses η of the constructor.
    is_own = session.setup.rates_by or not session.steps_at_given_rate
    rate = float(options["learning_rate"]) if is_own else RATE
    before = session.weights()
    session.step([0 * w for w in before], rate)
    v = None if subject.hidden else session.velocity()
    if v is None:  # W moved by η V, and by its decay
        kept = 1 - rate * float(options.get("weight_decay", 0.0))
        pairs = zip(before, session.weights(), strict=True)
        v = [(w.dtype.type(kept) * w - after) / w.dtype.type(rate) for w, after in pairs]
    return [x / x.dtype.type(beta_hat(subject.first_step, float(options["beta"]))) for x in v]
