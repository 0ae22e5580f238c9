"""The sessions of functions that make an `optax.GradientTransformation`."""

import collections
import copy
import functools
import importlib
import inspect
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.drive.session import Arrays, Setup, StateSession, the_velocity
from gravity_conformance.protocol import Mode, Task, Training

# Those of JAX's options that a program is most often tempted to change.
_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_debug_nans",
    "jax_disable_jit",
)
TIED = "a dataclass of an OrderedDict and optax.MaskedNode, where one array has several places"
# What gives the rates of the steps, other than a schedule.
CONSTANT = "optax.constant_schedule"  # it returns a Python number
_INJECTED = "optax.inject_hyperparams"
_ALL_INJECTED = "optax.inject_hyperparams of all options"
# Layers as people nest them, with equal names of leaves.
_LAYERS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("attention", lambda w: {"query": {"kernel": w}}),
    ("tuple of 2", lambda *ws: ws),
    ("LayerNorm_0", lambda w: {"scale": w}),
    ("attention", lambda w: {"query": {"kernel": w}}),
    ("list of 3", lambda *ws: [*ws]),
    ("tuple of 3", lambda *ws: ws),
    ("attention", lambda w: {"query": {"bias": w}}),
    ("tuple of 1", lambda w: (w,)),
    ("Embed_0", lambda w: {"embedding": w}),
    ("tuple of 4", lambda *ws: ws),
)


@contextmanager
def _x64(dtype: str) -> Iterator[None]:
    """Let JAX support the dtype, in all threads: those of its callbacks ask, too."""
    config = importlib.import_module("jax").config
    before = config.jax_enable_x64
    config.update("jax_enable_x64", before or dtype == "float64")
    try:
        yield
    finally:
        config.update("jax_enable_x64", before)


@functools.cache
def _named(length: int) -> Any:
    """Return one class of NamedTuples for each length."""
    return collections.namedtuple("Params", [f"w{i}" for i in range(length)])


@functools.cache
def _layer() -> Any:
    """Return one class of layers that is no container of Python's, as Equinox and Flax have."""
    jax = importlib.import_module("jax")

    class Layer:
        def __init__(self, trained: Any, masked: Any) -> None:
            self.trained, self.masked = trained, masked

    names = ["trained", "masked"]
    jax.tree_util.register_dataclass(Layer, data_fields=names, meta_fields=[])
    return Layer


_SCAN, _VMAP, _JIT = "in lax.scan", "in lax.scan under vmap", "in one jax.jit"


class OptaxSession(StateSession):
    """A function that makes an `optax.GradientTransformation`."""

    compiles: ClassVar[str | None] = "jit"
    shares: ClassVar[bool] = True
    steps_at_given_rate: ClassVar[bool] = False
    ways: ClassVar[tuple[str, ...]] = ("reloaded", "restored", "rolled_back")
    rate_ways: ClassVar[tuple[str, ...]] = (_INJECTED, _ALL_INJECTED)
    trees: ClassVar[tuple[str, ...]] = ("one array", "a list", "a NamedTuple with None", TIED)
    frameworks: ClassVar[tuple[str, ...]] = ("jax", "optax")

    @staticmethod
    def ways_in_one_call() -> tuple[str, ...]:
        """Return `jax.lax.scan`, the same under `jax.vmap`, and `jax.jit`."""
        return _SCAN, _VMAP, _JIT

    @staticmethod
    def modes() -> dict[str, Mode]:
        """Return the modes of the step: operation by operation, and jitted."""
        return {"eager": Mode("eager"), "jit": Mode("compiled")}

    @staticmethod
    def train(setup: Setup, task: Task) -> Training:
        """Train with a jitted gradient and optax.apply_updates."""
        jax, optax = importlib.import_module("jax"), importlib.import_module("optax")

        def logits(params: Any, x: Any) -> Any:
            w1, b1, w2, b2 = params
            return jax.nn.relu(x @ w1 + b1) @ w2 + b2

        def loss_of(params: Any, x: Any, y: Any) -> Any:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
            return losses.mean()

        @jax.jit  # type: ignore[untyped-decorator]
        def step(params: Any, state: Any, x: Any, y: Any) -> Any:
            loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        asarray, losses = jax.numpy.asarray, []
        with _x64(setup.dtype):
            optimizer, params = setup.construct(), [asarray(w) for w in task.weights]
            state = optimizer.init(params)
            x_train, y_train = asarray(task.x_train), asarray(task.y_train)
            for batches in task.epochs:
                batch_losses = []
                for batch in batches:
                    params, state, loss = step(params, state, x_train[batch], y_train[batch])
                    batch_losses.append(loss)
                losses.append(float(np.mean(batch_losses)))
            predictions = np.asarray(logits(params, asarray(task.x_test)).argmax(axis=1))
        return Training(losses, [np.asarray(w) for w in params], predictions)

    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct the transformation, and its state for a tree of parameters."""
        self.setup, self._jax = setup, importlib.import_module("jax")
        with _x64(setup.dtype), self._configured():
            self._params = self._tree(weights)
            self._construct()
            init = self.optimizer.init
            self._state = (self._jax.jit(init) if setup.jitted_init else init)(self._params)

    @contextmanager
    def _configured(self) -> Iterator[None]:
        """Note a setting of JAX that changes, and set it back: it belongs to the user."""
        config = self._jax.config
        before = {name: getattr(config, name) for name in _OPTIONS}
        try:
            yield
        finally:
            for name, value in before.items():
                if getattr(config, name) != value:
                    config.update(name, value)
                    self.fault = f"changed the configuration of JAX: {name}"

    def _construct(self) -> None:
        """Construct the transformation, and the step that calls it."""
        setup, instead = self.setup, {}
        if setup.schedule is not None and not setup.rates_by:
            instead = {"learning_rate": self._schedule()}
        elif setup.rates_by == CONSTANT:
            schedule = importlib.import_module("optax").constant_schedule
            instead = {"learning_rate": schedule(setup.rate)}
        elif setup.array_rate:
            instead = {"learning_rate": self._jax.numpy.asarray(setup.rate, setup.dtype)}
        self.optimizer = setup.shared or self._constructed(instead)
        self._step: Any = self._eager_step
        if setup.mode == "jit":
            owned = (1, 2) if setup.donated else ()
            self._step = self._jax.jit(self._eager_step, donate_argnums=owned)

    def _constructed(self, instead: Mapping[str, Any]) -> Any:
        """Return the transformation; with a learning rate in its state, if that gives the rates."""
        plain = self.setup.construct(**instead)
        name = self.setup.arguments.names.get("learning_rate")
        if not self._injects or name in getattr(plain.init(self._params), "hyperparams", ()):
            return plain
        found, names = self.setup.found, self.setup.arguments.names
        injected = {names["learning_rate"]}
        if self.setup.rates_by == _ALL_INJECTED:
            injected |= {names[name] for name in ("beta", "weight_decay") if name in names}
        others = {*inspect.signature(found).parameters} - injected
        inject = importlib.import_module("optax").inject_hyperparams
        return replace(self.setup, found=inject(found, static_args=others)).construct()

    @property
    def _injects(self) -> bool:
        """Whether the state holds the rate."""
        return self.setup.rates_by in self.rate_ways

    def _schedule(self) -> Any:
        numpy, begun = self._jax.numpy, self.setup.begun
        table = numpy.asarray(self.setup.schedule, self.setup.dtype)
        # A count may be a float: schedules of optax take one.
        return lambda count: table[numpy.asarray(numpy.maximum(count - begun, 0), int)]

    def _tree(self, arrays: Sequence[np.ndarray]) -> Any:
        """Return parameters as people nest them: dicts with equal names of leaves, and tuples."""
        dtype = self.setup.dtype_of
        make = np.array if self.setup.host else self._jax.numpy.asarray
        leaves = [make(x, dtype(x, i)) for i, x in enumerate(arrays)]
        if self.setup.layers:
            paths = [layer.rpartition("/") for layer in self.setup.layers]
            pairs = zip(paths, leaves, strict=True)
            return {f"{i:06}_{path}": {name: x} for i, ((path, _, name), x) in enumerate(pairs)}
        if self.setup.tree:
            return self._another_tree(leaves)
        # A dict, because a state might contain a list of its own, which would look like parameters.
        # JAX orders the leaves by key, so the keys are padded. A dict has its own order.
        layers, k = [], 0
        while leaves:
            name, make_layer = _LAYERS[k % len(_LAYERS)]
            number = int(name[-1]) if " of " in name else 1
            layers.append((f"{k:06}_{name}", make_layer(*leaves[:number])))
            leaves, k = leaves[number:], k + 1
        return dict(layers[::-1])

    def _another_tree(self, leaves: list[Any]) -> Any:
        """Return parameters of the structure `Setup.tree`."""
        if self.setup.tree == "one array":
            (leaf,) = leaves
            return leaf
        if self.setup.tree == "a list":
            return leaves
        if self.setup.tree == TIED:
            known: dict[tuple[bytes, str], Any] = {}
            named = collections.OrderedDict[str, Any]()
            for i, x in enumerate(leaves):  # a dict that JAX would sort in another order
                key = np.asarray(x).tobytes(), f"{x.dtype}{x.shape}"
                named[f"w{len(leaves) - i:06}"] = known.setdefault(key, x)
            return _layer()(named, importlib.import_module("optax").MaskedNode())
        return _named(1 + len(leaves))(None, *leaves)  # None is no leaf

    def _arrays(self, tree: Any) -> Arrays:
        dtype = np.float32 if self.setup.dtype == "bfloat16" else None
        return [np.array(x, dtype) for x in self._jax.tree.leaves(tree)]

    def _eager_step(self, grads: Any, state: Any, params: Any) -> Any:
        given = () if self.setup.alone else (params,)
        more: dict[str, Any] = {}
        if self.setup.searches:  # what a line search knows; only `grads` is what others have made
            other = self._jax.tree.map(lambda g: 1 - 2 * g, grads)
            more = {"value": 0.375, "grad": other, "value_fn": lambda w: 0.0}
        updates, state = self.optimizer.update(grads, state, *given, **more)
        return importlib.import_module("optax").apply_updates(params, updates), state

    def step(self, grads: Sequence[np.ndarray], lr: Any = None) -> Arrays:
        """Update the parameters. `lr` is used if the state has the rate, which users change."""
        with _x64(self.setup.dtype):
            if self._injects and lr is not None:
                name = self.setup.arguments.names["learning_rate"]
                self._state.hyperparams[name] = self._jax.numpy.asarray(lr, self.setup.dtype)
            given = self._tree(grads)
            owned = {"its old state": self._state, "the parameters": self._params}
            before = {name: self._contents(tree) for name, tree in owned.items()}
            with self._configured():
                after = self._step(given, self._state, self._params)
            # A callback may run later, and asks whether JAX supports float64.
            self._params, self._state = self._jax.block_until_ready(after)
            for name, tree in owned.items():
                leaves, *rest = self._contents(tree)
                was, *rest_before = before[name]
                lost = self.setup.mode == "eager" and any(map(self._is_deleted, leaves))
                if lost or rest != rest_before or not all(map(operator.is_, leaves, was)):
                    self.fault = f"overwrote {name}"
            return self._arrays(given)

    def _contents(self, tree: Any) -> tuple[list[Any], Any, list[bytes]]:
        """Return what an update could change in a tree: its leaves, its structure, their memory."""
        leaves, structure = self._jax.tree.flatten(tree)
        return leaves, structure, [x.tobytes() for x in leaves if isinstance(x, np.ndarray)]

    @staticmethod
    def _is_deleted(x: Any) -> bool:
        """Tell whether an update gave the memory of a leaf to something else, as by donation."""
        return bool(getattr(x, "is_deleted", bool)())

    def in_one_call(
        self, gradients: Sequence[Arrays], way: str
    ) -> list[tuple[Arrays | None, Arrays]]:
        """Make all steps in one compiled call, and return V and W after each.

        Under `jax.vmap` are also the steps of another training, of numbers that are three times as
        large. Inside one `jax.jit` are those of two others, a step ahead: one by the same
        transformation, and one by another with other options.
        """
        stack, tree = self._jax.numpy.stack, self._jax.tree

        def step(carry: Any, grads: Any) -> Any:
            params, state = carry
            after = self._eager_step(grads, state, params)
            return after, after

        def train(params: Any, grads: Any) -> Any:
            return self._jax.lax.scan(step, (params, self.optimizer.init(params)), grads)[1]

        def unrolled(params: Any, grads: Any) -> Any:
            carry, states = (params, self.optimizer.init(params)), []
            others = [(params, session.optimizer.init(params)) for session in beside]
            for k in range(-1, len(gradients)):
                given = tree.map(operator.itemgetter(max(k, 0)), grads)
                for i, (session, (w, state)) in enumerate(zip(beside, others, strict=True)):
                    others[i] = session._eager_step(given, state, w)
                if k >= 0:
                    carry, _ = step(carry, given)
                    states.append(carry)
            return tree.map(lambda *x: stack(x), *states)

        states = []
        with _x64(self.setup.dtype):
            beside = [self, self._with_other_options()] if way == _JIT else []
            given = tree.map(lambda *x: stack(x), *map(self._tree, gradients))
            if way == _JIT:
                found = self._jax.jit(unrolled)(self._params, given)
            elif way == _VMAP:
                both = tree.map(lambda x: stack([x, 3 * x]), (self._params, given))
                found = tree.map(lambda x: x[0], self._jax.vmap(train)(*both))
            else:
                found = train(self._params, given)
            for k in range(len(gradients)):
                self._params, self._state = tree.map(operator.itemgetter(k), found)
                states.append((self.velocity(), self.weights()))
        return states

    def _with_other_options(self) -> "OptaxSession":
        """Return a session with another β, and another rate, if it offers them."""
        names, fixed = self.setup.arguments.names, self.setup.arguments.fixed
        others = {"beta": 0.25, "learning_rate": 0.01}
        others = {name: x for name, x in others.items() if name in {*names} - {*fixed}}
        session = copy.copy(self)
        session.setup = replace(self.setup, options={**self.setup.options, **others})
        session._construct()
        return session

    def change(self, options: Mapping[str, float]) -> None:
        """Change options that the state holds, as `optax.inject_hyperparams` lets users do."""
        for name, x in options.items():
            theirs = self.setup.arguments.names[name]
            held = self._state.hyperparams[theirs]
            self._state.hyperparams[theirs] = self._jax.numpy.asarray(x, held.dtype)

    @property
    def state(self) -> Any:
        """The state of the transformation."""
        return self._state

    def assign(self, weights: Arrays) -> None:
        """Replace the parameters, and make a state of them as a template, which is not used."""
        self._put(weights)
        with _x64(self.setup.dtype):
            self.optimizer.init(self._params)

    def _put(self, weights: Arrays) -> None:
        with _x64(self.setup.dtype):
            self._params = self._tree(weights)

    def weights(self) -> Arrays:
        """Return the leaves of the tree."""
        return self._arrays(self._params)

    def _nodes(self) -> tuple[list[tuple[str, str, Any]], Any]:
        """Return path, name and value of every leaf of the state, and the structure of the tree.

        What may be V, such as a subtree with the structure of the parameters, counts as one leaf.
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
        """Tell whether a node may be V: a tree like the parameters, their list, or one vector.

        A 0-d array in another structure is more often a count.
        """
        leaves, structure = self._jax.tree.flatten(node)
        params, own = self._jax.tree.flatten(self._params)
        shapes = [w.shape for w in params]
        if [np.shape(x) for x in leaves] == shapes:
            is_listed = isinstance(node, (list, tuple)) and shapes != [()]
            return bool(structure == own) or is_listed
        return self._is_vector(node)

    def _is_vector(self, node: Any) -> bool:
        """Tell whether a node has the elements of several parameters in one row."""
        params = self._jax.tree.leaves(self._params)
        length = sum(w.size for w in params)
        return len(params) > 1 and getattr(node, "shape", None) == (length,)

    def _parts(self, node: Any) -> list[Any]:
        """Return the parts of V, one for each parameter."""
        if not self._is_vector(node):
            return list(self._jax.tree.leaves(node))
        params = self._jax.tree.leaves(self._params)
        ends = np.cumsum([w.size for w in params])[:-1]
        parts = np.split(np.asarray(node), ends)
        return [x.reshape(w.shape) for x, w in zip(parts, params, strict=True)]

    def _velocity_path(self) -> str | None:
        return the_velocity({n: path for path, n, x in self._nodes()[0] if self._like_params(x)})

    def velocity(self) -> Arrays | None:
        """Return V: the subtree of the state that has the structure of the parameters."""
        chosen = self._velocity_path()
        nodes = {path: node for path, _, node in self._nodes()[0]}
        return None if chosen is None else self._arrays(self._parts(nodes[chosen]))

    def numbers(self) -> dict[Hashable, float]:
        """Return the 0-d numeric leaves of the state, by path."""
        return {
            path: float(x)
            for path, _, x in self._nodes()[0]
            if not self._like_params(x) and not self._is_key(x)
            if np.shape(x) == () and np.asarray(x).dtype.kind in "iuf"
        }

    def _is_key(self, x: Any) -> bool:
        """Tell whether `x` is a typed random key, which cannot become a NumPy array."""
        dtypes = self._jax.dtypes
        return hasattr(x, "dtype") and bool(dtypes.issubdtype(x.dtype, dtypes.prng_key))

    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Replace the state and the parameters."""
        (nodes, structure), chosen = self._nodes(), self._velocity_path()
        asarray, leaves = self._jax.numpy.asarray, []
        with _x64(self.setup.dtype):
            for path, _, x in nodes:
                if path == chosen and self._is_vector(x):
                    row = np.concatenate([v.reshape(-1) for v in velocity])
                    leaves.append(asarray(row, x.dtype))
                elif path == chosen:
                    olds, parts = self._jax.tree.flatten(x)
                    pairs = zip(velocity, olds, strict=True)
                    leaves.append(parts.unflatten([asarray(v, old.dtype) for v, old in pairs]))
                elif path in numbers:
                    leaves.append(asarray(numbers[path], np.asarray(x).dtype))
                else:
                    leaves.append(x)
            self._state = self._jax.tree.unflatten(structure, leaves)
        self._put(weights)

    def takes_more(self) -> bool:
        """Return whether `update` takes more arguments, as those of a line search."""
        kind = importlib.import_module("optax").GradientTransformationExtraArgs
        return isinstance(self.optimizer, kind)

    def begun_again(self) -> "OptaxSession":
        """Return another training by the same object."""
        setup = replace(self.setup, shared=self.optimizer)
        return OptaxSession(setup, self.weights())

    def reloaded(self) -> "OptaxSession":
        """Save the leaves of the state, and load them into the structure of a new one."""
        session = OptaxSession(self.setup, self.weights())
        structure = self._jax.tree.structure(session._state)
        leaves = self._jax.tree.leaves(self._saved(self._jax.numpy.asarray))
        session._state = self._jax.tree.unflatten(structure, leaves)
        return session

    def restored(self) -> "OptaxSession":
        """Save the state, and load its leaves as arrays of NumPy, as from a pickle: without `init`.

        The transformation is a new one, as in another process.
        """
        session = copy.copy(self)
        with _x64(self.setup.dtype):
            session._construct()
        session._state = self._saved(np.asarray)
        return session

    def rolled_back(self) -> "OptaxSession":
        """Keep the state and the parameters, make two steps, and go on from those kept."""
        kept = self._state, self._params
        for _ in range(2):
            self.step([np.ones_like(w) for w in self.weights()])
        self._state, self._params = kept
        return self

    def _saved(self, asarray: Callable[[np.ndarray], Any]) -> Any:
        """Return the state with other arrays."""
        with _x64(self.setup.dtype):
            return self._jax.tree.map(
                lambda x: x if self._is_key(x) else asarray(np.array(x)), self._state
            )
