"""The runs of benchmarks.paper go on bit for bit, and refuse what is not theirs."""

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.paper import __main__ as command
from benchmarks.paper import training
from gravity_conformance._status import CouldNotError
from tests.support import tiny_paper
from tests.support.limits import HANG

PACKAGES = {"keras": "tensorflow", "torch": "torch"}


@pytest.fixture
def tiny(monkeypatch):
    """Tiny networks and data, in torch, whose settings are restored."""
    torch = pytest.importorskip("torch", reason="trains in torch")
    yield tiny_paper.shrink(monkeypatch.setattr)
    torch.use_deterministic_algorithms(False)


def files(folder):
    """Return the arrays of a checkpoint, and the history without its times."""
    with np.load(folder / training.CHECKPOINT) as stored:
        arrays = dict(stored)
    position = json.loads(str(arrays.pop("position")))
    del position["starts"]
    for line in [position, *position["history"]]:
        del line["seconds"], line["cpu_seconds"]
    with (folder / training.HISTORY).open(newline="") as file:
        history = [row[:-2] for row in csv.reader(file)]
    return arrays, position, history


def assert_same(one, other):
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    for name, array in one[0].items():
        assert array.dtype == other[0][name].dtype
        assert array.tobytes() == other[0][name].tobytes(), name


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("framework", PACKAGES)
def test_a_killed_run_goes_on_bit_for_bit(framework, tmp_path):
    pytest.importorskip(PACKAGES[framework], reason="trains in it")
    process = [sys.executable, "-m", "tests.support.tiny_paper", framework, str(tmp_path)]
    options = {"capture_output": True, "text": True, "timeout": HANG}
    done = subprocess.run([*process, str(tiny_paper.KILLED)], **options, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    (killed,) = (tmp_path / "killed").iterdir()
    assert files(killed)[1]["steps"] == tiny_paper.KILLED - 1
    done = subprocess.run(process, **options, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (whole,) = (tmp_path / "whole").iterdir()
    assert_same(files(killed), files(whole))
    _, position, history = files(whole)
    assert position["steps"] == 8
    assert [row[:2] for row in history[1:]] == [["1.0", "3"], ["2.0", "6"], [repr(8 / 3), "8"]]
    starts = json.loads((killed / training.ABOUT).read_text())["starts"]
    assert [start["steps"] for start in starts] == [0, 4]
    assert starts[0]["device"] == "cpu"
    assert starts[0]["versions"][PACKAGES[framework]]


@pytest.mark.parametrize(
    "options",
    [["--optimizer", "adam"], ["--optimizer", "rmsprop"], ["--ablation", "he"]],
    ids=lambda options: options[1],
)
@pytest.mark.usefixtures("tiny")
def test_every_optimizer_continues(options, tmp_path):
    every = ["--checkpoint-every", "100"]
    tiny_paper.run("torch", tmp_path / "a", *options, *every, "--steps", "2")
    parts = tiny_paper.run("torch", tmp_path / "a", *options, *every, "--steps", "4")
    whole = tiny_paper.run("torch", tmp_path / "b", *options, *every, "--steps", "4")
    before = {path: path.read_bytes() for path in whole.iterdir()}
    tiny_paper.run("torch", tmp_path / "b", *options, *every, "--steps", "4")
    assert {path: path.read_bytes() for path in whole.iterdir()} == before  # it was complete
    assert_same(files(parts), files(whole))
    assert any(name.startswith("state") for name in files(whole)[0])


@pytest.mark.usefixtures("tiny")
def test_a_run_follows_its_settings(tmp_path):
    first = tiny_paper.run("torch", tmp_path / "a", "--steps", "1")
    for number, option in enumerate(
        (["--ablation", "alpha0"], ["--ablation", "noise"], ["--seed", "4"], ["--mixed-precision"])
    ):
        other = tiny_paper.run("torch", tmp_path / str(number), "--steps", "1", *option)
        assert other.name != first.name
        weights = [files(folder)[0]["weight 1.weight"] for folder in (first, other)]
        assert weights[0].tobytes() != weights[1].tobytes()


def test_every_image_is_seen_once_in_an_epoch():
    orders = [training.order_of(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert len({order.tobytes() for order in orders}) == 4
    assert training.order_of(1, 1, 1000).tobytes() == orders[-1].tobytes()


def test_a_line_has_the_averages_over_all_images(tiny, tmp_path):
    class Constant:
        """Says what a trainer could: the loss is the number of the step."""

        device = "none"

        def __init__(self):
            self.steps = 0

        def step(self, x, y):
            assert x.dtype == np.float32
            assert x.shape == (len(y), 28, 28, 1)
            self.steps += 1
            return float(self.steps), 1

        def evaluate(self, x, y):
            return float(x.mean()), int((y == 0).sum())

        def state(self):
            return {}

    class Quiet:
        def step(self, steps, loss):
            """Take a step."""

        def epoch(self, line):
            """Take a line."""

    settings = command.Settings("mnist", "vgg16", "gravity")
    (line,) = training.train(
        tmp_path, settings, Constant(), tiny, Quiet(), epochs=1, steps=None, every=7
    )
    assert line["loss"] == (128 * 1 + 128 * 2 + 44 * 3) / 300
    assert line["accuracy"] == 3 / 300
    assert line["val_accuracy"] == float((tiny.y_test == 0).mean())
    # of 23,520 float32 numbers in [0, 1], added in pairs: at most 15 additions follow each other
    assert line["val_loss"] == pytest.approx(tiny.x_test.mean() / 255, rel=20 * 2**-24)


@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    folder = tiny_paper.run("torch", tmp_path, "--steps", "1")
    folder.rename(folder.with_name(folder.name.replace("seed3", "seed4")))
    with pytest.raises(CouldNotError, match=r"checkpoint\.npz is of another run: .*'seed': 3"):
        tiny_paper.run("torch", tmp_path, "--steps", "1", "--seed", "4")
    (tmp_path / "mnist-vgg16-gravity-torch-seed4" / training.CHECKPOINT).write_bytes(b"PK")
    with pytest.raises(CouldNotError, match=r"checkpoint\.npz cannot be read: .*starts again$"):
        tiny_paper.run("torch", tmp_path, "--steps", "1", "--seed", "4")
