"""The conformance vectors, replayed by gravity_torch.Gravity on a device, bit by bit."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gravity_conformance.vectors import Expected, UpdateTest, load_vectors
from gravity_core import hyperparameters, update
from gravity_torch import Gravity

# V of each tensor and then W. NumPy has no bfloat16, so float32 arrays hold the half types.
State = list[np.ndarray]


@dataclass
class Count:
    """The values of V and W after every step of the vectors.

    Attributes:
        values: their number.
        same: how many have the bits of the NumPy reference; any NaN is equal to any other.
        outside: how many are outside the tolerance of their vector.
        worst: the largest error in units of that tolerance, which is the certified bound plus the
            rounding of the expected value.
    """

    values: int = 0
    same: int = 0
    outside: int = 0
    worst: float = 0.0

    def add(self, got: np.ndarray, reference: np.ndarray, expected: Expected) -> None:
        """Count the values of one array."""
        bits = f"u{got.dtype.itemsize}"
        same = (got.view(bits) == reference.view(bits)) | (np.isnan(got) & np.isnan(reference))
        with np.errstate(invalid="ignore"):  # ∞ − ∞
            error = np.abs(got.astype(np.float64) - expected.value.astype(np.float64))
        compared = np.isfinite(error) & (expected.tolerance > 0)
        units = np.divide(error, expected.tolerance, out=np.zeros(error.shape), where=compared)
        self.values += got.size
        self.same += int(same.sum())
        self.outside += int((~expected.accepts(got)).sum())
        self.worst = max(self.worst, float(units.max(initial=0.0)))


def replay_all(device: str, path: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the counts of one path, given as arguments of the constructor, by dtype."""
    counts: dict[str, Count] = {}
    for group in load_vectors():
        if group.type != "update":
            continue
        count = counts.setdefault(group.dtype, Count())
        for test in group.tests:
            states = replay(test, group.dtype, device, path), reference(test, group.dtype)
            for step, (got, wanted) in zip(test.steps, zip(*states, strict=True), strict=True):
                for arrays in zip(got, wanted, step.v + step.w, strict=True):
                    count.add(*arrays)
    return {dtype: asdict(count) for dtype, count in counts.items()}


def reference(test: UpdateTest, dtype: str) -> Iterator[State]:
    """Yield V and W after every step of the reference."""
    given, kind = test.hyperparameters, _working(dtype)
    velocity, weights = ([x.astype(kind) for x in xs] for xs in (test.v, test.w))
    for step in test.steps:
        lr, decay = step.learning_rate, step.learning_rate * given.weight_decay
        grads = [(-g if given.maximize else g).astype(kind) for g in step.g]
        with np.errstate(all="ignore"):
            velocity = [
                _rounded(update(g, v, step.t, beta=given.beta), dtype)
                for g, v in zip(grads, velocity, strict=True)
            ]
            weights = [
                _rounded((w - decay * w if decay else w) - lr * v, dtype)
                for w, v in zip(weights, velocity, strict=True)
            ]
        yield velocity + weights


def replay(test: UpdateTest, dtype: str, device: str, path: Mapping[str, Any]) -> Iterator[State]:
    """Yield V and W after every step of the optimizer.

    V is drawn by the optimizer if the test has a seed and σ, and else loaded, together with t.
    """
    given = test.hyperparameters
    is_drawn = given.seed is not None and given.learning_rate > 0
    options: dict[str, Any] = {
        "lr": given.learning_rate,
        "alpha": given.alpha,
        "beta": given.beta,
        "weight_decay": given.weight_decay,
        "velocity_std": given.velocity_std if is_drawn else 0.0,
        "seed": given.seed or hyperparameters.SEED,
        "first_step": given.first_step,
        "maximize": given.maximize,
        **path,
    }
    params = [torch.nn.Parameter(_tensor(w, dtype, device)) for w in test.w]
    optimizer = Gravity(params, **options)
    if not is_drawn:
        count = torch.tensor(float(test.steps[0].t - given.first_step))
        states = [{"step": count.clone(), "velocity": _tensor(v, dtype, device)} for v in test.v]
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(enumerate(states))})
    for number, step in enumerate(test.steps):
        if step.reload:
            saved, optimizer = optimizer.state_dict(), Gravity(params, **options)
            optimizer.load_state_dict(saved)
        for group in optimizer.param_groups:
            group["lr"] = step.learning_rate
        for p, g in zip(params, step.g, strict=True):
            if number == 0 or not test.same_gradients:
                p.grad = _tensor(g, dtype, device)
        optimizer.step()
        yield [_numpy(x) for x in (*(optimizer.state[p]["velocity"] for p in params), *params)]


def _working(dtype: str) -> str:
    return dtype if dtype in ("float32", "float64") else "float32"


def _tensor(array: np.ndarray, dtype: str, device: str) -> torch.Tensor:
    return torch.tensor(array).to(device, getattr(torch, dtype))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    is_half = tensor.element_size() < 4
    array: np.ndarray = (tensor.float() if is_half else tensor).detach().cpu().numpy().copy()
    return array


def _rounded(array: Any, dtype: str) -> np.ndarray:
    return _numpy(_tensor(np.asarray(array), dtype, "cpu"))
