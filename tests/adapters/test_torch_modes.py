"""gravity_torch.Gravity inside torch.func, in inference mode, in threads, and for stale graphs."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

import array_api_compat.torch as xp  # noqa: E402

from gravity_core import Gravity as Reference  # noqa: E402
from gravity_core import update  # noqa: E402
from gravity_torch import Gravity  # noqa: E402

PATHS = [{}, {"foreach": True}, {"foreach": False}]
path = pytest.mark.parametrize("options", PATHS, ids=["default", "foreach", "loop"])


def after_two_steps(w, **options):
    """Return W after two steps on its square."""
    w = w * 1
    optimizer = Gravity([w], velocity_std=0, **options)
    for _ in range(2):
        w.grad = 2 * w
        optimizer.step()
    return w


# Of torch's own, where it differentiates forward.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@path
def test_forward_mode_derivatives(options):
    def by_the_core(w):
        v = torch.zeros_like(w)
        for t in (1, 2):
            v = update(2 * w, v, t, xp=xp)
            w = w - 0.1 * v
        return w

    point = torch.tensor([1.0, 0.3, -0.7], dtype=torch.float64)
    along = torch.tensor([0.2, 1.0, 0.5], dtype=torch.float64)
    found = torch.func.jvp(lambda w: after_two_steps(w, **options), (point,), (along,))
    expected = torch.func.jvp(by_the_core, (point,), (along,))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("options", [{}, {"foreach": False}], ids=["default", "loop"])
def test_steps_inside_vmap(options):
    rows = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
    found = torch.func.vmap(lambda w: after_two_steps(w, **options))(rows)
    assert torch.equal(found, torch.stack([after_two_steps(w) for w in rows]))


@path
def test_an_inference_tensor_among_others_moves_nothing_outside_of_the_mode(options):
    """The first step examines the tensors, but in the mode, where both may change."""
    with torch.inference_mode():
        other = torch.ones(3)
    params = [torch.ones(3), other]
    optimizer = Gravity(params, **options)
    with torch.inference_mode():
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
    before = [x.clone() for p in params for x in (p, *optimizer.state[p].values())]
    with pytest.raises(RuntimeError, match=r"^the parameter is an inference tensor"):
        optimizer.step()
    after = [x for p in params for x in (p, *optimizer.state[p].values())]
    assert all(map(torch.equal, before, after))


def test_two_threads_that_create_a_state_at_once_share_it(monkeypatch):
    """Each draws V₀ before the other has stored its own."""
    both = threading.Barrier(2, timeout=60)
    draw = Gravity._draw

    def meeting(self, p, group, index):
        both.wait()
        return draw(self, p, group, index)

    monkeypatch.setattr(Gravity, "_draw", meeting)
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = Gravity([p])
    group, found = optimizer.param_groups[0], []
    threads = [
        threading.Thread(target=lambda: found.append(optimizer._init_state(p, group, 0)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = found
    assert first is second is optimizer.state[p]
    velocity, step = first["velocity"], first["step"]
    assert optimizer._init_state(p, group, 0) is first
    assert first["velocity"] is velocity
    assert first["step"] is step


def step_during_the_first_draw(monkeypatch, optimizer, then=lambda: None):
    """Let another thread make a whole step while the first V₀ is drawn."""
    draw, threads = Gravity._draw, [threading.Thread(target=optimizer.step, daemon=True)]

    def late(self, p, group, index):
        velocity = draw(self, p, group, index)
        if threads:
            thread = threads.pop()
            thread.start()
            thread.join(60)
            assert not thread.is_alive()
            then()
        return velocity

    monkeypatch.setattr(Gravity, "_draw", late)


@path
@pytest.mark.parametrize("before", [None, {"own": 1}, {"step": 3.0}], ids=str)
def test_first_steps_of_two_threads_are_two_steps(monkeypatch, options, before):
    runs = []
    for together in (True, False):
        params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = Gravity(params, **options)
        for p in params:
            p.grad = torch.ones(3)
            if before is not None:
                optimizer.state[p] = dict(before)
        if together:
            step_during_the_first_draw(monkeypatch, optimizer)
        else:
            optimizer.step()
        optimizer.step()
        monkeypatch.undo()
        assert all(optimizer.state[p]["step"] == (before or {}).get("step", 0) + 2 for p in params)
        runs.append([x for p in params for x in (p.detach(), optimizer.state[p]["velocity"])])
    assert all(map(torch.equal, *runs))


def test_a_thread_that_fails_keeps_the_states_that_another_one_has_made(monkeypatch):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = Gravity(params)
    for p in params:
        p.grad = torch.ones(3)

    def spoil():
        params[1].grad = torch.ones(3).to_sparse()

    step_during_the_first_draw(monkeypatch, optimizer, then=spoil)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert [optimizer.state[p]["step"] for p in params] == [1, 1]


def test_no_thread_meets_a_state_that_is_not_complete(monkeypatch):
    found, draw = [], Gravity._draw

    def look(self, p, group, index):
        found.append(p in self.state)
        return draw(self, p, group, index)

    monkeypatch.setattr(Gravity, "_draw", look)
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    Gravity([p]).step()
    assert found == [False]


@path
@pytest.mark.parametrize("saved", ["the DTensor", "its shard"])
def test_a_graph_of_a_dtensor_is_stale_after_a_step(options, saved):
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        p = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        p.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
        optimizer = Gravity([p], **options)
        if saved == "its shard":
            x = torch.ones(4, requires_grad=True)
            result = (p.to_local() * x).sum()
        else:
            x = distribute_tensor(torch.ones(4), mesh, [Shard(0)]).requires_grad_()
            result = (p * x).sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
            result.backward()
    finally:
        torch.distributed.destroy_process_group()


@path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_rate_in_a_tensor_is_the_number_that_it_stands_for(options, dtype, requires_grad):
    """As everywhere, a float32 of 0.3 is 0.3; in float64, a run shows the difference."""
    gradients = np.random.default_rng(0).normal(size=(5, 3))
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    rate = torch.tensor(0.3, dtype=dtype, requires_grad=requires_grad)
    optimizer = Gravity([p], lr=rate, weight_decay=0.1, **options)
    w = [np.ones(3)]
    reference = Reference(0.3, weight_decay=0.1)
    for g in gradients:
        p.grad = torch.tensor(g)
        optimizer.step()
        reference.step(w, [g])
    assert np.array_equal(p.detach().numpy(), w[0])


def test_a_refused_first_step_leaves_the_step_of_another_thread(monkeypatch):
    """The other thread steps a parameter whose new state the refused step would remove."""
    p, late, sparse = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer, draw = Gravity([p, late, sparse]), Gravity._draw
    p.grad, late.grad, sparse.grad = torch.ones(3), torch.ones(3), torch.ones(3).to_sparse()

    def meanwhile(self, drawn, group, index):
        if drawn is late and sparse.grad is not None:
            given, (late.grad, sparse.grad) = (late.grad, sparse.grad), (None, None)
            thread = threading.Thread(target=optimizer.step, daemon=True)
            thread.start()
            thread.join(60)
            late.grad, sparse.grad = given
        return draw(self, drawn, group, index)

    monkeypatch.setattr(Gravity, "_draw", meanwhile)
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()
    assert list(optimizer.state) == [p]
    assert float(optimizer.state[p]["step"]) == 1.0
    alone = torch.nn.Parameter(torch.ones(3))
    alone.grad = torch.ones(3)
    Gravity([alone]).step()
    assert torch.equal(alone, p)
