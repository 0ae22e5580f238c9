"""The sessions of `keras.optimizers.Optimizer` classes: how users train, save and change them."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from gravity_conformance.drive.keras_steps import (
    REPLICAS,
    KerasSteps,
    is_on_tensorflow,
    wide_enough,
)
from gravity_conformance.drive.session import Arrays, Setup
from gravity_conformance.protocol import Task, Training

_LOOP = "in tf.while_loop"


class KerasSession(KerasSteps):
    """A `keras.optimizers.Optimizer` class, and how its users train with it."""

    ways: ClassVar[tuple[str, ...]] = ("reloaded", "rolled_back", "built_again")

    @staticmethod
    def ways_in_one_call() -> tuple[str, ...]:
        """Return tf.function, in which an unrolled loop makes several steps, or tf.while_loop."""
        return ("in one tf.function", _LOOP) if is_on_tensorflow() else ()

    @staticmethod
    def train(setup: Setup, task: Task) -> Training:
        """Train a Keras model with its compiled train step."""
        keras, losses = importlib.import_module("keras"), []
        (features, hidden), (_, classes) = task.weights[0].shape, task.weights[2].shape
        with wide_enough(setup.dtype):
            model = keras.Sequential(
                [
                    keras.Input((features,)),
                    keras.layers.Dense(hidden, activation="relu", dtype=setup.dtype),
                    keras.layers.Dense(classes, dtype=setup.dtype),
                ]
            )
            model.set_weights(task.weights)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer=setup.construct(), loss=loss)
            for batches in task.epochs:
                order = batches.reshape(-1)
                history = model.fit(
                    task.x_train[order],
                    task.y_train[order],
                    batch_size=batches.shape[1],
                    shuffle=False,
                    verbose=0,
                )
                losses.append(float(history.history["loss"][0]))
            predictions = model.predict(task.x_test, verbose=0).argmax(axis=1)
            return Training(losses, model.get_weights(), predictions)

    def in_one_call(
        self, gradients: Sequence[Arrays], way: str
    ) -> list[tuple[Arrays | None, Arrays]]:
        """Make all steps in one compiled call, and return V and W after each."""
        slots = self._slots()

        def train(given: Any) -> Any:
            states = []
            for grads in given:
                self._apply(grads)
                kept = [*self._variables, *(slots or [])]
                states.append([self._keras.ops.copy(x) for x in kept])
            return states

        def loop(given: Any) -> Any:
            kept = [*self._variables, *(slots or [])]
            stacked = [tensorflow.stack(x) for x in zip(*given, strict=True)]
            states = [
                tensorflow.TensorArray(x.dtype, len(gradients), element_shape=x.shape) for x in kept
            ]

            def body(k: Any, states: Any) -> Any:
                self._apply([tensorflow.gather(g, k) for g in stacked])
                pairs = zip(states, kept, strict=True)
                return k + 1, [s.write(k, self._keras.ops.copy(x)) for s, x in pairs]

            _, states = tensorflow.while_loop(lambda k, _: k < len(gradients), body, (0, states))
            return [*zip(*(tensorflow.unstack(s.stack()) for s in states), strict=True)]

        tensorflow, number = importlib.import_module("tensorflow"), len(self._variables)
        given = [[self._tensor(g, i) for i, g in enumerate(grads)] for grads in gradients]
        with wide_enough(self.setup.dtype):
            found = tensorflow.function(loop if way == _LOOP else train)(given)
        states = [[self._numpy(x) for x in state] for state in found]
        return [(s[number:] if slots else None, s[:number]) for s in states]

    def rolled_back(self) -> "KerasSession":
        """Save the variables, make a step, and load the variables again."""
        store: dict[str, Any] = {}
        weights = self.weights()
        self.optimizer.save_own_variables(store)
        with wide_enough(self.setup.dtype):
            self.optimizer.apply([self._keras.ops.ones_like(v) for v in self._variables])
        self.write(weights, self.velocity() or [], {})
        self.optimizer.load_own_variables(store)
        return self

    def built_again(self) -> "KerasSession":
        """Build the optimizer again, make a step, and set its variables as they were before."""
        self.optimizer.build(self._variables)
        kept, weights = [self._numpy(v) for v in self.optimizer.variables], self.weights()
        with wide_enough(self.setup.dtype):
            self.optimizer.apply([self._keras.ops.ones_like(v) for v in self._variables])
        self.assign(weights)
        self.optimizer.set_weights(kept)
        return self

    def change(self, later: Mapping[str, Any]) -> None:
        """Change attributes of the base class."""
        for name, value in later.items():
            setattr(self.optimizer, name, value)

    def finalised(self) -> Arrays:
        """End the training as the trainer does, and return the variables."""
        self.optimizer.finalize_variable_values(self._variables)
        return self.weights()

    def configured(self) -> "KerasSession":
        """Return a training by an optimizer with the same configuration."""
        with wide_enough(self.setup.dtype):
            made = type(self.optimizer).from_config(self.optimizer.get_config())
        return KerasSession(replace(self.setup, shared=made), self.weights())

    def reloaded(self) -> "KerasSession":
        """Save and load the configuration and the variables, as a saved model does."""
        store: dict[str, Any] = {}
        self.optimizer.save_own_variables(store)
        session = self.configured()
        session.optimizer.load_own_variables(store)
        return session

    @staticmethod
    def has_replicas() -> bool:
        """Return whether TensorFlow, which Keras runs on, has the devices of the replicas."""
        config = importlib.import_module("tensorflow").config
        return len(config.list_logical_devices("CPU")) >= len(REPLICAS)

    def disagrees(self) -> bool:
        """Return whether the replicas have different variables."""
        results = self._strategy.experimental_local_results
        kept = [results(w.value) for w in self._variables]
        return any(len({np.array(x).tobytes() for x in values}) > 1 for values in kept)
