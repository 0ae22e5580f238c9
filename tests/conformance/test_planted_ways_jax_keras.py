"""Mistakes that show where an optimizer of Keras or of optax is used in another way."""

import pytest

from tests.support.worker import beside_a_subclass, findings, module, outcomes, written

pytestmark = pytest.mark.slow

INIT = (
    "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, **kwargs):\n"
    "        super().__init__(learning_rate, alpha, beta, seed, **kwargs)\n"
)
# One with the options of the base class that takes sparse gradients, too.
STEP = "    def update_step(self, g, w, lr):\n"
RIGHT = (
    "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=None,"
    " **kwargs):\n"
    "        super().__init__(learning_rate, alpha, beta, seed, weight_decay=weight_decay,"
    " **kwargs)\n"
    f"{STEP}"
    "        super().update_step(tf.convert_to_tensor(g), w, lr)\n"
)
# What a subclass of it does, and the check.
KERAS = {
    "a configuration without α": (
        "    def get_config(self):\n"
        "        return {n: x for n, x in super().get_config().items() if n != 'alpha'}",
        "v0",
    ),
    "a configuration without clipnorm": (
        "    def get_config(self):\n"
        "        return {n: x for n, x in super().get_config().items() if 'clip' not in n}",
        "clipping",
    ),
    "a load brings the first rate back": (
        "    def get_config(self):\n"
        "        return super().get_config() | {'learning_rate': self.alpha / self.std}\n"
        "    def load_own_variables(self, store):\n"
        "        super().load_own_variables(store)\n"
        "        self.learning_rate = self.alpha / self.std",
        "resume",
    ),
    "another build draws V again": (
        "    def build(self, variables):\n"
        "        if self.built:\n"
        "            for v in self.velocities: v.assign(tf.zeros_like(v))\n"
        "        super().build(variables)",
        "resume",
    ),
    "duplicate rows in a graph": (
        f"{STEP}"
        "        if isinstance(g, tf.IndexedSlices) and not tf.executing_eagerly():\n"
        "            g = 0.5 * tf.convert_to_tensor(g)\n"
        "        super().update_step(g, w, lr)",
        "rows",
    ),
    "a sum in a graph where gradients accumulate": (
        f"{STEP}"
        "        number = self.gradient_accumulation_steps or 1\n"
        "        g = tf.convert_to_tensor(g) * (1 if tf.executing_eagerly() else number)\n"
        "        super().update_step(g, w, lr)",
        "accumulation",
    ),
    "the mean of two where three accumulate": (
        f"{STEP}"
        "        number = self.gradient_accumulation_steps or 2\n"
        "        super().update_step(tf.convert_to_tensor(g) * (number / 2), w, lr)",
        "accumulation",
    ),
    "what has accumulated is lost by a load": (
        "    def load_own_variables(self, store):\n"
        "        super().load_own_variables(store)\n"
        "        for v in self.variables:\n"
        "            if 'gradient_accumulator' in v.path: v.assign(tf.zeros_like(v))",
        "accumulation",
    ),
    "names exclude nothing": (
        "    def exclude_from_weight_decay(self, var_list=None, var_names=None):\n"
        "        super().exclude_from_weight_decay(var_list=var_list)",
        "excluded",
    ),
    "exclusions are forgotten in a graph": (
        "    def _use_weight_decay(self, w):\n"
        "        return super()._use_weight_decay(w) or not tf.executing_eagerly()",
        "excluded",
    ),
    "normalisations do not decay": (
        "    def _use_weight_decay(self, w):\n"
        "        return super()._use_weight_decay(w) and 'norm' not in w.name",
        "weight-decay",
    ),
    "gradients are not clipped in a graph": (
        "    def _clip_gradients(self, grads):\n"
        "        return super()._clip_gradients(grads) if tf.executing_eagerly() else grads",
        "clipping",
    ),
    "σ is doubled where the first step builds": (
        "    def apply(self, grads, variables=None):\n"
        "        if not self.built and tf.executing_eagerly(): self.std *= 2\n"
        "        super().apply(grads, variables)",
        "v0",
    ),
    "V₀ by the path of the variable": (
        "    def build(self, variables):\n"
        "        if self.built: return\n"
        "        super().build(variables)\n"
        "        import zlib\n"
        "        for w, v in zip(variables, self.velocities):\n"
        "            rules, place = planted.Rules('keras', None), zlib.crc32(w.path.encode())\n"
        "            z = rules.normal(self.seed, place, tuple(w.shape))\n"
        "            if tf.executing_eagerly(): v.assign(tf.cast(self.std * z, v.dtype))",
        "v0",
    ),
    "no V₀ where gradients accumulate": (
        "    def build(self, variables):\n"
        "        if self.gradient_accumulation_steps: self.std = 0.0\n"
        "        super().build(variables)",
        "v0",
    ),
    "the rate is kept where it is set": (
        "    @property\n"
        "    def learning_rate(self):\n"
        "        return super().learning_rate\n"
        "    @learning_rate.setter\n"
        "    def learning_rate(self, value):\n"
        "        self.given = value\n"
        "        type(self).__mro__[-3].learning_rate.fset(self, value)\n"
        f"{STEP}"
        "        own = getattr(self, 'given', lr)\n"
        "        super().update_step(g, w, lr if callable(own) else own)",
        "schedule",
    ),
    "decay without variables is left out": (
        "    def apply(self, grads, variables=None):\n"
        "        own, self.weight_decay = self.weight_decay, None if variables is None else"
        " self.weight_decay\n"
        "        super().apply(grads, variables)\n"
        "        self.weight_decay = own",
        "order",
    ),
    "decay by the first rate of a schedule": (
        "    def _apply_weight_decay(self, variables):\n"
        "        own = self._learning_rate\n"
        "        if hasattr(own, 'get_config'): self._learning_rate = own(0)\n"
        "        super()._apply_weight_decay(variables)\n"
        "        self._learning_rate = own",
        "schedule",
    ),
    "decay after a constraint": (
        "    def apply(self, grads, variables):\n"
        "        before = [tf.identity(w) for w in variables]\n"
        "        own, self.weight_decay = self.weight_decay, None\n"
        "        super().apply(grads, variables)\n"
        "        self.weight_decay = own\n"
        "        for w, old in zip(variables, before):\n"
        "            w.assign_sub(old * (own or 0.0) * tf.cast(self.learning_rate, w.dtype))",
        "constraint",
    ),
    "a schedule that is assigned is its first rate": (
        "    @property\n"
        "    def learning_rate(self):\n"
        "        return super().learning_rate\n"
        "    @learning_rate.setter\n"
        "    def learning_rate(self, value):\n"
        "        rate = float(value(0)) if hasattr(value, 'get_config') else value\n"
        "        type(self).__mro__[-3].learning_rate.fset(self, rate)",
        "schedule",
    ),
    "a maximum over the rows of a batch": (
        f"{STEP}"
        "        if isinstance(g, tf.IndexedSlices):\n"
        "            dense = tf.convert_to_tensor(g)\n"
        "            most = tf.reduce_max(tf.abs(tf.gather(dense, g.indices)))\n"
        "            g = tf.clip_by_value(dense, -most, most)\n"
        "        super().update_step(g, w, lr)",
        "rows",
    ),
    "the coefficients are those of the first step in a graph": (
        "    def _coefficient(self):\n"
        "        graph = tf.compat.v1.get_default_graph()\n"
        "        if tf.executing_eagerly() or getattr(self, 'graph', None) is not graph:\n"
        "            self.graph, self.t = graph, tf.identity(self.iterations)\n"
        "        return tf.cast(self.t - self.iterations, 'float32')\n"
        "    def update_step(self, gradient, variable, learning_rate):\n"
        "        change = 1 + tf.cast(self._coefficient(), gradient.dtype)\n"
        "        super().update_step(gradient * change, variable, learning_rate)",
        "transformed",
    ),
    "float64 is computed in float32 in compiled code": (
        f"{STEP}"
        "        g = tf.convert_to_tensor(g)\n"
        "        if not tf.executing_eagerly(): g = tf.cast(tf.cast(g, 'float32'), g.dtype)\n"
        "        super().update_step(g, w, lr)",
        "float64",
    ),
    "NaN is lost in compiled code": (
        f"{STEP}"
        "        g = tf.convert_to_tensor(g)\n"
        "        if not tf.executing_eagerly(): g = tf.where(tf.math.is_finite(g), g, 0)\n"
        "        super().update_step(g, w, lr)",
        "compiled",
    ),
    "gradients are clipped in compiled code": (
        f"{STEP}"
        "        g = tf.convert_to_tensor(g)\n"
        "        if not tf.executing_eagerly(): g = tf.clip_by_value(g, -1e10, 1e10)\n"
        "        super().update_step(g, w, lr)",
        "compiled",
    ),
    "the user's generators are seeded": (
        "    def build(self, variables):\n"
        "        import keras\n"
        "        keras.utils.set_random_seed(self.seed)\n"
        "        super().build(variables)",
        "random",
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_a_mistake_in_another_use_of_keras_differs(name, tmp_path):
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    code, check = KERAS[name]
    level = "default" if check in ("rows", "compiled", "float64") else "quick"
    found = beside_a_subclass(tmp_path, RIGHT, code, check, level)
    assert found == {"Wrong": "differs", "Around": "pass"}


def test_float64_is_right_after_float32_was_compiled(tmp_path):
    """Keras's models keep the dtype that was the default when the first one was made."""
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    spec = written(tmp_path, "tensorflow as tf", "    pass", "keras")
    found = findings(spec, ["compiled", "float64"], level="default")
    assert [found[check]["outcome"] for check in found] == ["pass", "pass"]


def test_a_schedule_or_a_decay_may_be_refused(tmp_path):
    """One that refuses weight decay has no gradients that it overwrites with it."""
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    code = (
        "    def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, **kwargs):\n"
        "        if kwargs.get('weight_decay'): raise ValueError('no weight decay')\n"
        "        if callable(learning_rate): raise TypeError('learning_rate must be a number')\n"
        "        super().__init__(learning_rate, alpha, beta, seed, **kwargs)"
    )
    checks = ["schedule", "weight-decay", "gradient"]
    found = findings(written(tmp_path, "tensorflow as tf", code, "keras"), checks)
    assert [found[check]["outcome"] for check in checks] == ["remark", "remark", "pass"]


# Transformations that are wrong in another use, each for the condition of its name.
OPTAX = """
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tests.support import planted

def changed(start=None, step=None):
    def factory(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
        def inner():
            return planted.optax_right(learning_rate, alpha, beta, seed)

        begun = []

        def init(params):
            state = inner().init(params)
            begun.append(state)
            known = {"learning_rate": learning_rate, "alpha": alpha, "begun": len(begun)}
            return start(state, params, known) if start else state

        def update(grads, state, params=None):
            rate = learning_rate(state["t"]) if callable(learning_rate) else learning_rate
            fed = step(grads, state, params, beta) if step else grads
            moves, after = inner().update(fed, state, params)
            if params is None:
                if isinstance(weight_decay, float) and weight_decay and not step:
                    raise ValueError("weight decay needs params")
                return moves, after
            return jax.tree.map(lambda m, w: m - rate * weight_decay * w, moves, params), after

        return optax.GradientTransformation(init, update)

    return factory

def rest(state):
    return state | {"velocity": jax.tree.map(jnp.zeros_like, state["velocity"])}

def traced(params):
    return any(isinstance(w, jax.core.Tracer) for w in jax.tree.leaves(params))

right = changed()
integer = changed(
    lambda state, params, known: rest(state) if isinstance(known["learning_rate"], int) else state
)
jitted = changed(lambda state, params, known: rest(state) if traced(params) else state)
second = changed(lambda state, params, known: rest(state) if known["begun"] > 1 else state)
array = changed(
    lambda state, params, known: rest(state) if hasattr(known["learning_rate"], "dtype") else state
)
kept = {}
cached = changed(
    lambda state, params, known: state
    | {"velocity": kept.setdefault(
        (known["learning_rate"], str(jax.tree.map(jnp.shape, params))), state["velocity"])}
)
weighted = changed(
    lambda state, params, known: state
    | {"velocity": jax.tree.map(lambda v, w: v * (1 + w * w), state["velocity"], params)}
)
plain = changed(step=lambda grads, state, params, beta: grads)  # it decays no weights that it lacks

def in_place(grads, state, params, beta):
    for g in jax.tree.leaves(grads):
        if isinstance(g, np.ndarray) and g.ndim:
            g *= 2
    return grads

def single(grads, state, params, beta):
    if not traced(grads):
        return grads
    return jax.tree.map(lambda g: g.astype(jnp.float32).astype(g.dtype), grads)

def by_list(grads, state, params, beta):
    def raised(node):
        if not isinstance(node, list):
            return node
        most = max(jnp.abs(g).max() for g in node)
        return [jnp.where(jnp.abs(g) == jnp.abs(g).max(), jnp.sign(g) * most, g) for g in node]
    return jax.tree.map(raised, grads, is_leaf=lambda node: isinstance(node, list))

numpy_in_place, jit_float64 = changed(step=in_place), changed(step=single)
lists = changed(step=by_list)

def undrawn(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, *, eagerly=True):
    # V₀ is drawn in the first update: eagerly only, or wherever V is 0.
    inner = planted.optax_right(learning_rate, alpha, beta, seed)

    def update(grads, state, params=None):
        v = state["velocity"]
        if eagerly and traced(grads):
            return inner.update(grads, state, params)
        std = jnp.float32(alpha) / (learning_rate(0) if callable(learning_rate) else learning_rate)

        def drawn(i, v):
            z = np.random.default_rng([seed, i]).standard_normal(v.shape)
            return jnp.where(jnp.any(v != 0), v, v + jnp.asarray(std * z, v.dtype))

        leaves, structure = jax.tree.flatten(v)
        v = structure.unflatten([drawn(i, x) for i, x in enumerate(leaves)])
        return inner.update(grads, state | {"velocity": v}, params)

    return optax.GradientTransformation(lambda params: rest(inner.init(params)), update)

def lazy(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    return undrawn(learning_rate, alpha, beta, seed, eagerly=False)

def injected(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    def inner(learning_rate, beta):
        made = planted.optax_right(1.0, alpha, beta, seed)

        def update(grads, state, params=None):
            moves, after = made.update(grads, state, params)
            return jax.tree.map(lambda m: learning_rate * m, moves), after

        return optax.GradientTransformation(made.init, update)

    return optax.inject_hyperparams(inner)(learning_rate, beta)

def single_beta(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    return planted.optax_right(learning_rate, alpha, float(np.float32(beta)), seed)

def norms(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
    inner = right(learning_rate, alpha, beta, seed, weight_decay)

    def update(grads, state, params=None):
        moves, after = inner.update(grads, state, params)
        rate = learning_rate(state["t"]) if callable(learning_rate) else learning_rate

        def back(path, m, w):
            is_norm = "Norm" in jax.tree_util.keystr(path)
            return m + rate * weight_decay * w if is_norm else m

        return jax.tree_util.tree_map_with_path(back, moves, params), after

    return optax.GradientTransformation(inner.init, update)

def in_state(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    is_called = callable(learning_rate)

    def init(params):
        state = planted.optax_right(learning_rate, alpha, beta, seed).init(params)
        return state | {} if is_called else state | {"rate": jnp.asarray(learning_rate)}

    def update(grads, state, params=None):
        used = learning_rate if is_called else state["rate"]
        moves, after = planted.optax_right(0.1, alpha, beta, seed).update(grads, state, params)
        factor = used(state["t"]) if is_called else used
        return jax.tree.map(lambda m: m * (factor / 0.1), moves), state | after

    return optax.GradientTransformation(init, update)

def drifts(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
    inner = planted.optax_right(learning_rate, alpha, beta, seed)

    def update(grads, state, params=None):
        moves, after = inner.update(grads, state, params)
        wide = jax.tree.map(lambda v: v.astype(jnp.promote_types(v.dtype, "float32")),
                            after["velocity"])
        return moves, after | {"velocity": wide}

    return optax.GradientTransformation(inner.init, update)
"""


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("jitted", "v0"),
        ("integer", "v0"),
        ("undrawn", "v0"),
        ("single_beta", "long"),
        ("second", "v0"),
        ("array", "v0"),
        ("cached", "v0"),
        ("weighted", "v0"),
        ("plain", "trees"),
        ("lists", "trees"),
        ("numpy_in_place", "gradient"),
        ("jit_float64", "float64"),
        ("norms", "weight-decay"),
        ("in_state", "schedule"),
    ],
)
def test_a_mistake_in_another_use_of_optax_differs(name, check, tmp_path):
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, OPTAX)
    level = "default" if check == "float64" else "quick"
    found = outcomes(path, check, name, "right", level=level)
    assert found == {name: "differs", "right": "pass"}


def test_an_array_of_inject_hyperparams_may_hold_beta(tmp_path):
    """It is a float32, and the state shows it; the rates are set there."""
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, OPTAX)
    found = findings(f"{path}:injected", ["long", "schedule"])
    assert [found[check]["outcome"] for check in found] == ["pass", "pass"]
    assert "β rounded to float32, as by an array" in found["long"]["note"]


def test_sigma_is_not_defined_for_a_first_rate_of_0(tmp_path):
    """One that draws V₀ wherever V is 0 then has NaN."""
    pytest.importorskip("optax", reason="a transformation of optax")
    found = findings(f"{module(tmp_path, OPTAX)}:lazy", ["vectors"], level="default")["vectors"]
    assert found["outcome"] == "pass"
    assert "σ = α / η is not defined at η = 0" in found["note"]


def test_a_state_that_changes_its_dtype_does_not_offer_it(tmp_path):
    """`jax.lax.scan` refuses it."""
    pytest.importorskip("optax", reason="a transformation of optax")
    path = module(tmp_path, OPTAX)
    found = findings(f"{path}:drifts", ["bfloat16"])["bfloat16"]
    assert found["outcome"] == "remark"
    assert "scan" in found["note"]
