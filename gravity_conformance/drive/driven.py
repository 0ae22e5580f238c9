"""An implementation of a known kind as a backend of ``gravity parity``.

Guarantee: it steps through the sessions of `gravity conform`, so both commands run the same code.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gravity_conformance.drive import drivers
from gravity_conformance.drive import spec as specs
from gravity_conformance.drive.drivers import Driver, driver
from gravity_conformance.drive.session import StateSession
from gravity_conformance.protocol import Backend, Declaration, Mode, Replay, Step, Task, Training
from gravity_core import hyperparameters as hp
from gravity_core.reference import Gravity


@dataclass(frozen=True)
class Driven:
    """A `protocol.Backend` that runs an implementation through its driver.

    Attributes:
        driver: starts the implementation.
        declared: the backend's declaration; None for a SPEC.
    """

    driver: Driver
    declared: Declaration | None = None

    @property
    def takes_first_step(self) -> bool:
        """Whether the caller can choose t of the first step."""
        return self.driver.stateless or "first_step" in self.driver.arguments.names

    def versions(self) -> dict[str, str]:
        """Return the versions of the framework and of the implementation's package."""
        return self.driver.versions()

    def devices(self) -> list[str]:
        """Return the names of the devices, if the declaration lists them."""
        return list(getattr(self.declared, "devices", list)())

    def dtypes(self) -> tuple[str, ...]:
        """Return float32 and float64."""
        return ("float32", "float64")

    def modes(self) -> dict[str, Mode]:
        """Return the declared modes, or those of the kind.

        Raises:
            ValueError: for a declared mode that the kind does not have.
        """
        own = self.driver.session.modes()
        modes: dict[str, Mode] = getattr(self.declared, "modes", lambda: own)()
        for name in modes:
            if name not in own and "default" not in own:
                raise ValueError(f"modes() must return only {', '.join(own)}, got {name!r}")
        return modes

    def replay(self, replay: Replay, mode: str) -> Iterator[Step]:
        """Yield the first state that shows V, and then the state after every step.

        Raises:
            ValueError: if no state shows V.
        """
        extra = dict(self.modes()[mode].options)
        arguments = dataclasses.replace(self.driver.arguments, extra=extra)
        start = dataclasses.replace(self.driver, arguments=arguments).start
        session = start(replay.weights, _in_full(replay.options), mode=mode)
        if self.driver.stateless:  # the caller keeps V
            reference = Gravity(**replay.options)
            reference.init([w.copy() for w in replay.weights])
            session.begin(reference.velocity or [], 0)
        velocity, begun = session.velocity(), 0
        if velocity is None and (export := getattr(self.declared, "export_state", None)):
            velocity = export(session.optimizer).velocities
        if velocity is None:
            session.step([np.zeros_like(w) for w in replay.weights])
            velocity, begun = session.velocity(), 1
        if velocity is None:
            raise ValueError("its state does not show V; `gravity conform` judges it by W alone")
        yield Step(velocity, session.weights(), begun)
        for gradients in replay.gradients:
            session.step(gradients)
            yield Step(session.velocity() or [], session.weights())

    def train(self, task: Task) -> Training:
        """Train with the framework's own gradients, as its users do."""
        session = self.driver.session
        assert issubclass(session, StateSession)  # a plain function has no gradients of its own
        setup = self.driver.setup(_in_full(task.options), task.weights[0].dtype.name)
        return session.train(setup, task)


def _in_full(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return every hyper-parameter, because the implementation's defaults may differ from ours."""
    return {name: x for name, x in {**hp.DEFAULTS, **options}.items() if x is not None}


def as_backend(found: Any) -> Backend:
    """Return the backend that a declaration describes, or the object itself if it is a backend."""
    if hasattr(found, "replay") or not hasattr(found, "optimizer"):
        return cast(Backend, found)
    arguments = specs.arguments(found.optimizer, {})
    return Driven(driver(found.optimizer, found.kind, arguments), found)


def read(spec: str) -> Driven:
    """Import the implementation that a SPEC names, and return it as a backend.

    Raises:
        SpecError: if it cannot be imported or is of no known kind.
    """
    try:
        return Driven(drivers.read(spec))
    except specs.SpecError as error:
        raise specs.SpecError(str(error).replace(specs.HINT, "")) from error
