"""`python -m tests.support.tiny_paper FRAMEWORK FOLDER`: tiny runs of benchmarks.paper.

With a number of steps behind, the process kills itself after that step, before it writes anything.
Without, it continues the run in FOLDER/killed, and makes the same run in FOLDER/whole at one go.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from benchmarks.data import Images
from benchmarks.paper import __main__ as command
from benchmarks.paper import network, training

IMAGES = 300  # three steps in an epoch; the last has 44 images
SETTINGS = ["--dataset", "mnist", "--architecture", "vgg16", "--seed", "3"]
KILLED = 5  # in the second epoch, after the checkpoint of step 4
LIMITS = ["--checkpoint-every", "2", "--epochs", "3", "--steps", "8"]


def shrink(set_attribute=setattr):
    """Make the networks tiny, and MNIST a few random images."""
    set_attribute(network, "BLOCKS", {"vgg16": (1, 2, 1, 1, 1)})
    set_attribute(network, "WIDTHS", (3, 4, 5, 6, 7))
    set_attribute(network, "DENSE", 9)
    draw = np.random.default_rng(0).integers
    images = Images(
        draw(0, 256, (IMAGES, 28, 28), dtype=np.uint8),
        draw(0, 10, IMAGES),
        draw(0, 256, (30, 28, 28), dtype=np.uint8),
        draw(0, 10, 30),
    )
    set_attribute(command, "load", lambda dataset, folder: images)
    return images


def run(framework, folder, *options):
    """Run the command; return the folder of its run."""
    arguments = ["run", *SETTINGS, "--framework", framework, "--out", str(folder), *options]
    command.main(arguments, standalone_mode=False)
    (found,) = Path(folder).iterdir()
    return found


def kill_at(step):
    """Let a process kill itself when it has made a step."""
    train = training.train

    def killed(folder, settings, trainer, images, listener, **limits):
        class Killer:
            def step(self, steps, loss):
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            def epoch(self, line):
                """Take a line."""

        return train(folder, settings, trainer, images, Killer(), **limits)

    command.train = killed


if __name__ == "__main__":
    framework, folder, *number = sys.argv[1:]
    shrink()
    if number:
        kill_at(int(number[0]))
    run(framework, Path(folder, "killed"), *LIMITS)
    run(framework, Path(folder, "whole"), *LIMITS)
