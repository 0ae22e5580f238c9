"""The sessions of torch optimizers, optax transformations and Keras optimizers.

Guarantee: a framework is imported when the first session of its kind is made.
"""

import importlib
import io
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.conform.drive.session import Arrays, Setup, StateSession, the_velocity


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


class OptaxSession(StateSession):
    """A function that makes an `optax.GradientTransformation`."""

    compiles: ClassVar[bool] = True
    steps_at_given_rate: ClassVar[bool] = False
    frameworks: ClassVar[tuple[str, ...]] = ("jax", "optax")

    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct it, and its state for a tree of parameters."""
        self.setup, self._jax = setup, importlib.import_module("jax")
        with self._x64():
            self._params = self._tree(weights)
            instead = {} if setup.schedule is None else {"learning_rate": self._schedule()}
            self._transform = setup.construct(**instead)
            self._state = self._transform.init(self._params)
        self._step = self._jax.jit(self._eager_step) if setup.fast else self._eager_step

    def _x64(self) -> AbstractContextManager[Any]:
        return self._jax.enable_x64(True) if self.setup.dtype == "float64" else nullcontext()

    def _schedule(self) -> Any:
        numpy, begun = self._jax.numpy, self.setup.begun
        table = numpy.asarray(self.setup.schedule, self.setup.dtype)
        return lambda count: table[numpy.maximum(count - begun, 0)]

    def _tree(self, arrays: Sequence[np.ndarray]) -> dict[str, Any]:
        # Not a bare list, which a state might have of its own.
        dtype = self.setup.dtype
        return {f"w{i}": self._jax.numpy.asarray(x, dtype) for i, x in enumerate(arrays)}

    def _arrays(self, tree: Mapping[str, Any]) -> Arrays:
        bfloat16 = self.setup.dtype == "bfloat16"
        return [np.array(x, np.float32 if bfloat16 else None) for x in tree.values()]

    def _eager_step(self, grads: Any, state: Any, params: Any) -> Any:
        updates, state = self._transform.update(grads, state, params)
        return importlib.import_module("optax").apply_updates(params, updates), state

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        """Update the tree."""
        with self._x64():
            given = self._tree(grads)
            self._params, self._state = self._step(given, self._state, self._params)
            return self._arrays(given)

    def weights(self) -> Arrays:
        """Return the leaves of the tree."""
        return self._arrays(self._params)

    def _nodes(self) -> tuple[list[tuple[str, str, Any]], Any]:
        """Return path, name and value of all leaves of the state, and how they hang together.

        What has the structure and the shapes of the parameters counts as one.
        """
        nodes, structure = self._jax.tree_util.tree_flatten_with_path(
            self._state, is_leaf=self._like_params
        )
        key = self._jax.tree_util.keystr
        return [
            (key(path), str(getattr(path[-1], "name", path[-1])) if path else "velocity", node)
            for path, node in nodes
        ], structure

    def _like_params(self, node: Any) -> bool:
        structure = self._jax.tree.structure
        return bool(structure(node) == structure(self._params)) and [
            np.shape(x) for x in node.values()
        ] == [w.shape for w in self._params.values()]

    def _velocity_path(self) -> str | None:
        return the_velocity({n: path for path, n, x in self._nodes()[0] if self._like_params(x)})

    def velocity(self) -> Arrays | None:
        """Return what of the state is like the parameters."""
        chosen = self._velocity_path()
        nodes = {path: node for path, _, node in self._nodes()[0]}
        return None if chosen is None else self._arrays(nodes[chosen])

    def numbers(self) -> dict[Hashable, float]:
        """Return the leaves of no axes."""
        return {
            path: float(x)
            for path, _, x in self._nodes()[0]
            if not self._like_params(x) and not self._is_key(x)
            if np.shape(x) == () and np.asarray(x).dtype.kind in "iuf"
        }

    def _is_key(self, x: Any) -> bool:
        """Tell a typed random key, of which NumPy has no array."""
        dtypes = self._jax.dtypes
        return hasattr(x, "dtype") and bool(dtypes.issubdtype(x.dtype, dtypes.prng_key))

    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Put another tree in the place of the state."""
        (nodes, structure), chosen = self._nodes(), self._velocity_path()
        asarray, leaves = self._jax.numpy.asarray, []
        with self._x64():
            for path, _, x in nodes:
                if path == chosen:
                    pairs = zip(x.items(), velocity, strict=True)
                    leaves.append({name: asarray(v, old.dtype) for (name, old), v in pairs})
                elif path in numbers:
                    leaves.append(asarray(numbers[path], np.asarray(x).dtype))
                else:
                    leaves.append(x)
            self._state = self._jax.tree.unflatten(structure, leaves)
            self._params = self._tree(weights)

    def reloaded(self) -> "OptaxSession":
        """Save and load the leaves of the state."""
        session = OptaxSession(self.setup, self.weights())
        structure, asarray = self._jax.tree.structure(session._state), self._jax.numpy.asarray
        with self._x64():
            leaves = [
                x if self._is_key(x) else asarray(np.array(x))
                for x in self._jax.tree.leaves(self._state)
            ]
            session._state = self._jax.tree.unflatten(structure, leaves)
        return session


class KerasSession(StateSession):
    """A `keras.optimizers.Optimizer` class."""

    compiles: ClassVar[bool] = True
    frameworks: ClassVar[tuple[str, ...]] = ("keras", "tensorflow")

    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct and build it for variables."""
        self.setup, self._keras = setup, importlib.import_module("keras")
        with self._floatx():
            self._variables = [self._keras.Variable(w, dtype=setup.dtype) for w in weights]
            self._optimizer = setup.construct()
            self._optimizer.build(self._variables)
        self._model = self._trained() if setup.fast else None

    def _trained(self) -> Any:
        """Return a model of the variables, the gradients of which are its inputs.

        ``train_on_batch`` is one step of ``fit``, compiled in the same way.
        """
        keras, variables = self._keras, self._variables

        class Sum(keras.Model):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.given = variables

            def call(self, inputs: Any) -> Any:
                sums = [keras.ops.sum(x[0] * w) for x, w in zip(inputs, self.given, strict=True)]
                return keras.ops.reshape(sum(sums), (1, 1))

        model = Sum()
        model.compile(optimizer=self._optimizer, loss=lambda _, y: keras.ops.sum(y))
        return model

    @contextmanager
    def _floatx(self) -> Iterator[None]:
        """Keras keeps hyper-parameters in floatx, whatever the variables' dtype."""
        config = self._keras.config
        floatx = config.floatx()
        config.set_floatx("float64" if self.setup.dtype == "float64" else floatx)
        try:
            yield
        finally:
            config.set_floatx(floatx)

    def _numpy(self, tensor: Any) -> np.ndarray:
        array = np.array(self._keras.ops.convert_to_numpy(tensor))
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        """Set the learning rate, and apply the gradients."""
        self._optimizer.learning_rate = lr
        dtype = self.setup.dtype
        if self._model is not None:
            with self._floatx():
                self._model.train_on_batch(tuple(g[None] for g in grads), np.zeros((1, 1)))
            return list(grads)
        tensors = [self._keras.ops.convert_to_tensor(g, dtype=dtype) for g in grads]
        with self._floatx():
            self._optimizer.apply(tensors, self._variables)
        return [self._numpy(g) for g in tensors]

    def weights(self) -> Arrays:
        """Return the variables."""
        return [self._numpy(w) for w in self._variables]

    def _slots(self) -> list[Any] | None:
        """Return V's own variables."""
        own = (self._optimizer.iterations, getattr(self._optimizer, "_learning_rate", None))
        slots = [v for v in self._optimizer.variables if all(v is not o for o in own)]
        shapes = [tuple(w.shape) for w in self._variables]
        named = [v for v in slots if "velocit" in v.path or "momentum" in v.path]
        for chosen in (slots, named):
            if [tuple(v.shape) for v in chosen] == shapes:
                return chosen
        return None

    def velocity(self) -> Arrays | None:
        """Return V by the optimizer's variables."""
        slots = self._slots()
        return None if slots is None else [self._numpy(v) for v in slots]

    def _scalars(self) -> dict[Hashable, Any]:
        slots = self._slots() or []
        every = enumerate([self._optimizer.iterations, *self._optimizer.variables])
        return {i: x for i, x in every if tuple(x.shape) == () and all(x is not v for v in slots)}

    def numbers(self) -> dict[Hashable, float]:
        """Return the optimizer's variables of no axes."""
        return {i: float(self._numpy(x)) for i, x in self._scalars().items()}

    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Assign to the variables."""
        for targets, arrays in ((self._variables, weights), (self._slots() or (), velocity)):
            for target, array in zip(targets, arrays, strict=True):
                target.assign(self._keras.ops.convert_to_tensor(array, dtype=target.dtype))
        scalars = self._scalars()
        for i, x in numbers.items():
            scalars[i].assign(self._keras.ops.cast(x, scalars[i].dtype))

    def reloaded(self) -> "KerasSession":
        """Save and load by the optimizer's own store."""
        store: dict[str, Any] = {}
        self._optimizer.save_own_variables(store)
        session = KerasSession(self.setup, self.weights())
        session._optimizer.load_own_variables(store)
        return session
