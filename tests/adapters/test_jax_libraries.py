"""gravity_jax in checkpoints, Flax and Equinox."""

import pickle

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

from gravity_jax import ScaleByGravityState, gravity  # noqa: E402
from tests.support.jax_helpers import (  # noqa: E402
    assert_same,
    run,
    tree,
)


def resumes(optimizer, keep):
    """Assert that a run continues bit for bit after `keep` has stored and restored it."""
    params = tree(0)
    params, state = run(optimizer, params, optimizer.init(params), range(1, 4), jax.jit)
    whole = run(optimizer, params, state, range(4, 7), jax.jit)
    kept_params, kept_state = keep((params, state))
    assert isinstance(kept_state[0], ScaleByGravityState)
    assert_same(run(optimizer, kept_params, kept_state, range(4, 7), jax.jit), whole)


def test_pickle():
    resumes(gravity(seed=3), lambda x: pickle.loads(pickle.dumps(x)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # orbax's own
def test_orbax(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="stores a checkpoint with orbax")

    def keep(values):
        with orbax.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "step", values)
            checkpointer.wait_until_finished()
            return checkpointer.restore(tmp_path / "step", jax.eval_shape(lambda: values))

    resumes(gravity(seed=3), keep)


def test_flax_train_state():
    reason = "trains a flax module"
    train_state = pytest.importorskip("flax.training.train_state", reason=reason)
    params = tree(0)
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=gravity(seed=3))
    step = jax.jit(lambda state, gradients: state.apply_gradients(grads=gradients))
    for number in range(1, 4):
        state = step(state, tree(number))
    expected = run(gravity(seed=3), params, gravity(seed=3).init(params), range(1, 4), jax.jit)
    assert_same(state.params, expected[0])


def test_flax_nnx_optimizer():
    nnx = pytest.importorskip("flax.nnx", reason="trains an nnx module")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gravity(0.1), wrt=nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)
    y = x @ jnp.asarray([[1.0, 0.5], [-0.5, 1.0], [0.2, 0.1]])

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(300)]
    assert losses[-1] < losses[0] / 100


def test_equinox_modules():
    eqx = pytest.importorskip("equinox", reason="trains an equinox module")
    model = eqx.nn.MLP(3, 1, 8, 1, key=jax.random.key(0))
    optimizer = gravity(0.1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.float32)

    @eqx.filter_jit
    def step(model, state):
        def loss_of(model):
            return jnp.mean((jax.vmap(model)(x)[:, 0] - x[:, 0]) ** 2)

        loss, gradients = eqx.filter_value_and_grad(loss_of)(model)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, loss

    state = optimizer.init(eqx.filter(model, eqx.is_array))
    losses = []
    for _ in range(200):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 10
