"""The tabs of docs/getting-started.md run, and their optimizers agree inside the certified bound.

One gradient sequence, which the NumPy tab records, is replayed by the optimizer of each tab. The
runs on own gradients are only compared by what they print.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.limits import HANG
from tests.support.pages import is_there

pytest.importorskip("sklearn", reason="the page trains on scikit-learn's digits")

from gravity_conformance.parity.grading import grade
from gravity_conformance.protocol import Replay, Step

PAGE = Path(__file__).resolve().parents[2] / "docs" / "getting-started.md"
TEXT = PAGE.read_text(encoding="utf-8")
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {"PyTorch": "torch", "JAX": "optax", "Keras": "tensorflow", "NumPy": "numpy"}

# How each tab's optimizer takes one list of gradients g; `state` then yields V and W.
STEPS = {
    "PyTorch": """
import gravity_torch

def take(g):
    for p, gradient in zip(model.parameters(), g, strict=True):
        p.grad = torch.tensor(gradient)
    optimizer.step()

def state():
    return gravity_torch.export_state(optimizer).velocities, [
        p.detach().numpy() for p in model.parameters()
    ]
""",
    "JAX": """
def take(g):
    global params, state_of_optax
    updates, state_of_optax = optimizer.update(g, state_of_optax, params)
    params = optax.apply_updates(params, updates)

state_of_optax = state

def state():
    return state_of_optax[0].velocity, params
""",
    "Keras": """
import gravity_tf

optimizer.build(model.trainable_variables)

def take(g):
    optimizer.apply([keras.ops.convert_to_tensor(x) for x in g])

def state():
    return gravity_tf.export_state(optimizer).velocities, model.get_weights()
""",
    "NumPy": """
optimizer.init(weights)

def take(g):
    optimizer.step(weights, g)

def state():
    return optimizer.velocity, weights
""",
}
REPLAY = """
import sys
recorded = np.load(sys.argv[1])
steps = len(recorded.files) // len(start)
out = {}

def keep(n):
    for name, arrays in zip("VW", state(), strict=True):
        out.update({f"{name}{n}_{i}": np.array(a) for i, a in enumerate(arrays)})

keep(0)
for n in range(steps):
    take([recorded[f"{n}_{i}"] for i in range(len(start))])
    keep(n + 1)
np.savez(sys.argv[2], **out)
"""
RECORD = """
import sys
class Recorder:
    def __init__(self, optimizer):
        self.optimizer, self.gradients = optimizer, {}
    def step(self, weights, gradients):
        n = len(self.gradients) // len(gradients)
        self.gradients |= {f"{n}_{i}": np.array(g) for i, g in enumerate(gradients)}
        self.optimizer.step(weights, gradients)
optimizer = Recorder(optimizer)
"""
SAVE = "np.savez(sys.argv[1], **optimizer.gradients)\n"


def tab(name):
    """Return the code of the data, and the two cells of a tab."""
    data = CELL.findall(TEXT.split("## The training")[0])
    (section,) = re.findall(rf"^### {name}\n(.*?)^##", TEXT, re.MULTILINE | re.DOTALL)
    construct, train = CELL.findall(section)
    return "".join(data), construct, train


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The file of the recorded gradients, the gradients, W₀, and what the NumPy tab prints."""
    path = tmp_path_factory.mktemp("recorded") / "gradients.npz"
    data, construct, train = tab("NumPy")
    printed = run(data + construct + RECORD + train + SAVE, path)
    with np.load(path) as archive:
        count = 1 + max(int(name.split("_")[0]) for name in archive.files)
        gradients = [[archive[f"{n}_{i}"] for i in range(4)] for n in range(count)]
    namespace = {}
    exec(data, namespace)
    return path, gradients, namespace["start"], printed


def test_the_page_has_a_tab_for_each_framework():
    section = TEXT.split("<!-- tabs -->")[1].split("\n## ")[0]
    assert re.findall(r"^### (.*)$", section, re.MULTILINE) == list(NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_a_tab_trains(name, recorded):
    """All print the same accuracy, and what they print is good."""
    if not is_there(NEEDS[name]):
        pytest.skip(f"not installed: {NEEDS[name]}")
    printed = run("".join(tab(name)))
    (accuracy,) = re.findall(r"test accuracy ([\d.]+)%$", printed.strip())
    (reference,) = re.findall(r"test accuracy ([\d.]+)%$", recorded[-1].strip())
    assert float(accuracy) > 90
    assert abs(float(accuracy) - float(reference)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_the_optimizer_of_a_tab_stays_inside_the_certified_bound(name, recorded, tmp_path):
    if not is_there(NEEDS[name]):
        pytest.skip(f"not installed: {NEEDS[name]}")
    path, gradients, start, _ = recorded
    data, construct, _ = tab(name)
    run(data + construct + STEPS[name] + REPLAY, path, tmp_path / "states.npz")
    with np.load(tmp_path / "states.npz") as archive:
        states = [
            Step(*([archive[f"{x}{n}_{i}"] for i in range(4)] for x in "VW"))
            for n in range(len(gradients) + 1)
        ]
    result = grade(Replay(start, gradients, {"learning_rate": 0.1}), iter(states))
    assert result.verdict in ("exact", "bounded"), result.first_divergence
    assert result.v0_identical
    assert len(result.bound) == len(gradients) > 400
