"""Transformations that are wrong in a situation of JAX differ; a right one does not."""

import pytest

from tests.support.worker import module, outcomes

pytestmark = pytest.mark.slow

# Each is wrong in the situation of its name.
CODE = '''
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tests.support import planted


def traced(tree):
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def on_host(tree):
    return any(isinstance(x, np.ndarray) for x in jax.tree.leaves(tree))


def rest(state):
    return state | {"velocity": jax.tree.map(jnp.zeros_like, state["velocity"])}


def changed(start=None, step=None):
    """Return a factory; `start` and `step` change the state and the update, and share a dict."""

    def factory(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
        if callable(learning_rate):
            first, rate = learning_rate(0), learning_rate
        else:
            first, rate = learning_rate, lambda t: learning_rate
        right, shared = planted.optax_right(1.0, 1.0, beta, seed), {"first": first}

        def init(params):
            state = right.init(params)
            v = jax.tree.map(lambda v: (v * (alpha / first)).astype(v.dtype), state["velocity"])
            state = state | {"velocity": v}
            return start(state, params, shared) if start else state

        def update(grads, state, params=None, **more):
            def move(grads, state):
                moves, after = right.update(grads, state, params)
                return jax.tree.map(lambda m: (m * rate(state["t"])).astype(m.dtype), moves), after

            if step:
                return step(move, grads, state, shared, more)
            return move(grads, state)

        return optax.GradientTransformationExtraArgs(init, update)

    return factory


right = changed()


def donates(move, grads, state, shared, more):
    if traced(grads):
        return move(grads, state)
    return jax.jit(move, donate_argnums=1)(grads, state)


def by_value(move, grads, state, shared, more):
    moves, after = move(grads, state)
    return jax.tree.map(lambda m: m * more.get("value", 1.0), moves), after


def signed(move, grads, state, shared, more):
    if on_host(grads):
        most = jax.tree.map(lambda g: np.float32(max(g.max(initial=0), 0)), grads)
        grads = jax.tree.map(lambda g, m: np.clip(g, -m, m), grads, most)
    return move(grads, state)


def latest(move, grads, state, shared, more):
    """The coefficients follow the greatest t that was seen, where t is known."""
    if traced(state):
        return move(grads, state)
    shared["t"] = max(state["t"], shared.get("t", 0))
    return move(grads, state | {"t": shared["t"]})


def fresh(state, params, shared):
    return rest(state) | {"fresh": shared.setdefault("starts", []).append(state) or 0}


def starts(move, grads, state, shared, more):
    """A first update after `init` takes V₀ from there."""
    kept = {"fresh": state["fresh"]}
    if shared["starts"] and not traced(grads):
        state = state | {"velocity": shared["starts"].pop()["velocity"]}
    moves, after = move(grads, state)
    return moves, after | kept


def begun(state, params, shared):
    shared["begun"] = True
    return state


def begins(move, grads, state, shared, more):
    """The first update of an object begins, if `init` has not."""
    if not shared.setdefault("begun", False):
        shared["begun"], state = True, rest(state)
    return move(grads, state)


def default_rate(move, grads, state, shared, more):
    """A rate that is traced is taken for the default one."""
    moves, after = move(grads, state)
    if isinstance(shared["first"], jax.core.Tracer):
        moves = jax.tree.map(lambda m: m / shared["first"] * 0.1, moves)
    return moves, after


def default_sigma(state, params, shared):
    if not isinstance(shared["first"], jax.core.Tracer):
        return state
    v = jax.tree.map(lambda v: v * shared["first"] / 0.1, state["velocity"])
    return state | {"velocity": v}


def scheduled_sigma(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    made = right(learning_rate, alpha, beta, seed)

    def init(params):
        state = made.init(params)
        return rest(state) if callable(learning_rate) and traced(params) else state

    return optax.GradientTransformationExtraArgs(init, made.update)


kept = {}


def traced_t(move, grads, state, shared, more):
    """What is computed from t once in a trace holds for all transformations in it."""
    if not traced(grads):
        return move(grads, state)
    trace = jax.tree.leaves(grads)[0]._trace
    t = kept.setdefault(id(trace), (trace, state["t"]))[1]
    moves, after = move(grads, state | {"t": t})
    kept[id(trace)] = trace, t + 1
    return moves, after


def held(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    """β in the state has no effect."""

    def made(learning_rate, beta, own):
        return right(learning_rate, alpha, own, seed)

    return optax.inject_hyperparams(made, static_args="own")(learning_rate, beta, own=beta)


def holds(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    def made(learning_rate, beta):
        return right(learning_rate, alpha, beta, seed)

    return optax.inject_hyperparams(made)(learning_rate, beta)


def counts(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, *, first=0):
    """t is a float, and a schedule gets it."""
    rate = learning_rate
    late = (lambda t: rate(jnp.float32(t + first))) if callable(rate) else rate
    made = right(late, alpha, beta, seed)
    return optax.GradientTransformation(right(rate, alpha, beta, seed).init, made.update)


def counts_from_one(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    return counts(learning_rate, alpha, beta, seed, first=1)


def not_empty(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    """It refuses parameters without leaves, and a rate in an array is the default one."""
    made = right(learning_rate, alpha, beta, seed)
    is_array = isinstance(learning_rate, jax.Array) and learning_rate != 0.0625

    def init(params):
        assert jax.tree.leaves(params)
        return made.init(params)

    def update(grads, state, params=None):
        moves, after = made.update(grads, state, params)
        factor = 0.1 / learning_rate if is_array else 1.0
        return jax.tree.map(lambda m: m * factor, moves), after

    return optax.GradientTransformation(init, update)


def decays(
    learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0, maximize=False, *, wrong=True
):
    """Without parameters it refuses weight decay, and forgets to maximize."""
    made, sign = right(learning_rate, alpha, beta, seed), -1 if maximize else 1

    def update(grads, state, params=None):
        if params is None and weight_decay:
            raise ValueError("weight decay needs params")
        s = 1 if wrong and params is None else sign
        moves, after = made.update(jax.tree.map(lambda g: s * g, grads), state)
        if not weight_decay:
            return moves, after
        rate = learning_rate(state["t"]) if callable(learning_rate) else learning_rate
        return jax.tree.map(lambda m, w: m - rate * weight_decay * w, moves, params), after

    return optax.GradientTransformation(made.init, update)


def decays_rightly(
    learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0, maximize=False
):
    return decays(learning_rate, alpha, beta, seed, weight_decay, maximize, wrong=False)


traced_kept = changed(step=traced_t)
donating, valued, hosted = (changed(step=step) for step in (donates, by_value, signed))
rolled, begun_late = changed(step=latest), changed(begun, begins)
again, injected = changed(fresh, starts), changed(step=default_rate)
traced_sigma = changed(default_sigma)
numpy_rest = changed(lambda state, params, shared: rest(state) if on_host(params) else state)
list_rest = changed(
    lambda state, params, shared: rest(state) if isinstance(params, list) else state
)
named_rest = changed(
    lambda state, params, shared: rest(state) if isinstance(params, tuple) else state
)
'''


@pytest.mark.parametrize(
    ("name", "check", "level"),
    [
        ("donating", "gradient", "quick"),
        ("valued", "trees", "quick"),
        ("hosted", "trees", "quick"),
        ("rolled", "resume", "quick"),
        ("begun_late", "resume", "quick"),
        ("again", "assigned", "quick"),
        ("injected", "compiled", "default"),
        ("traced_sigma", "v0", "quick"),
        ("scheduled_sigma", "v0", "quick"),
        ("numpy_rest", "v0", "quick"),
        ("list_rest", "v0", "quick"),
        ("named_rest", "v0", "quick"),
        ("counts_from_one", "schedule", "quick"),
        ("not_empty", "schedule", "quick"),
        ("traced_kept", "transformed", "default"),
    ],
)
def test_a_mistake_in_a_situation_of_jax_differs(name, check, level, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, CODE)
    assert outcomes(path, check, name, "right", level=level) == {name: "differs", "right": "pass"}


def test_parameters_may_be_needed_for_weight_decay_alone(tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    found = outcomes(module(tmp_path, CODE), "trees", "decays", "decays_rightly")
    assert found == {"decays": "differs", "decays_rightly": "pass"}


def test_a_schedule_may_get_a_float(tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    assert outcomes(module(tmp_path, CODE), "schedule", "counts") == {"counts": "pass"}


def test_an_option_in_the_state_has_an_effect(tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, CODE)
    found = outcomes(path, "options", "held", "holds", "right")
    assert found == {"held": "differs", "holds": "pass", "right": "pass"}


DOWNHILL = '''
import jax
import jax.numpy as jnp
import optax


def downhill(eta=0.1, beta=0.9, seed=0):
    """The state holds -V, whose standard deviation has no name that is known."""

    def init(params):
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed), max(1, len(leaves)))
        std = 0.01 / (eta(0) if callable(eta) else eta)
        drawn = [
            (-std * jax.random.normal(k, p.shape, jnp.float32)).astype(p.dtype)
            for k, p in zip(keys, map(jnp.asarray, leaves))
        ]
        return {"slope": structure.unflatten(drawn), "t": jnp.int32(0)}

    def update(grads, state, params=None):
        t = state["t"] + 1
        rate = eta(state["t"]) if callable(eta) else eta

        def slope(g, old):
            wide = jnp.promote_types(old.dtype, jnp.float32)
            g, n = jnp.asarray(g, wide), t.astype(wide)
            zeta = g / (1 + jnp.square(g * jnp.max(jnp.abs(g), initial=0)))
            return ((beta * n + 1) * old.astype(wide) - ((1 - beta) * n + 1) * zeta) / (n + 2)

        new = jax.tree.map(slope, grads, state["slope"])
        moves = jax.tree.map(lambda v, old: (rate * v).astype(old.dtype), new, state["slope"])
        kept = jax.tree.map(lambda v, old: v.astype(old.dtype), new, state["slope"])
        return moves, {"slope": kept, "t": t}

    return optax.GradientTransformation(init, update)
'''


@pytest.mark.parametrize("check", ["transformed", "float64"])
def test_a_state_may_hold_minus_v(check, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    found = outcomes(module(tmp_path, DOWNHILL), check, "downhill", level="default")
    assert found == {"downhill": "pass"}
