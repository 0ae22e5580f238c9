"""How far V₀ moves the weights of itself.

If all gradients were zero, Gravity would still move each weight, by −η V₀ (β̂₁ + β̂₁β̂₂ + …) in all.
With σ = α/η that is N(0, (c α)²), where c is the sum, whatever η.
"""

import itertools

from gravity_core import beta_hat


def drift(beta: float, first_step: int) -> float:
    """Return c, the sum β̂₁ + β̂₁β̂₂ + … of the shares of V₀ that are left after each step.

    Example:
        >>> round(drift(0.9, first_step=1), 2), round(drift(0.9, first_step=0), 2)
        (2.83, 1.92)
    """
    total, left = 0.0, 1.0
    for t in itertools.count(first_step):
        left *= beta_hat(t, beta)
        total += left
        if left < 2**-60 * total:
            return total
    raise AssertionError
