"""The sessions of `torch.optim.Optimizer` classes: how users train, save, copy and change them."""

import copy
import importlib
import io
import itertools
import operator
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.drive.session import Arrays, Setup
from gravity_conformance.drive.torch_steps import TorchSteps
from gravity_conformance.protocol import Task, Training


def _missed(seen: Mapping[str, Sequence[Any]], names: Iterable[str]) -> str:
    calls = {name: len(seen.get(name, ())) for name in names}
    return next((f"a hook {name} is called {n} times" for name, n in calls.items() if n != 1), "")


class TorchSession(TorchSteps):
    """A `torch.optim.Optimizer` class; its modes are arguments of the constructor."""

    ways: ClassVar[tuple[str, ...]] = (
        "reloaded",
        "rolled_back",
        "saved",
        "loaded_again",
        "placed",
        "copied",
        "pickled",
        "moved",
        "exchanged",
    )

    @staticmethod
    def train(setup: Setup, task: Task) -> Training:
        """Train with autograd."""
        torch = importlib.import_module("torch")
        # Not nn.Linear: it transposes its weights, and V₀ is drawn in the C order of the tensor.
        params = [torch.nn.Parameter(torch.tensor(w)) for w in task.weights]
        optimizer, (w1, b1, w2, b2) = setup.construct(params), params

        def logits(x: Any) -> Any:
            return torch.relu(x @ w1 + b1) @ w2 + b2

        cross_entropy = torch.nn.CrossEntropyLoss()
        x_train, y_train = torch.tensor(task.x_train), torch.tensor(task.y_train).long()
        losses = []
        for batches in task.epochs:
            total = 0.0
            for batch in torch.tensor(batches):
                optimizer.zero_grad()
                loss = cross_entropy(logits(x_train[batch]), y_train[batch])
                loss.backward()
                optimizer.step()
                total += loss.item()
            losses.append(total / len(batches))
        with torch.no_grad():
            predictions = logits(torch.tensor(task.x_test)).argmax(dim=1).numpy()
        return Training(losses, [p.detach().numpy() for p in params], predictions)

    def _other(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return other values of the options that belong to the groups: a state has its own.

        A rate may also give σ of V₀ that is still to be drawn, so it changes only if σ is 0.
        """
        arguments, other = self.setup.arguments, dict(options)
        changed: dict[str, Callable[[Any], Any]] = {
            "beta": lambda beta: 0.5 * (beta + 0.25),
            "weight_decay": lambda decay: decay + 0.25,
            "maximize": operator.not_,
        }
        if 0.0 in (options.get("alpha"), options.get("velocity_std")):
            changed["learning_rate"] = lambda lr: 2 * lr
        for name in changed.keys() & options.keys() - arguments.fixed.keys():
            if arguments.names.get(name) in self.optimizer.defaults:
                other[name] = changed[name](options[name])
        return other

    def change(self, options: Mapping[str, Any]) -> None:
        """Set options of every group, by our names, as users do between steps."""
        names = self.setup.arguments.names
        for group in self.optimizer.param_groups:
            group.update({names[name]: x for name, x in options.items()})

    def copied(self) -> "TorchSession":
        """Copy the optimizer and its parameters."""
        session = copy.copy(self)
        session._params, session.optimizer = copy.deepcopy((self._params, self.optimizer))
        session._before = {}
        for p in self._params:  # the original goes on, which must not matter to the copy
            p.grad = self._torch.ones_like(p)
        self.optimizer.step()
        return session

    def pickled(self) -> "TorchSession":
        """Pickle the optimizer and its parameters, as for another process, or by torch.save."""
        session, file = copy.copy(self), io.BytesIO()
        self._torch.save((self._params, self.optimizer), file)
        file.seek(0)
        loaded = self._torch.load(file, weights_only=False)
        session._params, session.optimizer = loaded
        session._before = {}
        return session

    def moved(self) -> "TorchSession":
        """Replace `p.data`, as moves to another memory format and swaps of averaged weights do."""
        for p in self._params:
            if p.ndim == 4:
                p.data = p.data.clone(memory_format=self._torch.channels_last)
            elif p.ndim > 1:
                p.data = p.data.mT.clone(memory_format=self._torch.contiguous_format).mT
            else:
                p.data = p.data.clone()
        return self

    def exchanged(self) -> "TorchSession":
        """Put other parameters in place of those of the groups, with copies of their states.

        Methods that add and remove points of a scene, as Gaussian splatting, do. The first one
        moves to the end of its group, and every other one is a tensor, no `nn.Parameter`.
        """
        made = {p: p.detach().clone().requires_grad_() for p in self._params}
        for p in self._params[::2]:
            made[p] = self._torch.nn.Parameter(p.detach().clone())
        for group in self.optimizer.param_groups:
            first, *others = [made[p] for p in group["params"]]
            group["params"][:] = [*others, first]
        for p, new in made.items():
            if p in self.optimizer.state:
                self.optimizer.state[new] = copy.deepcopy(self.optimizer.state.pop(p))
        self._params = [made[p] for p in self._params]
        return self

    def missed_hooks(self) -> str:
        """Make a step, and return which of its hooks is not called once and at its time."""
        seen: dict[str, list[Arrays]] = {}
        old = self.weights()
        self.optimizer.register_step_pre_hook(self._hook(seen, "before a step"))
        self.optimizer.register_step_post_hook(self._hook(seen, "after a step"))
        self.step([np.ones(p.shape, np.float32) for p in self._params])
        wanted = {"before a step": old, "after a step": self.weights()}
        if missed := _missed(seen, wanted):
            return missed
        for name, weights in wanted.items():
            if any((x != w).any() for x, w in zip(seen[name][0], weights, strict=True)):
                return f"a hook {name} sees other weights than those {name}"
        return ""

    def missed_hooks_of_state(self) -> str:
        """Save and load the state, and return which hook is not called once."""
        optimizer, seen = self.optimizer, dict[str, list[Arrays]]()
        hooks = {
            "before state_dict": optimizer.register_state_dict_pre_hook,
            "after state_dict": optimizer.register_state_dict_post_hook,
            "before load_state_dict": optimizer.register_load_state_dict_pre_hook,
            "after load_state_dict": optimizer.register_load_state_dict_post_hook,
        }
        for name, register in hooks.items():
            register(self._hook(seen, name))
        optimizer.load_state_dict(optimizer.state_dict())
        return _missed(seen, hooks)

    def _hook(self, seen: dict[str, list[Arrays]], name: str) -> Callable[..., None]:
        return lambda *_: seen.setdefault(name, []).append(self.weights())

    def rolled_back(self) -> "TorchSession":
        """Save the state, make a step, and load the state again."""
        state, weights = copy.deepcopy(self.optimizer.state_dict()), self.weights()
        for p in self._params:
            p.grad = self._torch.ones_like(p)
        self.optimizer.step()
        self.write(weights, self.velocity() or [], {})
        self.optimizer.load_state_dict(state)
        self._before = {}
        return self

    def _saved(self) -> io.BytesIO:
        file = io.BytesIO()
        self._torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        return file

    def saved(self) -> "TorchSession":
        """Save the state, and go on."""
        self._saved()
        return self

    def loaded_again(self) -> "TorchSession":
        """Load the optimizer's own state."""
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self

    def placed(self) -> "TorchSession":
        """Put copies of the tensors into the state, as users do who move it to another device."""
        for state in self.optimizer.state.values():
            for name, x in state.items():
                if self._torch.is_tensor(x):
                    state[name] = x.clone()
        return self

    def loads_by_default(self) -> bool:
        """Return whether torch.load takes the saved state without weights_only=False."""
        try:
            self._torch.load(self._saved(), weights_only=True)
        except pickle.UnpicklingError:
            return False
        return True

    def warm_up(self, rate: float) -> None:
        """Give the optimizer to a scheduler that sets the rates of its own start."""
        schedulers = self._torch.optim.lr_scheduler
        schedulers.OneCycleLR(self.optimizer, rate, total_steps=9, cycle_momentum=False)

    def steps_in_place(self) -> bool:
        """Make a step, and return whether every parameter is where it was before."""
        before = [p.data_ptr() for p in self._params]
        self.step([np.ones(p.shape, np.float32) for p in self._params])
        return before == [p.data_ptr() for p in self._params]

    def reloaded(self) -> "TorchSession":
        """Save and load through state_dict."""
        weights = iter(self.weights())
        first = len(self._params) - sum(length for length, _ in self._added)
        groups = [(length, self._other(options)) for length, options in self.setup.groups]
        setup = replace(self.setup, options=self._other(self.setup.options), groups=groups)
        session = TorchSession(setup, [*itertools.islice(weights, first)])
        session.setup = self.setup
        for length, options in self._added:
            session.add([*itertools.islice(weights, length)], self._other(options))
        # The state of an implementation may contain any object.
        session.optimizer.load_state_dict(self._torch.load(self._saved(), weights_only=False))
        return session
