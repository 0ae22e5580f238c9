"""Implementations of every kind with every mistake, as third parties would write them.

`torch_mean` is an optimizer of the kind torch with the mistake "mean"; `<kind>_right` is correct.
All of them use the paper's literal form and no code of gravity_conformance.
"""

import collections

import numpy as np

LIST = ("plus_one", "minus_one", "half", "mean", "whole_model", "square", "weight", "bare_beta")
LIST += ("std", "twice", "coupled", "negated", "reset", "stops", "difference")
LIST += ("hidden", "decoy", "redraws")  # torch: correct, but V and t cannot be set


class Mathematics:
    """The update of one tensor with a mistake; `xp` has max and mean, `half` casts to float16."""

    def __init__(self, xp, half, mistake):
        self.xp, self.half, self.mistake, self.narrow = xp, half, mistake, np.float32

    def coefficients(self, t, beta):
        if self.mistake == "plus_one":
            t = t + 1
        if self.mistake == "minus_one":
            t = t - 1
        if self.mistake == "stops":
            t = min(t, 2048)
        if self.mistake == "bare_beta":
            return beta, 1 - beta
        if self.mistake == "half":
            t = self.half(t)
        old = (beta * t + 1) / (t + 2)
        new = ((1 - beta) * t + 1) / (t + 2)
        if self.mistake == "difference":
            new = self.narrow(1) - self.narrow(old)
        if self.mistake == "half":
            old, new = float(old), float(new)
        return old, 1 if self.mistake == "weight" else new

    def scale(self, g):
        size = abs(g)
        return self.xp.mean(size) if self.mistake == "mean" else self.xp.max(size)

    def zeta(self, g, scale):
        # With m itself, max|G| = 0 would divide by zero.
        slope = g * scale
        return g / (1 + (abs(slope) if self.mistake == "square" else slope * slope))

    def decayed(self, w, g, lr, decay):
        if self.mistake == "coupled":
            return w, g + decay * w
        return w - lr * decay * w, g

    def move(self, w, v, lr):
        return w - lr * (lr * v if self.mistake == "twice" else v)

    def std(self, alpha, lr):
        if self.mistake == "std":
            return alpha
        return alpha / lr if lr else 0.0  # starts from rest


def plain(mistake):
    math = Mathematics(np, np.float16, mistake)

    def step(w, v, g, t, lr, beta, *, weight_decay=0.0, maximize=False):
        if not w.size:
            return w, v
        dtype = w.dtype
        if maximize and mistake == "negated":
            np.negative(g, out=g)
        elif maximize:
            g = -g
        w, v, g = (x.astype(np.result_type(dtype, np.float32)) for x in (w, v, g))
        math.narrow = g.dtype.type
        with np.errstate(all="ignore"):
            w, g = math.decayed(w, g, lr, weight_decay)
            old, new = math.coefficients(t, beta)
            v = old * v + new * math.zeta(g, math.scale(g))
            return math.move(w, v, lr).astype(dtype), v.astype(dtype)

    return step


def torch(mistake):
    import torch

    math = Mathematics(torch, lambda t: torch.tensor(t, dtype=torch.float16), mistake)

    class Stranger(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1, alpha=0.01, beta=0.9, weight_decay=0.0, maximize=False):
            # Not alpha: a group has none of its own.
            self.maximize, self.alpha = maximize, alpha
            super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})
            self.counts = collections.defaultdict(int)

        def add_param_group(self, group):
            super().add_param_group(group)
            group["std"] = math.std(self.alpha, float(group["lr"]))

        @torch.no_grad()
        def step(self):
            every = [p for group in self.param_groups for p in group["params"]]
            every = [p for p in every if p.numel() and p.grad is not None]
            for group in self.param_groups:
                lr = group["lr"]
                for p in group["params"]:
                    if not p.numel() or p.grad is None:
                        continue
                    state = self.state[p]
                    if "v" not in state or (mistake == "redraws" and not state["t"]):
                        state["v"] = torch.randn_like(p) * group["std"]
                        state["t"] = 0
                    self.counts[p] += 1
                    state["t"] += mistake != "hidden"
                    t = self.counts[p] if mistake in ("hidden", "decoy") else state["t"]
                    if mistake == "negated" and self.maximize:
                        p.grad.neg_()
                    g = -p.grad if self.maximize and mistake != "negated" else p.grad
                    wide = torch.promote_types(p.dtype, torch.float32)
                    w, g = math.decayed(p.to(wide), g.to(wide), lr, group["weight_decay"])
                    scale = math.scale(g)
                    if mistake == "whole_model":
                        scale = max(math.scale(q.grad) for q in every)
                    old, new = math.coefficients(t, group["beta"])
                    v = old * state["v"].to(wide) + new * math.zeta(g, scale)
                    state["v"] = v.to(p.dtype)
                    p.copy_(math.move(w, v, lr))

        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            if mistake == "reset":
                for state in self.state.values():
                    state["v"] = torch.zeros_like(state["v"])

    return Stranger


def optax(mistake):
    import jax
    import optax
    from jax import numpy as jnp

    math = Mathematics(jnp, lambda t: jnp.asarray(t, jnp.float16), mistake)

    def gravity(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, weight_decay=0.0):
        nominal = learning_rate(0) if callable(learning_rate) else learning_rate

        def init(params):
            leaves, structure = jax.tree.flatten(params)
            rng, std = np.random.default_rng(seed), math.std(alpha, nominal)
            v = [jnp.asarray(std * rng.standard_normal(w.shape), w.dtype) for w in leaves]
            return {"t": jnp.zeros([], jnp.int32), "velocity": jax.tree.unflatten(structure, v)}

        def update(updates, state, params):
            t = state["t"] + 1
            if not isinstance(t, jax.core.Tracer):
                t = int(t)
            lr = learning_rate(state["t"]) if callable(learning_rate) else learning_rate
            if mistake == "half":
                half = jnp.asarray(t, jnp.float16)
                old = ((beta * half + 1) / (half + 2)).astype(jnp.float32)
                new = (1 - (beta * half + 1) / (half + 2)).astype(jnp.float32)
            else:
                old, new = math.coefficients(t, beta)
            scales = [math.scale(g) for g in jax.tree.leaves(updates) if g.size]
            whole = jnp.max(jnp.stack(scales)) if scales else None

            def next_v(w, v, g):
                if not g.size:
                    return v
                wide = jnp.promote_types(w.dtype, jnp.float32)
                _, g = math.decayed(w, g.astype(wide), lr, weight_decay)
                scale = whole if mistake == "whole_model" else math.scale(g)
                return (old * v.astype(wide) + new * math.zeta(g, scale)).astype(v.dtype)

            v = jax.tree.map(next_v, params, state["velocity"], updates)

            def moved(w, v):
                kept, _ = math.decayed(w, w, lr, weight_decay)
                return math.move(kept - w, v, lr).astype(w.dtype)

            return jax.tree.map(moved, params, v), {"t": state["t"] + 1, "velocity": v}

        return optax.GradientTransformation(init, update)

    return gravity


def keras(mistake):
    import keras
    from keras import ops

    math = Mathematics(ops, lambda t: ops.cast(t, "float16"), mistake)

    class Stranger(keras.optimizers.Optimizer):
        def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, weight_decay=None, **kwargs):
            super().__init__(
                learning_rate, **kwargs
            )  # weight_decay is left out: the base class rounds it to float32
            self.std, self.beta = math.std(alpha, float(learning_rate)), beta
            self.alpha, self.decay, self.without = alpha, weight_decay or 0.0, []

        def exclude_from_weight_decay(self, var_list=None, var_names=None):
            self.without = var_list

        def get_config(self):
            own = {"alpha": self.alpha, "beta": self.beta, "weight_decay": self.decay}
            return super().get_config() | own

        def build(self, variables):
            if self.built:
                return
            super().build(variables)
            self.decays = [all(w is not x for x in self.without) for w in variables]
            numbers = keras.random.SeedGenerator()  # a plain seed would give equal tensors
            draw = keras.initializers.RandomNormal(stddev=self.std, seed=numbers)
            self.velocities = [
                self.add_variable_from_reference(w, "velocity", initializer=draw) for w in variables
            ]

        def apply(self, grads, trainable_variables=None):
            grads = list(grads)
            if mistake == "whole_model":
                self.whole = max((math.scale(g) for g in grads if 0 not in g.shape), default=None)
            super().apply(grads, trainable_variables)

        def update_step(self, gradient, variable, learning_rate):
            if 0 in variable.shape:
                return
            place = self._get_variable_index(variable)
            v, decay = self.velocities[place], self.decay * self.decays[place]
            wide = "float64" if variable.dtype == "float64" else "float32"
            t, lr = ops.cast(self.iterations, wide) + 1, ops.cast(learning_rate, wide)
            old, new = math.coefficients(t, self.beta)
            given = ops.cast(variable, wide), ops.cast(gradient, wide)
            w, gradient = math.decayed(*given, lr, decay)
            scale = self.whole if mistake == "whole_model" else math.scale(gradient)
            new_v = old * ops.cast(v, wide) + new * math.zeta(gradient, scale)
            self.assign(v, ops.cast(new_v, v.dtype))
            self.assign(variable, ops.cast(math.move(w, new_v, lr), variable.dtype))

        def load_own_variables(self, store):
            super().load_own_variables(store)
            if mistake == "reset":
                for v in self.velocities:
                    v.assign(ops.zeros_like(v))

    return Stranger


KINDS = {"plain": plain, "torch": torch, "optax": optax, "keras": keras}
made = {}


def __getattr__(name):
    kind, _, mistake = name.partition("_")
    if kind not in KINDS or mistake not in (*LIST, "right"):
        raise AttributeError(name)
    if name not in made:
        made[name] = KINDS[kind](mistake)
    return made[name]
