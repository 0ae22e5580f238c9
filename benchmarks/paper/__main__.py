"""The command `python -m benchmarks.paper`.

    make data
    python -m benchmarks.paper run --dataset mnist --architecture vgg16 --optimizer gravity
    python -m benchmarks.paper report

The same command again continues a run that was interrupted.
"""

import importlib
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.cifar import SETS, load_cifar
from benchmarks.command import end_with
from benchmarks.data import Images, load_images
from benchmarks.paper import published as facts
from benchmarks.paper import report as reports
from benchmarks.paper import start
from benchmarks.paper.network import BLOCKS, layers
from benchmarks.paper.settings import (
    ABLATIONS,
    ALPHA,
    BATCH,
    BETA,
    FIRST_STEP,
    FRAMEWORKS,
    Settings,
)
from benchmarks.paper.training import HISTORY, Trainer, train
from gravity_conformance import _drawing
from gravity_conformance._output import checked, write
from gravity_conformance._status import CouldNotError, emit
from gravity_core._install import install

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_PACKAGES = {"keras": ("tensorflow", "keras"), "torch": ("torch",)}
_OUT = click.option(
    "--out",
    type=_FOLDER,
    default=Path("runs"),
    show_default=True,
    help="The folder with a folder for each run.",
)


@click.group()
def main() -> None:
    """Make the published runs of Gravity again, and show them beside the published ones."""


@main.command()
@click.option("--dataset", type=click.Choice(list(facts.DATASETS)), required=True)
@click.option("--architecture", type=click.Choice(list(BLOCKS)), required=True)
@click.option("--optimizer", type=click.Choice(list(facts.OPTIMIZERS)), default="gravity")
@click.option("--ablation", type=click.Choice(ABLATIONS), help="A control of Gravity.")
@click.option("--framework", type=click.Choice(FRAMEWORKS), default="keras", show_default=True)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=100, show_default=True, help="In all."
)
@click.option("--steps", type=click.IntRange(min=1), help="Stop after so many updates in all.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto")
@click.option("--mixed-precision", is_flag=True, help="Layers compute in bfloat16.")
@click.option("--data-dir", type=_FOLDER, default=Path("data"), show_default=True)
@_OUT
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    metavar="STEPS",
)
def run(
    epochs: int,
    steps: int | None,
    device: str,
    data_dir: Path,
    out: Path,
    checkpoint_every: int,
    **options: Any,
) -> None:
    """Train one network; continue where an interrupted run has its checkpoint."""
    settings = Settings(**options)
    if settings.ablation and settings.optimizer != "gravity":
        raise click.UsageError(
            f"--ablation {settings.ablation} is of Gravity, got --optimizer {settings.optimizer}"
        )
    images = load(settings.dataset, data_dir)
    trainer = trainer_for(settings, device)
    folder = out / settings.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CouldNotError(f"--out {str(out)!r}: {error.strerror}") from error
    with _Screen(folder, -(-len(images.y_train) // BATCH), epochs, steps) as screen:
        train(
            folder,
            settings,
            trainer,
            images,
            screen,
            epochs=epochs,
            steps=steps,
            every=checkpoint_every,
        )
    emit(f"The history is in {folder / HISTORY}\n")


@main.command()
@_OUT
@click.option(
    "--figure", type=_FILE, default=Path("runs/report.png"), show_default=True, help="A PNG."
)
@click.option("--json", "file", type=_FILE, help="For docs/paper.json.")
def report(out: Path, figure: Path, file: Path | None) -> None:
    """Show the published runs, and ours over them at the same epochs."""
    outputs = checked([("--figure", figure), *([("--json", file)] if file else [])])
    ours = reports.collected(out)
    emit(reports.as_text(ours))
    with _drawing.clean():
        contents: dict[Path, str | bytes | None] = {
            outputs[0].path: _drawing.png(reports.figure(ours))
        }
    if file:
        contents[outputs[1].path] = reports.as_json(ours)
    write(contents)
    emit(f"\nThe figure is in {figure}\n")


@main.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("histories", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "file", type=_FILE, default=facts.KEPT)
def published(results: Path, histories: Path, file: Path) -> None:
    """Derive docs/published.json from the published tables RESULTS and HISTORIES."""
    outputs = checked([("--json", file)])
    write({outputs[0].path: facts.as_text(facts.derived(results, histories))})


def load(dataset: str, folder: Path) -> Images:
    """Return a data set, or raise CouldNotError that names what is missing."""
    return load_cifar(dataset, folder) if dataset in SETS else load_images(dataset, folder)


def trainer_for(settings: Settings, device: str) -> Trainer:
    """Return the framework's network and optimizer at the start of the run."""
    shapes = layers(settings.architecture, settings.channels, settings.classes)
    weights = start.initial_weights(shapes, settings.seed, he=settings.ablation == "he")
    if settings.ablation == "noise":
        weights = start.with_noise(
            weights, settings.seed, alpha=ALPHA, beta=BETA, first_step=FIRST_STEP
        )
    try:
        module = importlib.import_module(f"benchmarks.paper.in_{settings.framework}")
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES[settings.framework]:
            raise
        extra = {"keras": "tensorflow"}.get(settings.framework, settings.framework)
        raise CouldNotError(
            f"--framework {settings.framework} needs {error.name}: {install(extra)}"
        ) from error
    trainer: Trainer = module.Trainer(settings, weights, device)
    return trainer


class _Screen:
    """Shows steps and epochs as bars, and each epoch as a line."""

    def __init__(self, folder: Path, length: int, epochs: int, steps: int | None) -> None:
        self.length = length
        end = min(epochs * length, steps or epochs * length)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(),
        )
        self.progress.console.print(f"{folder}", highlight=False)
        self.of_epoch = self.progress.add_task("epoch", total=length, note="")
        self.of_run = self.progress.add_task("steps", total=end, note="")

    def __enter__(self) -> "_Screen":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def step(self, steps: int, loss: float) -> None:
        inside = (steps - 1) % self.length + 1
        self.progress.update(self.of_epoch, completed=inside, note=f"loss {loss:.4f}")
        self.progress.update(self.of_run, completed=steps)

    def epoch(self, line: dict[str, float]) -> None:
        self.progress.console.print(
            f"epoch {line['epoch']:g}: loss {line['loss']:.4f}, accuracy {line['accuracy']:.4f}, "
            f"test loss {line['val_loss']:.4f}, test accuracy {line['val_accuracy']:.4f}",
            highlight=False,
        )


if __name__ == "__main__":
    end_with("benchmarks.paper", main)
