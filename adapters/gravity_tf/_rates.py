"""The learning rates of Keras: numbers, tensors, schedules and callables, and their checks.

Guarantee: only `checked_rate` and a `CallableRate` call a callable.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import ops

from gravity_core import hyperparameters as hp
from gravity_tf._tensors import check_fits, is_compiling, known, to_numpy


def is_schedule(value: Any) -> bool:
    """Return whether `value` is a schedule of Keras, which only computes."""
    return isinstance(value, keras.optimizers.schedules.LearningRateSchedule)


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a tensor or a variable."""
    return isinstance(value, keras.Variable) or ops.is_tensor(value)


def exact(number: Any) -> Any:
    """Return a float in the form that Keras converts to a tensor without another rounding.

    Keras takes a plain float through float32 on TensorFlow, and through floatx on torch, but not an
    np.float64. That is a float, too, so json can write it. torch.compile takes plain floats only.
    """
    takes = keras.backend.backend() in ("tensorflow", "torch") and not is_compiling()
    return np.float64(number) if takes and isinstance(number, float) else number


def checked_number(rate: Any) -> Any:
    """Return a rate that is no tensor in the form of `exact`; raise if no step can take it."""
    number = hp.validate(learning_rate=rate)["learning_rate"]
    check_rate_fits(number, keras.config.floatx())
    return exact(number)


def check_known_rate(rate: Any) -> None:
    """Raise if the host has the value of a tensor, and it is negative or not finite."""
    number = known(rate) if is_tensor(rate) else None  # AutoGraph does not know :=
    if number is not None:
        hp.validate(learning_rate=number)


def checked_rate(learning_rate: Any) -> float | None:
    """Return a learning rate, or that of step 0, as a number; None if only a graph knows it.

    Raises:
        ValueError: if it is negative, not finite or not a number.
    """
    if is_schedule(learning_rate):
        start = ops.convert_to_tensor(0, dtype="int")  # a tensor, as Keras passes it
        learning_rate = learning_rate(start)
    elif callable(learning_rate):
        learning_rate = learning_rate()
    if hasattr(learning_rate, "dtype") and not isinstance(learning_rate, (np.ndarray, np.generic)):
        try:
            learning_rate = to_numpy(learning_rate)
        except (TypeError, NotImplementedError):  # it is traced, or has no memory
            return None
        if learning_rate.size == 1 and hp.may_be_a_number(learning_rate):
            learning_rate = hp.as_float(learning_rate)
    hp.validate(learning_rate=learning_rate)
    return hp.as_float(learning_rate)


def check_rate_fits(rate: Any, dtype: str) -> None:
    """Raise if a finite learning rate overflows the dtype of the variable that will store it."""
    check_fits("learning_rate", rate, dtype)


class CallableRate:
    """A callable as Keras receives it: what it returns is checked, and one step asks it once.

    Keras asks again for every variable that decays, when others have moved already. A context
    variable carries the answer through Keras to the end of the step, in the thread that takes it.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __call__(self) -> Any:
        """Return the rate of the step that `asked_once` surrounds, or else ask the function.

        Raises:
            ValueError: if the rate is negative, not finite or not a number.
        """
        if is_compiling():  # the compiler of torch may not know context variables
            return self._ask()
        owner, answers = _STEP.get()
        if owner is not self:
            return self._ask()
        if not answers:
            answers.append(self._ask())
        return answers[0]

    def _ask(self) -> Any:
        rate = self.function()
        if not is_tensor(rate):
            return checked_number(rate)
        check_known_rate(rate)
        return rate

    @contextmanager
    def asked_once(self) -> Iterator[None]:
        """Return a context in which the first answer is the only one."""
        token = _STEP.set((self, []))
        try:
            yield
        finally:
            _STEP.reset(token)

    def get_config(self) -> dict[str, Any]:
        """Return nothing: Keras asks what it serializes, and Gravity serializes the function."""
        return {}


_STEP: ContextVar[tuple[CallableRate | None, list[Any]]] = ContextVar("step", default=(None, []))
