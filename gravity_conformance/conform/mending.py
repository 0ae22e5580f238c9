"""How to mend each mistake that `gravity conform` can name: one line, with Algorithm 1's equation.

The keys are the descriptions of `gravity_conformance.mutations`, and the diagnoses of the checks.
"""

from collections.abc import Iterable

_T = "t ← t + 1 once per step, before β̂, as an integer"
_BETA_HAT = "β̂ ← (β t + 1)/(t + 2)"
_REST = "1 − β̂ = ((1 − β) t + 1)/(t + 2)"
_M = "m ← 1/max|G|, one number per tensor"
_ZETA = "ζ ← G/(1 + (G/m)²), elementwise"
_V = "V ← β̂ V + (1 − β̂) ζ"
_W = "W ← W − η V"
_V0 = "V₀ ~ N(0, σ²), σ = α/η"
_DECAY = "W ← W − η λ W − η V"
_FLOAT32 = "widen G, V and W to float32, compute there, and round once at the end"
_KEPT = "read G and leave it; let each operation make a new array"

MENDING: dict[str, str] = {
    # t
    "β̂ uses t − 1": f"count before the coefficients, not after: {_T}; first t = 1",
    "β̂ uses t + 1": f"count once, not twice: {_T}; first t = 1",
    "t counts tensors, not steps": f"count once for all tensors, or for each alone: {_T}",
    "t stands still": f"keep t in the state and count: {_T}; in compiled code, not in Python",
    "t is counted in float16 and stops at 2048": f"keep t as int32, not in G's dtype: {_T}",
    "t is counted in bfloat16 and stops at 256": f"keep t as int32, not in G's dtype: {_T}",
    "t is rounded to float16": f"do not cast t to G's dtype: {_BETA_HAT} in float64",
    "t is rounded to bfloat16": f"do not cast t to G's dtype: {_BETA_HAT} in float64",
    # β̂
    "1 − β̂ in half precision": f"compute both in float64, not in G's dtype: {_BETA_HAT}; {_REST}",
    "1 − β̂ taken as a difference, which loses digits": (
        f"do not subtract: {_REST}, in float64, rounded once"
    ),
    "β in place of β̂": f"the average starts short and grows: {_BETA_HAT}",
    "(1 − β̂) omitted": f"weigh ζ as well: {_V}",
    "β = 0 is taken for no β, and 0.9 is used": (
        "β = 0 is a value: ask whether β is None, not whether it is true"
    ),
    "β̂ and 1 − β̂ exchanged": f"β̂ goes with the old V: {_V}",
    # m
    "mean in place of max": f"take the maximum: {_M}",
    "max|G| is the max of G": f"take absolute values first: {_M}",
    "max|G| along the last axis only": f"reduce over all axes: {_M}",
    "norm in place of max": f"take the largest element, not the norm: {_M}",
    "m from the whole model, not per tensor": f"reduce over one tensor alone: {_M}",
    "m per element, not per tensor": f"reduce over the tensor, to a scalar: {_M}",
    "m is max|G|, not 1 / max|G|": f"invert it: {_M}; so G/m = G max|G|",
    # ζ
    "missing square": f"square the quotient: {_ZETA}",
    "1e-8 is added to the denominator": f"nothing is divided by 0, so add nothing: {_ZETA}",
    "ζ is the bare gradient": f"divide G: {_ZETA}",
    "ζ is rounded to float16": f"keep ζ in float32 until V is done: {_V}",
    "computed in half precision, not in float32 and rounded once": f"for half types, {_FLOAT32}",
    # W
    "learning rate applied twice": f"apply η once, in the step and not in V: {_W}",
    "W moves by +η V": f"subtract: {_W}",
    "the learning rate of the constructor is used throughout": (
        f"read η again at each step, from the group or schedule: {_W}"
    ),
    # Options
    "weight decay coupled": f"do not add λ W to G; decay beside the step: {_DECAY}",
    "weight decay is not scaled by the learning rate": f"multiply λ by η: {_DECAY}",
    "weight decay after the step, not beside it": f"decay the W of before the step: {_DECAY}",
    "weight decay ignored": f"decay, where λ > 0: {_DECAY}",
    "maximize ignored": f"where it maximizes, G ← −G first, in a copy; then {_ZETA}",
    "V is negated, not the gradient, where it maximizes": (
        f"keep {_W}, and use G ← −G, in a copy, before ζ and V"
    ),
    "what is not finite is replaced by 0": f"do not filter G; NaN and inf pass through: {_ZETA}",
    # State
    "V reset on load": f"save and load V with the state, beside t: {_V}",
    "t reset on load": f"save and load t with the state, beside V: {_BETA_HAT}",
    "V and t reset on load": f"save and load V and t with the state: {_V}",
    # V₀
    "V₀ std is α, not α / η": f"divide α by η: {_V0}",
    "σ from the first step's learning rate, not the constructor's": (
        f"take the η that the optimizer was constructed with: {_V0}"
    ),
    "V₀ std is α · η, not α / η": f"divide α by η, do not multiply: {_V0}",
    "V₀ variance, not std, is α / η": f"scale by σ, not √σ: {_V0}",
    "V₀ std is 1": f"scale the normal numbers by σ: {_V0}",
    "V₀ is zero": f"draw the first V, do not start from 0: {_V0}",
    "V₀ is not normal": f"draw from the normal distribution: {_V0}",
    "the numbers of V₀ depend on each other": (
        f"draw new numbers for every element, with a separate key for each tensor: {_V0}"
    ),
    "V₀ of one seed depends on that of another": (
        f"let the seed alone decide the draw, and every bit of it: {_V0}"
    ),
    # Inputs
    "gradient negated in place": f"to maximize, use −G as a new array; {_KEPT}",
    "gradient set to zero": f"clear no gradient in a step; {_KEPT}",
    "gradient replaced by ζ": f"write ζ to an array of its own; {_KEPT}",
    "gradient replaced by |G|": f"take |G| in an array of its own; {_KEPT}",
    "gradient overwritten": _KEPT,
    "inputs overwritten": "write to none of w, v and g; return new arrays",
}
"""The description of a mistake → what to do."""


def mends(diagnoses: Iterable[str]) -> list[tuple[str, str]]:
    """Return the mistakes that diagnoses name, each once, and how to mend them.

    Example:
        >>> mends(["missing square or mean in place of max"])[1]
        ('mean in place of max', 'take the maximum: m ← 1/max|G|, one number per tensor')
    """
    named = dict.fromkeys(part for text in diagnoses for part in text.split(" or "))
    return [(mistake, MENDING[mistake]) for mistake in named if mistake in MENDING]
