"""Faults in a step or a load of gravity_torch, beside torch's own Adam.

A case builds an optimizer, takes some steps, plants one fault and goes on. Promised is one of two
outcomes: an error of a documented type and nothing moved, or the numbers of the loop of single
tensors. What Adam does in the same place is counted, and judged by nobody.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gravity_torch import Gravity
from tests.hostile.running import Case, repeat

REFUSALS = (ValueError, TypeError, RuntimeError)
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 1, 4), (40_000,)]
PATHS: list[dict[str, Any]] = [{}, {"foreach": False}, {"foreach": True}, {"fused": True}]
# What stands in place of a number of the state or of an option.
NUMBERS: list[Any] = [
    *(-5, -0.5, math.nan, math.inf, -math.inf, 10**400, 10**30, 2**24, 0, 1, 0.25, True),
    *(None, "3", "x", b"3", [], [1.0], {}, 1j, Decimal("0.3"), Fraction(1, 3)),
    *(np.float32(0.3), np.float16(0.1), np.int64(2), np.asarray(0.2), np.asarray([0.1, 0.2])),
]
TENSORS: list[Callable[[], Tensor]] = [
    lambda: torch.tensor(-1.0),
    lambda: torch.tensor(math.nan),
    lambda: torch.tensor([0.1, 0.2]),
    lambda: torch.tensor([0.5]),
    lambda: torch.tensor(3),
    lambda: torch.tensor(True),
    lambda: torch.tensor(0.25, dtype=torch.bfloat16),
    lambda: torch.tensor(1.0, dtype=torch.complex64),
    lambda: torch.tensor(1.0, device="meta"),
    lambda: torch.empty(0),
]


def _number(random: Random) -> Any:
    if random.random() < 0.3:
        return random.choice(TENSORS)()
    return random.choice(NUMBERS)


def _own_dtype(p: Tensor) -> None:
    p.grad = None
    p.grad_dtype = None  # allows gradients of any dtype


def _grad_of(dtype: torch.dtype) -> Callable[[Tensor, Random], None]:
    def plant(p: Tensor, random: Random) -> None:
        _own_dtype(p)
        p.grad = torch.ones(p.shape).to(dtype)

    return plant


def _filled(value: float) -> Callable[[Tensor, Random], None]:
    def plant(p: Tensor, random: Random) -> None:
        if p.grad is not None:
            p.grad.fill_(value)

    return plant


def _sparse_grad(p: Tensor, random: Random) -> None:
    p.grad = torch.zeros_like(p).detach().to_sparse()


def _expanded_grad(p: Tensor, random: Random) -> None:
    p.grad = torch.ones((), dtype=p.dtype).expand(p.shape)


def _reversed_grad(p: Tensor, random: Random) -> None:
    p.grad = torch.randn(p.shape[::-1]).to(p.dtype).permute(tuple(range(p.ndim))[::-1])


def _own_memory_as_grad(p: Tensor, random: Random) -> None:
    p.grad = p.detach()


def _new_shape(p: Tensor, random: Random) -> None:
    p.data = torch.zeros(random.choice(SHAPES), dtype=p.dtype)


GRADIENTS: dict[str, Callable[[Tensor, Random], None]] = {
    "gradient of float8": _grad_of(torch.float8_e4m3fn),
    "gradient of integers": _grad_of(torch.int32),
    "gradient of bool": _grad_of(torch.bool),
    "gradient of float64": _grad_of(torch.float64),
    "gradient of float16": _grad_of(torch.float16),
    "complex gradient": _grad_of(torch.complex64),
    "gradient NaN": _filled(math.nan),
    "gradient inf": _filled(math.inf),
    "gradient 0": _filled(0.0),
    "sparse gradient": _sparse_grad,
    "expanded gradient": _expanded_grad,
    "transposed gradient": _reversed_grad,
    "gradient that is the parameter": _own_memory_as_grad,
    "parameter of another shape": _new_shape,
}


def _velocity(random: Random, v: Tensor) -> Any:
    return random.choice(
        [
            lambda: None,
            list,
            lambda: 0.5,
            lambda: "V",
            lambda: v.to_sparse() if v.ndim else None,
            lambda: torch.ones((), dtype=v.dtype).expand(v.shape),
            lambda: v.double(),
            lambda: v.to(torch.int32),
            lambda: v.to(torch.complex64),
            lambda: v.to("meta"),
            lambda: v.reshape(-1),
            lambda: torch.ones(3, 3),
            lambda: v.T.contiguous().T if v.ndim == 2 else v.clone(),
            lambda: np.asarray(v.float()),
        ]
    )()


def build(kind: type, random: Random, **path: Any) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """Return an optimizer after some steps; equal for equal states of `random`."""
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    dtypes = random.choices([torch.float32, torch.float64, torch.bfloat16], k=random.randint(2, 5))
    params = [
        torch.nn.Parameter(torch.randn(random.choice(SHAPES), generator=generator).to(dtype))
        for dtype in dtypes
    ]
    cut = random.randint(1, len(params))
    groups = [{"params": ps} for ps in (params[:cut], params[cut:]) if ps]
    options: dict[str, Any] = {
        "lr": random.choice([0.1, 0.003]),
        "weight_decay": random.choice([0.0, 0.01]),
        "maximize": random.choice([False, True]),
    }
    if kind is not Gravity:
        path = {}
    optimizer = kind(groups, **options, **path)
    for _ in range(random.randint(0, 2)):
        gradients(params, generator, random)
        optimizer.step()
    gradients(params, generator, random)
    return optimizer, params


def gradients(params: list[Tensor], generator: torch.Generator, random: Random) -> None:
    for p in params:
        p.grad = None
        if random.random() < 0.9:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def seen(value: Any) -> Any:
    """Return what a value holds, so that it can be compared."""
    if isinstance(value, Tensor):
        kind = (tuple(value.shape), value.dtype, value.device.type, value.layout)
        if value.device.type == "meta" or value.layout is not torch.strided:
            return kind
        value = torch.where(value.isnan(), torch.nan, value)  # a NaN may have any sign
        return *kind, bytes(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return repr(value)


def snapshot(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> Any:
    """Return the bits of the parameters, the state and the options."""
    states = [{name: seen(x) for name, x in optimizer.state.get(p, {}).items()} for p in params]
    options = [
        {name: seen(x) for name, x in group.items() if name not in ("params", "foreach", "fused")}
        for group in optimizer.param_groups
    ]
    return [seen(p) for p in params], states, options


def plant(
    fault: str, optimizer: torch.optim.Optimizer, params: list[Tensor], random: Random
) -> str:
    """Plant a fault; return what tells it from others."""
    p = random.choice(params)
    if fault in GRADIENTS:
        GRADIENTS[fault](p, random)
        return ""
    buffer = "velocity" if isinstance(optimizer, Gravity) else "exp_avg"
    if fault == "option":
        group = random.choice(optimizer.param_groups)
        own = ["alpha", "beta", "velocity_std", "seed", "first_step"]
        names = ["lr", "weight_decay", *(own if buffer == "velocity" else ["eps"] * len(own))]
        name, value = random.choice(names), _number(random)
        group[name] = value
        return f"{name} = {value!r}"
    if fault == "memory of two parameters":
        other = random.choice(params)
        size, dtype = min(p.numel(), other.numel()), other.dtype
        p.grad = None
        p.data = other.data.flatten()[:size]
        p.grad = torch.randn(size).to(dtype)
        optimizer.state.pop(p, None)
        return f"{size} elements"
    state = optimizer.state[p]
    if not state:
        return "no state yet"
    if fault == "counter":
        value = _number(random)
        state["step"] = value
    elif fault == "counter of two parameters":
        state["step"] = value = optimizer.state[random.choice(params)].get("step", 3.0)
    elif fault == "velocity":
        state[buffer] = value = _velocity(random, state[buffer])
    else:
        value = state.pop(random.choice(list(state)))
    return repr(value)[:80]


FAULTS = [*GRADIENTS, "option", "counter", "counter of two parameters", "velocity", "lost state"]
FAULTS += ["memory of two parameters"]


def tried(kind: type, key: str, fault: str, path: dict[str, Any]) -> tuple[str, str, Any]:
    """Plant the fault and take a step; return the outcome, the fault's name, and what is left."""
    random = Random(key)
    torch.manual_seed(random.randrange(2**31))
    optimizer, params = build(kind, random, **path)
    name = plant(fault, optimizer, params, random)
    outcome = outcome_of(optimizer.step, optimizer, params)
    return outcome, name, snapshot(optimizer, params) if outcome == "ran" else None


def outcome_of(
    call: Callable[[], Any], optimizer: torch.optim.Optimizer, params: list[Tensor]
) -> str:
    """Return "ran", or "refused" and what is wrong with the refusal."""
    before = snapshot(optimizer, params)
    try:
        call()
    except Exception as error:
        moved = "" if snapshot(optimizer, params) == before else ", moved"
        raw = "" if isinstance(error, REFUSALS) and str(error) else f", raw {error!r}"
        return f"refused{moved}{raw}"
    return "ran"


def short(outcome: str) -> str:
    return outcome.split(", raw")[0]


def step_case(random: Random) -> Case:
    key, fault, path = str(random.getrandbits(64)), random.choice(FAULTS), random.choice(PATHS)

    def attempt() -> str:
        outcome, name, left = tried(Gravity, key, fault, path)
        where = f"{name}, {path or 'default'}, case {key}"
        assert outcome in ("ran", "refused"), f"{where}: {outcome}"
        if path.get("foreach") is not False:
            loop, _, expected = tried(Gravity, key, fault, {"foreach": False})
            if outcome == "refused" and loop == "ran":
                assert path.get("fused"), f"{where}: refused, but the loop ran"
            else:
                assert outcome == loop, f"{where}: {outcome}, but the loop {loop}"
                assert left == expected, f"{where}: other numbers than the loop's"
        return f"{outcome}; Adam {short(tried(torch.optim.Adam, key, fault, {})[0])}"

    return Case(f"step, {fault}", str(path or "default"), attempt)


def spoil(state: dict[str, Any], random: Random) -> str:
    """Change one place of a state_dict."""
    place = random.choice(["option", "state", "state", "key", "group"])
    if place == "option":
        group = random.choice(state["param_groups"])
        name = random.choice(list(group))
        group[name] = _number(random)
        if name == "lr" and isinstance(group[name], Tensor) and group[name].is_meta:
            group[name] = -1.0  # a rate that the host does not have is not read
        return f"{name} = {group[name]!r}"
    if place == "group":
        del state["param_groups"][-1]
        return "a group is missing"
    if not state["state"]:
        return "no state yet"
    values = state["state"][random.choice(list(state["state"]))]
    name = random.choice(list(values))
    if place == "key":
        del values[name]
        return f"{name} is missing"
    is_counter = name == "step"
    values[name] = _number(random) if is_counter else _velocity(random, values[name])
    return f"{name} = {values[name]!r}"[:80]


def load_case(random: Random) -> Case:
    key = str(random.getrandbits(64))

    def loaded(kind: type) -> tuple[str, str]:
        random = Random(key)
        other, _ = build(kind, random)
        state = copy.deepcopy(other.state_dict())
        optimizer, params = build(kind, Random(key))
        name = spoil(state, random)
        outcome = outcome_of(lambda: optimizer.load_state_dict(state), optimizer, params)
        if outcome == "ran":
            outcome = f"taken, then {outcome_of(optimizer.step, optimizer, params)}"
        return outcome, name

    def attempt() -> str:
        outcome, name = loaded(Gravity)
        assert outcome in ("refused", "taken, then ran"), f"{name}, case {key}: {outcome}"
        return f"{outcome}; Adam {short(loaded(torch.optim.Adam)[0])}"

    return Case("load", key, attempt)


def cases(random: Random) -> Iterator[Case]:
    """Return faults in steps and in loads, without end."""
    while True:
        yield load_case(random) if random.random() < 0.3 else step_case(random)


def run(random: Random, folder: Path, **limits: Any) -> Counter[str]:
    """Try faults until a limit of `running.repeat`; nothing is written to the folder."""
    return repeat(cases(random), **limits)
