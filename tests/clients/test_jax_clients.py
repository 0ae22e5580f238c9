"""gravity_jax in the libraries that take an optax optimizer, each as docs/recipes/jax.md says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402

from gravity_core import State  # noqa: E402
from gravity_jax import export_state, gravity, import_state  # noqa: E402
from tests.support.jax_helpers import assert_same  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs/recipes/jax.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^## (?P<title>[^\n]+)\n(?:(?!^## ).)*?"
    r"^<!-- needs: (?P<needs>[\w, .]+) -->\n```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
BLOCKS = {match["title"]: match for match in BLOCK.finditer(PAGE)}
ROWS = dict(re.findall(r"^\| ([\w ]+) \| `([^`]+)` \|$", PAGE, re.MULTILINE))
X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X @ np.asarray([[1.0, 0.5], [-0.5, 1.0], [0.2, 0.1]], np.float32)

# of the libraries, inside themselves
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def library(name, reason):
    return pytest.importorskip(name, reason=f"{reason} needs {name}")


def line(name, **namespace):
    """Run the page's line about a library."""
    exec(ROWS[name], namespace)
    return namespace


def test_the_page_has_the_recipes():
    assert BLOCKS.keys() == {"Flax NNX", "Equinox"}
    assert ROWS.keys() == {
        "Flax Linen",
        "Haiku",
        "NumPyro",
        "Optimistix",
        "JAXopt",
        "BlackJAX",
        "Orbax",
    }


@pytest.mark.parametrize("title", BLOCKS)
def test_a_recipe_runs_saves_and_resumes(title):
    for name in BLOCKS[title]["needs"].split(", "):
        library(name, "the recipe")
    command = [sys.executable, "-c", BLOCKS[title]["code"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


NNX_RATE = optax.linear_schedule(0.2, 0.0, 100)


@pytest.mark.parametrize(
    "optimizer",
    [
        gravity(0.2),
        gravity(NNX_RATE, weight_decay=NNX_RATE),
        optax.inject_hyperparams(gravity)(NNX_RATE),
    ],
    ids=["number", "schedule", "injected"],
)
def test_an_imported_run_goes_on_in_nnx(optimizer):
    nnx = library("flax.nnx", "an nnx module")

    def new():
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, opt):
        opt.update(model, nnx.grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model))

    model, opt = new()
    for _ in range(3):
        step(model, opt)
    other, moved = new()
    structure = jax.tree.structure(moved.opt_state)
    moved.opt_state = import_state(moved.opt_state, export_state(opt.opt_state))
    assert jax.tree.structure(moved.opt_state) == structure
    nnx.update(other, nnx.state(model))
    for _ in range(2):
        step(model, opt)
        step(other, moved)
    assert_same(nnx.as_pure(nnx.state(other)), nnx.as_pure(nnx.state(model)))


@pytest.mark.parametrize("mode", ["hijax", "ref"])
def test_nnx_variables_of_other_kinds(mode):
    nnx = library("flax.nnx", "an nnx module")

    def losses(**modes):
        with nnx.var_defaults(**modes):
            model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            optimizer = nnx.Optimizer(model, gravity(0.2), wrt=nnx.Param)
            found = []
            for _ in range(3):
                params = jax.tree.map(jnp.array, nnx.as_pure(nnx.state(model, nnx.Param)))
                loss, gradients = jax.value_and_grad(
                    lambda p: jnp.mean((X @ p["kernel"] + p["bias"] - Y) ** 2)
                )(params)
                found.append(float(loss))
                plain = {k: nnx.Param(g, hijax=False, ref=False) for k, g in gradients.items()}
                optimizer.update(model, nnx.State(plain))
            state = export_state(optimizer.opt_state)
            # as the page says
            new = import_state(nnx.as_pure(optimizer.opt_state), State(7, state.velocities))
            nnx.update(optimizer.opt_state, nnx.state(new))
            return found, export_state(optimizer.opt_state)

    (expected, state), (found, other) = (losses(**{mode: on}) for on in (False, True))
    assert found == expected
    assert state.t == other.t == 7
    assert all(map(np.array_equal, state.velocities, other.velocities))


def test_equinox_leaves_integer_arrays_alone():
    eqx = library("equinox", "an equinox module")
    model = {"w": jnp.asarray(Y[0]), "n": jnp.arange(3)}
    optimizer = gravity(0.1, weight_decay=0.1)
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    gradients = eqx.filter_grad(lambda m: jnp.sum(m["w"] ** 2))(model)
    updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_array))
    trained = eqx.apply_updates(model, updates)
    assert np.array_equal(trained["n"], model["n"])
    assert not np.array_equal(trained["w"], model["w"])


def fit(loss_of, params, state, steps, update):
    step = jax.jit(jax.value_and_grad(loss_of))
    for _ in range(steps):
        loss, gradients = step(params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, float(loss)


def test_flax_linen():
    linen = library("flax.linen", "a linen module")
    from flax.serialization import from_bytes, to_bytes
    from flax.training.train_state import TrainState

    model = linen.Dense(2)
    params = model.init(jax.random.key(0), X)["params"]
    state = line("Flax Linen", TrainState=TrainState, model=model, params=params, gravity=gravity)
    state = state["state"]
    grad_of = jax.jit(jax.grad(lambda p: jnp.mean((model.apply({"params": p}, X) - Y) ** 2)))

    def steps(state, number):
        for _ in range(number):
            state = state.apply_gradients(grads=grad_of(state.params))
        return state

    state = steps(state, 3)
    fresh = TrainState.create(apply_fn=model.apply, params=params, tx=state.tx)
    resumed = from_bytes(fresh, to_bytes(state))
    assert_same(steps(resumed, 3), steps(state, 3))
    moved = fresh.replace(
        params=state.params, opt_state=import_state(fresh.opt_state, export_state(state.opt_state))
    )
    assert_same(steps(moved, 3).params, steps(state, 3).params)


def test_haiku():
    haiku = library("haiku", "a haiku module")
    model = haiku.without_apply_rng(haiku.transform(lambda x: haiku.Linear(2)(x)))
    params = model.init(jax.random.key(0), X)

    def update(gradients, state, params):
        found = line("Haiku", gradients=gradients, state=state, params=params, gravity=gravity)
        return found["updates"], found["state"]

    loss_of = lambda p: jnp.mean((model.apply(p, X) - Y) ** 2)  # noqa: E731
    *_, loss = fit(loss_of, params, gravity(0.1).init(params), 100, update)
    assert loss < loss_of(params) / 10


def test_numpyro():
    numpyro = library("numpyro", "a numpyro model")
    from numpyro.optim import optax_to_numpyro

    data = jnp.asarray(X[:, 0] + 3)

    def model(data):
        mean = numpyro.sample("mean", numpyro.distributions.Normal(0, 10))
        with numpyro.plate("data", len(data)):
            numpyro.sample("x", numpyro.distributions.Normal(mean, 1), obs=data)

    optim = line(
        "NumPyro", optax_to_numpyro=optax_to_numpyro, optax=optax, gravity=gravity, data=data
    )["optim"]
    guide = numpyro.infer.autoguide.AutoDelta(model)
    svi = numpyro.infer.SVI(model, guide, optim, numpyro.infer.Trace_ELBO())
    found = svi.run(jax.random.key(0), 300, data, progress_bar=False)
    assert abs(found.params["mean_auto_loc"] - data.mean()) < 0.05


def test_optimistix():
    optimistix = library("optimistix", "an optimistix solver")
    solver = line("Optimistix", optimistix=optimistix, gravity=gravity)["solver"]
    traces = []

    def loss_of(y, args):
        traces.append(1)
        return jnp.sum((y["w"] - 0.5) ** 2)

    def minimise(solver):
        return optimistix.minimise(loss_of, solver, {"w": jnp.zeros(3)}, max_steps=2000).value["w"]

    assert np.allclose(minimise(solver), 0.5, atol=0.05)
    traces.clear()
    for rate in (0.1, 0.2, 0.3):
        transform = gravity(jnp.asarray(rate))
        minimise(optimistix.OptaxMinimiser(transform, rtol=1e-4, atol=1e-4))
        assert len(traces) == 1  # compiled once for all rates


def test_jaxopt():
    jaxopt = library("jaxopt", "a jaxopt solver")
    loss_of = lambda w: jnp.mean((X @ w - Y) ** 2)  # noqa: E731
    solver = line("JAXopt", jaxopt=jaxopt, gravity=gravity, loss_of=loss_of)["solver"]
    weights, state = solver.run(jnp.zeros((3, 2)))
    assert state.internal_state[0].count == state.iter_num
    assert loss_of(weights) < loss_of(jnp.zeros((3, 2))) / 1000


def test_blackjax():
    blackjax = library("blackjax", "variational inference")
    logdensity = lambda p: -0.5 * jnp.sum((p["w"] - 1.0) ** 2)  # noqa: E731
    vi = line("BlackJAX", blackjax=blackjax, logdensity=logdensity, gravity=gravity)["vi"]
    state, step = vi.init({"w": jnp.zeros(2)}), jax.jit(vi.step)
    for number in range(300):
        state, _ = step(jax.random.key(number), state)
    assert np.allclose(state.mu["w"], 1.0, atol=0.3)


def test_orbax(tmp_path):
    library("orbax.checkpoint", "a checkpoint")
    from orbax.checkpoint import StandardCheckpointer

    optimizer, params = gravity(0.1), {"w": jnp.zeros((3, 2))}
    loss_of = lambda p: jnp.mean((X @ p["w"] - Y) ** 2)  # noqa: E731
    params, state, _ = fit(loss_of, params, optimizer.init(params), 3, optimizer.update)
    with StandardCheckpointer() as store:
        line("Orbax", store=store, path=tmp_path / "run", params=params, state=state)
        store.wait_until_finished()
        restored = store.restore(tmp_path / "run", jax.eval_shape(lambda: (params, state)))
    whole = fit(loss_of, params, state, 3, optimizer.update)
    assert_same(fit(loss_of, *restored, 3, optimizer.update), whole)
