"""Every planted mistake differs in its check, and every right implementation conforms."""

import functools
import itertools
import re

import numpy as np
import pytest

from gravity_conformance.conform.checks.covering import covering
from tests.support import planted
from tests.support.worker import KINDS, findings, module, written

pytestmark = pytest.mark.slow
SPEC = planted.__file__

# mistake → the check that must catch it, its level, and the kinds that have it. Frameworks that
# compile the step get the shapes of all sizes in the check "compiled".
WRONG = {
    "head": ("update", "default", ("plain", "torch", "optax")),
    "tail": ("update", "quick", ("plain", "torch")),
    "five": ("update", "default", ("plain", "torch")),
    "rows": ("update", "default", ("plain",)),
    "long": ("update", "default", ("torch",)),
    "least": ("update", "quick", ("plain",)),
    "most": ("update", "quick", ("plain", "torch")),
    "minus": ("non-finite", "quick", ("plain", "torch")),
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
    "half": ("v0", "default", ("torch", "optax")),
    "repeats": ("v0", "quick", ("torch", "optax", "keras")),
    "biases": ("v0", "quick", ("torch", "optax", "keras")),
    "tall": ("combined", "default", ("plain",)),
    "thirds": ("combined", "default", ("plain",)),
    "falsy": ("combined", "default", ("plain",)),
    "skipped": ("non-finite", "quick", ("plain",)),
    "infinite": ("non-finite", "quick", ("plain", "torch")),
    "halfmax": ("float16", "quick", ("plain",)),
    "scratch": ("float64", "default", ("plain",)),
    "quarters": ("update", "default", ("plain",)),
    "lanes": ("update", "default", ("plain",)),
    "blocks": ("non-finite", "quick", ("plain",)),
    "pieces": ("large", "default", ("plain",)),
    "cached": ("v0", "quick", ("torch", "optax", "keras")),
    "mirror": ("v0", "quick", ("torch",)),
    "tiles": ("v0", "default", ("torch",)),
    "twelve": ("v0", "default", ("torch",)),
    "standardised": ("v0", "quick", ("torch",)),
    "saturated": ("float64", "quick", ("plain",)),
}

# right variant → the checks in which it gets a remark
RIGHT = {
    "right": (),
    "finite": ("non-finite",),
    "empty": ("empty",),
    "singles": ("float16", "bfloat16"),
    "narrow": ("float64",),
    "literal": ("float16", "bfloat16"),
    "inside": (),
    "longdouble": (),
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
ONLY = {"literal": ("plain",), "longdouble": ("plain",), "finite": ("plain", "torch")}  # kinds


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
    doubles = {"longdouble": ["float64-vectors"], "narrow": ["float64"]}.get(variant, [])
    checks = [*(CHECKS if kind in ("plain", "torch") else FEW), *halves, *doubles]
    found = findings(f"{SPEC}:{kind}_{variant}", list(dict.fromkeys(checks)))
    outcomes = {check: finding["outcome"] for check, finding in found.items()}
    remarks = {check for check in RIGHT[variant] if outcomes[check] != "not applicable"}
    assert set(outcomes.values()) <= {"pass", "remark", "not applicable"}
    assert {check for check, outcome in outcomes.items() if outcome == "remark"} == remarks
    if variant != "rest" or kind != "plain":  # a plain function has no V₀ of its own
        assert remarks == {*RIGHT[variant]}


# Options and counters that a subclass forgets on one path; each needs a combination.
FORGOTTEN = {
    "β of the group in large tensors": (
        "p.numel() >= 2**16",
        "group = group | {'beta': self.defaults['beta']}",
    ),
    "weight decay in large tensors": (
        "p.numel() >= 2**18",
        "group = group | {'weight_decay': 0.0}",
    ),
    "weight decay where the gradient is 0": (
        "not p.grad.any()",
        "group = group | {'weight_decay': 0.0}",
    ),
    "the values of an array": (
        "torch.is_tensor(group['lr'])",
        "group = group | {'lr': group.setdefault('kept', float(group['lr']))}",
    ),
    "t of each tensor in long lists": (
        "len(self.state) > 20 and 't' in self.state[p]",
        "self.state[p]['t'] = max(s['t'] for s in self.state.values() if 't' in s) - 1",
    ),
}


def test_a_combination_names_no_more_values_than_it_needs(tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code = "    def one(self, p, owner, place, group):\n"
    code += "        if p.numel() >= 2**16: group = group | {'weight_decay': 0.0}\n"
    code += "        super().one(p, owner, place, group)"
    found = findings(written(tmp_path, "torch", code), ["combined"], level="default")["combined"]
    needed, *_ = found["note"].split(";")
    assert re.fullmatch(r"needs size 2\^\d+, dtype float32, weight decay", needed)


def outcomes_of_combinations(spec):
    """Return the outcomes of the two checks between which the combinations are divided."""
    found = findings(spec, ["combined", "float64"], level="default")
    return {finding["outcome"] for finding in found.values()}


@functools.cache
def combined_of_the_right_one():
    return outcomes_of_combinations(f"{SPEC}:torch_right")


@pytest.mark.parametrize("what", FORGOTTEN)
def test_what_a_path_forgets_differs(what, tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    condition, mistake = FORGOTTEN[what]
    code = "    def one(self, p, owner, place, group):\n"
    code += f"        if {condition}:\n            {mistake}\n"
    code += "        super().one(p, owner, place, group)"
    assert "differs" in outcomes_of_combinations(written(tmp_path, "torch", code))
    assert combined_of_the_right_one() == {"pass"}


@pytest.mark.parametrize("strength", [2, 3])
def test_every_combination_of_values_occurs(strength):
    factors = {"a": "xy", "b": range(5), "c": (None, True, 0.5), "d": "z"}
    rows = covering(np.random.default_rng(0), factors, strength)
    for names in itertools.combinations(factors, strength):
        wanted = set(itertools.product(*(factors[name] for name in names)))
        assert {tuple(row[name] for name in names) for row in rows} == wanted
    assert len(rows) < 35


LAZY = """
import jax
from jax import numpy as jnp
import optax
from tests.support import planted

def lazy(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, *, drawn=True):
    inner = planted.optax_right(learning_rate, alpha, beta, seed)

    def init(params):
        state = inner.init(params)
        return state | {"velocity": jax.tree.map(jnp.zeros_like, state["velocity"])}

    def update(updates, state, params=None):
        if drawn:
            first = inner.init(updates)["velocity"]
            v = jax.tree.map(lambda a, b: jnp.where(state["t"], b, a), first, state["velocity"])
            state = state | {"velocity": v}
        return inner.update(updates, state, params)

    return optax.GradientTransformation(init, update)

def never(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    return lazy(learning_rate, alpha, beta, seed, drawn=False)
"""


def test_v0_may_be_drawn_in_the_first_update(tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = tmp_path / "later.py"
    path.write_text(LAZY, encoding="utf-8")
    checks = ["convention", "v0", "own-v0", "schedule", "resume"]
    found = findings(f"{path}:lazy", checks)
    assert {finding["outcome"] for finding in found.values()} == {"pass"}
    assert findings(f"{path}:never", ["v0"])["v0"]["outcome"] == "differs"


def test_a_configuration_without_beta_differs(tmp_path):
    pytest.importorskip("tensorflow", reason="an optimizer of Keras")
    code = "    def get_config(self):\n        config = super().get_config()\n"
    code += "        del config['beta']\n        return config"
    found = findings(written(tmp_path, "keras", code), ["resume"])
    assert found["resume"]["outcome"] == "differs"
    assert findings(f"{SPEC}:keras_right", ["resume"])["resume"]["outcome"] == "pass"


def test_a_fixed_beta_is_no_mistake(tmp_path):
    pytest.importorskip("torch", reason="an optimizer of torch")
    code = "    def __init__(self, params, lr=0.1):\n        super().__init__(params, lr)"
    checks = ["update", "long", "schedule", "float16", "resume"]
    found = findings(written(tmp_path, "torch", code), checks)
    assert {finding["outcome"] for finding in found.values()} == {"pass"}


def test_a_refused_closure_is_a_remark(tmp_path):
    pytest.importorskip("torch", reason="an optimizer of torch")
    code = "    def step(self, closure=None):\n        if closure: raise ValueError('no closure')\n"
    found = findings(written(tmp_path, "torch", f"{code}        super().step()"), ["closure"])
    assert found["closure"]["outcome"] == "remark"
    assert found["closure"]["note"] == "it refuses a closure: ValueError: no closure"


STILL = """
import numpy as np
from tests.support import planted

def frozen(w, v, g, t, lr, beta):
    return w - np.asarray(lr * v, w.dtype), v.copy()

def nan(w, v, g, t, lr, beta):
    w, v = planted.plain_right(w, v, g, t, lr, beta)
    return np.nan * w, v
"""


@pytest.mark.parametrize("name", ["frozen", "nan"])
def test_what_never_moves_and_what_is_never_finite_show_no_mistake_of_a_part(name, tmp_path):
    path = module(tmp_path, STILL)
    found = findings(f"{path}:{name}", ["update", "tiny", "non-finite"], kind="plain")
    assert {f["diagnosis"] for f in found.values()} == {None}
    assert "differs" in {f["outcome"] for f in found.values()}
