"""One right implementation of each kind, with rules that a mistake overrides.

`torch_head` is an optimizer of the kind torch whose rules are `Head`; `<kind>_right` is right.
All of them use the paper's form and no code of gravity_conformance.
"""

import importlib

import numpy as np


class Rules:
    """What the implementations do, in parts; `xp` is numpy, torch, jax.numpy or keras.ops."""

    later = False  # whether the gradients of the step before are cleared

    def __init__(self, kind, xp):
        self.kind, self.xp = kind, xp
        # Frameworks that compile the step are fed smaller tensors.
        self.block = 65_536 if kind == "torch" else 16_384

    def flat(self, x):
        return self.xp.reshape(x, (-1,))

    def largest(self, g, place):
        """Return max|G| of the tensor at a place in the list."""
        return self.xp.max(self.xp.abs(g))

    def zeta(self, g, place):
        s = g * self.largest(g, place)
        return g / (1 + s * s)

    def coefficients(self, t, beta):
        return (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)

    def rate(self, lr):
        return lr

    def normal(self, seed, place, shape):
        return np.random.default_rng([seed, place]).standard_normal(shape)

    def v0(self, std, seed, place, shape):
        return std * self.normal(seed, place, shape)

    def slot(self, place, shapes):
        """Return the place of the V that a tensor uses."""
        return place

    def group(self, groups, k):
        """Return the options of a group."""
        return groups[k]

    def takes_part(self, k, known):
        """Tell whether group k steps; `known` is the number of groups at construction."""
        return True

    def missing(self, p, group):
        """Treat a parameter without a gradient."""

    def refuse(self, w, g):
        """Raise an error for input that is not offered."""

    def wide(self, dtype):
        """Return the dtype in which a plain function computes."""
        return np.result_type(dtype, np.float32)


class Head(Rules):
    def largest(self, g, place):
        return super().largest(self.flat(g)[: self.block], place)


class Tail(Rules):
    def largest(self, g, place):
        flat = self.flat(g)
        whole = flat.shape[0] // 4 * 4
        return super().largest(flat[:whole] if whole else flat, place)


class FiveAxes(Rules):
    def largest(self, g, place):
        return super().largest(g[0] if len(g.shape) == 5 else g, place)


class Negative(Rules):
    def largest(self, g, place):
        xp = self.xp
        return xp.where(xp.all(g < 0), -xp.max(g), super().largest(g, place))


class Rows(Rules):
    def largest(self, g, place):
        if len(g.shape) == 2 and g.size > 1000 and self.kind == "plain":
            return self.xp.max(self.xp.abs(g), axis=-1, keepdims=True)
        return super().largest(g, place)


class LongList(Rules):
    def zeta(self, g, place):
        return 0 * g if place >= 320 else super().zeta(g, place)


class Least(Rules):
    def rate(self, lr):
        return max(lr, 1e-3)


class Most(Rules):
    def rate(self, lr):
        return min(lr, 1.0)


class Minus(Rules):
    def zeta(self, g, place):
        return super().zeta(self.xp.where(self.xp.isneginf(g), 0, g), place)


class EveryEighth(Rules):
    def zeta(self, g, place):
        return 0 * g if place % 8 == 7 else super().zeta(g, place)


class Later(Rules):
    def zeta(self, g, place):
        first = 5 if self.kind == "keras" else 6
        return 0 * g if place >= first else super().zeta(g, place)


class SharedV(Rules):
    def slot(self, place, shapes):
        return shapes.index(shapes[place]) if len(shapes[place]) == 1 else place


class FirstBeta(Rules):
    def group(self, groups, k):
        return groups[k] | {"beta": groups[0]["beta"]}


class FirstRate(Rules):
    def group(self, groups, k):
        return groups[k] | {"lr": groups[0]["lr"]}


class LateGroup(Rules):
    def takes_part(self, k, known):
        return k < known


class Decays(Rules):
    def missing(self, p, group):
        p.mul_(1 - group["lr"] * group["weight_decay"])


class TensorRate(Rules):
    def rate(self, lr):
        number = isinstance(lr, float | int) or callable(lr)
        if self.kind == "keras":  # the learning rate is always a variable
            return lr
        return lr if number else 0 * lr


class Later0(Rules):
    later = True


class Half(Rules):
    def normal(self, seed, place, shape):
        z = super().normal(seed, place, shape)
        z.reshape(-1)[32_768:] = 0
        return z


class Repeats(Rules):
    def normal(self, seed, place, shape):
        return np.resize(super().normal(seed, place, (1000,)), shape)


class NoBiases(Rules):
    def v0(self, std, *where):
        return super().v0(0 if len(where[-1]) == 1 else std, *where)


class Tall(Rules):
    def largest(self, g, place):
        if len(g.shape) == 2 and g.shape[0] >= 10_000:
            return self.xp.max(self.xp.abs(g), axis=-1, keepdims=True)
        return super().largest(g, place)


class Thirds(Rules):
    def largest(self, g, place):
        if len(g.shape) == 2 and g.shape[0] == 3 * g.shape[1] >= 192:
            return self.xp.max(abs(g).reshape(3, -1), axis=1).repeat(g.shape[1])[:, None]
        return super().largest(g, place)


class NoZero(Rules):
    def coefficients(self, t, beta):
        return super().coefficients(t, beta or 0.9)


class Skipped(Rules):
    def largest(self, g, place):
        return self.xp.fmax.reduce(self.xp.abs(g), axis=None)


class Infinite(Rules):
    def largest(self, g, place):
        xp = self.xp
        return xp.max(xp.where(xp.isinf(g), xp.zeros_like(g), xp.abs(g)))


class HalfMaximum(Rules):
    def refuse(self, w, g):
        self.given = None if w.dtype == g.dtype else g

    def zeta(self, g, place):
        if self.given is None:
            return super().zeta(g, place)
        g = self.given
        s = g * self.xp.max(self.xp.abs(g))
        return (g / (1 + s * s)).astype(self.wide(g.dtype))


class Pieces(Rules):
    def largest(self, g, place):
        if g.size <= 2**22 or g.ndim != 2:
            return super().largest(g, place)
        maxima = [np.full((len(half), 1), abs(half).max()) for half in np.array_split(g, 2)]
        return np.concatenate(maxima)


class Cached(Rules):
    kept = None

    def v0(self, std, *where):
        self.kept = self.kept or {}
        return self.kept.setdefault(where, super().v0(std, *where)).copy()


class Mirror(Rules):
    def normal(self, seed, place, shape):
        z = super().normal(seed, place, shape)
        flat = z.reshape(-1)
        half = flat.size // 2
        flat[flat.size - half :] = -flat[:half][::-1]
        return z


class Tiles(Rules):
    def normal(self, seed, place, shape):
        return np.resize(super().normal(seed, place, (min(np.prod(shape), 2**18),)), shape)


class Twelve(Rules):
    def normal(self, seed, place, shape):
        return np.random.default_rng([seed, place]).random((12, *shape)).sum(axis=0) - 6


class Standardised(Rules):
    def normal(self, seed, place, shape):
        z = super().normal(seed, place, shape)
        return (z - z.mean()) / (z.std() or 1.0)


class Saturated(Rules):
    def zeta(self, g, place):
        s = g * self.largest(g, place)
        return g / (s * s + (abs(s) < 1e6))


class Scratch(Rules):
    def zeta(self, g, place):
        z = super().zeta(g, place)
        return z.astype(np.float32).astype(z.dtype) if g.size >= 2**18 else z


class Quarters(Rules):
    def largest(self, g, place):
        flat = self.flat(g)
        whole = flat.size // 4 * 4
        return super().largest(flat[:whole] if flat.size >= 2**17 else flat, place)


class FirstOfTail(Rules):
    def largest(self, g, place):
        flat = self.flat(g)
        lanes, rest = divmod(flat.size, 8)
        if flat.size > 1024 and 2 <= rest <= 6:
            flat = np.delete(flat, 8 * lanes)
        return super().largest(flat, place)


class BlockNaN(Rules):
    def largest(self, g, place):
        flat = self.flat(g)
        blocks = (flat[i : i + 2**17] for i in range(0, flat.size, 2**17))
        return max(super(BlockNaN, self).largest(block, place) for block in blocks)


# What is right, and refuses something or does without it.
class Finite(Rules):
    def refuse(self, w, g):
        if not self.xp.all(self.xp.isfinite(g)):
            raise ValueError("gradients must be finite")


class NoEmpty(Rules):
    def refuse(self, w, g):
        if 0 in g.shape:
            raise ValueError("tensors must not be empty")


class Singles(Rules):
    def refuse(self, w, g):
        named = getattr(w.dtype, "name", str(w.dtype))  # that of torch and Keras is a text
        if not any(name in named for name in ("float32", "float64")):
            raise TypeError(f"tensors must be float32 or float64, got {w.dtype}")


class Narrow(Rules):
    def refuse(self, w, g):
        if "float64" in str(w.dtype):
            raise TypeError(f"tensors must have 32 bits at most, got {w.dtype}")


class Literal(Rules):
    def wide(self, dtype):
        return dtype


class Long(Rules):
    def coefficients(self, t, beta):
        old = (np.longdouble(beta) * t + 1) / (np.longdouble(t) + 2)
        return old, 1 - old


class Inside(Rules):
    def coefficients(self, t, beta):
        if not 0 < beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {beta}")
        return super().coefficients(t, beta)

    def v0(self, std, *where):
        if not std > 0:
            raise ValueError(f"the standard deviation must be positive, got {std}")
        return super().v0(std, *where)


RULES = {
    "right": Rules,
    "head": Head,
    "tail": Tail,
    "five": FiveAxes,
    "negative": Negative,
    "rows": Rows,
    "long": LongList,
    "least": Least,
    "most": Most,
    "minus": Minus,
    "eighth": EveryEighth,
    "later": Later,
    "shared": SharedV,
    "beta": FirstBeta,
    "rate": FirstRate,
    "added": LateGroup,
    "decays": Decays,
    "tensor": TensorRate,
    "cleared": Later0,
    "half": Half,
    "repeats": Repeats,
    "biases": NoBiases,
    "tall": Tall,
    "thirds": Thirds,
    "falsy": NoZero,
    "skipped": Skipped,
    "infinite": Infinite,
    "halfmax": HalfMaximum,
    "pieces": Pieces,
    "cached": Cached,
    "mirror": Mirror,
    "tiles": Tiles,
    "twelve": Twelve,
    "standardised": Standardised,
    "saturated": Saturated,
    "scratch": Scratch,
    "quarters": Quarters,
    "lanes": FirstOfTail,
    "blocks": BlockNaN,
    "finite": Finite,
    "empty": NoEmpty,
    "singles": Singles,
    "narrow": Narrow,
    "literal": Literal,
    "longdouble": Long,
    "inside": Inside,
    "rest": Rules,
}


def plain(rules, *, rest=False):
    kept = []

    def step(w, v, g, t, lr, beta):
        rules.refuse(w, g)
        if rules.later:
            for x in kept:
                if x is not g and x.flags.writeable:
                    x[...] = 0
            kept[:] = [g]
        if not g.size:
            return w, v
        dtype = w.dtype
        wide = rules.wide(dtype)
        w, v, x = w.astype(wide), v.astype(wide), g.astype(wide)
        with np.errstate(all="ignore"):
            old, new = rules.coefficients(t, beta)
            v = old * v + new * rules.zeta(x, 0)
            return (w - rules.rate(lr) * v).astype(dtype), v.astype(dtype)

    return step


def torch(rules, *, rest=False):
    import torch

    kept = []

    class Planted(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1, beta=0.9, weight_decay=0.0, *, alpha=0.01, seed=0):
            options = {"lr": lr, "beta": beta, "weight_decay": weight_decay}
            # torch copies and saves these, and no other attributes.
            options |= {"alpha": 0.0 if rest else alpha, "seed": seed}
            super().__init__(params, options)
            self.defaults["known"] = len(self.param_groups)

        def add_param_group(self, group):
            super().add_param_group(group)
            group["std"] = group["alpha"] / float(group["lr"])

        @torch.no_grad()
        def step(self):
            listed = [(k, p) for k, group in enumerate(self.param_groups) for p in group["params"]]
            shapes = [tuple(p.shape) for _, p in listed]
            for g in kept:
                if all(g is not p.grad for _, p in listed):
                    g.zero_()
            for place, (k, p) in enumerate(listed):
                group = rules.group(self.param_groups, k)
                if p.grad is None:
                    rules.missing(p, group)
                elif rules.takes_part(k, self.defaults["known"]):
                    rules.refuse(p, p.grad)
                    self.one(p, listed[rules.slot(place, shapes)][1], place, group)
            kept[:] = [p.grad for _, p in listed if rules.later and p.grad is not None]

        def one(self, p, owner, place, group):
            state, shared = self.state[p], self.state[owner]
            if "v" not in state:
                v = rules.v0(group["std"], group["seed"], place, tuple(p.shape))
                state["t"], state["v"] = 0, torch.as_tensor(v).to(p.dtype)
            state["t"] += 1
            if not p.numel():
                return
            wide = torch.promote_types(p.dtype, torch.float32)
            old, new = rules.coefficients(state["t"], group["beta"])
            v = old * shared["v"].to(wide) + new * rules.zeta(p.grad.to(wide), place)
            shared["v"].copy_(v)
            lr = rules.rate(group["lr"])
            p.copy_(p.to(wide) * (1 - lr * group["weight_decay"]) - lr * v)

    if not rest:
        return Planted

    class FromRest(Planted):
        def __init__(self, params, lr=0.1, beta=0.9, weight_decay=0.0):
            super().__init__(params, lr, beta, weight_decay)

    return FromRest


def optax(rules, *, rest=False):
    import jax
    import optax
    from jax import numpy as jnp

    def gravity(learning_rate=0.1, alpha=0.01, beta=0.9, seed=0):
        nominal = learning_rate(0) if callable(learning_rate) else learning_rate
        std = alpha / float(nominal) if nominal else 0.0

        def init(params):
            leaves, structure = jax.tree.flatten(params)
            places = enumerate(leaves)
            v = [jnp.asarray(rules.v0(std, seed, i, w.shape), w.dtype) for i, w in places]
            return {"t": jnp.zeros([], jnp.int32), "velocity": jax.tree.unflatten(structure, v)}

        def update(updates, state, params=None):
            t = state["t"] + 1
            lr = learning_rate(state["t"]) if callable(learning_rate) else learning_rate
            grads, structure = jax.tree.flatten(updates)
            kept = jax.tree.leaves(state["velocity"])
            shapes = [g.shape for g in grads]
            moves = []
            for place, g in enumerate(grads):
                rules.refuse(g, g)
                slot = rules.slot(place, shapes)
                if g.size:
                    wide = jnp.promote_types(g.dtype, jnp.float32)
                    old, new = rules.coefficients(t.astype(wide), beta)
                    v = old * kept[slot].astype(wide) + new * rules.zeta(g.astype(wide), place)
                    kept[slot] = v.astype(kept[slot].dtype)
                    moves.append((-rules.rate(lr) * v).astype(g.dtype))
                else:
                    moves.append(g)
            v = jax.tree.unflatten(structure, kept)
            return jax.tree.unflatten(structure, moves), {"t": t, "velocity": v}

        return optax.GradientTransformation(init, update)

    def from_rest(learning_rate=0.1, beta=0.9):
        return gravity(learning_rate, 0.0, beta)

    return from_rest if rest else gravity


def keras(rules, *, rest=False):
    import keras
    from keras import ops

    class Planted(keras.optimizers.Optimizer):
        def __init__(self, learning_rate=0.1, alpha=0.01, beta=0.9, seed=0, **kwargs):
            super().__init__(learning_rate, **kwargs)
            is_schedule = isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule)
            called = learning_rate if callable(learning_rate) else lambda: learning_rate
            first = called(0) if is_schedule else called()
            self.std, self.beta, self.seed = alpha / float(first), beta, seed
            self.alpha = alpha

        def get_config(self):
            own = {"alpha": self.alpha, "beta": self.beta, "seed": self.seed}
            return super().get_config() | own

        def build(self, variables):
            if self.built:
                return
            super().build(variables)
            self.velocities, self.shapes = [], [tuple(w.shape) for w in variables]
            for place, w in enumerate(variables):
                v = rules.v0(self.std, self.seed, place, tuple(w.shape))

                # What is assigned where tf.function first traces a step is lost.
                def initial(shape, dtype, v=v):
                    return ops.convert_to_tensor(v, dtype)

                made = self.add_variable_from_reference(w, "velocity", initializer=initial)
                self.velocities.append(made)

        def update_step(self, gradient, variable, learning_rate):
            rules.refuse(variable, gradient)
            place = self._get_variable_index(variable)
            if 0 in variable.shape:
                return
            kept = self.velocities[rules.slot(place, self.shapes)]
            wide = "float64" if variable.dtype == "float64" else "float32"
            t, lr = ops.cast(self.iterations, wide) + 1, ops.cast(learning_rate, wide)
            old, new = rules.coefficients(t, self.beta)
            v = old * ops.cast(kept, wide) + new * rules.zeta(ops.cast(gradient, wide), place)
            self.assign(kept, ops.cast(v, kept.dtype))
            w = ops.cast(variable, wide) - rules.rate(lr) * v
            self.assign(variable, ops.cast(w, variable.dtype))

    class FromRest(Planted):
        def __init__(self, learning_rate=0.1, beta=0.9, name="planted"):
            super().__init__(learning_rate, 0.0, beta, name=name)

        def get_config(self):
            config = super().get_config()
            return {name: config[name] for name in ("learning_rate", "beta", "name")}

    return FromRest if rest else Planted


KINDS = {"plain": plain, "torch": torch, "optax": optax, "keras": keras}


def make(kind, rules, **how):
    """Return an implementation of a kind that follows `rules`."""
    modules = {"plain": "numpy", "torch": "torch", "optax": "jax.numpy", "keras": "keras.ops"}
    return KINDS[kind](rules(kind, importlib.import_module(modules[kind])), **how)


def __getattr__(name):
    kind, _, mistake = name.partition("_")
    if kind not in KINDS or mistake not in RULES:
        raise AttributeError(name)
    return make(kind, RULES[mistake], rest=mistake == "rest")
