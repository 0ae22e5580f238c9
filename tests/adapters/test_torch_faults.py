"""A step or a load happens whole, or not at all: what can be refused is refused before a change."""

import copy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gravity_torch needs torch")

from gravity_torch import Gravity, _multi_tensor_gpu, _paths, export_state  # noqa: E402

PATHS = {
    "loop": {"foreach": False},
    "loop, capturable": {"foreach": False, "capturable": True},
    "default": {},
    "default, capturable": {"capturable": True},
    "default, rate in a tensor": {"lr": torch.tensor(0.1)},
    "default, maximize": {"maximize": True, "weight_decay": 0.1},
    "foreach": {"foreach": True},
    "foreach, capturable": {"foreach": True, "capturable": True},
    "GPU": {"foreach": True},
    "GPU, capturable": {"foreach": True, "capturable": True},
    "differentiable": {"differentiable": True},
}
SHAPE = (3, 4)
path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture
def run_of(path, monkeypatch):
    """Return four parameters in two groups after a step, and their optimizer."""
    if path.startswith("GPU"):
        monkeypatch.setattr(_paths, "multi_tensor", _multi_tensor_gpu.multi_tensor_gpu)
    return stepped(path)


def stepped(path):
    params = [torch.ones(SHAPE) for _ in range(4)]
    if path != "differentiable":
        params = [torch.nn.Parameter(p) for p in params]
    optimizer = Gravity([{"params": params[:2]}, {"params": params[2:]}], **PATHS[path])
    for p in params:
        p.grad = torch.full(SHAPE, 0.1)
    optimizer.step()
    return params, optimizer


def bits(x):
    """Return a tensor as its bits, if it has some, and other values as text."""
    if isinstance(x, dict):
        return {key: bits(value) for key, value in x.items() if key != "params"}
    if not isinstance(x, torch.Tensor) or x.layout is not torch.strided or x.is_meta or x.is_nested:
        return repr(x)
    flat = x.detach().clone(memory_format=torch.contiguous_format).view(-1)
    return str(x.dtype), flat.view(torch.uint8).tolist()


def everything(params, optimizer):
    """Return all that must not change."""
    states = [bits(dict(optimizer.state[p])) for p in params if p in optimizer.state]
    groups = [bits(group) for group in optimizer.param_groups]
    return [bits(p) for p in params], states, groups, bits(optimizer.defaults)


def gradient(dtype):
    def change(p, state):
        p.grad, p.grad_dtype = None, None
        p.grad = torch.ones(SHAPE).to(dtype)

    return change


def state(name, make):
    def change(p, state):
        state[name] = make()

    return change


def inference():
    with torch.inference_mode():
        return torch.zeros(SHAPE)


def nested():
    with warnings.catch_warnings(action="ignore"):  # they are in a prototype stage
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])


NO_DICTS = (None, [], [("step", 1)], "abc", 3, torch.ones(3))
STEPS = {
    "negative": lambda: torch.tensor(-5.0),
    "nan": lambda: torch.tensor(float("nan")),
    "fraction": lambda: torch.tensor(2.5),
    "None": lambda: None,
    "text": lambda: "abc",
    "a number": lambda: 3,
    "two": lambda: torch.tensor([1.0, 2.0]),
    "empty": lambda: torch.tensor([]),
    "bool": lambda: torch.tensor(True),
    "complex": lambda: torch.tensor(1j),
    "sparse": lambda: torch.tensor([3.0]).to_sparse(),
    "nested": nested,
    "meta": lambda: torch.empty((), device="meta"),
    "float8": lambda: torch.tensor(3.0).to(torch.float8_e4m3fn),
    "NumPy": lambda: np.float32(3),
    "bfloat16": lambda: torch.tensor(3, dtype=torch.bfloat16),
    "float16": lambda: torch.tensor(3, dtype=torch.float16),
    "uint8": lambda: torch.tensor(3, dtype=torch.uint8),
    "int16": lambda: torch.tensor(3, dtype=torch.int16),
}
VELOCITIES = {
    "None": lambda: None,
    "list": lambda: [[0.0] * 4] * 3,
    "text": lambda: "abc",
    "NumPy": lambda: np.zeros(SHAPE, np.float32),
    "sparse": lambda: torch.zeros(SHAPE).to_sparse(),
    "nested": nested,
    "expanded": lambda: torch.zeros(1, 1).expand(SHAPE),
    "overlapping": lambda: torch.zeros(20).as_strided(SHAPE, (2, 1)),
    "meta": lambda: torch.zeros(SHAPE, device="meta"),
    "transposed": lambda: torch.zeros(4, 3),
    "flat": lambda: torch.zeros(12),
    "integer": lambda: torch.zeros(SHAPE, dtype=torch.int64),
    "float8": lambda: torch.zeros(SHAPE).to(torch.float8_e4m3fn),
    "bool": lambda: torch.zeros(SHAPE, dtype=torch.bool),
    "complex": lambda: torch.zeros(SHAPE, dtype=torch.complex64),
    "inference": inference,
}
FAULTS = {
    **{
        f"gradient {dtype}": (gradient(dtype), r"p\.grad must have a floating .*" + str(dtype))
        for dtype in (torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool)
    },
    **{f"step {name}": (state("step", make), r"step in the state") for name, make in STEPS.items()},
    **{
        f"velocity {name}": (state("velocity", make), r"velocity (must|is)|and velocity must")
        for name, make in VELOCITIES.items()
    },
}


@path
def test_a_step_is_refused_before_anything_moves(path, run_of):
    """The fault is in the last place of the last group."""
    params, optimizer = run_of
    p = params[3]
    healthy, grad = dict(optimizer.state[p]), p.grad
    for name, (change, message) in FAULTS.items():
        change(p, optimizer.state[p])
        before = everything(params, optimizer)
        with pytest.raises((ValueError, RuntimeError), match=message) as raised:
            optimizer.step()
        assert raised.type is ValueError or "inference" in name
        assert everything(params, optimizer) == before, name
        optimizer.state[p].update(healthy)
        p.grad = None
        p.grad_dtype = torch.float32
        p.grad = grad
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [2] * 4


def shrunk(x, size):
    """Return a copy of a tensor whose storage has lost some of its memory."""
    x = x.detach().clone()
    x.untyped_storage().resize_(size)
    return x


MEMORY = {
    "freed": lambda x: shrunk(x, 0),
    "short": lambda x: shrunk(x, 40),
    "one byte short": lambda x: shrunk(x, 47),
    "short and transposed": lambda x: shrunk(x.t().contiguous().t(), 44),
    "none": lambda x: torch._efficientzerotensor(x.shape),
}


@path
def test_a_tensor_without_its_memory_is_refused_before_anything_moves(path, run_of):
    """Writing to it would crash, or change what belongs to others."""
    params, optimizer = run_of
    p, state = params[3], optimizer.state[params[3]]
    places = {
        "the parameter": (p, "data"),
        r"p\.grad": (p, "grad"),
        "velocity": (state, "velocity"),
        "step in the state": (state, "step"),
    }
    for name, (owner, key) in places.items():
        is_state = owner is state
        healthy = state[key] if is_state else getattr(owner, key)
        for kind, make in MEMORY.items():
            if name == "step in the state" and kind != "freed":
                continue
            value = make(healthy)
            state.update({key: value}) if is_state else setattr(owner, key, value)
            before = [bits(q) for q in params[:3]]
            with pytest.raises(ValueError, match=f"^{name} must have memory for each"):
                optimizer.step()
            assert [bits(q) for q in params[:3]] == before, (name, kind)
            assert [int(optimizer.state[q]["step"]) for q in params[:3]] == [1] * 3
        state.update({key: healthy}) if is_state else setattr(owner, key, healthy)
    optimizer.step()
    assert [int(optimizer.state[q]["step"]) for q in params] == [2] * 4


@path
def test_parameters_of_another_shape_are_refused_before_anything_moves(path, run_of):
    """The number of elements stays, and so does the address."""
    params, optimizer = run_of
    p, healthy = params[3], params[3].data
    for name in (r"velocity must have the shape", r"p\.grad must have the shape"):
        p.data = healthy.view(4, 3)
        if "grad" in name:
            optimizer.state[p]["velocity"] = optimizer.state[p]["velocity"].view(4, 3)
        before = everything(params, optimizer)
        with pytest.raises(ValueError, match=f"^{name} of its parameter"):
            optimizer.step()
        assert everything(params, optimizer) == before
    p.grad = p.grad.view(4, 3)
    optimizer.step()
    assert [int(optimizer.state[q]["step"]) for q in params] == [2] * 4


@pytest.mark.filterwarnings("ignore:.*MaskedTensor:UserWarning")
@path
def test_parameters_that_no_step_can_compute_with_are_refused(path, run_of):
    """A dtype that arrives in `p.data`, and a gradient that refuses operations."""
    params, optimizer = run_of
    p, healthy, grad = params[3], params[3].data, params[3].grad
    p.grad = torch.masked.masked_tensor(torch.ones(SHAPE), torch.ones(SHAPE, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^p\.grad must be a tensor that torch .* MaskedTensor$"):
        optimizer.step()
    p.data = torch.ones(SHAPE).to(torch.float8_e5m2)
    p.grad, p.grad_dtype = None, None
    p.grad = torch.ones(SHAPE)
    with pytest.raises(ValueError, match=r"^the parameter must have a floating .*float8_e5m2$"):
        optimizer.step()
    assert [int(optimizer.state[q]["step"]) for q in params] == [1] * 4
    assert_first_three_are(stepped(path)[0], params)
    p.data, p.grad = healthy, grad
    optimizer.step()


def assert_first_three_are(expected, params):
    assert [bits(q) for q in params[:3]] == [bits(q) for q in expected[:3]]


@path
@pytest.mark.parametrize("name", ["p.grad", "velocity"])
def test_another_shape_at_the_old_address_is_refused_before_anything_moves(path, name, run_of):
    params, optimizer = run_of
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    last = params[-1]
    (last.grad if name == "p.grad" else optimizer.state[last]["velocity"]).resize_(SHAPE[::-1])
    before = everything(params, optimizer)
    with pytest.raises(ValueError, match=f"^{name} must have the shape of its parameter"):
        optimizer.step()
    assert everything(params, optimizer) == before


@pytest.mark.parametrize("path", ["loop", "default", "foreach"])
def test_an_empty_velocity_on_another_device_is_refused_before_anything_moves(path):
    params = [torch.nn.Parameter(torch.ones(n)) for n in (3, 0)]
    optimizer = Gravity(params, **PATHS[path])
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[params[1]]["velocity"] = torch.empty(0, device="meta")
    before = bits(params[0])
    with pytest.raises(ValueError, match="velocity must be on the device of its parameter"):
        optimizer.step()
    assert bits(params[0]) == before
    assert int(optimizer.state[params[0]]["step"]) == 1


def test_a_lazily_conjugated_parameter_is_refused_before_anything_moves():
    for options in ({}, {"foreach": True}, {"foreach": False}):
        p, q = (torch.nn.Parameter(torch.ones(3, dtype=torch.complex64)) for _ in range(2))
        optimizer = Gravity([p, q], **options)
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        optimizer.step()
        before = bits(p), bits(q)
        q.data = q.data.conj()
        with pytest.raises(ValueError, match=r"^the parameter must not be conjugated lazily"):
            optimizer.step()
        q.data = q.data.conj()
        assert (bits(p), bits(q)) == before


@path
def test_a_rate_without_a_value_is_refused_before_a_state_is_made(path, run_of):
    _, optimizer = run_of
    optimizer.state.clear()
    optimizer.param_groups[1]["lr"] = torch.empty((), device="meta")
    with pytest.raises(ValueError, match=r"^lr must have a value, got tensor.*meta"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("path", ["loop", "default", "foreach"])
def test_groups_that_are_appended_or_removed_by_hand(path):
    """As torch's Adam takes them. The last group looks like a flat tensor for the first one's."""
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4,), (5,))]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = Gravity([{"params": [p]} for p in params[:2]], **PATHS[path])
    optimizer.param_groups.append(optimizer.param_groups[1] | {"params": params[2:]})
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [1] * 3
    optimizer = Gravity([{"params": [p]} for p in params[:2]], **PATHS[path])
    del optimizer.param_groups[0]
    optimizer.step()
    assert [p in optimizer.state for p in params] == [False, True, False]


def test_a_group_that_lost_an_option_is_refused_before_anything_moves():
    params, optimizer = stepped("default")
    group = optimizer.param_groups[1]
    for name in set(optimizer.defaults):
        value = group.pop(name)
        before = everything(params, optimizer)
        with pytest.raises(ValueError, match=f"^{name} must be in each parameter group, got group"):
            optimizer.step()
        assert everything(params, optimizer) == before
        group[name] = value
    optimizer.step()


@pytest.mark.parametrize("path", ["loop", "default", "foreach"])
def test_a_state_that_is_no_dict_is_refused_before_anything_moves(path):
    params, optimizer = stepped(path)
    for value in NO_DICTS:
        optimizer.state[params[3]] = value
        before = everything_but_the_last_state(params, optimizer)
        for use in (optimizer.step, lambda: export_state(optimizer)):
            with pytest.raises(ValueError, match=r"^state of a parameter must be a dict, got "):
                use()
        assert everything_but_the_last_state(params, optimizer) == before
        assert optimizer.state[params[3]] is value


def everything_but_the_last_state(params, optimizer):
    return list(map(bits, params)), everything(params[:3], optimizer)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"step": None}, r"^step in the state must be finite and >= 0, got None$"),
        ({"step": torch.tensor(-1.0)}, r"^step in the state must be finite and >= 0, got -1\.0$"),
        ({"step": torch.tensor([1.0, 2.0])}, r"^step in the state must be one real number, got"),
        (
            {"step": torch.tensor(1.0), "velocity": [0.0]},
            r"^velocity must be a Tensor, got \[0\.0\]",
        ),
    ],
)
def test_an_export_refuses_a_state_that_a_step_refuses(state, message):
    params, optimizer = stepped("default")
    optimizer.state[params[3]] = state
    with pytest.raises(ValueError, match=message):
        export_state(optimizer)


@pytest.mark.parametrize("path", ["loop", "default", "foreach"])
def test_a_refused_first_step_creates_no_state(path):
    p, q = (torch.nn.Parameter(torch.ones(SHAPE)) for _ in range(2))
    optimizer = Gravity([p, q], **PATHS[path])
    optimizer.state[p] = {"theirs": 7}
    p.grad = torch.ones(SHAPE)
    gradient(torch.int64)(q, {})
    with pytest.raises(ValueError, match=r"p\.grad must have a floating"):
        optimizer.step()
    assert dict(optimizer.state) == {p: {"theirs": 7}}
    optimizer.state[p] = {"step": None}
    with pytest.raises(ValueError, match=r"^step in the state must be finite and >= 0, got None$"):
        optimizer.step()
    assert dict(optimizer.state) == {p: {"step": None}}


def test_differentiable_refuses_a_leaf_before_anything_moves():
    p, q = torch.ones(3), torch.nn.Parameter(torch.ones(3))
    optimizer = Gravity([p, q], differentiable=True)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    with pytest.raises(RuntimeError, match="`differentiable` requires parameters that are not"):
        optimizer.step()
    assert not optimizer.state
    assert (p == 1).all()


@path
def test_a_step_in_inference_mode_makes_a_state_for_steps_outside(path, run_of):
    params, optimizer = run_of
    optimizer.state.clear()
    with torch.inference_mode():
        optimizer.step()
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [2] * 4


def loaded(name, value):
    return lambda state_dict: state_dict["state"][3].update({name: value})


def grouped(name, value):
    return lambda state_dict: state_dict["param_groups"][1].update({name: value})


def sgd():
    """Return a state_dict with as many parameters, whose state is empty."""
    params = [torch.nn.Parameter(torch.ones(SHAPE)) for _ in range(4)]
    return torch.optim.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.5).state_dict()


# A load converts these counters; a step would stop or wrap in them, or count the wrong tensor.
CONVERTED = ("a number", "NumPy", "float8", "bfloat16", "float16", "uint8", "int16")
LOADS = {
    **{
        f"step {name}": (loaded("step", value), "step in the state")
        for name, value in {
            **{k: make() for k, make in STEPS.items() if k not in CONVERTED},
            "a bad number": -5.0,
            "a fraction as a number": 2.5,
            "a large number": 10**400,
            "an inexact number": 2**24 + 1,
            "an inexact tensor": torch.tensor(2**24 + 1),
            "True": True,
        }.items()
    },
    **{
        f"velocity {name}": (loaded("velocity", VELOCITIES[name]()), "velocity must|and velocity")
        for name in VELOCITIES
        if name not in ("expanded", "overlapping", "inference")
    },
    "velocity sparse and wide": (
        loaded("velocity", torch.zeros(SHAPE, dtype=torch.float64).to_sparse()),
        "velocity must be dense",
    ),
    "velocity too large": (
        loaded("velocity", torch.full(SHAPE, 1e39, dtype=torch.float64)),
        r"velocity must be finite in torch\.float32, got 1e\+39",
    ),
    **{
        f"{name} {value!r:.20}": (grouped(name, value), f"{name} must be")
        for name in ("lr", "alpha", "beta", "weight_decay", "initial_lr", "velocity_std")
        for value in ("abc", -1, float("nan"), 10**400, torch.tensor([1.0, 2.0]))
    },
    **{
        f"{name} {value!r:.20}": (grouped(name, value), f"{name} must be")
        for name in ("seed", "first_step", "foreach", "capturable", "fused", "derived_std")
        for value in ("abc", -1, torch.tensor([1.0, 2.0]))
    },
    "no dict": (lambda state_dict: state_dict.update(state=None), "state must be a dict"),
    "no state": (lambda state_dict: state_dict.pop("state"), "with state and param_groups"),
    "no groups": (lambda state_dict: state_dict.update(param_groups={}), "param_groups must be"),
    "of SGD": (
        lambda state_dict: state_dict.update(sgd()),
        r"param_groups must be those of a Gravity optimizer, with beta, got \['lr', 'momentum'",
    ),
    "a list": (lambda state_dict: state_dict["state"].update({3: [1]}), "parameter must be a dict"),
}


@pytest.mark.parametrize("path", ["default", "loop, capturable", "default, rate in a tensor"])
def test_a_load_is_refused_before_anything_is_in_place(path):
    params, optimizer = stepped(path)
    other = stepped(path)[1]
    other.step()
    before, parts = everything(params, optimizer), list(map(id, optimizer.param_groups))
    for name, (change, message) in LOADS.items():
        state_dict = copy.deepcopy(other.state_dict())
        change(state_dict)
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state_dict)
        assert everything(params, optimizer) == before, name
        assert list(map(id, optimizer.param_groups)) == parts
    optimizer.load_state_dict(other.state_dict())
    optimizer.step()
    assert int(optimizer.state[params[0]]["step"]) == 3


def test_a_load_keeps_the_largest_counter_and_numbers_that_are_not_finite():
    params, optimizer = stepped("default")
    state_dict = copy.deepcopy(optimizer.state_dict())
    velocity = torch.full(SHAPE, float("inf"), dtype=torch.float64)
    velocity[0] = 3e38
    state_dict["state"][3] = {"step": 2**24, "velocity": velocity}
    optimizer.load_state_dict(state_dict)
    state = optimizer.state[params[3]]
    assert int(state["step"]) == 2**24
    assert torch.equal(state["velocity"], velocity.float())


def test_a_load_beside_frozen_integers():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    optimizer = Gravity([p])
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer.state


def test_a_load_copies_so_the_state_dict_stays_as_it_is():
    """One counter and one V for all parameters; V is expanded."""
    params, optimizer = stepped("default")
    state_dict = optimizer.state_dict()
    counter, velocity = torch.tensor(10.0), torch.ones(1, 1).expand(SHAPE)
    state_dict["state"] = {i: {"step": counter, "velocity": velocity} for i in range(4)}
    optimizer.load_state_dict(state_dict)
    for _ in range(5):
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [15] * 4
    assert counter == 10
    assert (velocity == 1).all()


def interrupted(path, number):
    """Step, raise KeyboardInterrupt at a line of the adapter, and return t, W and V."""
    params, optimizer = stepped(path)
    folder, left = str(Path(_paths.__file__).parent), number

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(folder):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        optimizer.step()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    states = [optimizer.state[p] for p in params]
    return left <= 0, [
        (int(s["step"]), bits(p), bits(s["velocity"])) for p, s in zip(params, states, strict=True)
    ]


@pytest.mark.parametrize("path", ["default", "loop"])
def test_ctrl_c_leaves_what_the_page_says(path):
    """At every 13th line. In the default path, W and V move together, after t has counted."""
    (_, first), (_, last) = interrupted(path, 1), interrupted(path, 10**9)
    assert [x[0] for x in first] == [1] * 4
    assert [x[0] for x in last] == [2] * 4
    seen, number, hit = set(), 1, True
    while hit:
        hit, now = interrupted(path, number)
        for a, x, b in zip(first, now, last, strict=True):
            assert all(value in (old, new) for old, value, new in zip(a, x, b, strict=True))
            seen.add(tuple(value == new for value, new in zip(x, b, strict=True)))
        if path == "default":
            assert len({x[1:] == b[1:] for x, b in zip(now, last, strict=True)}) == 1
        number += 13
    assert {(False, False, False), (True, True, True)} <= seen
    if path == "default":
        assert seen <= {(False,) * 3, (True, False, False), (True, True, True)}
    else:
        assert (True, False, False) not in seen  # t counts last
