"""The interface to one optimizer and its weights, the same for every kind.

Guarantee: an implementation gets its own copies of arrays, in the dtype of the weights. The arrays
that go in and out are NumPy's. NumPy has no bfloat16, so float32 arrays hold bfloat16 numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from gravity_conformance.drive.spec import Arguments
from gravity_conformance.protocol import Mode, Task, Training

Arrays = list[np.ndarray]
LATE = "overwrote a gradient of the step before"
IN_TURN = "in turn"  # the mode in which some steps are eager and others run in a graph
T = TypeVar("T")


class ClosureRefusedError(Exception):
    """An implementation raised an error before it called the closure."""


class CannotWriteError(Exception):
    """V and t cannot be written into the state of an optimizer; the message says why."""


@dataclass(frozen=True)
class Setup:
    """How an optimizer is constructed, at the start and again before its state is loaded.

    Attributes:
        found: the implementation.
        arguments: the arguments that it offers.
        options: by our names. Those that the implementation does not offer are ignored.
        dtype: "float16", "bfloat16", "float32" or "float64"; the widest of several.
        schedule: the learning rate of every step; None if it does not change.
        begun: the number of steps before the schedule starts.
        wide: the indices of the tensors that are float32 beside others in bfloat16.
        mode: how the step runs: a key of `Session.modes`, or the value of `Session.compiles`;
            Keras: also `IN_TURN`, where `apply` or `apply_gradients` gets the gradients, in turn.
        groups: torch: the number of tensors and the options of each group of parameters; empty
            means one group with `options`.
        strided: whether the memory of arrays is transposed, sliced or expanded.
        swapped: plain functions: whether arrays have the other byte order, as from some files.
        packed: torch, NumPy: whether all parameters lie in one buffer, all gradients in another.
        rows: whether gradients are given as some of their rows, with duplicates.
        reordered: Keras: whether the variables come in reverse order in every step, and those
            without a gradient do not come at all.
        excluded: Keras: the number of variables, from the first one, without weight decay.
        excluded_names: Keras: the names, in part, of variables without weight decay.
        again: torch, Keras: whether another optimizer has trained the parameters before.
        alike: Keras: whether all variables have the same name and path, as in two towers of layers.
        replicas: Keras: whether two replicas of a MirroredStrategy step, each with its own part of
            the gradient.
        limit: Keras: the constraint of every variable keeps |W| below it; None for no constraint.
        layers: the path of each tensor in its model, "layer/name"; empty if it does not matter.
        frozen: torch: whether every second parameter requires a gradient only after construction.
        array_rate: whether the learning rate is an array of the framework, not a Python number.
        rates_by: what gives the rates of the steps, one of `Session.rate_ways`, or "NumPy" for a
            function whose t, η and β are scalars of NumPy; empty means what most users have.
        tree: JAX: the structure of the parameters, one of `Session.trees`; empty means nested
            dicts and tuples.
        closure: torch: whether a closure computes the gradients.
        raising: torch: whether another closure raises an error before, in every second step.
        autocast: torch: whether steps run inside torch.autocast.
        scaled: torch: whether a gradient scaler steps, with gradients of a scaled loss; Keras: a
            LossScaleOptimizer, which leaves out a step before each step.
        host: JAX: whether gradients and parameters are arrays of NumPy; Keras: the gradients.
        alone: JAX: whether `update` gets no parameters; Keras: whether `apply` gets no variables.
        searches: JAX: whether `update` gets the arguments of a line search, too.
        jitted_init: JAX: whether `init` is compiled.
        donated: JAX: whether a compiled step gets the memory of the state and the parameters.
        unbuilt: Keras: whether the first step builds the optimizer.
        shared: the optimizer of another session, if users apply one optimizer to several states.
        more: constructor arguments that only this implementation or its framework has.
    """

    found: Any
    arguments: Arguments
    options: Mapping[str, Any]
    dtype: str
    schedule: Sequence[float] | None = None
    begun: int = 0
    wide: Collection[int] = ()
    mode: str = "eager"
    groups: Sequence[tuple[int, Mapping[str, Any]]] = ()
    strided: bool = False
    swapped: bool = False
    packed: bool = False
    rows: bool = False
    reordered: bool = False
    excluded: int = 0
    excluded_names: Sequence[str] = ()
    again: bool = False
    alike: bool = False
    replicas: bool = False
    limit: float | None = None
    layers: Sequence[str] = ()
    frozen: bool = False
    array_rate: bool = False
    rates_by: str = ""
    tree: str = ""
    closure: bool = False
    raising: bool = False
    autocast: bool = False
    scaled: bool = False
    host: bool = False
    alone: bool = False
    searches: bool = False
    jitted_init: bool = False
    donated: bool = False
    unbuilt: bool = False
    shared: Any = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The learning rate of the constructor."""
        return float(self.options["learning_rate"])

    def dtype_of(self, array: np.ndarray, index: int = 0) -> str:
        """Return the dtype that an array of the tensor with an index gets."""
        bfloat16 = self.dtype == "bfloat16" and index not in self.wide
        return "bfloat16" if bfloat16 else array.dtype.name

    def construct(self, *args: Any, **instead: Any) -> Any:
        """Call the implementation with the options; `instead` overrides some of them."""
        keywords = self.arguments.keywords({**self.options, **instead})
        return self.found(*args, **{**keywords, **self.more})


class Session(ABC):
    """An optimizer and the weights that it works on.

    Attributes:
        setup: how the optimizer was constructed.
        optimizer: the constructed object; a plain function has none.
        stateless: whether the caller keeps V and t. Then there is no V₀ and no state.
        compiles: the mode in which users compile the step; None if they do not.
        groups: whether the optimizer has groups of parameters.
        misses: whether the optimizer accepts None as a gradient.
        strides: whether users choose how arrays lie in memory.
        ways: the names of the methods by which users continue: from a state that they have saved
            and loaded, and so on.
        shares: whether users apply one optimizer to several states.
        rate_ways: the other ways in which users change the learning rate.
        rates_saved: those in which a saved configuration has the rates of the steps.
        trees: the other structures that users have for their parameters.
        keeps_rate: whether a learning rate that is set holds in later steps.
        fault: what a step did to what belongs to the caller; None if nothing.
        steps_at_given_rate: whether `step` uses its `lr`. If not, only a schedule changes the rate.
        frameworks: distributions whose versions belong in a report.
    """

    stateless: ClassVar[bool] = False
    compiles: ClassVar[str | None] = None
    groups: ClassVar[bool] = False
    misses: ClassVar[bool] = False
    strides: ClassVar[bool] = False
    ways: ClassVar[tuple[str, ...]] = ("reloaded",)
    shares: ClassVar[bool] = False
    rate_ways: ClassVar[tuple[str, ...]] = ()
    rates_saved: ClassVar[tuple[str, ...]] = ()
    trees: ClassVar[tuple[str, ...]] = ()
    keeps_rate: ClassVar[bool] = False
    steps_at_given_rate: ClassVar[bool] = True
    frameworks: ClassVar[tuple[str, ...]] = ()
    setup: Setup
    optimizer: Any
    fault: str | None = None

    @staticmethod
    def modes() -> dict[str, Mode]:
        """Return the ways in which the step can run, by name."""
        return {"default": Mode("eager")}

    @staticmethod  # noqa: B027  # most kinds need nothing
    def prepare() -> None:
        """Set the framework up for all sessions of this process, before the first one."""

    @staticmethod
    def in_half_precision() -> tuple[str, AbstractContextManager[None]] | None:
        """Return the setting that makes a half type the default dtype, if there is one."""
        return None

    @staticmethod
    def takes_rows() -> bool:
        """Return whether a gradient may be given as some of its rows."""
        return False

    @staticmethod
    def ways_in_one_call() -> tuple[str, ...]:
        """Return the ways in which users make several steps in one compiled call."""
        return ()

    @staticmethod
    def builds_in_a_graph() -> bool:
        """Return whether a step inside a graph may build the optimizer."""
        return False

    @abstractmethod
    def __init__(self, setup: Setup, weights: Sequence[np.ndarray]) -> None:
        """Construct the optimizer for copies of `weights`."""

    @abstractmethod
    def step(self, grads: Sequence[np.ndarray], lr: Any = None) -> Arrays:
        """Make one step at the learning rate `lr`; None keeps the current rate, or those of groups.

        With `groups`, `lr` may be a list of the rates of all groups. With `misses`, None in place
        of a gradient means that the tensor has none.

        Returns:
            The gradients that were given, as the step left them.
        """

    @abstractmethod
    def weights(self) -> Arrays:
        """Return W."""

    @abstractmethod
    def assign(self, weights: Arrays) -> None:
        """Overwrite W, as users do who load weights or swap averaged ones in."""

    @abstractmethod
    def velocity(self) -> Arrays | None:
        """Return V; None if the state does not show it (yet)."""

    @abstractmethod
    def reloaded(self) -> "Session":
        """Save the state, and return a new session that continues from it."""

    @abstractmethod
    def begin(self, velocity: Arrays, count: int) -> None:
        """Set V to `velocity` and t to its value after `count` steps; W stays.

        Raises:
            CannotWriteError: if the state has no place for V or t.
        """


class StateSession(Session):
    """An optimizer of a framework, with a state of its own."""

    @staticmethod
    @abstractmethod
    def train(setup: Setup, task: Task) -> Training:
        """Train with the framework's own gradients, as its users write it."""

    @abstractmethod
    def numbers(self) -> dict[Hashable, float]:
        """Return every scalar in the state, by its place."""

    @abstractmethod
    def write(self, weights: Arrays, velocity: Arrays, numbers: Mapping[Hashable, float]) -> None:
        """Overwrite W, V and the scalars that `numbers` contains."""

    def begin(self, velocity: Arrays, count: int) -> None:
        """Write V, and every number that counts steps, into the state.

        Three steps with zero gradients create the state, and show which numbers count steps.
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


def repeats(array: np.ndarray) -> bool:
    """Return whether all rows of an array are equal, so that one row in memory can hold them."""
    if len(array) < 2 or (array != array[:1]).any():
        return False
    return bool((np.signbit(array) == np.signbit(array[:1])).all())  # -0 equals 0


def the_velocity(candidates: Mapping[str, T]) -> T | None:
    """Choose V among state arrays of the parameter's shape, by name if there are several."""
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    for name in ("velocity", "velocities", "v", "momentum"):
        if name in candidates:
            return candidates[name]
    return None
