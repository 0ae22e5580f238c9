"""What each flag of a vector means; a file carries the notes of the flags that it uses.

A flag of kind "mistake" names an error that an implementation can make, and says that the
vector catches it: with this mistake some result leaves its tolerance (tested). A flag of kind
"case" says what the vector stands for.
"""

_MISTAKES = {
    "t_off_by_one": "β̂ is taken at t − 1 or t + 1: the counter is advanced at the wrong place.",
    "coefficient_half": (
        "β̂ and 1 − β̂ are computed in float16, which has no 2049 and no 70 000: from a counter "
        "that was cast to the dtype of a half-precision gradient."
    ),
    "coefficient_difference": (
        "1 − β̂ is computed as the difference of 1 and the rounded β̂, which loses the digits "
        "that β̂ has rounded away; it is ((1 − β) t + 1)/(t + 2)."
    ),
    "beta_for_beta_hat": "The running average uses β itself and not β̂ = (β t + 1)/(t + 2).",
    "one_minus_beta_hat_omitted": "V ← β̂ V + ζ: the gradient term is not weighted with 1 − β̂.",
    "mean_for_max": "m is made of the mean of |G| and not of its maximum.",
    "signed_max": "m is made of max G and not of max|G|, so that a negative outlier is not seen.",
    "axis_max": "max|G| is taken along the last axis only and not over the whole tensor.",
    "global_max": "max|G| is taken over all tensors of the model; it is one number per tensor.",
    "missing_square": "ζ = G/(1 + |G/m|): the quotient is not squared.",
    "epsilon": "A small constant, 1e-8 or so, is added to a denominator; Gravity has none.",
    "learning_rate_twice": "l enters V and then again the step: W ← W − l · l V.",
    "weight_decay_coupled": (
        "λ W is added to the gradient (L2 regularisation); weight decay is decoupled, "
        "W ← W − l λ W beside the step."
    ),
    "weight_decay_after_step": "W is decayed after the step and not before: (W − l V)(1 − l λ).",
    "weight_decay_without_learning_rate": "W ← W − λ W: weight decay is not scaled by l.",
    "maximize_ignored": "maximize has no effect.",
    "gradient_changed": (
        "The gradient array is written to (negated for maximize, or weight decay added to it), "
        "so that the next step with the same array sees something else."
    ),
    "velocity_reset": "V is not in the saved state: after loading it starts anew.",
    "t_reset": "The step counter is not in the saved state: after loading t starts anew.",
    "std_alpha": "V₀ is drawn with the standard deviation α in place of σ = α/l.",
    "std_from_schedule": (
        "σ is made of the scheduled learning rate of the first step; it is made of the one that "
        "the optimizer was constructed with."
    ),
    "velocity_shared": "All tensors get the same V₀: the tensor's position is not in the key.",
    "seed_ignored": "V₀ does not depend on the seed.",
    "seed_truncated": "The high 32 bits of the seed are lost.",
    "element_truncated": "The element's number is held in 32 bits, and wraps around.",
    "counter_truncated": "The block counter is held in 32 bits: its high word is always 0.",
    "half_overflow": "float16 is computed in float16, where s·s overflows from |G| = 16 on.",
    "nan_filtered": "What is not finite is replaced by 0 or skipped; it has to propagate.",
}

_CASES = {
    "beta_bounds": "β = 0 or β = 1, the ends of its range.",
    "cancellation": (
        "The two terms of V cancel, so that the last bits of each are the first bits of the "
        "result: an error in ulps of the result says nothing."
    ),
    "default_velocity": "V is V₀, as the seed and the hyper-parameters give it.",
    "empty": "A tensor without elements, which is left alone.",
    "first_step_0": (
        "The convention of the original Keras code: the first update has t = 0. An implementation "
        "that has only t from 1 leaves it out."
    ),
    "half_precision": (
        "float16 and bfloat16, computed in float32 and rounded once when they are stored."
    ),
    "huge_gradient": (
        "Gradients whose square, or the square of that, overflows. ζ may be 0 there: the "
        "tolerance allows it. NaN it may not be."
    ),
    "huge_velocity": "A huge V, beside which the gradient term disappears.",
    "known_answer": "Published output of Threefry-2x32-20, or a key of a tensor made by it.",
    "large_index": "The largest position that a tensor may have.",
    "late_step": "A late step. Set the counter; no need to make all steps before it.",
    "learning_rate_zero": "l = 0 or α = 0: nothing is divided by 0, nothing becomes NaN.",
    "many_tensors": "More than one tensor, each with its own max|G|.",
    "maximize": "The gradient counts with its sign changed. Leave out if not offered.",
    "nan_in_maximum": (
        "NaN in the maximum. Some libraries (XLA on CPUs) drop NaN there, and the other elements "
        "of the tensor then stay finite: a known deviation, to be reported and not to be passed."
    ),
    "non_finite": "NaN or infinities go in. Expected is the class of each element.",
    "reload": "The state is saved, and loaded into a new optimizer with the same arguments.",
    "scheduled_learning_rate": "The learning rate changes from step to step.",
    "slice": "Elements from the middle: each can be computed without those before it.",
    "subnormal": (
        "Subnormal numbers go in or come out. They may be flushed to zero: the tolerance allows it."
    ),
    "tiny_gradient": "Gradients whose square underflows, or nearly so: ζ = G.",
    "weight_decay": "Weight decay, λ > 0. Leave out if not offered.",
    "zero_dimensional": "A tensor of one number and no axes, shape [].",
    "zero_gradient": "Zeros in the gradient: m may be infinite, nothing becomes NaN.",
}

NOTES = {
    flag: {"kind": kind, "description": description}
    for kind, notes in (("mistake", _MISTAKES), ("case", _CASES))
    for flag, description in sorted(notes.items())
}
"""Every flag, by name: its kind and what it means."""
