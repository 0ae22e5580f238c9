"""The check on a GPU: its rehearsal on a CPU, its targets, and what it says without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu_check
from gravity_conformance.vectors import Expected

torch = pytest.importorskip("torch", reason="the check is for gravity_torch")

from benchmarks import gpu_parts, profiling, torch_step, torch_vectors  # noqa: E402
from tests.support.limits import HANG  # noqa: E402

HAS_NUMBA = importlib.util.find_spec("numba") is not None
SCRIPT = Path(gpu_check.__file__).with_suffix(".sh")
TINY = ["--case", "100-groups", "--rounds", "2", "--runs", "1"]


@pytest.mark.slow
def test_a_rehearsal_on_a_cpu(tmp_path):
    path = tmp_path / "gpu.json"
    parts = [x for part in ("vectors", "graph", "table") for x in ("--part", part)]
    arguments = ["--json", str(path), "--device", "cpu", *TINY, *parts]
    done = CliRunner().invoke(gpu_check.main, arguments)
    report = json.loads(path.read_text())
    assert report["parts"].keys() == {"machine", "vectors", "graph", "table"}, done.output
    assert report["parts"]["graph"]["not run"] == "it needs a GPU"
    assert report["parts"]["machine"]["result"]["device"] == "cpu"
    table = report["parts"]["table"]["result"]
    for dtype in gpu_parts.DTYPES:
        assert table[dtype]["100-groups"][torch_step.DEFAULT]["ratio"] > 0
    assert table["bfloat16"]["1B"] == {"not run": "it needs a GPU"}
    exact = [holds for name, holds in report["targets"].items() if "fused" not in name]
    assert exact == [True] * 4
    assert all(report["targets"].values()) == HAS_NUMBA
    assert done.exit_code == (0 if HAS_NUMBA else 1)


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "benchmarks.gpu_check", "--json"], [SCRIPT]]
)
def test_without_a_gpu_there_is_one_message(command, tmp_path):
    if command == [SCRIPT] and os.name != "posix":
        pytest.skip("the script is for a POSIX shell")
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, tmp_path / "gpu.json"],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        env=environment,
    )
    message = "Error: torch sees no GPU; --device cpu rehearses without one\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_an_unwritable_file_is_refused(tmp_path):
    path = tmp_path / "none" / "gpu.json"
    done = CliRunner().invoke(gpu_check.main, ["--json", str(path), "--device", "cpu"])
    assert done.exit_code == 2
    assert f"Error: {path}: " in done.output


def test_a_part_that_hangs_or_dies_is_recorded(monkeypatch):
    options = gpu_check.Options("cpu", (), 2, 1)
    assert gpu_check.run("machine", options, 0.01) == {"error": "it took more than 0 s"}
    assert gpu_check.run("machine", options, 0) == {"not run": "no time was left"}
    found = gpu_check.run("no_such_part", options, 60)
    assert found["error"].startswith("it ended with status 1: ")
    assert "no_such_part" in found["error"]


def test_outcomes_of_tests_are_counted():
    options = gpu_check.Options("cuda", (), 2, 1)  # the variable CUDA_VISIBLE_DEVICES hides all
    found = gpu_check.run("tests", options, 120)
    assert found["result"]["outcomes"] == {"skipped": 1}
    (message,) = found["result"]["messages"].values()
    assert "no GPU" in message


COUNTS = {"float32": {"values": 9, "same": 9, "outside": 0}}
STEP = {"kernels": 2, "waits": None}
TIMED = {gpu_check.FUSED: {"ratio": 0.9}}


def results():
    """Return the results of a check in which all targets hold."""
    return {
        "vectors": dict.fromkeys(gpu_parts.PATHS, COUNTS),
        "launches": {name: {"1": STEP, "1000": STEP} for name in gpu_parts.PATHS},
        "graph": {name: {"same": True} for name in gpu_parts.PATHS if "capturable" in name},
        "table": {
            "float32": {"gpt2": TIMED},
            "bfloat16": {"gpt2": TIMED, "1B": TIMED},
        },
        "tests": {"outcomes": {"passed": 5, "skipped": 1}},
    }


def outcome(results, device="cuda"):
    parts = {name: {"result": result} for name, result in results.items()}
    found = gpu_check.targets(parts, device)
    return gpu_check.status(found), [name for name, holds in found.items() if holds is not True]


def test_all_targets_hold():
    assert outcome(results()) == (0, [])
    assert outcome({}, "cpu")[0] == 2
    assert outcome({"vectors": results()["vectors"]}, "cpu") == (0, [])


ERROR = {"error": "RuntimeError: no"}
MISSES = {
    "exact: fused=True": (["vectors", "fused=True", "float32"], COUNTS["float32"] | {"same": 8}),
    "exact: foreach=False": (["vectors", "foreach=False"], ERROR),
    "bounded: foreach=True": (
        ["vectors", "foreach=True", "float32"],
        COUNTS["float32"] | {"outside": 1},
    ),
    "fused=True, 1000 tensors: at most 4 kernels": (
        ["launches", "fused=True", "1000"],
        STEP | {"kernels": 5},
    ),
    "fused=True, 1 tensors: the host never waits": (
        ["launches", "fused=True", "1"],
        STEP | {"waits": "RuntimeError: called a synchronizing CUDA operation"},
    ),
    "graph replays are exact: fused=True, capturable=True": (
        ["graph", "fused=True, capturable=True", "same"],
        False,
    ),
    "gpt2, float32: at most 0.9 of Adam": (
        ["table", "float32", "gpt2", gpu_check.FUSED, "ratio"],
        0.91,
    ),
    "1B, bfloat16: at most 0.9 of Adam": (["table", "bfloat16", "1B", gpu_check.FUSED], ERROR),
    "the tests on a GPU pass": (["tests", "outcomes", "failure"], 1),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_missed_target_is_named(name):
    (*keys, last), value = MISSES[name]
    found = inside = json.loads(json.dumps(results()))
    for key in keys:
        inside = inside[key]
    inside[last] = value
    assert outcome(found) == (1, [name])


@pytest.mark.parametrize("missing", ["not run", "absent"])
def test_what_could_not_be_tested_gives_status_2(missing):
    found = results()
    found["table"]["bfloat16"]["1B"] = {"not run": "it needs 16 GiB, 8 are free"}
    if missing == "absent":
        del found["table"]["bfloat16"]["1B"]
    assert outcome(found) == (2, ["1B, bfloat16: at most 0.9 of Adam"])
    del found["tests"]
    assert outcome(found)[0] == 2


def test_the_names_of_both_modules_agree():
    assert gpu_check.FUSED == torch_step.FUSED
    assert all(callable(getattr(gpu_parts, part, None)) for part in gpu_check.LIMITS)
    assert (SCRIPT.parents[1] / gpu_parts.TESTS).is_file()


def test_bits_and_errors_are_counted():
    count = torch_vectors.Count()
    got = np.asarray([1.0, 2.0, np.nan, 0.0], np.float32)
    reference = np.asarray([1.0, 2.5, np.nan, -0.0], np.float32)
    value = np.asarray([1.0, 2.0, np.nan, 0.25], np.float32)
    count.add(got, reference, Expected(value, np.asarray([0.5, 0.5, 0.0, 0.125])))
    assert (count.values, count.same, count.outside, count.worst) == (4, 2, 1, 2.0)


def test_the_vectors_notice_a_mistake(monkeypatch):
    """A step with another β must differ from the reference, and from the vectors."""

    class Wrong(torch_vectors.Gravity):
        def __init__(self, params, **options):
            super().__init__(params, **options | {"beta": options["beta"] / 2})

    monkeypatch.setattr(torch_vectors, "Gravity", Wrong)
    for count in torch_vectors.replay_all("cpu", {"foreach": False}).values():
        assert count["same"] < count["values"]
        assert count["outside"] > 0


def test_the_trace_has_the_operations_of_a_step():
    x = torch.ones(3)
    recorded = profiling.events(lambda: x.add_(1), torch.profiler.ProfilerActivity.CPU)
    assert "aten::add_" in [e["name"] for e in recorded if e.get("cat") == "cpu_op"]
