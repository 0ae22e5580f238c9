"""gravity_tf.Gravity on several devices: replicas stay equal, and equal to one device.

A process can set up devices and clusters only once, so each kind has its own processes, which run
a function of this file. The loss is linear, and its coefficients are small dyadic numbers. So the
gradient of the global batch is exact for every division of the batch, and the test compares the
optimizers alone.
"""

import json
import os
import socket

import numpy as np
import pytest

from gravity_conformance.parity.digits import digits_task
from gravity_conformance.parity.grading import grade
from gravity_conformance.protocol import Replay, Step
from gravity_core import initial_velocity
from tests.support.keras_helpers import (
    arrays,
    keras_without,
    make_variables,
    to_numpy,
    velocities,
)
from tests.support.programs import run_together

SHAPES = [(8, 12), (), (5,), (70_000,)]
STEPS, REPLICAS = 5, 2
SEED = 11


def run_processes(function, folder, environments):
    """Run `function(folder)` of this file in one process for each environment."""
    code = f"import sys; from tests.adapters import test_tf_distribution as t; t.{function}()"
    files = [folder / f"{index}.npz" for index in range(len(environments))]
    pairs = zip(environments, files, strict=True)
    run_together(code, [((), environment | {"OUT": str(file)}) for environment, file in pairs])
    results = []
    for file in files:
        with np.load(file) as arrays:
            results.append(dict(arrays))
    return results


def write(**lists):
    """Write lists of arrays, each array under its name and index."""
    flat = {f"{name}{i:03}": a for name, values in lists.items() for i, a in enumerate(values)}
    np.savez(os.environ["OUT"], **flat)


def read(result, name):
    return [result[key] for key in sorted(result) if key[:-3] == name]


def replay():
    """Return the replay with the gradients of the global batch, the sums over replicas."""
    per_replica = [
        [arrays(100 * r + n, shapes=SHAPES) for n in range(STEPS)] for r in range(REPLICAS)
    ]
    total = [[a + b for a, b in zip(*step, strict=True)] for step in zip(*per_replica, strict=True)]
    return Replay(arrays(50, shapes=SHAPES), total, {"seed": SEED})


def check(result, verdicts):
    """Grade the recorded steps: the concatenation of 1 + STEPS lists of V, and the same for W."""
    n = len(SHAPES)
    v, w = read(result, "v"), read(result, "w")
    steps = [Step(v[i : i + n], w[i : i + n]) for i in range(0, len(v), n)]
    outcome = grade(replay(), iter(steps))
    assert outcome.v0_identical
    assert outcome.verdict in verdicts, outcome.first_divergence


def assert_replicas_equal(result, name):
    values = read(result, name)
    assert len(values) > 1
    assert all(np.array_equal(a, b) for a, b in zip(values[::2], values[1::2], strict=True))


def distributed_steps(strategy, replica_number, compiled):
    """Make the steps of `replay` under a strategy; return V, W and every replica's last V and W."""
    import tensorflow as tf

    from gravity_tf import Gravity

    with strategy.scope():
        variables = make_variables(arrays(50, shapes=SHAPES))
        optimizer = Gravity(seed=SEED)

    per_replica = [
        [arrays(100 * r + n, shapes=SHAPES) for n in range(STEPS)] for r in range(REPLICAS)
    ]

    def in_replica(*stacks):
        number = replica_number(tf.distribute.get_replica_context())
        with tf.GradientTape() as tape:
            loss = tf.add_n(
                [tf.reduce_sum(w * s[number]) for w, s in zip(variables, stacks, strict=True)]
            )
        optimizer.apply(tape.gradient(loss, variables), variables)

    def step(*stacks):
        strategy.run(in_replica, args=stacks)

    run = tf.function(step) if compiled else step
    v, w = [], []
    for index in range(STEPS):
        stacks = zip(*(gradients[index] for gradients in per_replica), strict=True)
        run(*(tf.constant(np.stack(s)) for s in stacks))
        v += to_numpy(velocities(optimizer))
        w += to_numpy(variables)
    first = [initial_velocity(s, std=0.01 / 0.1, seed=SEED, index=i) for i, s in enumerate(SHAPES)]
    every = [*variables, *velocities(optimizer)]
    replicas = [r.numpy() for x in every for r in strategy.experimental_local_results(x.value)]
    return first + v, arrays(50, shapes=SHAPES) + w, replicas


def handed_over(strategy, compiled):
    """Export a run under the strategy and import it into another, which goes on alike."""
    import tensorflow as tf

    from gravity_tf import Gravity, export_state, import_state

    def stepper(optimizer, variables):
        def in_replica(*gradients):
            optimizer.apply([tf.identity(g) for g in gradients], variables)  # on its device

        def step(gradients):
            strategy.run(in_replica, args=gradients)

        return tf.function(step) if compiled else step

    def started(rate, weights):
        with strategy.scope():
            variables = make_variables(weights)
            optimizer = Gravity(rate, seed=SEED, weight_decay=0.25, use_ema=True)
            optimizer.build(variables)
        return optimizer, variables, stepper(optimizer, variables)

    first, second = (tuple(map(tf.constant, arrays(n, shapes=SHAPES))) for n in (1, 2))
    optimizer, variables, step = started(0.2, arrays(50, shapes=SHAPES))
    step(first)
    other, moved, other_step = started(0.9, to_numpy(variables))
    import_state(other, export_state(optimizer))
    step(second)
    other_step(second)
    state, its = export_state(optimizer), export_state(other)
    assert (state.t, state.hyperparameters) == (its.t, its.hyperparameters)
    assert state.t == 2
    assert all(map(np.array_equal, state.velocities, its.velocities))
    assert all(map(np.array_equal, to_numpy(variables), to_numpy(moved)))


def fitted():
    """Fit a model whose gradients are exact for every division of a batch; return its variables."""
    import keras

    from gravity_tf import Gravity

    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    model.build()
    model.set_weights(arrays(60, shapes=[(12, 4), (4,)]))
    model.compile(
        Gravity(seed=SEED, weight_decay=0.1, use_ema=True),
        loss=lambda y, output: keras.ops.mean(output, axis=-1),
    )
    (rows,) = arrays(61, shapes=[(64, 12)])
    model.fit(rows, np.zeros(64), batch_size=8, epochs=2, shuffle=False, verbose=0)
    return to_numpy([*model.trainable_variables, *model.optimizer.variables])


def mirrored():
    """Train on two logical CPUs of this process, by a custom loop and by model.fit."""
    import keras
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    from gravity_tf import Gravity

    def number(context):
        return context.replica_id_in_sync_group

    v, w, replicas = distributed_steps(strategy, number, compiled=True)
    _, eager, _ = distributed_steps(strategy, number, compiled=False)

    task = digits_task("float32", seed=0, steps=1, options={})
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(Gravity(weight_decay=1e-4), loss, metrics=["accuracy"])
    model.fit(task.x_train, task.y_train, batch_size=32, epochs=6, verbose=0)
    every = [*model.trainable_variables, *velocities(model.optimizer)]
    trained = [r.numpy() for x in every for r in strategy.experimental_local_results(x.value)]
    accuracy = model.evaluate(task.x_test, task.y_test, verbose=0)[1]
    one_device = fitted()
    with strategy.scope():
        two_devices = fitted()
    handed_over(strategy, compiled=True)
    handed_over(strategy, compiled=False)
    keras_without("_get_variable_index")
    _, found, _ = distributed_steps(strategy, number, compiled=True)
    write(
        v=v,
        w=w,
        eager=eager,
        found=found,
        replica=replicas,
        trained=trained,
        accuracy=[np.asarray(accuracy)],
        one=one_device,
        two=two_devices,
    )


@pytest.mark.slow
def test_mirrored_strategy(tmp_path):
    pytest.importorskip("tensorflow", reason="gravity_tf needs tensorflow")
    (result,) = run_processes("mirrored", tmp_path, [{"KERAS_BACKEND": "tensorflow"}])
    check(result, {"exact"})
    for same in ("eager", "found"):
        assert all(map(np.array_equal, read(result, same), read(result, "w")))
    assert_replicas_equal(result, "replica")
    assert_replicas_equal(result, "trained")
    assert read(result, "accuracy")[0] > 0.85
    one, two = read(result, "one"), read(result, "two")
    assert len(one) > 4
    assert all(map(np.array_equal, one, two))


def workers():
    """Train as one of the two workers in TF_CONFIG."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    v, w, replicas = distributed_steps(strategy, lambda context: index, compiled=True)
    handed_over(strategy, compiled=True)
    write(v=v, w=w, replica=replicas)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.mark.slow
def test_multi_worker_strategy(tmp_path):
    pytest.importorskip("tensorflow", reason="gravity_tf needs tensorflow")
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    results = run_processes(
        "workers",
        tmp_path,
        [
            {
                "KERAS_BACKEND": "tensorflow",
                "TF_CONFIG": json.dumps(
                    {"cluster": cluster, "task": {"type": "worker", "index": index}}
                ),
            }
            for index in range(2)
        ],
    )
    for result in results:
        check(result, {"exact"})
    first, second = results
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


def sharded():
    """Train Keras on JAX with four devices, with data or weights sharded."""
    import keras
    from keras import distribution, ops

    from gravity_tf import Gravity, export_state, import_state

    devices = distribution.list_devices()
    assert len(devices) == 4
    layout = distribution.LayoutMap(distribution.DeviceMesh((2, 2), ["batch", "model"], devices))
    layout["w0"] = (None, "model")
    layout["w3"] = ("model",)
    layout[".*kernel"] = (None, "model")
    kinds = {
        "data": distribution.DataParallel(devices=devices),
        "model": distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"),
    }
    task = digits_task("float32", seed=0, steps=1, options={})
    out = {}
    for kind, chosen in kinds.items():
        with chosen.scope():
            variables = make_variables(arrays(50, shapes=SHAPES))
            optimizer = Gravity(seed=SEED)
            optimizer.build(variables)
            v, w = to_numpy(velocities(optimizer)), to_numpy(variables)
            for gradients in replay().gradients:
                optimizer.apply([ops.convert_to_tensor(g) for g in gradients])
                v += to_numpy(velocities(optimizer))
                w += to_numpy(variables)
            other = Gravity(use_ema=True)
            other.build(variables)
            import_state(other, export_state(optimizer))
            averages = [v for v in other.variables if v.name.endswith("_average")]
            before, after = [*velocities(optimizer), *variables], [*velocities(other), *averages]
            for own, moved in zip(before, after, strict=True):
                assert np.array_equal(own.value, moved.value)
                assert own.value.sharding.is_equivalent_to(moved.value.sharding, own.value.ndim)
            pairs = zip(variables, velocities(optimizer), strict=True)
            spread = [
                [len(x.value.sharding.device_set), x.value.addressable_shards[0].data.size]
                for pair in pairs
                for x in pair
            ]
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)]
            )
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(Gravity(), loss, metrics=["accuracy"])
            model.fit(task.x_train, task.y_train, batch_size=32, epochs=6, verbose=0)
            every = [*model.trainable_variables, *velocities(model.optimizer)]
            copies = []
            for x in every:
                shards = {}
                for shard in x.value.addressable_shards:
                    data = np.asarray(shard.data)
                    copies += [shards.setdefault(str(shard.index), data), data]
            accuracy = model.evaluate(task.x_test[:352], task.y_test[:352], verbose=0)[1]
        out[f"{kind}v"], out[f"{kind}w"] = v, w
        out[f"{kind}spread"] = [np.asarray(spread)]
        out[f"{kind}copies"] = copies
        out[f"{kind}accuracy"] = [np.asarray(accuracy)]
    write(**out)


@pytest.mark.slow
def test_keras_distribution_on_jax(tmp_path):
    pytest.importorskip("jax", reason="keras.distribution runs on JAX")
    pytest.importorskip("keras", reason="keras.distribution is part of Keras", exc_type=ImportError)
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    (result,) = run_processes("sharded", tmp_path, [environment])
    for kind in ("data", "model"):
        steps = {"v": read(result, f"{kind}v"), "w": read(result, f"{kind}w")}
        flat = {f"{name}{i:03}": a for name, values in steps.items() for i, a in enumerate(values)}
        check(flat, {"exact", "bounded"})
        assert_replicas_equal(result, f"{kind}copies")
        assert read(result, f"{kind}accuracy")[0] > 0.85
    sizes = [np.prod(s, dtype=int) for s in SHAPES for _ in range(2)]  # W and V of each
    (data,), (model,) = read(result, "dataspread"), read(result, "modelspread")
    assert data.tolist() == [[4, size] for size in sizes]
    halved = [sizes[0] // 2, sizes[1] // 2, *sizes[2:6], sizes[6] // 2, sizes[7] // 2]
    assert model.tolist() == [[4, size] for size in halved]
