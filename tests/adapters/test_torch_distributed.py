"""gravity_torch.Gravity in several processes: DDP, FSDP2, DTensor, ZeroRedundancyOptimizer."""

import copy

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
from tests.adapters.processes import Processes  # noqa: E402
from tests.adapters.torch_reference import Calls  # noqa: E402


class Crew:
    """Process groups by size, started when they are first asked for."""

    def __init__(self):
        self.by_size = {}

    def run(self, world, function, *arguments):
        crew = self.by_size.get(world)
        if crew is None or not all(p.is_alive() for p in crew.processes):
            crew = self.by_size[world] = Processes(world)
        return crew.run(function, *arguments)


@pytest.fixture(scope="module")
def crew():
    crew = Crew()
    yield crew
    for processes in crew.by_size.values():
        processes.stop()


def model_and_data():
    """Return the same network and batches in every process, whatever its RNG has seen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1)
        )
        return model, torch.randn(4, 8, 5)


def train(model, optimizer, batches, scale=1.0):
    for x in batches:
        optimizer.zero_grad()
        (scale * (model(x) - 1).square().mean()).backward()
        optimizer.step()


def weights(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def assert_same(*runs):
    for arrays in zip(*runs, strict=True):
        assert len({(a.shape, a.tobytes()) for a in arrays}) == 1


# DistributedDataParallel


def ddp(rank, world):
    model, batches = model_and_data()
    torch.manual_seed(rank)  # replicas whose V₀ came from here would drift apart
    torch.rand(rank)
    parallel = nn.parallel.DistributedDataParallel(model)
    train(parallel, Gravity(parallel.parameters()), batches[:, rank::world])
    return weights(model)


def test_replicas_stay_equal_whatever_their_random_numbers(crew):
    start = weights(model_and_data()[0])
    runs = crew.run(2, ddp)
    assert_same(*runs)
    assert all((a != b).any() for a, b in zip(start, runs[0], strict=True))


# FSDP2


def gradient_scale(world):
    """Return 1, or `world` where gloo gives sums for the means that FSDP2 asks for.

    So it does in older versions of torch (github.com/pytorch/pytorch/issues/162338).
    """
    mean = torch.zeros(1)
    torch.distributed.reduce_scatter_tensor(mean, torch.ones(world), torch.distributed.ReduceOp.AVG)
    return mean.item()


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
    for x in batches:  # the same in every process, so that the mean of their gradients has its bits
        train(model, optimizer, [x])
        replay.gradients.append(whole(p.grad for p in params))
        velocities = whole(optimizer.state[p]["velocity"] for p in params)
        steps.append(Step(velocities, whole(params)))
    train(single, Gravity(single.parameters(), **options), batches, gradient_scale(world))
    return replay, steps, weights(single), [tuple(p.to_local().shape) for p in params]


@pytest.mark.parametrize("options", [{"foreach": False}, {}, {"capturable": True}], ids=str)
def test_fully_sharded_training_is_the_training_in_one_process(crew, options):
    for rank, (replay, steps, single, shapes) in enumerate(crew.run(2, fsdp, options)):
        # uneven rows of 7 and 3, and no row of 1 in the second process
        assert [s[0] for s in shapes] == [[4, 4, 2, 2, 1, 1], [3, 3, 1, 1, 0, 0]][rank]
        v0 = [
            gravity_core.initial_velocity(w.shape, w.dtype, std=0.01 / 0.1, index=i)
            for i, w in enumerate(replay.weights)
        ]
        result = grade(replay, iter([Step(v0, replay.weights), *steps]))
        if options:  # the plain loop: bit for bit, whatever the position in the tensor
            assert result.verdict == "exact", result.first_divergence
            assert_same(steps[-1].weights, single)
        else:
            assert result.verdict in ("exact", "bounded"), result.first_divergence


# DTensor: recorded gradients, however the tensors are split

SHAPES = [(7, 5), (3,), (2, 3, 5), (1, 4), (6, 8), (_multi_tensor.BLOCK // 8 + 1, 9)]


def recorded(dtype, steps=4):
    rng = np.random.default_rng(3)
    arrays = lambda scale: [np.asarray(scale * rng.normal(size=s), dtype) for s in SHAPES]  # noqa: E731
    return Replay(arrays(1.0), [arrays(10.0 ** (i - 2)) for i in range(steps)], {"seed": 4})


def split(shape, mesh, layout):
    """Return placements: `layout` gives for every mesh dimension a tensor dimension or None."""
    from torch.distributed.tensor import Replicate, Shard

    dims = [None if d is None else min(d, len(shape) - 1) for d in layout]
    return [Replicate() if d is None else Shard(d) for d in dims]


def replay_split(rank, world, replay, mesh_shape, layout, options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh = init_device_mesh("cpu", mesh_shape)

    def placed(array):
        return distribute_tensor(torch.tensor(array), mesh, split(array.shape, mesh, layout))

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


LAYOUTS = [  # processes, mesh, tensor dimension by mesh dimension, all-reduces a step
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
def test_a_split_tensor_is_updated_as_the_whole(crew, processes, mesh, layout, reductions, dtype):
    replay = recorded(dtype)
    for steps, counts in crew.run(
        processes, replay_split, replay, mesh, layout, {"foreach": False}
    ):
        result = grade(replay, iter(steps))
        assert result.v0_identical
        assert result.verdict == "exact", result.first_divergence
        assert counts == [reductions] * len(counts)


@pytest.mark.parametrize("options", [{}, {"capturable": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize(("mesh", "layout"), [((2,), (0,)), ((2,), (1,))])
def test_the_other_paths_of_a_split_tensor(crew, mesh, layout, options):
    replay = recorded("float32")
    for steps, counts in crew.run(2, replay_split, replay, mesh, layout, options):
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
    params.append(nn.Parameter(torch.ones(3)))  # not split
    alike = init_device_mesh("cpu", (1, world))  # another mesh of the same processes
    params.append(nn.Parameter(distribute_tensor(torch.ones(4), alike, [Shard(0), Shard(0)])))
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = Gravity([{"params": params[:400]}, {"params": params[400:], "lr": 0.2}])
    optimizer.step()
    with CommDebugMode() as communication:
        optimizer.step()
    return communication.get_total_counts()


def test_one_collective_for_a_thousand_tensors_in_two_groups(crew):
    assert crew.run(2, many) == [1, 1]


def two_dimensional_model(rank, world):
    """Tensor parallelism and FSDP2 on one dimension, where torch splits in strides."""
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


def test_fsdp_with_tensor_parallelism(crew):
    for whole, single, placements in crew.run(4, two_dimensional_model):
        assert placements == ["_StridedShard", "Shard"]
        assert_same(whole, single)


def odd_gradients(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    complex_values = torch.complex(torch.arange(6.0), torch.ones(6)).view(3, 2)
    half_values = torch.ones(4).bfloat16()
    cases = [  # values, gradients, placements
        # One part is NaN, and the other hears of it through the maximum.
        (torch.ones(4), torch.tensor([1.0, 2.0, 3.0, float("nan")]), [Shard(0)]),
        (torch.ones(4), torch.arange(4.0), [Shard(0)]),
        (complex_values, complex_values / 8, [Shard(1)]),
        (half_values, half_values / 8, [Shard(0)]),
    ]
    params = [nn.Parameter(distribute_tensor(w, mesh, split)) for w, _, split in cases]
    for p, (_, grad, split) in zip(params, cases, strict=True):
        p.grad = distribute_tensor(grad, mesh, split)
    # A gradient that is still to be summed over the processes.
    params[1].grad = DTensor.from_local(cases[1][1] / world, mesh, [Partial()])
    wholes = [nn.Parameter(w.clone()) for w, *_ in cases]
    for q, (_, grad, _) in zip(wholes, cases, strict=True):
        q.grad = grad
    optimizer, alone = (Gravity(ps, foreach=False) for ps in (params, wholes))
    optimizer.step()
    alone.step()

    def part(q, split):  # not gathered, which gloo cannot for all dtypes in older versions
        return distribute_tensor(q.detach(), mesh, split).to_local()

    return [
        torch.allclose(p.to_local(), part(q, split), rtol=0, atol=0, equal_nan=True)
        for p, q, (*_, split) in zip(params, wholes, cases, strict=True)
    ], optimizer.state[params[0]]["velocity"].to_local().isnan().all().item()


def test_nan_partial_complex_and_half_gradients_of_split_tensors(crew):
    assert crew.run(2, odd_gradients) == [([True] * 4, True)] * 2


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
def test_maxima_of_many_at_a_time_are_those_of_each(dtype):
    """The ways of GPUs and of CPUs, with which every process has to find the same bits."""
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_the_calls_for_the_maxima_on_a_gpu_do_not_grow_with_the_tensors(dtype):
    def calls(number):
        with torch._subclasses.FakeTensorMode(), torch.no_grad():  # there need be no GPU
            shapes = [(4, 3), (0,)] * number
            grads = [torch.ones(s, dtype=dtype, device="cuda") for s in shapes]
            with Calls() as counted:
                assert len(_distributed._max_abs_bits(grads)) == 2 * number
        return counted.number

    assert 0 < calls(100) == calls(10)


def test_a_plain_gradient_of_a_split_tensor_is_refused(crew):
    message = "the gradient of a DTensor parameter must be a DTensor, got Tensor"
    assert crew.run(2, plain_gradient) == [message] * 2


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


def test_differentiable_refuses_split_tensors(crew):
    assert crew.run(2, differentiable) == ["`differentiable` does not support DTensor"] * 2


# Checkpoints


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
    scale = gradient_scale(world)  # which all processes find together
    train(model, optimizer, batches[:2])
    options = StateDictOptions(full_state_dict=way == "full", cpu_offload=way == "full")
    states = copy.deepcopy(get_state_dict(model, optimizer, options=options))
    train(model, optimizer, batches[2:])
    if way == "full":  # which rank 0 has, and one process can load
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
        # Asked of an optimizer that has not stepped, torch makes a step with lr = 0.
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
def test_distributed_checkpoints_resume_bit_for_bit(crew, way, tmp_path):
    for whole, resumed in crew.run(2, checkpoint, str(tmp_path / "checkpoint"), way):
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
def test_a_state_of_one_process_is_split_as_the_parameters_are(crew, kind, options):
    """Into uneven parts, and an empty one."""
    for whole, single, communicated, own in crew.run(2, whole_state, kind, options):
        assert communicated == 0
        assert own  # and the whole is not kept in memory
        if options:
            assert_same(whole, single)
        else:
            for a, b in zip(whole, single, strict=True):
                # two steps on each side, of fewer roundings than the bound counts, below 8
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
    # Put in by hand, where nothing splits it.
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


def test_a_velocity_that_is_split_otherwise_is_refused_before_anything_moves(crew):
    rows, columns, copies = "(Shard(dim=0),)", "(Shard(dim=1),)", "(Replicate(),)"
    pairs = (rows, columns), (rows, copies), ("not sharded", rows), (rows, "not sharded")
    message = "velocity must be sharded like its parameter, {}, got {}"
    assert crew.run(2, misplaced_states) == [[message.format(*pair) for pair in pairs]] * 2


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


def test_zero_redundancy_keeps_the_replicas_equal(crew):
    (first, _, held0, steps), (second, _, held1, _) = crew.run(2, zero, {})
    assert_same(first, second)
    assert held0 + held1 == 6
    assert min(held0, held1) > 0
    assert steps == [4] * 6


def test_zero_redundancy_from_rest_is_the_training_in_one_process(crew):
    """V₀ is numbered within each process's parameters; without it nothing differs."""
    for whole, single, _, _ in crew.run(2, zero, {"velocity_std": 0.0}):
        assert_same(whole, single)
