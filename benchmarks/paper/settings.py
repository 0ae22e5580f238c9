"""What a run is: data, network, optimizer, start and precision, all from its settings.

`--ablation` has the fair controls of Gravity. Each changes one thing:

- alpha0: Gravity with α = 0, so that V₀ = 0. All else is as published.
- he: momentum SGD from He's initial weights; the noise that V₀ adds could only make up for them.
- noise: momentum SGD from the published initial weights, plus what V₀ alone would add to each.

Momentum SGD has momentum β and the rate η (1 − β). Its steps are Gravity's where gradients are
small and β̂ has come near β: Gravity's velocity gives the newest gradient term the weight 1 − β̂.
"""

import dataclasses
from typing import Any

from benchmarks.paper.published import DATASETS, OPTIMIZERS, published

BATCH = 128
ALPHA, BETA, FIRST_STEP = 0.01, 0.9, 0  # of Gravity; t from 0 as in the original Keras code
ABLATIONS = ("alpha0", "he", "noise")
FRAMEWORKS = ("keras", "torch")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run; the same settings on the same machine give the same bits.

    Attributes:
        dataset: a key of `published.DATASETS`.
        architecture: "vgg16" or "vgg19".
        optimizer: a key of `published.OPTIMIZERS`.
        ablation: one of ABLATIONS, or None.
        framework: one of FRAMEWORKS.
        mixed_precision: whether layers compute in bfloat16, with float32 weights.
        seed: of the initial weights, of V₀ and of the order of the data.
    """

    dataset: str
    architecture: str
    optimizer: str
    ablation: str | None = None
    framework: str = "keras"
    mixed_precision: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the run's folder, another one for other settings."""
        parts = [self.dataset, self.architecture, self.optimizer, self.ablation, self.framework]
        mixed = "bfloat16" if self.mixed_precision else None
        return "-".join(filter(None, [*parts, mixed, f"seed{self.seed}"]))

    @property
    def title(self) -> str:
        """The optimizer in words."""
        return {
            None: OPTIMIZERS[self.optimizer],
            "alpha0": "Gravity, α = 0",
            "he": "momentum SGD, He",
            "noise": "momentum SGD, noise",
        }[self.ablation]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return DATASETS[self.dataset][1]

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return 1 if "mnist" in self.dataset else 3

    @property
    def is_momentum(self) -> bool:
        """Whether momentum SGD stands in for Gravity."""
        return self.ablation in ("he", "noise")

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """The hyper-parameters, under the names that the frameworks share."""
        run = published()[self.dataset, self.architecture, self.optimizer]
        rate = run.learning_rate
        if self.is_momentum:
            return {"learning_rate": rate * (1 - BETA), "momentum": BETA}
        if self.optimizer == "gravity":
            alpha = 0.0 if self.ablation == "alpha0" else ALPHA
            values = {"alpha": alpha, "beta": BETA, "first_step": FIRST_STEP}
            return {"learning_rate": rate, **values, "seed": self.seed}
        return {"learning_rate": rate}
