"""Every planted mistake differs in its check, and every right implementation conforms."""

import functools
import itertools

import numpy as np
import pytest

from gravity_conformance.conform.checks.covering import covering
from tests.support import planted
from tests.support.worker import KINDS, findings

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
}

# right variant → the checks in which it gets a remark
RIGHT = {
    "right": (),
    "finite": ("non-finite",),
    "empty": ("empty",),
    "singles": ("float16", "bfloat16"),
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
    doubles = ("float64-vectors",) if variant == "longdouble" else ()
    checks = [*(CHECKS if kind in ("plain", "torch") else FEW), *halves, *doubles]
    found = findings(f"{SPEC}:{kind}_{variant}", checks)
    outcomes = {check: finding["outcome"] for check, finding in found.items()}
    remarks = {check for check in RIGHT[variant] if outcomes[check] != "not applicable"}
    assert set(outcomes.values()) <= {"pass", "remark", "not applicable"}
    assert {check for check, outcome in outcomes.items() if outcome == "remark"} == remarks
    if variant != "rest" or kind != "plain":  # a plain function has no V₀ of its own
        assert remarks == {*RIGHT[variant]}


# Mistakes of an optimizer around the update: the code of a subclass, and the check.
AROUND = {
    "a closure without gradients": (
        "    @torch.no_grad()\n    def step(self, closure=None):\n"
        "        if closure: closure()\n        super().step()",
        "closure",
    ),
    "a closure after the step": (
        "    def step(self, closure=None):\n        super().step()\n"
        "        return closure() if closure else None",
        "closure",
    ),
    "t is cast by load_state_dict": (
        "    def one(self, p, *rest):\n        super().one(p, *rest)\n"
        "        t = self.state[p]['t']\n"
        "        if not torch.is_tensor(t): self.state[p]['t'] = torch.tensor(float(t))",
        "bfloat16",
    ),
    "V₀ is 0 where the first gradient comes later": (
        "    def one(self, p, *rest):\n"
        "        if self.state and p not in self.state and self.late: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n        super().one(p, *rest)\n"
        "    def step(self):\n        self.late = hasattr(self, 'late')\n        super().step()",
        "v0",
    ),
    "V₀ is 0 where the first gradient comes after a load": (
        "    def one(self, p, *rest):\n"
        "        if self.defaults.get('loaded') and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n        super().one(p, *rest)\n"
        "    def load_state_dict(self, state):\n"
        "        super().load_state_dict(state)\n        self.defaults['loaded'] = True",
        "v0",
    ),
    "V₀ is 0 in half types": (
        "    def one(self, p, *rest):\n"
        "        if p.dtype.itemsize == 2 and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n        super().one(p, *rest)",
        "float16",
    ),
    "β of the group is forgotten in half types": (
        "    def one(self, p, owner, place, group):\n"
        "        if p.dtype.itemsize == 2: group = group | {'beta': self.defaults['beta']}\n"
        "        super().one(p, owner, place, group)",
        "bfloat16",
    ),
    "a table of V that a load does not renew": (
        "    @torch.no_grad()\n    def step(self):\n"
        "        if getattr(self, 'table', None):\n"
        "            for p, v in self.table.items(): self.state[p]['v'] = v\n"
        "        super().step()\n"
        "        self.table = {p: s['v'] for p, s in self.state.items()}",
        "resume",
    ),
    "it keeps p.data": (
        "    @torch.no_grad()\n    def step(self):\n"
        "        ps = [p for group in self.param_groups for p in group['params']]\n"
        "        self.memory = getattr(self, 'memory', None) or [p.data for p in ps]\n"
        "        given = [p.data for p in ps]\n"
        "        for p, memory in zip(ps, self.memory): p.data = memory\n"
        "        super().step()\n"
        "        for p, data in zip(ps, given): p.data = data",
        "moved",
    ),
    "V lies in memory as W did at first": (
        "    def one(self, p, owner, place, group):\n"
        "        super().one(p, owner, place, group)\n"
        "        v = self.state[p]['v']\n"
        "        if not p.is_contiguous() and v.is_contiguous() and p.ndim == 4:\n"
        "            v.copy_(v.permute(0, 2, 3, 1).reshape(p.shape))",
        "moved",
    ),
    "W has a copy of its own": (
        "    @torch.no_grad()\n    def step(self):\n"
        "        ps = [p for group in self.param_groups for p in group['params']]\n"
        "        if hasattr(self, 'masters'):\n"
        "            for p, w in zip(ps, self.masters): p.copy_(w)\n"
        "        super().step()\n"
        "        self.masters = [p.clone() for p in ps]",
        "assigned",
    ),
    "weight decay as it was at construction": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        group['decay'] = group['weight_decay']\n"
        "    def one(self, p, owner, place, group):\n"
        "        super().one(p, owner, place, group | {'weight_decay': group['decay']})",
        "options",
    ),
    "what is frozen at construction stays so": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        group['moving'] = [id(p) for p in group['params'] if p.requires_grad]\n"
        "    def one(self, p, owner, place, group):\n"
        "        if id(p) in group['moving']: super().one(p, owner, place, group)",
        "missing",
    ),
    "σ from a tensor that has changed since": (
        "    def one(self, p, owner, place, group):\n"
        "        lr = group['lr']\n"
        "        if torch.is_tensor(lr): group['std'] = group['alpha'] / float(lr)\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "weight decay is forgotten in half precision": (
        "    def one(self, p, owner, place, group):\n"
        "        if p.dtype.itemsize == 2: group = group | {'weight_decay': 0.0}\n"
        "        super().one(p, owner, place, group)\n"
        "        if p.dtype.itemsize == 2: p.mul_(1 + 2**-9)",
        "bfloat16",
    ),
    "one maximum for parameters in one buffer": (
        "    @torch.no_grad()\n    def step(self):\n"
        "        ps = [p for group in self.param_groups for p in group['params']]\n"
        "        memory = {p.untyped_storage().data_ptr() for p in ps}\n"
        "        most = max(p.grad.abs().max() for p in ps if p.grad is not None and p.numel())\n"
        "        for p in ps:\n"
        "            if len(memory) == 1 < len(ps):\n"
        "                p.grad = torch.where(p.grad == p.grad.max(), most, p.grad)\n"
        "        super().step()",
        "strides",
    ),
    "max|G| before duplicate rows are added": (
        "    @torch.no_grad()\n    def step(self):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if p.grad is None or not p.grad.is_sparse: continue\n"
        "                g, most = p.grad.to_dense(), p.grad._values().abs().max()\n"
        "                p.grad = g * (most / g.abs().max())\n"
        "        super().step()",
        "rows",
    ),
    "a gradient scaler that has unscaled is not asked": (
        "    _step_supports_amp_scaling = True\n"
        "    @torch.no_grad()\n    def step(self):\n"
        "        scale = getattr(self, 'grad_scale', None)\n"
        "        if scale is not None and self.found_inf: return\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if scale is not None and p.grad is not None: p.grad = p.grad / scale\n"
        "        super().step()",
        "scaler",
    ),
    "a promise to a gradient scaler that it does not keep": (
        "    _step_supports_amp_scaling = True",
        "scaler",
    ),
    "loading keeps the options": (
        "    def load_state_dict(self, state):\n"
        "        kept = [group['beta'] for group in self.param_groups]\n"
        "        super().load_state_dict(state)\n"
        "        for group, beta in zip(self.param_groups, kept): group['beta'] = beta",
        "resume",
    ),
}


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
    "weight decay where W is not contiguous": (
        "not p.is_contiguous()",
        "group = group | {'weight_decay': 0.0}",
    ),
    "weight decay where the gradient is not contiguous": (
        "not p.grad.is_contiguous()",
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


def written(tmp_path, module, code, kind=None):
    """Write a subclass of the right optimizer of a kind; return its SPEC."""
    path = tmp_path / "around.py"
    head = f"from tests.support import planted\nimport {module}\n\n"
    body = f"class Around(planted.{kind or module}_right):\n{code}\n"
    path.write_text(head + body, encoding="utf-8")
    return f"{path}:Around"


@pytest.mark.parametrize("name", AROUND)
def test_a_mistake_around_the_update_differs(name, tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code, check = AROUND[name]
    found = findings(written(tmp_path, "torch", code), [check])
    assert found[check]["outcome"] in ("differs", "error")
    accepts = (
        "    def step(self, closure=None):\n        if closure: closure()\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if p.grad is not None and p.grad.is_sparse: p.grad = p.grad.to_dense()\n"
        "        super().step()"
    )
    found = findings(written(tmp_path, "torch", accepts), [check])
    assert found[check]["outcome"] == "pass"


# Mistakes of an optimizer of Keras around the update, and what a right one does there.
STEP = "    def update_step(self, g, w, lr):\n"
INIT = (
    "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=None, "
    "**kwargs):\n        super().__init__(learning_rate, alpha, beta, seed, "
    "weight_decay=weight_decay, **kwargs)\n"
)
DENSE = f"{INIT}{STEP}        super().update_step(tf.convert_to_tensor(g), w, lr)"
AROUND_KERAS = {
    "t counts batches": (
        "    iterations = property(lambda self: self._iterations)",
        "accumulation",
    ),
    "max|G| before gradients are clipped": (
        "    def _clip_gradients(self, grads):\n"
        "        self.before = [abs(g).numpy().max() for g in grads]\n"
        "        return super()._clip_gradients(grads)\n"
        f"{STEP}"
        "        whole = tf.convert_to_tensor(g)\n"
        "        most = self.before[self._get_variable_index(w)]\n"
        "        s = abs(whole) * tf.reduce_max(abs(whole))\n"
        "        scaled = whole * (1 + s * s) / (1 + (whole * most) ** 2)\n"
        "        super().update_step(scaled if most > 0.5 else whole, w, lr)",
        "clipping",
    ),
    "max|G| before duplicate rows are added": (
        f"{STEP}"
        "        whole = tf.convert_to_tensor(g)\n"
        "        if isinstance(g, tf.IndexedSlices) and g.values.shape[0]:\n"
        "            most = tf.reduce_max(abs(g.values)) / tf.reduce_max(abs(whole))\n"
        "            whole *= tf.where(abs(whole) == tf.reduce_max(abs(whole)), most, 1)\n"
        "        super().update_step(whole, w, lr)",
        "rows",
    ),
    "rows without a gradient stand still": (
        f"{STEP}"
        "        before = tf.identity(w)\n"
        "        super().update_step(tf.convert_to_tensor(g), w, lr)\n"
        "        if isinstance(g, tf.IndexedSlices):\n"
        "            still = [i for i in range(w.shape[0]) if i not in g.indices.numpy()]\n"
        "            if still: w.assign(tf.tensor_scatter_nd_update("
        "tf.convert_to_tensor(w), [[i] for i in still], tf.gather(before, still)))",
        "rows",
    ),
    "the norm of all gradients for the norm of each": (
        "    def _clip_gradients(self, grads):\n"
        "        if self.clipnorm: return tf.clip_by_global_norm(grads, self.clipnorm)[0]\n"
        "        return super()._clip_gradients(grads)",
        "clipping",
    ),
    "rows of long tables without a gradient stand still": (
        f"{STEP}"
        "        before, whole = tf.identity(w), tf.convert_to_tensor(g)\n"
        "        super().update_step(whole, w, lr)\n"
        "        if isinstance(g, tf.IndexedSlices) and w.shape[0] > 20_000:\n"
        "            moves = tf.reduce_any(whole != 0, axis=1, keepdims=True)\n"
        "            w.assign(tf.where(moves, tf.convert_to_tensor(w), before))",
        "rows",
    ),
    "W has a copy of its own": (
        f"{STEP}"
        "        self.masters = getattr(self, 'masters', {})\n"
        "        place = self._get_variable_index(w)\n"
        "        if place in self.masters: w.assign(self.masters[place])\n"
        "        super().update_step(tf.convert_to_tensor(g), w, lr)\n"
        "        self.masters[place] = tf.identity(w)",
        "assigned",
    ),
    "σ by the rate when variables are built": (
        "    def build(self, variables):\n"
        "        self.std = self.alpha / float(self.learning_rate.numpy())\n"
        "        super().build(variables)",
        "v0",
    ),
    "no constraints": (
        "    def apply(self, grads, variables=None):\n"
        "        kept = [w.constraint for w in variables]\n"
        "        for w in variables: w.constraint = None\n"
        "        super().apply(grads, variables)\n"
        "        for w, given in zip(variables, kept): w.constraint = given",
        "constraint",
    ),
    "V by the order of the gradients": (
        "    def apply(self, grads, variables=None):\n"
        "        own, self.velocities = self.velocities, list(self.velocities)\n"
        "        given = [g is not None for g in grads]\n"
        "        for w, v in zip(variables, own):\n"
        "            if w.shape == v.shape: self.velocities[self._get_variable_index(w)] = v\n"
        "        super().apply(grads, variables)\n"
        "        self.velocities = own",
        "order",
    ),
    "every variable decays": (
        f"{INIT}    def exclude_from_weight_decay(self, var_list=None, var_names=None): pass",
        "excluded",
    ),
    "no variable decays": (
        f"{INIT}    def exclude_from_weight_decay(self, var_list=None, var_names=None):\n"
        "        self.weight_decay = None",
        "excluded",
    ),
}


@pytest.mark.parametrize("name", AROUND_KERAS)
def test_a_mistake_around_the_update_of_keras_differs(name, tmp_path):
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    code, check = AROUND_KERAS[name]
    level = "default" if check == "rows" else "quick"
    for body, outcome in ((DENSE, "pass"), (code, "differs")):
        spec = written(tmp_path, "tensorflow as tf", body, kind="keras")
        assert findings(spec, [check], level=level)[check]["outcome"] == outcome


# Transformations of optax that are wrong around the update, and the check.
AROUND_OPTAX = """
import functools
import jax
import optax
import zlib
from tests.support import planted

def around(init, update):
    def factory(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
        inner = planted.optax_right(learning_rate, alpha, beta, seed)
        return optax.GradientTransformation(
            functools.partial(init, inner), functools.partial(update, inner)
        )
    return factory

def right(inner, *given):
    return inner.init(*given) if len(given) == 1 else inner.update(*given)

def by_name(inner, params):
    def drawn(path, w):
        one = planted.optax_right(seed=zlib.crc32(str(path[-1]).encode()))
        return one.init(w)["velocity"]
    v = jax.tree_util.tree_map_with_path(drawn, params)
    return inner.init(params) | {"velocity": v}

def in_place(inner, updates, state, params=None):
    moves, after = inner.update(updates, state, params)
    state.update(after)
    return moves, state

def moving(inner, updates, state, params=None):
    moves, after = inner.update(updates, state, params)
    params.update(optax.apply_updates(params, moves))
    return jax.tree.map(jax.numpy.zeros_like, moves), after

names, mutable = around(by_name, right), around(right, in_place)
owner, correct = around(right, moving), around(right, right)

def peak(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    most = max(map(learning_rate, range(4))) if callable(learning_rate) else learning_rate
    inner = planted.optax_right(learning_rate, alpha, beta, seed)
    start = planted.optax_right(most, alpha, beta, seed)
    return optax.GradientTransformation(start.init, inner.update)

def tiled(inner, updates, state, params=None):
    def cut(g):
        whole = g.shape[-1] // 4096 * 4096 if g.ndim > 1 and g.shape[-1] > 8192 else g.shape[-1]
        most = jax.numpy.abs(g[..., :whole]).max()
        return jax.numpy.clip(g, -most, most)
    return inner.update(jax.tree.map(lambda g: cut(g) if g.ndim else g, updates), state, params)

wide = around(right, tiled)
kept = {}

def cached(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0, *, keeps=True):
    def init(params):
        return planted.optax_right(learning_rate, alpha, beta, seed).init(params)

    def update(updates, state, params=None):
        key = (beta, weight_decay == 0)
        used = kept.setdefault(key, weight_decay) if keeps else weight_decay
        lr = learning_rate(state["t"]) if callable(learning_rate) else learning_rate
        moves, state = planted.optax_right(learning_rate, alpha, beta).update(updates, state)
        return jax.tree.map(lambda m, w: m - lr * used * w, moves, params), state

    return optax.GradientTransformation(init, update)

def decays(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
    return cached(learning_rate, alpha, beta, seed, weight_decay, keeps=False)
"""


@pytest.mark.parametrize(
    ("name", "check", "right"),
    [
        ("names", "v0", "correct"),
        ("peak", "v0", "correct"),
        ("wide", "large", "correct"),
        ("mutable", "gradient", "correct"),
        ("owner", "gradient", "correct"),
        ("cached", "turns", "decays"),
    ],
)
def test_a_mistake_around_the_update_of_optax_differs(name, check, right, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = tmp_path / "around.py"
    path.write_text(AROUND_OPTAX, encoding="utf-8")
    level = "default" if check == "large" else "quick"
    for found, outcome in ((name, "differs"), (right, "pass")):
        assert findings(f"{path}:{found}", [check], level=level)[check]["outcome"] == outcome


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
