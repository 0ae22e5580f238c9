"""The command `gravity parity`, in its own process as users run it, and its parts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gravity_core.conformance import parity, report
from gravity_core.conformance.__main__ import main
from gravity_core.conformance.grading import Grade
from gravity_core.conformance.protocol import Mode

pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")

COMMAND = [sys.executable, "-m", "gravity_core.conformance"]


def gravity(*arguments, **kwargs):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, **kwargs)


def without(modules, arguments):
    """Run the command in a process in which `modules` are not installed."""
    code = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
from gravity_core.conformance.__main__ import main
main()
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


FRAMEWORKS = ("torch", "jax", "optax", "tensorflow", "keras")


def test_numpy_alone(tmp_path):
    out = tmp_path / "made" / "here"
    done = without(FRAMEWORKS, ["parity", "--backend", "numpy", "--steps", "50", "--out", str(out)])
    assert done.returncode == 0, done.stderr
    assert "every backend present is exact or bounded" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["parity.json", "parity.md", "parity.png"]
    found = json.loads((out / "parity.json").read_text())
    assert found["passed"] is True
    assert found["steps"] == 50
    assert [(r["dtype"], r["grade"]["verdict"]) for r in found["replays"]] == [
        ("float32", "exact"),
        ("float64", "exact"),
    ]
    assert found["versions"].keys() == {"python", "numpy", "array-api-compat"}
    assert (out / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_json_goes_to_standard_output(tmp_path):
    done = gravity(
        *("parity", "--backend", "numpy", "--dtype", "float32", "--mode", "eager"),
        *("--steps", "3", "--seed", "5", "--json", "--out", str(tmp_path)),
    )
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "parity.json").read_text())
    assert json.loads(done.stdout)["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "numpi"], "--backend must be one of numpy, "),
        (["--require", "cupy"], "--require must be one of numpy, "),
        (["--dtype", "float16"], "'float16' is not one of 'float32', 'float64'"),
        (["--mode", "fast"], "'fast' is not one of"),
        (["--steps", "0"], "0 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--out", os.devnull], "--out"),
        (["--nope"], "--nope"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    done = gravity("parity", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gravity: ")
    assert message in done.stderr


def test_what_is_not_installed_is_listed_and_fails_where_required(tmp_path):
    arguments = ["parity", "--steps", "2", "--dtype", "float32", "--out", str(tmp_path)]
    listed = without(FRAMEWORKS, arguments)
    assert listed.returncode == 0, listed.stderr
    for name in ("torch", "jax", "tensorflow"):
        assert f"{name}: not installed (no " in listed.stdout
    required = without(FRAMEWORKS, [*arguments, "--require", "torch"])
    assert required.returncode == 1
    assert "torch: required, but not installed" in required.stdout
    alone = without(FRAMEWORKS, [*arguments, "--backend", "torch"])
    assert alone.returncode == 1
    assert "nothing was compared" in alone.stdout


def test_without_the_cli_extra():
    done = without(("rich",), ["parity"])
    assert done.returncode == 2
    assert done.stderr == (
        "gravity: the command line needs rich: pip install 'gravity-optimizer[cli]'\n"
    )


@pytest.mark.skipif(os.name != "posix", reason="interrupts a process by a POSIX signal")
def test_an_interrupted_run_leaves_the_old_report(tmp_path):
    out = tmp_path / "out"
    arguments = ["parity", "--backend", "numpy", "--steps", "1000000", "--out", str(out)]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (out / "parity.json").write_text("old")
    time.sleep(1)  # into the run; a million steps take many minutes
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "gravity: interrupted; no report was written"
    assert [p.name for p in out.iterdir()] == ["parity.json"]
    assert (out / "parity.json").read_text() == "old"


class Point:
    """An entry point of a distribution that is not there."""

    def __init__(self, name, module, load):
        self.name, self.module, self.load = name, module, load


def raising(error):
    def load():
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "missing", "failures"),
    [
        (ModuleNotFoundError("No module", name="mylib.sub"), {"mine": "mylib"}, []),
        (
            ModuleNotFoundError("No module named 'my_backend.typo'", name="my_backend.typo"),
            {},
            ["mine: ModuleNotFoundError: No module named 'my_backend.typo'"],
        ),
        (RuntimeError("no\ndriver"), {}, ["mine: RuntimeError: no driver"]),
    ],
)
def test_backends_that_cannot_be_imported(monkeypatch, error, missing, failures):
    point = Point("mine", "my_backend", raising(error))
    monkeypatch.setattr(parity, "entry_points", lambda: {"mine": point})
    result = parity.new_report(seed=0)
    assert parity.load(["mine"], result) == {}
    assert result.not_installed == missing
    assert result.failures == failures
    assert not result.passed


class Broken:
    """A stranger's backend that raises wherever it can."""

    def versions(self):
        return {"broken": "1"}

    def dtypes(self):
        return ("float32",)

    def modes(self):
        return {"plain": Mode("eager"), "fast": Mode("compiled", "no compiler")}

    def replay(self, replay, mode):
        raise RuntimeError("replay\nfell over")

    def train(self, task):
        raise ValueError("train fell over")


def test_a_failing_backend_is_its_own_result():
    result = parity.new_report(seed=0)
    parity.run(result, {"broken": Broken()}, dtypes=["float32"], steps=2)
    assert not result.passed
    assert result.replays[0].error == "RuntimeError: replay fell over"
    assert result.trainings[0].error == "ValueError: train fell over"
    notes = "\n".join(report.notes(result))
    assert "broken plain float32: RuntimeError: replay fell over" in notes
    assert "broken fast: not run, no compiler" in notes


def test_a_dtype_that_a_backend_cannot_do_is_one_line_and_status_2(monkeypatch, capsys, tmp_path):
    points = {"broken": Point("broken", "broken_backend", Broken)}
    monkeypatch.setattr(parity, "entry_points", lambda: points)
    arguments = ["gravity", "parity", "--dtype", "float64", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "gravity: --dtype must be one of float32 for the backend broken, got 'float64'\n"
    )


def test_a_report_of_everything_survives_json_markdown_and_drawing(tmp_path):
    result = parity.new_report(seed=0)
    result.not_installed["cupy"] = "cupy"
    bad = Grade("divergent", share=float("inf"), first_divergence="V of tensor 0", flushed=1)
    bad.deviation, bad.bound = [float("nan"), 1.0], [0.1, 0.2]
    result.replays = [
        parity.ReplayRow("a", "m", "eager", "float32", grade=bad),
        parity.ReplayRow("b", "m", "eager", "float32", error="X: y"),
    ]
    result.trainings = [
        parity.TrainingRow("a", "float32", losses=[1.0], correct=300, images=357),
        parity.TrainingRow("b", "float32", losses=[1.0], correct=310, images=357),
    ]
    for path in report.write(result, tmp_path):
        assert path.stat().st_size > 0
    found = json.loads((tmp_path / "parity.json").read_text())
    assert found["passed"] is False
    assert found["replays"][0]["grade"]["share"] == "inf"
    text = (tmp_path / "parity.md").read_text()
    for part in (
        "divergent",
        "X: y",
        "V of tensor 0",
        "differ by 10 images",
        "cupy: not installed",
    ):
        assert part in text


def test_all_must_pass_and_something_must_be_compared():
    result = parity.new_report(seed=0)
    assert not result.passed
    result.replays = [parity.ReplayRow("a", "m", "eager", "float32", grade=Grade("bounded"))]
    assert result.passed
    result.replays[0].grade.v0_identical = False
    assert not result.passed
