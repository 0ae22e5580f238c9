"""Make the inputs of a vector and write them as JSON."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from gravity_conformance.vectors import exact
from gravity_conformance.vectors.making.answers import Json, number, tensor
from gravity_core import hyperparameters as hp

Numbers = list[float]
Shape = tuple[int, ...]


def draw(stream: int, shape: Shape, dtype: str, size: float = 1.0) -> Numbers:
    """Return uniform pseudo-random numbers in (−size, size) in `dtype`, a sequence per stream."""
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
        comment: a description, in one line.
        flags: the mistakes that it catches and the cases that it covers.
        tensors: shape, W and V of each. V is None where it is drawn from the seed.
        gradients: for each step, the gradient of each tensor.
        dtype: the dtype of all tensors.
        t: t of the first step; `first_step` if None.
        rates: the learning rate of each step; `learning_rate` at every step if empty.
        learning_rate: η at construction.
        alpha: α.
        beta: β.
        weight_decay: λ.
        velocity_std: σ itself.
        seed: the seed of V₀; None where V is given.
        first_step: 0 or 1.
        maximize: whether the sign of the gradient is flipped.
        same_gradients: whether every step passes the same arrays.
        reload: the step, counted from 0, before which the state is saved and loaded.
    """
    start = first_step if t is None else t
    rates = rates or [learning_rate] * len(gradients)
    return {
        "comment": comment,
        "flags": list(flags),
        "hyperparameters": {
            "learning_rate": float64(learning_rate),
            "alpha": float64(alpha),
            "beta": float64(beta),
            "weight_decay": float64(weight_decay),
            "velocity_std": None if velocity_std is None else float64(velocity_std),
            "seed": None if seed is None else seed64(seed),
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
                "learning_rate": float64(rate),
                "reload": n == reload,
                "G": [_tensor(g, dtype) for g in step],
            }
            for n, (rate, step) in enumerate(zip(rates, gradients, strict=True))
        ],
    }


def float64(x: float) -> Json:
    """Return a hyper-parameter in the notation of the files."""
    return number(Fraction(x))


def seed64(seed: int) -> str:
    """Return a seed in the notation of the files."""
    return f"0x{seed:016x}"


def _tensor(xs: Numbers, dtype: str) -> Json:
    return tensor((Fraction(x) if math.isfinite(x) else x for x in xs), dtype)
