"""Run a stranger's implementation, of whatever kind, step by step on NumPy arrays.

Guarantee: a framework is imported only by the driver of its kind. What an implementation is
given are copies of its own, in the dtype of the weights.
"""

import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from gravity_core.conformance.conform.spec import Arguments, Kind, parameters

Arrays = list[np.ndarray]


class Session(Protocol):
    """One optimizer at work on some weights."""

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        """Make one step; return what is left in the gradients that it was given."""

    def weights(self) -> Arrays:
        """Return W."""

    def velocity(self) -> Arrays | None:
        """Return V; None where the implementation does not show it (yet)."""

    def reloaded(self) -> "Session":
        """Return a new session that goes on from the saved state of this one."""


class Driver(Protocol):
    """Starts sessions of one implementation.

    Attributes:
        arguments: what it offers.
        stateless: whether t and V are the caller's, so that there is no V₀ and no state.
        frameworks: distributions whose versions belong into a report.
    """

    arguments: Arguments
    stateless: bool
    frameworks: tuple[str, ...]

    def start(
        self,
        weights: Sequence[np.ndarray],
        options: Mapping[str, Any],
        schedule: Sequence[float] | None = None,
        fast: bool = False,
    ) -> Session:
        """Construct the optimizer for copies of `weights`.

        Args:
            weights: W₀.
            options: by our names; what is not offered is left out.
            schedule: the learning rates of all steps, where they change.
            fast: compile, where users do.
        """


def driver(found: Any, kind: Kind, arguments: Arguments) -> Driver:
    """Return the driver of a kind."""
    makers: dict[Kind, Callable[[Any, Arguments], Driver]] = {
        "torch": TorchDriver,
        "optax": OptaxDriver,
        "keras": KerasDriver,
        "plain": PlainDriver,
    }
    return makers[kind](found, arguments)


def _the_velocity(candidates: Mapping[str, Any]) -> Any:
    """Choose V among state arrays of the parameter's shape, by name if there are several."""
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    for name in ("velocity", "velocities", "v", "momentum"):
        if name in candidates:
            return candidates[name]
    return None


class TorchDriver:
    """A `torch.optim.Optimizer` class."""

    stateless: bool = False
    frameworks: tuple[str, ...] = ("torch",)

    def __init__(self, found: Any, arguments: Arguments) -> None:
        self.found, self.arguments = found, arguments

    def start(
        self,
        weights: Sequence[np.ndarray],
        options: Mapping[str, Any],
        schedule: Sequence[float] | None = None,
        fast: bool = False,
    ) -> Session:
        """Construct it for parameters."""
        return _TorchSession(self, weights, options)


class _TorchSession:
    def __init__(
        self, driver: TorchDriver, weights: Sequence[np.ndarray], options: Mapping[str, Any]
    ) -> None:
        self._torch = torch = importlib.import_module("torch")
        self._driver, self._options = driver, options
        self._params = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
        self._optimizer = driver.found(self._params, **driver.arguments.keywords(options))

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        name = self._driver.arguments.names.get("learning_rate", "lr")
        for group in self._optimizer.param_groups:
            group[name] = lr
        tensors = [self._torch.tensor(g) for g in grads]
        for p, g in zip(self._params, tensors, strict=True):
            p.grad = g
        self._optimizer.step()
        return [g.numpy().copy() for g in tensors]

    def weights(self) -> Arrays:
        return [p.detach().numpy().copy() for p in self._params]

    def velocity(self) -> Arrays | None:
        found = []
        for p in self._params:
            state = self._optimizer.state.get(p, {})
            tensors = {
                str(name): value
                for name, value in state.items()
                if getattr(value, "shape", None) == p.shape
                and value.dtype.is_floating_point
                and not (str(name) in ("step", "t") and not p.shape)
            }
            v = _the_velocity(tensors)
            if v is None:
                return None
            found.append(v.detach().to(p.dtype).numpy().copy())
        return found

    def reloaded(self) -> "_TorchSession":
        file = io.BytesIO()
        self._torch.save(self._optimizer.state_dict(), file)
        file.seek(0)
        session = _TorchSession(self._driver, self.weights(), self._options)
        # The state is the stranger's own, and may hold any object.
        session._optimizer.load_state_dict(self._torch.load(file, weights_only=False))
        return session


class OptaxDriver:
    """A function that makes an `optax.GradientTransformation`."""

    stateless: bool = False
    frameworks: tuple[str, ...] = ("jax", "optax")

    def __init__(self, found: Any, arguments: Arguments) -> None:
        self.found, self.arguments = found, arguments

    def start(
        self,
        weights: Sequence[np.ndarray],
        options: Mapping[str, Any],
        schedule: Sequence[float] | None = None,
        fast: bool = False,
    ) -> Session:
        """Construct it, and its state for a tree of parameters."""
        return _OptaxSession(self, weights, options, schedule, fast)


class _OptaxSession:
    def __init__(
        self,
        driver: OptaxDriver,
        weights: Sequence[np.ndarray],
        options: Mapping[str, Any],
        schedule: Sequence[float] | None,
        fast: bool,
    ) -> None:
        self._jax = jax = importlib.import_module("jax")
        self._rest = driver, options, schedule, fast
        self._double = weights[0].dtype == np.float64
        with self._x64():
            # Not a bare list, which a state might have of its own.
            self._params = {f"w{i}": jax.numpy.asarray(w) for i, w in enumerate(weights)}
            if schedule is not None:
                table = jax.numpy.asarray(schedule, weights[0].dtype)
                options = {**options, "learning_rate": lambda count: table[count]}
            self._transform = driver.found(**driver.arguments.keywords(options))
            self._state = self._transform.init(self._params)
        self._step = jax.jit(self._eager_step) if fast else self._eager_step

    def _x64(self) -> AbstractContextManager[Any]:
        return self._jax.enable_x64(True) if self._double else nullcontext()

    def _eager_step(self, grads: Any, state: Any, params: Any) -> Any:
        updates, state = self._transform.update(grads, state, params)
        return importlib.import_module("optax").apply_updates(params, updates), state

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        with self._x64():
            given = {f"w{i}": self._jax.numpy.asarray(g) for i, g in enumerate(grads)}
            self._params, self._state = self._step(given, self._state, self._params)
            return [np.array(g) for g in given.values()]

    def weights(self) -> Arrays:
        return [np.array(w) for w in self._params.values()]

    def velocity(self) -> Arrays | None:
        tree = self._jax.tree
        structure = tree.structure(self._params)
        shapes = [w.shape for w in self._params.values()]

        def like_params(node: Any) -> bool:
            return bool(tree.structure(node) == structure)

        paths, _ = self._jax.tree_util.tree_flatten_with_path(self._state, is_leaf=like_params)
        found = {}
        for path, node in paths:
            if like_params(node) and [np.shape(v) for v in node.values()] == shapes:
                found[str(getattr(path[-1], "name", path[-1])) if path else "velocity"] = node
        v = _the_velocity(found)
        return None if v is None else [np.array(x) for x in v.values()]

    def reloaded(self) -> "_OptaxSession":
        driver, options, schedule, fast = self._rest
        session = _OptaxSession(driver, self.weights(), options, schedule, fast)
        leaves = [np.array(x) for x in self._jax.tree.leaves(self._state)]
        with self._x64():
            session._state = self._jax.tree.unflatten(
                self._jax.tree.structure(session._state), map(self._jax.numpy.asarray, leaves)
            )
        return session


class KerasDriver:
    """A `keras.optimizers.Optimizer` class."""

    stateless: bool = False
    frameworks: tuple[str, ...] = ("keras", "tensorflow")

    def __init__(self, found: Any, arguments: Arguments) -> None:
        self.found, self.arguments = found, arguments

    def start(
        self,
        weights: Sequence[np.ndarray],
        options: Mapping[str, Any],
        schedule: Sequence[float] | None = None,
        fast: bool = False,
    ) -> Session:
        """Construct and build it for variables."""
        return _KerasSession(self, weights, options)


class _KerasSession:
    def __init__(
        self, driver: KerasDriver, weights: Sequence[np.ndarray], options: Mapping[str, Any]
    ) -> None:
        self._keras = keras = importlib.import_module("keras")
        self._driver, self._options = driver, options
        # Keras keeps the learning rate in floatx, whatever the variables' dtype.
        floatx = keras.config.floatx()
        keras.config.set_floatx("float64" if weights[0].dtype == np.float64 else floatx)
        try:
            self._variables = [keras.Variable(w, dtype=w.dtype.name) for w in weights]
            self._optimizer = driver.found(**driver.arguments.keywords(options))
            self._optimizer.build(self._variables)
        finally:
            keras.config.set_floatx(floatx)

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        self._optimizer.learning_rate = lr
        tensors = [self._keras.ops.convert_to_tensor(g) for g in grads]
        self._optimizer.apply(tensors, self._variables)
        return [np.array(self._keras.ops.convert_to_numpy(g)) for g in tensors]

    def weights(self) -> Arrays:
        return [np.array(self._keras.ops.convert_to_numpy(w)) for w in self._variables]

    def velocity(self) -> Arrays | None:
        own = (self._optimizer.iterations, getattr(self._optimizer, "_learning_rate", None))
        slots = [v for v in self._optimizer.variables if all(v is not o for o in own)]
        shapes = [tuple(w.shape) for w in self._variables]
        named = [v for v in slots if "velocit" in v.path or "momentum" in v.path]
        for chosen in (slots, named):
            if [tuple(v.shape) for v in chosen] == shapes:
                return [np.array(self._keras.ops.convert_to_numpy(v)) for v in chosen]
        return None

    def reloaded(self) -> "_KerasSession":
        store: dict[str, Any] = {}
        self._optimizer.save_own_variables(store)
        session = _KerasSession(self._driver, self.weights(), self._options)
        session._optimizer.load_own_variables(store)
        return session


class PlainDriver:
    """A function (w, v, g, t, lr, beta) -> (w, v) of NumPy arrays."""

    stateless: bool = True
    frameworks: tuple[str, ...] = ()

    def __init__(self, found: Any, arguments: Arguments) -> None:
        self.found, self.arguments = found, arguments
        # The six come by position, whatever their names.
        first = list(parameters(found))[:6]
        names = arguments.names.items()
        arguments.names = {ours: theirs for ours, theirs in names if theirs not in first}

    def start(
        self,
        weights: Sequence[np.ndarray],
        options: Mapping[str, Any],
        schedule: Sequence[float] | None = None,
        fast: bool = False,
    ) -> Session:
        """Start from V = 0, or ``options["v"]``."""
        return _PlainSession(self, weights, options)


class _PlainSession:
    def __init__(
        self, driver: PlainDriver, weights: Sequence[np.ndarray], options: Mapping[str, Any]
    ) -> None:
        self._function = driver.found
        self._beta, self._t = float(options["beta"]), int(options["first_step"])
        self._keywords = driver.arguments.keywords(options)
        self._w = [w.copy() for w in weights]
        self._v = [np.array(v) for v in options.get("v", [np.zeros_like(w) for w in weights])]
        self.overwritten: str | None = None

    def step(self, grads: Sequence[np.ndarray], lr: float) -> Arrays:
        left = []
        for i, g in enumerate(grads):
            given = [self._w[i].copy(), self._v[i].copy(), g.copy()]
            result = self._function(*given, self._t, lr, self._beta, **self._keywords)
            if not isinstance(result, (tuple, list)) or len(result) != 2:
                raise TypeError(f"it must return (w, v), got {type(result).__name__}")
            for name, old, new in zip("wv", (self._w[i], self._v[i]), given[:2], strict=True):
                if old.tobytes() != new.tobytes():
                    self.overwritten = name
            # Arithmetic on 0-d arrays gives scalars.
            w, v = (np.asarray(x) if isinstance(x, np.generic) else x for x in result)
            self._w[i], self._v[i] = w, v
            left.append(given[2])
        self._t += 1
        return left

    def weights(self) -> Arrays:
        return list(self._w)

    def velocity(self) -> Arrays | None:
        return list(self._v)

    def reloaded(self) -> "_PlainSession":
        raise NotImplementedError
