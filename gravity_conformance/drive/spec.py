"""Find an implementation, what kind it is, and what it calls its hyper-parameters."""

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gravity_conformance._guard import ANYTHING, one_line

Kind = Literal["torch", "optax", "keras", "plain"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# What implementations are known to call what `gravity_core.Gravity` calls by the first name.
ALIASES = {
    "learning_rate": ("learning_rate", "lr", "eta", "step_size", "l"),
    "alpha": ("alpha", "a"),
    "beta": ("beta", "beta1", "beta_1", "b1", "b"),
    "weight_decay": ("weight_decay", "wd", "decay", "weight_decay_rate"),
    "maximize": ("maximize", "maximise"),
    "velocity_std": ("velocity_std", "v_std", "v0_std", "std", "sigma"),
    "seed": ("seed", "random_seed", "rng_seed"),
    "first_step": ("first_step",),
}
HINT = ", or --kind must say which"  # of `gravity conform`
ARGUMENTS = ("w", "v", "g", "t", "lr", "beta")


class SpecError(Exception):
    """There is nothing that could be checked; the message is for the user."""


def load(spec: str) -> Any:
    """Return what ``module:attribute`` or ``path.py:attribute`` names.

    Raises:
        SpecError: with the reason in one line.
    """
    place, colon, attribute = spec.rpartition(":")
    if not colon or not place or not attribute:
        raise SpecError(f"SPEC must be module:attribute or path.py:attribute, got {spec!r}")
    try:
        module = _module(place)
    except ANYTHING as error:
        raise SpecError(f"{place} cannot be imported: {one_line(error)}") from error
    found = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except ANYTHING as error:
            raise SpecError(f"{place} has no {attribute}: {one_line(error)}") from error
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())  # as `python -m` does
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {place}")
    sys.path.insert(0, str(path.parent))  # as `python path.py` does
    # A file may be called as a module that is in use, json.py for one.
    name = str(path) if path.stem in sys.modules else path.stem
    file = importlib.util.spec_from_file_location(name, path)
    assert file is not None
    assert file.loader is not None
    module = importlib.util.module_from_spec(file)
    sys.modules[name] = module
    file.loader.exec_module(module)
    return module


def recognise(found: Any) -> Kind:
    """Return the kind of what a SPEC names; nothing is imported for it.

    Raises:
        SpecError: if it is not one of them.
    """
    made = found.func if isinstance(found, functools.partial) else found
    if isinstance(made, type):
        for base in made.__mro__:
            top = base.__module__.partition(".")[0]
            if base.__name__ == "Optimizer" and top == "torch":
                return "torch"
            if base.__name__ in ("Optimizer", "BaseOptimizer") and top == "keras":
                return "keras"
    if not callable(found):
        what = "an optax transformation, not the function that makes it"
        has_both = hasattr(found, "init") and hasattr(found, "update")
        raise _wrong_kind(what if has_both else f"of type {type(found).__name__}")
    if isinstance(made, type):
        raise _wrong_kind(f"the class {made.__name__}")
    named = parameters(found)
    places = positional(found)
    required = [name for name in places if named[name].default is inspect.Parameter.empty]
    # w, v, g and t have no sensible defaults, and no factory asks for four arguments.
    if len(places) >= len(ARGUMENTS) and len(required) >= 4:
        return "plain"
    ours = {alias for aliases in ALIASES.values() for alias in aliases}
    anything = any(p.kind is p.VAR_POSITIONAL for p in named.values())
    if (
        "optax" in sys.modules
        and not anything
        and (len(required) <= 1 or ours.issuperset(required))
    ):
        return "optax"
    raise _wrong_kind(f"a function of ({', '.join(map(str, named.values()))})")


def _wrong_kind(what: str) -> SpecError:
    return SpecError(
        "SPEC must be a torch.optim.Optimizer class, an optax transformation factory, a Keras "
        f"optimizer class or a function ({', '.join(ARGUMENTS)}) -> (w, v){HINT}; it is {what}"
    )


def positional(found: Any) -> list[str]:
    """Return the names of the parameters that can be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in parameters(found).items() if p.kind in kinds]


def parameters(found: Any) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a call, with those that a class hands to its bases.

    A function that is not written in Python may have no signature, and then has none of them.
    """
    try:
        named = dict(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        return {}
    for base in found.__mro__[1:] if isinstance(found, type) else ():
        if not any(p.kind is p.VAR_KEYWORD for p in named.values()) or base is object:
            break
        if (construct := vars(base).get("__init__")) is None:
            continue
        named = {n: p for n, p in named.items() if p.kind is not p.VAR_KEYWORD}
        inherited = inspect.signature(construct).parameters
        named |= {n: p for n, p in list(inherited.items())[1:] if n not in named}
    return named


@dataclass
class Arguments:
    """What an implementation calls our hyper-parameters, and what else it is to be given.

    Attributes:
        names: ours → theirs, for what it offers.
        extra: keyword arguments given to it as they are.
        fixed: ours → value, for those among `extra`.
    """

    names: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)

    def keywords(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments for `options`; what it does not offer is left out."""
        ours = {self.names[name]: value for name, value in options.items() if name in self.names}
        return ours | self.extra


def arguments(found: Any, given: Mapping[str, str]) -> Arguments:
    """Find the names by the signature and `given`, name → value as --kw has them.

    A value ``{beta}`` says that what we call beta goes by this name; others are Python literals,
    or strings.
    """
    offered = {n for n, p in parameters(found).items() if p.kind is not p.VAR_POSITIONAL}
    result = Arguments()
    for ours, aliases in ALIASES.items():
        theirs = next((alias for alias in aliases if alias in offered), None)
        if theirs is not None:
            result.names[ours] = theirs
    for name, value in given.items():
        if value.startswith("{") and value[1:-1] in ALIASES:
            result.names[value[1:-1]] = name
            continue
        try:
            result.extra[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            result.extra[name] = value
    for ours in [ours for ours, theirs in result.names.items() if theirs in result.extra]:
        result.fixed[ours] = result.extra[result.names.pop(ours)]
    return result
