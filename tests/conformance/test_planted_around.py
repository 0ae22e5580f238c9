"""Mistakes of an optimizer around the update differ in their checks; a right one does not."""

import pytest

from tests.support.worker import findings, written

pytestmark = pytest.mark.slow

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
    "weight decay as it was at the first step, and V in a dict of its own": (
        "    def one(self, p, owner, place, group):\n"
        "        state = self.state[p]\n"
        "        state.update(state.pop('inner', {}))\n"
        "        decay = state.setdefault('decay', group['weight_decay'])\n"
        "        super().one(p, owner, place, group | {'weight_decay': decay})\n"
        "        state['inner'] = {'v': state.pop('v')}",
        "options",
    ),
    "one maximum for a list of tensors": (
        "    def __init__(self, params, lr=0.1, beta=0.9, *, foreach=False):\n"
        "        super().__init__(params, lr, beta)\n"
        "        self.defaults['foreach'] = foreach\n"
        "    @torch.no_grad()\n    def step(self):\n"
        "        ps = [p for group in self.param_groups for p in group['params']]\n"
        "        most = max(p.grad.abs().max() for p in ps if p.grad is not None and p.numel())\n"
        "        for p in ps if self.defaults['foreach'] else ():\n"
        "            p.grad = torch.where(p.grad == p.grad.max(), most, p.grad)\n"
        "        super().step()",
        "paths",
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
        "        if p.dtype.itemsize > 2: return super().one(p, owner, place, group)\n"
        "        state, g, b = self.state[p], p.grad, group['beta']\n"
        "        if not state: state.update(t=0, v=torch.zeros_like(p))\n"
        "        state['t'] += 1\n"
        "        t, s = state['t'], g * g.abs().max()\n"
        "        zeta = g / (1 + s * s)\n"
        "        state['v'].mul_((b * t + 1) / (t + 2))\n"
        "        state['v'].add_(zeta * (((1 - b) * t + 1) / (t + 2)))\n"
        "        p.sub_(group['lr'] * state['v'])",
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
    "a step that a gradient scaler skips decays": (
        "    _step_supports_amp_scaling = True\n"
        "    @torch.no_grad()\n    def step(self):\n"
        "        scale = getattr(self, 'grad_scale', None)\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if p.grad is None: continue\n"
        "                if scale is not None: p.grad = p.grad / scale\n"
        "                if getattr(self, 'found_inf', None):\n"
        "                    p.mul_(1 - group['lr'] * group['weight_decay'])\n"
        "        if not getattr(self, 'found_inf', None): super().step()",
        "scaler",
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
    "loading a state without tensors keeps V": (
        "    def load_state_dict(self, state):\n"
        "        kept = self.state_dict()['state']\n"
        "        super().load_state_dict({**state, 'state': state['state'] or kept})",
        "resume",
    ),
    "loading keeps the options": (
        "    def load_state_dict(self, state):\n"
        "        kept = [group['beta'] for group in self.param_groups]\n"
        "        super().load_state_dict(state)\n"
        "        for group, beta in zip(self.param_groups, kept): group['beta'] = beta",
        "resume",
    ),
}


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
    if check == "paths":
        accepts = (
            "    def __init__(self, params, lr=0.1, beta=0.9, *, foreach=False):\n"
            "        super().__init__(params, lr, beta)"
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
    "max|G| of sums of absolute values of duplicate rows": (
        f"{STEP}"
        "        whole = tf.convert_to_tensor(g)\n"
        "        if isinstance(g, tf.IndexedSlices):\n"
        "            sizes = tf.IndexedSlices(abs(g.values), g.indices, g.dense_shape)\n"
        "            most = tf.reduce_max(tf.convert_to_tensor(sizes))\n"
        "            most /= tf.reduce_max(abs(whole))\n"
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
    "no averages": (
        "    def apply(self, grads, variables=None):\n"
        "        self.use_ema, given = False, self.use_ema\n"
        "        super().apply(grads, variables)\n"
        "        self.use_ema = given",
        "ema",
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
from jax.flatten_util import ravel_pytree
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

def flat(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    inner, ravel = planted.optax_right(learning_rate, alpha, beta, seed), ravel_pytree

    def init(params):
        state = inner.init(params)
        return state["t"], ravel(state["velocity"])[0]

    def update(updates, state, params):
        t, vector = state
        moves, after = inner.update(updates, {"t": t, "velocity": ravel(params)[1](vector)})
        return moves, (after["t"], ravel(after["velocity"])[0])

    return optax.GradientTransformation(init, update)

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

def zipped(inner, updates, state, params=None):
    moves, state = inner.update(updates, state, params)
    pairs = jax.tree.map(lambda m: (m, m.shape), moves)
    return jax.tree.map(lambda p: p[0], pairs, is_leaf=lambda x: isinstance(x, tuple)), state

tuples = around(right, zipped)
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
        ("tuples", "update", "correct"),
        ("names", "v0", "flat"),
    ],
)
def test_a_mistake_around_the_update_of_optax_differs(name, check, right, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = tmp_path / "around.py"
    path.write_text(AROUND_OPTAX, encoding="utf-8")
    level = "default" if check == "large" else "quick"
    found = {x: findings(f"{path}:{x}", [check], level=level)[check] for x in (name, right)}
    assert found[name]["outcome"] in ("differs", "error")
    assert found[right]["outcome"] == "pass"


def test_w_may_have_the_dtype_of_the_gradient_in_optax(tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = tmp_path / "around.py"
    path.write_text(AROUND_OPTAX, encoding="utf-8")
    assert findings(f"{path}:flat", ["float16"])["float16"]["outcome"] == "pass"
