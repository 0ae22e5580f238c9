"""gravity_torch.Gravity in random sequences of operations, compared with the NumPy reference."""

import copy
import io

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity, _multi_tensor  # noqa: E402
from tests.support.torch_reference import Reference, to_numpy  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]
PATHS = [
    {"foreach": False},
    {},
    {"capturable": True},
    {"fused": True},
    {"fused": True, "capturable": True},
]
SHAPES = [(3,), (3,), (), (2, 4), (_multi_tensor.BLOCK + 1,)]


class Steps(RuleBasedStateMachine):
    path: dict[str, bool]

    @initialize(dtype=st.sampled_from(DTYPES), tensors=st.booleans())
    def start(self, dtype, tensors):
        self.dtype, self.rng = dtype, np.random.default_rng(0)
        self.rate = (lambda lr: torch.tensor(lr, dtype=torch.float64)) if tensors else float
        self.params, self.references, self.groups = [], {}, []
        self.optimizer = None
        self.add_group(0.1)

    def values(self, shape, scale=1.0):
        pair = (2,) if self.dtype.is_complex else ()
        reals = torch.from_numpy(np.asarray(scale * self.rng.normal(size=(*shape, *pair))))
        return (torch.view_as_complex(reals) if pair else reals).to(self.dtype)

    @rule(lr=st.sampled_from([0.01, 0.3]))
    def add_group(self, lr):
        if len(self.groups) == 3:
            return
        new = [torch.nn.Parameter(self.values(shape)) for shape in SHAPES]
        if self.optimizer is None:
            self.optimizer = Gravity(new, lr=self.rate(lr), seed=5, **self.path)
        else:
            self.optimizer.add_param_group({"params": new, "lr": self.rate(lr)})
        self.groups.append(lr)
        self.params += [(p, len(self.groups) - 1, 0.01 / lr) for p in new]

    @rule(data=st.data())
    def step(self, data):
        """Step with gradients for some of the parameters. The others start late or pause.

        Other rules end with a step, because hypothesis may omit single rules in a sequence.
        """
        exponent = data.draw(st.integers(-3, 2))
        given = data.draw(st.sets(st.sampled_from(range(len(self.params))), min_size=1))
        for i, (p, group, std) in enumerate(self.params):
            p.grad = None
            if i in given:
                p.grad = self.values(p.shape, 10.0**exponent)
                if i not in self.references:
                    self.references[i] = Reference(p, std, seed=5, index=i)
                self.references[i].step(to_numpy(p.grad), self.groups[group])
        self.optimizer.step()

    @rule(data=st.data(), lr=st.sampled_from([0.0, 0.05, 2.0]))
    def change_the_learning_rate(self, data, lr):
        group = data.draw(st.sampled_from(range(len(self.groups))))
        self.groups[group] = lr
        options = self.optimizer.param_groups[group]
        if isinstance(options["lr"], torch.Tensor):
            options["lr"].fill_(lr)
        else:
            options["lr"] = lr
        self.step(data)

    @rule(data=st.data())
    def copy_all(self, data):
        params = [p for p, _, _ in self.params]
        params, self.optimizer = copy.deepcopy((params, self.optimizer))
        self.replace(params)
        self.step(data)

    @rule(data=st.data())
    def save_and_load(self, data):
        buffer = io.BytesIO()
        torch.save(self.optimizer.state_dict(), buffer)
        buffer.seek(0)
        params = [torch.nn.Parameter(p.detach().clone()) for p, _, _ in self.params]
        start = [i * len(SHAPES) for i in range(len(self.groups))]
        groups = [{"params": params[i : i + len(SHAPES)]} for i in start]
        # The options of these groups come from the file. Groups that are added later use these.
        self.optimizer = Gravity(groups, lr=self.rate(0.7), seed=5, **self.path)
        self.optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        self.replace(params)
        self.step(data)

    def replace(self, params):
        self.params = [(p, *old[1:]) for p, old in zip(params, self.params, strict=True)]

    @invariant()
    def stays_inside_the_bound(self):
        for i, (p, _, _) in enumerate(getattr(self, "params", ())):
            if i not in self.references:
                assert p not in self.optimizer.state
                continue
            exact = self.path == {"foreach": False}
            self.references[i].check(p, self.optimizer.state[p], exact=exact)


@pytest.mark.filterwarnings("ignore:lr is .* at the first step:UserWarning")
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_random_use_stays_inside_the_bound(path):
    machine = type("OnPath", (Steps,), {"path": path})
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=12))
