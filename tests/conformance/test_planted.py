"""Every planted mistake differs in its check, and every right implementation conforms."""

import functools

import pytest

from tests.support import planted
from tests.support.worker import KINDS, findings

SPEC = planted.__file__

# mistake → the check that must catch it, its level, and the kinds that have it. Frameworks that
# compile the step get the shapes of all sizes in the check "compiled".
WRONG = {
    "head": ("update", "default", ("plain", "torch", "optax", "keras")),
    "tail": ("update", "quick", ("plain", "torch")),
    "five": ("update", "default", ("plain", "torch")),
    "negative": ("update", "quick", ("plain", "torch", "optax", "keras")),
    "eighth": ("update", "quick", ("torch", "optax", "keras")),
    "later": ("update", "quick", ("torch", "optax", "keras")),
    "shared": ("update", "quick", ("torch", "optax", "keras")),
    "beta": ("groups", "quick", ("torch",)),
    "rate": ("groups", "quick", ("torch",)),
    "added": ("groups", "quick", ("torch",)),
    "decays": ("missing", "quick", ("torch",)),
    "tensor": ("rate", "quick", ("plain", "torch", "optax")),
    "cleared": ("gradient", "quick", ("plain", "torch")),
    "half": ("v0", "default", ("torch", "optax", "keras")),
    "repeats": ("v0", "quick", ("torch", "optax", "keras")),
    "biases": ("v0", "quick", ("torch", "optax", "keras")),
}

# right variant → the checks in which it gets a remark
RIGHT = {
    "right": (),
    "finite": ("non-finite",),
    "empty": ("empty",),
    "singles": ("float16", "bfloat16"),
    "literal": ("float16", "bfloat16"),
    "inside": (),
    "rest": ("v0",),
}
# What a right variant is fed: the checks that the variants concern.
CHECKS = (
    "convention",
    "v0",
    "update",
    "own-v0",
    "float64",
    "missing",
    "groups",
    "schedule",
    "rate",
)
CHECKS += ("strides", "turns", "zero", "non-finite", "empty", "0-d", "resume", "copied")
CHECKS += ("weight-decay", "gradient")
FEW = ("convention", "v0", "update", "non-finite", "empty")  # of optax and Keras, which are slow
ONLY = {"literal": ("plain",), "finite": ("plain", "torch")}  # kinds


@functools.cache
def right(kind):
    """Return what the check of every mistake finds in the right implementation."""
    every = [(check, level) for check, level, kinds in WRONG.values() if kind in kinds]
    levels = {level: [check for check, at in every if at == level] for _, level in every}
    return {
        (level, check): finding["outcome"]
        for level, checks in levels.items()
        for check, finding in findings(
            f"{SPEC}:{kind}_right", [*dict.fromkeys(checks)], level=level
        ).items()
    }


@pytest.mark.parametrize(
    ("mistake", "kind"), [(m, kind) for m, (_, _, kinds) in WRONG.items() for kind in kinds]
)
def test_a_mistake_differs(mistake, kind):
    check, level, _ = WRONG[mistake]
    found = findings(f"{SPEC}:{kind}_{mistake}", [check], level=level)
    assert found[check]["outcome"] == "differs"
    assert right(kind)[level, check] == "pass"


@pytest.mark.parametrize(
    ("variant", "kind"), [(v, kind) for v in RIGHT for kind in ONLY.get(v, KINDS)]
)
def test_a_right_one_conforms(variant, kind):
    halves = ("float16", "bfloat16") if variant in ("singles", "literal") else ()
    checks = [*(CHECKS if kind in ("plain", "torch") else FEW), *halves]
    found = findings(f"{SPEC}:{kind}_{variant}", checks)
    outcomes = {check: finding["outcome"] for check, finding in found.items()}
    remarks = {check for check in RIGHT[variant] if outcomes[check] != "not applicable"}
    assert set(outcomes.values()) <= {"pass", "remark", "not applicable"}
    assert {check for check, outcome in outcomes.items() if outcome == "remark"} == remarks
    if variant != "rest" or kind != "plain":  # a plain function has no V₀ of its own
        assert remarks == {*RIGHT[variant]}
