"""Third-party implementations with and without mistakes: each mistake is caught and named."""

import re

import numpy as np
import pytest

from gravity_conformance.conform.checks.findings import Finding, first_wrong
from gravity_conformance.conform.checks.inputs import LEVELS, sweep
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.vectors import load_vectors
from tests.support.command import STRANGERS
from tests.support.worker import KINDS, findings

# mistake → its name in the report, the check that must catch it, the kinds that can have it
MISTAKES = {
    "plus_one": ("β̂ uses t + 1", "convention", KINDS),
    "half": ("1 − β̂ in half precision", "convention", KINDS),
    "mean": ("mean in place of max", "update", KINDS),
    # a function of one tensor does not see the others
    "whole_model": (
        "m from the whole model, not per tensor",
        "update",
        ("torch", "optax", "keras"),
    ),
    "square": ("missing square", "update", KINDS),
    "weight": ("(1 − β̂) omitted", "convention", KINDS),
    "bare_beta": ("β in place of β̂", "convention", KINDS),
    # a function receives V₀
    "std": ("V₀ std is α, not α / η", "v0", ("torch", "optax", "keras")),
    "twice": ("learning rate applied twice", "update", KINDS),
    "coupled": ("weight decay coupled", "weight-decay", KINDS),
    # arrays of JAX and TensorFlow cannot be written to
    "negated": ("gradient negated in place", "gradient", ("plain", "torch")),
    # the caller keeps the state of optax and of functions
    "reset": ("V reset on load", "resume", ("torch", "keras")),
    "minus_one": ("β̂ uses t − 1", "convention", KINDS),
}


@pytest.mark.parametrize(
    ("mistake", "kind"), [(m, kind) for m, (_, _, kinds) in MISTAKES.items() for kind in kinds]
)
def test_a_mistake_is_caught_and_named(mistake, kind):
    diagnosis, check, _ = MISTAKES[mistake]
    # Counting from 0 is wrong only if first_step is 1.
    job = {"first_step": 1} if mistake == "minus_one" else {}
    long = ("trajectory",) if kind in ("plain", "torch") else ()  # takes seconds in the others
    checks = [*dict.fromkeys(("convention", "update", *long, check))]
    found = findings(f"{STRANGERS}:{kind}_{mistake}", checks, **job)
    assert list(found) == checks
    assert found[check]["outcome"] == "differs"
    assert {f["diagnosis"] for f in found.values() if f["outcome"] != "pass"} == {diagnosis}


def test_a_float16_counter_that_stops_is_caught():
    found = findings(f"{STRANGERS}:plain_stops", ["update", "long"])
    assert found["update"]["outcome"] == "pass"
    assert found["long"]["diagnosis"] == "t is counted in float16 and stops at 2048"


@pytest.mark.parametrize(
    ("stranger", "diagnosis"),
    [
        ("plain_difference", "1 − β̂ taken as a difference, which loses digits"),
        ("plain_mean", "mean in place of max"),
        ("plain_plus_one", "β̂ uses t + 1"),
        # the vectors need a V ≠ 0 or a large t, which the optimizer must accept
        ("torch_mean", "mean in place of max"),
        ("torch_stops", "t is counted in float16 and stops at 2048"),
    ],
)
def test_the_published_vectors_catch_and_name_a_mistake(stranger, diagnosis):
    found = findings(f"{STRANGERS}:{stranger}", ["vectors"])
    assert found["vectors"]["outcome"] == "differs"
    assert found["vectors"]["diagnosis"] == diagnosis


@pytest.mark.parametrize(
    ("stranger", "why"),
    [
        ("hidden", "no number in its state counts the steps"),
        (
            "decoy",
            "after writing back its own V and t = 0, it does not reproduce its own next step",
        ),
        ("redraws", "V is drawn again at the first step, whatever was written"),
    ],
)
def test_an_optimizer_whose_state_cannot_be_set_still_passes(stranger, why):
    found = findings(f"{STRANGERS}:torch_{stranger}", ["vectors"])["vectors"]
    assert found["outcome"] == "pass"
    assert re.fullmatch(rf"(\d+) of \d+ can be fed to it; not (\d+): {why}; not .*", found["note"])


def suitable(kind, dtype):
    """Return the numbers of suitable and of all vectors for a kind that counts from 1."""
    tests = [
        test
        for group in load_vectors()
        if (group.type, group.dtype) == ("update", dtype) and group.file != "non_finite.json"
        for test in group.tests
    ]
    if kind == "plain":  # the caller chooses t
        return len(tests), len(tests)
    maximizes = kind == "torch"
    fit = [t for t in tests if t.steps[0].t and (maximizes or not t.hyperparameters.maximize)]
    return len(fit), len(tests)


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "torch",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("optax", "keras")),
    ],
)
def test_a_right_stranger_conforms(kind):
    # These take seconds in frameworks that compile; the tests of our adapters run them.
    slow = {"long", "float16", "bfloat16", "half-vectors"} if kind in ("optax", "keras") else set()
    checks = [name for name in CHECKS if name not in slow]
    found = findings(f"{STRANGERS}:{kind}_right", checks)
    assert list(found) == checks
    wrong = {name: f for name, f in found.items() if f["outcome"] not in ("pass", "not applicable")}
    # That of torch keeps counters beside its state, which torch neither copies nor pickles.
    remarks = {"torch": ["copied", "pickled"], "keras": ["schedule", "rows", "excluded"]}.get(
        kind, ()
    )
    assert {name: f["outcome"] for name, f in wrong.items()} == dict.fromkeys(remarks, "remark")
    if kind == "keras":
        assert found["missing"]["note"] == "t counts the steps of the optimizer"
    for name, dtype in (("vectors", "float32"), ("float64-vectors", "float64")):
        fit, every = suitable(kind, dtype)
        assert found[name]["note"].startswith(f"{fit} of {every} can be fed to it")


@pytest.mark.parametrize("seed", range(20))
def test_a_sweep_has_every_number_of_axes(seed):
    level = LEVELS["quick"]
    shapes = sweep(np.random.default_rng(seed), level.top, level.tensors)
    assert len(shapes) == level.tensors
    assert {len(shape) for shape in shapes} == {*range(1, 9), 10}


def test_the_first_wrong_finding_ends_a_check():
    made = []

    def findings_of(*outcomes):
        for outcome in outcomes:
            made.append(outcome)
            yield Finding(outcome, f"a {outcome}", 10.0 - len(made))

    assert (
        first_wrong(findings_of("pass", "not applicable", "differs", "pass")).outcome == "differs"
    )
    assert made == ["pass", "not applicable", "differs"]
    found = first_wrong(findings_of("not applicable", "pass", "not applicable", "pass"))
    assert (found.outcome, found.note, found.worst) == ("pass", "a pass", 5.0)
    assert first_wrong(findings_of("not applicable")).outcome == "not applicable"
    assert first_wrong([]).outcome == "pass"
