"""gravity_torch.Gravity in several processes: DDP, FSDP2, DTensor, ZeroRedundancyOptimizer."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")
dist = torch.distributed
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch is built without gloo", allow_module_level=True)

from torch import nn  # noqa: E402

import gravity_core  # noqa: E402
from gravity_conformance.parity.grading import grade  # noqa: E402
from gravity_conformance.protocol import Replay, Step  # noqa: E402
from gravity_torch import Gravity, _distributed, _multi_tensor, _tensors  # noqa: E402
from tests.support.torch_processes import (  # noqa: E402
    assert_same,
    gradient_scale,
    model_and_data,
    train,
    weights,
)
from tests.support.torch_reference import Calls  # noqa: E402

# DistributedDataParallel


def ddp(rank, world):
    model, batches = model_and_data()
    torch.manual_seed(rank)  # if V₀ depended on it, the replicas would diverge
    torch.rand(rank)
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, Gravity(parallel.parameters()), batches[:, rank::world])
    return weights(model)


def test_replicas_stay_equal_with_different_random_states(process_groups):
    start = weights(model_and_data()[0])
    runs = process_groups.run(2, ddp)
    assert_same(*runs)
    assert all((a != b).any() for a, b in zip(start, runs[0], strict=True))


def fsdp(rank, world, options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, batches = model_and_data()
    single, _ = model_and_data()
    mesh = init_device_mesh("cpu", (world,))
    for layer in model[::2]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    params = list(model.parameters())

    def whole(tensors):
        return [t.full_tensor().detach().numpy().copy() for t in tensors]

    optimizer = Gravity(params, **options)
    replay, steps = Replay(whole(params), [], {}), []
    for x in batches:  # the same in every process, so the mean of the gradients equals each of them
        train(model, optimizer, [x])
        replay.gradients.append(whole(p.grad for p in params))
        velocities = whole(optimizer.state[p]["velocity"] for p in params)
        steps.append(Step(velocities, whole(params)))
    train(single, Gravity(single.parameters(), **options), batches, gradient_scale(world))
    return replay, steps, weights(single), [tuple(p.to_local().shape) for p in params]


@pytest.mark.parametrize("options", [{"foreach": False}, {}, {"capturable": True}], ids=str)
def test_fully_sharded_training_equals_training_in_one_process(process_groups, options):
    for rank, (replay, steps, single, shapes) in enumerate(process_groups.run(2, fsdp, options)):
        # 7 and 3 rows are sharded unevenly. The second process has no part of a single row.
        assert [s[0] for s in shapes] == [[4, 4, 2, 2, 1, 1], [3, 3, 1, 1, 0, 0]][rank]
        v0 = [
            gravity_core.initial_velocity(w.shape, w.dtype, std=0.01 / 0.1, index=i)
            for i, w in enumerate(replay.weights)
        ]
        result = grade(replay, iter([Step(v0, replay.weights), *steps]))
        if options:  # the plain loop is exact at every position in the tensor
            assert result.verdict == "exact", result.first_divergence
            assert_same(steps[-1].weights, single)
        else:
            assert result.verdict in ("exact", "bounded"), result.first_divergence


# DTensor: recorded gradients under every sharding

SHAPES = [(7, 5), (3,), (2, 3, 5), (1, 4), (6, 8), (_multi_tensor.BLOCK // 8 + 1, 9)]


def recorded(dtype, steps=4):
    rng = np.random.default_rng(3)
    arrays = lambda scale: [np.asarray(scale * rng.normal(size=s), dtype) for s in SHAPES]  # noqa: E731
    return Replay(arrays(1.0), [arrays(10.0 ** (i - 2)) for i in range(steps)], {"seed": 4})


def placements_of(shape, layout):
    """Return placements; `layout` has a tensor dimension or None for every mesh dimension."""
    from torch.distributed.tensor import Replicate, Shard

    dims = [None if d is None else min(d, len(shape) - 1) for d in layout]
    return [Replicate() if d is None else Shard(d) for d in dims]


def replay_sharded(rank, world, replay, mesh_shape, layout, options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", mesh_shape)

    def placed(array):
        return distribute_tensor(torch.tensor(array), mesh, placements_of(array.shape, layout))

    params = [nn.Parameter(placed(w)) for w in replay.weights]
    optimizer = Gravity(params, **replay.options, **options)
    for index, p in enumerate(params):
        optimizer._init_state(p, optimizer.param_groups[0], index)

    def state():
        velocity = [optimizer.state[p]["velocity"].full_tensor().numpy().copy() for p in params]
        return Step(velocity, [p.full_tensor().detach().numpy().copy() for p in params])

    steps, counts = [state()], []
    for gradients in replay.gradients:
        for p, g in zip(params, gradients, strict=True):
            p.grad = placed(g)
        with CommDebugMode() as communication:
            optimizer.step()
        counts.append(communication.get_total_counts())
        assert all(optimizer.state[p]["velocity"].placements == p.placements for p in params)
        steps.append(state())
    return steps, counts


LAYOUTS = [  # processes, mesh, tensor dimension by mesh dimension, all-reduces per step
    (2, (2,), (0,), 1),
    (2, (2,), (1,), 1),
    (2, (2,), (2,), 1),
    (2, (2,), (None,), 0),
    (4, (2, 2), (None, 0), 1),
    (4, (2, 2), (0, 1), 2),
    (4, (2, 2), (1, 1), 2),
]


@pytest.mark.parametrize(("processes", "mesh", "layout", "reductions"), LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sharded_tensor_is_updated_like_the_whole(
    process_groups, processes, mesh, layout, reductions, dtype
):
    replay = recorded(dtype)
    for steps, counts in process_groups.run(
        processes, replay_sharded, replay, mesh, layout, {"foreach": False}
    ):
        result = grade(replay, iter(steps))
        assert result.v0_identical
        assert result.verdict == "exact", result.first_divergence
        assert counts == [reductions] * len(counts)


@pytest.mark.parametrize("options", [{}, {"capturable": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize(("mesh", "layout"), [((2,), (0,)), ((2,), (1,))])
def test_sharded_tensors_on_the_other_paths(process_groups, mesh, layout, options):
    replay = recorded("float32")
    for steps, counts in process_groups.run(2, replay_sharded, replay, mesh, layout, options):
        result = grade(replay, iter(steps))
        assert result.v0_identical
        assert result.verdict == "exact", result.first_divergence
        assert counts == [1] * len(counts)


def many(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", (world,))
    params = [nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)])) for _ in range(1000)]
    params.append(nn.Parameter(torch.ones(3)))  # not sharded
    alike = init_device_mesh("cpu", (1, world))  # another mesh of the same processes
    params.append(nn.Parameter(distribute_tensor(torch.ones(4), alike, [Shard(0), Shard(0)])))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = Gravity([{"params": params[:400]}, {"params": params[400:], "lr": 0.2}])
    optimizer.step()
    with CommDebugMode() as communication:
        optimizer.step()
    return communication.get_total_counts()


def test_one_collective_for_a_thousand_tensors_in_two_groups(process_groups):
    assert process_groups.run(2, many) == [1, 1]


def two_dimensional_model(rank, world):
    """Train with tensor parallelism and FSDP2.

    Both shard the same dimension of a weight, so torch shards it in strides.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    def network():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    model, single = network(), network()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    placements = [type(s).__name__ for s in model[0].weight.placements]
    optimizer = Gravity(model.parameters(), foreach=False)
    alone = Gravity(single.parameters(), foreach=False)
    for scale in (0.1, 1.0, 10.0):
        optimizer.zero_grad()
        (scale * model(torch.ones(4, 6))).square().sum().backward()
        for p, q in zip(model.parameters(), single.parameters(), strict=True):
            q.grad = p.grad.full_tensor()
        optimizer.step()
        alone.step()
    return (
        [p.full_tensor().detach().numpy() for p in model.parameters()],
        weights(single),
        placements,
    )


def test_fsdp_with_tensor_parallelism(process_groups):
    for whole, single, placements in process_groups.run(4, two_dimensional_model):
        assert placements == ["_StridedShard", "Shard"]
        assert_same(whole, single)


def stage(rank, world):
    """Step a tensor that is sharded over the two processes of a stage of a pipeline."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "shards"))["shards"]
    grad = torch.arange(4.0) * (1.0 if rank < 2 else 100.0)
    sharded = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    whole = nn.Parameter(torch.ones(4))
    sharded.grad, whole.grad = distribute_tensor(grad, mesh, [Shard(0)]), grad
    for p in (sharded, whole):
        Gravity([p], foreach=False).step()
    return [sharded.full_tensor().detach().numpy()], [whole.detach().numpy()]


def test_the_stages_of_a_pipeline_do_not_mix_their_maxima(process_groups):
    for sharded, whole in process_groups.run(4, stage):
        assert_same(sharded, whole)


def odd_gradients(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    complex_values = torch.complex(torch.arange(6.0), torch.ones(6)).view(3, 2)
    half_values = torch.ones(4).bfloat16()
    cases = [  # values, gradients, placements
        # One shard has a NaN. The maximum carries it to the other shard.
        (torch.ones(4), torch.tensor([1.0, 2.0, 3.0, float("nan")]), [Shard(0)]),
        (torch.ones(4), torch.arange(4.0), [Shard(0)]),
        (complex_values, complex_values / 8, [Shard(1)]),
        (half_values, half_values / 8, [Shard(0)]),
    ]
    params = [nn.Parameter(distribute_tensor(w, mesh, placements)) for w, _, placements in cases]
    for p, (_, grad, placements) in zip(params, cases, strict=True):
        p.grad = distribute_tensor(grad, mesh, placements)
    # The sum of this gradient over the processes is pending.
    params[1].grad = DTensor.from_local(cases[1][1] / world, mesh, [Partial()])
    wholes = [nn.Parameter(w.clone()) for w, *_ in cases]
    for q, (_, grad, _) in zip(wholes, cases, strict=True):
        q.grad = grad
    optimizer, alone = (Gravity(ps, foreach=False) for ps in (params, wholes))
    optimizer.step()
    alone.step()

    def shard(q, placements):  # local, because older versions of gloo cannot gather all dtypes
        return distribute_tensor(q.detach(), mesh, placements).to_local()

    return [
        torch.allclose(p.to_local(), shard(q, placements), rtol=0, atol=0, equal_nan=True)
        for p, q, (*_, placements) in zip(params, wholes, cases, strict=True)
    ], optimizer.state[params[0]]["velocity"].to_local().isnan().all().item()


def test_nan_partial_complex_and_half_gradients_of_sharded_tensors(process_groups):
    assert process_groups.run(2, odd_gradients) == [([True] * 4, True)] * 2


def plain_gradient(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    p.grad = torch.ones(4)
    try:
        Gravity([p]).step()
    except RuntimeError as error:
        return str(error)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_batched_maxima_equal_separate_maxima(dtype):
    """CPUs and GPUs compute the maxima differently, and must find the same bits."""
    lists = [[1.0, -3.0], [0.0, -0.0], [-2.0], [NAN, 1.0], [1.0, -INF], [6e-8, -6e-8]]
    grads = [torch.tensor(values, dtype=dtype) for values in lists]
    expected = [3.0, 0.0, 2.0, NAN, INF, float(grads[-1][0])]
    for maxima in (_tensors.max_abs(grads), torch._foreach_norm(grads, INF)):
        found = [float(x.double().abs()) for x in maxima]
        assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert _tensors.max_abs([]) == []
    grads = [torch.tensor([x], dtype=dtype) for x in (0.0, -0.0, -INF, NAN, -NAN)]
    zero, minus_zero, inf, nan, minus_nan = map(int, _distributed._max_abs_bits(grads))
    assert zero == minus_zero == 0
    assert 0 < inf < min(nan, minus_nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_an_empty_shard_leaves_the_maxima_of_the_others_as_they_are(dtype):
    grads = [torch.tensor(values, dtype=dtype) for values in ([], [0.1, -0.3])]
    none, largest = _distributed._max_abs_bits(grads)
    assert none.view(torch.float64) == 0
    assert largest.view(torch.float64) == -grads[1][1].double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_the_calls_for_the_maxima_on_a_gpu_do_not_grow_with_the_tensors(dtype):
    def calls(number):
        with torch._subclasses.FakeTensorMode(), torch.no_grad():  # needs no GPU
            shapes = [(4, 3), (0,)] * number
            grads = [torch.ones(s, dtype=dtype, device="cuda") for s in shapes]
            with Calls() as counted:
                assert len(_distributed._max_abs_bits(grads)) == 2 * number
        return counted.number

    assert 0 < calls(100) == calls(10)


def test_a_plain_gradient_of_a_sharded_tensor_is_refused(process_groups):
    message = "the gradient of a DTensor parameter must be a DTensor, got Tensor"
    assert process_groups.run(2, plain_gradient) == [message] * 2


def differentiable(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    p.grad = torch.ones_like(p)
    try:
        Gravity([p], differentiable=True).step()
    except RuntimeError as error:
        return str(error)


def test_differentiable_refuses_sharded_tensors(process_groups):
    message = "`differentiable` does not support DTensor"
    assert process_groups.run(2, differentiable) == [message] * 2


# ZeroRedundancyOptimizer


def zero(rank, world, options):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, batches = model_and_data()
    single, _ = model_and_data()
    torch.manual_seed(rank)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(parallel.parameters(), Gravity, lr=0.2, **options)
    train(parallel, optimizer, batches)
    train(single, Gravity(single.parameters(), lr=0.2, **options), batches)
    held = sum(
        len(optimizer.optim.state[p]) > 0 for p in model.parameters() if p in optimizer.optim.state
    )
    optimizer.consolidate_state_dict(to=0)
    same = None
    if rank == 0:
        resumed, _ = model_and_data()
        resumed.load_state_dict(model.state_dict())
        again = Gravity(resumed.parameters(), **options)
        again.load_state_dict(optimizer.state_dict())
        same = [int(again.state[p]["step"]) for p in resumed.parameters()]
    return weights(model), weights(single), held, same


def test_zero_redundancy_keeps_the_replicas_equal(process_groups):
    (first, _, held0, steps), (second, _, held1, _) = process_groups.run(2, zero, {})
    assert_same(first, second)
    assert held0 + held1 == 6
    assert min(held0, held1) > 0
    assert steps == [4] * 6


def test_zero_redundancy_from_rest_equals_training_in_one_process(process_groups):
    """V₀ depends on the index among the parameters of a process. Only V₀ differs."""
    for whole, single, _, _ in process_groups.run(2, zero, {"velocity_std": 0.0}):
        assert_same(whole, single)
