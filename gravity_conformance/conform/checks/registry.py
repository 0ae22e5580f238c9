"""The checks by name. Each returns one `Finding`, and none can pass without running."""

from collections.abc import Callable
from typing import NamedTuple

from gravity_conformance.conform.checks import behaviour, gradients, published, start
from gravity_conformance.conform.checks.findings import Finding, Judge
from gravity_conformance.conform.checks.subject import Subject


class Check(NamedTuple):
    """A check: its title in the report, and its function."""

    title: str
    function: Callable[[Subject, Judge], Finding]


# The check "gradient" is last, because it reports on the gradients of all others.
CHECKS: dict[str, Check] = {
    "convention": Check("convention of t", start.convention),
    "v0": Check("V₀", start.v0),
    "update": Check("one update", gradients.update),
    "trajectory": Check("trajectory", gradients.trajectory),
    "own-v0": Check("trajectory from its own V₀", gradients.drawn),
    "vectors": Check("published vectors", published.vectors),
    "long": Check("long trajectory", gradients.long),
    "float64": Check("float64", gradients.double),
    "float16": Check("float16", gradients.float16),
    "bfloat16": Check("bfloat16", gradients.bfloat16),
    "compiled": Check("compiled", gradients.compiled),
    "groups": Check("groups, a missing gradient", gradients.groups),
    "schedule": Check("scheduled learning rate", gradients.schedule),
    "zero": Check("zero gradients", gradients.zero),
    "huge": Check("huge gradients", gradients.huge),
    "tiny": Check("tiny gradients", gradients.tiny),
    "subnormal": Check("subnormal gradients", gradients.subnormal),
    "non-finite": Check("non-finite gradients", gradients.nonfinite),
    "empty": Check("empty tensors", gradients.empty),
    "0-d": Check("0-d tensors", gradients.scalar),
    "resume": Check("state saved and loaded", behaviour.resume),
    "maximize": Check("maximize", behaviour.maximize),
    "weight-decay": Check("weight decay", behaviour.weight_decay),
    "gradient": Check("gradient left untouched", behaviour.gradient),
}
