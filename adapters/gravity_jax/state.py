"""Export and import of a Gravity run in JAX, as `gravity_core.State`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from gravity_core import State
from gravity_core import hyperparameters as hp
from gravity_jax._leaves import as_array, checked_count, is_traced, moves
from gravity_jax.transform import ScaleByGravityState, value_at


def export_state(opt_state: Any, **hyperparameters: Any) -> State:
    """Return a copy of the state of `gravity` or `scale_by_gravity`.

    If arrays are sharded over several processes, this is a collective operation: every process must
    call it, and gets the whole V.

    Args:
        opt_state: an optax state that holds one `ScaleByGravityState`, at any depth.
        **hyperparameters: the arguments of `gravity`, because an optax state does not store them.
            Leave out those that only JAX has, such as ``mask`` and ``velocity_dtype``. A schedule
            is evaluated at the state's count. If the learning rate has changed since `init`
            (`optax.inject_hyperparams`), pass ``velocity_std`` too.

    Integer and boolean parameters have no velocity, so the result leaves them out.

    Raises:
        ValueError: unless the state holds exactly one `ScaleByGravityState` with the values of one
            optimizer (no ensemble, not inside jit), or for a hyper-parameter out of its range.
        TypeError: for a hyper-parameter that does not exist, or a count that is no int32.

    Example:
        >>> from gravity_jax import gravity
        >>> optimizer, w = gravity(learning_rate=0.2), jnp.ones(3)
        >>> _, opt_state = optimizer.update(w, optimizer.init(w), w)
        >>> export_state(opt_state, learning_rate=0.2)
        State(t=1, first_step=1, velocities=[float32(3,)])
    """
    own = _own_state(opt_state)
    leaves = [as_array(v) for v in jax.tree.leaves(own.velocity)]
    _check_values(*leaves)
    count = int(_known_count(own))
    rate = hyperparameters.get("learning_rate")
    if callable(rate) and hyperparameters.get("velocity_std") is None:
        alpha = hyperparameters.get("alpha", hp.ALPHA)
        hyperparameters["velocity_std"] = hp.velocity_std(value_at(0, rate), alpha)
    for name in ("learning_rate", "weight_decay"):
        if callable(hyperparameters.get(name)):
            hyperparameters[name] = hp.as_float(value_at(count, hyperparameters[name]))
    return State(count, [_whole(v) for v in leaves if moves(v)], hyperparameters)


def import_state(opt_state: optax.OptState, state: State) -> Any:
    """Return `opt_state` with the count and the velocities of `state`.

    The transformation itself holds the hyper-parameters. So create it with
    ``gravity(**state.hyperparameters)``. You may pass a schedule of your own as ``learning_rate``;
    it continues at the state's count.

    Args:
        opt_state: the result of the transformation's ``init`` for the parameters. The velocities
            must have the order of its leaves. Wrappers around the arrays stay, such as the
            variables of flax nnx.
        state: a state from any framework.

    Raises:
        TypeError: for another state.
        ValueError: if the state does not fit, or if its t exceeds int32. The message names the
            first mismatch. Also unless `opt_state` holds the arrays of one optimizer.

    Example:
        >>> from gravity_jax import gravity
        >>> state = State(10, [np.zeros(3, np.float32)], {"learning_rate": 0.2})
        >>> optimizer = gravity(**state.hyperparameters)
        >>> opt_state = import_state(optimizer.init(jnp.ones(3)), state)
        >>> int(opt_state[0].count)
        10
    """
    if not isinstance(state, State):
        raise TypeError(f"state must be a gravity_core.State, got {type(state).__name__}")
    own = _own_state(opt_state)
    leaves, structure = jax.tree.flatten(own)
    _check_values(*leaves[1:])
    _known_count(own)
    moving = [i for i, v in enumerate(leaves) if i > 0 and moves(v)]  # leaves[0] is the count
    expected = [(leaves[i].shape, jnp.dtype(leaves[i].dtype).name) for i in moving]
    state.check(expected, largest_t=int(jnp.iinfo(jnp.int32).max))
    count = np.asarray(state.count, np.int32)
    leaves[0] = _like(leaves[0], count)
    for i, v in zip(moving, state.velocities, strict=True):
        leaves[i] = _like(leaves[i], v)
    own = jax.tree.unflatten(structure, leaves)

    def replaced(node: Any) -> Any:
        if isinstance(node, ScaleByGravityState):
            return own
        if _counts_a_schedule(node):
            # A buffer for each: a step that is given the memory of its state cannot get one twice.
            node = node._replace(count=jax.tree.map(lambda old: _like(old, count), node.count))
        children, one_level = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
        if len(children) == 1 and children[0] is node:  # an array
            return node
        return jax.tree.unflatten(one_level, map(replaced, children))

    # optax's tree_set does not search a chain inside a state that has a count.
    return replaced(opt_state)


def _own_state(opt_state: Any) -> ScaleByGravityState:
    def is_own(x: Any) -> bool:
        return isinstance(x, ScaleByGravityState)

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_own) if is_own(x)]
    if len(found) != 1:
        raise ValueError(f"opt_state must hold one ScaleByGravityState, got {len(found)}")
    own: ScaleByGravityState = found[0]
    return own


def _known_count(own: ScaleByGravityState) -> Any:
    leaves = jax.tree.leaves(own.count)  # of a wrapper, too
    count = checked_count(as_array(leaves[0] if len(leaves) == 1 else own.count))
    _check_values(count)
    return count


def _check_values(*leaves: Any) -> None:
    for leaf in leaves:
        if is_traced(leaf) or not isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            raise ValueError(
                f"opt_state must hold arrays with values, outside jit, got {type(leaf).__name__}"
            )


def _counts_a_schedule(node: Any) -> bool:
    # optax has no public name for the state of a scheduled weight decay. Its only field is a count.
    # A state of the user's own may have such a field, too, and stays.
    return isinstance(node, optax.InjectStatefulHyperparamsState) or (
        getattr(node, "_fields", None) == optax.ScaleByScheduleState._fields
        and type(node).__module__.partition(".")[0] == optax.__name__
    )


def _whole(v: Any) -> np.ndarray:
    """Return the whole V, also if its shards are in several processes."""
    sharding = getattr(v, "sharding", None)
    if isinstance(sharding, NamedSharding) and not (
        v.is_fully_addressable or v.is_fully_replicated
    ):
        v = jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))(v)
    return np.asarray(v)


def _like(old: Any, v: np.ndarray) -> jax.Array:
    new = jnp.array(v, old.dtype)  # a copy
    # JAX moves an uncommitted array to the device of the parameters. A committed one stays put, so
    # keep an array uncommitted if `init` left it so.
    return jax.device_put(new, old.sharding) if getattr(old, "committed", False) else new
