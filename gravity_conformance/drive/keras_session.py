"""The sessions of `keras.optimizers.Optimizer` classes."""

import importlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.drive.session import Arrays, Setup, StateSession


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
