"""Mistakes around the update in torch and NumPy differ in their checks; a right one does not."""

import pytest

from tests.support.worker import findings, module, outcomes, written

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
    "V₀ by the place among tensors with a gradient": (
        "    def one(self, p, owner, place, group):\n"
        "        every = [q for group in self.param_groups for q in group['params']]\n"
        "        given = [q for q in every if q.grad is not None]\n"
        "        place = [q is p for q in given].index(True)\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "V₀ from a table of noise": (
        "    tables = {}\n"
        "    def one(self, p, owner, place, group):\n"
        "        if p not in self.state:\n"
        "            seed, own = group['seed'], torch.Generator()\n"
        "            own.manual_seed(seed)\n"
        "            table = self.tables.setdefault(seed, torch.randn(2**20, generator=own))\n"
        "            start = 20_000 * place if place < 2 else 280_000 + 16_001 * place\n"
        "            v = table[(start + torch.arange(p.numel())) % 2**20].view(p.shape)\n"
        "            self.state[p].update(t=0, v=group['std'] * v)\n"
        "        super().one(p, owner, place, group)",
        "v0",
    ),
    "V₀ of the optimizer before": (
        "    def one(self, p, *rest):\n"
        "        if p not in self.state and hasattr(p, 'v'): self.state[p].update(t=0, v=p.v)\n"
        "        super().one(p, *rest)\n"
        "        p.v = self.state[p]['v']",
        "again",
    ),
    "t of the optimizer before": (
        "    def one(self, p, *rest):\n"
        "        super().one(p, *rest)\n"
        "        p.t = getattr(p, 't', 0) + 1\n"
        "        self.state[p]['t'] = p.t",
        "again",
    ),
    "t in the default dtype": (
        "    def one(self, p, *rest):\n"
        "        super().one(p, *rest)\n"
        "        self.state[p]['t'] = torch.tensor(float(self.state[p]['t']))",
        "default-dtype",
    ),
    "V₀ is 0 for tensors of five axes": (
        "    def one(self, p, *rest):\n"
        "        if p.ndim == 5 and p not in self.state: self.state[p].update("
        "t=0, v=torch.zeros_like(p))\n        super().one(p, *rest)",
        "v0",
    ),
    "biases by the names that the user gives": (
        "    def one(self, p, owner, place, group):\n"
        "        names = group.get('param_names', [''])\n"
        "        if 'bias' in names[place % len(names)]: group = group | {'weight_decay': 0.0}\n"
        "        super().one(p, owner, place, group)",
        "layers",
    ),
    "a step of a tiny rate is left out": (
        "    def one(self, p, owner, place, group):\n"
        "        if group['lr'] > 1e-8: super().one(p, owner, place, group)",
        "update",
    ),
    "the decay keeps the sign of W": (
        "    def one(self, p, owner, place, group):\n"
        "        most = 1 / group['lr'] if group['lr'] else 0.0\n"
        "        less = min(group['weight_decay'], most)\n"
        "        super().one(p, owner, place, group | {'weight_decay': less})",
        "weight-decay",
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
    "W has a copy of its own in half types": (
        "    def one(self, p, *rest):\n"
        "        state = self.state[p]\n"
        "        if 'master' in state: p.copy_(state['master'])\n"
        "        super().one(p, *rest)\n"
        "        if p.dtype.itemsize == 2: state['master'] = p.clone()",
        "float16",
    ),
    "an item of the iterator is lost": (
        "    def __init__(self, params, lr=0.1, beta=0.9):\n"
        "        given = list(params)\n"
        "        lost = not isinstance(params, list) and len(given) > 1\n"
        "        super().__init__(given[lost:], lr, beta)",
        "trajectory",
    ),
    "an option that a copy loses": (
        "    def __init__(self, params, lr=0.1, beta=0.9, *, maximize=False):\n"
        "        super().__init__(params, lr, beta)\n"
        "        self.sign = -1 if maximize else 1\n"
        "    def __setstate__(self, state):\n"
        "        super().__setstate__({'sign': 1, **self.__dict__, **state})\n"
        "    def step(self):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if p.grad is not None: p.grad = self.sign * p.grad\n"
        "        super().step()",
        "copied",
    ),
    "σ from the initial_lr of a scheduler": (
        "    def one(self, p, owner, place, group):\n"
        "        if 'initial_lr' in group: group['std'] = group['alpha'] / group['initial_lr']\n"
        "        super().one(p, owner, place, group)",
        "v0",
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
    level = "default" if "table of noise" in name else "quick"
    found = findings(written(tmp_path, "torch", code), [check], level=level)
    assert found[check]["outcome"] in ("differs", "error")
    if name == "W has a copy of its own in half types":
        # and not by chance, where the combinations load a state
        assert found[check]["note"] == "with weights assigned by the user"
    accepts = (
        "    def step(self, closure=None):\n        loss = closure() if closure else None\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']:\n"
        "                if p.grad is not None and p.grad.is_sparse: p.grad = p.grad.to_dense()\n"
        "        super().step()\n        return loss"
    )
    if check == "paths":
        accepts = (
            "    def __init__(self, params, lr=0.1, beta=0.9, *, foreach=False):\n"
            "        super().__init__(params, lr, beta)"
        )
    found = findings(written(tmp_path, "torch", accepts), [check])
    assert found[check]["outcome"] == "pass"


# What torch offers around the update, and an implementation does without: it gets a remark.
WITHOUT = {
    "in-place": (
        "    @torch.no_grad()\n    def step(self):\n"
        "        for group in self.param_groups:\n"
        "            for p in group['params']: p.data = p.data.clone()\n"
        "        super().step()",
        "a step replaces p.data; what shares the old memory does not follow",
    ),
    "safe": (
        "    def state_dict(self):\n"
        "        return {**super().state_dict(), 'made by': planted.Rules}\n",
        "torch.load needs weights_only=False",
    ),
    "closure": (
        "    def step(self, closure=None):\n        if closure: closure()\n        super().step()",
        "step(closure) does not return the loss",
    ),
}


@pytest.mark.parametrize("check", WITHOUT)
def test_what_is_not_the_algorithm_gets_a_remark(check, tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code, note = WITHOUT[check]
    found = findings(written(tmp_path, "torch", code), [check])[check]
    assert (found["outcome"], found["note"]) == ("remark", note)
    whole = (
        "    def step(self, closure=None):\n        loss = closure() if closure else None\n"
        "        super().step()\n        return loss"
    )
    assert findings(written(tmp_path, "torch", whole), [check])[check]["outcome"] == "pass"


# Plain functions that are wrong in what a caller may do with arrays, and the check.
PLAIN = """
from tests.support import planted

right = planted.plain_right

def native(w, v, g, t, lr, beta):
    return right(w, v, g.view(g.dtype.newbyteorder("=")), t, lr, beta)

def refuses(w, v, g, t, lr, beta):
    if not g.dtype.isnative:
        raise TypeError(f"g must be in native byte order, got {g.dtype}")
    return right(w, v, g, t, lr, beta)

known = {}

def remembered(w, v, g, t, lr, beta):
    kept, contents = known.pop(id(v), (None, None))
    w, new = right(w, contents if kept is v else v, g, t, lr, beta)
    known[id(new)] = new, new.copy()
    return w, new

class AtAddress(planted.Rules):
    maxima = {}

    def refuse(self, w, g):
        self.key = g.__array_interface__["data"][0], g.shape

    def coefficients(self, t, beta):
        self.key += (t,)
        return super().coefficients(t, beta)

    def largest(self, g, place):
        return self.maxima.setdefault(self.key, super().largest(g, place))

addressed = planted.make("plain", AtAddress)
"""


@pytest.mark.parametrize(
    ("name", "check"), [("native", "byte-order"), ("remembered", "resume"), ("addressed", "update")]
)
def test_a_mistake_about_arrays_differs(name, check, tmp_path):
    path = module(tmp_path, PLAIN)
    found = outcomes(path, check, name, "right", kind="plain")
    assert found == {name: "differs", "right": "pass"}


def test_a_function_may_refuse_the_other_byte_order(tmp_path):
    path = module(tmp_path, PLAIN)
    found = findings(f"{path}:refuses", ["strides", "byte-order"], kind="plain")
    assert found["strides"]["outcome"] == "pass"
    assert found["byte-order"]["outcome"] == "remark"


def test_what_a_load_loses_is_no_half_precision(tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code, _ = AROUND["loading keeps the options"]
    found = findings(written(tmp_path, "torch", code), ["resume", "float16"])
    assert [found[check]["outcome"] for check in found] == ["differs", "pass"]


def test_a_scheduler_is_tried_where_a_rate_must_be_a_number(tmp_path):
    pytest.importorskip("torch", reason="optimizers of torch")
    code, _ = AROUND["σ from the initial_lr of a scheduler"]
    code += (
        "\n    def add_param_group(self, group):\n"
        "        if torch.is_tensor(group.get('lr', self.defaults['lr'])):\n"
        "            raise TypeError('lr must be a number')\n"
        "        super().add_param_group(group)"
    )
    found = findings(written(tmp_path, "torch", code), ["v0"])["v0"]
    assert found["outcome"] == "differs"
    assert found["first"].startswith("with OneCycleLR, ")
