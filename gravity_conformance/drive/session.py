"""One optimizer at work on some weights, whatever its kind.

Guarantee: what an implementation is given are copies of its own, in the dtype of the weights.
All arrays are NumPy's; NumPy has no bfloat16, so those are float32 with the same numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from gravity_conformance.drive.spec import Arguments
from gravity_conformance.protocol import Mode, Task, Training

Arrays = list[np.ndarray]
T = TypeVar("T")


class CannotWriteError(Exception):
    """V and t of an optimizer are not to be had in its state; the message says what is missing."""


@dataclass(frozen=True)
class Setup:
    """What an optimizer is made of, and made of again where its state is loaded.

    Attributes:
        found: the implementation.
        arguments: what it offers.
        options: by our names; what is not offered is left out.
        dtype: "float16", "bfloat16", "float32" or "float64".
        schedule: the learning rates of all steps, where they change.
        begun: the number of steps before the first of the schedule.
        mode: how the step runs: a name of `Session.modes`, or what `Session.compiles` names.
        grouped: whether the parameters come in two groups, with one more that has no gradient.
    """

    found: Any
    arguments: Arguments
    options: Mapping[str, Any]
    dtype: str
    schedule: Sequence[float] | None = None
    begun: int = 0
    mode: str = "eager"
    grouped: bool = False

    def construct(self, *args: Any, **instead: Any) -> Any:
        """Call the implementation, with the options or what comes `instead` of them."""
        return self.found(*args, **self.arguments.keywords({**self.options, **instead}))


class Session(ABC):
    """An optimizer and the weights that it works on.

    Attributes:
        setup: what it was made of.
        optimizer: what the implementation constructed; a plain function constructs nothing.
        stateless: whether V and t are the caller's, so that there is no V₀ and no state.
        compiles: the mode in which users compile the step; None where they do not.
        groups: whether parameters may come in groups.
        steps_at_given_rate: whether a step takes its learning rate without a schedule.
        frameworks: distributions whose versions belong into a report.
    """

    stateless: ClassVar[bool] = False
    compiles: ClassVar[str | None] = None
    groups: ClassVar[bool] = False
    steps_at_given_rate: ClassVar[bool] = True
    frameworks: ClassVar[tuple[str, ...]] = ()
    setup: Setup
    optimizer: Any

    @staticmethod
    def modes() -> dict[str, Mode]:
        """Return the ways in which the step can run, by name."""
        return {"default": Mode("eager")}

    @staticmethod
    def train(setup: Setup, task: Task) -> Training:
        """Train with the framework's own gradients, as its users write it."""
        raise NotImplementedError("it has no gradients of its own")

    @abstractmethod
    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct the optimizer for copies of `weights`."""

    @abstractmethod
    def step(self, grads: Sequence[np.ndarray], lr: float | None = None) -> Arrays:
        """Make one step, at `lr` or at the rate that it has.

        Returns:
            What is left in the gradients that it was given.
        """

    @abstractmethod
    def weights(self) -> Arrays:
        """Return W."""

    @abstractmethod
    def velocity(self) -> Arrays | None:
        """Return V; None where the implementation does not show it (yet)."""

    @abstractmethod
    def reloaded(self) -> "Session":
        """Return a new session that goes on from the saved state of this one."""

    @abstractmethod
    def begin(self, velocity: Arrays, count: int) -> None:
        """Stand where V is `velocity` after `count` steps; W stays.

        Raises:
            CannotWriteError: where there is no such place in the state.
        """


class StateSession(Session):
    """An optimizer with a state of its own."""

    @abstractmethod
    def numbers(self) -> dict[Hashable, float]:
        """Return every single number in the state, by its place."""

    @abstractmethod
    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Put W, V and some of `numbers` in the place of what is there."""

    def begin(self, velocity: Arrays, count: int) -> None:
        """Write V, and every number that counts steps, into the state.

        Three steps with zero gradients bring the state about, and show which numbers count.
        """
        weights, shown = self.weights(), []
        for _ in range(3):
            self.step([np.zeros_like(w) for w in weights], self.setup.options["learning_rate"])
            shown.append(self.numbers())
        if self.velocity() is None:
            raise CannotWriteError("its state does not show V")
        after_1, after_2, after_3 = shown
        counters = {
            place: x + (count - 1) * (after_2[place] - x)
            for place, x in after_1.items()
            if place in after_2 and place in after_3
            if after_3[place] - after_2[place] == after_2[place] - x != 0
        }
        if not counters:
            raise CannotWriteError("no number in its state counts the steps")
        self.write(weights, velocity, counters)


def the_velocity(candidates: Mapping[str, T]) -> T | None:
    """Choose V among state arrays of the parameter's shape, by name if there are several."""
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    for name in ("velocity", "velocities", "v", "momentum"):
        if name in candidates:
            return candidates[name]
    return None
