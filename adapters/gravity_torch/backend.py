"""PyTorch as a backend of ``gravity parity`` (`gravity_conformance.protocol`)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gravity_conformance.protocol import Mode, Replay, Step, Task, Training
from gravity_torch.optimizer import Gravity

_OPTIONS = {
    "loop": {"foreach": False},
    "default": {},
    "foreach": {"foreach": True},
}


def versions() -> dict[str, str]:
    """Return the version of torch."""
    return {"torch": torch.__version__}


def devices() -> list[str]:
    """Return the CPU with its number of threads, and the accelerators."""
    kinds = Counter(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    if not kinds and torch.accelerator.is_available():
        kinds[str(torch.accelerator.current_accelerator())] = torch.accelerator.device_count()
    accelerators = [f"{number} × {kind}" for kind, number in kinds.items()]
    return [f"cpu with {torch.get_num_threads()} threads", *accelerators]


def dtypes() -> tuple[str, ...]:
    """Return the dtypes that it can compute in."""
    return ("float32", "float64")


def modes() -> dict[str, Mode]:
    """Return the optimizer's paths; by default it is fused on a CPU."""
    return {mode: Mode("eager") for mode in _OPTIONS}


def replay(replay: Replay, mode: str) -> Iterator[Step]:
    """Yield V₀ and W₀, and then V and W after every step."""
    params = [nn.Parameter(torch.tensor(w)) for w in replay.weights]
    optimizer = Gravity(params, **_lr(replay.options), **_OPTIONS[mode])
    for index, p in enumerate(params):
        optimizer._init_state(p, optimizer.param_groups[0], index)

    def state() -> Step:
        velocity = [optimizer.state[p]["velocity"].numpy().copy() for p in params]
        return Step(velocity, [p.detach().numpy().copy() for p in params])

    yield state()
    for gradients in replay.gradients:
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        yield state()


class _Perceptron(nn.Module):
    # nn.Linear keeps its weights transposed; V₀ is numbered in C order of the tensor as it is.
    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.w1, self.b1, self.w2, self.b2 = map(nn.Parameter, weights)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2


def train(task: Task) -> Training:
    """Train an nn.Module with autograd."""
    model = _Perceptron([torch.tensor(w) for w in task.weights])
    optimizer = Gravity(model.parameters(), **_lr(task.options))
    cross_entropy = nn.CrossEntropyLoss()
    x_train, y_train = torch.tensor(task.x_train), torch.tensor(task.y_train).long()
    losses = []
    for batches in task.epochs:
        total = 0.0
        for batch in torch.tensor(batches):
            optimizer.zero_grad()
            loss = cross_entropy(model(x_train[batch]), y_train[batch])
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))
    with torch.no_grad():
        predictions = model(torch.tensor(task.x_test)).argmax(dim=1).numpy()
    return Training(losses, [p.detach().numpy() for p in model.parameters()], predictions)


def _lr(options: Mapping[str, Any]) -> dict[str, Any]:
    return {{"learning_rate": "lr"}.get(name, name): value for name, value in options.items()}
