"""Trajectory.plot and a trajectory in a notebook."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gravity_core import Gravity
from tests.support.limits import HANG

matplotlib = pytest.importorskip("matplotlib", reason="Trajectory.plot needs matplotlib")
matplotlib.use("agg")
from matplotlib import pyplot  # noqa: E402


@pytest.fixture(autouse=True)
def close_all_figures():
    yield
    pyplot.close("all")


def bowl(x):
    return float((x * x).sum()), 2 * x


def drawn(axis):
    return [line.get_xydata() for line in axis.get_lines()]


def test_two_weights_are_a_path_from_start_to_end():
    run = Gravity().minimize(bowl, [0.3, -0.2], steps=20)
    path, _, _ = run.plot()
    line, start, end = drawn(path)
    assert np.array_equal(line, run.x)
    assert np.array_equal(start, run.x[:1])
    assert np.array_equal(end, run.x[-1:])
    assert not path.collections


def test_contours_are_drawn_of_the_function():
    run = Gravity().minimize(bowl, [0.3, -0.2], steps=20)
    seen = []
    path, _, _ = run.plot(lambda x: (seen.append(x.copy()), bowl(x))[1])
    assert path.collections
    assert (np.min(seen, axis=0) < run.x.min(axis=0)).all()
    assert (np.max(seen, axis=0) > run.x.max(axis=0)).all()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_other_numbers_of_weights_are_drawn_against_the_update(shape):
    run = Gravity().minimize(bowl, np.full(shape, 0.3), steps=5)
    lines = drawn(run.plot()[0])
    assert len(lines) == run.x[0].size
    for i, line in enumerate(lines):
        assert np.array_equal(line[:, 1], run.x.reshape(6, -1)[:, i])


def test_the_loss_and_the_step_are_those_of_the_trajectory():
    run = Gravity().minimize(bowl, [0.3, -0.2], steps=20)
    _, loss, step = run.plot()
    assert np.array_equal(drawn(loss)[0][:, 1], run.f)
    m, v = drawn(step)
    assert m[:, 1].tolist() == [1 / np.abs(2 * x).max() for x in run.x[:-1]]
    assert v[:, 1].tolist() == np.abs(run.v).max(axis=1).tolist()


def test_a_scale_is_logarithmic_only_for_positive_values():
    run = Gravity().minimize(bowl, [0.3, -0.2], steps=5)
    assert [axis.get_yscale() for axis in run.plot()[1:]] == ["log", "log"]
    run = Gravity(velocity_std=0).minimize(lambda x: (-float(x), np.ones(())), 0.0, steps=5)
    assert [axis.get_yscale() for axis in run.plot()[1:]] == ["linear", "linear"]


@pytest.mark.parametrize(
    "run",
    [
        lambda: Gravity().minimize(bowl, [0.3, -0.2], steps=0),
        lambda: Gravity(velocity_std=0).minimize(bowl, [0.0, 0.0], steps=3),  # m is infinite
        lambda: Gravity().minimize(lambda x: (np.nan, x * np.nan), [1.0, 2.0], steps=3),
        lambda: Gravity().minimize(bowl, np.ones(4, np.float16), steps=3),
    ],
    ids=["no step", "at rest", "NaN", "float16"],
)
def test_odd_trajectories_are_drawn(run):
    run = run()
    run.plot(bowl)[0].figure.canvas.draw()
    assert "<svg" in run._repr_html_()


def test_a_notebook_shows_a_table_and_the_picture():
    run = Gravity().minimize(bowl, [0.3, -0.2], steps=100)
    page = run._repr_html_()
    table, svg = page[: page.index("<svg")], page[page.index("<svg") :]
    rows = ET.fromstring(f"<div>{table}</div>").findall("table/tr")
    cells = [[cell.text for cell in row] for row in rows]
    assert cells[0] == ["update", "t", "β̂", "m", "f before"]
    first, last = run.steps[0], run.steps[-1]
    assert cells[1][:3] == ["0", "1", f"{first.beta_hat:.4g}"]
    assert cells[-1] == ["99", "100", *(f"{float(x):.4g}" for x in (*last[1:3], run.f[-2]))]
    assert f"f from {run.f[0]:.4g} to {run.f[-1]:.4g}" in table
    assert ET.fromstring(svg).get("aria-label") in table
    assert pyplot.get_fignums() == []  # a notebook would show it twice


WITHOUT = """
import sys
sys.modules["matplotlib"] = None
import gravity_core
run = gravity_core.Gravity().minimize(lambda x: (float(x @ x), 2 * x), [0.3, -0.2], steps=5)
assert "<table>" in run._repr_html_() and "<svg" not in run._repr_html_()
try:
    run.plot()
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_matplotlib_the_error_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.stdout == (
        "Trajectory.plot needs matplotlib, which is not installed: pip install matplotlib\n"
    )
