"""The known mistakes match their descriptions: numbers by hand from the paper's literal form."""

from fractions import Fraction

import numpy as np
import pytest

from gravity_conformance.mutations import COARSE, FLOAT32_DECAY, MUTATIONS, REFERENCE
from gravity_conformance.vectors.making.notes import NOTES
from gravity_core import ErrorBound

# The second step of two tensors with G = (1, −2) and G = (4), V = (3, 6), W = (1, −1), β = 1,
# η = 1/2 (1/4 at construction) and λ = 0: β̂ = 3/4, m = 1/2, ζ = (1/5, −2/17).
V, W = (Fraction(23, 10), Fraction(76, 17)), (Fraction(-3, 20), Fraction(-55, 17))
# With λ = 1/5, so η λ = 1/10; and with the opposite gradient: ζ = (−1/5, 2/17).
DECAYED = (Fraction(-1, 4), Fraction(-533, 170))
MAXIMIZED = (Fraction(11, 5), Fraction(77, 17))

PLAIN, DECAY, MAXIMIZE = {}, {"weight_decay": 0.2}, {"maximize": True}


def moved(v):
    return tuple(w - x / 2 for w, x in zip((1, -1), v, strict=True))


# description → (options, V, W) for each variant of the mistake
STEPS = {
    "β̂ uses t − 1": [(Fraction(31, 15), Fraction(202, 51))],  # β̂ = 2/3
    "β̂ uses t + 1": [(Fraction(61, 25), Fraction(406, 85))],  # 4/5
    "t counts tensors, not steps": [(Fraction(61, 25), Fraction(406, 85))],
    "t stands still": [(Fraction(31, 15), Fraction(202, 51))],
    "β in place of β̂": [(Fraction(3), Fraction(6))],
    "(1 − β̂) omitted": [(Fraction(49, 20), Fraction(149, 34))],
    "β̂ and 1 − β̂ exchanged": [(Fraction(9, 10), Fraction(24, 17))],
    "mean in place of max": [(Fraction(121, 52), Fraction(89, 20))],  # 3/2
    "max|G| is the max of G": [(Fraction(19, 8), Fraction(22, 5))],  # 1
    "max|G| along the last axis only": [(Fraction(19, 8), Fraction(76, 17))],  # 1 and 2
    "norm in place of max": [(Fraction(55, 24), Fraction(94, 21))],  # √5
    "m from the whole model, not per tensor": [(Fraction(77, 34), Fraction(292, 65))],  # 4
    "m per element, not per tensor": [(Fraction(19, 8), Fraction(76, 17))],
    "m is max|G|, not 1 / max|G|": [(Fraction(49, 20), Fraction(17, 4))],
    "missing square": [
        (Fraction(7, 3), Fraction(14, 3)),
        (Fraction(7, 3), Fraction(22, 5)),
    ],  # with and without the sign
    "ζ is the bare gradient": [(Fraction(5, 2), Fraction(4))],
}
# 7/10 and 3/10
NINE_TENTHS = (Fraction(54, 25), Fraction(354, 85))
STEPS = {
    description: [(PLAIN, v, moved(v)) for v in found] for description, found in STEPS.items()
} | {
    "β = 0 is taken for no β, and 0.9 is used": [({"beta": 0.0}, NINE_TENTHS, moved(NINE_TENTHS))],
    "learning rate applied twice": [
        (DECAY, V, (Fraction(13, 40), Fraction(-343, 170))),
        (DECAY, V, (Fraction(3, 8), Fraction(-703, 340))),
    ],
    "W moves by +η V": [(PLAIN, V, (Fraction(43, 20), Fraction(21, 17)))],
    "the learning rate of the constructor is used throughout": [
        (PLAIN, V, (Fraction(17, 40), Fraction(-36, 17)))
    ],
    # G + λ W = (6/5, −11/5), m = 5/11, ζ = (750/4981, −1375/15266)
    "weight decay coupled": [
        (
            DECAY,
            (Fraction(9, 4) + Fraction(750, 4981) / 4, Fraction(9, 2) - Fraction(1375, 15266) / 4),
            moved(
                (
                    Fraction(9, 4) + Fraction(750, 4981) / 4,
                    Fraction(9, 2) - Fraction(1375, 15266) / 4,
                )
            ),
        )
    ],
    "weight decay is not scaled by the learning rate": [
        (DECAY, V, (Fraction(-7, 20), Fraction(-258, 85)))
    ],
    "weight decay after the step, not beside it": [
        (DECAY, V, (Fraction(-27, 200), Fraction(-99, 34)))
    ],
    "weight decay ignored": [(DECAY, V, W)],
    "maximize ignored": [(MAXIMIZE, V, W)],
    "V is negated, not the gradient, where it maximizes": [
        (MAXIMIZE, V, (Fraction(43, 20), Fraction(21, 17)))
    ],
}


def step(variant, **options):
    """Return V and W of the first tensor."""
    arrays = ([[1], [-1]], [[0]]), ([[3], [6]], [[0]]), ([[1], [-2]], [[4]])
    given = {"lr": 0.5, "constructed": 0.25, "beta": 1.0, "weight_decay": 0.0, "maximize": False}
    w, v, _ = variant.step(
        *([np.asarray(x, np.longdouble) for x in tensors] for tensors in arrays),
        count=1,
        first_step=1,
        **given | options,
    )
    return v[0].ravel(), w[0].ravel()


# Computed in long double if it is wider, and rounded to float64 like the expected value.
U = 2.0**-53
CLOSE = 2 * U + ErrorBound.ROUNDINGS * float(np.finfo(np.longdouble).eps) / 2


def close(got, expected):
    return np.allclose(np.float64(got), [float(x) for x in expected], rtol=CLOSE, atol=0)


def variants(description):
    found = [variant for variant in MUTATIONS if variant.description == description]
    assert found
    return found


@pytest.mark.parametrize(
    ("options", "v", "w"),
    [(PLAIN, V, W), (DECAY, V, DECAYED), (MAXIMIZE, MAXIMIZED, moved(MAXIMIZED))],
)
def test_the_update_without_a_mistake(options, v, w):
    got_v, got_w = step(REFERENCE, **options)
    assert close(got_v, v)
    assert close(got_w, w)


@pytest.mark.parametrize("description", STEPS)
def test_a_step_with_a_mistake(description):
    for variant, (options, v, w) in zip(variants(description), STEPS[description], strict=True):
        got_v, got_w = step(variant, **options)
        assert close(got_v, v)
        assert close(got_w, w)


def test_a_constant_in_the_denominator():
    (variant,) = variants("1e-8 is added to the denominator")
    # One sum and one quotient; 1e-8 is rounded, and the next term of the series is 8e-19.
    assert float(variant.term(np.float64(1), 2.0)) == pytest.approx(0.2 - 0.2**2 * 1e-8, rel=4 * U)


def test_non_finite_values_are_replaced():
    (variant,) = variants("what is not finite is replaced by 0")
    g = np.asarray([np.nan, np.inf, -2.0])
    assert variant.gradient(g, g, 0.0, False).tolist() == [0, 0, -2]
    assert variant.gradient(g, g, 0.0, True).tolist() == [0, 0, 2]


# Spacings of float16: 2⁻¹¹ in [1/2, 1), 2⁻¹⁴ in [1/16, 1/8), 2⁻⁷ in [8, 16), 1/16 in [64, 128).
OLD = Fraction(1827, 2048)  # 91/102 in float16
# Of bfloat16: 2⁻⁸ in [1/2, 1), 2⁻¹¹ in [1/16, 1/8); 100 · 0.9 and 100 · 0.1 are 90 and 10.
OLD_16 = Fraction(228, 256)
# 1 − β̂ as a difference, or 11/102.
HALVES = [(OLD, 1 - OLD), (OLD, Fraction(1767, 16384))] * 3
HALVES += [(OLD_16, 1 - OLD_16), (OLD_16, Fraction(221, 2048))] * 3


def test_coefficients_in_half_precision():
    for variant, pair in zip(variants("1 − β̂ in half precision"), HALVES, strict=True):
        assert variant.coefficients(np.float64(100), np.float64(0.9)) == tuple(map(float, pair))
    (variant,) = variants("t is rounded to float16")
    assert variant.coefficients(np.float64(2049), np.float64(1)) == (2049 / 2050, 1 / 2050)
    (variant,) = variants("t is counted in float16 and stops at 2048")
    assert [variant.counter(n, 1, 0, 1) for n in (5, 2047, 2048, 9999)] == [6, 2048, 2048, 2048]
    (variant,) = variants("t is rounded to bfloat16")  # 257 lies between 256 and 258
    assert variant.coefficients(np.float64(257), np.float64(1)) == (257 / 258, 1 / 258)
    (variant,) = variants("t is counted in bfloat16 and stops at 256")
    assert [variant.counter(n, 1, 0, 1) for n in (5, 255, 256, 9999)] == [6, 256, 256, 256]


def test_zeta_in_half_precision():
    (variant,) = variants("ζ is rounded to float16")
    # ζ = (1/5, −2/17); spacings of 2⁻¹³ in [1/8, 1/4) and 2⁻¹⁴ in [1/16, 1/8)
    assert variant.term(np.asarray([1.0, -2.0]), 2.0).tolist() == [1638 / 2**13, -1928 / 2**14]


def test_the_decay_of_the_base_class_of_keras():
    assert FLOAT32_DECAY.weights(1.0, 0.0, 1.0, np.float64(0.1)) == 1 - 13421773 / 2**27


def test_a_difference_loses_digits():
    (variant,) = variants("1 − β̂ taken as a difference, which loses digits")
    # 1 − 1/1000002 rounds to 17 spacings of 2⁻²⁴ below 1.
    assert variant.coefficients(np.float64(10**6), np.float64(1)) == (1 - 17 / 2**24, 17 / 2**24)


STDS = {  # for α = 0.02, η = 0.5, and η = 0.25 at the first step
    "σ from the first step's learning rate, not the constructor's": 0.08,
    "V₀ std is α, not α / η": 0.02,
    "V₀ std is α · η, not α / η": 0.01,
    "V₀ variance, not std, is α / η": 0.2,
    "V₀ std is 1": 1.0,
    "V₀ is zero": 0.0,
}


def test_mistakes_of_v0():
    assert REFERENCE.std(0.02, 0.5, 0.25) == 0.04
    for description, std in STDS.items():
        # Both arguments and the expected value are rounded, and so are a quotient and a root.
        assert variants(description)[0].std(0.02, 0.5, 0.25) == pytest.approx(std, rel=5 * U)


def test_mistakes_of_loading():
    v, start = [np.asarray([3.0, -6.0])], [np.asarray([0.5, 1.0])]

    def after(variant):
        (found,), count = variant.loaded(v, 7, start)
        return found.tolist(), count

    assert after(REFERENCE) == ([3, -6], 7)
    assert list(map(after, variants("V reset on load"))) == [([0, 0], 7), ([0.5, 1], 7)]
    assert list(map(after, variants("t reset on load"))) == [([3, -6], 0)]
    assert list(map(after, variants("V and t reset on load"))) == [([0, 0], 0), ([0.5, 1], 0)]


LEFT = {
    "gradient negated in place": [-1, 2],
    "gradient set to zero": [0, 0],
    "gradient replaced by ζ": [1 / 5, -2 / 17],
    "gradient replaced by |G|": [1, 2],
}


def test_mistakes_that_overwrite_the_gradient():
    for description, expected in LEFT.items():
        assert variants(description)[0].left(np.asarray([1.0, -2.0])).tolist() == expected


def test_every_mistake_has_a_test_above():
    others = {
        "1e-8 is added to the denominator",
        "what is not finite is replaced by 0",
        "1 − β̂ in half precision",
        "t is rounded to float16",
        "t is rounded to bfloat16",
        "t is counted in bfloat16 and stops at 256",
        "ζ is rounded to float16",
        COARSE.description,
        "t is counted in float16 and stops at 2048",
        "1 − β̂ taken as a difference, which loses digits",
        "V reset on load",
        "t reset on load",
        "V and t reset on load",
    }
    assert {m.description for m in MUTATIONS} == others | STEPS.keys() | STDS.keys() | LEFT.keys()


def test_the_flags_equal_those_of_the_vectors():
    flags = {m.flag for m in MUTATIONS} - {""}
    assert {flag for flag in flags if NOTES[flag]["kind"] == "mistake"} == flags
