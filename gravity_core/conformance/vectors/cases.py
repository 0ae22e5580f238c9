"""The vectors' inputs: what is fed in, why, and which mistakes it brings to light.

Guarantee: the same files, byte for byte, on every machine. Numbers that stand for ordinary data
come from Threefry in Python integers; every result comes from `answers`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from gravity_core import hyperparameters as hp
from gravity_core.conformance.vectors import exact
from gravity_core.conformance.vectors.answers import Json, number, tensor

FULL = ("float32", "float64")
HALF = ("float16", "bfloat16")

Numbers = list[float]
Shape = tuple[int, ...]

# What one ordinary update tells apart, if its largest gradient is negative, V is not zero and
# the learning rate is not 1.
ORDINARY = (
    "t_off_by_one",
    "coefficient_half",
    "beta_for_beta_hat",
    "one_minus_beta_hat_omitted",
    "mean_for_max",
    "signed_max",
    "missing_square",
    "learning_rate_twice",
)


def draw(stream: int, shape: Shape, dtype: str, size: float = 1.0) -> Numbers:
    """Return numbers spread evenly over (−size, size), in `dtype`; others for each stream."""
    found = []
    for i in range(math.prod(shape)):
        high, low = exact.threefry((0, stream), (0, i))
        even = Fraction(2 * (high << 32 | low) + 1 - 2**64, 2**64)
        found.append(float(exact.round_to(even * Fraction(size), dtype)))
    return found


def case(
    comment: str,
    flags: Iterable[str],
    tensors: Sequence[tuple[Shape, Numbers, Numbers | None]],
    gradients: Sequence[Sequence[Numbers]],
    dtype: str,
    *,
    t: int | None = None,
    rates: Sequence[float] = (),
    learning_rate: float = hp.LEARNING_RATE,
    alpha: float = hp.ALPHA,
    beta: float = hp.BETA,
    weight_decay: float = hp.WEIGHT_DECAY,
    velocity_std: float | None = None,
    seed: int | None = None,
    first_step: int = hp.FIRST_STEP,
    maximize: bool = False,
    same_gradients: bool = False,
    reload: int | None = None,
) -> Json:
    """Return the inputs of one test of updates.

    Args:
        comment: what it is, in a line.
        flags: the mistakes that it catches and the cases that it stands for.
        tensors: shape, W and V of each; V None where the seed gives it.
        gradients: for every step those of every tensor.
        dtype: of all of them.
        t: of the first step; `first_step` if None.
        rates: the learning rate of every step; `learning_rate` at all if none are given.
        learning_rate: that the optimizer is constructed with.
        alpha: α.
        beta: β.
        weight_decay: λ.
        velocity_std: σ itself.
        seed: of V₀; None where V is given.
        first_step: 0 or 1.
        maximize: whether gradients count with their sign changed.
        same_gradients: whether the same arrays are passed at every step.
        reload: the step, from 0, before which the state is saved and loaded.
    """
    start = first_step if t is None else t
    rates = rates or [learning_rate] * len(gradients)
    return {
        "comment": comment,
        "flags": list(flags),
        "hyperparameters": {
            "learning_rate": _float(learning_rate),
            "alpha": _float(alpha),
            "beta": _float(beta),
            "weight_decay": _float(weight_decay),
            "velocity_std": None if velocity_std is None else _float(velocity_std),
            "seed": None if seed is None else _seed(seed),
            "first_step": first_step,
            "maximize": maximize,
        },
        "same_gradients": same_gradients,
        "tensors": [
            {"shape": list(shape), "W": _tensor(w, dtype)}
            | ({} if v is None else {"V": _tensor(v, dtype)})
            for shape, w, v in tensors
        ],
        "steps": [
            {
                "t": start + n,
                "learning_rate": _float(rate),
                "reload": n == reload,
                "G": [_tensor(g, dtype) for g in step],
            }
            for n, (rate, step) in enumerate(zip(rates, gradients, strict=True))
        ],
    }


def _float(x: float) -> Json:
    return number(Fraction(x))


def _seed(seed: int) -> str:
    return f"0x{seed:016x}"


def _tensor(xs: Numbers, dtype: str) -> Json:
    return tensor((Fraction(x) if math.isfinite(x) else x for x in xs), dtype)


def one_step(dtype: str) -> Iterator[Json]:
    """Yield single updates with ordinary numbers."""
    shape = (2, 2)
    w, v, g = draw(1, shape, dtype), draw(2, shape, dtype, 0.25), draw(3, shape, dtype, 2.0)
    g[2] = -2.5
    one = [(shape, w, v)]
    epsilon = ["epsilon"] if dtype == "float64" else []
    yield case(
        "the first update of Algorithm 1",
        [*ORDINARY, "axis_max", *epsilon],
        one,
        [[g]],
        dtype,
    )
    yield case(
        "the first update of the original Keras code: t = 0, β̂ = 1/2",
        [*ORDINARY, "axis_max", *epsilon, "first_step_0"],
        one,
        [[g]],
        dtype,
        first_step=0,
    )
    yield case("the tenth update", ORDINARY, one, [[g]], dtype, t=10)
    yield case("another learning rate", ORDINARY, one, [[g]], dtype, learning_rate=0.003)
    yield case(
        "learning rate 0: V changes and W does not",
        ["t_off_by_one", "mean_for_max", "missing_square", "learning_rate_zero"],
        one,
        [[g]],
        dtype,
        learning_rate=0.0,
    )
    for beta in (0.0, 0.5, 0.999, 1.0):
        edge = ["beta_bounds"] if beta in (0.0, 1.0) else []
        yield case(f"β = {beta:g}", [*ORDINARY, *edge], one, [[g]], dtype, beta=beta, t=3)
    late = ["coefficient_half", "beta_for_beta_hat", "one_minus_beta_hat_omitted", "late_step"]
    yield case("t = 2049, which float16 does not have", late, one, [[g]], dtype, t=2049)
    yield case("t = 70 000, beyond float16", late, one, [[g]], dtype, t=70_000)
    still = [(shape, w, [0.0] * 4)]
    difference = ["coefficient_difference"] if dtype == "float32" else []
    yield case(
        "t = 10⁶ and β = 1: 1 − β̂ = 1/1000002, from rest",
        ["coefficient_half", "beta_for_beta_hat", *difference, "late_step", "beta_bounds"],
        still,
        [[g]],
        dtype,
        t=10**6,
        beta=1.0,
    )
    yield case(
        "weight decay, decoupled",
        [
            "weight_decay_coupled",
            "weight_decay_after_step",
            "weight_decay_without_learning_rate",
            "weight_decay",
        ],
        one,
        [[g]],
        dtype,
        weight_decay=0.1,
    )
    yield case("maximize", ["maximize_ignored", "maximize"], one, [[g]], dtype, maximize=True)
    far = draw(4, shape, dtype, 1e-3)
    two = [(shape, w, v), ((3,), draw(5, (3,), dtype), draw(6, (3,), dtype, 0.25))]
    yield case(
        "two tensors, the gradient of one a thousand times that of the other",
        ["global_max", "many_tensors"],
        two,
        [[far, draw(7, (3,), dtype, 4.0)]],
        dtype,
    )
    near = draw(8, shape, dtype, 0.01)
    yield case(
        "one outlier: the steps of all other elements shrink",
        ["mean_for_max", "missing_square"],
        one,
        [[[*near[:3], -100.0]]],
        dtype,
    )
    yield case(
        "|G| = m at the largest element, where the step is largest",
        ["mean_for_max", "signed_max"],
        one,
        [[[*near[:3], -1.0]]],
        dtype,
    )
    # β̂ = 1/2 at t = 0: V = −ζ cancels
    zeta = exact.gradient_term([Fraction(x) for x in g])
    opposite = [-float(exact.round_to(z, dtype)) for z in zeta]
    yield case(
        "β̂ V and (1 − β̂) ζ cancel: ulps of the result mean nothing, the tolerance does",
        ["t_off_by_one", "missing_square", "mean_for_max", "cancellation"],
        [(shape, w, opposite)],
        [[g]],
        dtype,
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
    grads = run(1, 7, shapes, [2.0, 0.1])
    flags = (*ORDINARY, "global_max")
    yield case("seven updates from a given V", [*flags, "many_tensors"], given, grads, dtype)
    yield case(
        "four updates from V₀ by seed",
        [*flags, "std_alpha", "velocity_shared", "many_tensors", "default_velocity"],
        seeded,
        grads[:4],
        dtype,
        seed=0,
    )
    yield case(
        "t from 0, from V₀ by seed",
        [*flags, "std_alpha", "first_step_0", "default_velocity"],
        seeded,
        grads[:2],
        dtype,
        seed=7,
        first_step=0,
    )
    rates = [0.025, 0.05, 0.1, 0.05]
    yield case(
        "a warm-up and a decay: σ = α/l with the learning rate of the construction, 0.1",
        ["std_from_schedule", "std_alpha", "scheduled_learning_rate", "default_velocity"],
        seeded,
        grads[: len(rates)],
        dtype,
        rates=rates,
        seed=1,
    )
    yield case(
        "saved and loaded before the fourth update",
        ["velocity_reset", "t_reset", "reload"],
        given,
        grads[:5],
        dtype,
        reload=3,
    )
    yield case(
        "saved and loaded, from V₀ by seed and with a scheduled learning rate",
        ["velocity_reset", "t_reset", "reload", "scheduled_learning_rate", "default_velocity"],
        seeded,
        grads[:4],
        dtype,
        rates=[0.1, 0.1, 0.01, 0.01],
        seed=2,
        reload=2,
    )
    if dtype != "float32":
        return  # what follows has nothing to do with the dtype
    yield case(
        "a warm-up that starts at 0, constructed with 0 and a velocity_std",
        ["scheduled_learning_rate", "learning_rate_zero", "default_velocity"],
        seeded,
        grads[:3],
        dtype,
        rates=[0.0, 0.05, 0.1],
        learning_rate=0.0,
        velocity_std=0.1,
        seed=1,
    )
    yield case(
        "constructed with learning rate 0: V starts from rest",
        ["scheduled_learning_rate", "learning_rate_zero", "default_velocity"],
        seeded,
        grads[:2],
        dtype,
        rates=[0.0, 0.1],
        learning_rate=0.0,
        seed=1,
    )
    yield case(
        "weight decay with a schedule",
        [
            "weight_decay_coupled",
            "weight_decay_after_step",
            "weight_decay_without_learning_rate",
            "weight_decay",
            "scheduled_learning_rate",
        ],
        given,
        grads[:3],
        dtype,
        rates=[0.1, 0.5, 0.2],
        weight_decay=0.05,
    )
    yield case(
        "maximize, with the same gradient arrays at every step: they must stay as they are",
        ["gradient_changed", "maximize_ignored", "maximize"],
        given,
        [grads[0]] * 3,
        dtype,
        maximize=True,
        same_gradients=True,
    )
    yield case(
        "the same gradient arrays at every step, with weight decay",
        ["gradient_changed", "weight_decay_coupled", "weight_decay"],
        given,
        [grads[0]] * 2,
        dtype,
        weight_decay=0.1,
        same_gradients=True,
    )
    single: list[Shape] = [(1,)]
    yield case(
        "one number for twelve updates: the last β̂ is well on its way to β",
        [*(f for f in ORDINARY if f not in ("mean_for_max", "signed_max")), "signed_max"],
        [((1,), [0.5], [-0.125])],
        run(2, 12, single, [1.0]),
        dtype,
    )
    yield case(
        "β = 1: the average of the whole history",
        ["beta_for_beta_hat", "t_off_by_one", "beta_bounds"],
        [((1,), [0.5], [-0.125])],
        run(3, 8, single, [1.0]),
        dtype,
        beta=1.0,
    )


def edge_cases(dtype: str) -> Iterator[Json]:
    """Yield zero, tiny, subnormal and huge gradients, empty and 0-d tensors."""
    form = exact.FORMATS[dtype]
    tiny, largest = float(form.smallest_normal), float(form.max)
    shape = (4,)
    w, v = draw(40, shape, dtype), draw(41, shape, dtype, 0.25)
    one = [(shape, w, v)]
    ordinary = draw(42, shape, dtype)
    yield case("a gradient of zeros", ["zero_gradient"], one, [[[0.0] * 4]], dtype)
    yield case(
        "a gradient of zeros, then an ordinary one",
        ["zero_gradient", "t_off_by_one"],
        one,
        [[[0.0] * 4], [ordinary]],
        dtype,
    )
    yield case(
        "zeros of both signs beside a number",
        ["zero_gradient"],
        one,
        [[[0.0, -0.0, -1.0, 0.0]]],
        dtype,
    )
    yield case(
        "from rest, with a gradient of zeros: nothing moves",
        ["zero_gradient"],
        [(shape, w, [0.0] * 4)],
        [[[0.0] * 4]],
        dtype,
    )
    small = [math.ldexp(x, -50) for x in ordinary]
    yield case(
        "tiny gradients: ζ = G", ["tiny_gradient"], [(shape, w, [0.0] * 4)], [[small]], dtype
    )
    yield case(
        "the smallest normal numbers",
        ["tiny_gradient", "subnormal"],
        [(shape, w, [0.0] * 4)],
        [[[tiny, -tiny, 2 * tiny, 1.5 * tiny]]],
        dtype,
    )
    yield case(
        "subnormal gradients, which may be flushed to zero",
        ["subnormal", "tiny_gradient"],
        [(shape, [0.0] * 4, [0.0] * 4)],
        [[[tiny / 2, -tiny / 4, tiny / 1024, 0.0]]],
        dtype,
    )
    yield case(
        "subnormal gradients beside an ordinary one",
        ["subnormal"],
        one,
        [[[tiny / 2, -tiny / 4, 1.0, -0.5]]],
        dtype,
    )
    yield case(
        "a subnormal V and W",
        ["subnormal", "zero_gradient"],
        [(shape, [tiny / 2, -tiny / 8, 0.0, tiny], [tiny / 4, 0.0, -tiny / 2, tiny / 2])],
        [[[0.0] * 4]],
        dtype,
    )
    big = math.sqrt(math.sqrt(largest))
    for comment, g in (
        ("large gradients: s·s is near overflow at the largest", big / 2),
        ("s·s overflows and ζ is 0, where the exact value is all but 0", 4 * big),
        ("s itself overflows", math.sqrt(largest) * 4),
        ("the largest finite number, where 1/max|G| is subnormal", largest),
    ):
        g = float(exact.round_to(Fraction(g), dtype))
        yield case(comment, ["huge_gradient"], one, [[[g, -g / 2, 1.0, 0.0]]], dtype)
    yield case(
        "a huge gradient, then an ordinary one: the average recovers",
        ["huge_gradient", "t_off_by_one"],
        one,
        [[[largest, -1.0, 1.0, 0.0]], [ordinary]],
        dtype,
    )
    yield case(
        "a huge V: W goes where V says",
        ["huge_velocity"],
        [(shape, w, [1e30, -1e30, 1.0, 0.0])],
        [[ordinary]],
        dtype,
    )
    yield case(
        "a 0-d tensor",
        ["zero_dimensional", *(f for f in ORDINARY if f != "mean_for_max")],
        [((), [0.5], [0.125])],
        [[[-1.5]]],
        dtype,
    )
    yield case("an empty tensor", ["empty"], [((0,), [], [])], [[[]]], dtype)
    yield case(
        "empty and 0-d tensors among others; they count in the positions of V₀",
        ["empty", "zero_dimensional", "many_tensors", "global_max", "default_velocity"],
        [((2, 0), [], None), ((), [0.5], None), (shape, w, None)],
        [[[], [-2.0], ordinary], [[], [0.25], ordinary[::-1]]],
        dtype,
        seed=3,
    )


def half_precision(dtype: str) -> Iterator[Json]:
    """Yield updates in float16 and bfloat16, computed in float32."""
    shape = (4,)
    w, v, g = draw(50, shape, dtype), draw(51, shape, dtype, 0.25), draw(52, shape, dtype)
    g[1] = -2.5
    one, still = [(shape, w, v)], [(shape, w, [0.0] * 4)]
    own = ["half_overflow"] if dtype == "float16" else []
    some = ["beta_for_beta_hat", "one_minus_beta_hat_omitted", "missing_square"]
    yield case(
        "an ordinary update",
        ["t_off_by_one", *some, "mean_for_max", "half_precision"],
        one,
        [[g]],
        dtype,
    )
    yield case(
        "max|G| = 16: s·s overflows if it is computed in float16",
        [*own, "mean_for_max", "missing_square", "half_precision"],
        still,
        [[[16.0, -8.0, 1.0, 0.125]]],
        dtype,
    )
    yield case(
        "max|G| = 256: s overflows if it is computed in float16",
        [*own, "mean_for_max", "missing_square", "half_precision"],
        still,
        [[[0.125, -0.5, -256.0, 2.0]]],
        dtype,
    )
    yield case(
        "t = 2049 and β = 1", ["late_step", "half_precision"], still, [[g]], dtype, t=2049, beta=1.0
    )
    yield case(
        "t = 70 000, beyond float16, and β = 1",
        ["coefficient_half", "late_step", "half_precision"],
        still,
        [[g]],
        dtype,
        t=70_000,
        beta=1.0,
    )
    grads = [[draw(60 + n, shape, dtype, 2.0)] for n in range(4)]
    yield case(
        "four updates",
        [*some, "half_precision", "t_off_by_one"],
        one,
        grads,
        dtype,
    )
    yield case(
        "three updates from V₀ by seed, with weight decay",
        ["std_alpha", "weight_decay", "half_precision", "default_velocity"],
        [(shape, w, None)],
        grads[:3],
        dtype,
        seed=0,
        weight_decay=0.1,
    )
    yield case(
        "a gradient of zeros", ["zero_gradient", "half_precision"], one, [[[0.0] * 4]], dtype
    )
    form = exact.FORMATS[dtype]
    tiny, largest = float(form.smallest_normal), float(form.max)
    yield case(
        "subnormal and huge gradients in one tensor",
        ["subnormal", "huge_gradient", "half_precision"],
        one,
        [[[tiny / 2, -tiny, 1.0, largest]]],
        dtype,
    )


def non_finite(dtype: str) -> Iterator[Json]:
    """Yield what is not finite; nothing is filtered, and all elements share max|G|."""
    inf, nan = math.inf, math.nan
    shape = (4,)
    w, v, g = draw(70, shape, dtype), draw(71, shape, dtype, 0.25), draw(72, shape, dtype)
    one = [(shape, w, v)]
    flags = ["nan_filtered", "non_finite"]
    yield case(
        "one NaN poisons its tensor",
        [*flags, "nan_in_maximum"],
        one,
        [[[1.0, nan, 2.0, 0.0]]],
        dtype,
    )
    yield case(
        "NaN in one tensor leaves the other alone",
        [*flags, "nan_in_maximum", "global_max", "many_tensors"],
        [(shape, w, v), ((2,), [0.5, -0.5], [0.125, 0.25])],
        [[[1.0, nan, 2.0, 0.0], [1.0, -2.0]]],
        dtype,
    )
    for name, x in (("∞", inf),) if dtype in HALF else (("∞", inf), ("−∞", -inf)):
        yield case(
            f"one {name}: NaN there and where G is 0, ζ = 0 elsewhere",
            flags,
            one,
            [[[1.0, x, -2.0, 0.0]]],
            dtype,
        )
    if dtype in HALF:
        return
    yield case("all ∞", flags, one, [[[inf, inf, -inf, inf]]], dtype)
    yield case("all NaN", flags, one, [[[nan] * 4]], dtype)
    yield case("NaN and ∞", [*flags, "nan_in_maximum"], one, [[[inf, nan, 1.0, 0.0]]], dtype)
    yield case(
        "∞ for one step: V remembers NaN, the others recover",
        flags,
        one,
        [[[1.0, inf, -2.0, 0.5]], [g]],
        dtype,
    )
    yield case(
        "V not finite: it stays so, and W follows",
        flags,
        [(shape, w, [nan, inf, -inf, 0.25])],
        [[g], [g]],
        dtype,
    )
    yield case(
        "W not finite, V finite: V does not ask for W",
        flags,
        [(shape, [nan, inf, -inf, 0.25], v)],
        [[g]],
        dtype,
    )
    yield case(
        "a 0-d tensor, ∞", [*flags, "zero_dimensional"], [((), [0.5], [0.25])], [[[inf]]], dtype
    )


def coefficients(dtype: str) -> Iterator[Json]:
    """Yield β̂ and 1 − β̂."""
    for beta in (0.0, 0.9, 0.999, 1.0):
        for t in (0, 1, 2, 10, 100, 2049, 65_520, 10**6, 2**24 - 2):
            flags = [] if t else ["first_step_0"]
            if beta == 0.9:
                flags += ["coefficient_half"] if t else []
                flags += ["t_off_by_one"] if t <= 100 else []
            if t and beta not in (0.0, 1.0) and t <= 2049:
                flags += ["beta_for_beta_hat"]
            if beta == 1.0 and t >= 100:
                flags += ["coefficient_half"]
                flags += ["coefficient_difference"] if dtype == "float32" and t >= 2049 else []
            if t >= 2049:
                flags += ["late_step"]
            if beta in (0.0, 1.0):
                flags += ["beta_bounds"]
            yield {
                "comment": f"t = {t}, β = {beta:g}",
                "flags": flags,
                "t": t,
                "beta": _float(beta),
            }


def initial_velocities(dtype: str) -> Iterator[Json]:
    """Yield V₀ by seed, position of the tensor and elements."""

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
            given[name] = None if given[name] is None else _float(given[name])
        return {"comment": comment, "flags": list(flags), **given, "seed": _seed(given["seed"])}

    yield v0("the defaults: σ = 0.01/0.1", ["std_alpha", "default_velocity"])
    yield v0("σ = α/l with other numbers", ["std_alpha"], learning_rate=0.003, alpha=0.05)
    yield v0("learning rate 1, where σ is α", [], learning_rate=1.0)
    yield v0("velocity_std overrides α/l", ["std_alpha"], velocity_std=0.25)
    yield v0("a seed of 64 bits", ["seed_ignored", "seed_truncated"], seed=0x0123456789ABCDEF)
    yield v0("the largest seed", ["seed_ignored", "seed_truncated"], seed=2**64 - 1)
    yield v0("the second tensor", ["velocity_shared"], index=1)
    yield v0("tensor number 2³² − 1", ["velocity_shared", "large_index"], index=2**32 - 1)
    yield v0("seed and position", ["velocity_shared", "seed_ignored"], seed=5, index=2)
    if dtype in HALF:
        return  # the elements are those of float32, rounded
    yield v0("a slice from within a block of four", ["slice"], first_element=3, elements=6)
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
        ("the key of tensor 0 by seed 0", (0, 0), (0, 0)),
        ("the key of tensor 2 by seed 5", (0, 5), (0, 2)),
        ("the key of tensor 1 by seed 2³²", (1, 0), (0, 1)),
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
"""Name of each file: the groups that it has, by type, dtypes and cases."""
