"""A `torch.optim.Optimizer` and its parameters: how they are made, stepped and read."""

import importlib
import inspect
import math
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, ClassVar

import numpy as np

from gravity_conformance._guard import one_line
from gravity_conformance.drive.session import (
    LATE,
    Arrays,
    ClosureRefusedError,
    Setup,
    StateSession,
    repeats,
    the_velocity,
)


@contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    """Let torch make tensors of this dtype where none is named."""
    torch = importlib.import_module("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _RaisedError(Exception):
    """What a closure of the user raises."""


LAYOUTS = 4  # ways in which a strided tensor lies in memory


class TorchSteps(StateSession):
    """A `torch.optim.Optimizer` class; its modes are arguments of the constructor.

    Attributes:
        loss: what the last step with a closure returned.
        calls: how often it called the closure.
    """

    groups: ClassVar[bool] = True
    misses: ClassVar[bool] = True
    strides: ClassVar[bool] = True
    keeps_rate: ClassVar[bool] = True
    rate_ways: ClassVar[tuple[str, ...]] = ("a tensor", "a scheduler")
    frameworks: ClassVar[tuple[str, ...]] = ("torch",)

    @staticmethod
    def in_half_precision() -> tuple[str, AbstractContextManager[None]]:
        """Return bfloat16 as the default, in which users make large models."""
        return "torch.set_default_dtype(torch.bfloat16)", _default_dtype("bfloat16")

    @staticmethod
    def takes_rows() -> bool:
        """Return True: embeddings give such gradients."""
        return True

    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct the optimizer for parameters with copies of `weights`."""
        self.setup, self._torch = setup, importlib.import_module("torch")
        self._params, self._constructed = self._parameters(weights), setup.options
        self._added: list[tuple[int, Mapping[str, Any]]] = []
        # The gradients of the step before, by the index of their parameter.
        self._before: dict[int, tuple[Any, np.ndarray]] = {}
        self._unscales, self._scheduler = False, None
        self._made = self.calls = 0
        self.loss: Any = None
        groups: list[dict[str, Any]] = []
        start = 0
        for length, options in setup.groups:
            groups.append(self._group(self._params[start : start + length], options, len(groups)))
            start += length
        if setup.again:
            self.optimizer = setup.construct(self._params)
            for _ in range(5):
                self.step([0.01 * np.ones_like(w) for w in weights])
            self.assign(list(weights))
            self._before = {}
        frozen = self._params[1::2] if setup.frozen else []
        for p in frozen:
            p.requires_grad_(False)
        # Users pass model.parameters(), which gives each parameter once.
        given: Any = iter(self._params)
        if setup.layers:  # as of model.named_parameters()
            names = [layer.replace("/", ".") for layer in setup.layers]
            given = zip(names, self._params, strict=True)
        self.optimizer = setup.construct(groups or given, **self._rate())
        for p in frozen:
            p.requires_grad_(True)
        if setup.rates_by == "a scheduler" and "lr" in self.optimizer.param_groups[0]:
            self._scheduler = self._scheduled(setup.schedule or [setup.rate])

    def _parameters(self, weights: Sequence[np.ndarray]) -> list[Any]:
        tensors = [self._tensor(w, i, i) for i, w in enumerate(weights)]
        # A step that autograd differentiates cannot write to a leaf that requires a gradient.
        leaf = not self.setup.more.get("differentiable")
        return [self._torch.nn.Parameter(x, requires_grad=leaf) for x in self._packed(tensors)]

    def _scheduled(self, rates: Sequence[float]) -> Any:
        """Return a scheduler of these rates, which also writes "initial_lr" into the groups."""
        factors = [rate / rates[0] for rate in [*rates, rates[-1]]]
        return self._torch.optim.lr_scheduler.LambdaLR(self.optimizer, factors.__getitem__)

    def _packed(self, tensors: list[Any]) -> list[Any]:
        """Return views of one buffer in place of the tensors, if the setup is packed."""
        if not self.setup.packed:
            return tensors
        flat = self._torch.cat([x.reshape(-1) for x in tensors])
        parts = flat.split([x.numel() for x in tensors])
        return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]

    def _group(self, params: list[Any], options: Mapping[str, Any], place: int) -> dict[str, Any]:
        """Return a group; every second one has only what differs from the constructor's options."""
        names, own = self.setup.arguments.names, dict(options)
        if place % 2:
            own = {n: x for n, x in own.items() if x != self._constructed.get(n)}
        if self._has_tensor_rate and "learning_rate" in own:
            own["learning_rate"] = self._array(own["learning_rate"])
        given = params[0] if len(params) == 1 else iter(params)
        return {"params": given} | {names[name]: x for name, x in own.items() if name in names}

    @property
    def _has_tensor_rate(self) -> bool:
        return self.setup.array_rate or self.setup.rates_by == "a tensor"

    def _rate(self) -> dict[str, Any]:
        if not self._has_tensor_rate:
            return {}
        return {"learning_rate": self._array(self.setup.rate)}

    def _array(self, rate: float) -> Any:
        """Return a learning rate as a tensor; in float32 unless the parameters are wider."""
        wide = self._torch.float64 if self.setup.dtype == "float64" else self._torch.float32
        return self._torch.tensor(rate, dtype=wide)  # SPEC may have set another default

    def add(self, weights: Sequence[np.ndarray], options: Mapping[str, Any]) -> None:
        """Add a group of parameters with copies of `weights`."""
        params, place = self._parameters(weights), len(self.optimizer.param_groups)
        self._added.append((len(params), options))
        self._params += params
        self.optimizer.add_param_group(self._group(params, options, place))

    def _tensor(
        self, array: np.ndarray, index: int = 0, place: int = 0, *, expands: bool = False
    ) -> Any:
        """Return a tensor; `place` chooses how a strided one lies in memory.

        One that expands may have one row in memory for all; it cannot be written to.
        """
        dtype = getattr(self._torch, self.setup.dtype_of(array, index))
        tensor = self._torch.tensor(array, dtype=dtype)
        if not self.setup.strided or not tensor.ndim:
            return tensor
        if place % LAYOUTS == 0:
            return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor
        if place % LAYOUTS == 1:
            return self._torch.stack([tensor, tensor + 1], dim=-1)[..., 0]
        if place % LAYOUTS == 2 and tensor.ndim == 4:
            return tensor.contiguous(memory_format=self._torch.channels_last)
        return tensor[:1].expand_as(tensor) if expands and repeats(array) else tensor

    def _numpy(self, tensor: Any) -> np.ndarray:
        bfloat16 = tensor.dtype == self._torch.bfloat16
        array = (tensor.detach().float() if bfloat16 else tensor.detach()).numpy()
        return np.array(array)

    def step(self, grads: Sequence[np.ndarray], lr: Any = None) -> Arrays:
        """Set the learning rate of every group, if `lr` is given, and step.

        A parameter whose gradient is None has none. It must not move.
        """
        own = self.setup.arguments.names.get("learning_rate", "lr")
        sets = lr is not None and self._scheduler is None
        groups = self.optimizer.param_groups if sets else []
        rates = lr if isinstance(lr, list) else [lr] * len(groups)
        for group, rate in zip(groups, rates, strict=bool(groups)):
            # Torch's schedulers set "lr", whatever the constructor calls it, and fill a tensor.
            name = "lr" if "lr" in group or own not in group else own
            if self._torch.is_tensor(group.get(name)) and self._made % 2:
                group[name].fill_(rate)
            else:
                group[name] = self._array(rate) if self._has_tensor_rate else rate
        tensors = [
            None if g is None else self._tensor(g, i, i // LAYOUTS, expands=True)
            for i, g in enumerate(grads)
        ]
        before, reused = self._before, [i for i, g in enumerate(tensors) if self._reuses(i, g)]
        for i in reused:
            tensors[i] = self._rewritten(before[i][0], tensors[i])
        if self.setup.packed and len(reused) < len(tensors):
            tensors = self._packed(tensors)
        self.optimizer.zero_grad()
        for i, (p, g) in enumerate(zip(self._params, tensors, strict=True)):
            # Embeddings are few among many, and one may be without such gradients in a step.
            is_sparse = self.setup.rows and (i + self._made) % 3 < 2
            p.grad = self._rows(g) if is_sparse else g
        self._made += 1
        if self.setup.closure:
            self._step_with_closure(tensors)
        elif self.setup.scaled:
            self._step_with_scaler(tensors)
        else:
            autocast = self._torch.autocast
            with (
                autocast("cpu", self._torch.bfloat16, enabled=self.setup.autocast),
                self._torch.set_grad_enabled(self._made % 3 > 0),
            ):
                modes = self._modes()
                self.optimizer.step()
                if self._modes() != modes:
                    self.fault = "changed the grad mode or the default dtype of torch"
            if self._scheduler is not None:
                self._scheduler.step()
            kept = zip(self._params, tensors, strict=True)
            if not self.setup.rows and not all(p.grad is g for p, g in kept):
                self.fault = "overwrote p.grad"
        self._before = {i: (g, self._numpy(g)) for i, g in enumerate(tensors) if g is not None}
        others = [pair for i, pair in before.items() if i not in reused]
        if any(self._numpy(g).tobytes() != x.tobytes() for g, x in others):
            self.fault = LATE
        return [x.copy() for _, x in self._before.values()]

    def _modes(self) -> tuple[bool, Any]:
        """Return what holds for all later code of the user."""
        return self._torch.is_grad_enabled(), self._torch.get_default_dtype()

    def _reuses(self, index: int, gradient: Any) -> bool:
        """Return whether a gradient comes in the memory of the step before: every other one does.

        Those in one buffer do so together.
        """
        old, _ = self._before.get(index, (None, None))
        if old is None or gradient is None or old.shape != gradient.shape or self.setup.strided:
            return False
        return bool((self._made + (0 if self.setup.packed else index)) % 2)

    def _rewritten(self, old: Any, gradient: Any) -> Any:
        """Write a gradient into the memory of an old one, as the same tensor or as a new one.

        `data` has a version of its own, so the tensor's does not tell that its numbers are others.
        """
        old.data.copy_(gradient)
        return old if self._made % 4 < 2 else old.data

    @property
    def takes_closure(self) -> bool:
        """Whether `step` has a parameter for a closure."""
        return bool(inspect.signature(self.optimizer.step).parameters)

    def _step_with_closure(self, tensors: Sequence[Any]) -> None:
        """Step with a closure that computes the gradients; before it, there are others or none.

        It accumulates them from two batches and scales them, or makes a graph of them, too.
        """
        pairs = list(zip(self._params, tensors, strict=True))
        calls: list[int] = []

        def raises() -> Any:
            raise _RaisedError

        def closure() -> Any:
            calls.append(1)
            self.optimizer.zero_grad(set_to_none=not self._made % 2)
            if self._made % 3 == 0:
                loss = sum((p * g.clone().requires_grad_()).sum() for p, g in pairs)
                made = self._torch.autograd.grad(loss, self._params, create_graph=True)
                for p, g in zip(self._params, made, strict=True):
                    p.grad = g
                return loss
            for factor in (4.0, -2.0):
                loss = sum((p * g).sum() for p, g in pairs)
                (factor * loss).backward()
            for p in self._params:
                p.grad.mul_(0.5)
            return loss

        for p, g in pairs:
            p.grad = self._torch.full_like(g, 7.0) if self._made % 2 else None
        try:
            with self._torch.enable_grad():
                if self.setup.raising and self._made % 2:
                    with suppress(_RaisedError):
                        self.optimizer.step(raises)
                self.loss = self.optimizer.step(closure)
        except Exception as error:
            if calls:
                raise
            raise ClosureRefusedError(one_line(error)) from error
        self.calls = len(calls)

    def _step_with_scaler(self, tensors: Sequence[Any]) -> None:
        """Step by a gradient scaler, after a loss that makes it skip a step.

        Every other time, the gradients are unscaled before, as by users who clip them. The scale
        grows, as it does in a training.
        """
        self._unscales = not self._unscales
        scaler = self._torch.amp.GradScaler("cpu", init_scale=2.0 ** (9 + self._made % 8))
        for factor in (math.inf, 1.0):  # the first one halves the scale
            self.optimizer.zero_grad()
            pairs = zip(self._params, tensors, strict=True)
            loss = sum((p * g).sum() for p, g in pairs if g is not None)
            scaler.scale(factor * loss).backward()
            if self._unscales:
                scaler.unscale_(self.optimizer)
            scaler.step(self.optimizer)
            scaler.update()

    def _rows(self, gradient: Any) -> Any:
        """Return a gradient as its rows that are not zero, each as a sum of two."""
        if gradient is None or not gradient.ndim:
            return gradient
        found = gradient.reshape(len(gradient), -1).any(dim=1).nonzero().reshape(-1)
        values = self._torch.cat([2 * gradient[found], -gradient[found]])
        indices = self._torch.cat([found, found])[None]
        shape = gradient.shape
        made = self._torch.sparse_coo_tensor(indices, values, shape, check_invariants=True)
        return made.coalesce() if self._made % 2 else made

    def assign(self, weights: Arrays) -> None:
        """Copy into the memory of the parameters."""
        for p, w in zip(self._params, weights, strict=True):
            p.data.copy_(self._tensor(w))  # as of averaged weights: p itself has no new version

    def weights(self, chosen: slice = slice(None)) -> Arrays:
        """Return the parameters."""
        return [self._numpy(p) for p in self._params[chosen]]

    def _slots(self, chosen: slice = slice(None)) -> list[Any] | None:
        """Return the tensors that hold V. An optimizer may have none for an empty parameter."""
        found = []
        for p in self._params[chosen]:
            tensors = {
                str(name): value
                for name, value in self.optimizer.state.get(p, {}).items()
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

    def velocity(self, chosen: slice = slice(None)) -> Arrays | None:
        """Return V from `Optimizer.state`."""
        slots = self._slots(chosen)
        if slots is None:
            return None
        pairs = zip(slots, self._params[chosen], strict=True)
        return [self._numpy(v.detach().to(p.dtype)) for v, p in pairs]

    def _places(self) -> Iterator[tuple[Hashable, MutableMapping[Any, Any], Any]]:
        """Yield the place of every scalar in the state and the groups: name, mapping and key."""
        state = self.optimizer.state
        inner = [x for x in state.values() if isinstance(x, MutableMapping)]
        for i, mapping in enumerate([*self.optimizer.param_groups, state, *inner]):
            for key, x in mapping.items():
                if type(x) in (int, float) or (self._torch.is_tensor(x) and not x.shape):
                    yield (i, str(key)), mapping, key

    def numbers(self) -> dict[Hashable, float]:
        """Return the numbers of the state and of the groups."""
        return {name: float(mapping[key]) for name, mapping, key in self._places()}

    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Write in place, because the optimizer may keep other references to the tensors."""
        with self._torch.no_grad():
            for p, w in zip(self._params, weights, strict=True):
                p.copy_(self._tensor(w))
            for target, array in zip(self._slots() or (), velocity, strict=True):
                target.copy_(self._tensor(array))
            for name, mapping, key in list(self._places()):
                if name not in numbers:
                    continue
                if self._torch.is_tensor(mapping[key]):
                    mapping[key].fill_(numbers[name])
                else:
                    mapping[key] = type(mapping[key])(numbers[name])
