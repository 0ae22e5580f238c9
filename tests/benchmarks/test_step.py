"""The step benchmark: its shapes, its arithmetic and its command, on tensors too small to time."""

import json
import math

import pytest
from click.testing import CliRunner

from benchmarks import shapes, step


def test_shapes_are_those_of_the_models():
    totals = {name: (tensors, elements) for name, tensors, elements in shapes.sizes()}
    # ResNet-50 and GPT-2 small have 25,557,032 and 124,439,808 parameters as published.
    assert totals["resnet50"] == (161, 25_557_032)
    assert totals["gpt2"] == (148, 124_439_808)
    assert totals["16M"] == (1, 2**24)
    assert totals["1000x1000"] == (1000, 1_000_000)


def test_contenders_take_turns_and_warm_up():
    order = []
    contenders = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = step.measure(contenders, rounds=4)
    assert order == list("abc") * 6
    assert [len(times) for times in seconds.values()] == [4, 4, 4]


def test_ratios_are_of_medians_and_quartiles_of_rounds():
    summary = step.summarise({"base": [1.0, 2.0, 4.0], "other": [3.0, 4.0, 4.0]})
    assert summary["base"]["ratio"] == 1.0
    assert summary["other"]["ratio"] == 2.0
    assert summary["other"]["quartiles"] == [1.0, 3.0]  # of 3, 2 and 1


def test_command(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the baseline is torch's Adam")
    monkeypatch.setitem(shapes.CASES, "16M", [(8, 8), (8,)])
    path = tmp_path / "step.json"
    arguments = ["--backend", "numpy", "--case", "16M", "--rounds", "3", "--json", str(path)]
    done = CliRunner().invoke(step.main, arguments)
    assert done.exit_code == 0, done.output
    results = json.loads(path.read_text())["results"]["16M"]
    assert len(results) == 3
    assert all(math.isfinite(r["ratio"]) and r["ratio"] > 0 for r in results.values())
    assert "gravity_core.Gravity" in done.output
