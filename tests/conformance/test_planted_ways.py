"""Mistakes that show where an optimizer of torch or a function of NumPy is used in another way."""

import pytest

from tests.support.planted_torch import full
from tests.support.worker import findings, module, outcomes

pytestmark = pytest.mark.slow

# The code of a subclass, and the check.
WRONG = {
    "foreach forgets maximize": (
        "    def one(self, p, owner, place, group):\n"
        "        less = {'maximize': False} if group['foreach'] else {}\n"
        "        super().one(p, owner, place, group | less)",
        "paths",
    ),
    "foreach loses NaN": (
        "    def one(self, p, owner, place, group):\n"
        "        given = p.grad\n"
        "        if group['foreach']: p.grad = torch.nan_to_num(given)\n"
        "        super().one(p, owner, place, group)\n"
        "        p.grad = given",
        "paths",
    ),
    "foreach starts from rest": (
        "    def one(self, p, owner, place, group):\n"
        "        if group['foreach'] and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n"
        "        super().one(p, owner, place, group)",
        "paths",
    ),
    "the gradients are dropped": (
        "    def step(self, closure=None):\n"
        "        loss = super().step(closure)\n"
        "        self.zero_grad()\n"
        "        return loss",
        "gradient",
    ),
    "a closure for each group": (
        "    def step(self, closure=None):\n"
        "        for _ in self.param_groups[1:]: closure and closure()\n"
        "        return super().step(closure)",
        "closure",
    ),
    "t is lost in a pickle": (
        "    def __reduce__(self):\n"
        "        def lost(x): return {**x, 't': 0}\n"
        "        state = {p: lost(x) for p, x in self.state.items()}\n"
        "        return type(self)._again, (self.param_groups, state)\n"
        "    @classmethod\n"
        "    def _again(cls, groups, state):\n"
        "        made = cls(groups); made.state.update(state); return made\n"
        "    def __deepcopy__(self, memo):\n"
        "        made = type(self)(copy.deepcopy(self.param_groups, memo))\n"
        "        made.state.update(copy.deepcopy(dict(self.state), memo)); return made",
        "pickled",
    ),
    "tensors are chosen before the closure": (
        "    def step(self, closure=None):\n"
        "        self.chosen = {p for group in self.param_groups for p in group['params']"
        " if p.grad is not None}\n"
        "        return super().step(closure)\n"
        "    def one(self, p, *rest):\n"
        "        if p in self.chosen: super().one(p, *rest)",
        "closure",
    ),
    "a load keeps the rate of the constructor": (
        "    def load_state_dict(self, state):\n"
        "        kept = [group['lr'] for group in self.param_groups]\n"
        "        super().load_state_dict(state)\n"
        "        for group, lr in zip(self.param_groups, kept): group['lr'] = lr",
        "resume",
    ),
    "a state_dict damages V": (
        "    def state_dict(self):\n"
        "        import copy\n"
        "        saved = copy.deepcopy(super().state_dict())\n"
        "        for state in self.state.values(): state['v'].mul_(0.5)\n"
        "        return saved",
        "resume",
    ),
    "its own state is lost when it is loaded": (
        "    def load_state_dict(self, state):\n"
        "        own = {id(x['v']) for x in self.state.values()}\n"
        "        is_own = any(id(x['v']) in own for x in state['state'].values())\n"
        "        super().load_state_dict(state)\n"
        "        for x in self.state.values() if is_own else (): x['v'].zero_()",
        "resume",
    ),
    "α = 0 is taken for none": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        own = self.param_groups[-1]\n"
        "        own['std'] = (own['alpha'] or 0.01) / float(own['lr'])",
        "v0",
    ),
    "V₀ is 0 for sparse gradients": (
        "    def step(self, closure=None):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if p.grad is not None and p.grad.is_sparse and p not in self.state:\n"
        "                    self.state[p].update(t=0, v=torch.zeros_like(p))\n"
        "        return super().step(closure)",
        "v0",
    ),
    "V₀ depends on W": (
        "    def one(self, p, owner, place, group):\n"
        "        is_new = p not in self.state\n"
        "        before = p.clone()\n"
        "        if is_new:\n"
        "            z = torch.as_tensor(planted.Rules('torch', torch).normal(place, 1, p.shape))\n"
        "            self.state[p].update(t=0, v=(group['std'] * (z + p)).to(p.dtype))\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "V₀ is 0 for tensors that were frozen": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        own = {p for p in self.param_groups[-1]['params'] if not p.requires_grad}\n"
        "        self.frozen = getattr(self, 'frozen', set()) | own\n"
        "    def one(self, p, owner, place, group):\n"
        "        if p in self.frozen and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "σ is that of the default rate where the rate is an int": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        own = self.param_groups[-1]\n"
        "        if isinstance(own['lr'], int): own['std'] = own['alpha'] / 0.1",
        "v0",
    ),
    "a rate in a tensor is read once": (
        "    def one(self, p, owner, place, group):\n"
        "        self.rates = getattr(self, 'rates', {})\n"
        "        lr = group['lr']\n"
        "        if torch.is_tensor(lr): lr = self.rates.setdefault(id(lr), (float(lr), lr))[0]\n"
        "        super().one(p, owner, place, group | {'lr': lr})",
        "schedule",
    ),
    "a rate in a tensor is that of the first tensor": (
        "    def one(self, p, owner, place, group):\n"
        "        self.rate = getattr(self, 'rate', group['lr'])\n"
        "        own = {'lr': self.rate} if torch.is_tensor(group['lr']) else {}\n"
        "        super().one(p, owner, place, group | own)",
        "schedule",
    ),
    "V₀ is clipped at 2": (
        "    def one(self, p, owner, place, group):\n"
        "        is_new = p not in self.state\n"
        "        if is_new:\n"
        "            z = torch.as_tensor(planted.Rules('torch', torch).normal(place, 1, p.shape))\n"
        "            v = (group['std'] * z).clamp(-2, 2)\n"
        "            self.state[p].update(t=0, v=v.to(p.dtype))\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "V₀ is 0 in a copy": (
        "    def __setstate__(self, state):\n"
        "        super().__setstate__(state)\n"
        "        self.copy = True\n"
        "    def one(self, p, owner, place, group):\n"
        "        if hasattr(self, 'copy') and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "a group of α = 0 takes that of the constructor": (
        "    def add_param_group(self, group):\n"
        "        super().add_param_group(group)\n"
        "        own = self.param_groups[-1]\n"
        "        own['std'] = (own['alpha'] or self.defaults['alpha']) / float(own['lr'])",
        "v0",
    ),
    "V₀ is uniform in float64": (
        "    def one(self, p, owner, place, group):\n"
        "        if p not in self.state and p.dtype == torch.float64:\n"
        "            own = torch.Generator().manual_seed(place)\n"
        "            x = torch.rand(p.shape, dtype=p.dtype, generator=own)\n"
        "            self.state[p].update(t=0, v=group['std'] * 12 ** 0.5 * (x - 0.5))\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "the user's generator is seeded": (
        "    def add_param_group(self, group):\n"
        "        torch.manual_seed(0)\n"
        "        super().add_param_group(group)",
        "random",
    ),
    "a sparse gradient without duplicates counts twice": (
        "    def step(self, closure=None):\n"
        "        for p in (p for group in self.param_groups for p in group['params']):\n"
        "            g = p.grad\n"
        "            if g is not None and g.is_sparse and g.is_coalesced(): p.grad = 2 * g\n"
        "        return super().step(closure)",
        "rows",
    ),
    "sparse and dense steps are counted apart": (
        "    def step(self, closure=None):\n"
        "        self.sparse = {p for group in self.param_groups for p in group['params']"
        " if p.grad is not None and p.grad.is_sparse}\n"
        "        return super().step(closure)\n"
        "    def one(self, p, *rest):\n"
        "        state = self.state[p]\n"
        "        name = 'sparse' if p in self.sparse else 'dense'\n"
        "        if 't' in state: state['t'] = state.get(name, 0)\n"
        "        super().one(p, *rest)\n"
        "        state[name] = state['t']",
        "rows",
    ),
    "sparse gradients of tables only, and their rows alone decay": (
        "    def step(self, closure=None):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if p.grad is not None and p.grad.is_sparse:\n"
        "                    if p.ndim != 2: raise RuntimeError('only tables')\n"
        "                    still = p.grad.to_dense().eq(0).all(1)\n"
        "                    p.data[still] /= 1 - group['lr'] * group['weight_decay']\n"
        "        return super().step(closure)",
        "rows",
    ),
    "NaN is lost in float64": (
        "    def one(self, p, *rest):\n"
        "        given = p.grad\n"
        "        if p.dtype == torch.float64: p.grad = torch.nan_to_num(given)\n"
        "        super().one(p, *rest)\n"
        "        p.grad = given",
        "float64",
    ),
    "NaN is lost in bfloat16": (
        "    def one(self, p, *rest):\n"
        "        given = p.grad\n"
        "        if p.dtype == torch.bfloat16: p.grad = torch.nan_to_num(given)\n"
        "        super().one(p, *rest)\n"
        "        p.grad = given",
        "bfloat16",
    ),
    "groups of one rate and β share their decay": (
        "    def step(self, closure=None):\n"
        "        first = {}\n"
        "        self.decays = {}\n"
        "        for group in self.param_groups:\n"
        "            key = group['lr'], group['beta']\n"
        "            first.setdefault(key, group['weight_decay'])\n"
        "            self.decays.update({p: first[key] for p in group['params']})\n"
        "        return super().step(closure)\n"
        "    def one(self, p, owner, place, group):\n"
        "        super().one(p, owner, place, group | {'weight_decay': self.decays[p]})",
        "groups",
    ),
    "a late group takes β of the class": (
        "    def add_param_group(self, group):\n"
        "        if not hasattr(self, 'more'): group.setdefault('beta', 0.9)\n"
        "        super().add_param_group(group)\n"
        "    def step(self, closure=None):\n"
        "        self.__dict__.pop('more', None)\n"
        "        return super().step(closure)",
        "groups",
    ),
    "float64 after float32 is rounded": (
        "    def step(self, closure=None):\n"
        "        self.single = False\n"
        "        return super().step(closure)\n"
        "    def one(self, p, *rest):\n"
        "        super().one(p, *rest)\n"
        "        if self.single: self.state[p]['v'] = self.state[p]['v'].float().to(p.dtype)\n"
        "        self.single |= p.dtype == torch.float32",
        "float64",
    ),
    "maximize is kept in the class": (
        "    kept = []\n"
        "    def one(self, p, owner, place, group):\n"
        "        self.kept[:] = self.kept or [group['maximize']]\n"
        "        super().one(p, owner, place, group | {'maximize': self.kept[0]})",
        "turns",
    ),
    "options are never switched off": (
        "    def one(self, p, owner, place, group):\n"
        "        for name in ('weight_decay', 'maximize'):\n"
        "            group[name] = group[name] or self.defaults[name]\n"
        "        super().one(p, owner, place, group)",
        "options",
    ),
    "a scaler makes it forget maximize": (
        "    _step_supports_amp_scaling = True\n"
        "    def step(self, closure=None):\n"
        "        if self.found_inf.item() if hasattr(self, 'found_inf') else False: return None\n"
        "        if getattr(self, 'grad_scale', None) is not None:\n"
        "            for group in self.param_groups:\n"
        "                for p in group['params']: p.grad /= self.grad_scale\n"
        "        return super().step(closure)\n"
        "    def one(self, p, owner, place, group):\n"
        "        less = {'maximize': False} if hasattr(self, 'found_inf') else {}\n"
        "        super().one(p, owner, place, group | less)",
        "scaler",
    ),
    "parameters in one buffer do not decay": (
        "    def one(self, p, owner, place, group):\n"
        "        is_part = p.untyped_storage().nbytes() > 4 * p.numel() * p.element_size()\n"
        "        less = {'weight_decay': 0.0} if is_part else {}\n"
        "        super().one(p, owner, place, group | less)",
        "strides",
    ),
    "weights that are not contiguous do not decay": (
        "    def one(self, p, owner, place, group):\n"
        "        less = {} if p.is_contiguous() else {'weight_decay': 0.0}\n"
        "        super().one(p, owner, place, group | less)",
        "strides",
    ),
    "nor where their gradients are not": (
        "    def one(self, p, owner, place, group):\n"
        "        less = {} if p.grad.is_contiguous() else {'weight_decay': 0.0}\n"
        "        super().one(p, owner, place, group | less)",
        "strides",
    ),
    "decay waits for a gradient that is not zero": (
        "    def one(self, p, owner, place, group):\n"
        "        state = self.state[p]\n"
        "        less = {} if state.get('seen') or p.grad.any() else {'weight_decay': 0.0}\n"
        "        super().one(p, owner, place, group | less)\n"
        "        state['seen'] = not less",
        "zero",
    ),
    "the list of parameters is made once": (
        "    def step(self, closure=None):\n"
        "        first = [list(group['params']) for group in self.param_groups]\n"
        "        self.listed = getattr(self, 'listed', first)\n"
        "        now = [group['params'] for group in self.param_groups]\n"
        "        for group, own in zip(self.param_groups, self.listed): group['params'] = own\n"
        "        loss = super().step(closure)\n"
        "        for group, own in zip(self.param_groups, now): group['params'] = own\n"
        "        return loss",
        "exchanged",
    ),
    "a step of its own without hooks": (
        "    def __init__(self, params, lr=0.1, beta=0.9, *, alpha=0.01):\n"
        "        super().__init__(params, lr, beta, alpha=alpha)\n"
        "        self.step = self.unhooked\n"
        "    def unhooked(self):\n"
        "        hooked, self.one = self.one, lambda *_: None\n"
        "        with torch.no_grad():\n"
        "            for place, p in enumerate(self.param_groups[0]['params']):\n"
        "                if p.grad is not None: hooked(p, p, place, self.param_groups[0])\n"
        "        self.one = hooked",
        "hooks",
    ),
    "a step inside autocast is in bfloat16": (
        "    def one(self, p, owner, place, group):\n"
        "        super().one(p, owner, place, group)\n"
        "        one = torch.ones(1, 1) @ torch.ones(1, 1)\n"
        "        self.state[p]['v'] = self.state[p]['v'].to(one.dtype).to(p.dtype)",
        "autocast",
    ),
    "recurrent kernels have a maximum for each gate": (
        "    def one(self, p, owner, place, group):\n"
        "        given = p.grad\n"
        "        if p.ndim == 2 and p.shape[0] == 4 * p.shape[1]:\n"
        "            most = given.abs().view(4, p.shape[1], -1).amax((1, 2), keepdim=True)\n"
        "            parts = given.view(4, p.shape[1], -1)\n"
        "            most_of_all = parts.sign() * given.abs().max()\n"
        "            sized = torch.where(parts.abs() == most, most_of_all, parts)\n"
        "            p.grad = sized.view_as(given)\n"
        "        super().one(p, owner, place, group)\n"
        "        p.grad = given",
        "layers",
    ),
    "the maximum over eight axes": (
        "    def one(self, p, owner, place, group):\n"
        "        given = p.grad\n"
        "        if p.ndim > 8:\n"
        "            most = given.abs().amax(tuple(range(8)), keepdim=True)\n"
        "            p.grad = given.clamp(-most.min(), most.min())\n"
        "        super().one(p, owner, place, group)\n"
        "        p.grad = given",
        "update",
    ),
    "float32 beside bfloat16 is rounded": (
        "    def step(self, closure=None):\n"
        "        self.half = any(p.dtype == torch.bfloat16 for group in self.param_groups"
        " for p in group['params'])\n"
        "        return super().step(closure)\n"
        "    def one(self, p, *rest):\n"
        "        super().one(p, *rest)\n"
        "        v = self.state[p]['v']\n"
        "        if self.half: v.copy_(v.bfloat16())",
        "bfloat16",
    ),
    "V is lost after a thousand steps": (
        "    def one(self, p, *rest):\n"
        "        if self.state[p].get('t') == 1000: self.state[p]['v'].zero_()\n"
        "        super().one(p, *rest)",
        "long",
    ),
    "an int is no rate": (
        "    def one(self, p, owner, place, group):\n"
        "        less = {'lr': 0.1} if isinstance(group['lr'], int) else {}\n"
        "        super().one(p, owner, place, group | less)",
        "update",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_another_use_differs(name, tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code, check = WRONG[name]
    level = "default" if check in ("long", "float64") else "quick"
    found = findings(full(tmp_path, code), [check], level=level)
    assert found[check]["outcome"] == "differs"


@pytest.mark.parametrize("level", ["quick", "default"])
def test_the_right_one_passes_there(level, tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    checks = [
        check for _, check in WRONG.values() if level == "quick" or check in ("long", "float64")
    ]
    found = findings(full(tmp_path), [*dict.fromkeys(checks)], level=level)
    assert {name: finding["outcome"] for name, finding in found.items()} == dict.fromkeys(
        found, "pass"
    )


# Functions of NumPy that are wrong with some numbers, and the check.
PLAIN = """
import numpy as np
from tests.support import planted

right = planted.plain_right

def cleans(w, v, g, t, lr, beta):
    return right(w, v, np.nan_to_num(g) if w.dtype == np.float64 else g, t, lr, beta)

def scalar(w, v, g, t, lr, beta):
    return right(w, v, g, t, 0.1 if isinstance(lr, np.float64) else lr, beta)

def clips(w, v, g, t, lr, beta):
    return right(w, v, np.clip(g, -1e50, 1e50) if g.dtype == np.float64 else g, t, lr, beta)

def revives(w, v, g, t, lr, beta):
    return right(w, np.zeros_like(v) if v.size and np.isnan(v).all() else v, g, t, lr, beta)

def no_int(w, v, g, t, lr, beta):
    return right(w, v, g, t, 0.1 if isinstance(lr, int) else lr, beta)

def saturates(w, v, g, t, lr, beta):
    return right(w, v, g, min(t, 10**8), lr, beta)

def tail(w, v, g, t, lr, beta):
    most = np.abs(g.reshape(-1)[: g.size // 8 * 8]).max(initial=0)
    return right(w, v, g if g.size < 2**21 else np.clip(g, -most, most), t, lr, beta)

def square(w, v, g, t, lr, beta):
    with np.errstate(over="ignore"):
        most = np.abs(g).flat[np.argmax(np.square(g))] if g.size else 0
    return right(w, v, np.clip(g, -most, most), t, lr, beta)

def positive(w, v, g, t, lr, beta):
    if t < 1:
        raise ValueError(f"t must be positive, got {t}")
    return right(w, v, g, t, lr, beta)

others, last = {}, [None, None]

def two_buffers(w, v, g, t, lr, beta):
    results = []
    for old, new in zip((w, v), right(w, v, g, t, lr, beta)):
        kept, before = others.get(id(old), (None, None))
        if before is not None and kept is old:
            before[...] = new
            new = before
        others[id(new)] = new, old if kept is old else None
        results.append(new)
    return tuple(results)

def coefficient(w, v, g, t, lr, beta):
    if last[0] != (t, beta):
        last[:] = (t, beta), np.asarray(beta, np.result_type(w.dtype, np.float32))
    return right(w, v, g, t, lr, last[1].astype(np.float64) if w.dtype == np.float64 else beta)

def restarts(w, v, g, t, lr, beta):
    return right(w, v * (t != 1001), g, t, lr, beta)
"""


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("cleans", "float64"),
        ("scalar", "float64"),
        ("clips", "float64"),
        ("two_buffers", "gradient"),
        ("coefficient", "float64"),
        ("restarts", "long"),
        ("revives", "non-finite"),
        ("no_int", "update"),
        ("saturates", "long"),
        ("tail", "large"),
        ("square", "float16"),
    ],
)
def test_a_mistake_about_numbers_differs(name, check, tmp_path):
    path = module(tmp_path, PLAIN)
    found = outcomes(path, check, name, "right", kind="plain", level="default")
    assert found == {name: "differs", "right": "pass"}


def test_a_function_may_refuse_t_from_0(tmp_path):
    path = module(tmp_path, PLAIN)
    found = findings(f"{path}:positive", ["vectors"], kind="plain", level="default")["vectors"]
    assert found["outcome"] == "pass"
    assert "it refuses t = 0: ValueError: t must be positive, got 0" in found["note"]


def test_one_that_takes_one_group_is_judged_with_one(tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code = (
        "    def add_param_group(self, group):\n"
        "        if self.param_groups: raise ValueError('only one group')\n"
        "        super().add_param_group(group)\n"
    )
    checks = ["groups", "closure", "scaler"]
    found = findings(full(tmp_path, code), checks)
    assert [found[check]["outcome"] for check in checks] == ["remark", "pass", "pass"]
    wrong = (
        "    _step_supports_amp_scaling = True\n"
        "    def step(self, closure=None): return super().step(closure)"
    )
    assert findings(full(tmp_path, code + wrong), ["scaler"])["scaler"]["outcome"] == "differs"


def test_what_no_load_loses_is_not_called_that(tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code = (
        "    known = frozenset()\n"
        "    def one(self, p, *rest):\n"
        "        if p in self.state and p not in self.known: self.state[p]['v'].zero_()\n"
        "        self.known |= {p}\n"
        "        super().one(p, *rest)"
    )
    found = findings(full(tmp_path, code), ["exchanged", "resume"])
    assert [found[check]["outcome"] for check in found] == ["differs"] * 2
    assert found["exchanged"]["diagnosis"] is None
    assert found["resume"]["diagnosis"] == "V reset on load"


def test_another_default_is_a_remark(tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code = (
        "    def __init__(self, params, lr=0.01, beta=0.99, *, alpha=0.01):\n"
        "        super().__init__(params, lr, beta, alpha=alpha)"
    )
    found = findings(full(tmp_path, code), ["defaults"])["defaults"]
    assert (found["outcome"], found["note"]) == (
        "remark",
        "lr is 0.01 by default, not 0.1; beta is 0.99 by default, not 0.9",
    )
    assert findings(full(tmp_path), ["defaults"])["defaults"]["outcome"] == "pass"
