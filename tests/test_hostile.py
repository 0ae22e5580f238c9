"""A short form of `make hostile`: each part tries some faults, and notices a broken promise."""

import json
import runpy
import sys
import warnings
from random import Random

import pytest

from tests.hostile.running import Case, repeat


def tried(part, tmp_path, most):
    """Return the counts of a part; the frameworks warn about the faults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = part.run(Random(0), tmp_path, most=most)
    assert counts.total() == most
    return counts


def test_files_of_vectors(tmp_path):
    from tests.hostile import vector_files

    counts = tried(vector_files, tmp_path, 60)
    assert {key.rpartition(": ")[2] for key in counts} == {"refused", "no result changed"}


def test_a_fault_that_the_check_of_vectors_overlooks_is_noticed(tmp_path, monkeypatch):
    from tests.hostile import vector_files

    monkeypatch.setattr(vector_files, "check", lambda path: [])
    with pytest.raises(AssertionError, match="no fault was found"):
        vector_files.run(Random(0), tmp_path, most=60)


def test_numbers(tmp_path):
    from tests.hostile import numbers

    counts = tried(numbers, tmp_path, 60)
    assert {key.rpartition(": ")[2] for key in counts} >= {
        "same numbers everywhere",
        "refused everywhere",
    }


def test_a_number_with_another_meaning_is_noticed(tmp_path, monkeypatch):
    from tests.hostile import numbers

    reference = numbers.PACKAGES["NumPy"]
    packages = {"NumPy": reference, "odd": lambda options: reference(options) + 1}
    monkeypatch.setattr(numbers, "PACKAGES", packages)
    with pytest.raises(AssertionError, match="odd: "):
        numbers.run(Random(0), tmp_path, most=60)


def test_steps_and_loads_of_torch(tmp_path):
    pytest.importorskip("torch", reason="the adapter needs torch")
    from tests.hostile import torch_faults

    counts = tried(torch_faults, tmp_path, 80)
    assert any("refused; Adam refused, moved" in key for key in counts)


def test_a_step_of_torch_that_moves_something_is_noticed(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the adapter needs torch")
    from tests.hostile import torch_faults

    monkeypatch.setattr(torch_faults, "Gravity", torch.optim.Adam)
    with pytest.raises(AssertionError, match="moved"):
        tried(torch_faults, tmp_path, 80)


def test_steps_and_imports_of_keras(tmp_path):
    pytest.importorskip("keras", reason="the adapter needs keras")
    from tests.hostile import keras_faults

    counts = tried(keras_faults, tmp_path, 40)
    assert any(key.startswith("import: refused") for key in counts)


def test_code_and_environments(tmp_path):
    pytest.importorskip("click", reason="the command line needs click")
    from tests.hostile import commands

    tried(commands, tmp_path, 2)


@pytest.mark.parametrize(("fault", "status"), [(None, 0), ("other numbers", 1)])
def test_the_command_writes_the_counts(fault, status, tmp_path, monkeypatch):
    pytest.importorskip("click", reason="the command line needs click")
    from tests.hostile import numbers

    def run(random, folder, *, seconds):
        assert seconds == 30
        if fault:
            raise AssertionError(fault)
        return repeat(iter([Case("a kind", "a case", lambda: "refused")]))

    monkeypatch.setattr(numbers, "run", run)
    words = ["hostile", "--seed", "5", "--minutes", "0.5", "--only", "^numbers$"]
    monkeypatch.setattr(sys, "argv", [*words, "--json", str(tmp_path / "a.json")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("tests.hostile", run_name="__main__")
    assert stop.value.code == status
    report = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    outcomes = {} if fault else {"a kind: refused": 1}
    assert report["seed"] == 5
    assert report["parts"] == {
        "numbers": {"tried": len(outcomes), "outcomes": outcomes, "fault": fault}
    }


def test_limits_of_time_and_number():
    cases = (Case("k", str(n), lambda: "ran") for n in range(100))
    clock = iter([0.0, 1.0, 2.0, 3.0]).__next__
    assert repeat(cases, seconds=1.5, clock=clock) == {"k: ran": 2}
    assert repeat(cases, most=3) == {"k: ran": 3}
