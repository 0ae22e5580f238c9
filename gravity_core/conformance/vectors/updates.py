"""The vectors of updates: what is fed in, why, and which mistakes it brings to light."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial

from gravity_core.conformance.vectors import exact
from gravity_core.conformance.vectors.answers import Json
from gravity_core.conformance.vectors.inputs import Numbers, Shape, case, draw

FULL = ("float32", "float64")
HALF = ("float16", "bfloat16")

# What one update tells apart whose coefficients are no round numbers.
COUNTER = ("t_off_by_one", "coefficient_half", "beta_for_beta_hat", "one_minus_beta_hat_omitted")
# And if several gradients differ, the largest is negative, V is not 0 and l is not 1:
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
        "learning rate 0: V changes and W does not",
        ["t_off_by_one", "mean_for_max", "missing_square", "learning_rate_zero"],
        learning_rate=0.0,
    )
    for beta in (0.0, 0.5, 0.999, 1.0) if dtype == "float32" else ():
        # β = ½ makes β̂ = ½ at every step
        flags = [f for f in ORDINARY if beta != 0.5 or f not in COUNTER[:3]]
        flags += ["beta_bounds"] if beta in (0.0, 1.0) else []
        yield usual(f"β = {beta:g}", flags, beta=beta, t=3)
    late = ["coefficient_half", "beta_for_beta_hat", "one_minus_beta_hat_omitted", "late_step"]
    yield usual("t = 2049, which float16 does not have", late, t=2049)
    yield usual("t = 70 000, beyond float16", late, t=70_000)
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
        "two tensors, the gradient of one a thousand times that of the other",
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
        "β̂ V and (1 − β̂) ζ cancel: ulps of the result mean nothing, the tolerance does",
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
        "three updates from V₀ by seed",
        [*flags, "std_alpha", "velocity_shared", "many_tensors", "default_velocity"],
        tensors=seeded,
        gradients=grads[:3],
        seed=0,
    )
    yield usual(
        "t from 0, from V₀ by seed",
        [*flags, "std_alpha", "first_step_0", "default_velocity"],
        tensors=seeded,
        gradients=grads[:2],
        seed=7,
        first_step=0,
    )
    rates = [0.025, 0.05, 0.1, 0.05]
    yield usual(
        "a warm-up and a decay: σ = α/l with the learning rate of the construction, 0.1",
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
        "saved and loaded, from V₀ by seed and with a scheduled learning rate",
        ["velocity_reset", "t_reset", "reload", "scheduled_learning_rate", "default_velocity"],
        tensors=seeded,
        gradients=grads[:3],
        rates=[0.1, 0.01, 0.01],
        seed=2,
        reload=1,
    )
    if dtype != "float32":
        return  # what follows has nothing to do with the dtype
    yield usual(
        "a warm-up that starts at 0, constructed with 0 and a velocity_std",
        ["scheduled_learning_rate", "learning_rate_zero", "default_velocity"],
        tensors=seeded,
        gradients=grads[:3],
        rates=[0.0, 0.05, 0.1],
        learning_rate=0.0,
        velocity_std=0.1,
        seed=1,
    )
    yield usual(
        "constructed with learning rate 0: V starts from rest",
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
        "maximize, with the same gradient arrays at every step: they must stay as they are",
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
        "one number for twelve updates: the last β̂ is well on its way to β",
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


def edge_cases(dtype: str) -> Iterator[Json]:
    """Yield zero, tiny, subnormal and huge gradients, empty and 0-d tensors."""
    form = exact.FORMATS[dtype]
    tiny, largest = float(form.smallest_normal), float(form.max)
    shape = (4,)
    w, v = draw(40, shape, dtype), draw(41, shape, dtype, 0.25)
    one, still = [(shape, w, v)], [(shape, w, [0.0] * 4)]
    ordinary = draw(42, shape, dtype)
    usual = partial(case, tensors=one, dtype=dtype)
    yield usual("a gradient of zeros", ["zero_gradient"], gradients=[[[0.0] * 4]])
    yield usual(
        "a gradient of zeros, then an ordinary one",
        ["zero_gradient", "t_off_by_one"],
        gradients=[[[0.0] * 4], [ordinary]],
    )
    small = [math.ldexp(x, -50) for x in ordinary]
    yield usual("tiny gradients: ζ = G", ["tiny_gradient"], tensors=still, gradients=[[small]])
    yield usual(
        "the smallest normal numbers",
        ["tiny_gradient", "subnormal"],
        tensors=still,
        gradients=[[[tiny, -tiny, 2 * tiny, 1.5 * tiny]]],
    )
    yield usual(
        "subnormal gradients, which may be flushed to zero",
        ["subnormal", "tiny_gradient"],
        tensors=[(shape, [0.0] * 4, [0.0] * 4)],
        gradients=[[[tiny / 2, -tiny / 4, tiny / 1024, 0.0]]],
    )
    yield usual(
        "subnormal gradients beside an ordinary one",
        ["subnormal"],
        gradients=[[[tiny / 2, -tiny / 4, 1.0, -0.5]]],
    )
    yield usual(
        "a subnormal V and W",
        ["subnormal", "zero_gradient"],
        tensors=[(shape, [tiny / 2, -tiny / 8, 0.0, tiny], [tiny / 4, 0.0, -tiny / 2, tiny / 2])],
        gradients=[[[0.0] * 4]],
    )
    big = math.sqrt(math.sqrt(largest))
    for comment, g in (
        ("large gradients: s·s is near overflow at the largest", big / 2),
        ("s·s overflows and ζ is 0, where the exact value is all but 0", 4 * big),
        ("s itself overflows", math.sqrt(largest) * 4),
        ("the largest finite number, where 1/max|G| is subnormal", largest),
    ):
        g = float(exact.round_to(Fraction(g), dtype))
        yield usual(comment, ["huge_gradient"], gradients=[[[g, -g / 2, 1.0, 0.0]]])
    yield usual(
        "a 0-d tensor",
        ["zero_dimensional", *COUNTER, "missing_square", "learning_rate_twice"],
        tensors=[((), [0.5], [0.125])],
        gradients=[[[-1.5]]],
    )
    yield usual("an empty tensor", ["empty"], tensors=[((0,), [], [])], gradients=[[[]]])
    yield usual(
        "empty and 0-d tensors among others; they count in the positions of V₀",
        ["empty", "zero_dimensional", "many_tensors", "global_max", "default_velocity"],
        tensors=[((2, 0), [], None), ((), [0.5], None), (shape, w, None)],
        gradients=[[[], [-2.0], ordinary], [[], [0.25], ordinary[::-1]]],
        seed=3,
    )
    if dtype != "float32":
        return  # what follows has nothing to do with the dtype
    yield usual(
        "zeros of both signs beside a number",
        ["zero_gradient"],
        gradients=[[[0.0, -0.0, -1.0, 0.0]]],
    )
    yield usual(
        "from rest, with a gradient of zeros: nothing moves",
        ["zero_gradient"],
        tensors=still,
        gradients=[[[0.0] * 4]],
    )
    yield usual(
        "a huge gradient, then an ordinary one: the average recovers",
        ["huge_gradient", "t_off_by_one"],
        gradients=[[[largest, -1.0, 1.0, 0.0]], [ordinary]],
    )
    yield usual(
        "a huge V: W goes where V says",
        ["huge_velocity"],
        tensors=[(shape, w, [1e30, -1e30, 1.0, 0.0])],
        gradients=[[ordinary]],
    )


def half_precision(dtype: str) -> Iterator[Json]:
    """Yield updates in float16 and bfloat16, computed in float32."""
    shape = (4,)
    w, v, g = draw(50, shape, dtype), draw(51, shape, dtype, 0.25), draw(52, shape, dtype)
    g[1] = -2.5
    one, still = [(shape, w, v)], [(shape, w, [0.0] * 4)]
    usual = partial(case, tensors=one, gradients=[[g]], dtype=dtype)
    own = ["half_overflow"] if dtype == "float16" else []
    some = ["beta_for_beta_hat", "one_minus_beta_hat_omitted", "missing_square"]
    yield usual("an ordinary update", ["t_off_by_one", *some, "mean_for_max", "half_precision"])
    yield usual(
        "max|G| = 16: s·s overflows if it is computed in float16",
        [*own, "mean_for_max", "missing_square", "half_precision"],
        tensors=still,
        gradients=[[[16.0, -8.0, 1.0, 0.125]]],
    )
    yield usual(
        "max|G| = 256: s overflows if it is computed in float16",
        [*own, "mean_for_max", "missing_square", "half_precision"],
        tensors=still,
        gradients=[[[0.125, -0.5, -256.0, 2.0]]],
    )
    yield usual(
        "t = 2049 and β = 1", ["late_step", "half_precision"], tensors=still, t=2049, beta=1.0
    )
    yield usual(
        "t = 70 000, beyond float16, and β = 1",
        ["coefficient_half", "late_step", "half_precision"],
        tensors=still,
        t=70_000,
        beta=1.0,
    )
    grads = [[draw(60 + n, shape, dtype, 2.0)] for n in range(4)]
    yield usual("four updates", [*some, "half_precision", "t_off_by_one"], gradients=grads)
    yield usual(
        "three updates from V₀ by seed, with weight decay",
        ["std_alpha", "weight_decay", "half_precision", "default_velocity"],
        tensors=[(shape, w, None)],
        gradients=grads[:3],
        seed=0,
        weight_decay=0.1,
    )
    yield usual("a gradient of zeros", ["zero_gradient", "half_precision"], gradients=[[[0.0] * 4]])
    form = exact.FORMATS[dtype]
    tiny, largest = float(form.smallest_normal), float(form.max)
    yield usual(
        "subnormal and huge gradients in one tensor",
        ["subnormal", "huge_gradient", "half_precision"],
        gradients=[[[tiny / 2, -tiny, 1.0, largest]]],
    )


def non_finite(dtype: str) -> Iterator[Json]:
    """Yield what is not finite; nothing is filtered, and all elements share max|G|."""
    inf, nan = math.inf, math.nan
    shape = (4,)
    w, v, g = draw(70, shape, dtype), draw(71, shape, dtype, 0.25), draw(72, shape, dtype)
    one = [(shape, w, v)]
    usual = partial(case, tensors=one, gradients=[[g]], dtype=dtype)
    flags = ["nan_filtered", "non_finite"]
    yield usual(
        "one NaN poisons its tensor", [*flags, "nan_in_maximum"], gradients=[[[1.0, nan, 2.0, 0.0]]]
    )
    yield usual(
        "NaN in one tensor leaves the other alone",
        [*flags, "nan_in_maximum", "global_max", "many_tensors"],
        tensors=[(shape, w, v), ((2,), [0.5, -0.5], [0.125, 0.25])],
        gradients=[[[1.0, nan, 2.0, 0.0], [1.0, -2.0]]],
    )
    for name, x in (("∞", inf),) if dtype != "float32" else (("∞", inf), ("−∞", -inf)):
        yield usual(
            f"one {name}: NaN there and where G is 0, ζ = 0 elsewhere",
            flags,
            gradients=[[[1.0, x, -2.0, 0.0]]],
        )
    if dtype != "float32":
        return
    yield usual("all ∞", flags, gradients=[[[inf, inf, -inf, inf]]])
    yield usual("all NaN", flags, gradients=[[[nan] * 4]])
    yield usual("NaN and ∞", [*flags, "nan_in_maximum"], gradients=[[[inf, nan, 1.0, 0.0]]])
    yield usual(
        "∞ for one step: V remembers NaN, the others recover",
        flags,
        gradients=[[[1.0, inf, -2.0, 0.5]], [g]],
    )
    yield usual(
        "V not finite: it stays so, and W follows",
        ["non_finite"],
        tensors=[(shape, w, [nan, inf, -inf, 0.25])],
        gradients=[[g], [g]],
    )
    yield usual(
        "W not finite, V finite: V does not ask for W",
        ["non_finite"],
        tensors=[(shape, [nan, inf, -inf, 0.25], v)],
    )
    yield usual(
        "a 0-d tensor, ∞",
        [*flags, "zero_dimensional"],
        tensors=[((), [0.5], [0.25])],
        gradients=[[[inf]]],
    )
