"""The update vectors with extreme numbers: edge cases, half types, non-finite values."""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

from gravity_conformance.vectors import exact
from gravity_conformance.vectors.making.answers import Json
from gravity_conformance.vectors.making.inputs import case, draw
from gravity_conformance.vectors.making.ordinary import COUNTER


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
        ("large gradients: s·s of the largest is near overflow", big / 2),
        ("s·s overflows and ζ is 0; the exact value is nearly 0", 4 * big),
        ("s itself overflows", math.sqrt(largest) * 4),
        ("the largest finite number: 1/max|G| is subnormal", largest),
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
        "empty and 0-d tensors among others; they count in the positions for V₀",
        ["empty", "zero_dimensional", "many_tensors", "global_max", "default_velocity"],
        tensors=[((2, 0), [], None), ((), [0.5], None), (shape, w, None)],
        gradients=[[[], [-2.0], ordinary], [[], [0.25], ordinary[::-1]]],
        seed=3,
    )
    if dtype != "float32":
        return  # the rest does not depend on the dtype
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
        "a huge V: W follows V",
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
        "max|G| = 16: s·s overflows if computed in float16",
        [*own, "mean_for_max", "missing_square", "half_precision"],
        tensors=still,
        gradients=[[[16.0, -8.0, 1.0, 0.125]]],
    )
    yield usual(
        "max|G| = 256: s overflows if computed in float16",
        [*own, "mean_for_max", "missing_square", "half_precision"],
        tensors=still,
        gradients=[[[0.125, -0.5, -256.0, 2.0]]],
    )
    yield usual(
        "t = 2049 and β = 1", ["late_step", "half_precision"], tensors=still, t=2049, beta=1.0
    )
    yield usual(
        "t = 70 000, beyond the range of float16, and β = 1",
        ["coefficient_half", "late_step", "half_precision"],
        tensors=still,
        t=70_000,
        beta=1.0,
    )
    grads = [[draw(60 + n, shape, dtype, 2.0)] for n in range(4)]
    yield usual("four updates", [*some, "half_precision", "t_off_by_one"], gradients=grads)
    yield usual(
        "three updates from a seeded V₀, with weight decay",
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
    """Yield non-finite inputs. Nothing is filtered, and all elements share max|G|."""
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
        "NaN in one tensor leaves the other tensor alone",
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
        "∞ for one step: NaN stays in V, the other elements recover",
        flags,
        gradients=[[[1.0, inf, -2.0, 0.5]], [g]],
    )
    yield usual(
        "V not finite: V stays non-finite, and W follows",
        ["non_finite"],
        tensors=[(shape, w, [nan, inf, -inf, 0.25])],
        gradients=[[g], [g]],
    )
    yield usual(
        "W not finite, V finite: V does not depend on W",
        ["non_finite"],
        tensors=[(shape, [nan, inf, -inf, 0.25], v)],
    )
    yield usual(
        "a 0-d tensor, ∞",
        [*flags, "zero_dimensional"],
        tensors=[((), [0.5], [0.25])],
        gradients=[[[inf]]],
    )
