"""The interface of the backends that ``gravity parity`` compares.

A backend is any object; a module will do. `gravity parity` finds it through the entry-point group
``gravity.backends`` of an installed distribution:

    [project.entry-points."gravity.backends"]
    mine = "my_package.gravity_backend"

A backend has one of two forms:

- A `Declaration` names an optimizer of PyTorch, optax or Keras. ``gravity parity`` runs it. This
  is a complete backend:

      from my_package import Gravity as optimizer

      kind = "torch"

- A `Backend` has five functions, for every other optimizer. It exchanges only NumPy arrays, in
  native byte order and of no subclass. Its inputs are read-only copies, which it may keep. It may
  reuse yielded arrays for the next step. `gravity_conformance.parity.numpy_backend` is an example
  in fifty lines.

A backend draws V₀ as `gravity_core.velocity` describes. It runs in a process of its own, and its
output is not shown. If its import raises ModuleNotFoundError for another package, it is listed as
not installed. Any other error is reported as its failure.

A backend of either form may have ``devices()``, which returns the names of the devices that it
sees. ``gravity versions`` prints them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Kind = Literal["eager", "compiled"]


class Mode(NamedTuple):
    """One way in which a backend can run its optimizer.

    Attributes:
        kind: whether the update is run operation by operation or compiled as a whole.
        unavailable: why it cannot run on this machine; None if it can.
        options: arguments for the constructor of a declared optimizer.
    """

    kind: Kind
    unavailable: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Replay:
    """A recorded gradient sequence, to be fed to an optimizer.

    Attributes:
        weights: W₀ of each tensor, float32 or float64; not to be written to.
        gradients: for every step the gradient of each tensor, in the weights' dtype.
        options: keyword arguments by the names of `gravity_core.Gravity` (``learning_rate``,
            ``alpha``, ``beta``, ``weight_decay``, ``velocity_std``, ``seed``, ``first_step``);
            missing ones have their defaults.
    """

    weights: Sequence[np.ndarray]
    gradients: Sequence[Sequence[np.ndarray]]
    options: Mapping[str, Any] = field(default_factory=dict)


class Step(NamedTuple):
    """The state after a step: V and W of each tensor, in the replay's order and dtype.

    Attributes:
        velocity: V.
        weights: W.
        begun: in the first yielded state, the number of steps with zero gradients before it. It
            is 0 for a backend. An implementation that ``--also`` names may show V only after a
            step.
    """

    velocity: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]
    begun: int = 0


@dataclass(frozen=True)
class Task:
    """A classifier to train: a perceptron with one hidden layer, ReLU and softmax cross-entropy.

    The logits of a batch are ``relu(x @ W1 + b1) @ W2 + b2``; the loss is the mean of the
    cross-entropies over the batch.

    Attributes:
        weights: W₀ as [W1, b1, W2, b2]; not to be written to.
        x_train: training images, shape (n, features), in the weights' dtype.
        y_train: their labels, integers, shape (n,).
        x_test: test images.
        y_test: their labels.
        epochs: for every epoch the indices of its batches, shape (batches, batch size).
        options: as in `Replay`.
    """

    weights: Sequence[np.ndarray]
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    epochs: Sequence[np.ndarray]
    options: Mapping[str, Any] = field(default_factory=dict)


class Training(NamedTuple):
    """The result of training on a `Task`.

    Attributes:
        losses: for every epoch the mean of its batches' losses, each taken before its update.
        weights: the trained weights, as in the task.
        predictions: the predicted label of every test image.
    """

    losses: list[float]
    weights: list[np.ndarray]
    predictions: np.ndarray


class Declaration(Protocol):
    """The attributes of a backend that names an optimizer.

    It may also have:

    - ``modes()``, as in `Backend`. Without it, the modes are "default" (torch); "eager" and "jit"
      (optax); "eager", "function" and "xla" (keras). For optax and keras, no other names are valid.
    - ``export_state(optimizer)``, which returns an object whose ``velocities`` are V₀. It is
      called if the state does not show V before the first step.
    """

    @property
    def optimizer(self) -> Any:
        """The optimizer class (torch, keras), or the function that makes one (optax)."""

    @property
    def kind(self) -> Literal["torch", "optax", "keras"]:
        """The framework of `optimizer`."""


class Backend(Protocol):
    """The functions that a backend provides."""

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries that matter, by distribution name."""

    def dtypes(self) -> tuple[str, ...]:
        """Return the dtypes that it supports: "float32", "float64" or both."""

    def modes(self) -> dict[str, Mode]:
        """Return the ways in which it can replay, by name."""

    def replay(self, replay: Replay, mode: str) -> Iterator[Step]:
        """Yield the state before the first step (V₀, W₀), and then after every step."""

    def train(self, task: Task) -> Training:
        """Train with the framework's own gradients, as its users write it."""
