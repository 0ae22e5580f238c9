"""The driver of an implementation. It starts sessions, whatever the kind.

Guarantee: a framework is imported only for an implementation of its kind.
"""

import contextlib
import functools
import importlib.metadata
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gravity_conformance._guard import ANYTHING, one_line
from gravity_conformance.drive.keras_session import KerasSession
from gravity_conformance.drive.optax_session import OptaxSession
from gravity_conformance.drive.plain_session import PlainSession
from gravity_conformance.drive.session import Session, Setup
from gravity_conformance.drive.spec import (
    ARGUMENTS,
    Arguments,
    Kind,
    SpecError,
    load,
    positional,
    recognise,
)
from gravity_conformance.drive.spec import arguments as arguments_of
from gravity_conformance.drive.torch_session import TorchSession

SESSIONS: dict[Kind, type[Session]] = {
    "torch": TorchSession,
    "optax": OptaxSession,
    "keras": KerasSession,
    "plain": PlainSession,
}


@dataclass(frozen=True)
class Driver:
    """Starts sessions of one implementation.

    Attributes:
        found: the implementation.
        kind: its kind.
        arguments: the arguments that it offers.
    """

    found: Any
    kind: Kind
    arguments: Arguments

    @property
    def session(self) -> type[Session]:
        """The session class of its kind."""
        return SESSIONS[self.kind]

    @property
    def stateless(self) -> bool:
        """Whether the caller keeps V and t."""
        return self.session.stateless

    def versions(self) -> dict[str, str]:
        """Return the versions of the framework and of the implementation's package."""
        package = str(getattr(self.found, "__module__", "")).partition(".")[0]
        versions = {}
        for name in (*self.session.frameworks, package):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
                versions[name] = importlib.metadata.version(name)
        return versions

    def setup(self, options: Mapping[str, Any], dtype: str, **how: Any) -> Setup:
        """Return the setup of an optimizer with these options."""
        return Setup(self.found, self.arguments, options, dtype, **how)

    def start(
        self,
        weights: Sequence[np.ndarray],
        options: Mapping[str, Any],
        *,
        bfloat16: bool = False,
        **how: Any,
    ) -> Session:
        """Construct the optimizer for copies of `weights`.

        Args:
            weights: W₀.
            options: by our names. Those that the implementation does not offer are ignored.
            bfloat16: whether the float32 arrays stand for bfloat16.
            how: more fields of `Setup`. ``fast=True`` selects the mode in which users compile the
                step, if there is one.
        """
        if how.pop("fast", False) and self.session.compiles is not None:
            how["mode"] = self.session.compiles
        widest = max((w.dtype for w in weights), key=lambda dtype: dtype.itemsize)
        dtype = "bfloat16" if bfloat16 else widest.name
        return self.session(self.setup(options, dtype, **how), weights)


def driver(found: Any, kind: Kind, arguments: Arguments) -> Driver:
    """Return the driver of a kind.

    Raises:
        SpecError: for a function that cannot be called with the six arguments.
    """
    if kind == "plain":  # The six arguments are passed by position, whatever their names.
        first = positional(found)[: len(ARGUMENTS)]
        names = {o: theirs for o, theirs in arguments.names.items() if theirs not in first}
        arguments = replace(arguments, names=names)
        try:
            signature = inspect.signature(found)
        except (TypeError, ValueError):  # not written in Python
            signature = None
        try:
            if signature is not None:
                signature.bind(*ARGUMENTS, **arguments.extra)
        except TypeError as error:
            raise SpecError(
                f"it cannot be called as a plain function (see --kw): {one_line(error)}"
            ) from error
        if sorted(first) == sorted(ARGUMENTS):
            found = _in_order(found, first)
    return Driver(found, kind, arguments)


def read(spec: str, kind: Kind | None = None, given: Mapping[str, str] | None = None) -> Driver:
    """Import the implementation that a SPEC names, and return its driver.

    Args:
        spec: as of `spec.load`.
        kind: its kind; detected if None.
        given: constructor arguments, as of `spec.arguments`.

    Raises:
        SpecError: if it cannot be imported or inspected, or is of no known kind.
    """
    found = load(spec)
    try:
        chosen = (kind if callable(found) else None) or recognise(found)
        return driver(found, chosen, arguments_of(found, given or {}))
    except SpecError:
        raise
    except ANYTHING as error:
        raise SpecError(f"SPEC cannot be inspected: {one_line(error)}") from error


def _in_order(found: Any, names: Sequence[str]) -> Any:
    """Return a function that takes `ARGUMENTS` in order and passes them in the order of `names`."""
    places = [ARGUMENTS.index(name) for name in names]

    @functools.wraps(found)
    def in_order(*six: Any, **keywords: Any) -> Any:
        return found(*(six[k] for k in places), **keywords)

    return in_order
