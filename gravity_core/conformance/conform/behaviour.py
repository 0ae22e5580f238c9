"""Checks of what an optimizer does beside the update: saving, and what its options say."""

import numpy as np

from gravity_core.conformance.conform.inputs import normal
from gravity_core.conformance.conform.judge import Case
from gravity_core.conformance.conform.mutations import MUTATIONS, REFERENCE
from gravity_core.conformance.conform.subject import Finding, Subject


def resume(subject: Subject) -> Finding:
    """State saved after six steps and loaded into a new optimizer."""
    if subject.driver.stateless:
        return Finding("not applicable", "V and t are the caller's")
    weights, gradients = normal(12, seed=17)
    return subject.judged(Case(weights, gradients, subject.options(), reload_after=6))


def gradient(subject: Subject) -> Finding:
    """Gradients are left as they were, also where it maximizes; a function leaves w and v, too."""
    weights, gradients = normal(2, seed=18)
    options = [subject.options()]
    if subject.offers("maximize"):
        options.append(subject.options(maximize=True))
    for chosen in options:
        session = subject.driver.start(weights, chosen)
        for grads in gradients:
            left = session.step([g.copy() for g in grads], float(chosen["learning_rate"]))
            for i, (g, after) in enumerate(zip(grads, left, strict=True)):
                if g.tobytes() == after.tobytes():
                    continue
                k = tuple(int(n) for n in np.argwhere(g != after)[0])
                where = f"gradient of tensor {i}, element {list(k)}: {after[k]:.9g}, not {g[k]:.9g}"
                words = [
                    m.words
                    for m in MUTATIONS
                    if m.left is not REFERENCE.left and np.allclose(m.left(g), after, rtol=1e-5)
                ]
                when = "with maximize" if chosen.get("maximize") else ""
                return Finding(
                    "differs", when, None, where, " or ".join(words) or "gradient overwritten"
                )
        if (name := getattr(session, "overwritten", None)) is not None:
            return Finding("differs", "", None, f"{name} is not what it was", "inputs overwritten")
    return Finding("pass")


def maximize(subject: Subject) -> Finding:
    """The gradient counts with the other sign."""
    if not subject.offers("maximize"):
        return Finding("not applicable", "not offered")
    weights, gradients = normal(12, seed=19)
    options = subject.options(maximize=True)
    return subject.judged(Case(weights, gradients, options, subject.some_velocity(weights)))


def weight_decay(subject: Subject) -> Finding:
    """Decoupled weight decay, W ← W − l λ W."""
    if not subject.offers("weight_decay"):
        return Finding("not applicable", "not offered")
    weights, gradients = normal(12, seed=20)
    options = subject.options(weight_decay=0.1)
    return subject.judged(Case(weights, gradients, options, subject.some_velocity(weights)))
