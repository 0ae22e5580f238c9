"""Optimizers of torch, JAX, TensorFlow and NumPy behind one interface, and their reference.

Each framework is one side. Weights and hyper-parameters construct a side. `adopt` replaces its
state with a `State`, `change_rate` sets its learning rate, and `reload` saves and loads it as users
of the framework do. All arrays at the interface are NumPy arrays.
"""

import copy
import functools
import importlib
import pickle

import ml_dtypes
import numpy as np
from hypothesis import Phase, settings

import gravity_core
from gravity_conformance.drive.drivers import driver
from gravity_conformance.drive.spec import arguments
from gravity_core import Gravity, State


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Reference:
    """Steps each tensor with the pure functions, also in half types, and keeps the bound."""

    def __init__(self, weights, options):
        self.options = {name: options[name] for name in ("beta", "weight_decay")}
        optimizer = Gravity(**options)
        self.t, self.w = optimizer.first_step, [w.copy() for w in weights]
        optimizer.init(self.w)
        self.v = optimizer.velocity
        self.bounds = [gravity_core.ErrorBound(w) for w in self.w]

    def step(self, gradients, lr):
        for i, g in enumerate(gradients):
            w, v = self.w[i], self.v[i]
            wide = w.astype(np.promote_types(np.float32, w.dtype))
            new_v = np.asarray(gravity_core.update(g, v, self.t, beta=self.options["beta"]))
            decayed = wide - lr * self.options["weight_decay"] * wide
            new_w = np.asarray(decayed - lr * new_v.astype(wide.dtype)).astype(w.dtype)
            self.bounds[i].step(g, v, new_v, w, new_w, t=self.t, learning_rate=lr, **self.options)
            self.w[i], self.v[i] = new_w, new_v
        self.t += 1

    def check(self, side):
        """Fail unless a side's V and W lie within twice the bound, in the right dtype."""
        for what, all_got, all_expected in (
            ("V", side.velocity(), self.v),
            ("W", side.weights(), self.w),
        ):
            for i, (got, expected) in enumerate(zip(all_got, all_expected, strict=True)):
                assert (got.shape, got.dtype) == (expected.shape, expected.dtype), side.name
                bound = self.bounds[i].v if what == "V" else self.bounds[i].w
                distance = np.abs(got.astype(np.float64) - expected.astype(np.float64))
                assert (distance <= 2 * bound).all(), (
                    f"{what} of tensor {i} in {side.name} at t = {self.t}: {distance.max()} off, "
                    f"at most {2 * bound.max()} certified"
                )


class Numpy:
    name = "numpy"

    def __init__(self, weights, options):
        self.w = [w.copy() for w in weights]
        self.optimizer = Gravity(**options)
        self.optimizer.init(self.w)

    def change_rate(self, lr):
        self.optimizer.learning_rate = lr

    def step(self, gradients):
        self.optimizer.step(self.w, gradients)

    def export(self):
        return self.optimizer.export_state()

    def adopt(self, state):
        self.optimizer = Gravity()
        self.optimizer.import_state(state, self.w)

    def reload(self):
        self.w, self.optimizer = pickle.loads(pickle.dumps((self.w, self.optimizer)))

    def velocity(self):
        return self.optimizer.velocity

    def weights(self):
        return self.w


class Driven:
    """A framework driven by a session of the kit. Its adapter exports and imports the state."""

    def __init__(self, weights, options):
        self.adapter = importlib.import_module(self.package)
        self.dtype = weights[0].dtype
        self.start(weights, options, self.adapter.Gravity)

    def start(self, weights, options, found):
        started = driver(found, self.kind, arguments(found, {}))
        bfloat16 = self.dtype == ml_dtypes.bfloat16
        self.session = started.start(self.held(weights), options, bfloat16=bfloat16)

    def held(self, arrays):
        bfloat16 = self.dtype == ml_dtypes.bfloat16  # sessions take it as float32
        return [a.astype(np.float32) for a in arrays] if bfloat16 else arrays

    def step(self, gradients):
        self.session.step(self.held(gradients))

    def export(self):
        return self.adapter.export_state(self.session.optimizer)

    def adopt(self, state):
        self.start(self.weights(), {}, self.adapter.Gravity)
        self.adapter.import_state(self.session.optimizer, state)

    def velocity(self):
        # Before the first gradient, torch has no state to show. The adapter exports V₀ even then.
        shown = self.session.velocity()
        velocity = self.export().velocities if shown is None else shown
        return [v.astype(self.dtype) for v in velocity]

    def weights(self):
        return [w.astype(self.dtype) for w in self.session.weights()]


class Torch(Driven):
    name, package, kind = "torch", "gravity_torch", "torch"

    def change_rate(self, lr):
        self.session.optimizer.param_groups[0]["lr"] = lr

    def reload(self):
        self.session = self.session.reloaded()


@functools.lru_cache(maxsize=64)
def jax_optimizer(double, options):
    """Return an optimizer whose learning rate can be changed, and its jitted step."""
    import jax
    import optax

    from gravity_jax import gravity

    options = dict(options)
    fixed = [name for name in options if name != "learning_rate"]
    optimizer = optax.inject_hyperparams(gravity, static_args=fixed)(**options)

    @jax.jit
    def step(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


class Jax:
    name = "jax"

    def __init__(self, weights, options):
        self.jax = importlib.import_module("jax")
        self.adapter = importlib.import_module("gravity_jax")
        self.double = weights[0].dtype == np.float64
        self.make(options)
        with self.jax.enable_x64(self.double):
            self.params = [self.jax.numpy.array(w) for w in weights]
            self.state = self.optimizer.init(self.params)
        self.change_rate(options.get("learning_rate", gravity_core.Gravity().learning_rate))

    def make(self, options):
        # σ belongs to the first rate. Later rates do not change it.
        self.options = options | {"velocity_std": Gravity(**options).velocity_std}
        # The state holds the rate, so one compiled step serves all rates.
        compiled = self.options | {"learning_rate": 1.0}
        self.optimizer, self.compiled = jax_optimizer(self.double, tuple(sorted(compiled.items())))

    def change_rate(self, lr):
        with self.jax.enable_x64(self.double):
            self.state.hyperparams["learning_rate"] = self.jax.numpy.asarray(
                lr, self.params[0].dtype
            )
        self.options["learning_rate"] = lr

    def step(self, gradients):
        with self.jax.enable_x64(self.double):
            gradients = [self.jax.numpy.array(g) for g in gradients]
            self.params, self.state = self.compiled(gradients, self.state, self.params)

    def export(self):
        return self.adapter.export_state(self.state, **self.options)

    def adopt(self, state):
        self.make(state.hyperparameters)
        with self.jax.enable_x64(self.double):
            self.state = self.adapter.import_state(self.optimizer.init(self.params), state)
        # gravity(**state.hyperparameters) would set this rate, but compile again for every rate.
        self.change_rate(state.hyperparameters["learning_rate"])

    def reload(self):
        serialization = importlib.import_module("flax.serialization")
        data = serialization.to_bytes((self.params, self.state))
        with self.jax.enable_x64(self.double):
            fresh = self.optimizer.init(self.params)
            loaded = serialization.from_bytes((self.params, fresh), data)
            self.params, self.state = self.jax.tree.map(self.jax.numpy.asarray, loaded)

    def velocity(self):
        return [np.asarray(v) for v in self.state.inner_state[0].velocity]

    def weights(self):
        return [np.asarray(w) for w in self.params]


class TensorFlow(Driven):
    name, package, kind = "tensorflow", "gravity_tf", "keras"

    def change_rate(self, lr):
        self.session.optimizer.learning_rate = lr

    def reload(self):
        # A .keras file stores the configuration and the variables of an optimizer.
        saving, optimizer = importlib.import_module("keras").saving, self.session.optimizer
        config, stored = copy.deepcopy(saving.serialize_keras_object(optimizer)), {}
        optimizer.save_own_variables(stored)
        self.start(self.weights(), {}, lambda: saving.deserialize_keras_object(config))
        self.session.optimizer.load_own_variables(stored)


# Keras rounds the weight decay to float32 even for float64 variables, so these are exact in it.
WEIGHT_DECAYS = (0.0, 0.0625)

# Report a failing run as it is found. It is short, and shrinking it takes minutes: every try starts
# four frameworks.
AS_FOUND = settings(
    deadline=None, phases=[p for p in Phase if p not in (Phase.shrink, Phase.explain)]
)

SIDES = (Numpy, Torch, Jax, TensorFlow)
NEEDED = ("torch", "jax", "optax", "flax", "keras", "tensorflow")


def through_a_file(state, path):
    """Save the state to a file, and return the state that the file gives back."""
    state.save(path)
    return State.load(path)
