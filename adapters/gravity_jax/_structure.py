"""Names of the leaves of a tree, and the comparison of a gradient tree with the velocity tree."""

import operator
from typing import Any

import jax
import optax

from gravity_jax._leaves import MISSING, as_array, moves

SUPERFLUOUS = "belongs to no parameter"


def named_leaves(tree: Any, argument: str) -> tuple[list[tuple[str, Any]], Any]:
    """Return the leaves with their names, such as params['w'], and the tree structure.

    A leaf that has `__jax_array__` is returned as its array.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return [
        (argument + jax.tree_util.keystr(path), as_array(leaf)) for path, leaf in leaves
    ], structure


def leaves_up_to(velocity: Any, updates: Any) -> list[Any]:
    """Return the subtree of `updates` at the place of each leaf of `velocity`, as `named_leaves`.

    Raises:
        ValueError: naming the first place where the structure of `updates` differs.
    """
    structure: Any = jax.tree.structure(velocity)
    try:
        return [as_array(subtree) for subtree in structure.flatten_up_to(updates)]
    except ValueError as error:
        # JAX's message lists all keys of a dict, but not where the dict is.
        raise ValueError(first_difference(velocity, updates, "updates") or str(error)) from None


def first_difference(expected: Any, got: Any, name: str) -> str | None:
    """Return a description of the first place where `got` cannot be flattened up to `expected`.

    Args:
        expected: the tree whose structure is needed.
        got: the tree to compare.
        name: what the description calls `got`.

    Returns:
        The description, or None if `got` has the structure.
    """
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
        received = type(got).__name__
        return f"{name} must have the same static data as the parameters, got another {received}"
    return next(
        filter(None, (first_difference(ours[key], theirs[key], name + key) for key in ours)), None
    )


def _one_level(node: Any) -> tuple[dict[str, Any], Any]:
    """Return the children of a node by key, such as ['w'], and the structure of the node alone."""
    children, structure = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    return {jax.tree_util.keystr(path): child for path, child in children}, structure


def stacked_axes(stacked: Any, updates: optax.Updates, velocity: optax.Updates) -> list[int]:
    """Return the number of leading axes that index layers, for every leaf of `velocity`."""
    leaves = jax.tree.leaves(velocity)
    if stacked is None:
        return [0] * len(leaves)
    prefix = stacked(updates) if callable(stacked) else stacked
    # Replace None with 0, because JAX treats None as an empty tree and not as a leaf.
    prefix = jax.tree.map(lambda n: 0 if n is None else n, prefix, is_leaf=lambda n: n is None)
    try:
        counts, _ = named_leaves(jax.tree.broadcast(prefix, velocity), "stacked")
    except ValueError as error:
        raise ValueError(f"stacked must be a pytree prefix of the updates: {error}") from error
    axes = []
    for (name, value), v in zip(counts, leaves, strict=True):
        try:
            count = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:  # for example a traced integer
            count = -1
        if moves(v) and not 0 <= count <= v.ndim:
            raise ValueError(
                f"{name} must be an integer in [0, {v.ndim}], known when tracing (the number of "
                f"leading axes that index layers), got {value!r}"
            )
        axes.append(count)
    return axes
