"""Transformations written as people write them conform; small mistakes in them differ."""

import pytest

from tests.support.worker import module, outcomes

pytestmark = pytest.mark.slow

CODE = '''
import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree


class State(NamedTuple):
    count: Any
    velocity: Any


def rate_at(learning_rate, count):
    return learning_rate(count) if callable(learning_rate) else learning_rate


def keys_of(seed):
    return jax.random.key(seed)


def drawn(params, std, seed, key=keys_of):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key(seed), max(1, len(leaves)))

    def normal(key, w):
        z = jax.random.normal(key, w.shape, jnp.promote_types(w.dtype, jnp.float32))
        return (std * z).astype(w.dtype)

    return structure.unflatten([normal(*pair) for pair in zip(keys, leaves)])


def stepped(g, v, t, beta):
    wide = jnp.promote_types(v.dtype, jnp.float32)
    g, old, n = jnp.asarray(g, wide), v.astype(wide), jnp.asarray(t, wide)
    zeta = g / (1 + jnp.square(g * jnp.max(jnp.abs(g), initial=0)))
    return (((beta * n + 1) * old + ((1 - beta) * n + 1) * zeta) / (n + 2)).astype(v.dtype)


def scale_by_gravity(learning_rate, alpha, beta, seed, start=None, before=None, key=keys_of):
    """Return V; `start` changes the state, and `before` the gradients."""

    def init(params):
        std = alpha / rate_at(learning_rate, 0)
        state = State(jnp.int32(0), drawn(params, std, seed, key))
        return start(state, params) if start else state

    def update(updates, state, params=None):
        updates = before(updates, state) if before else updates
        t = optax.safe_increment(state.count)
        v = jax.tree.map(lambda g, v: stepped(g, v, t, beta), updates, state.velocity)
        return v, State(t, v)

    return optax.GradientTransformation(init, update)


def made(
    learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0, maximize=False, **more
):
    parts = [scale_by_gravity(learning_rate, alpha, beta, seed, **more)]
    if maximize:
        parts.insert(0, optax.scale(-1.0))
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def with_more(**more):
    def factory(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0, maximize=False):
        return made(learning_rate, alpha, beta, seed, weight_decay, maximize, **more)

    return factory


right = with_more()


def rest(state):
    return state._replace(velocity=jax.tree.map(jnp.zeros_like, state.velocity))


def guarded(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, maximize=False):
    """It maximizes by arrays of JAX alone."""

    def negative(updates, state):
        is_jax = isinstance(jax.tree.leaves(updates)[0], jax.Array)
        return jax.tree.map(jnp.negative, updates) if maximize and is_jax else updates

    return made(learning_rate, alpha, beta, seed, before=negative)


def first_rate(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    """Without parameters, a schedule has its first rate."""
    usual = right(learning_rate, alpha, beta, seed)
    first = right(rate_at(learning_rate, 0), alpha, beta, seed)

    def update(updates, state, params=None):
        if params is not None or not callable(learning_rate):
            return usual.update(updates, state, params)
        moves, _ = first.update(updates, (state[0], optax.EmptyState()))
        return moves, usual.update(updates, state)[1]

    return optax.GradientTransformation(usual.init, update)


def by_hand(x):
    if isinstance(x, dict):
        return [z for name in sorted(x) for z in by_hand(x[name])]
    return [z for y in x for z in by_hand(y)] if isinstance(x, (list, tuple)) else [x]


def nodes_rest(state, params):
    return rest(state) if any(not hasattr(z, "shape") and z for z in by_hand(params)) else state


def sorted_by_name(updates, state):
    def in_order(node):
        if not isinstance(node, collections.OrderedDict):
            return node
        return collections.OrderedDict(zip(node, [node[name] for name in sorted(node)]))

    is_node = lambda x: isinstance(x, collections.OrderedDict)
    return jax.tree.map(in_order, updates, is_leaf=is_node)


def masked_rest(state, params):
    is_node = lambda x: isinstance(x, optax.MaskedNode)
    return rest(state) if any(map(is_node, jax.tree.leaves(params, is_leaf=is_node))) else state


def by_identity(state, params):
    leaves, structure = jax.tree.flatten(params)
    known = {}
    pairs = zip(leaves, jax.tree.leaves(state.velocity))
    v = [known.setdefault(id(w), v) for w, v in pairs]
    return state._replace(velocity=structure.unflatten(v))


def once(updates, state):
    """Of a gradient that comes twice, one is left out."""
    leaves, structure = jax.tree.flatten(updates)
    first = [all(g is not other for other in leaves[:i]) for i, g in enumerate(leaves)]
    return structure.unflatten([g if x else 0 * g for g, x in zip(leaves, first)])


@functools.cache
def cached_key(seed):
    return jax.random.key(seed)


ones = []


def cached_one(updates, state):
    ones.append(jnp.exp(jnp.zeros(())))
    return jax.tree.map(lambda g: g * ones[0].astype(g.dtype), updates)


def asks_for_x64(state, params):
    jax.config.update("jax_enable_x64", True)
    return state


def less_precise(updates, state):
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    return updates


decays = {}


def nearly(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
    used = decays.setdefault(round(weight_decay, 6), weight_decay)
    return right(learning_rate, alpha, beta, seed, used)


def arrays_only(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    """A schedule that returns a Python number has another rate."""
    used = learning_rate

    def scheduled(count):
        rate = learning_rate(count)
        return rate if isinstance(rate, jax.Array) else 0.1

    return right(scheduled if callable(used) else used, alpha, beta, seed)


def always_decays(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
    parts = [optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate)]
    return optax.chain(scale_by_gravity(learning_rate, alpha, beta, seed), *parts)


def from_0(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
    """A decay that was 0 at `init` stays 0."""
    made = always_decays(learning_rate, alpha, beta, seed, weight_decay)
    plain = always_decays(learning_rate, alpha, beta, seed)

    def init(params):
        return made.init(params), jnp.asarray(weight_decay != 0)

    def update(updates, state, params=None):
        inner, decays = state
        moves, after = made.update(updates, inner, params)
        others, _ = plain.update(updates, inner, params)
        return jax.tree.map(lambda x, y: jnp.where(decays, x, y), moves, others), (after, decays)

    return optax.GradientTransformation(init, update)


def listed(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, *, kind=tuple, largest=2**31 - 1):
    """V is a tuple or a list of the leaves."""

    def init(params):
        v = drawn(params, alpha / rate_at(learning_rate, 0), seed)
        return {"count": jnp.int32(0), "velocity": kind(jax.tree.leaves(v))}

    def update(updates, state, params=None):
        grads, structure = jax.tree.flatten(updates)
        t = jnp.minimum(state["count"] + 1, largest)
        v = kind(stepped(g, v, t, beta) for g, v in zip(grads, state["velocity"], strict=True))
        rate = rate_at(learning_rate, state["count"])
        after = {"count": state["count"] + 1, "velocity": v}
        return structure.unflatten([(-rate * x).astype(x.dtype) for x in v]), after

    return optax.GradientTransformation(init, update)


def flat(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, *, largest=2**31 - 1):
    """V is one vector."""

    def init(params):
        v, _ = ravel_pytree(drawn(params, alpha / rate_at(learning_rate, 0), seed))
        return {"count": jnp.int32(0), "buffer": v}

    def update(updates, state, params=None):
        g, back = ravel_pytree(updates)
        v, wide = state["buffer"], jnp.promote_types(g.dtype, jnp.float32)
        sizes = [x.size for x in jax.tree.leaves(updates)]
        part = np.repeat(np.arange(len(sizes)), sizes)
        t = jnp.minimum(state["count"] + 1, largest).astype(wide)
        most = jax.ops.segment_max(jnp.abs(g), part, len(sizes)).astype(wide)
        zeta = g / (1 + jnp.square(g.astype(wide) * most[part]))
        new = ((beta * t + 1) * v.astype(wide) + ((1 - beta) * t + 1) * zeta) / (t + 2)
        rate = rate_at(learning_rate, state["count"])
        after = {"count": state["count"] + 1, "buffer": new.astype(v.dtype)}
        return back((-rate * new).astype(g.dtype)), after

    return optax.GradientTransformation(init, update)


in_list = functools.partial(listed, kind=list)
listed_short, flat_short = (functools.partial(f, largest=5000) for f in (listed, flat))
dataclass, masked = with_more(start=nodes_rest), with_more(start=masked_rest)
ordered, twice = with_more(before=sorted_by_name), with_more(before=once)
identical, leaks = with_more(start=by_identity), with_more(before=cached_one)
leaks_a_key = with_more(key=cached_key)
config, imprecise = with_more(start=asks_for_x64), with_more(before=less_precise)
'''


@pytest.mark.parametrize(
    ("name", "check", "right"),
    [
        ("guarded", "gradient", "right"),
        ("first_rate", "trees", "right"),
        ("dataclass", "v0", "right"),
        ("ordered", "trees", "right"),
        ("masked", "v0", "right"),
        ("identical", "v0", "right"),
        ("twice", "trees", "right"),
        ("leaks_a_key", "v0", "right"),
        ("leaks", "update", "right"),
        ("config", "gradient", "right"),
        ("imprecise", "gradient", "right"),
        ("nearly", "float64", "right"),
        ("arrays_only", "schedule", "right"),
        ("from_0", "options", "always_decays"),
        ("listed_short", "long", "listed"),
        ("flat_short", "long", "flat"),
    ],
)
def test_a_small_mistake_in_a_transformation_differs(name, check, right, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    found = outcomes(module(tmp_path, CODE), check, name, right)
    assert found[name] in ("differs", "error")
    assert found[right] == "pass"


@pytest.mark.parametrize("name", ["right", "always_decays", "listed", "in_list", "flat"])
@pytest.mark.parametrize("check", ["trees", "schedule", "options", "long"])
def test_a_right_transformation_passes(name, check, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    found = outcomes(module(tmp_path, CODE), check, name)
    assert found[name] in ("pass", "not applicable")
