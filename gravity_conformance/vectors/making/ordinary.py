"""The update vectors with ordinary numbers: their inputs, and the mistakes that they catch."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial

from gravity_conformance.vectors import exact
from gravity_conformance.vectors.making.answers import Json
from gravity_conformance.vectors.making.inputs import Numbers, Shape, case, draw

# The mistakes that one update reveals if its coefficients are not round numbers.
COUNTER = ("t_off_by_one", "coefficient_half", "beta_for_beta_hat", "one_minus_beta_hat_omitted")
# More if the gradients differ, the largest is negative, V ≠ 0 and η ≠ 1.
ORDINARY = (*COUNTER, "mean_for_max", "signed_max", "missing_square", "learning_rate_twice")


def one_step(dtype: str) -> Iterator[Json]:
    """Yield single updates with ordinary numbers."""
    shape = (2, 2)
    w, v, g = draw(1, shape, dtype), draw(2, shape, dtype, 0.25), draw(3, shape, dtype, 2.0)
    g[2] = -2.5
    one = [(shape, w, v)]
    usual = partial(case, tensors=one, gradients=[[g]], dtype=dtype)
    epsilon = ["epsilon"] if dtype == "float64" else []
    yield usual("the first update of Algorithm 1", [*ORDINARY, "axis_max", *epsilon])
    yield usual(
        "the first update of the original Keras code: t = 0, β̂ = 1/2",
        [*(f for f in ORDINARY if f != "coefficient_half"), "axis_max", *epsilon, "first_step_0"],
        first_step=0,
    )
    yield usual("the tenth update", ORDINARY, t=10)
    if dtype == "float32":
        yield usual("another learning rate", ORDINARY, learning_rate=0.003)
    yield usual(
        "learning rate 0: V changes, W does not",
        ["t_off_by_one", "mean_for_max", "missing_square", "learning_rate_zero"],
        learning_rate=0.0,
    )
    for beta in (0.0, 0.5, 0.999, 1.0) if dtype == "float32" else ():
        # β = ½ gives β̂ = ½ at every step
        flags = [f for f in ORDINARY if beta != 0.5 or f not in COUNTER[:3]]
        flags += ["beta_bounds"] if beta in (0.0, 1.0) else []
        yield usual(f"β = {beta:g}", flags, beta=beta, t=3)
    late = ["coefficient_half", "beta_for_beta_hat", "one_minus_beta_hat_omitted", "late_step"]
    yield usual("t = 2049, which float16 cannot represent", late, t=2049)
    yield usual("t = 70 000, beyond the range of float16", late, t=70_000)
    still = [(shape, w, [0.0] * 4)]
    difference = ["coefficient_difference"] if dtype == "float32" else []
    yield usual(
        "t = 10⁶ and β = 1: 1 − β̂ = 1/1000002, from rest",
        ["coefficient_half", "beta_for_beta_hat", *difference, "late_step", "beta_bounds"],
        tensors=still,
        t=10**6,
        beta=1.0,
    )
    yield usual(
        "weight decay, decoupled",
        [
            "weight_decay_coupled",
            "weight_decay_after_step",
            "weight_decay_without_learning_rate",
            "weight_decay",
        ],
        weight_decay=0.1,
    )
    yield usual("maximize", ["maximize_ignored", "maximize"], maximize=True)
    far = draw(4, shape, dtype, 0.05)
    two = [(shape, w, v), ((3,), draw(5, (3,), dtype), draw(6, (3,), dtype, 0.25))]
    yield usual(
        "two tensors; one gradient is about a thousand times larger than the other",
        ["global_max", "many_tensors"],
        tensors=two,
        gradients=[[far, draw(7, (3,), dtype, 50.0)]],
    )
    near = draw(8, shape, dtype, 0.01)
    yield usual(
        "one outlier: the steps of all other elements shrink",
        ["mean_for_max", "missing_square"],
        gradients=[[[*near[:3], -100.0]]],
    )
    yield usual(
        "|G| = m at the largest element, where the step is largest",
        ["mean_for_max", "signed_max"],
        gradients=[[[*near[:3], -1.0]]],
    )
    # β̂ = 1/2 at t = 0: V = −ζ cancels
    zeta = exact.gradient_term([Fraction(x) for x in g])
    opposite = [-float(exact.round_to(z, dtype)) for z in zeta]
    yield usual(
        "β̂ V and (1 − β̂) ζ cancel: ulps of the result mean nothing, the tolerance holds",
        ["t_off_by_one", "missing_square", "mean_for_max", "cancellation"],
        tensors=[(shape, w, opposite)],
        first_step=0,
    )


def trajectories(dtype: str) -> Iterator[Json]:
    """Yield sequences of updates."""

    def run(first: int, steps: int, shapes: Sequence[Shape], sizes: Numbers) -> list[list[Numbers]]:
        return [
            [
                draw(1000 * first + 10 * n + i, shape, dtype, size)
                for i, (shape, size) in enumerate(zip(shapes, sizes, strict=True))
            ]
            for n in range(steps)
        ]

    shapes: list[Shape] = [(3,), (2,)]
    weights = [draw(20 + i, shape, dtype) for i, shape in enumerate(shapes)]
    seeded = [(shape, w, None) for shape, w in zip(shapes, weights, strict=True)]
    given = [
        (shape, w, draw(30 + i, shape, dtype, 0.25))
        for i, (shape, w) in enumerate(zip(shapes, weights, strict=True))
    ]
    usual = partial(case, tensors=given, dtype=dtype)
    grads = run(1, 5, shapes, [2.0, 0.1])
    flags = (*ORDINARY, "global_max")
    yield usual("five updates from a given V", [*flags, "many_tensors"], gradients=grads)
    yield usual(
        "three updates from a seeded V₀",
        [*flags, "std_alpha", "velocity_shared", "many_tensors", "default_velocity"],
        tensors=seeded,
        gradients=grads[:3],
        seed=0,
    )
    yield usual(
        "t from 0, from a seeded V₀",
        [*flags, "std_alpha", "first_step_0", "default_velocity"],
        tensors=seeded,
        gradients=grads[:2],
        seed=7,
        first_step=0,
    )
    rates = [0.025, 0.05, 0.1, 0.05]
    yield usual(
        "a warm-up and a decay: σ = α/η with the constructor's learning rate, 0.1",
        ["std_from_schedule", "std_alpha", "scheduled_learning_rate", "default_velocity"],
        tensors=seeded,
        gradients=grads[: len(rates)],
        rates=rates,
        seed=1,
    )
    yield usual(
        "saved and loaded before the third update",
        ["velocity_reset", "t_reset", "reload"],
        gradients=grads[:4],
        reload=2,
    )
    yield usual(
        "saved and loaded, from a seeded V₀ and with a scheduled learning rate",
        ["velocity_reset", "t_reset", "reload", "scheduled_learning_rate", "default_velocity"],
        tensors=seeded,
        gradients=grads[:3],
        rates=[0.1, 0.01, 0.01],
        seed=2,
        reload=1,
    )
    if dtype != "float32":
        return  # the rest does not depend on the dtype
    yield usual(
        "a warm-up from 0: learning rate 0 at construction, with velocity_std",
        ["scheduled_learning_rate", "learning_rate_zero", "default_velocity"],
        tensors=seeded,
        gradients=grads[:3],
        rates=[0.0, 0.05, 0.1],
        learning_rate=0.0,
        velocity_std=0.1,
        seed=1,
    )
    yield usual(
        "learning rate 0 at construction: V starts from rest",
        ["scheduled_learning_rate", "learning_rate_zero", "default_velocity"],
        tensors=seeded,
        gradients=grads[:2],
        rates=[0.0, 0.1],
        learning_rate=0.0,
        seed=1,
    )
    yield usual(
        "weight decay with a schedule",
        [
            "weight_decay_coupled",
            "weight_decay_after_step",
            "weight_decay_without_learning_rate",
            "weight_decay",
            "scheduled_learning_rate",
        ],
        gradients=grads[:3],
        rates=[0.1, 0.5, 0.2],
        weight_decay=0.05,
    )
    yield usual(
        "maximize, with the same gradient arrays at every step: they must not change",
        ["gradient_changed", "maximize_ignored", "maximize"],
        gradients=[grads[0]] * 3,
        maximize=True,
        same_gradients=True,
    )
    yield usual(
        "the same gradient arrays at every step, with weight decay",
        ["gradient_changed", "weight_decay_coupled", "weight_decay"],
        gradients=[grads[0]] * 2,
        weight_decay=0.1,
        same_gradients=True,
    )
    single: list[Shape] = [(1,)]
    yield usual(
        "one number for twelve updates: β̂ gets close to β",
        [*COUNTER, "missing_square", "learning_rate_twice"],
        tensors=[((1,), [0.5], [-0.125])],
        gradients=run(2, 12, single, [1.0]),
    )
    yield usual(
        "β = 1: the average of the whole history",
        ["beta_for_beta_hat", "t_off_by_one", "beta_bounds"],
        tensors=[((1,), [0.5], [-0.125])],
        gradients=run(3, 8, single, [1.0]),
        beta=1.0,
    )
