"""The problems: what is trained, for how long, and what counts as solved.

Every error is better when it is smaller. A network has the batch size that its line gives.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from benchmarks.compare.optimizers import Tensors

WRONG, NATS, UNEXPLAINED = "wrong answers", "nats per character", "unexplained variance"
VALUE = "value of the function"


class Task(Protocol):
    """One run, before its first step."""

    weights: Tensors

    def gradient(self) -> tuple[float, Tensors]:
        """Return the loss of the next batch, and its gradient at the weights."""

    def score(self, split: str) -> tuple[float, float]:
        """Return the error and the loss of a split, "validation" or "test"."""


class Problem(NamedTuple):
    """A problem of the comparison.

    Attributes:
        title: its name in tables and figures.
        measure: what the error is.
        steps: of a run.
        target: the error on validation that counts as solved.
        start: returns a `Task` for a seed, and for the options of a study.
        small: whether it has the smaller protocol, because a run takes seconds.
        images: the data set that `--data-dir` must have.
    """

    title: str
    measure: str
    steps: int
    target: float
    start: Callable[..., Task]
    small: bool = False
    images: str | None = None


def _trained(
    network: Callable[[Any], Any],
    data: Callable[[Any], Any],
    measure: str,
    batch_size: int,
    **options: Any,
) -> Callable[..., Task]:
    """Return the start of a network; torch is imported, and the data loaded, when it is called.

    `network` gets the module networks, and `data` the module datasets. An option that is a function
    gets the module networks, too.
    """

    def start(seed: int, **study: Any) -> Task:
        from benchmarks.compare import datasets, networks

        made = {key: o(networks) if callable(o) else o for key, o in options.items()}
        arguments = {"batch_size": batch_size, **made, **study}
        return networks.Training(
            network(networks), data(datasets), getattr(networks, measure), seed=seed, **arguments
        )

    return start


def _analytic(name: str, center: Any, spread: float) -> Callable[..., Task]:
    def start(seed: int, **study: Any) -> Task:
        from benchmarks.compare import analytic

        return analytic.Descent(getattr(analytic, name), center, spread, seed, **study)

    return start


def _deep(networks: Any) -> Any:
    return networks.mlp(64, *10 * [64], 10)


def _raw_variance(networks: Any) -> float:
    _, y = networks.datasets.diabetes(standardised=False).train
    return float(y.var(correction=0))


PROBLEMS = {
    "digits-mlp": Problem(
        "digits, MLP",
        WRONG,
        600,
        0.05,
        _trained(lambda n: n.mlp(64, 64, 10), lambda d: d.digits(), "classes", 32),
    ),
    "digits-convnet": Problem(
        "digits, convnet",
        WRONG,
        300,
        0.05,
        _trained(lambda n: n.convnet(), lambda d: d.digits(), "classes", 32),
    ),
    "digits-deep-glorot": Problem(
        "digits, 10 ReLU layers, Glorot",
        WRONG,
        400,
        0.10,
        _trained(_deep, lambda d: d.digits(), "classes", 32),
    ),
    "digits-deep-he": Problem(
        "digits, 10 ReLU layers, He",
        WRONG,
        400,
        0.10,
        _trained(_deep, lambda d: d.digits(), "classes", 32, initial=lambda n: n.he),
    ),
    "wine": Problem(
        "wine, MLP",
        WRONG,
        200,
        0.05,
        _trained(lambda n: n.mlp(13, 32, 3), lambda d: d.wine(), "classes", 16),
    ),
    "breast-cancer": Problem(
        "breast cancer, MLP",
        WRONG,
        300,
        0.05,
        _trained(lambda n: n.mlp(30, 32, 2), lambda d: d.breast_cancer(), "classes", 16),
    ),
    "diabetes-raw": Problem(
        "diabetes, raw targets",
        UNEXPLAINED,
        400,
        0.60,
        _trained(
            lambda n: n.mlp(10, 32, 1),
            lambda d: d.diabetes(standardised=False),
            "squares",
            32,
            unit=_raw_variance,
        ),
    ),
    "diabetes-standardised": Problem(
        "diabetes, standardised targets",
        UNEXPLAINED,
        400,
        0.60,
        _trained(
            lambda n: n.mlp(10, 32, 1), lambda d: d.diabetes(standardised=True), "squares", 32
        ),
    ),
    "characters": Problem(
        "next character, MLP",
        NATS,
        600,
        2.6,
        _trained(
            lambda n: n.next_character(n.datasets.vocabulary()),
            lambda d: d.characters(8, every=False),
            "nats",
            64,
        ),
    ),
    "corrupt-batches": Problem(
        "digits, 3 % corrupt batches",
        WRONG,
        600,
        0.05,
        _trained(lambda n: n.mlp(64, 64, 10), lambda d: d.digits(), "classes", 32, corrupt=0.03),
    ),
    "heavy-tailed": Problem(
        "regression, Cauchy noise",
        UNEXPLAINED,
        600,
        0.20,
        _trained(lambda n: n.mlp(10, 64, 1), lambda d: d.heavy_tailed(), "squares", 32),
    ),
    "fine-tuning": Problem(
        "fine-tuning, 100 examples",
        WRONG,
        100,
        0.20,
        _trained(
            lambda n: n.TRAINED,
            lambda d: d.shifted_digits(),
            "classes",
            20,
            weights=lambda n: n.trained(),
        ),
    ),
    "rosenbrock": Problem(
        "Rosenbrock", VALUE, 2000, 1e-3, _analytic("rosenbrock", [-1.2, 1.0], 0.1)
    ),
    "quadratic": Problem(
        "ill-conditioned quadratic", VALUE, 1000, 1e-3, _analytic("quadratic", [0.0] * 11, 0.1)
    ),
    "walls": Problem(
        "steep walls, sixth powers", VALUE, 1000, 1e-3, _analytic("walls", [3.0] * 10, 0.1)
    ),
    "transformer": Problem(
        "characters, transformer",
        NATS,
        600,
        2.4,
        _trained(
            lambda n: n.transformer(n.datasets.vocabulary()),
            lambda d: d.characters(64, every=True),
            "nats",
            8,
        ),
        small=True,
    ),
}


def with_images(folder: Path | None) -> dict[str, Problem]:
    """Return all problems; those on MNIST and Fashion-MNIST read `folder` when they start."""
    found = dict(PROBLEMS)
    for name, title, target in (("mnist", "MNIST", 0.05), ("fashion-mnist", "Fashion-MNIST", 0.15)):
        found[f"{name}-mlp"] = Problem(
            f"{title}, MLP",
            WRONG,
            500,
            target,
            _trained(
                lambda n: n.mlp(784, 128, 10),
                lambda d, name=name: d.images(name, folder),
                "classes",
                64,
            ),
            images=name,
        )
    return found
