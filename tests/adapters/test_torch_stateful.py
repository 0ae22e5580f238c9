"""gravity_torch.Gravity through random sequences of what users do, beside the NumPy reference."""

import copy
import io

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity, _fast  # noqa: E402
from tests.adapters.torch_reference import Reference  # noqa: E402

SHAPES = [(3,), (3,), (), (2, 4), (_fast.SMALL + 1,)]


class Steps(RuleBasedStateMachine):
    @initialize(dtype=st.sampled_from([np.float32, np.float64]), foreach=st.booleans())
    def start(self, dtype, foreach):
        self.dtype, self.rng = dtype, np.random.default_rng(0)
        self.options = {"foreach": None if foreach else False}
        self.params, self.references, self.groups = [], {}, []
        self.optimizer = None
        self.add_group(0.1)

    def new_parameters(self):
        arrays = [np.asarray(self.rng.normal(size=s), self.dtype) for s in SHAPES]
        return [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]

    @rule(lr=st.sampled_from([0.01, 0.3]))
    def add_group(self, lr):
        if len(self.groups) == 3:
            return
        new = self.new_parameters()
        if self.optimizer is None:
            self.optimizer = Gravity(new, lr=lr, seed=5, **self.options)
        else:
            self.optimizer.add_param_group({"params": new, "lr": lr})
        self.groups.append(lr)
        self.params += [(p, len(self.groups) - 1, 0.01 / lr) for p in new]

    @rule(data=st.data(), exponent=st.integers(-3, 2))
    def step(self, data, exponent):
        """Step with gradients for some of the parameters: others get theirs late, or pause."""
        given = data.draw(st.sets(st.sampled_from(range(len(self.params))), min_size=1))
        for i, (p, group, std) in enumerate(self.params):
            p.grad = None
            if i in given:
                g = np.asarray(self.rng.normal(size=tuple(p.shape)) * 10.0**exponent, self.dtype)
                p.grad = torch.from_numpy(g.copy())
                if i not in self.references:
                    self.references[i] = Reference(p, std, seed=5, index=i)
                self.references[i].step(g, self.groups[group])
        self.optimizer.step()

    @rule(data=st.data(), lr=st.sampled_from([0.0, 0.05, 2.0]))
    def change_the_learning_rate(self, data, lr):
        group = data.draw(st.sampled_from(range(len(self.groups))))
        self.groups[group] = self.optimizer.param_groups[group]["lr"] = lr

    @rule()
    def copy_all(self):
        params = [p for p, _, _ in self.params]
        params, self.optimizer = copy.deepcopy((params, self.optimizer))
        self.replace(params)

    @rule()
    def save_and_load(self):
        buffer = io.BytesIO()
        torch.save(self.optimizer.state_dict(), buffer)
        buffer.seek(0)
        params = [torch.nn.Parameter(p.detach().clone()) for p, _, _ in self.params]
        start = [i * len(SHAPES) for i in range(len(self.groups))]
        groups = [{"params": params[i : i + len(SHAPES)]} for i in start]
        # The options of its groups come from the file, those of groups added later from here.
        self.optimizer = Gravity(groups, lr=0.7, seed=5, **self.options)
        self.optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        self.replace(params)

    def replace(self, params):
        self.params = [(p, *old[1:]) for p, old in zip(params, self.params, strict=True)]

    @invariant()
    def stays_inside_the_bound(self):
        for i, (p, _, _) in enumerate(getattr(self, "params", ())):
            if i not in self.references:
                assert p not in self.optimizer.state
                continue
            exact = self.options["foreach"] is False
            self.references[i].check(p, self.optimizer.state[p], exact=exact)


TestSteps = Steps.TestCase
TestSteps.settings = settings(stateful_step_count=12, deadline=None)
