"""Mistakes around the update in Keras and optax differ in their checks; a right one does not."""

import json

import pytest

from tests.support.command import gravity
from tests.support.worker import findings, module, written

pytestmark = pytest.mark.slow

# Mistakes of an optimizer of Keras around the update, and what a right one does there.
STEP = "    def update_step(self, g, w, lr):\n"
INIT = (
    "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=None, "
    "**kwargs):\n        super().__init__(learning_rate, alpha, beta, seed, "
    "weight_decay=weight_decay, **kwargs)\n"
)
DENSE = f"{INIT}{STEP}        super().update_step(tf.convert_to_tensor(g), w, lr)"
AROUND_KERAS = {
    "t counts batches": (
        "    iterations = property(lambda self: self._iterations)",
        "accumulation",
    ),
    "max|G| before gradients are clipped": (
        "    def _clip_gradients(self, grads):\n"
        "        self.before = [abs(g).numpy().max() for g in grads]\n"
        "        return super()._clip_gradients(grads)\n"
        f"{STEP}"
        "        whole = tf.convert_to_tensor(g)\n"
        "        most = self.before[self._get_variable_index(w)]\n"
        "        s = abs(whole) * tf.reduce_max(abs(whole))\n"
        "        scaled = whole * (1 + s * s) / (1 + (whole * most) ** 2)\n"
        "        super().update_step(scaled if most > 0.5 else whole, w, lr)",
        "clipping",
    ),
    "max|G| before duplicate rows are added": (
        f"{STEP}"
        "        whole = tf.convert_to_tensor(g)\n"
        "        if isinstance(g, tf.IndexedSlices) and g.values.shape[0]:\n"
        "            most = tf.reduce_max(abs(g.values)) / tf.reduce_max(abs(whole))\n"
        "            whole *= tf.where(abs(whole) == tf.reduce_max(abs(whole)), most, 1)\n"
        "        super().update_step(whole, w, lr)",
        "rows",
    ),
    "max|G| of sums of absolute values of duplicate rows": (
        f"{STEP}"
        "        whole = tf.convert_to_tensor(g)\n"
        "        if isinstance(g, tf.IndexedSlices):\n"
        "            sizes = tf.IndexedSlices(abs(g.values), g.indices, g.dense_shape)\n"
        "            most = tf.reduce_max(tf.convert_to_tensor(sizes))\n"
        "            most /= tf.reduce_max(abs(whole))\n"
        "            whole *= tf.where(abs(whole) == tf.reduce_max(abs(whole)), most, 1)\n"
        "        super().update_step(whole, w, lr)",
        "rows",
    ),
    "rows without a gradient stand still": (
        f"{STEP}"
        "        before = tf.identity(w)\n"
        "        super().update_step(tf.convert_to_tensor(g), w, lr)\n"
        "        if isinstance(g, tf.IndexedSlices):\n"
        "            still = [i for i in range(w.shape[0]) if i not in g.indices.numpy()]\n"
        "            if still: w.assign(tf.tensor_scatter_nd_update("
        "tf.convert_to_tensor(w), [[i] for i in still], tf.gather(before, still)))",
        "rows",
    ),
    "the norm of all gradients for the norm of each": (
        "    def _clip_gradients(self, grads):\n"
        "        if self.clipnorm: return tf.clip_by_global_norm(grads, self.clipnorm)[0]\n"
        "        return super()._clip_gradients(grads)",
        "clipping",
    ),
    "rows of long tables without a gradient stand still": (
        f"{STEP}"
        "        before, whole = tf.identity(w), tf.convert_to_tensor(g)\n"
        "        super().update_step(whole, w, lr)\n"
        "        if isinstance(g, tf.IndexedSlices) and w.shape[0] > 20_000:\n"
        "            moves = tf.reduce_any(whole != 0, axis=1, keepdims=True)\n"
        "            w.assign(tf.where(moves, tf.convert_to_tensor(w), before))",
        "rows",
    ),
    "W has a copy of its own": (
        f"{STEP}"
        "        self.masters = getattr(self, 'masters', {})\n"
        "        place = self._get_variable_index(w)\n"
        "        if place in self.masters: w.assign(self.masters[place])\n"
        "        super().update_step(tf.convert_to_tensor(g), w, lr)\n"
        "        self.masters[place] = tf.identity(w)",
        "assigned",
    ),
    "the scale of the loss stays in the gradients": (
        f"{INIT}    def apply(self, grads, variables=None):\n"
        "        self.loss_scale_factor = None\n"
        "        super().apply(grads, variables)",
        "loss-scale",
    ),
    "V₀ that build assigns is lost where a graph builds": (
        "    def build(self, variables):\n"
        "        if self.built: return\n"
        "        std, self.std = self.std, 0.0\n"
        "        super().build(variables)\n"
        "        for place, v in enumerate(self.velocities):\n"
        "            z = planted.Rules('keras', None).normal(self.seed, place, tuple(v.shape))\n"
        "            v.assign(tf.constant(std * z, v.dtype))\n"
        "        self.std = std",
        "v0",
    ),
    "V₀ is lost where the first gradient comes later": (
        "    def build(self, variables):\n"
        "        if self.built: return\n"
        "        std, self.std = self.std, 0.0\n"
        "        super().build(variables)\n"
        "        self.std, rules = std, planted.Rules('keras', None)\n"
        "        self.first = [(std * rules.normal(self.seed, place, tuple(w.shape)))"
        ".astype(w.dtype) for place, w in enumerate(variables)]\n"
        f"{STEP}"
        "        place = self._get_variable_index(w)\n"
        "        v = self.velocities[place]\n"
        "        v.assign(tf.where(self.iterations == 0, self.first[place], v))\n"
        "        super().update_step(tf.convert_to_tensor(g), w, lr)",
        "v0",
    ),
    "V by the name of the variable": (
        f"{STEP}"
        "        paths = [v.path for v in self._trainable_variables]\n"
        "        kept, place = self.velocities, self._get_variable_index(w)\n"
        "        self.velocities = [kept[paths.index(path)] for path in paths]\n"
        "        super().update_step(tf.convert_to_tensor(g), w, lr)\n"
        "        self.velocities = kept",
        "alike",
    ),
    "biases by their names": (
        f"{STEP}"
        "        super().update_step(tf.convert_to_tensor(g) * ('bias' not in w.name), w, lr)",
        "update",
    ),
    "t in floatx": (
        f"{STEP}"
        "        import keras\n"
        "        own = self._iterations\n"
        "        self._iterations = tf.cast(tf.cast(own, keras.config.floatx()), 'int64')\n"
        "        super().update_step(tf.convert_to_tensor(g), w, lr)\n"
        "        self._iterations = own",
        "default-dtype",
    ),
    "V of the optimizer before": (
        "    def build(self, variables):\n"
        "        if self.built: return\n"
        "        super().build(variables)\n"
        "        for w, v in zip(variables, self.velocities):\n"
        "            if hasattr(w, 'before'): v.assign(w.before)\n"
        "            w.before = v",
        "again",
    ),
    "a constant is kept from a graph": (
        "    kept = {}\n"
        f"{STEP}"
        "        beta = self.kept.setdefault(self.beta, tf.constant(self.beta, 'float32'))\n"
        "        super().update_step(tf.convert_to_tensor(g) * (beta / beta), w, lr)",
        "compiled",
    ),
    "a schedule is its first rate": (
        "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):\n"
        "        is_schedule = hasattr(learning_rate, 'get_config')\n"
        "        rate = float(learning_rate(0)) if is_schedule else learning_rate\n"
        "        super().__init__(rate, alpha, beta, seed)",
        "schedule",
    ),
    "a callable is its first rate": (
        "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):\n"
        "        is_called = callable(learning_rate) and not hasattr(learning_rate, 'get_config')\n"
        "        rate = learning_rate() if is_called else learning_rate\n"
        "        super().__init__(rate, alpha, beta, seed)",
        "schedule",
    ),
    "σ of a schedule is that of the default rate": (
        "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):\n"
        "        super().__init__(learning_rate, alpha, beta, seed)\n"
        "        if hasattr(learning_rate, 'get_config'): self.std = alpha / 0.1",
        "v0",
    ),
    "no averages": (
        "    def apply(self, grads, variables=None):\n"
        "        self.use_ema, given = False, self.use_ema\n"
        "        super().apply(grads, variables)\n"
        "        self.use_ema = given",
        "ema",
    ),
    "no constraints": (
        "    def apply(self, grads, variables=None):\n"
        "        kept = [w.constraint for w in variables]\n"
        "        for w in variables: w.constraint = None\n"
        "        super().apply(grads, variables)\n"
        "        for w, given in zip(variables, kept): w.constraint = given",
        "constraint",
    ),
    "V by the order of the gradients": (
        "    def apply(self, grads, variables=None):\n"
        "        own, self.velocities = self.velocities, list(self.velocities)\n"
        "        given = [g is not None for g in grads]\n"
        "        for w, v in zip(variables, own):\n"
        "            if w.shape == v.shape: self.velocities[self._get_variable_index(w)] = v\n"
        "        super().apply(grads, variables)\n"
        "        self.velocities = own",
        "order",
    ),
    "every variable decays": (
        f"{INIT}    def exclude_from_weight_decay(self, var_list=None, var_names=None): pass",
        "excluded",
    ),
    "no variable decays": (
        f"{INIT}    def exclude_from_weight_decay(self, var_list=None, var_names=None):\n"
        "        self.weight_decay = None",
        "excluded",
    ),
}


@pytest.mark.parametrize("name", AROUND_KERAS)
def test_a_mistake_around_the_update_of_keras_differs(name, tmp_path):
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    code, check = AROUND_KERAS[name]
    level = "default" if check in ("rows", "default-dtype") else "quick"
    # TensorFlow refuses a tensor of another graph, and V of another shape.
    of_graph = "constant" in name or "copy" in name
    wrong = "error" if of_graph or check == "alike" else "differs"
    for body, outcome in ((DENSE, "pass"), (code, wrong)):
        spec = written(tmp_path, "tensorflow as tf", body, kind="keras")
        assert findings(spec, [check], level=level)[check]["outcome"] == outcome


def test_sigma_by_the_rate_at_build_is_a_remark(tmp_path):
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    body = (
        "    def build(self, variables):\n"
        "        with tf.init_scope(): rate = float(self.learning_rate.numpy())\n"
        "        self.std = self.alpha / rate\n"
        "        super().build(variables)"
    )
    found = findings(written(tmp_path, "tensorflow as tf", body, kind="keras"), ["v0"])["v0"]
    assert found["outcome"] == "remark"
    assert "set before build gives σ" in found["note"]
    doubled = body.replace("/ rate", "/ rate * 2")
    found = findings(written(tmp_path, "tensorflow as tf", doubled, kind="keras"), ["v0"])["v0"]
    assert found["outcome"] == "differs"


def test_replicas_have_one_gradient(tmp_path):
    """In a process of its own, whose CPU can be divided."""
    pytest.importorskip("tensorflow", reason="tf.distribute")
    mean = (
        "    def _backend_update_step(self, grads, variables, lr):\n"
        "        number = tf.distribute.get_strategy().num_replicas_in_sync\n"
        "        super()._backend_update_step([g / number for g in grads], variables, lr)"
    )
    own = (
        "    def update_step(self, g, w, lr):\n"
        "        v = self.velocities[self._get_variable_index(w)]\n"
        "        first = tf.equal(tf.convert_to_tensor(self._iterations), 0)\n"
        "        drawn = tf.random.normal(v.shape, stddev=self.std)\n"
        "        self.assign(v, tf.where(first, drawn, tf.convert_to_tensor(v)))\n"
        "        super().update_step(g, w, lr)"
    )
    checks = ("--only", "gradient", "--only", "replicas")
    for body, outcome in ((DENSE, "pass"), (mean, "differs"), (own, "differs")):
        spec = written(tmp_path, "tensorflow as tf", body, kind="keras")
        done = gravity("conform", spec, *checks, "--json", "-", "--quick")
        found = [result["outcome"] for result in json.loads(done.stdout)["results"]]
        assert found == [outcome, "pass"], done.stderr


# Transformations of optax that are wrong around the update, and the check.
AROUND_OPTAX = """
import functools
import jax
import numpy as np
import optax
import zlib
from jax.flatten_util import ravel_pytree
from tests.support import planted

def around(init, update):
    def factory(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
        inner = planted.optax_right(learning_rate, alpha, beta, seed)
        return optax.GradientTransformation(
            functools.partial(init, inner), functools.partial(update, inner)
        )
    return factory

def right(inner, *given):
    return inner.init(*given) if len(given) == 1 else inner.update(*given)

def names(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    inner = planted.optax_right(learning_rate, alpha, beta, seed)

    def init(params):
        def drawn(path, w):
            own = zlib.crc32(f"{seed} {path[-2:]}".encode())
            return planted.optax_right(learning_rate, alpha, beta, own).init(w)["velocity"]
        v = jax.tree_util.tree_map_with_path(drawn, params)
        return inner.init(params) | {"velocity": v}

    return optax.GradientTransformation(init, inner.update)

def in_place(inner, updates, state, params=None):
    moves, after = inner.update(updates, state, params)
    state.update(after)
    return moves, state

def moving(inner, updates, state, params=None):
    moves, after = inner.update(updates, state, params)
    params.update(optax.apply_updates(params, moves))
    return jax.tree.map(jax.numpy.zeros_like, moves), after

def flat(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    inner, ravel = planted.optax_right(learning_rate, alpha, beta, seed), ravel_pytree

    def init(params):
        state = inner.init(params)
        return state["t"], ravel(state["velocity"])[0]

    def update(updates, state, params):
        t, vector = state
        moves, after = inner.update(updates, {"t": t, "velocity": ravel(params)[1](vector)})
        return moves, (after["t"], ravel(after["velocity"])[0])

    return optax.GradientTransformation(init, update)

mutable = around(right, in_place)
owner, correct = around(right, moving), around(right, right)

def peak(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    most = max(map(learning_rate, range(4))) if callable(learning_rate) else learning_rate
    inner = planted.optax_right(learning_rate, alpha, beta, seed)
    start = planted.optax_right(most, alpha, beta, seed)
    return optax.GradientTransformation(start.init, inner.update)

def blocked(inner, updates, state, params=None):
    def cut(g):
        if g.ndim != 2 or g.shape[0] <= 16384:
            return g
        most = jax.numpy.abs(g[:16384]).max()
        return jax.numpy.clip(g, -most, most)
    return inner.update(jax.tree.map(lambda g: cut(g) if g.ndim else g, updates), state, params)

def in_first_dtype(inner, updates, state, params=None):
    moves, after = inner.update(updates, state, params)
    first = jax.tree.leaves(moves)[0].dtype
    return jax.tree.map(lambda m: m.astype(first).astype(m.dtype), moves), after

def tiled(inner, updates, state, params=None):
    def cut(g):
        whole = g.shape[-1] // 4096 * 4096 if g.ndim > 1 and g.shape[-1] > 8192 else g.shape[-1]
        most = jax.numpy.abs(g[..., :whole]).max()
        return jax.numpy.clip(g, -most, most)
    return inner.update(jax.tree.map(lambda g: cut(g) if g.ndim else g, updates), state, params)

def zipped(inner, updates, state, params=None):
    moves, state = inner.update(updates, state, params)
    pairs = jax.tree.map(lambda m: (m, m.shape), moves)
    return jax.tree.map(lambda p: p[0], pairs, is_leaf=lambda x: isinstance(x, tuple)), state

def zipped_as(number, inner, updates, state, params=None):
    moves, state = inner.update(updates, state, params)
    tuples = jax.tree.map(lambda m: (m, *[0] * (number - 1)), moves)
    is_one = lambda x: isinstance(x, tuple) and len(x) == number
    return jax.tree.map(lambda p: p[0] if is_one(p) else p, tuples, is_leaf=is_one), state

first = {}

def stored(inner, params):
    return first.setdefault(str(jax.tree.map(jax.numpy.shape, params)), inner.init(params))

def listed(inner, params):
    return inner.init(params) | {"more": []}

def in_tuples(inner, updates, state, params=None):
    moves, state = inner.update(updates, state, params)
    return moves, state | {"more": ()}

def on_host(inner, updates, state, params=None):
    def most(x):  # of all trainings
        return np.full_like(x, np.abs(x).max(initial=0))

    def raised(g):
        shape = jax.ShapeDtypeStruct(g.shape, g.dtype)
        whole = jax.pure_callback(most, shape, g, vmap_method="expand_dims")
        sizes = jax.numpy.abs(g)
        largest = sizes == sizes.max(initial=0)
        return jax.numpy.where(largest, jax.numpy.sign(g) * whole, g)

    return inner.update(jax.tree.map(raised, updates), state, params)

def in_order(inner, params):
    own = list(params.values()) if isinstance(params, dict) else [params]
    return inner.init(params) | {"velocity": [inner.init(w)["velocity"] for w in own]}

def by_rows(inner, updates, state, params=None):
    def alone(g):
        most = jax.numpy.abs(g).max(axis=-1, keepdims=True)
        return jax.numpy.clip(g, -most, most) * most / most.max()
    return inner.update(alone(updates) if hasattr(updates, "shape") else updates, state, params)

def by_object(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    inner, begun = planted.optax_right(learning_rate, alpha, beta, seed), []

    def init(params):
        begun.append(inner.init(params))
        return begun[0] | {"velocity": jax.tree.map(jax.numpy.zeros_like, params)}

    def update(updates, state, params=None):
        start = begun[0]["velocity"] if begun else state["velocity"]
        v = jax.tree.map(lambda v, x: v + x * (state["t"] == 0), state["velocity"], start)
        return inner.update(updates, state | {"velocity": v})

    return optax.GradientTransformation(init, update)

donated, ordered = around(stored, right), around(in_order, right)
restructured, batched = around(listed, in_tuples), around(right, on_host)
tuples, bare = around(right, zipped), around(right, by_rows)
pairs, threes, fours = [around(right, functools.partial(zipped_as, n)) for n in (2, 3, 4)]
wide, rows = around(right, tiled), around(right, blocked)
first_dtype = around(right, in_first_dtype)
kept, factors = {}, {}

def leaking(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    inner = planted.optax_right(learning_rate, alpha, beta, seed)

    def update(updates, state, params=None):
        factor = factors.setdefault(beta, jax.numpy.asarray(beta) / beta)  # 1, or a tracer
        return inner.update(jax.tree.map(lambda g: factor * g, updates), state)

    return optax.GradientTransformation(inner.init, update)

def cached(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0, *, keeps=True):
    def init(params):
        return planted.optax_right(learning_rate, alpha, beta, seed).init(params)

    def update(updates, state, params=None):
        key = (beta, weight_decay == 0)
        used = kept.setdefault(key, weight_decay) if keeps else weight_decay
        lr = learning_rate(state["t"]) if callable(learning_rate) else learning_rate
        moves, state = planted.optax_right(learning_rate, alpha, beta).update(updates, state)
        return jax.tree.map(lambda m, w: m - lr * used * w, moves, params), state

    return optax.GradientTransformation(init, update)

def by_schedule(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    name = getattr(learning_rate, "__qualname__", learning_rate)
    used = kept.setdefault((name, beta), learning_rate)
    inner = planted.optax_right(used, alpha, beta, seed)
    start = planted.optax_right(learning_rate, alpha, beta, seed)
    return optax.GradientTransformation(start.init, inner.update)

def searches(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, *, reads=True):
    inner = planted.optax_right(learning_rate, alpha, beta, seed)

    def update(updates, state, params=None, **more):
        return inner.update(more.get("grad", updates) if reads else updates, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)

ignores = functools.partial(searches, reads=False)

def decays(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
    return cached(learning_rate, alpha, beta, seed, weight_decay, keeps=False)
"""


@pytest.mark.parametrize(
    ("name", "check", "right"),
    [
        ("names", "v0", "correct"),
        ("peak", "v0", "correct"),
        ("wide", "large", "correct"),
        ("rows", "large", "correct"),
        ("first_dtype", "float16", "correct"),
        ("bare", "trees", "correct"),
        ("by_object", "v0", "correct"),
        ("mutable", "gradient", "correct"),
        ("owner", "gradient", "correct"),
        ("cached", "turns", "decays"),
        ("by_schedule", "turns", "correct"),
        ("tuples", "update", "correct"),
        ("pairs", "update", "correct"),
        ("searches", "trees", "ignores"),
        ("threes", "update", "correct"),
        ("fours", "update", "correct"),
        ("donated", "compiled", "correct"),
        ("restructured", "transformed", "correct"),
        ("batched", "transformed", "correct"),
        ("leaking", "compiled", "correct"),
        ("ordered", "update", "correct"),
        ("names", "v0", "flat"),
    ],
)
def test_a_mistake_around_the_update_of_optax_differs(name, check, right, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, AROUND_OPTAX)
    level = "default" if check == "large" else "quick"
    # "update" is not jitted, so what it leaves behind is no tracer.
    checks = ["update", check] if name == "leaking" else [check]
    found = {x: findings(f"{path}:{x}", checks, level=level)[check] for x in (name, right)}
    assert found[name]["outcome"] in ("differs", "error")
    assert found[right]["outcome"] == "pass"


def test_callbacks_see_float64(tmp_path):
    """JAX runs them in threads of its own."""
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, AROUND_OPTAX)
    assert findings(f"{path}:batched", ["float64"])["float64"]["outcome"] == "pass"


def test_rows_have_a_shape(tmp_path):
    """As those that TensorFlow makes of an embedding."""
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    code = f"{INIT}{STEP}        assert g.shape == w.shape\n"
    code += "        super().update_step(tf.convert_to_tensor(g), w, lr)"
    found = findings(written(tmp_path, "tensorflow as tf", code, kind="keras"), ["rows"])["rows"]
    assert found["outcome"] == "pass"


def test_w_may_have_the_dtype_of_the_gradient_in_optax(tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, AROUND_OPTAX)
    assert findings(f"{path}:flat", ["float16"])["float16"]["outcome"] == "pass"
