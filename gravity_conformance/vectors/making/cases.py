"""The inputs of all vectors by file: `ordinary` and `extreme` updates, coefficients, and V₀.

Guarantee: the files are the same, byte for byte, on every machine. Pseudo-random inputs come from
Threefry in Python integers. Every result comes from `answers`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gravity_conformance.vectors.making.answers import Json
from gravity_conformance.vectors.making.extreme import edge_cases, half_precision, non_finite
from gravity_conformance.vectors.making.inputs import float64, seed64
from gravity_conformance.vectors.making.ordinary import one_step, trajectories
from gravity_core import hyperparameters as hp

FULL = ("float32", "float64")
HALF = ("float16", "bfloat16")


def coefficients(dtype: str) -> Iterator[Json]:
    """Yield β̂ and 1 − β̂."""
    for beta in (0.0, 0.9, 0.999, 1.0):
        for t in (0, 1, 2, 10, 100, 2049, 65_520, 10**6, 2**24 - 2):
            yield {
                "comment": f"t = {t}, β = {beta:g}",
                "flags": list(_coefficient_flags(t, beta, dtype)),
                "t": t,
                "beta": float64(beta),
            }


def _coefficient_flags(t: int, beta: float, dtype: str) -> Iterator[str]:
    if beta == 0.9 and 0 < t <= 100:
        yield "t_off_by_one"
    if (beta == 0.9 and t) or (beta == 1.0 and t >= 100):
        yield "coefficient_half"
    if beta in (0.9, 0.999) and 0 < t <= 2049:
        yield "beta_for_beta_hat"
    if beta == 1.0 and 2049 <= t <= 10**6 and dtype == "float32":
        yield "coefficient_difference"
    if beta in (0.0, 1.0):
        yield "beta_bounds"
    if t == 0:
        yield "first_step_0"
    if t >= 2049:
        yield "late_step"


def initial_velocities(dtype: str) -> Iterator[Json]:
    """Yield V₀ for seeds, positions of the tensor and ranges of elements."""

    def v0(comment: str, flags: Sequence[str], **inputs: Any) -> Json:
        given = {
            "learning_rate": hp.LEARNING_RATE,
            "alpha": hp.ALPHA,
            "velocity_std": None,
            "seed": 0,
            "index": 0,
            "first_element": 0,
            "elements": 5,
        } | inputs
        for name in ("learning_rate", "alpha", "velocity_std"):
            given[name] = None if given[name] is None else float64(given[name])
        return {"comment": comment, "flags": list(flags), **given, "seed": seed64(given["seed"])}

    yield v0("the defaults: σ = 0.01/0.1", ["std_alpha", "default_velocity"])
    yield v0("σ = α/η with other numbers", ["std_alpha"], learning_rate=0.003, alpha=0.05)
    yield v0("learning rate 1: σ = α", [], learning_rate=1.0)
    yield v0("velocity_std overrides α/η", [], velocity_std=0.25)
    yield v0("a seed of 64 bits", ["seed_ignored", "seed_truncated"], seed=0x0123456789ABCDEF)
    yield v0("the largest seed", ["seed_ignored", "seed_truncated"], seed=2**64 - 1)
    yield v0("the second tensor", ["velocity_shared"], index=1)
    yield v0("the tensor with index 2³² − 1", ["velocity_shared", "large_index"], index=2**32 - 1)
    yield v0("a seed and a position", ["velocity_shared", "seed_ignored"], seed=5, index=2)
    if dtype in HALF:
        return  # the elements are those of float32, rounded
    yield v0("a slice that starts inside a block of four", ["slice"], first_element=3, elements=6)
    yield v0("elements far into the tensor", ["slice"], first_element=99_998)
    yield v0(
        "elements around 2³²", ["element_truncated", "slice"], first_element=2**32 - 2, elements=6
    )
    yield v0(
        "elements around 2³⁴, where the counter's high word becomes 1",
        ["element_truncated", "counter_truncated", "slice"],
        first_element=2**34 - 2,
        elements=6,
    )
    yield v0(
        "elements far beyond 2³⁴",
        ["element_truncated", "counter_truncated", "slice"],
        first_element=2**40 + 12_345,
        elements=6,
    )
    yield v0("learning rate 0: from rest", ["learning_rate_zero"], learning_rate=0.0, elements=4)
    yield v0("α = 0: from rest", ["learning_rate_zero"], alpha=0.0, elements=4)


def generator(dtype: str) -> Iterator[Json]:
    """Yield known answers of Threefry-2x32."""
    ones = 0xFFFFFFFF
    for comment, key, counter in (
        ("Random123: zeros", (0, 0), (0, 0)),
        ("Random123: ones", (ones, ones), (ones, ones)),
        ("Random123: digits of π", (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)),
        ("the key of tensor 0 for seed 0", (0, 0), (0, 0)),
        ("the key of tensor 2 for seed 5", (0, 5), (0, 2)),
        ("the key of tensor 1 for seed 2³²", (1, 0), (0, 1)),
        ("a counter beyond 32 bits", (0, 5), (1, 2)),
    ):
        words = {
            name: [f"0x{word:08x}" for word in pair]
            for name, pair in (("key", key), ("counter", counter))
        }
        yield {"comment": comment, "flags": ["known_answer"], **words}


Cases = Callable[[str], Iterator[Json]]

FILES: dict[str, list[tuple[str, tuple[str, ...], Cases]]] = {
    "coefficients": [("coefficients", FULL, coefficients)],
    "one_step": [("update", FULL, one_step)],
    "trajectories": [("update", FULL, trajectories)],
    "edge_cases": [("update", FULL, edge_cases)],
    "half_precision": [("update", HALF, half_precision)],
    "non_finite": [("update", (*FULL, *HALF), non_finite)],
    "initial_velocity": [
        ("threefry", ("uint32",), generator),
        ("initial_velocity", (*FULL, *HALF), initial_velocities),
    ],
}
"""The groups of each file, by its name: type, dtypes and cases."""
