"""The state of gravity_torch.Gravity in several processes: distributed checkpoints and loading."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")
dist = torch.distributed
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch is built without gloo", allow_module_level=True)

from torch import nn  # noqa: E402

import gravity_core  # noqa: E402
from gravity_torch import Gravity, export_state, import_state  # noqa: E402
from tests.support.torch_processes import (  # noqa: E402
    assert_same,
    gradient_scale,
    model_and_data,
    train,
    weights,
)


def checkpoint(rank, world, folder, way):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))

    def sharded():
        model, batches = model_and_data()
        fully_shard(model, mesh=mesh)
        return model, Gravity(model.parameters(), lr=0.3, foreach=False), batches

    model, optimizer, batches = sharded()
    scale = gradient_scale(world)  # a collective operation of all processes
    train(model, optimizer, batches[:2])
    options = StateDictOptions(full_state_dict=way == "full", cpu_offload=way == "full")
    states = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    train(model, optimizer, batches[2:])
    if way == "full":  # rank 0 has the full state, and one process can load it
        resumed, batches = model_and_data()
        again = Gravity(resumed.parameters(), foreach=False)
        if rank == 0:
            set_state_dict(resumed, again, model_state_dict=states[0], optim_state_dict=states[1])
            train(resumed, again, batches[2:], scale)
            single = weights(resumed)
        else:
            single = None
    else:
        dcp.save({"model": states[0], "optimizer": states[1]}, checkpoint_id=folder)
        resumed, again, batches = sharded()
        # If the optimizer has not stepped, torch makes a step with lr = 0.
        empty = get_state_dict(resumed, again)
        loaded = {"model": empty[0], "optimizer": empty[1]}
        dcp.load(loaded, checkpoint_id=folder)
        set_state_dict(
            resumed, again, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
        )
        train(resumed, again, batches[2:])
        single = [p.full_tensor().detach().numpy() for p in resumed.parameters()]
    return [p.full_tensor().detach().numpy() for p in model.parameters()], single


@pytest.mark.parametrize("way", ["folder", "full"])
def test_distributed_checkpoints_resume_bit_for_bit(process_groups, way, tmp_path):
    for whole, resumed in process_groups.run(2, checkpoint, str(tmp_path / "checkpoint"), way):
        if resumed is not None:
            assert_same(whole, resumed)


def whole_state(rank, world, kind, options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode

    single, batches = model_and_data()
    optimizer = Gravity(single.parameters(), lr=0.2, **options)
    scale = gradient_scale(world)
    train(single, optimizer, batches[:2], scale)
    state = copy.deepcopy(optimizer.state_dict())
    if kind == "the original code":
        state["state"] = {i: {"v": s["velocity"]} for i, s in state["state"].items()}
        names = ("lr", "alpha", "beta", "params")
        state["param_groups"] = [
            {name: group[name] for name in names} | {"t": 2} for group in state["param_groups"]
        ]
    model, _ = model_and_data()
    model.load_state_dict(single.state_dict())
    mesh = init_device_mesh("cpu", (world,))
    for layer in model[::2]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    resumed = Gravity(model.parameters(), **options)
    with CommDebugMode() as communication:
        resumed.load_state_dict(state)
    placed = [resumed.state[p]["velocity"] for p in model.parameters()]
    own = [v.to_local().untyped_storage().nbytes() == 4 * v.to_local().numel() for v in placed]
    train(single, optimizer, batches[2:], scale)
    train(model, resumed, batches[2:])
    whole = [p.full_tensor().detach().numpy() for p in model.parameters()]
    return whole, weights(single), communication.get_total_counts(), all(own)


@pytest.mark.parametrize("options", [{"foreach": False}, {}], ids=str)
@pytest.mark.parametrize("kind", ["ours", "the original code"])
def test_a_state_of_one_process_is_sharded_like_the_parameters(process_groups, kind, options):
    """The shards are uneven, and one is empty."""
    for whole, single, communicated, own in process_groups.run(2, whole_state, kind, options):
        assert communicated == 0
        assert own  # the whole tensor is not kept in memory
        if options:
            assert_same(whole, single)
        else:
            for a, b in zip(whole, single, strict=True):
                # Both sides make two steps of values below 8, with the roundings of the bound.
                roundings = 2 * 2 * gravity_core.ErrorBound.ROUNDINGS
                assert np.abs(a - b).max() <= roundings * 2.0**-24 * 8


def misplaced_states(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))

    def stepped(placements):
        w = torch.ones(4, 6)
        if placements:
            w = distribute_tensor(w, mesh, placements)
        p = nn.Parameter(w)
        p.grad = torch.ones_like(p)
        optimizer = Gravity([p])
        optimizer.step()
        return p, optimizer

    states = {
        name: stepped(placements)[1].state_dict()
        for name, placements in {
            "rows": [Shard(0)],
            "columns": [Shard(1)],
            "copies": [Replicate()],
        }.items()
    }
    answers = []
    for placements, name in (([Shard(0)], "columns"), ([Shard(0)], "copies"), (None, "rows")):
        p, optimizer = stepped(placements)
        before = optimizer.state[p]["velocity"]
        try:
            optimizer.load_state_dict(states[name])
        except ValueError as error:
            answers.append(str(error))
        assert optimizer.state[p]["velocity"] is before
    # The user assigns a tensor that is not sharded.
    p, optimizer = stepped([Shard(0)])
    optimizer.state[p]["velocity"] = torch.ones(4, 6)
    before = p.to_local().clone()
    try:
        optimizer.step()
    except ValueError as error:
        answers.append(str(error))
    assert torch.equal(p.to_local(), before)
    assert optimizer.state[p]["step"] == 1
    return answers


def test_a_velocity_with_another_sharding_is_refused_before_any_change(process_groups):
    rows, columns, copies = "(Shard(dim=0),)", "(Shard(dim=1),)", "(Replicate(),)"
    pairs = (rows, columns), (rows, copies), ("not sharded", rows), (rows, "not sharded")
    message = "velocity must be sharded like its parameter, {}, got {}"
    expected = [message.format(*pair) for pair in pairs]
    assert process_groups.run(2, misplaced_states) == [expected] * 2


def hand_over(rank, world, state):
    """Import a state for sharded parameters, step, and export the state."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))

    def placed(array, dim):
        return distribute_tensor(torch.tensor(array), mesh, [Shard(dim)])

    params = [
        nn.Parameter(placed(np.ones(v.shape, v.dtype), dim))
        for dim, v in enumerate(state.velocities)
    ]
    optimizer = Gravity(params, foreach=False)
    drawn = export_state(optimizer)  # before any gradient
    import_state(optimizer, state)
    for p in params:
        assert optimizer.state[p]["velocity"].placements == p.placements
        p.grad = 2 * p.detach()
    optimizer.step()
    return drawn, export_state(optimizer), [p.full_tensor().detach().numpy() for p in params]


def test_sharded_parameters_are_exported_whole(process_groups):
    weights = [np.ones(s, np.float32) for s in [(5,), (3, 4)]]
    rng = np.random.default_rng(0)
    v = [rng.normal(size=w.shape).astype(np.float32) for w in weights]
    state = gravity_core.State(6, v, {"learning_rate": 0.3})
    reference = gravity_core.Gravity()
    reference.init(weights)
    untouched = reference.export_state()
    reference.import_state(state, weights)
    reference.step(weights, [2 * w for w in weights])
    for drawn, exported, moved in process_groups.run(2, hand_over, state):
        assert_same_states(drawn, untouched)
        assert_same_states(exported, reference.export_state())
        assert_same(moved, weights)


def assert_same_states(a, b):
    assert (a.t, a.dtypes, a.hyperparameters) == (b.t, b.dtypes, b.hyperparameters)
    assert_same(a.velocities, b.velocities)
