"""Training steps in PyTorch, from the same start as in Keras."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.paper.network import SIZE, layers
from benchmarks.paper.settings import Settings
from benchmarks.paper.torch_optimizers import Adam, RMSprop
from gravity_conformance._status import CouldNotError
from gravity_core import State, initial_velocity
from gravity_torch import Gravity, import_state


class Trainer:
    """A network and its optimizer; `benchmarks.paper.training.Trainer` says what its methods do."""

    def __init__(self, settings: Settings, weights: list[np.ndarray], device: str) -> None:
        self.device = _device(device)
        self.settings = settings
        # torch warns of max-pooling on a GPU, whose sums have one term where windows do not
        # overlap.
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.model = network(settings, weights).to(self.device)
        self.optimizer = _optimizer(settings, list(self.model.parameters()), weights)

    def step(self, x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
        """Make one update; return the mean loss and the number of right answers before it."""
        self.optimizer.zero_grad()
        logits, loss = self._forward(x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item(), self._right(logits, y)

    @torch.no_grad()
    def evaluate(self, x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
        """Return the mean loss and the number of right answers."""
        logits, loss = self._forward(x, y)
        return loss.item(), self._right(logits, y)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of all arrays that change in training."""
        arrays = {f"weight {name}": w for name, w in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            arrays |= {f"state {index} {name}": value for name, value in values.items()}
        return {name: value.cpu().numpy().copy() for name, value in arrays.items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue from what `state` returned."""
        weights: dict[str, Tensor] = {}
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in arrays.items():
            kind, _, rest = name.partition(" ")
            if kind == "weight":
                weights[rest] = torch.from_numpy(value)
            else:
                index, _, part = rest.partition(" ")
                states.setdefault(int(index), {})[part] = torch.from_numpy(value)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})

    def _forward(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(x).permute(0, 3, 1, 2).to(self.device)
        mixed = self.settings.mixed_precision
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            logits = self.model(images).float()  # half types would lose digits of the loss
        return logits, nn.functional.cross_entropy(logits, torch.from_numpy(y).to(self.device))

    def _right(self, logits: Tensor, y: np.ndarray) -> int:
        return int((logits.argmax(1).cpu() == torch.from_numpy(y)).sum())


def _device(name: str) -> torch.device:
    if name == "gpu" and not torch.cuda.is_available():
        raise CouldNotError("--device gpu: torch finds no GPU")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Without it, products on a GPU are not the same in every run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda")


def in_torch_layout(w: np.ndarray) -> np.ndarray:
    """Return a kernel of Keras, or something of its shape, as torch stores it."""
    return np.ascontiguousarray(w.transpose(3, 2, 0, 1) if w.ndim == 4 else w.T)


def network(settings: Settings, weights: list[np.ndarray]) -> nn.Sequential:
    """Return the network with these weights; its images have their channels first."""
    modules: list[nn.Module] = []
    if settings.channels == 1:
        modules.append(nn.Upsample(size=(SIZE, SIZE), mode="bilinear"))
    for layer in layers(settings.architecture, settings.channels, settings.classes):
        fan_in, fan_out = layer.shape[-2:]
        if len(layer.shape) == 4:
            modules.append(nn.Conv2d(fan_in, fan_out, 3, padding=1))
        else:
            modules.append(nn.Linear(fan_in, fan_out))
        modules += [] if layer.last else [nn.ReLU()]
        modules += [nn.MaxPool2d(2)] if layer.pools else []
    first_dense = next(i for i, module in enumerate(modules) if isinstance(module, nn.Linear))
    modules.insert(first_dense, nn.Flatten())
    model = nn.Sequential(*modules)
    with torch.no_grad():
        for parameter, w in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(in_torch_layout(w)))
    return model


def _optimizer(
    settings: Settings, parameters: list[nn.Parameter], weights: list[np.ndarray]
) -> torch.optim.Optimizer:
    values: dict[str, Any] = dict(settings.optimizer_arguments)
    rate = values.pop("learning_rate")
    if settings.is_momentum:
        return torch.optim.SGD(parameters, rate, **values)
    if settings.optimizer == "adam":
        return Adam(parameters, rate)
    if settings.optimizer == "rmsprop":
        return RMSprop(parameters, rate)
    gravity = Gravity(parameters, rate, **values)
    # V₀ depends on the layout: take that of Keras.
    std, seed = values["alpha"] / rate, values["seed"]
    velocities = [
        in_torch_layout(initial_velocity(w.shape, std=std, seed=seed, index=index))
        for index, w in enumerate(weights)
    ]
    import_state(gravity, State(0, velocities, {"learning_rate": rate, **values}))
    return gravity
