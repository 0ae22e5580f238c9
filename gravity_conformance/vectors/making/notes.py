"""What each flag of a vector means. A file carries the notes of the flags that it uses.

A flag of kind "mistake" names an error that an implementation can make. The vector catches it:
with this mistake some result leaves its tolerance (tested). A flag of kind "case" says what the
vector covers.
"""

_MISTAKES = {
    "t_off_by_one": "β̂ is computed for t − 1 or t + 1: the counter advances at the wrong place.",
    "coefficient_half": (
        "β̂ and 1 − β̂ are computed in float16, which cannot represent 2049 or 70 000. A counter "
        "that is cast to the dtype of a half-precision gradient does this."
    ),
    "coefficient_difference": (
        "1 − β̂ is computed by subtracting the rounded β̂ from 1, which loses the digits that β̂ "
        "has rounded away. The right form is ((1 − β) t + 1)/(t + 2)."
    ),
    "beta_for_beta_hat": "The running average uses β instead of β̂ = (β t + 1)/(t + 2).",
    "one_minus_beta_hat_omitted": "V ← β̂ V + ζ: the gradient term lacks its weight 1 − β̂.",
    "mean_for_max": "m is computed from the mean of |G| instead of its maximum.",
    "signed_max": "m is computed from max G instead of max|G|, which misses a negative outlier.",
    "axis_max": "max|G| is taken along the last axis only instead of over the whole tensor.",
    "global_max": "max|G| is taken over all tensors of the model instead of one tensor.",
    "missing_square": "ζ = G/(1 + |G/m|): the quotient is not squared.",
    "epsilon": "A small constant such as 1e-8 is added to a denominator; Gravity has none.",
    "learning_rate_twice": "η is applied to V and again to the step: W ← W − η · η V.",
    "weight_decay_coupled": (
        "λ W is added to the gradient (L2 regularisation). Weight decay is decoupled: "
        "W ← W − η λ W, apart from the gradient step."
    ),
    "weight_decay_after_step": "W decays after the step instead of before: (W − η V)(1 − η λ).",
    "weight_decay_without_learning_rate": "W ← W − λ W: weight decay is not scaled by η.",
    "maximize_ignored": "maximize has no effect.",
    "gradient_changed": (
        "The gradient array is overwritten (negated for maximize, or with weight decay added), so "
        "the next step with the same array reads different values."
    ),
    "velocity_reset": "V is missing from the saved state: it restarts after loading.",
    "t_reset": "The step counter is missing from the saved state: t restarts after loading.",
    "std_alpha": "V₀ has the standard deviation α instead of σ = α/η.",
    "std_from_schedule": (
        "σ is computed from the scheduled learning rate of the first step instead of the learning "
        "rate that the optimizer was constructed with."
    ),
    "velocity_shared": "All tensors get the same V₀: the key ignores the tensor's position.",
    "seed_ignored": "V₀ does not depend on the seed.",
    "seed_truncated": "The high 32 bits of the seed are lost.",
    "element_truncated": "The index of an element is held in 32 bits and wraps around.",
    "counter_truncated": "The block counter is held in 32 bits: its high word is always 0.",
    "half_overflow": "float16 is computed in float16, where s·s overflows for |G| ≥ 16.",
    "nan_filtered": "Non-finite values are replaced by 0 or skipped; they must propagate.",
}

_CASES = {
    "beta_bounds": "β = 0 or β = 1, the ends of its range.",
    "cancellation": (
        "The two terms of V cancel, so the last bits of each are the first bits of the result. "
        "An error in ulps of the result means nothing here."
    ),
    "default_velocity": "V is V₀, drawn from the seed and the hyper-parameters.",
    "empty": "A tensor without elements, which must stay unchanged.",
    "first_step_0": (
        "The convention of the original Keras code: the first update has t = 0. Skip this test if "
        "the implementation only starts at t = 1."
    ),
    "half_precision": "float16 and bfloat16, computed in float32 and rounded once when stored.",
    "huge_gradient": (
        "Gradients whose square, or the square of that square, overflows. The tolerance allows "
        "ζ = 0; NaN is wrong."
    ),
    "huge_velocity": "A huge V, beside which the gradient term vanishes.",
    "known_answer": "Published output of Threefry-2x32-20, or a tensor's key derived with it.",
    "large_index": "The largest position that a tensor can have.",
    "late_step": "A late step. Set the counter; the earlier steps need not run.",
    "learning_rate_zero": "η = 0 or α = 0: nothing is divided by 0, nothing becomes NaN.",
    "many_tensors": "More than one tensor, each with its own max|G|.",
    "maximize": "The sign of the gradient is flipped. Skip this test if not offered.",
    "nan_in_maximum": (
        "NaN enters the maximum. Some libraries (XLA on CPUs) drop it there, and the tensor's "
        "other elements stay finite. This is a known deviation: report it, do not pass it."
    ),
    "non_finite": "NaN or infinities enter. The expected result is the class of each element.",
    "reload": "The state is saved, then loaded into a new optimizer with the same arguments.",
    "scheduled_learning_rate": "The learning rate changes from step to step.",
    "slice": "Elements from the middle: each can be computed without those before it.",
    "subnormal": "Subnormal numbers enter or result. The tolerance allows flushing them to zero.",
    "tiny_gradient": "Gradients whose square underflows, or nearly so: ζ = G.",
    "weight_decay": "Weight decay, λ > 0. Skip this test if not offered.",
    "zero_dimensional": "A tensor of one number and no axes, shape [].",
    "zero_gradient": "Zeros in the gradient: m may be infinite, nothing becomes NaN.",
}

NOTES = {
    flag: {"kind": kind, "description": description}
    for kind, notes in (("mistake", _MISTAKES), ("case", _CASES))
    for flag, description in sorted(notes.items())
}
"""Every flag by name: its kind and its meaning."""
