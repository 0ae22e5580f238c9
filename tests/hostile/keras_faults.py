"""Faults in a step or an import of gravity_tf, beside Keras's own Adam, on the backend that is set.

A case builds an optimizer, takes some steps, plants one fault and goes on. Promised is one of two
outcomes: an error and nothing moved, iterations included, or the numbers of the step that has
healthy gradients in place of the missing ones.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import keras
import numpy as np
from keras import ops

import gravity_tf
from gravity_core import State
from tests.hostile.running import Case, repeat

SHAPES = [(), (1,), (7,), (3, 5), (2, 1, 4)]
DTYPES = ["float32", "float32", "float16", "bfloat16"]
Fault = Callable[[Any, Random], Any]


def _other_shape(grad: Any, random: Random) -> Any:
    shape = random.choice([x for x in [*SHAPES, (4, 9), (0,)] if x != tuple(grad.shape)])
    return ops.ones(shape, grad.dtype)


GRADIENTS: dict[str, Fault] = {
    "gradient of another shape": _other_shape,
    "gradient of integers": lambda grad, _: ops.cast(grad, "int32"),
    "gradient of bool": lambda grad, _: ops.cast(grad, "bool"),
    "complex gradient": lambda grad, _: ops.cast(grad, "complex64"),
    "gradient None": lambda *_: None,
    "gradient text": lambda *_: "x",
    "gradient list": lambda *_: [[1.0], [2.0, 3.0]],
    "gradient object": lambda *_: object(),
    "gradient NaN": lambda grad, _: grad * math.nan,
    "gradient inf": lambda grad, _: ops.ones_like(grad) * math.inf,
}


def build(kind: type, random: Random) -> tuple[Any, list[Any], list[Any]]:
    """Return an optimizer after some steps, its variables, and gradients for the next one."""
    generator = np.random.default_rng(random.randrange(2**31))
    variables = [
        keras.Variable(generator.standard_normal(random.choice(SHAPES)), dtype=dtype)
        for dtype in random.choices(DTYPES, k=random.randint(1, 4))
    ]

    def gradients() -> list[Any]:
        return [
            ops.cast(ops.convert_to_tensor(generator.standard_normal(tuple(v.shape))), v.dtype)
            for v in variables
        ]

    options = {"weight_decay": random.choice([None, 0.01]), "use_ema": random.random() < 0.2}
    optimizer = kind(learning_rate=0.1, **options)
    optimizer.build(variables)
    for _ in range(random.randint(0, 2)):
        optimizer.apply(gradients(), variables)
    return optimizer, variables, gradients()


def snapshot(optimizer: Any, variables: list[Any]) -> list[bytes]:
    """Return the bits of the variables and of the optimizer's state."""
    return [
        np.asarray(ops.convert_to_numpy(v), order="C").tobytes()
        for v in [*variables, *optimizer.variables]
    ]


def outcome_of(call: Callable[[], Any], optimizer: Any, variables: list[Any]) -> str:
    """Return "ran", or "refused" and what is wrong with the refusal."""
    before = snapshot(optimizer, variables)
    try:
        call()
    except Exception as error:
        moved = "" if snapshot(optimizer, variables) == before else ", moved"
        return f"refused{moved}" + ("" if str(error) else f", without a word: {error!r}")
    return "ran"


def step_case(random: Random) -> Case:
    """Return a fault in one gradient of a step."""
    key, fault = str(random.getrandbits(64)), random.choice(list(GRADIENTS))
    entrance = random.choice(["apply", "apply_gradients", "values", "generator"])

    def tried(kind: type) -> str:
        random = Random(key)
        optimizer, variables, grads = build(kind, random)
        place = random.randrange(len(grads))
        grads[place] = GRADIENTS[fault](grads[place], random)
        calls: dict[str, Callable[[], Any]] = {
            "apply": lambda: optimizer.apply(grads, variables),
            "apply_gradients": lambda: optimizer.apply_gradients(
                list(zip(grads, variables, strict=True))
            ),
            "values": lambda: optimizer.apply(dict(enumerate(grads)).values(), variables),
            "generator": lambda: optimizer.apply((g for g in grads), variables),
        }
        return outcome_of(calls[entrance], optimizer, variables)

    def attempt() -> str:
        outcome = tried(gravity_tf.Gravity)
        assert outcome in ("ran", "refused"), f"{entrance}, case {key}: {outcome}"
        return f"{outcome}; Adam {tried(keras.optimizers.Adam)}"

    return Case(fault, entrance, attempt)


def _spoilt(state: State, random: Random) -> dict[str, Any]:
    velocities = [np.array(v) for v in state.velocities]
    fields: dict[str, Any] = {
        "t": state.t,
        "velocities": velocities,
        "hyperparameters": dict(state.hyperparameters),
    }
    change = random.choice(["shape", "fewer", "more", "t", "std", "complex", "nothing"])
    if change == "shape":
        place = random.randrange(len(velocities))
        velocities[place] = np.ones((*velocities[place].shape, 2), velocities[place].dtype)
    elif change == "fewer":
        velocities.pop()
    elif change == "more":
        velocities.append(np.ones(3, np.float32))
    elif change == "t":
        fields["t"] = random.choice([2**31, 2**53, 2**63, [1] * len(velocities), 0])
    elif change == "std":
        fields["hyperparameters"]["velocity_std"] = random.choice([1e30, 0.0, 7e4])
    elif change == "complex":
        velocities[-1] = velocities[-1].astype(np.complex64)
    return fields


def import_case(random: Random) -> Case:
    """Return a state that does not fit, for an optimizer that has taken steps."""
    key = str(random.getrandbits(64))

    def attempt() -> str:
        random = Random(key)
        optimizer, variables, _ = build(gravity_tf.Gravity, random)
        state = State(**_spoilt(gravity_tf.export_state(optimizer), random))
        outcome = outcome_of(
            lambda: gravity_tf.import_state(optimizer, state), optimizer, variables
        )
        assert outcome in ("ran", "refused"), f"case {key}: {outcome}"
        return outcome

    return Case("import", key, attempt)


def cases(random: Random) -> Iterator[Case]:
    """Return faults in steps and in imports, without end."""
    while True:
        yield import_case(random) if random.random() < 0.3 else step_case(random)


def run(random: Random, folder: Path, **limits: Any) -> Counter[str]:
    """Try faults until a limit of `running.repeat`; nothing is written to the folder."""
    return repeat(cases(random), **limits)
