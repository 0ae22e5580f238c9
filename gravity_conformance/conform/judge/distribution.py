"""Whether numbers can be independent normal numbers of a given standard deviation.

Guarantee: a limit is at least 6.5 standard errors wide, so that none of the many tests fails by
chance. The numbers may come from a table of 2¹⁶ quantiles.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

_ERRORS = 6.5  # standard errors
_BLOCK = 1024  # numbers
_FEW = 8  # numbers; fewer may be equal by chance


def wrong_std(arrays: Sequence[np.ndarray], std: float) -> str | None:
    """Describe the first array, or the first part of one, of another standard deviation.

    The mean of the squares of n numbers has the relative standard error √(2 / n). A few numbers may
    be farther off, but not all zero.
    """
    for i, array in enumerate(arrays):
        z = array.reshape(-1).astype(np.float64)
        for start in range(0, z.size, _BLOCK):
            part = z[start : start + _BLOCK]
            measured, n = float(np.mean(part**2)) ** 0.5, part.size
            # For few numbers, the mean square has a longer tail above.
            low, high = 1 - _ERRORS * (2 / n) ** 0.5, 1 + _ERRORS * (2 / n) ** 0.5 + 50 / n
            if not (std**2 * max(low, 0) <= measured**2 <= std**2 * high) or (std and not measured):
                where = f"tensor {i} of shape {array.shape}, elements {start} to {start + n - 1}"
                return f"std {measured:.4g}, not {std:.4g} ({where})"
    return None


def not_normal(arrays: Sequence[np.ndarray], std: float) -> str | None:
    """Describe a quantile that too many or too few numbers are below, or the wrong kurtosis."""
    z = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64)
    normal = NormalDist(0, std or 1.0)
    for p in (0.001, 0.01, 0.05, 0.16, 0.3, 0.5, 0.7, 0.84, 0.95, 0.99, 0.999):
        quantile = normal.inv_cdf(p)
        share = float(np.mean(z < quantile))
        if abs(share - p) > _ERRORS * (p * (1 - p) / z.size) ** 0.5:
            return f"{100 * share:.3g} % are below {quantile:.3g}, not {100 * p:.3g} %"
    # The kurtosis of n normal numbers is 3, with the variance 24 / n.
    kurtosis = float(np.mean(z**4) / (np.mean(z**2) ** 2 or 1.0))
    if std and z.size > 10_000 and abs(kurtosis - 3) > _ERRORS * (24 / z.size) ** 0.5:
        return f"the kurtosis is {kurtosis:.3g}, not 3"
    return None


def dependent(arrays: Sequence[np.ndarray], names: Sequence[str] | None = None) -> str | None:
    """Describe two rows of numbers, of one array or of two, that depend on each other.

    The numbers are correlated, or their absolute values are: if only the signs were drawn again.
    """
    signed = [array.reshape(-1).astype(np.float64) for array in arrays]
    names = names or [f"tensor {i}" for i in range(len(signed))]
    for z, name in zip(signed, names, strict=True):
        products = (z * z[::-1])[: z.size // 2]
        if z.size > 100 and abs(products.sum()) > (_ERRORS + 1) * np.sum(products**2) ** 0.5:
            return f"{name}: the numbers and the same in reverse are correlated, not independent"
    absolute = [np.abs(z) - np.mean(np.abs(z)) for z in signed]
    for what, rows in (("numbers", signed), ("absolute values", absolute)):
        for i, one in enumerate(rows):
            for k, other in enumerate(rows[i:], start=i):
                shift, found = _strongest(one, other, same=i == k)
                if found > _ERRORS + 1:
                    least = min(len(one), len(other))
                    if i != k and np.array_equal(one[:least], other[:least]):
                        return f"{names[i]} and {names[k]} have the same {what}"
                    of = names[i] if i == k else f"{names[i]} and {names[k]}"
                    apart = f" {shift} places apart" if shift else ""
                    return f"{of}: the {what}{apart} are correlated, not independent"
    return None


def equal(arrays: Sequence[np.ndarray], names: Sequence[str] | None = None) -> str | None:
    """Describe two arrays of the same numbers, in any order; it is fast for many arrays.

    Arrays of zeros are left to `wrong_std`.
    """
    seen: dict[bytes, int] = {}
    for i, array in enumerate(arrays):
        if array.size < _FEW or not array.any():
            continue
        first = seen.setdefault(np.sort(array, axis=None).tobytes(), i)
        if first != i:
            a, b = (names[k] if names else f"tensor {k}" for k in (first, i))
            return f"{a} and {b}, of {array.size} elements, have the same numbers"
    return None


def repeated(arrays: Sequence[np.ndarray]) -> str | None:
    """Describe the first row of numbers, up to their signs, that occurs twice; it is fast for many.

    A sum of four successive numbers, each times its own odd number modulo 2⁶⁴, stands for them.
    """
    bits = np.concatenate([np.abs(a.astype(np.float32)).reshape(-1) for a in arrays])
    bits = bits.view(np.uint32).astype(np.uint64)
    odd = np.random.default_rng(4).integers(2**63, size=4, dtype=np.uint64) * 2 + 1
    rows = sum(bits[k : bits.size - 3 + k] * c for k, c in enumerate(odd))
    order = np.argsort(rows, kind="stable")
    (twice,) = np.nonzero(np.diff(rows[order]) == 0)
    if not twice.size or not bits.any():
        return None
    first, second = sorted(order[twice[0] : twice[0] + 2].tolist())
    return f"numbers {first} to {first + 3}, of {bits.size} in all, occur again at {second}"


def _strongest(one: np.ndarray, other: np.ndarray, *, same: bool) -> tuple[int, float]:
    """Return the shift at which two rows are most correlated, and how strongly, in standard errors.

    The sum of products of independent numbers has about the variance of the sum of their squares.
    At least 50 numbers must overlap, so that the sum is nearly normal.
    """
    length = 2 ** (len(one) + len(other) - 1).bit_length()
    sums, variances = (
        np.fft.irfft(np.fft.rfft(one**p, length) * np.conj(np.fft.rfft(other**p, length)), length)
        for p in (1, 2)
    )
    shifts = np.arange(length)
    shifts = np.where(shifts < len(one), shifts, shifts - length)
    overlaps = np.minimum(len(one) - shifts, len(other)) - np.maximum(-shifts, 0)
    usable = (overlaps >= 50) & ((shifts > 0) | (not same))
    usable &= variances > 1e-3 * np.mean(one**2) * np.mean(other**2) * overlaps
    if not usable.any():
        return 0, 0.0
    strength = np.where(usable, np.abs(sums) / np.sqrt(np.where(usable, variances, 1)), 0)
    place = int(np.argmax(strength))
    return int(shifts[place]), float(strength[place])
