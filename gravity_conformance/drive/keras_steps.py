"""A `keras.optimizers.Optimizer` and its variables: how they are made, stepped and read."""

import importlib
import itertools
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.drive.session import IN_TURN, Arrays, Setup, StateSession
from gravity_conformance.protocol import Mode

# Layers and their variables, with the names that Keras gives them.
_LAYERS = (
    ("dense", "kernel"),
    ("dense", "bias"),
    ("conv2d", "kernel"),
    ("batch_normalization", "gamma"),
    ("batch_normalization", "beta"),
    ("embedding", "embeddings"),
    ("lstm_cell", "recurrent_kernel"),
    ("layer_normalization", "gamma"),
)
# What gives the rates of the steps, other than an assignment to the optimizer.
_SCHEDULE, _CALLABLE = "a LearningRateSchedule", "a callable"
_LATER, _ASSIGN = "a LearningRateSchedule that is assigned", "learning_rate.assign"
REPLICAS = ["CPU:0", "CPU:1"]
_LONG = 30  # steps
_SCALE = 1024.0  # of a LossScaleOptimizer, at first


@contextmanager
def _floatx(dtype: str) -> Iterator[None]:
    """Set floatx, in which Keras keeps hyper-parameters, whatever the dtype of the variables."""
    config = importlib.import_module("keras").config
    before = config.floatx()
    config.set_floatx(dtype)
    try:
        yield
    finally:
        config.set_floatx(before)


@contextmanager
def _mixed(dtype: str) -> Iterator[None]:
    """Set floatx, and the policy by which layers compute in a half type."""
    config = importlib.import_module("keras").config
    before = config.dtype_policy()
    try:
        with _floatx(dtype):
            config.set_dtype_policy(f"mixed_{dtype}")
            yield
    finally:
        config.set_dtype_policy(before)


def is_on_tensorflow() -> bool:
    """Return whether TensorFlow is the backend of Keras."""
    return bool(importlib.import_module("keras").backend.backend() == "tensorflow")


def wide_enough(dtype: str) -> AbstractContextManager[None]:
    """Return floatx float64 for float64 variables, else the user's."""
    config = importlib.import_module("keras").config
    return _floatx("float64" if dtype == "float64" else config.floatx())


class KerasSteps(StateSession):
    """A `keras.optimizers.Optimizer` class."""

    compiles: ClassVar[str | None] = "fit"
    misses: ClassVar[bool] = True
    rate_ways: ClassVar[tuple[str, ...]] = (_SCHEDULE, _CALLABLE, _LATER, _ASSIGN)
    rates_saved: ClassVar[tuple[str, ...]] = (_SCHEDULE,)
    keeps_rate: ClassVar[bool] = True
    frameworks: ClassVar[tuple[str, ...]] = ("keras", "tensorflow")

    @staticmethod
    def prepare() -> None:
        """Divide the CPU into the devices of the replicas, if TensorFlow has not started yet."""
        if not is_on_tensorflow():
            return
        config = importlib.import_module("tensorflow").config
        cpu, *_ = config.list_physical_devices("CPU")
        with suppress(RuntimeError):
            devices = [config.LogicalDeviceConfiguration() for _ in REPLICAS]
            config.set_logical_device_configuration(cpu, devices)

    @staticmethod
    def in_half_precision() -> tuple[str, AbstractContextManager[None]]:
        """Return bfloat16 as floatx, and as the dtype in which layers compute."""
        return "floatx bfloat16, the policy mixed_bfloat16", _mixed("bfloat16")

    @staticmethod
    def modes() -> dict[str, Mode]:
        """Return the modes of the step: eager, as a TensorFlow graph, and compiled by XLA."""
        backend = importlib.import_module("keras").backend.backend()
        missing = None if backend == "tensorflow" else f"Keras runs on {backend} here"
        graph = Mode("compiled", missing)
        return {"eager": Mode("eager"), "function": graph, "xla": graph}

    @staticmethod
    def takes_rows() -> bool:
        """Return whether this is TensorFlow, which gives those of an embedding."""
        return is_on_tensorflow()

    @staticmethod
    def builds_in_a_graph() -> bool:
        """Return whether this is TensorFlow, whose users call `apply` in a tf.function."""
        return is_on_tensorflow()

    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct the optimizer and build it for variables with copies of `weights`."""
        self.setup, self._keras = setup, importlib.import_module("keras")
        self._strategy: Any = None
        if setup.replicas:
            tensorflow = importlib.import_module("tensorflow")
            self._strategy = tensorflow.distribute.MirroredStrategy(REPLICAS)
        with wide_enough(setup.dtype), self._strategy.scope() if self._strategy else nullcontext():
            self._variables = [self._variable(i, w) for i, w in enumerate(weights)]
            if setup.again:
                before = setup.construct()
                for _ in range(5):
                    before.apply([self._tensor(0.01 * w**0) for w in weights], self._variables)
                self.assign(list(weights))
            self.optimizer = setup.shared or setup.construct(**self._rate())
            if setup.excluded or setup.excluded_names:
                self.optimizer.exclude_from_weight_decay(
                    var_list=self._variables[: setup.excluded] or None,
                    var_names=[*setup.excluded_names] or None,
                )
            if setup.rates_by == _LATER:
                self.optimizer.learning_rate = self._decay()
            elif setup.schedule is not None and setup.rates_by not in (_SCHEDULE, _CALLABLE):
                # A callback may set the rate of a warm-up before.
                self.optimizer.learning_rate = setup.schedule[0]
            # What applies the gradients: a LossScaleOptimizer hands them to the optimizer.
            self._outer = self.optimizer
            if setup.scaled:
                scaling = self._keras.optimizers.LossScaleOptimizer
                self._outer = scaling(self.optimizer, initial_scale=_SCALE)
            if not setup.unbuilt:
                self._outer.build(self._variables)
            self._model = self._trained() if setup.mode == "fit" else None

        def apply(grads: Any, *, paired: bool = False) -> None:
            pairs = list(
                zip(map(self._shaped, grads, self._variables), self._variables, strict=True)
            )
            if setup.reordered:
                pairs = [(g, w) for g, w in pairs[::-1] if g is not None]
            given = [[g for g, _ in pairs], [w for _, w in pairs]][: 1 + (not setup.alone)]
            before = [[*map(id, listed)] for listed in given]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Gradients do not exist", UserWarning)
                if paired and not setup.alone:
                    self._outer.apply_gradients((g, w) for g, w in pairs)
                else:
                    self._outer.apply(*given)
                    if setup.alone:
                        self._outer.apply([])  # no gradients are no step
            if [[*map(id, listed)] for listed in given] != before:
                self.fault = "overwrote the list of gradients or that of variables"

        self._apply: Any = apply
        if setup.mode in ("function", "xla"):
            tensorflow = importlib.import_module("tensorflow")
            self._apply = tensorflow.function(apply, jit_compile=setup.mode == "xla")
        # What a callable returns is a constant of a graph.
        if setup.mode == IN_TURN and setup.rates_by != _CALLABLE:
            self._apply = self._in_turn(apply)
        if self._strategy:
            self._apply = self._on_replicas(apply)

    def _rate(self) -> dict[str, Any]:
        """Return what gives the rate of every step, if it is the constructor's argument."""
        way = self.setup.rates_by
        if way == _SCHEDULE:
            return {"learning_rate": self._decay()}
        self._current = (self.setup.schedule or [0.0])[0]
        return {"learning_rate": lambda: self._current} if way == _CALLABLE else {}

    def _decay(self) -> Any:
        """Return the schedule: step k, from 0, has the rate of the first boundary not below k."""
        rates = [*(self.setup.schedule or ())]
        decay = self._keras.optimizers.schedules.PiecewiseConstantDecay
        return decay([*range(len(rates) - 1)], rates)

    def _in_turn(self, apply: Any) -> Any:
        """Return a step that runs eagerly or in a graph, and gets lists or pairs, in turn.

        Five steps are a turn, so those that accumulate two or three gradients are of both kinds.
        As in Keras's trainer, AutoGraph converts nothing. Of a long run, the second part has a
        graph of its own, as after a batch of another size.
        """
        function = importlib.import_module("tensorflow").function
        first, second = (
            function(lambda g: apply(g, paired=True), autograph=False) for _ in range(2)
        )
        numbers = itertools.count()

        def step(grads: Any) -> None:
            number = next(numbers)
            if number % 5 in (1, 2, 4):
                (first if number < _LONG else second)(grads)
            else:
                apply(grads, paired=number % 2 == 1)

        return step

    def _on_replicas(self, apply: Any) -> Any:
        """Return a step of all replicas: one gets twice the gradient, the other subtracts it."""
        tensorflow = importlib.import_module("tensorflow")

        def one(grads: Any) -> None:
            context = tensorflow.distribute.get_replica_context()
            first = context.replica_id_in_sync_group == 0
            apply([tensorflow.where(first, 2 * g, -g) for g in grads])

        run = self._strategy.run
        return tensorflow.function(lambda grads: run(one, args=(grads,)), autograph=False)

    def _variable(self, index: int, w: np.ndarray) -> Any:
        """Return a variable with the name and the path of one of a layer: layers share the name."""
        alike = self.setup.alike
        layer, name = ("layer", "kernel") if alike else _LAYERS[index % len(_LAYERS)]
        if self.setup.layers:
            layer, _, name = self.setup.layers[index].rpartition("/")
        with self._keras.name_scope(layer if alike or not index else f"{layer}_{index}"):
            made = self._keras.Variable(w, dtype=self.setup.dtype_of(w, index), name=name)
        if (limit := self.setup.limit) is not None:
            made.constraint = lambda w: self._keras.ops.clip(w, -limit, limit)
        return made

    def _trained(self) -> Any:
        """Return a model of the variables. Its gradients are equal to its inputs.

        ``train_on_batch`` makes one step of ``fit``, compiled in the same way.
        """
        keras, variables = self._keras, self._variables

        class Sum(keras.Model):  # type: ignore[misc, name-defined]
            def __init__(self, dtype: str | None) -> None:
                super().__init__(dtype=dtype)
                self.given = variables

            def call(self, inputs: Any) -> Any:
                sums = [keras.ops.sum(x[0] * w) for x, w in zip(inputs, self.given, strict=True)]
                return keras.ops.reshape(sum(sums), (1, 1))

        # Keras casts inputs to the dtype of a model, which floatx gives only at first.
        model = Sum("float64" if self.setup.dtype == "float64" else None)
        model.compile(optimizer=self.optimizer, loss=lambda _, y: keras.ops.sum(y))
        return model

    def _numpy(self, tensor: Any) -> np.ndarray:
        if self._keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
            tensor = self._keras.ops.cast(tensor, "float32")
        return np.array(self._keras.ops.convert_to_numpy(tensor))

    def step(self, grads: Sequence[np.ndarray], lr: Any = None) -> Arrays:
        """Set the learning rate, if it is given, and apply the gradients."""
        if lr is not None and self.setup.rates_by == _ASSIGN:
            self.optimizer.learning_rate.assign(lr)
        elif lr is not None and self.setup.rates_by:
            self._current = lr
        elif lr is not None:
            array = self.setup.array_rate
            self.optimizer.learning_rate = self._keras.ops.convert_to_tensor(lr) if array else lr
        if self._model is not None:
            with wide_enough(self.setup.dtype):
                self._model.train_on_batch(tuple(g[None] for g in grads), np.zeros((1, 1)))
            return list(grads)
        if self.setup.host:
            self._apply(list(grads))
            return list(grads)
        tensors = [None if g is None else self._tensor(g, i) for i, g in enumerate(grads)]
        with wide_enough(self.setup.dtype):
            if self.setup.scaled:  # a step with an infinity, which is left out, halves the scale
                self._apply([None if g is None else g + np.inf for g in tensors])
                scale = float(self._numpy(self._outer.dynamic_scale))
                self._apply([None if g is None else scale * g for g in tensors])
            else:
                self._apply([self._rows(g) if self.setup.rows else g for g in tensors])
        return [self._numpy(g) for g in tensors if g is not None]

    def _tensor(self, array: np.ndarray, index: int = 0) -> Any:
        return self._keras.ops.convert_to_tensor(array, dtype=self.setup.dtype_of(array, index))

    def _shaped(self, gradient: Any, variable: Any) -> Any:
        """Return rows with the shape that is lost where a graph takes them as an argument."""
        if not self.setup.rows or not hasattr(gradient, "indices"):
            return gradient
        tensorflow = importlib.import_module("tensorflow")
        shape = tensorflow.constant(tuple(variable.shape), "int64")
        return tensorflow.IndexedSlices(gradient.values, gradient.indices, shape)

    def _rows(self, gradient: Any) -> Any:
        """Return a gradient as its rows that are not zero, each as a sum of two."""
        if gradient is None or not gradient.shape.rank:
            return gradient
        tensorflow = importlib.import_module("tensorflow")
        axes = [*range(1, gradient.shape.rank)]
        (found,) = np.nonzero(np.asarray(tensorflow.reduce_any(gradient != 0, axis=axes)))
        if int(self._numpy(self.optimizer.iterations)) % 2 == 0 and not found.size:
            found = np.zeros(1, np.int64)  # of no rows, an embedding may give none, or zeros
        given = tensorflow.gather(gradient, found)
        values = tensorflow.concat([2 * given, -given], 0)
        indices = tensorflow.constant(np.concatenate([found, found]))
        return tensorflow.IndexedSlices(values, indices, tensorflow.shape(gradient))

    def weights(self) -> Arrays:
        """Return the variables."""
        return [self._numpy(w) for w in self._variables]

    def _slots(self) -> list[Any] | None:
        """Return the variables that hold V; None if they cannot be identified."""
        own = (self.optimizer.iterations, getattr(self.optimizer, "_learning_rate", None))
        slots = [v for v in self.optimizer.variables if all(v is not o for o in own)]
        shapes = [tuple(w.shape) for w in self._variables]
        named = [v for v in slots if "velocit" in v.path or "momentum" in v.path]
        for chosen in (slots, named):
            if [tuple(v.shape) for v in chosen] == shapes:
                return chosen
        return None

    def velocity(self) -> Arrays | None:
        """Return V from the optimizer's variables."""
        slots = self._slots()
        return None if slots is None else [self._numpy(v) for v in slots]

    def _scalars(self) -> dict[Hashable, Any]:
        slots = self._slots() or []
        every = enumerate([self.optimizer.iterations, *self.optimizer.variables])
        return {i: x for i, x in every if tuple(x.shape) == () and all(x is not v for v in slots)}

    def numbers(self) -> dict[Hashable, float]:
        """Return the optimizer's 0-d variables."""
        return {i: float(self._numpy(x)) for i, x in self._scalars().items()}

    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Assign the values to the variables."""
        _assign(self._variables, weights)
        _assign(self._slots() or [], velocity)
        scalars = self._scalars()
        for i, x in numbers.items():
            scalars[i].assign(self._keras.ops.cast(x, scalars[i].dtype))

    def assign(self, weights: Arrays) -> None:
        """Assign W to the variables."""
        _assign(self._variables, weights)


def _assign(variables: list[Any], arrays: Arrays) -> None:
    ops = importlib.import_module("keras").ops
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(ops.convert_to_tensor(array, dtype=variable.dtype))
