"""Parameters that FSDP1 or DeepSpeed's ZeRO has concatenated and split: gravity_torch refuses."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")
dist = torch.distributed
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch is built without gloo", allow_module_level=True)

from gravity_torch import Gravity, export_state  # noqa: E402
from tests.support.torch_helpers import give_gradients, parameters, run, values  # noqa: E402
from tests.support.torch_processes import model_and_data, train, weights  # noqa: E402

BOTH = pytest.mark.parametrize("use_orig_params", [True, False])


def wrapped(model, use_orig_params):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), use_orig_params=use_orig_params
    )


def message_of(function, *arguments, **options):
    with pytest.raises(ValueError, match="params must be whole tensors") as caught:
        function(*arguments, **options)
    return str(caught.value)


def after_wrapping(rank, world, use_orig_params):
    model, _ = model_and_data()
    fsdp = wrapped(model, use_orig_params)
    there = torch.nn.Parameter(torch.ones(2))
    optimizer = Gravity([there])
    group = {"params": list(fsdp.parameters())}
    messages = [message_of(Gravity, fsdp.parameters(), velocity_std=0.0)]
    messages.append(message_of(optimizer.add_param_group, group))
    return messages, len(optimizer.param_groups), [tuple(p.shape) for p in fsdp.parameters()]


@BOTH
def test_construction_after_fsdp1_is_refused(process_groups, use_orig_params):
    for messages, n_groups, shapes in process_groups.run(2, after_wrapping, use_orig_params):
        assert n_groups == 1
        for message in messages:
            assert f"flattened, of shape {shapes[0]}" in message
            assert "fully_shard" in message
            assert "fsdp_version=2" in message


def before_wrapping(rank, world, use_orig_params):
    model, batches = model_and_data()
    optimizer = Gravity(list(model.parameters()), velocity_std=0.0)
    fsdp = wrapped(model, use_orig_params)
    given = optimizer.param_groups[0]["params"]
    before = weights(fsdp)
    (fsdp(batches[0]) - 1).square().mean().backward()
    messages = []
    if any(p.grad is not None for p in given):
        messages = [message_of(optimizer.step), message_of(export_state, optimizer)]
    else:
        optimizer.step()  # as torch's own optimizers, it has no parameter of the model
    same = all(map(np.array_equal, before, weights(fsdp)))
    return messages, same, [dict(optimizer.state[p]) for p in given]


@BOTH
def test_parameters_from_before_fsdp1_do_not_move(process_groups, use_orig_params):
    for messages, same, states in process_groups.run(2, before_wrapping, use_orig_params):
        assert len(messages) == 2 * use_orig_params
        assert all("fully_shard" in message for message in messages)
        assert same
        assert not any(states)


def alone(rank, world):
    """In one process, FSDP1 keeps the parameters whole, but still makes one FlatParameter."""
    (model, batches), (single, _) = model_and_data(), model_and_data()
    fsdp = wrapped(model, True)
    train(fsdp, Gravity(fsdp.parameters()), batches)
    train(single, Gravity(single.parameters()), batches)
    flat = wrapped(model_and_data()[0], False)
    return weights(model), weights(single), message_of(Gravity, flat.parameters())


def test_fsdp1_in_one_process(process_groups):
    ((got, expected, message),) = process_groups.run(1, alone)
    assert all(map(np.array_equal, got, expected))
    assert "fully_shard" in message


def without_the_mark(rank, world, use_orig_params):
    model, _ = model_and_data()
    fsdp = wrapped(model, use_orig_params)
    for p in fsdp.parameters():
        del p._fsdp_flattened
    try:
        Gravity(fsdp.parameters())
    except ValueError:
        return "refused"
    return "accepted"


def test_without_the_private_mark(process_groups):
    """torch exports FlatParameter, so that only pieces with the original names go unnoticed."""
    assert process_groups.run(2, without_the_mark, False) == ["refused"] * 2
    assert process_groups.run(2, without_the_mark, True) == ["accepted"] * 2


# DeepSpeed


def flatten(optimizer, rank=0, world=1):
    """Do with the groups what DeepSpeed's ZeRO does in `deepspeed.initialize`."""
    for group in optimizer.param_groups:
        whole = torch.cat([p.detach().float().flatten() for p in group["params"]])
        group["params"] = [torch.nn.Parameter(whole.chunk(world)[rank].clone())]


@pytest.mark.parametrize("shapes", [[(3, 4), (4,), (4,), ()], [(3, 4)], [(3,), (4,)]], ids=str)
@pytest.mark.parametrize("way", [None, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("world", [1, 2])
def test_zero_is_refused(shapes, way, world):
    params, (other,) = parameters(*shapes), parameters((2, 2))
    optimizer = Gravity([{"params": [other]}, {"params": params}])
    if way:
        optimizer = way(optimizer)
        other = optimizer.param_groups[0]["params"][0]
    run(optimizer, [other], [0])
    flat_first = optimizer.param_groups.pop(0)
    flatten(optimizer, world=world)
    optimizer.param_groups.insert(0, flat_first)
    (flat,) = optimizer.param_groups[1]["params"]
    give_gradients([other, flat], 1)
    before = values([other, flat])
    with pytest.raises(ValueError, match=rf"flat tensor of {flat.numel()} .* ZeRO stage 0"):
        optimizer.step()
    assert all(map(torch.equal, before, values([other, flat])))
    assert optimizer.state[other]["step"] == 1
    assert not optimizer.state[flat]


def test_zero_3_is_refused():
    """Its groups are empty between the steps."""
    params = parameters((3, 4), (4,))
    optimizer = Gravity(params)
    flatten(optimizer)
    optimizer.param_groups[0]["params"], flat = [], optimizer.param_groups[0]["params"]
    optimizer.step()
    optimizer.param_groups[0]["params"] = flat
    give_gradients(flat, 0)
    with pytest.raises(ValueError, match="ZeRO stage 0"):
        optimizer.step()


@pytest.mark.parametrize("n_pieces", [1, 2])
def test_a_piece_of_each_parameter_is_refused(n_pieces):
    """Megatron-LM and Colossal-AI put a flat shard in place of each parameter."""
    params = parameters((3, 4), (4,), (2, 2))
    optimizer = Gravity(params)
    pieces = [torch.nn.Parameter(p.detach().flatten()[:2].clone()) for p in params[:n_pieces]]
    optimizer.param_groups[0]["params"] = pieces
    give_gradients(pieces, 0)
    before = values(pieces)
    with pytest.raises(ValueError, match=r"flat tensor of 2 .* of the group's 3"):
        optimizer.step()
    assert all(map(torch.equal, before, values(pieces)))
    assert not any(optimizer.state[p] for p in pieces)


def test_zero_is_refused_after_a_load_and_with_added_groups():
    params, added = parameters((3, 4), (4,)), parameters((2, 2), (2,))
    optimizer = Gravity(params)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": added})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": added})
    flatten(optimizer)
    for group in reversed(optimizer.param_groups):
        give_gradients(group["params"], 0)
        with pytest.raises(ValueError, match="ZeRO stage 0"):
            optimizer.step()
        group["params"][0].grad = None


def test_other_changes_of_a_group_are_accepted():
    """Stage 0 with half types makes copies; pruning and densification make other tensors."""
    params = parameters((3, 4), (4,), (5,))
    optimizer = Gravity([{"params": params[:2]}, {"params": params[2:]}])
    optimizer.param_groups[0]["params"] = parameters((3, 4), (4,), dtype=torch.float64)
    optimizer.param_groups[1]["params"] = parameters((9,))
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    run(optimizer, everything, [0])
    optimizer.param_groups[0]["params"] = params[1:2]  # the others are frozen
    run(optimizer, params[1:2], [1])
    optimizer.param_groups[0]["params"] = [*params[1:2], *parameters((2,))]  # one has grown
    run(optimizer, optimizer.param_groups[0]["params"], [1])
