"""The sessions of `torch.optim.Optimizer` classes."""

import importlib
import io
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.drive.session import Arrays, Setup, StateSession, the_velocity


class TorchSession(StateSession):
    """A `torch.optim.Optimizer` class."""

    groups: ClassVar[bool] = True
    frameworks: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct it for parameters."""
        self.setup, self._torch = setup, importlib.import_module("torch")
        self._params = [self._torch.nn.Parameter(self._tensor(w)) for w in weights]
        self._still: Any = None
        groups: Any = self._params
        if setup.grouped:
            self._still = self._torch.nn.Parameter(self._tensor(weights[0]))
            first, *rest = self._params
            groups = [{"params": [first]}, {"params": [*rest, self._still]}]
        self._optimizer = setup.construct(groups)

    def _tensor(self, array: np.ndarray) -> Any:
        return self._torch.tensor(array, dtype=getattr(self._torch, self.setup.dtype))

    def _numpy(self, tensor: Any) -> np.ndarray:
        bfloat16 = tensor.dtype == self._torch.bfloat16
        array = (tensor.detach().float() if bfloat16 else tensor.detach()).numpy()
        return np.array(array)

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        """Set the learning rate of every group, and step."""
        own = self.setup.arguments.names.get("learning_rate", "lr")
        for group in self._optimizer.param_groups:
            # As torch's schedulers, whatever the constructor calls it.
            group["lr" if "lr" in group or own not in group else own] = lr
        tensors = [self._tensor(g) for g in grads]
        for p, g in zip(self._params, tensors, strict=True):
            p.grad = g
        before = None if self._still is None else self._still.detach().clone()
        self._optimizer.step()
        if before is not None and not self._torch.equal(before, self._still.detach()):
            raise ValueError("it changes a parameter that has no gradient")
        return [self._numpy(g) for g in tensors]

    def weights(self) -> Arrays:
        """Return the parameters."""
        return [self._numpy(p) for p in self._params]

    def _slots(self) -> list[Any] | None:
        """Return V's own tensors; an optimizer may have none for an empty parameter."""
        found = []
        for p in self._params:
            tensors = {
                str(name): value
                for name, value in self._optimizer.state.get(p, {}).items()
                if self._torch.is_tensor(value)
                and value.shape == p.shape
                and value.dtype.is_floating_point
                and not (str(name) in ("step", "t") and not p.shape)
            }
            v = the_velocity(tensors)
            if v is None and p.numel():
                return None
            found.append(p.detach() if v is None else v)
        return found

    def velocity(self) -> Arrays | None:
        """Return V by `Optimizer.state`."""
        slots = self._slots()
        if slots is None:
            return None
        pairs = zip(slots, self._params, strict=True)
        return [self._numpy(v.detach().to(p.dtype)) for v, p in pairs]

    def _places(self) -> Iterator[tuple[Hashable, MutableMapping[Any, Any], Any]]:
        """Yield for every single number in the state its place: a name, a mapping and a key."""
        state = self._optimizer.state
        inner = [x for x in state.values() if isinstance(x, MutableMapping)]
        for i, mapping in enumerate([*self._optimizer.param_groups, state, *inner]):
            for key, x in mapping.items():
                if type(x) in (int, float) or (self._torch.is_tensor(x) and not x.shape):
                    yield (i, str(key)), mapping, key

    def numbers(self) -> dict[Hashable, float]:
        """Return the numbers of the state and of the groups."""
        return {name: float(mapping[key]) for name, mapping, key in self._places()}

    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Write in place, so that whoever else holds the tensors sees it."""
        with self._torch.no_grad():
            for targets, arrays in ((self._params, weights), (self._slots() or (), velocity)):
                for target, array in zip(targets, arrays, strict=True):
                    target.copy_(self._tensor(array))
            for name, mapping, key in list(self._places()):
                if name not in numbers:
                    continue
                if self._torch.is_tensor(mapping[key]):
                    mapping[key].fill_(numbers[name])
                else:
                    mapping[key] = type(mapping[key])(numbers[name])

    def reloaded(self) -> "TorchSession":
        """Save and load by state_dict."""
        file = io.BytesIO()
        self._torch.save(self._optimizer.state_dict(), file)
        file.seek(0)
        session = TorchSession(self.setup, self.weights())
        # The state is the stranger's own, and may hold any object.
        session._optimizer.load_state_dict(self._torch.load(file, weights_only=False))
        return session
