"""How V₀ is drawn and read, and one that is drawn in another way."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gravity_conformance.conform.checks.inputs import SHAPES, to_dtype
from gravity_conformance.conform.checks.subject import Subject
from gravity_conformance.conform.judge import distribution
from gravity_conformance.conform.judge.perform import is_undrawn
from gravity_conformance.drive.session import Arrays, Session
from gravity_conformance.mutations import REFERENCE
from gravity_core import hyperparameters as hp
from gravity_core.coefficients import beta_hat

RATE = 0.025  # the learning rate of the first step; V₀ must not depend on it


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


def draw(subject: Subject, options: dict[str, Any], shapes: list[tuple[int, ...]]) -> Arrays:
    """Return V₀ of tensors of these shapes."""
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
