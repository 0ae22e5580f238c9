"""Mistakes that need Keras's other entrances: pairs, graphs between eager steps, and the like."""

import pytest

from tests.support.worker import beside_a_subclass, outcomes, written

pytestmark = pytest.mark.slow

STEP = "    def update_step(self, g, w, lr):\n"
APPLY = "    def apply(self, grads, variables=None):\n"
# One with the options of the base class that takes sparse gradients, too.
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
    "pairs have twice the gradient": (
        "    def apply_gradients(self, pairs):\n"
        "        return super().apply_gradients([(2 * g, w) for g, w in pairs])",
        "clipping",
    ),
    "the caller's list of gradients": (
        f"{APPLY}"
        "        super().apply(list(grads), variables)\n"
        "        if isinstance(grads, list): grads.reverse()",
        "gradient",
    ),
    "gradients of NumPy are clipped in place": (
        f"{APPLY}"
        "        for g in grads:\n"
        "            if hasattr(g, 'flags'): g.clip(-1, 1, out=g)\n"
        "        super().apply(grads, variables)",
        "gradient",
    ),
    "a call without gradients is a step": (
        f"{APPLY}"
        "        if not grads: self._iterations.assign_add(1)\n"
        "        super().apply(grads, variables)",
        "order",
    ),
    "t of eager steps is a number of Python": (
        "    t = 0\n"
        f"{APPLY}"
        "        if tf.executing_eagerly(): self.t = self.t + 1\n"
        "        super().apply(grads, variables)\n"
        f"{STEP}"
        "        own = self._iterations\n"
        "        if tf.executing_eagerly(): self._iterations = tf.constant(self.t - 1, 'int64')\n"
        "        super().update_step(g, w, lr)\n"
        "        self._iterations = own",
        "assigned",
    ),
    "a graph has a copy of W": (
        f"{STEP}"
        "        if tf.executing_eagerly(): return super().update_step(g, w, lr)\n"
        "        self.masters = getattr(self, 'masters', {})\n"
        "        i = self._get_variable_index(w)\n"
        "        if i not in self.masters:\n"
        "            with tf.init_scope(): self.masters[i] = tf.Variable(w)\n"
        "        w.assign(tf.where(self._iterations <= 1, w, self.masters[i]))\n"
        "        super().update_step(g, w, lr)\n"
        "        self.masters[i].assign(w)",
        "assigned",
    ),
    "a load makes variables that a graph does not know": (
        "    def load_own_variables(self, store):\n"
        "        import keras\n"
        "        super().load_own_variables(store)\n"
        "        for k, v in enumerate(self.velocities):\n"
        "            made = keras.Variable(v, name=v.name, dtype=v.dtype, trainable=False)\n"
        "            place = [x is v for x in self._variables].index(True)\n"
        "            self._variables[place] = self.velocities[k] = made",
        "resume",
    ),
    "weights that are set draw V again": (
        "    def set_weights(self, weights):\n"
        "        super().set_weights(weights)\n"
        "        for v in self.velocities: v.assign(tf.zeros_like(v))",
        "resume",
    ),
    "a schedule is saved as its rate": (
        "    def get_config(self):\n"
        "        from keras.optimizers import schedules\n"
        "        config, rate = super().get_config(), self.learning_rate\n"
        "        if hasattr(self._learning_rate, 'get_config'):\n"
        "            kept = schedules.PiecewiseConstantDecay([0], [float(rate)] * 2)\n"
        "            config['learning_rate'] = schedules.serialize(kept)\n"
        "        return config",
        "schedule",
    ),
    "a graph has the first rate of a schedule": (
        "    def _get_current_learning_rate(self):\n"
        "        own = self._learning_rate\n"
        "        if hasattr(own, 'get_config') and not tf.executing_eagerly(): return own(0)\n"
        "        return super()._get_current_learning_rate()",
        "schedule",
    ),
    "no constraints in a graph": (
        f"{APPLY}"
        "        if tf.executing_eagerly(): return super().apply(grads, variables)\n"
        "        variables = list(variables)\n"
        "        kept = [w.constraint for w in variables]\n"
        "        for w in variables: w.constraint = None\n"
        "        super().apply(grads, variables)\n"
        "        for w, c in zip(variables, kept): w.constraint = c",
        "constraint",
    ),
    "no averages in a graph": (
        f"{APPLY}"
        "        own = self.use_ema\n"
        "        self.use_ema = own and tf.executing_eagerly()\n"
        "        super().apply(grads, variables)\n"
        "        self.use_ema = own",
        "ema",
    ),
    "a configuration with another momentum": (
        "    def get_config(self):\n        return super().get_config() | {'ema_momentum': 0.99}",
        "ema",
    ),
    "no averages at the end": (
        "    def finalize_variable_values(self, var_list): pass",
        "ema",
    ),
    "None is a zero in a graph": (
        f"{APPLY}"
        "        if not tf.executing_eagerly():\n"
        "            variables, given = list(variables), list(grads)\n"
        "            grads = [tf.zeros_like(w) if g is None else g"
        " for g, w in zip(given, variables)]\n"
        "        super().apply(grads, variables)",
        "missing",
    ),
    "weight decay is that of the constructor": (
        "    def build(self, variables):\n"
        "        self.first = self.weight_decay\n"
        "        super().build(variables)\n"
        "    def _apply_weight_decay(self, variables):\n"
        "        now, self.weight_decay = self.weight_decay, self.first\n"
        "        super()._apply_weight_decay(variables)\n"
        "        self.weight_decay = now",
        "options",
    ),
    "V by the name of the optimizer": (
        "    kept = {}\n"
        "    def build(self, variables):\n"
        "        if self.built: return\n"
        "        super().build(variables)\n"
        "        own = self.kept.setdefault(self.name, self.velocities)\n"
        "        same = [v.shape for v in own] == [v.shape for v in self.velocities]\n"
        "        if same: self.velocities = own",
        "turns",
    ),
    "a branch of a graph": (
        f"{STEP}"
        "        name = '' if tf.executing_eagerly() else tf.compat.v1.get_default_graph().name\n"
        "        super().update_step(g * (2 if 'cond' in name else 1), w, lr)",
        "loss-scale",
    ),
    "the body of a loop": (
        f"{STEP}"
        "        name = '' if tf.executing_eagerly() else tf.compat.v1.get_default_graph().name\n"
        "        super().update_step(g * (2 if 'while' in name else 1), w, lr)",
        "transformed",
    ),
    "a second graph has t of the step that traces it": (
        f"{STEP}"
        "        own, graph = self._iterations, tf.compat.v1.get_default_graph()\n"
        "        if not tf.executing_eagerly():\n"
        "            self.first = getattr(self, 'first', graph)\n"
        "            if graph is not self.first:\n"
        "                with tf.init_scope(): self._iterations = tf.constant(own.numpy())\n"
        "        super().update_step(g, w, lr)\n"
        "        self._iterations = own",
        "trajectory",
    ),
    "gradients are clipped before they accumulate": (
        f"{APPLY}"
        "        if self.gradient_accumulation_steps: grads = self._clip_gradients(grads)\n"
        "        super().apply(grads, variables)",
        "accumulation",
    ),
    "gradients that accumulate are unscaled twice": (
        f"{STEP}"
        "        accumulates = self.gradient_accumulation_steps and self.loss_scale_factor\n"
        "        super().update_step(g / (self.loss_scale_factor if accumulates else 1), w, lr)",
        "accumulation",
    ),
    "a list excludes, so names do not": (
        "    def exclude_from_weight_decay(self, var_list=None, var_names=None):\n"
        "        var_names = None if var_list else var_names\n"
        "        super().exclude_from_weight_decay(var_list=var_list, var_names=var_names)",
        "excluded",
    ),
    "a configuration without the seed": (
        "    def get_config(self):\n"
        "        return {n: x for n, x in super().get_config().items() if n != 'seed'}",
        "v0",
    ),
    "weights that are set leave t": (
        "    def set_weights(self, weights):\n"
        "        for v, w in [*zip(self.variables, weights)][1:]: v.assign(w)",
        "resume",
    ),
    "gradients have the dtype in which layers compute": (
        f"{STEP}"
        "        import keras\n"
        "        own = keras.config.dtype_policy().compute_dtype\n"
        "        super().update_step(tf.cast(tf.cast(g, own), g.dtype), w, lr)",
        "default-dtype",
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_a_mistake_at_another_entrance_of_keras_differs(name, tmp_path):
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    code, check = KERAS[name]
    level = "default" if check in ("transformed", "default-dtype") else "quick"
    found = beside_a_subclass(tmp_path, RIGHT, code, check, level)
    assert found == {"Wrong": "differs", "Around": "pass"}


def test_missing_gradients_may_be_refused_where_t_is_of_the_optimizer(tmp_path):
    """The steps of some variables show whose steps t counts."""
    pytest.importorskip("tensorflow", reason="optimizers of Keras")
    code = (
        f"{APPLY}"
        "        if any(g is None for g in grads):\n"
        "            raise ValueError('a gradient is missing')\n"
        "        super().apply(grads, variables)"
    )
    spec = written(tmp_path, "tensorflow as tf", f"{RIGHT}\nclass Strict(Around):\n{code}", "keras")
    path = spec.rpartition(":")[0]
    assert outcomes(path, "missing", "Strict") == {"Strict": "remark"}
    assert outcomes(path, "order", "Strict") == {"Strict": "pass"}
