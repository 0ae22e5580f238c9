"""Trees and the names of their leaves; a gradient tree beside that of the velocities."""

import operator
from typing import Any

import jax
import optax

MISSING = (
    "is missing: a parameter without a gradient needs zeros, or optax.masked around the "
    "transformation"
)
SUPERFLUOUS = "belongs to no parameter"


def named_leaves(tree: Any, argument: str) -> tuple[list[tuple[str, Any]], Any]:
    """Return the leaves with their names, such as params['w'], and the structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [(argument + jax.tree_util.keystr(path), leaf) for path, leaf in leaves], structure


def leaves_up_to(velocity: Any, updates: Any) -> list[Any]:
    """Return what `updates` has in the place of each leaf of `velocity`.

    Raises:
        ValueError: naming the first place where `updates` has another structure.
    """
    structure: Any = jax.tree.structure(velocity)
    try:
        return list(structure.flatten_up_to(updates))
    except ValueError as error:
        # JAX's own message lists all keys of a dict, and not the way to it.
        raise ValueError(first_difference(velocity, updates, "updates") or str(error)) from None


def first_difference(expected: Any, got: Any, name: str) -> str | None:
    """Return in words where `got`, which is called `name`, cannot be flattened up to `expected`."""
    if jax.tree_util.all_leaves([expected]):
        return None
    if type(got) is not type(expected):
        if got is None:
            return f"{name} {MISSING}"
        if expected is None:
            return f"{name} {SUPERFLUOUS}"
        wanted, received = type(expected).__name__, type(got).__name__
        return f"{name} must be of type {wanted} as in the parameters, got {received}"
    (ours, structure), (theirs, other) = _one_level(expected), _one_level(got)
    missing = [key for key in ours if key not in theirs]
    if missing:
        return f"{name}{missing[0]} {MISSING}"
    superfluous = [key for key in theirs if key not in ours]
    if superfluous:
        return f"{name}{superfluous[0]} {SUPERFLUOUS}"
    if structure != other:
        return (
            f"{name} differs from the parameters in what {type(got).__name__} holds beside leaves"
        )
    return next(
        filter(None, (first_difference(ours[key], theirs[key], name + key) for key in ours)), None
    )


def _one_level(node: Any) -> tuple[dict[str, Any], Any]:
    """Return the children of a node by their key, such as ['w'], and its own structure."""
    children, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    return {jax.tree_util.keystr(path): child for path, child in children}, structure


def stacked_axes(stacked: Any, updates: optax.Updates, grads: list[Any]) -> list[int]:
    """Return for every leaf how many leading axes count its layers."""
    if stacked is None:
        return [0] * len(grads)
    prefix = stacked(updates) if callable(stacked) else stacked
    # None is an empty tree to JAX, which fits no leaf.
    prefix = jax.tree.map(lambda n: 0 if n is None else n, prefix, is_leaf=lambda n: n is None)
    try:
        counts, _ = named_leaves(jax.tree.broadcast(prefix, updates), "stacked")
    except ValueError as error:
        raise ValueError(f"stacked must be a pytree prefix of the updates: {error}") from error
    axes = []
    for (name, count), grad in zip(counts, grads, strict=True):
        try:
            number = -1 if isinstance(count, bool) else operator.index(count)
        except TypeError:  # a traced number included
            number = -1
        if not 0 <= number <= grad.ndim:
            raise ValueError(
                f"{name} must be an integer in [0, {grad.ndim}], the number of leading axes that "
                f"count layers, known when traced, got {count!r}"
            )
        axes.append(number)
    return axes
