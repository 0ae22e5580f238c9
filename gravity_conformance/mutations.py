"""The update in parts, and its known mistakes. A mistake replaces parts, and has a description.

`REFERENCE` runs in a wide dtype (float64 for float32), so it stands for the exact update. If an
implementation differs, its run is compared with each of `MUTATIONS`. The diagnosis names a mistake
if the run stays inside the bound around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gravity_core import hyperparameters as hp

Arrays = list[np.ndarray]


def counter(count: int, first_step: int, tensor: int, tensors: int) -> int:
    """Return t after `count` steps, for the tensor with index `tensor` among `tensors` of them."""
    return count + first_step


def coefficients(t: Any, beta: Any) -> tuple[Any, Any]:
    """Return the weights of V and ζ, (β̂, 1 − β̂)."""
    return (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)


def size(grad: np.ndarray, grads: Sequence[np.ndarray]) -> Any:
    """Return 1 / m of one tensor; `grads` are the gradients of all tensors."""
    return np.max(np.abs(grad), initial=0)


def term(grad: np.ndarray, size: Any) -> Any:
    """Return ζ."""
    s = grad * size
    return grad / (1 + s * s)


def gradient(grad: np.ndarray, w: np.ndarray, decay: Any, maximize: bool) -> Any:
    """Return the gradient from which ζ is computed; `decay` is λ."""
    return -grad if maximize else grad


def weights(w: np.ndarray, v: np.ndarray, lr: Any, decay: Any) -> Any:
    """Return the next W."""
    # Not w - lr * decay * w: without decay, that is NaN for an infinite W.
    return (1 - lr * decay) * w - lr * v


def learning_rate(lr: float, constructed: float) -> float:
    """Return η of a step: `lr` is that of the schedule, `constructed` that of the constructor."""
    return lr


def std(alpha: float, lr: float, first: float) -> float:
    """Return σ, the standard deviation of V₀; `first` is η of the first step. For η = 0, σ is 0."""
    return alpha / lr if lr else 0.0


def loaded(v: Arrays, count: int, start: Arrays) -> tuple[Arrays, int]:
    """Return V and the number of steps after the state is saved and loaded; `start` is V₀."""
    return v, count


def left(grad: np.ndarray) -> np.ndarray:
    """Return the caller's gradient as a step leaves it."""
    return grad


@dataclass(frozen=True)
class Variant:
    """The update in parts. Those that are not given are the parts of Algorithm 1.

    Attributes:
        description: the name of the mistake in reports.
        flag: the flag of the vectors that catch the mistake, or an empty string.
        others: the parts, each a function of this module or its replacement.
    """

    description: str
    flag: str = ""
    counter: Callable[..., Any] = counter
    coefficients: Callable[..., Any] = coefficients
    size: Callable[..., Any] = size
    term: Callable[..., Any] = term
    gradient: Callable[..., Any] = gradient
    weights: Callable[..., Any] = weights
    learning_rate: Callable[..., Any] = learning_rate
    std: Callable[..., Any] = std
    loaded: Callable[..., Any] = loaded
    left: Callable[..., Any] = left

    @property
    def replaced(self) -> set[str]:
        """The names of the parts that differ from Algorithm 1."""
        parts = {part.name: part.default for part in fields(self) if callable(part.default)}
        return {name for name, right in parts.items() if getattr(self, name) is not right}

    def step(
        self,
        w: Arrays,
        v: Arrays,
        grads: Arrays,
        *,
        count: int,
        first_step: int,
        lr: float,
        constructed: float,
        beta: float,
        weight_decay: float,
        maximize: bool,
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Return the next W and V of every tensor, and S, the sum of the sizes of V's two terms.

        All arrays have one dtype. It is a wide one if the step stands for the exact update.
        """
        wide = w[0].dtype.type
        rate, decay = wide(self.learning_rate(lr, constructed)), wide(weight_decay)
        moved, velocity, sizes = [], [], []
        with np.errstate(all="ignore"):
            seen = [self.gradient(g, x, decay, maximize) for g, x in zip(grads, w, strict=True)]
            for i, (x, y, g) in enumerate(zip(w, v, seen, strict=True)):
                t = self.counter(count, first_step, i, len(w))
                old, new = self.coefficients(wide(t), wide(beta))
                kept, added = old * y, new * self.term(g, self.size(g, seen))
                velocity.append(np.asarray(kept + added))
                sizes.append(np.asarray(np.abs(kept) + np.abs(added)))
                if self.gradient is not gradient:  # it may be a sum, and cancel before ζ
                    sizes[-1] = sizes[-1] + np.abs(new) * (np.abs(grads[i]) + decay * np.abs(x))
                moved.append(np.asarray(self.weights(x, velocity[-1], rate, decay)))
        return moved, velocity, sizes


REFERENCE = Variant("Algorithm 1")


def _float32_decay(w: np.ndarray, v: np.ndarray, lr: Any, decay: Any) -> Any:
    return weights(w, v, lr, type(decay)(np.float32(decay)))


# A right update leaves the bound in float64 if it takes 1 − β̂ as a difference, as in Algorithm 1.
# `compare` has a wider bound for it.
DIFFERENCE = "1 − β̂ taken as a difference in float64, which loses digits for large t"
# The weight decay of the base class of Keras optimizers leaves it, too.
FLOAT32_DECAY = Variant(
    "λ rounded to float32, as by the base class of Keras", weights=_float32_decay
)


def _float32_beta(t: Any, beta: Any) -> tuple[Any, Any]:
    return coefficients(t, type(beta)(np.float32(beta)))


# In float32 updates, an array may hold β, as of optax.inject_hyperparams.
FLOAT32_BETA = Variant("β rounded to float32, as by an array", coefficients=_float32_beta)
# This is the reference. It is judged with the half type's unit roundoff for every operation.
COARSE = Variant("computed in half precision, not in float32 and rounded once")


def bfloat16(x: Any) -> np.float64:
    """Round a float32 number to bfloat16, to nearest with ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return np.float64((bits & 0xFFFF0000).astype(np.uint32).view(np.float32))


def _float16(x: Any) -> np.float64:
    return np.float64(np.float16(x))


def _stopping(last: int) -> Callable[..., int]:
    """Return a counter in a half type. It stops at `last`, because last + 1 rounds to `last`."""
    return lambda count, first_step, tensor, tensors: min(count + first_step, last)


def _half_steps(half: Callable[[Any], Any], exact_beta: bool, subtract: bool) -> Callable[..., Any]:
    """Return coefficients for which `half` rounds every operation to a half type.

    Some frameworks round β, a Python number, to the type before the product; others do not.
    """

    def in_half(t: Any, beta: Any) -> tuple[Any, Any]:
        wide, t, beta = type(t), half(t), np.float64(beta)

        def times(b: Any) -> Any:
            return half((b if exact_beta else half(b)) * t)

        bottom = half(t + 2)
        old = half(half(times(beta) + 1) / bottom)
        new = half(1 - old) if subtract else half(half(times(1 - beta) + 1) / bottom)
        return wide(old), wide(new)

    return in_half


def _rounded(half: Callable[[Any], Any], subtract: bool) -> Callable[..., Any]:
    """Return coefficients rounded to a half type."""

    def coefficients_in_half(t: Any, beta: Any) -> tuple[Any, Any]:
        old, new = coefficients(t, beta)
        return type(t)(half(old)), type(t)(1 - half(old) if subtract else half(new))

    return coefficients_in_half


def _difference(t: Any, beta: Any) -> tuple[Any, Any]:
    # The difference is in the implementation's dtype; `t` has the next wider one.
    narrow = np.float64 if isinstance(t, np.longdouble) else np.float32
    old = narrow(coefficients(t, beta)[0])
    return type(t)(old), type(t)(narrow(1) - old)


def _t_in(half: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda t, beta: coefficients(type(t)(half(t)), beta)


def _term_in_half(grad: np.ndarray, size: Any) -> Any:
    return np.asarray(term(grad, size)).astype(np.float16).astype(grad.dtype)


def _per_element(grad: np.ndarray, size: Any) -> Any:
    return grad / (1 + grad * grad * grad * grad)


def _along_the_last_axis(grad: np.ndarray, grads: Sequence[np.ndarray]) -> Any:
    return np.max(np.abs(grad), axis=-1, keepdims=True) if grad.ndim and grad.size else abs(grad)


_HALF = ("1 − β̂ in half precision", "coefficient_half")
_TWICE = ("learning rate applied twice", "learning_rate_twice")
_SQUARE = ("missing square", "missing_square")
_V_LOST = ("V reset on load", "velocity_reset")

# They are tried in this order. Variants with the same description are forms of one mistake.
MUTATIONS = (
    Variant("β̂ uses t − 1", "t_off_by_one", counter=lambda n, first, i, k: n + first - 1),
    Variant("β̂ uses t + 1", "t_off_by_one", counter=lambda n, first, i, k: n + first + 1),
    Variant("t counts tensors, not steps", counter=lambda n, first, i, k: n * k + i + first),
    Variant("t stands still", counter=lambda n, first, i, k: first),
    Variant("t is counted in float16 and stops at 2048", counter=_stopping(2048)),
    Variant("t is counted in bfloat16 and stops at 256", counter=_stopping(256)),
    Variant("t is rounded to float16", coefficients=_t_in(_float16)),
    Variant("t is rounded to bfloat16", coefficients=_t_in(bfloat16)),
    *(
        Variant(*_HALF, coefficients=_half_steps(_float16, exact_beta, subtract))
        for exact_beta in (True, False)
        for subtract in (True, False)
    ),
    Variant(*_HALF, coefficients=_rounded(_float16, subtract=True)),
    Variant(_HALF[0], coefficients=_rounded(_float16, subtract=False)),
    *(
        Variant(_HALF[0], coefficients=_half_steps(bfloat16, exact_beta, subtract))
        for exact_beta in (True, False)
        for subtract in (True, False)
    ),
    *(Variant(_HALF[0], coefficients=_rounded(bfloat16, subtract)) for subtract in (True, False)),
    Variant("ζ is rounded to float16", term=_term_in_half),
    COARSE,
    Variant(
        "1 − β̂ taken as a difference, which loses digits",
        "coefficient_difference",
        coefficients=_difference,
    ),
    Variant("β in place of β̂", "beta_for_beta_hat", coefficients=lambda t, beta: (beta, 1 - beta)),
    Variant(
        "(1 − β̂) omitted",
        "one_minus_beta_hat_omitted",
        coefficients=lambda t, b: (coefficients(t, b)[0], type(t)(1)),
    ),
    Variant(
        "β = 0 is taken for no β, and 0.9 is used",
        coefficients=lambda t, b: coefficients(t, b or type(t)(hp.BETA)),
    ),
    Variant("β̂ and 1 − β̂ exchanged", coefficients=lambda t, b: coefficients(t, b)[::-1]),
    Variant(
        "mean in place of max",
        "mean_for_max",
        size=lambda g, gs: np.mean(np.abs(g)) if g.size else 0,
    ),
    Variant("max|G| is the max of G", "signed_max", size=lambda g, gs: np.max(g) if g.size else 0),
    Variant("max|G| along the last axis only", "axis_max", size=_along_the_last_axis),
    Variant("norm in place of max", size=lambda g, gs: np.sqrt(np.sum(g * g))),
    Variant(
        "m from the whole model, not per tensor",
        "global_max",
        size=lambda g, gs: max(np.max(np.abs(x), initial=0) for x in gs),
    ),
    Variant("m per element, not per tensor", term=_per_element),
    Variant("m is max|G|, not 1 / max|G|", term=lambda g, s: g / (1 + (g / s) ** 2) if s else g),
    Variant(*_SQUARE, term=lambda g, s: g / (1 + g * s)),
    Variant(*_SQUARE, term=lambda g, s: g / (1 + np.abs(g * s))),
    Variant(
        "1e-8 is added to the denominator",
        "epsilon",
        term=lambda g, s: g / (1e-8 + 1 + (g * s) ** 2),
    ),
    Variant("ζ is the bare gradient", term=lambda g, s: g),
    Variant(*_TWICE, weights=lambda w, v, lr, decay: w - lr * decay * w - lr * lr * v),
    Variant(*_TWICE, weights=lambda w, v, lr, decay: w - lr * lr * decay * w - lr * lr * v),
    Variant("W moves by +η V", weights=lambda w, v, lr, decay: w - lr * decay * w + lr * v),
    Variant(
        "the learning rate of the constructor is used throughout",
        learning_rate=lambda lr, constructed: constructed,
    ),
    Variant(
        "weight decay coupled",
        "weight_decay_coupled",
        gradient=lambda g, w, decay, maximize: (-g if maximize else g) + decay * w,
        weights=lambda w, v, lr, decay: w - lr * v,
    ),
    Variant(
        "weight decay is not scaled by the learning rate",
        "weight_decay_without_learning_rate",
        weights=lambda w, v, lr, decay: w - decay * w - lr * v,
    ),
    Variant(
        "weight decay after the step, not beside it",
        "weight_decay_after_step",
        weights=lambda w, v, lr, decay: (w - lr * v) * (1 - lr * decay),
    ),
    Variant("weight decay ignored", weights=lambda w, v, lr, decay: w - lr * v),
    Variant("maximize ignored", "maximize_ignored", gradient=lambda g, w, decay, maximize: g),
    Variant(
        "V is negated, not the gradient, where it maximizes",
        gradient=lambda g, w, decay, maximize: g,
        weights=lambda w, v, lr, decay: w - lr * decay * w + lr * v,
    ),
    Variant(
        "what is not finite is replaced by 0",
        "nan_filtered",
        gradient=lambda g, w, decay, maximize: np.where(np.isfinite(g), -g if maximize else g, 0),
    ),
    Variant(*_V_LOST, loaded=lambda v, n, start: ([0 * x for x in v], n)),
    Variant(*_V_LOST, loaded=lambda v, n, start: (start, n)),
    Variant("t reset on load", "t_reset", loaded=lambda v, n, start: (v, 0)),
    Variant("V and t reset on load", loaded=lambda v, n, start: ([0 * x for x in v], 0)),
    Variant("V and t reset on load", loaded=lambda v, n, start: (start, 0)),
    Variant("V₀ std is α, not α / η", "std_alpha", std=lambda alpha, lr, first: alpha),
    Variant(
        "σ from the first step's learning rate, not the constructor's",
        "std_from_schedule",
        std=lambda alpha, lr, first: std(alpha, first, first),
    ),
    Variant("V₀ std is α · η, not α / η", std=lambda alpha, lr, first: alpha * lr),
    Variant("V₀ variance, not std, is α / η", std=lambda alpha, lr, first: (alpha / lr) ** 0.5),
    Variant("V₀ std is 1", std=lambda alpha, lr, first: 1.0),
    Variant("V₀ is zero", std=lambda alpha, lr, first: 0.0),
    Variant("gradient negated in place", "gradient_changed", left=lambda g: -g),
    Variant("gradient set to zero", "gradient_changed", left=lambda g: 0 * g),
    Variant("gradient replaced by ζ", "gradient_changed", left=lambda g: term(g, size(g, [g]))),
    Variant("gradient replaced by |G|", "gradient_changed", left=np.abs),
)
