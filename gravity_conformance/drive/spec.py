"""Find an implementation, its kind, and its names for the hyper-parameters."""

import ast
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, Literal, get_args

from gravity_conformance._guard import ANYTHING, one_line

Kind = Literal["torch", "optax", "keras", "plain"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PRIVATE = "_spec_"  # starts the names of modules that are SPEC's files
# No module of a SPEC takes the place of these.
FRAMEWORKS = ("numpy", "torch", "jax", "optax", "tensorflow", "keras")

# The argument of `gravity_core.Gravity`, and the names that implementations use for it.
ALIASES = {
    "learning_rate": ("learning_rate", "lr", "eta", "step_size", "l"),
    "alpha": ("alpha", "a"),
    "beta": ("beta", "beta1", "beta_1", "b1", "b", "momentum"),
    "weight_decay": ("weight_decay", "wd", "decay", "weight_decay_rate"),
    "maximize": ("maximize", "maximise"),
    "velocity_std": ("velocity_std", "v_std", "v0_std", "std", "sigma"),
    "seed": ("seed", "random_seed", "rng_seed"),
    "first_step": ("first_step",),
}
HINT = " (or select the kind by --kind)"  # an option of `gravity conform` alone
ARGUMENTS = ("w", "v", "g", "t", "lr", "beta")


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles a file at each import.

    Bytecode is found by the time and size of a file, which another file in its place can share.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class SpecError(Exception):
    """Nothing can be checked; the message is for the user."""


def place_and_attribute(spec: str) -> tuple[str, str]:
    """Return the module or file, and the attribute, that a SPEC names.

    Raises:
        SpecError: if it names none, or a file that is not there.
    """
    place, colon, attribute = spec.rpartition(":")
    is_relative = place.startswith(".") and not place.endswith(".py")  # to no package
    if not colon or not place or not attribute or is_relative:
        raise SpecError(f"SPEC must be module:attribute or path.py:attribute, got {spec!r}")
    if place.endswith(".py") and not Path(place).is_file():
        raise SpecError(f"there is no file {place}")
    return place, attribute


def files(spec: str) -> list[Path]:
    """Return the files that a SPEC names, without importing any of them.

    A package has one for each module that leads to the named one. If a module is in the current
    folder and installed, too, both are there.
    """
    place = spec.rpartition(":")[0]
    if place.endswith(".py"):
        return [Path(place)]
    top, *names = place.split(".")
    if not top:
        return []  # `place_and_attribute` refuses it
    starts = (importlib.machinery.PathFinder.find_spec(top, [""]), _found(top, None))
    return [file for start in starts for file in _files_along(start, names)]


def _files_along(found: Any, names: list[str]) -> Iterator[Path]:
    while found is not None:
        if found.has_location:
            yield Path(found.origin)
        if not names or found.submodule_search_locations is None:
            return
        name, *names = names
        found = _found(f"{found.name}.{name}", found.submodule_search_locations)


def _found(name: str, folders: Any) -> Any:
    """Return the spec of a module; `importlib.util.find_spec` imports the package around it."""
    found = (finder.find_spec(name, folders) for finder in sys.meta_path)
    try:
        return next(filter(None, found), None)
    except KeyError:  # a folder without __init__.py in another, which is not imported
        inner = [os.path.join(folder, name.rpartition(".")[2]) for folder in folders]
        return SimpleNamespace(name=name, has_location=False, submodule_search_locations=inner)


def load(spec: str) -> Any:
    """Return what ``module:attribute`` or ``path.py:attribute`` names.

    Raises:
        SpecError: with the reason in one line.
    """
    place, attribute = place_and_attribute(spec)
    try:
        module = _module(place)
    except ANYTHING as error:
        raise SpecError(f"{place} cannot be imported: {one_line(error)}") from error
    found = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except ANYTHING as error:
            if type(error) is AttributeError:  # it says the same
                raise SpecError(f"{place} has no {attribute}") from error
            own = module.__name__
            why = one_line(error).replace(own, own.removeprefix(_PRIVATE))
            raise SpecError(f"{place} has no {attribute}: {why}") from error
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return _named(place)
    path = Path(place).resolve()
    _add_last(str(path.parent))
    # Not under its own name, which may be that of a library: torch.py, for example.
    name = f"{_PRIVATE}{path.stem}"
    return _executed(importlib.util.spec_from_file_location(name, path))


def _named(name: str) -> Any:
    """Import a module as ``python -m`` does, which looks into the current folder first.

    But there, only the named package itself hides one that is installed.
    """
    top, folder = name.partition(".")[0], os.getcwd()
    _add_last(folder)
    if not {top} & {*sys.modules, *sys.stdlib_module_names, *FRAMEWORKS}:
        found = importlib.machinery.PathFinder.find_spec(top, [folder])
        if found is not None and found.origin is not None:  # a file
            _executed(found)
    return importlib.import_module(name)


def _executed(found: Any) -> Any:
    """Import a file of a SPEC from its source."""
    if type(found.loader) is importlib.machinery.SourceFileLoader:  # not one of an import hook
        found.loader = _Source(found.name, found.origin)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[found.name]
        raise
    return module


def _add_last(folder: str) -> None:
    """Let a SPEC import the modules beside it, after Python's own and those that are installed."""
    if folder not in sys.path:
        sys.path.append(folder)


def recognise(found: Any) -> Kind:
    """Return the kind of an implementation, without importing a framework.

    Raises:
        SpecError: if it is of no known kind.
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
        raise _wrong_kind(what if has_both else f"an object of type {type(found).__name__}")
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
        f"optimizer class or a function ({', '.join(ARGUMENTS)}) -> (w, v){HINT}, got {what}"
    )


def positional(found: Any) -> list[str]:
    """Return the names of the parameters that can be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in parameters(found).items() if p.kind in kinds]


def parameters(found: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a call by name, with those that a class passes to its bases.

    It is empty for a function without a signature, such as one that is not written in Python.
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
    """An implementation's names for our hyper-parameters, and its other arguments.

    Attributes:
        names: our name → the implementation's, for the hyper-parameters that it offers.
        extra: keyword arguments that are passed unchanged.
        fixed: our name → value, for the hyper-parameters in `extra`.
    """

    names: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)

    def keywords(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments for `options`, without those that it does not offer."""
        theirs = {self.names[name]: value for name, value in options.items() if name in self.names}
        return theirs | self.extra


def arguments(found: Any, given: Mapping[str, str]) -> Arguments:
    """Find an implementation's names from its signature and from `given`, the values of --kw.

    `given` maps names to values. The value ``{beta}`` means that the implementation calls our beta
    by this name. Other values are Python literals, or strings if they are no literals.
    """
    offered = {n for n, p in parameters(found).items() if p.kind is not p.VAR_POSITIONAL}
    result = Arguments()
    for ours, aliases in ALIASES.items():
        theirs = next((alias for alias in aliases if alias in offered), None)
        if theirs is not None:
            result.names[ours] = theirs
    for name, value in given.items():
        if value.startswith("{") and value[1:-1] in ALIASES:
            result.names = {o: theirs for o, theirs in result.names.items() if theirs != name}
            result.names[value[1:-1]] = name
            continue
        if value.startswith("{") and value[1:-1].isidentifier():
            known = ", ".join(f"{{{ours}}}" for ours in ALIASES)
            raise SpecError(f"--kw {name} must be a literal or one of {known}, got {value}")
        try:
            result.extra[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            result.extra[name] = value
    for ours in [ours for ours, theirs in result.names.items() if theirs in result.extra]:
        result.fixed[ours] = result.extra[result.names.pop(ours)]
    return result
