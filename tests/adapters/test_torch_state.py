"""The state of gravity_torch.Gravity: resuming, copies, checkpoints of other code, errors."""

import copy
import io
import itertools
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_core import State  # noqa: E402
from gravity_torch import Gravity, export_state, import_state  # noqa: E402
from gravity_torch._velocity import initial_velocity  # noqa: E402
from tests.support.torch_helpers import (  # noqa: E402
    assert_same,
    give_gradients,
    parameters,
    run,
    values,
)
from tests.support.torch_reference import (  # noqa: E402
    Reference,
    to_numpy,
)


@pytest.mark.parametrize("way", ["state_dict", "file", "deepcopy", "pickle"])
def test_resumes_bit_for_bit(way):
    params = parameters((3, 4), (4,))
    optimizer = Gravity(params, seed=3)
    run(optimizer, params, range(5))
    copies = [torch.nn.Parameter(w) for w in values(params)]
    if way == "deepcopy":
        copies, resumed = copy.deepcopy((params, optimizer))
    elif way == "pickle":
        copies, resumed = pickle.loads(pickle.dumps((params, optimizer)))
    else:
        resumed = Gravity(copies, lr=0.5, seed=99)  # the state overrides all of them
        state = copy.deepcopy(optimizer.state_dict())  # otherwise both would share the tensors
        if way == "file":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        resumed.load_state_dict(state)
    run(optimizer, params, range(5, 10))
    run(resumed, copies, range(5, 10))
    assert_same(values(params), values(copies))


@pytest.mark.parametrize("sizes", [(5, 10), (10, 5), (20_000, 40_000)])
def test_a_state_of_other_shapes_is_refused_before_any_change(sizes):
    """torch's kernel would read and write beyond the smaller tensor."""
    (a,), (b,) = parameters((sizes[0],)), parameters((sizes[1],))
    old, new = Gravity([a], lr=0.5), Gravity([b])
    run(old, [a], [0])
    run(new, [b], [0])
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match=rf"velocity must have the shape .*\({sizes[1]},\)"):
        new.load_state_dict(old.state_dict())
    after = new.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["velocity"], before["state"][0]["velocity"])


def without(name):
    def damage(state_dict):
        del state_dict["state"][1][name]

    return damage


def as_after_json(state_dict):
    state_dict["state"] = {str(key): value for key, value in state_dict["state"].items()}


def of_an_unknown_parameter(state_dict):
    state_dict["state"][7] = state_dict["state"].pop(1)


def with_a_list_as_key(state_dict):
    state_dict["param_groups"][0]["params"] = [[0], [1]]


def with_a_key_twice(state_dict):
    state_dict["param_groups"][0]["params"] = [1, 1]
    del state_dict["state"][0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("step"), r"state must have step and velocity, or neither, got \['velocity'\]"),
        (without("velocity"), r"state must have step and velocity, or neither, got \['step'\]"),
        (as_after_json, r"state must have keys that are in params, got '0'"),
        (of_an_unknown_parameter, r"state must have keys that are in params, got 7"),
        (with_a_list_as_key, r"params must be keys of state, got \[\[0\], \[1\]\]"),
        (with_a_key_twice, r"params must have each key once, got 1 twice or more"),
    ],
)
def test_a_state_dict_that_has_lost_a_part_is_refused(damage, message):
    """Otherwise t or V would silently start again."""
    params = parameters((3,), (4,))
    optimizer = Gravity(params)
    run(optimizer, params, range(3))
    before = copy.deepcopy(optimizer.state_dict())
    damage(damaged := copy.deepcopy(before))
    with pytest.raises(ValueError, match=f"^{message}$"):
        optimizer.load_state_dict(damaged)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i in range(2):
        for name in ("step", "velocity"):
            assert torch.equal(after["state"][i][name], before["state"][i][name])


def test_an_import_keeps_what_other_libraries_keep_in_a_state():
    params = parameters((3,), (4,))
    optimizer = Gravity(params)
    run(optimizer, params, range(3))
    optimizer.state[params[1]]["average"] = torch.ones(4)
    import_state(optimizer, export_state(optimizer))
    assert torch.equal(optimizer.state[params[1]]["average"], torch.ones(4))


@pytest.mark.parametrize("dtypes", [[torch.float64], [torch.float32, torch.int64]], ids=str)
def test_counters_may_have_other_dtypes(dtypes):
    """A user may assign such counters."""
    params = parameters((3,), (4,))
    optimizer, other = Gravity(params), Gravity(twins := parameters((3,), (4,)))
    run(optimizer, params, [0])
    for p, dtype in zip(params, itertools.cycle(dtypes)):
        optimizer.state[p]["step"] = optimizer.state[p]["step"].to(dtype)
    run(optimizer, params, [1, 2])
    run(other, twins, range(3))
    assert [float(optimizer.state[p]["step"]) for p in params] == [3.0, 3.0]
    assert_same(values(params), values(twins))


def test_counters_ignore_the_default_dtype():
    params = parameters((3,))
    optimizer = Gravity(params)
    torch.set_default_dtype(torch.float64)
    try:
        run(optimizer, params, range(2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.state[params[0]]["step"].dtype == torch.float32
    assert optimizer.state[params[0]]["step"] == 2


@pytest.mark.parametrize("ours", [torch.float32, torch.complex64], ids=str)
def test_mixing_real_and_complex_in_a_loaded_state_is_refused(ours):
    theirs = torch.float32 if ours.is_complex else torch.complex64
    (p,) = parameters((3,), dtype=ours)
    optimizer = Gravity([p])
    run(optimizer, [p], [0])
    state = optimizer.__getstate__()
    state["state"] = {p: {"step": torch.tensor(1.0), "velocity": torch.ones(3, dtype=theirs)}}
    with pytest.raises(ValueError, match=rf"\(3,\) {ours}, got \(3,\) {theirs}"):
        Gravity.__new__(Gravity).__setstate__(state)
    if ours.is_complex:  # in the reverse case torch drops the imaginary parts with a warning
        other = parameters((3,), dtype=theirs)
        old = Gravity(other)
        run(old, other, [0])
        with pytest.raises(ValueError, match=rf"\(3,\) {ours}, got \(3,\) {theirs}"):
            optimizer.load_state_dict(old.state_dict())


def test_the_state_of_another_optimizer_is_refused():
    (p,) = parameters((3,))
    other = torch.optim.SGD([p], momentum=0.9)
    run(other, [p], [0])
    state = other.state_dict()
    with pytest.raises(ValueError, match=r"Gravity optimizer, with beta, got \['lr', 'momentum'"):
        Gravity([p]).load_state_dict(state)
    state["param_groups"] = [{"lr": 0.1, "alpha": 0.01, "beta": 0.9, "params": [0]}]
    with pytest.raises(ValueError, match=r"step and velocity, got \['momentum_buffer'\]"):
        Gravity([p]).load_state_dict(state)


def test_an_older_pickle_gets_the_current_defaults():
    (p,) = parameters((3,))
    optimizer = Gravity([p])
    run(optimizer, [p], [0])
    state = copy.deepcopy(optimizer.__getstate__())
    for name in ("fused", "first_step", "seed"):
        del state["defaults"][name], state["param_groups"][0][name]
    old = Gravity.__new__(Gravity)
    old.__setstate__(state)
    run(old, old.param_groups[0]["params"], [1])
    run(optimizer, [p], [1])
    assert torch.equal(old.param_groups[0]["params"][0], p)


def test_a_state_may_store_the_step_as_a_number():
    (p,) = parameters((3,))
    optimizer = Gravity([p])
    run(optimizer, [p], [0])
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = 1
    optimizer.load_state_dict(state)
    run(optimizer, [p], [1])
    assert optimizer.state[p]["step"] == 2


def test_a_group_keeps_the_users_own_keys():
    (p,) = parameters((3,))
    group = {"params": [p], "t": 5}
    optimizer = Gravity([group])
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["t"] == 5
    added = {"params": parameters((3,))}
    optimizer.add_param_group(added)
    assert optimizer.param_groups[1] is added  # as in torch's own optimizers


def test_capturable_counts_on_the_device_of_the_parameter():
    (p,) = parameters((5,))
    optimizer = Gravity([p], capturable=True)
    run(optimizer, [p], range(2))
    assert optimizer.state[p]["step"].device == p.device
    assert optimizer.state[p]["step"] == 2


@pytest.mark.parametrize("counter", ["t", "step"])
def test_loads_the_checkpoints_of_other_implementations(counter):
    """The original code and pytorch_optimizer store ``v``, and count the steps in the group."""
    (p,) = parameters((5,))
    optimizer = Gravity([p])
    run(optimizer, [p], range(7))
    ours = optimizer.state_dict()
    foreign = {
        "state": {0: {"v": ours["state"][0]["velocity"].clone()}},
        "param_groups": [{"lr": 0.1, "alpha": 0.01, "beta": 0.9, counter: 7, "params": [0]}],
    }
    q = torch.nn.Parameter(p.detach().clone())
    resumed = Gravity([q], beta=0.5)
    resumed.load_state_dict(foreign)
    run(optimizer, [p], range(7, 9))
    run(resumed, [q], range(7, 9))
    assert torch.equal(p, q)
    assert counter not in resumed.param_groups[0]


def test_resumes_from_a_checkpoint_of_pytorch_optimizer():
    other = pytest.importorskip(
        "pytorch_optimizer", reason="pytorch_optimizer makes the checkpoint"
    )
    theirs = parameters((3, 4), (70,))
    their_optimizer = other.Gravity(theirs, lr=0.2, alpha=0.02, beta=0.8)
    run(their_optimizer, theirs, range(5))
    buffer = io.BytesIO()
    torch.save(their_optimizer.state_dict(), buffer)
    buffer.seek(0)
    ours = [torch.nn.Parameter(w) for w in values(theirs)]
    optimizer = Gravity(ours)  # the hyper-parameters come from the checkpoint
    optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    references = []
    for i, p in enumerate(ours):
        reference = Reference(p, 0.0, 0, i, beta=0.8)
        reference.steps, reference.v = 5, to_numpy(their_optimizer.state[theirs[i]]["v"])
        reference.check(p, optimizer.state[p], exact=True)
        references.append(reference)
    for number in range(5, 10):
        run(optimizer, ours, [number])
        run(their_optimizer, theirs, [number])
        for reference, p, q in zip(references, ours, theirs, strict=True):
            reference.step(to_numpy(p.grad), 0.2)
            reference.check(p, optimizer.state[p])
            # pytorch_optimizer uses the literal form. The bound covers its roundings, too.
            step = torch.tensor(float(their_optimizer.param_groups[0]["step"]))
            reference.check(q, {"step": step, "velocity": their_optimizer.state[q]["v"]})


def test_a_state_without_some_options_gets_their_defaults():
    (p,) = parameters((5,))
    state = Gravity([p]).state_dict()
    for name in ("velocity_std", "maximize", "first_step", "fused"):
        del state["param_groups"][0][name]
    optimizer = Gravity([p], lr=0.5)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["velocity_std"] == 0.01 / 0.5
    run(optimizer, [p], [0])


def test_a_state_made_with_numpys_numbers_loads_with_weights_only():
    params = parameters((3,))
    optimizer = Gravity(params, lr=np.float32(0.1), beta=np.float64(0.9), seed=np.int64(3))
    optimizer.add_param_group({"params": parameters((2,)), "lr": np.float64(0.2)})
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    groups = torch.load(buffer, weights_only=True)["param_groups"]
    assert [group["seed"] for group in groups] == [3, 3]
    assert groups[1]["velocity_std"] == 0.01 / 0.2


# Keys of other libraries in the state of a parameter


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"capturable": True}], ids=str)
def test_keys_that_are_there_before_the_first_step(path):
    """SAM, Lookahead and others store tensors there."""
    params, twins = parameters((3, 4), (4,)), parameters((3, 4), (4,))
    optimizer, plain = Gravity(params, **path), Gravity(twins, **path)
    old = torch.ones(3)
    optimizer.state[params[0]]["old_p"] = old
    run(optimizer, params, range(3))
    run(plain, twins, range(3))
    assert_same(values(params), values(twins))
    assert optimizer.state[params[0]]["old_p"] is old
    assert set(optimizer.state[params[0]]) == {"old_p", "step", "velocity"}


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle", "export_state"])
def test_keys_that_are_there_before_the_first_step_travel(way):
    (p,) = parameters((3,))
    optimizer = Gravity([p])
    optimizer.state[p]["old_p"] = torch.ones(3)
    if way == "state_dict":
        resumed = Gravity([torch.nn.Parameter(p.detach().clone())])
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif way == "export_state":
        state = export_state(optimizer)
        assert list(state.counts) == [0]
        import_state(resumed := Gravity([torch.nn.Parameter(p.detach().clone())]), state)
    else:
        resumed = copy.deepcopy(optimizer) if way == "deepcopy" else via_pickle(optimizer)
    (q,) = resumed.param_groups[0]["params"]
    run(optimizer, [p], range(2))
    run(resumed, [q], range(2))
    assert torch.equal(p, q)
    assert resumed.state[q]["step"] == 2
    assert "old_p" in resumed.state[q] or way == "export_state"


def via_pickle(x):
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize(
    ("part", "step"),
    [({"step": torch.tensor(4.0)}, 5), ({"step": 4}, 5), ({"velocity": torch.ones(3)}, 1)],
    ids=str,
)
def test_a_missing_part_of_a_state_is_created(part, step):
    (p,), (q,) = parameters((3,)), parameters((3,))
    optimizer, plain = Gravity([p]), Gravity([q])
    optimizer.state[p].update(part)
    run(optimizer, [p], [0])
    assert optimizer.state[p]["step"] == step
    plain.state[q].update(
        step=torch.tensor(step - 1.0),
        velocity=torch.ones(3) if "velocity" in part else initial_velocity(q, 0.01 / 0.1, 0, 0),
    )
    run(plain, [q], [0])
    assert_same([p, optimizer.state[p]["velocity"]], [q, plain.state[q]["velocity"]])


def test_counters_in_shared_memory_stay_shared():
    """As in Hogwild training, where processes step the same parameters."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = Gravity(params)
    give_gradients(params, 0)
    optimizer.step()
    first, second = (optimizer.state[p]["step"].share_memory_() for p in params)
    other = Gravity.__new__(Gravity)  # a pickle for another process keeps shared memory
    other.__setstate__(optimizer.__getstate__())
    assert all(other.state[p]["step"] is t for p, t in zip(params, (first, second), strict=True))
    other.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 2]
    optimizer.load_state_dict(optimizer.state_dict())  # a load has counters of its own
    other.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 2]


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"foreach": True}, {"fused": True}])
def test_one_shared_counter_of_several_parameters_counts_a_step_once(path):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = Gravity(params, **path)
    give_gradients(params, 0)
    optimizer.step()
    counter = torch.tensor(5.0).share_memory_()
    for p in params:
        optimizer.state[p]["step"] = counter
    other = Gravity.__new__(Gravity)
    other.__setstate__(optimizer.__getstate__())
    other.step()
    assert [other.state[p]["step"].item() for p in params] == [6, 6, 6]


def test_import_counts_on_the_cpu_whatever_the_default_device():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = Gravity([w])
    with torch.device("meta"):
        import_state(optimizer, State(7, [np.zeros(3, np.float32)]))
    assert optimizer.state[w]["step"].item() == 7


def test_what_a_wrapper_keeps_beside_the_states_of_parameters_is_loaded():
    """pytorch_optimizer's TRAC keeps a step under its own name."""
    (p,) = parameters((3,))
    optimizer = Gravity([p])
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state["wrapper"] = {"step": torch.tensor(4.0), "scale": [1.0]}
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert optimizer.state["wrapper"] == {"step": torch.tensor(4.0), "scale": [1.0]}
    assert float(optimizer.state[p]["step"]) == 1.0
