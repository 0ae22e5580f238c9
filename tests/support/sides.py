"""Torch, JAX, TensorFlow and NumPy as optimizers of one interface, and the reference beside them.

A side is made of weights and hyper-parameters, or of weights and a `State`; it steps at the rate
that it has, by one of these or by `change_rate`, and it saves and loads itself as its framework's
users do. All of it exchanges NumPy arrays.
"""

import contextlib
import copy
import functools
import importlib
import io
import pickle

import ml_dtypes
import numpy as np
from hypothesis import Phase, settings

import gravity_core
from gravity_core import Gravity, State


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Reference:
    """The pure functions tensor by tensor, with their certified bound, also for half types."""

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


class Torch:
    name = "torch"

    def __init__(self, weights, options):
        self.torch = importlib.import_module("torch")
        self.adapter = importlib.import_module("gravity_torch")
        self.dtype = weights[0].dtype
        self.params = [self.torch.nn.Parameter(self.tensor(w)) for w in weights]
        names = {"learning_rate": "lr"}
        self.options = {names.get(name, name): value for name, value in options.items()}
        self.optimizer = self.adapter.Gravity(self.params, **self.options)

    def tensor(self, array):
        if array.dtype == ml_dtypes.bfloat16:
            return self.torch.tensor(array.astype(np.float32)).bfloat16()
        return self.torch.tensor(array)

    def numpy(self, tensor):
        host = tensor.detach().clone()
        if host.dtype == self.torch.bfloat16:
            host = host.float()
        return host.numpy().astype(self.dtype)

    def change_rate(self, lr):
        self.optimizer.param_groups[0]["lr"] = lr

    def step(self, gradients):
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = self.tensor(g)
        self.optimizer.step()

    def export(self):
        return self.adapter.export_state(self.optimizer)

    def adopt(self, state):
        self.optimizer = self.adapter.Gravity(self.params)
        self.adapter.import_state(self.optimizer, state)

    def reload(self):
        file = io.BytesIO()
        self.torch.save((self.params, self.optimizer.state_dict()), file)
        file.seek(0)
        self.params, saved = self.torch.load(file, weights_only=True)
        self.optimizer = self.adapter.Gravity(self.params, **self.options)
        self.optimizer.load_state_dict(saved)

    def velocity(self):
        # What has had no gradient has no state yet, and its V is the V₀ that it is exported with.
        if not self.optimizer.state:
            return [v.astype(self.dtype) for v in self.export().velocities]
        return [self.numpy(self.optimizer.state[p]["velocity"]) for p in self.params]

    def weights(self):
        return [self.numpy(p) for p in self.params]


@functools.lru_cache(maxsize=64)
def jax_optimizer(double, options):
    """Return an optimizer of a learning rate that can be changed, and its jitted step."""
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
        # σ is that of the first rate, whatever the rate becomes.
        self.options = options | {"velocity_std": Gravity(**options).velocity_std}
        # The rate is in the state, so one compiled step serves all of them.
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
        # As gravity(**state.hyperparameters) has it, which would be compiled again for every rate.
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


class TensorFlow:
    name = "tensorflow"

    def __init__(self, weights, options):
        self.keras = importlib.import_module("keras")
        self.adapter = importlib.import_module("gravity_tf")
        self.dtype = weights[0].dtype
        self.variables = [self.keras.Variable(w, dtype=w.dtype.name) for w in weights]
        self.make(options)

    @contextlib.contextmanager
    def floatx(self):
        # In which Keras keeps the learning rate.
        before = self.keras.config.floatx()
        self.keras.config.set_floatx("float64" if self.dtype == np.float64 else "float32")
        try:
            yield
        finally:
            self.keras.config.set_floatx(before)

    def make(self, options):
        with self.floatx():
            self.optimizer = self.adapter.Gravity(**options)
            self.optimizer.build(self.variables)

    def change_rate(self, lr):
        self.optimizer.learning_rate = lr

    def step(self, gradients):
        self.optimizer.apply([self.keras.ops.convert_to_tensor(g) for g in gradients])

    def export(self):
        return self.adapter.export_state(self.optimizer)

    def adopt(self, state):
        self.make({})
        self.adapter.import_state(self.optimizer, state)

    def reload(self):
        # What a .keras file holds of an optimizer: its configuration and its variables.
        config = copy.deepcopy(self.keras.saving.serialize_keras_object(self.optimizer))
        stored = {}
        self.optimizer.save_own_variables(stored)
        with self.floatx():
            self.variables = [self.keras.Variable(w, dtype=self.dtype.name) for w in self.weights()]
            self.optimizer = self.keras.saving.deserialize_keras_object(config)
            self.optimizer.build(self.variables)
        self.optimizer.load_own_variables(stored)

    def numpy(self, variable):
        return np.array(variable.numpy()).astype(self.dtype)

    def velocity(self):
        return [self.numpy(v) for v in self.optimizer._velocities]

    def weights(self):
        return [self.numpy(w) for w in self.variables]


# Keras rounds the weight decay to float32 even for float64 variables, so these are exact in it.
WEIGHT_DECAYS = (0.0, 0.0625)

# A failing run is short as it is. To look for a shorter one, with four frameworks to start at every
# try, takes minutes.
AS_FOUND = settings(
    deadline=None, phases=[p for p in Phase if p not in (Phase.shrink, Phase.explain)]
)

SIDES = (Numpy, Torch, Jax, TensorFlow)
NEEDED = ("torch", "jax", "optax", "flax", "keras", "tensorflow")


def through_a_file(state, path):
    """Return the state as its file gives it back."""
    state.save(path)
    return State.load(path)
