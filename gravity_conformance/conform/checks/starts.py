"""V₀ where an optimizer starts in another way: later, in groups, compiled, from a copy."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.conform.checks.drawn import RATE, draw, shown, std_of, wrong_drawn
from gravity_conformance.conform.checks.inputs import SHAPES
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge import distribution
from gravity_conformance.drive.session import Arrays, Session
from gravity_core import hyperparameters as hp
from gravity_core.coefficients import beta_hat


def elsewhere(
    subject: Subject, options: dict[str, Any], std: float, *, at_build: bool
) -> str | None:
    """Describe a wrong V₀ of another rate, of float64 tensors, of late ones or of groups.

    Args:
        subject: the implementation.
        options: with which V₀ is drawn.
        std: σ for these options.
        at_build: whether σ is by the rate that Keras has when it builds.
    """
    zeros = [np.zeros(shape, np.float32) for shape in ((100, 120), (64,), (1000,))]
    lr = float(options["learning_rate"])

    def wrong(session: Session, rate: float = lr) -> str | None:
        expected = std_of(subject, options | {"learning_rate": rate})
        return distribution.wrong_std(shown(subject, session, options), expected)

    if "learning_rate" not in subject.driver.arguments.fixed:
        other = options | {"learning_rate": 8 * lr}
        found = distribution.wrong_std(draw(subject, other, [(100, 120)]), std / 8)
        if found is not None:
            return f"with another learning rate, {8 * lr:g}: {found}"
    if subject.driver.kind in ("optax", "keras") and subject.unschedulable is None:
        # The first rate counts in a schedule, and the constructor's elsewhere.
        first = lr if subject.driver.kind == "optax" else 8 * lr
        rates = [first, 8 * lr, lr]
        begun = subject.driver.start(zeros, options, schedule=rates)
        if (found := wrong(begun, first if at_build else lr)) is not None:
            which = f"with the rates {first:g}, {8 * lr:g}, …"
            if first != lr:
                which = f"constructed with η = {lr:g}; set before the first step to {first:g}"
            return f"{which}: {found}"
        rates[0] = lr
        for way in subject.driver.session.rate_ways:
            with contextlib.suppress(*ANYTHING):
                by_way = subject.driver.start(zeros, options, schedule=rates, rates_by=way)
                if (found := wrong(by_way)) is not None:
                    return f"with {way} of the rates {rates[0]:g}, {rates[1]:g}, …: {found}"
    if subject.driver.session.builds_in_a_graph():
        traced = subject.driver.start(zeros, options, mode="function", unbuilt=True)
        if (found := wrong(traced, RATE if at_build else lr)) is not None:
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
            session.warm_up(lr)
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
                v = draw(subject, options | {"velocity_std": given}, shapes)
                if (found := distribution.wrong_std(v, given)) is not None:
                    return f"with velocity_std={given:g}: {found}"
    return None


def is_of_build(subject: Subject, options: dict[str, Any], std: float) -> bool:
    """Tell whether σ is that of a rate which the user of Keras assigns before it builds."""
    fixed = "learning_rate" in subject.driver.arguments.fixed
    if subject.driver.kind != "keras" or fixed or subject.unschedulable is not None:
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
