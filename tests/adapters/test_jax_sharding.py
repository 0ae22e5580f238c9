"""gravity_jax on several devices: V₀ and the maximum, shard by shard.

tests/conftest.py requests eight devices of the host.
"""

import re
import socket

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="gravity_jax needs jax")
optax = pytest.importorskip("optax", reason="gravity_jax needs optax")

import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from gravity_conformance.parity.grading import grade  # noqa: E402
from gravity_conformance.protocol import Replay, Step  # noqa: E402
from gravity_core import State, initial_velocity  # noqa: E402
from gravity_jax import export_state, gravity, import_state  # noqa: E402
from tests.support.jax_helpers import stepper  # noqa: E402
from tests.support.programs import run_together  # noqa: E402

SHAPES = [(16, 8), (8,), (8, 4, 16), (8, 3)]
SPECS = {
    "first axis": [P("x"), P("x"), P("x"), P("x")],
    "last axis": [P(None, "x"), P("y"), P(None, None, "x"), P()],
    "both": [P("x", "y"), P(("x", "y")), P("y", None, "x"), P(("y", "x"))],
}
COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast"
AXIS_TYPES = pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit], ids=str)
LAYOUTS = pytest.mark.parametrize("layout", SPECS)


@pytest.fixture(autouse=True)
def _eight_devices():
    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, JAX was started with {jax.device_count()}")


def mesh_of(types=AxisType.Auto):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(types, types))


def put(arrays, specs, mesh):
    pairs = zip(arrays, specs, strict=True)
    return [jax.device_put(a, NamedSharding(mesh, s)) for a, s in pairs]


def a_replay(steps=10, shapes=SHAPES, **options):
    rng = np.random.default_rng(5)

    def draw():
        return [rng.standard_normal(s).astype(np.float32) for s in shapes]

    return Replay(draw(), [draw() for _ in range(steps)], options)


def sharded_steps(replay, place, update, state):
    """Yield the steps for `grade`; `place` shards weights and gradients."""
    params = place(replay.weights)
    for gradients in [None, *replay.gradients]:
        if gradients is not None:
            params, state = update(params, state, place(gradients))
        yield Step([np.asarray(v) for v in state[0].velocity], [np.asarray(w) for w in params])


def collectives(compiled):
    """Return (operation, shape of its result) of every collective in the compiled code."""
    pattern = rf"= (\(.*?\)|\S+) ({COLLECTIVES}|reduce-scatter)(?:-start)?\("
    return [(name, shape) for shape, name in re.findall(pattern, compiled.as_text())]


def operands(found):
    """Return the shapes of the operands of all-reduces, without their layouts."""
    return [re.findall(r"\w+\[[\d,]*\]", shape) for name, shape in found if name == "all-reduce"]


@AXIS_TYPES
@LAYOUTS
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_v0_is_drawn_with_the_sharding_of_the_parameters(types, layout, transform):
    weights = a_replay(0).weights
    params = put(weights, SPECS[layout], mesh_of(types))
    velocity = transform(gravity(seed=3).init)(params)[0].velocity
    for i, (p, v) in enumerate(zip(params, velocity, strict=True)):
        assert v.sharding.is_equivalent_to(p.sharding, p.ndim)
        assert np.array_equal(v, initial_velocity(p.shape, std=0.01 / 0.1, seed=3, index=i))


@LAYOUTS
def test_init_needs_its_shard_and_no_communication(layout):
    shapes = [tuple(64 * n for n in shape) for shape in SHAPES]
    params = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh_of(), spec))
        for shape, spec in zip(shapes, SPECS[layout], strict=True)
    ]
    shards = [4 * np.prod(p.sharding.shard_shape(p.shape)) for p in params]
    compiled = jax.jit(gravity().init).lower(params).compile()
    memory = compiled.memory_analysis()
    assert collectives(compiled) == []
    assert 0 <= memory.output_size_in_bytes - sum(shards) < 1024  # the count, and tuples
    assert memory.temp_size_in_bytes < max(shards) // 100


@AXIS_TYPES
@LAYOUTS
def test_sharded_training_stays_inside_the_bound(types, layout):
    replay, mesh, optimizer = a_replay(seed=7), mesh_of(types), gravity(seed=7)

    def place(arrays):
        return put(arrays, SPECS[layout], mesh)

    state = jax.jit(optimizer.init)(place(replay.weights))
    steps = sharded_steps(replay, place, jax.jit(stepper(optimizer)), state)
    result = grade(replay, steps)
    assert result.v0_identical
    assert result.verdict in ("exact", "bounded"), result.first_divergence


@AXIS_TYPES
def test_a_step_reduces_scalars_and_gathers_nothing(types):
    mesh = mesh_of(types)
    params = put(a_replay(0).weights, SPECS["both"], mesh)
    optimizer = gravity()
    state = optimizer.init(params)
    compiled = jax.jit(stepper(optimizer)).lower(params, state, params).compile()
    found = collectives(compiled)
    assert {name for name, _ in found} == {"all-reduce"}
    assert {shape for shapes in operands(found) for shape in shapes} == {"f32[]"}
    # Each tensor has a maximum and a minimum over each of the two mesh axes.
    assert sum(map(len, operands(found))) <= 2 * 2 * len(params)
    shardings = compiled.output_shardings[0]
    for p, sharding in zip(params, shardings, strict=True):
        assert sharding.is_equivalent_to(p.sharding, p.ndim)


@AXIS_TYPES
def test_the_step_on_a_mesh_is_compiled_once(types):
    """The init of the how-to gives the count the sharding that it has after a step."""
    # Without the short spec, which JAX returns in another form and would compile again.
    params = put(a_replay(0).weights[:3], SPECS["both"][:3], mesh_of(types))
    optimizer = gravity(optax.cosine_decay_schedule(0.1, 10))
    state, step = jax.jit(optimizer.init)(params), jax.jit(stepper(optimizer))
    for _ in range(3):
        params, state = step(params, state, params)
    assert step._cache_size() == 1


@AXIS_TYPES
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_empty_leaves_on_a_mesh(types, transform):
    arrays = [np.ones((0, 8), np.float32), np.ones((16, 8), np.float32)]
    params = put(arrays, [P(None, "y"), P("x", "y")], mesh_of(types))
    velocity = transform(gravity(velocity_dtype=jnp.bfloat16).init)(params)[0].velocity
    assert velocity[0].shape == (0, 8)
    assert velocity[0].dtype == jnp.bfloat16


@AXIS_TYPES
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_tree_of_empty_leaves_on_a_mesh(types, transform):
    params = put([np.ones((0, 8), np.float32)], [P(None, "y")], mesh_of(types))
    optimizer = gravity()
    state = transform(optimizer.init)(params)
    assert state[0].velocity[0].shape == (0, 8)
    (w,), _ = jax.jit(stepper(optimizer))(params, state, params)
    assert w.shape == (0, 8)


def test_maxima_of_many_tensors_are_combined():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params = put([np.ones((16, 8), np.float32)] * 40, [P("x")] * 40, mesh)
    optimizer = gravity()
    state = optimizer.init(params)
    compiled = jax.jit(stepper(optimizer)).lower(params, state, params).compile()
    assert [len(shapes) for shapes in operands(collectives(compiled))] == [40, 40]


def test_parameters_on_different_devices():
    """A pipeline may place parameters so; jit would require the same devices for all."""
    params = [jax.device_put(np.ones(5, np.float32), device) for device in jax.devices()[:2]]
    optimizer = gravity()
    updates, _ = optimizer.update(params, optimizer.init(params))
    assert [u.devices() for u in updates] == [p.devices() for p in params]


@pytest.mark.parametrize("stacked", [0, 1])
def test_shardings_given_to_jit_alone(stacked):
    """The mesh is unknown while the step is traced, and known when it is compiled."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    optimizer = gravity(stacked=stacked)
    params = [jax.ShapeDtypeStruct((4, 16, 8), jnp.float32)] * 10
    arguments = params, jax.eval_shape(optimizer.init, params), params
    sharded, whole = NamedSharding(mesh, P(None, "x")), NamedSharding(mesh, P())
    shardings = jax.tree.map(lambda leaf: sharded if leaf.ndim else whole, arguments)
    step = jax.jit(stepper(optimizer), in_shardings=shardings, out_shardings=shardings[:2])
    found = collectives(step.lower(*arguments).compile())
    assert {name for name, _ in found} == {"all-reduce"}
    assert operands(found) == 2 * [10 * ["f32[4]" if stacked else "f32[]"]]


def test_the_count_of_collectives_finds_a_gather():
    (w,) = put([np.ones((16, 8), np.float32)], [P(None, "x")], mesh_of())
    flat = jax.jit(lambda w: w * abs(w.reshape(-1)[::-1]).reshape(w.shape))
    names = {name for name, _ in collectives(flat.lower(w).compile())}
    assert names - {"all-reduce"}


def test_stacked_layers_reduce_one_maximum_each():
    mesh = mesh_of()
    params = put([np.ones((6, 16, 8), np.float32)], [P(None, "x", "y")], mesh)
    optimizer = gravity(stacked=1)
    state = optimizer.init(params)
    compiled = jax.jit(stepper(optimizer)).lower(params, state, params).compile()
    found = collectives(compiled)
    assert {name for name, _ in found} == {"all-reduce"}
    assert {shape for shapes in operands(found) for shape in shapes} == {"f32[6]"}


@pytest.mark.parametrize("check_vma", [True, False])
def test_axis_name_inside_shard_map(check_vma):
    replay = a_replay(beta=0.5)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    optimizer = gravity(beta=0.5, axis_name="x")
    specs = [P(None, "x"), P("x"), P("x"), P()]
    state = optimizer.init([jnp.asarray(w) for w in replay.weights])
    state_specs = optax.tree.map_params(
        optimizer, lambda _, spec: spec, state, specs, transform_non_params=lambda _: P()
    )
    step = jax.jit(
        jax.shard_map(
            stepper(optimizer),
            mesh=mesh,
            in_specs=(specs, state_specs, specs),
            out_specs=(specs, state_specs),
            check_vma=check_vma,
        )
    )
    result = grade(replay, sharded_steps(replay, lambda a: put(a, specs, mesh), step, state))
    assert result.verdict in ("exact", "bounded"), result.first_divergence
    weights = put(replay.weights, specs, mesh)
    found = collectives(step.lower(weights, state, weights).compile())
    assert [name for name, _ in found] == ["all-reduce"]


def test_axis_name_inside_pmap():
    replay = a_replay(steps=3, shapes=[(8, 5)])
    results = []
    for optimizer in (gravity(axis_name="i"), gravity()):
        state = optimizer.init([jnp.asarray(w) for w in replay.weights])
        axes = optax.tree.map_params(
            optimizer, lambda _: 0, state, transform_non_params=lambda _: None
        )
        step = jax.pmap(stepper(optimizer), "i", in_axes=(0, axes, 0), out_axes=(0, axes))
        results.append(grade(replay, sharded_steps(replay, list, step, state)))
    assert results[0].verdict in ("exact", "bounded"), results[0].first_divergence
    assert results[1].verdict == "divergent"  # per-shard maxima give another optimizer


def test_init_with_axis_name_requires_whole_parameters():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    init = jax.shard_map(gravity(axis_name="x").init, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    with pytest.raises(ValueError, match=r"init must be called outside .* inside the axis 'x'"):
        init(jnp.ones(8))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_update_with_axis_name_requires_the_axis(transform):
    optimizer, w = gravity(axis_name=("x", "y")), jnp.ones(8)
    state = optimizer.init(w)
    with pytest.raises(ValueError, match=r"update must be called inside .* axis \('x', 'y'\)"):
        transform(optimizer.update)(w, state, w)


@AXIS_TYPES
def test_init_of_sharded_shapes(types):
    arrays = put(a_replay(0).weights, SPECS["both"], mesh_of(types))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in arrays]
    velocities = (gravity().init(params)[0].velocity for params in (arrays, shapes))
    for a, b in zip(*velocities, strict=True):
        assert b.sharding == a.sharding
        assert np.array_equal(a, b)


def test_init_of_replicated_parameters_inside_shard_map():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    init = jax.shard_map(gravity().init, mesh=mesh, in_specs=P(), out_specs=P())
    w = jnp.ones((3, 5))
    assert np.array_equal(init(w)[0].velocity, gravity().init(w)[0].velocity)


def test_elements_beyond_32_bits_have_their_own_index():
    """Element indices beyond any memory are compared with Python's integers."""
    from gravity_jax._velocity import _times_plus

    hi, lo = jnp.zeros(3, jnp.uint32), jnp.asarray([0, 5, 2**20 - 1], jnp.uint32)
    for n, i in [(2**31 - 1, 7), (2**16 + 3, 2**32 - 1)]:
        expected = [(int(h) * 2**32 + int(low)) * n + i for h, low in zip(hi, lo, strict=True)]
        hi, lo = _times_plus(hi, lo, n, np.uint32(i))
        got = [int(h) * 2**32 + int(low) for h, low in zip(hi, lo, strict=True)]
        assert got == [e % 2**64 for e in expected]


@LAYOUTS
@AXIS_TYPES
def test_sharded_velocities_are_exported_whole_and_imported_sharded(layout, types):
    mesh, optimizer, replay = mesh_of(types), gravity(seed=7), a_replay(seed=7)
    params = put(replay.weights, SPECS[layout], mesh)
    step = jax.jit(stepper(optimizer))
    params, state = step(params, optimizer.init(params), params)
    exported = export_state(state, seed=7)
    again = import_state(optimizer.init(params), exported)
    for v, old, new in zip(exported.velocities, state[0].velocity, again[0].velocity, strict=True):
        assert v.tobytes() == np.asarray(old).tobytes()
        assert new.sharding == old.sharding
    for a, b in zip(step(params, state, params)[0], step(params, again, params)[0], strict=True):
        assert np.array_equal(a, b)


def test_an_imported_velocity_is_on_the_device_of_the_parameters():
    w = np.ones(3, np.float32)
    handed = State(5, [w])
    for device in (None, jax.devices()[3]):
        leaf = jax.device_put(w, device)
        velocity = import_state(gravity().init(leaf), handed)[0].velocity
        assert velocity.devices() == leaf.devices()
        assert velocity.committed == leaf.committed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # orbax's own
@AXIS_TYPES
def test_orbax_restores_a_sharded_state_with_its_shardings(types, tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="stores a checkpoint with orbax")
    mesh, optimizer, replay = mesh_of(types), gravity(seed=7), a_replay(seed=7)
    params = put(replay.weights, SPECS["both"], mesh)
    step = jax.jit(stepper(optimizer))
    values = step(params, jax.jit(optimizer.init)(params), params)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), values
    )
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", values)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "step", abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(values)
    for a, b in zip(*map(jax.tree.leaves, (values, restored)), strict=True):
        assert b.sharding == a.sharding
    one, other = step(*values, params), step(*restored, params)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert np.array_equal(a, b)


_WORKER = """
import sys
import jax
port, rank, folder = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
import numpy as np
from jax.sharding import PartitionSpec as P
from gravity_jax import export_state, gravity, import_state
from tests.adapters.test_jax_sharding import SPECS, a_replay, collectives, mesh_of
from tests.support.jax_helpers import stepper
from jax.sharding import NamedSharding

assert jax.process_count() == 2 and len(jax.local_devices()) == 4
replay, mesh, optimizer = a_replay(seed=7), mesh_of(), gravity(seed=7)

def place(arrays):
    return [
        jax.make_array_from_callback(a.shape, NamedSharding(mesh, s), lambda at, a=a: a[at])
        for a, s in zip(arrays, SPECS["both"])
    ]

params = place(replay.weights)
state = optimizer.init(params)
step = jax.jit(stepper(optimizer))
found = {name for name, _ in collectives(step.lower(params, state, params).compile())}
assert found == {"all-reduce"}, found
kept = []
for gradients in [None, *replay.gradients]:
    if gradients is not None:
        params, state = step(params, state, place(gradients))
    for array in (*state[0].velocity, *params):
        whole = np.full(array.shape, np.nan, array.dtype)
        for shard in array.addressable_shards:
            whole[shard.index] = shard.data
        kept.append(whole)
np.savez(f"{folder}/{rank}.npz", *kept)
exported = export_state(state, seed=7)
exported.save(f"{folder}/state{rank}.npz")
again = import_state(optimizer.init(params), exported)
for old, new in zip(state[0].velocity, again[0].velocity):
    assert new.sharding == old.sharding
    for a, b in zip(old.addressable_shards, new.addressable_shards):
        assert np.array_equal(a.data, b.data)
assert step(params, again, place(replay.gradients[0]))[1][0].count == state[0].count + 1
"""


@pytest.mark.slow
def test_two_processes_train_to_the_same_weights(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"JAX_NUM_CPU_DEVICES": "4"}
    run_together(_WORKER, [((port, rank, tmp_path), environment) for rank in range(2)])
    halves = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    arrays = [np.where(np.isnan(halves[0][k]), halves[1][k], halves[0][k]) for k in halves[0]]
    n = len(SHAPES)
    steps = (
        Step(arrays[i : i + n], arrays[i + n : i + 2 * n]) for i in range(0, len(arrays), 2 * n)
    )
    result = grade(a_replay(seed=7), steps)
    assert result.v0_identical
    assert result.verdict in ("exact", "bounded"), result.first_divergence
    for exported in (State.load(tmp_path / f"state{rank}.npz") for rank in range(2)):
        assert exported.t == len(arrays) // (2 * n) - 1
        for v, whole in zip(exported.velocities, arrays[-2 * n : -n], strict=True):
            assert v.tobytes() == whole.tobytes()
