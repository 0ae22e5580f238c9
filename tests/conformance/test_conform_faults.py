"""Mistakes that only some inputs show, correct code of unusual style, and false diagnoses."""

import importlib.util
import os
import sys

import numpy as np
import pytest

from gravity_conformance.drive.spec import SpecError, load, recognise
from tests.support.worker import findings

RIGHT = """
import numpy as np

def core(w, v, g, t, lr, beta, *, size=None, plus=0.0):
    dtype = w.dtype
    w, v, g = (x.astype(np.result_type(dtype, np.float32)) for x in (w, v, g))
    old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
    with np.errstate(all="ignore"):
        s = g * (np.max(np.abs(g), initial=0) if size is None else size)
        v = old * v + new * (g / (1 + plus + s * s))
        return (w - lr * v).astype(dtype), v.astype(dtype)
"""

TORCH = """
import torch

class Right(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1, alpha=0.01, beta=0.9, weight_decay=0.0):
        self.alpha = alpha
        super().__init__(params, dict(lr=lr, beta=beta, weight_decay=weight_decay))

    def add_param_group(self, group):
        super().add_param_group(group)
        group["std"] = self.alpha / group["lr"]

    def first(self, p, std):
        return torch.randn(p.shape) * std

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.one(p, *(group[k] for k in ("lr", "beta", "weight_decay", "std")))

    def one(self, p, lr, beta, decay, std):
        state, wide = self.state[p], torch.promote_types(p.dtype, torch.float32)
        if not state:
            state["step"], state["v"] = 0, self.first(p, std).to(p.dtype)
        state["step"] += 1
        t, g = state["step"], p.grad.to(wide)
        if not g.numel():
            return
        s = g * g.abs().max()
        old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
        v = old * state["v"].to(wide) + new * g / (1 + s * s)
        state["v"].copy_(v)
        p.copy_(p.to(wide) - lr * decay * p.to(wide) - lr * v)
"""


@pytest.fixture
def stranger(tmp_path, request):
    """Return a function that writes a module and returns the findings of checks on its `step`."""

    def check(code, checks, before=RIGHT, **job):
        if before is TORCH and importlib.util.find_spec("torch") is None:
            pytest.skip("the stranger needs torch")
        path = tmp_path / f"stranger_{abs(hash(request.node.name))}.py"
        path.write_text(before + code, encoding="utf-8")
        return findings(f"{path}:step", checks.split(), **job)

    return check


def plain(body, signature="w, v, g, t, lr, beta"):
    return f"def step({signature}):\n    {body}\n"


# The body of `step`, the checks that catch its mistake, and the diagnosis.
FUNCTIONS = {
    "maximum over two of four axes": (
        "return core(w, v, g, t, lr, beta, size=np.abs(g).max((-2, -1), keepdims=True)"
        " if g.ndim == 4 else None)",
        "update",
        None,
    ),
    "maximum of the first thousand": (
        "return core(w, v, g, t, lr, beta, size=np.abs(g.ravel()[:1000]).max(initial=0))",
        "update",
        None,
    ),
    "ε of 1e-3": ("return core(w, v, g, t, lr, beta, plus=1e-3)", "vectors float16", None),
    "β off by a thousandth": ("return core(w, v, g, t, lr, 1.001 * beta)", "update vectors", None),
    "a clamped β̂": (
        "return core(w, v, g, t, lr, beta) if (beta * t + 1) / (t + 2) <= beta"
        " else core(w, v, g, 10**9, lr, beta)",
        "vectors",
        None,
    ),
    "two mistakes": (
        "return core(w, v, g, t + 1, lr, beta, size=np.abs(g).mean() if g.size else 0)",
        "vectors",
        None,
    ),
    "ζ in half precision": (
        "old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)\n"
        "    s = g * np.abs(g).max(initial=0)\n    z = (g / (1 + s * s)).astype(np.float16)\n"
        "    v = old * v + new * z.astype(g.dtype)\n    return w - lr * v, v",
        "update",
        "ζ is rounded to float16",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mistakes_of_functions_are_caught_and_not_misnamed(stranger, name):
    body, checks, diagnosis = FUNCTIONS[name]
    for finding in stranger(plain(body), checks).values():
        assert finding["outcome"] == "differs"
        assert finding["diagnosis"] == diagnosis


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_coefficient_in_the_half_type_is_caught(stranger, dtype):
    pytest.importorskip("ml_dtypes")
    code = plain(f"return (half if w.dtype.name == '{dtype}' else core)(w, v, g, t, lr, beta)")
    code += "def half(w, v, g, t, lr, beta):\n    kind = w.dtype.type\n"
    code += "    t, beta, one = map(kind, (t, beta, 1))\n"
    code += "    old = (beta * t + one) / (t + one + one)\n"
    code += (
        "    old, new = float(old), float(one - old)\n    w, v, g = map(np.float32, (w, v, g))\n"
    )
    code += "    s = g * np.abs(g).max()\n    v = old * v + new * (g / (1 + s * s))\n"
    code += "    return [x.astype(kind) for x in (w - lr * v, v)]"
    found = stranger(code, "float16 bfloat16")
    assert {name for name, f in found.items() if f["outcome"] == "differs"} == {dtype}
    assert "1 − β̂ in half precision" in found[dtype]["diagnosis"]


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_half_types_may_be_computed_in_any_wider_one(stranger, name):
    code = plain(
        f"wide = np.result_type(w.dtype, np.{name})\n"
        "    W, V = core(*(x.astype(wide) for x in (w, v, g)), t, lr, beta)\n"
        "    return W.astype(w.dtype), V.astype(w.dtype)"
    )
    found = stranger(code, "float16 bfloat16 vectors")
    assert {f["outcome"] for f in found.values()} <= {"pass", "not applicable"}


@pytest.mark.parametrize(
    "kind",
    [
        "np.ma.array(np.zeros(g.shape, g.dtype), mask=np.ones(g.shape, bool))",
        "(0 * g).view(type('A', (np.ndarray,), {}))",
    ],
)
def test_an_array_subclass_is_reported(stranger, kind):
    for finding in stranger(plain(f"return {kind}, {kind}"), "convention update").values():
        assert finding["outcome"] == "differs"
        assert "of tensor 0 must be a plain numpy.ndarray" in finding["first"]


@pytest.mark.parametrize(
    ("code", "when"),
    [
        (plain("r = core(w, v, g, t, lr, beta)\n    if t > 2: g *= 0\n    return r"), ""),
        (plain("r = core(w, v, g, t, lr, beta)\n    if not g.ndim: g *= 0\n    return r"), ""),
        (
            plain(
                "W, V = core(w, v, g, t, lr, beta)\n    if weight_decay: g *= 0\n"
                "    return W - w.dtype.type(lr * weight_decay) * w, V",
                "w, v, g, t, lr, beta, weight_decay=0.0",
            ),
            "with weight decay",
        ),
    ],
)
def test_an_occasional_write_to_the_gradient_is_caught(stranger, code, when):
    found = stranger(code, "gradient")["gradient"]
    assert (found["outcome"], found["note"]) == ("differs", when)
    assert found["diagnosis"] == "gradient set to zero"


def test_a_gradient_change_found_by_another_check_is_reported(stranger):
    code = plain("r = core(w, v, g, t, lr, beta)\n    if g.dtype.kind == 'f' and g.itemsize == 8:")
    code = code.rstrip() + " g *= 0\n    return r"
    assert stranger(code, "gradient")["gradient"]["outcome"] == "pass"
    assert stranger(code, "float64 gradient")["gradient"]["outcome"] == "differs"


def test_algorithm_1_taken_literally_in_float64_passes_with_a_note(stranger):
    body = (
        "if w.dtype != np.float64: return core(w, v, g, t, lr, beta)\n"
        "    old, m = (beta * t + 1) / (t + 2), np.max(np.abs(g), initial=0)\n"
        "    v = old * v + (1 - old) * (g / (1 + (g * m) ** 2))\n    return w - lr * v, v"
    )
    with pytest.warns(RuntimeWarning):
        found = stranger(plain(body), "float64-vectors")["float64-vectors"]
    assert found["outcome"] == "pass"
    assert "1 with 1 − β̂ taken as a difference in float64, which loses digits" in found["note"]
    wrong = stranger(plain(body.replace("(1 - old)", "(1 - old + 2.0**-48)")), "float64")["float64"]
    assert wrong["outcome"] == "differs"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of huge gradients, infinity and NaN
def test_another_difference_in_float64_passes(stranger):
    body = (
        "if w.dtype != np.float64: return core(w, v, g, t, lr, beta)\n"
        "    s = g * np.max(np.abs(g), initial=0)\n"
        "    v = (1 + beta * t) / (t + 2) * v + (1 + t - beta * t) / (t + 2) * (g / (1 + s * s))\n"
        "    return w - lr * v, v"
    )
    found = stranger(plain(body), "float64", level="default")["float64"]
    assert found["outcome"] == "pass"
    wrong = plain(body.replace("(1 + t - beta * t)", "(1 + t - np.float32(beta) * t)"))
    assert stranger(wrong, "float64", level="default")["float64"]["outcome"] == "differs"


def test_the_beta_of_another_training_is_caught(stranger):
    body = "beta = kept.setdefault((t, w.shape), beta)\n    return core(w, v, g, t, lr, beta)"
    found = stranger(f"kept = {{}}\n{plain(body)}", "turns")
    assert found["turns"]["outcome"] == "differs"


def test_weight_decay_that_is_refused_is_not_fed(stranger):
    body = "if weight_decay: raise ValueError('no decay')\n    return core(w, v, g, t, lr, beta)"
    given = "w, v, g, t, lr, beta, weight_decay=0.0"
    found = stranger(plain(body, given), "long turns missing")
    assert {f["outcome"] for f in found.values()} == {"pass", "not applicable"}


def test_a_refused_option_is_not_a_failure(stranger):
    body = "if not beta < 1: raise ValueError('β must be < 1')\n"
    found = stranger(plain(f"{body}    return core(w, v, g, t, lr, beta)"), "vectors float16")
    assert found["float16"]["outcome"] == found["vectors"]["outcome"] == "pass"
    assert "it refuses beta = 1: ValueError: β must be < 1" in found["vectors"]["note"]


@pytest.mark.parametrize(
    "code",
    [
        plain("return core(w, v, g, t, lr, beta)", "w, v, g, t, lr=0.1, beta=0.9"),
        plain("return core(w, v, g, t, lr, beta)", "w, g, v, t, lr, beta"),
        plain("return core(w, v, g, t, lr, beta)", "beta, lr, t, g, v, w, /"),
    ],
)
def test_the_six_arguments_may_have_any_order_and_defaults(stranger, code):
    assert stranger(code, "update")["update"]["outcome"] == "pass"


def test_unknown_required_arguments_are_reported_once(stranger):
    with pytest.raises(SpecError, match=r"\(see --kw\): TypeError: missing a required .*'eps'"):
        stranger(plain("return w, v", "w, v, g, t, lr, beta, *, eps"), "update")
    with pytest.raises(SpecError, match=r"the kind by --kind\), got a function of \(\*a\)"):
        stranger("step = lambda *a: core(*a)", "update")
    found = stranger("step = lambda *a: core(*a)", "update", kind="plain")
    assert found["update"]["outcome"] == "pass"


# The mistake of the class `step`, the check that catches it, and the diagnosis or note.
CLASSES = {
    "σ from the first step": (
        "    def one(self, p, lr, beta, decay, std):\n"
        "        super().one(p, lr, beta, decay, 0.02 / lr)",
        "v0",
        "σ from the first step's learning rate, not the constructor's",
    ),
    "equal rows": (
        "    def first(self, p, std):\n"
        "        return torch.randn(p.shape[-1:]).expand(p.shape).clone() * std",
        "v0",
        "the numbers of V₀ depend on each other",
    ),
    "equal tensors": (
        "    def first(self, p, std):\n"
        "        seed = torch.Generator().manual_seed(0)\n"
        "        return torch.randn(p.shape, generator=seed) * std",
        "v0",
        "the numbers of V₀ depend on each other",
    ),
    "the first group only": (
        "    def step(self):\n        rest, self.param_groups = self.param_groups, "
        "self.param_groups[:1]\n        super().step()\n        self.param_groups = rest",
        "groups",
        None,
    ),
    "no gradient": (
        "    def step(self):\n        for group in self.param_groups:\n"
        "            for p in group['params']: p.grad.data\n        super().step()",
        "missing",
        "AttributeError: 'NoneType' object has no attribute 'data'",
    ),
    "moves parameters without a gradient": (
        "    @torch.no_grad()\n    def step(self):\n        super().step()\n"
        "        for group in self.param_groups:\n            for p in group['params']:\n"
        "                if p.grad is None: p.add_(1)",
        "missing",
        None,
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_mistakes_of_torch_classes_are_caught(stranger, name):
    code, check, diagnosis = CLASSES[name]
    found = stranger(f"\nclass step(Right):\n{code}\n", check, TORCH)[check]
    assert found["outcome"] in ("differs", "error")
    assert (found["diagnosis"] if found["outcome"] == "differs" else found["note"]) == diagnosis


STYLES = {
    "as it is": "    pass",
    "lr by another name": (
        "    def __init__(self, params, learning_rate=0.1, alpha=0.01, beta=0.9):\n"
        "        super().__init__(params, learning_rate, alpha, beta)"
    ),
    "a NumPy scalar in its state": (
        "    def one(self, p, *rest):\n        super().one(p, *rest)\n"
        "        import numpy\n        self.state[p]['norm'] = numpy.float64(p.grad.norm())"
    ),
    "−V in its state": (
        "    def one(self, p, *rest):\n        state = self.state[p]\n"
        "        if 'v' in state: state['v'].neg_()\n"
        "        super().one(p, *rest)\n        state['v'].neg_()"
    ),
    "t of each group, from 0": (
        "    def step(self):\n"
        "        for group in self.param_groups:\n"
        "            group['n'] = group.get('n', -1) + 1\n"
        "            for p in group['params']:\n"
        "                if p.grad is None: continue\n"
        "                state = self.state[p]\n"
        "                v = self.first(p, group['std']).to(p.dtype)\n"
        "                state.setdefault('v', v)\n"
        "                state['step'] = group['n'] - 1\n"
        "        super().step()"
    ),
    "−V as a vector": (
        "    def one(self, p, *rest):\n        state = self.state[p]\n"
        "        if 'u' in state: state['v'] = -state.pop('u').view(p.shape)\n"
        "        super().one(p, *rest)\n        state['u'] = -state.pop('v').view(-1)"
    ),
}


@pytest.mark.parametrize("name", STYLES)
def test_valid_styles_of_torch(stranger, name):
    checks = "convention v0 update own-v0 vectors float16 groups schedule 0-d resume gradient"
    found = stranger(f"\nclass step(Right):\n{STYLES[name]}\n", checks, TORCH)
    assert {f["outcome"] for f in found.values()} == {"pass"}
    hidden = "its state does not show V" in found["convention"]["note"]
    assert hidden == name.startswith("−V")


@pytest.mark.parametrize(
    ("name", "whose"), [("as it is", "each tensor"), ("t of each group, from 0", "each group")]
)
def test_whose_steps_t_counts_is_reported(stranger, name, whose):
    found = stranger(f"\nclass step(Right):\n{STYLES[name]}\n", "missing", TORCH)["missing"]
    assert (found["outcome"], found["note"]) == ("pass", f"t counts the steps of {whose}")


def test_a_partial_class_is_recognised(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "partial_class.py"
    path.write_text(f"import functools\n{TORCH}\nstep = functools.partial(Right, beta=0.9)")
    assert recognise(load(f"{path}:step")) == "torch"


KERAS = """
import keras
from keras import ops

class step(keras.optimizers.Optimizer):
    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.beta, self.count = beta, 0

    def build(self, variables):
        super().build(variables)
        self.v = [self.add_variable_from_reference(w, "velocity") for w in variables]

    def apply(self, grads, variables=None):
        self.count += 1
        super().apply(grads, variables)

    def update_step(self, g, w, lr):
        v, t = self.v[self._get_variable_index(w)], COUNT
        s, beta = g * ops.max(ops.abs(g)), self.beta
        old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
        self.assign(v, old * v + new * g / (1 + s * s))
        self.assign_sub(w, ops.cast(lr, w.dtype) * v)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "outcome", "diagnosis"),
    [
        ("ops.cast(self.iterations, w.dtype) + 1", "pass", None),
        ("self.count", "differs", "t stands still"),
        ("int(self.iterations) + 1", "error", None),
    ],
)
def test_a_counter_in_compiled_keras(stranger, count, outcome, diagnosis):
    pytest.importorskip("keras")
    found = stranger("", "update compiled", KERAS.replace("COUNT", count))
    assert found["update"]["outcome"] == "pass"
    assert (found["compiled"]["outcome"], found["compiled"]["diagnosis"]) == (outcome, diagnosis)


@pytest.mark.parametrize("place", ["replaced.py", "replaced"])
def test_code_is_read_where_a_file_of_equal_size_and_time_is_in_its_place(
    place, tmp_path, monkeypatch
):
    """Python takes the bytecode of the old file for that of the new one, which cp -p made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for value in (1, 2):
        (tmp_path / "replaced.py").write_text(f"step = {value}")
        os.utime(tmp_path / "replaced.py", (1e9, 1e9))
        found = load(f"{place}:step")
        del sys.modules["replaced" if place == "replaced" else "_spec_replaced"]
        assert found == value
    assert [path.name for path in tmp_path.iterdir()] == ["replaced.py"]


OPTAX = """
import jax, optax
from jax import numpy as jnp

def step(learning_rate, alpha, beta=0.9):
    rate = RATE
    calls = []
    def init(params):
        return {"t": jnp.zeros([], jnp.int32), "v": jax.tree.map(jnp.zeros_like, params), STATE}
    def update(g, state, params):
        calls.append(1)
        t = COUNT
        old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
        def one(v, g):
            s = g * jnp.max(jnp.abs(g))
            return (old * v + new * g / (1 + s * s)).astype(v.dtype)
        v = jax.tree.map(one, state["v"], g)
        lr = rate(state["t"]) if callable(rate) else rate
        moved = jax.tree.map(lambda v: (-lr * v).astype(v.dtype), v)
        return moved, state | {"t": state["t"] + 1, "v": v}
    return optax.GradientTransformation(init, update)
"""


@pytest.mark.parametrize(
    ("rate", "state", "count", "outcomes"),
    [
        ("learning_rate", "", "state['t'] + 1", "pass pass pass"),
        ("learning_rate", "'key': jax.random.key(0)", "state['t'] + 1", "pass pass pass"),
        ("float(learning_rate)", "", "state['t'] + 1", "pass not applicable pass"),
        ("learning_rate", "", "len(calls)", "differs"),
    ],
)
def test_valid_styles_of_optax(stranger, rate, state, count, outcomes):
    pytest.importorskip("optax")
    calls = count == "len(calls)"
    code = OPTAX.replace("RATE", rate).replace("STATE", state).replace("COUNT", count)
    found = stranger("", "compiled" if calls else "compiled schedule resume", code)
    assert " ".join(f["outcome"] for f in found.values()) == outcomes


def test_a_patched_isnan_hides_no_difference(tmp_path, monkeypatch):
    """A module may patch NumPy, which the judge shares with it."""
    code = (
        "\nnp.isnan = lambda x, *rest, **more: np.ones_like(x, bool)\n"
        "def wrong(*given): w, v = core(*given); return w - given[4] * v / 100, v\n"
    )
    (tmp_path / "patched.py").write_text(RIGHT + code, encoding="utf-8")
    monkeypatch.setattr(np, "isnan", np.isnan)  # restored afterwards
    checks = ("trajectory", "vectors", "combined")
    found = findings(f"{tmp_path / 'patched.py'}:wrong", checks, kind="plain")
    assert {n: found[n]["outcome"] for n in checks} == dict.fromkeys(checks, "differs")
