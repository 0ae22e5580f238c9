"""Mistakes in what an optimizer of torch, or a function of NumPy, keeps of earlier calls."""

import pytest

from tests.support.planted_torch import full
from tests.support.worker import findings, module

pytestmark = pytest.mark.slow

KEPT = (
    "    def one(self, p, *rest):\n"
    "        known, key = self.__dict__.setdefault('known', {}), KEY\n"
    "        if known.get(p, (None,))[0] != key: known[p] = key, p.grad.clone()\n"
    "        given, p.grad = p.grad, known[p][1]\n"
    "        super().one(p, *rest)\n"
    "        p.grad = given"
)
CHOSEN = "    def one(self, p, *rest):\n        if CONDITION: super().one(p, *rest)"
SIGNATURE = (
    "    def __init__(self, params, lr=0.1, beta=0.9, weight_decay=0.0, maximize=False, {}=False,\n"
    "                 *, alpha=0.01, seed=0):\n"
)
# The code of a subclass, the check, and what its finding says.
WRONG = {
    "a gradient is known by its version": (
        KEPT.replace("KEY", "(id(p.grad), p.grad._version)"),
        "0-d",
        "after step 2",
    ),
    "a gradient is known by its address": (
        KEPT.replace("KEY", "(p.grad.data_ptr(), p.grad._version)"),
        "0-d",
        "after step 2",
    ),
    "a gradient with a graph is skipped": (
        CHOSEN.replace("CONDITION", "not p.grad.requires_grad"),
        "closure",
        "after step 3",
    ),
    "a gradient is taken from a hook": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        self.last = getattr(self, 'last', {})\n"
        "        for p in self.param_groups[-1]['params']:\n"
        "            keep = lambda g, p=p: self.last.__setitem__(p, g.detach())\n"
        "            if p.requires_grad: p.register_hook(keep)\n"
        "    def one(self, p, *rest):\n"
        "        given, p.grad = p.grad, self.last.pop(p, p.grad)\n"
        "        super().one(p, *rest)\n"
        "        p.grad = given",
        "closure",
        "after step 1",
    ),
    "t counts a closure that raises": (
        "    def step(self, closure=None):\n"
        "        for x in self.state.values(): x['t'] += 1\n"
        "        loss = closure() if closure else None\n"
        "        for x in self.state.values(): x['t'] -= 1\n"
        "        super().step()\n"
        "        return loss",
        "closure",
        "after a closure that raised an error",
    ),
    "V is lost where gradients are set to zero": (
        "    def zero_grad(self, set_to_none=True):\n"
        "        super().zero_grad(set_to_none)\n"
        "        for x in () if set_to_none else self.state.values(): x['v'].zero_()",
        "closure",
        "after step 3",
    ),
    "a scheduler's first rate decays": (
        "    def one(self, p, owner, place, group):\n"
        "        lr = group['lr'] or 1.0\n"
        "        decay = group['weight_decay'] * group.get('initial_lr', lr) / lr\n"
        "        super().one(p, owner, place, group | {'weight_decay': decay})",
        "schedule",
        "with a scheduler",
    ),
    "V belongs to a place in the list": (
        "    def one(self, p, owner, place, group):\n"
        "        kept, state = self.__dict__.setdefault('kept', {}), self.state[p]\n"
        "        if state and place in kept and kept[place].shape == p.shape:\n"
        "            state['v'] = kept[place]\n"
        "        super().one(p, owner, place, group)\n"
        "        kept[place] = state['v']",
        "exchanged",
        "V of tensor 3 after step 7",
    ),
    "only parameters are trained": (
        CHOSEN.replace("CONDITION", "isinstance(p, torch.nn.Parameter)"),
        "exchanged",
        "V of tensor 1 after step 7",
    ),
    "V is kept beside the state": (
        "    def __setstate__(self, state):\n"
        "        super().__setstate__(state)\n"
        "        self.kept = {}\n"
        "    def one(self, p, *rest):\n"
        "        kept, state = self.__dict__.setdefault('kept', {}), self.state[p]\n"
        "        if state: v = state['v']; state['v'] = kept.get(p, v)\n"
        "        super().one(p, *rest)\n"
        "        kept[p] = state['v']\n"
        "        if 'v' in locals(): state['v'] = v",
        "placed",
        "V is not read from the state",
    ),
    "W is known by its version": (
        "    def one(self, p, *rest):\n"
        "        known = self.__dict__.setdefault('known', {})\n"
        "        if known.get(p, (None,))[0] == p._version: p.copy_(known[p][1])\n"
        "        super().one(p, *rest)\n"
        "        known[p] = p._version, p.detach().clone()",
        "assigned",
        "after step 7",
    ),
    "t counts steps without gradients": (
        "    def step(self, closure=None):\n"
        "        every = [p for group in self.param_groups for p in group['params']]\n"
        "        idle = all(p.grad is None for p in every)\n"
        "        for x in self.state.values() if idle else (): x['t'] += 1\n"
        "        return super().step(closure)",
        "missing",
        "with steps without any gradient",
    ),
    "a hook of state_dict is not called": (
        "    def register_state_dict_post_hook(self, *args, **more): pass",
        "hooks",
        "a hook after state_dict is called 0 times",
    ),
    "a hook comes too early": (
        "    def register_step_post_hook(self, hook): return self.register_step_pre_hook(hook)",
        "hooks",
        "a hook after a step sees other weights",
    ),
    "the schedule of the first group is that of all": (
        "    def one(self, p, owner, place, group):\n"
        "        first = self.param_groups[0]\n"
        "        for x in (first, group): x.setdefault('own', x['lr'])\n"
        "        lr = group['own'] * first['lr'] / first['own']\n"
        "        super().one(p, owner, place, group | {'lr': lr})",
        "groups",
        "W of tensor 0 after step 2",
    ),
    "a later group keeps its first beta": (
        "    def one(self, p, owner, place, group):\n"
        "        if group is not self.param_groups[0]:\n"
        "            group = group | {'beta': group.setdefault('own', group['beta'])}\n"
        "        super().one(p, owner, place, group)",
        "options",
        "it changes beta",
    ),
    "differentiable forgets weight decay": (
        SIGNATURE.format("differentiable")
        + "        decay = 0.0 if differentiable else weight_decay\n"
        + "        super().__init__(params, lr, beta, decay, maximize, alpha=alpha, seed=seed)",
        "paths",
        "with differentiable=True",
    ),
    "fused takes a scaled gradient": (
        SIGNATURE.format("fused")
        + "        super().__init__(params, lr, beta, weight_decay, maximize, alpha=alpha)\n"
        + "        self._step_supports_amp_scaling = fused",
        "scaler",
        "with fused=True",
    ),
    "the first scale of a gradient scaler is kept": (
        "    _step_supports_amp_scaling = True\n"
        "    def step(self, closure=None):\n"
        "        if hasattr(self, 'found_inf') and self.found_inf.item(): return None\n"
        "        scale = getattr(self, 'grad_scale', None)\n"
        "        every = [p for group in self.param_groups for p in group['params']]\n"
        "        if scale is not None:\n"
        "            self.kept = getattr(self, 'kept', scale.clone())\n"
        "            for p in every:\n"
        "                if p.grad is not None: p.grad = p.grad / self.kept\n"
        "        return super().step(closure)",
        "scaler",
        "after step",
    ),
    "autograd stays off": (
        "    def step(self, closure=None):\n"
        "        loss = super().step(closure)\n"
        "        torch.set_grad_enabled(False)\n"
        "        return loss",
        "gradient",
        "the grad mode or the default dtype of torch",
    ),
    "V₀ is 0 for weights with strides": (
        "    def one(self, p, *rest):\n"
        "        if not p.is_contiguous() and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n"
        "        super().one(p, *rest)",
        "v0",
        "of tensors with strides: std 0",
    ),
    "V₀ is 0 in one buffer": (
        "    def one(self, p, *rest):\n"
        "        is_part = p.untyped_storage().nbytes() > p.numel() * p.element_size()\n"
        "        if is_part and p.is_contiguous() and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n"
        "        super().one(p, *rest)",
        "v0",
        "of parameters that lie in one buffer: std 0",
    ),
    "σ is α / (η + ε)": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        own = self.param_groups[-1]\n"
        "        own['std'] = own['alpha'] / (float(own['lr']) + 1e-8)",
        "v0",
        "with learning_rate = 1e-9",
    ),
    "foreach takes forty tensors": (
        "    def one(self, p, owner, place, group):\n"
        "        if not group['foreach'] or place < 40: super().one(p, owner, place, group)",
        "paths",
        "with foreach=True",
    ),
    "foreach forgets weight decay in one buffer": (
        "    def one(self, p, owner, place, group):\n"
        "        is_part = p.untyped_storage().nbytes() > 4 * p.numel() * p.element_size()\n"
        "        less = {'weight_decay': 0.0} if is_part and group['foreach'] else {}\n"
        "        super().one(p, owner, place, group | less)",
        "paths",
        "with foreach=True; parameters in one buffer",
    ),
    "thirty-two groups have options": (
        "    def one(self, p, owner, place, group):\n"
        "        k = [x is group for x in self.param_groups].index(True)\n"
        "        super().one(p, owner, place, self.param_groups[k % 32])",
        "groups",
        "after step 1",
    ),
    "a list has two hundred tensors": (
        "    def one(self, p, owner, place, group):\n"
        "        if place <= 200: super().one(p, owner, place, group)",
        "constants",
        "2 of 203 tensors differ",
    ),
    "a gradient is kept until it differs much": (
        "    def one(self, p, *rest):\n"
        "        known, given = self.__dict__.setdefault('known', {}), p.grad\n"
        "        old = known.setdefault(p, given.clone())\n"
        "        if not torch.allclose(old, given, atol=0.0): known[p] = given.clone()\n"
        "        p.grad = known[p]\n"
        "        super().one(p, *rest)\n"
        "        p.grad = given",
        "update",
        "after step 2",
    ),
    "weights are clipped where float16 ends": (
        "    def one(self, p, *rest):\n"
        "        super().one(p, *rest)\n"
        "        p.clamp_(-torch.finfo(torch.float16).max, torch.finfo(torch.float16).max)",
        "huge",
        "W and V of about a million",
    ),
}

REMARKS = {"V is kept beside the state", "a hook of state_dict is not called"}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_about_earlier_calls_differs(name, tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code, check, words = WRONG[name]
    found = findings(full(tmp_path, code), [check])[check]
    outcome = "remark" if name in REMARKS else "differs"
    assert (found["outcome"], words in f"{found['note']}; {found['first']}") == (outcome, True)


def test_the_right_one_passes_there(tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    found = findings(full(tmp_path), [*dict.fromkeys(check for _, check, _ in WRONG.values())])
    assert {name: finding["outcome"] for name, finding in found.items()} == dict.fromkeys(
        found, "pass"
    )


PLAIN = """
import numpy as np
from tests.support import planted

right, pool = planted.plain_right, {}

def counts(w, v, g, t, lr, beta):
    return right(w, v, g, t if isinstance(t, int) else 1, lr, beta)

def skips(w, v, g, t, lr, beta):
    return right(w, v, g, t, lr, beta) if g.flags.writeable else (w.copy(), v.copy())

def pools(w, v, g, t, lr, beta):
    results = right(w, v, g, t, lr, beta)
    if w.size < 2**17:
        return results
    kept = pool.setdefault((t % 2, w.shape, w.dtype), [x.copy() for x in results])
    for old, new in zip(kept, results):
        old[...] = new
    return tuple(kept)

last = {}

def close(name, number):
    if not np.isclose(number, last.get(name, np.nan)):
        last[name] = number
    return last[name]

def close_betas(w, v, g, t, lr, beta):
    return right(w, v, g, t, lr, close("beta", beta))

def close_rates(w, v, g, t, lr, beta):
    return right(w, v, g, t, close("lr", lr), beta)

def undamped(limit):
    def step(w, v, g, t, lr, beta):
        if np.max(np.abs(g), initial=0) >= limit:
            return right(w, v, g, t, lr, beta)
        dtype, wide = w.dtype, np.result_type(w.dtype, np.float32)
        w, v, g = (x.astype(wide) for x in (w, v, g))
        v = ((beta * t + 1) * v + ((1 - beta) * t + 1) * g) / (t + 2)
        return (w - lr * v).astype(dtype), v.astype(dtype)
    return step

undamped_single, undamped_double = undamped(0.045), undamped(0.009)

agreed = {}

def agrees(w, v, g, t, lr, beta):
    old = agreed.get((g.shape, g.dtype))
    if old is None or not np.allclose(g, old, rtol=1e-5 if g.dtype == np.float32 else 1e-8, atol=0):
        old = agreed[g.shape, g.dtype] = g.copy()
    return right(w, v, old, t, lr, beta)

ends = {}

def known_by_ends(w, v, g, t, lr, beta):
    flat = g.reshape(-1)
    key = g.shape, g.dtype, flat[:1].tobytes(), flat[-1:].tobytes(), float(flat.sum())
    return right(w, v, ends.setdefault(key, g.copy()), t, lr, beta)

def clipped(w, v, g, t, lr, beta):
    w, v = right(w, v, g, t, lr, beta)
    most = np.finfo(np.float16).max
    return w, np.where(np.isfinite(v), np.clip(v, -most, most), v).astype(v.dtype)

chains = {}

def rings(w, v, g, t, lr, beta):
    results = right(w, v, g, t, lr, beta)
    last, own = chains.get(id(w), (None, []))
    own = own if last is w else []
    if len(own) == 8:
        for old, new in zip(own[0], results):
            old[...] = new
        results = own.pop(0)
    own.append(results)
    chains[id(results[0])] = results[0], own
    return results

def itself(w, v, g, t, lr, beta):
    new, v = right(w, v, g, t, lr, beta)
    return (new if lr else w), v

def whole_buffer(w, v, g, t, lr, beta):
    flat = g if g.base is None or g.base.ndim != 1 else g.base
    c = np.max(np.abs(flat), initial=0) / (np.max(np.abs(g), initial=0) or 1)
    return right(w, v, g, t, lr, beta) if c == 1 else right(w, v, c * g, t, lr, beta)
"""


@pytest.mark.parametrize(
    ("name", "check", "level"),
    [
        ("counts", "float64", "quick"),
        ("skips", "strides", "quick"),
        ("pools", "gradient", "default"),
        ("close_betas", "float64", "quick"),
        ("close_rates", "float64", "quick"),
        ("whole_buffer", "strides", "quick"),
        ("agrees", "update", "quick"),
        ("agrees", "float64", "quick"),
        ("known_by_ends", "update", "quick"),
        ("clipped", "huge", "quick"),
        ("rings", "gradient", "quick"),
        ("itself", "gradient", "quick"),
        ("undamped_single", "update", "quick"),
        ("undamped_double", "float64", "quick"),
    ],
)
def test_a_function_that_looks_at_its_arguments_differs(name, check, level, tmp_path):
    path = module(tmp_path, PLAIN)
    before = {"pools": ["update"], "rings": ["trajectory"], "itself": ["schedule"]}.get(name, [])
    checks = [*before, check]
    for spec, outcome in ((name, "differs"), ("right", "pass")):
        found = findings(f"{path}:{spec}", checks, kind="plain", level=level)
        assert found[check]["outcome"] == outcome
