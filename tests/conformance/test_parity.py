"""The command `gravity parity` in its own process, and its parts."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gravity_conformance.__main__ import main
from gravity_conformance._status import CouldNotError
from gravity_conformance.parity import numpy_backend, plots, report
from gravity_conformance.parity import run as parity
from gravity_conformance.parity.digits import digits_task, loss_and_gradients
from gravity_conformance.parity.grading import Grade
from gravity_conformance.protocol import Mode
from gravity_core._install import install
from tests.support.command import gravity, hidden
from tests.support.limits import HANG
from tests.support.parity import Point, compared, threads

pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")


FRAMEWORKS = ("torch", "jax", "optax", "tensorflow", "keras")


def test_numpy_alone(tmp_path):
    out = tmp_path / "made" / "here"
    environment = hidden(tmp_path / "hidden", FRAMEWORKS)
    done = gravity("parity", "--steps", "50", "--out", out, env=environment)
    assert done.returncode == 0, done.stderr
    for name in ("torch", "jax", "tensorflow"):
        assert f"{name}: not installed (no " in done.stdout
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
def test_bad_input_gives_one_line_and_status_2(arguments, message):
    done = gravity("parity", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gravity: ")
    assert message in done.stderr


@pytest.mark.parametrize("option", ["--require", "--backend"])
def test_a_missing_framework_that_is_asked_for_is_named_at_once(option, tmp_path):
    out = tmp_path / "out"
    environment = hidden(tmp_path / "hidden", FRAMEWORKS)
    done = gravity("parity", "--out", out, option, "torch", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gravity: the backend torch is not installed (no torch)\n"
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("option", ["--require", "--backend"])
def test_nothing_runs_if_a_backend_that_is_asked_for_fails_to_import(
    option, monkeypatch, tmp_path, capsys
):
    points = {"good": Point("good", "good_backend", Stranger)}
    points["broken"] = Point("broken", "my_backend", raising(RuntimeError("no\ndriver")))
    monkeypatch.setattr(parity, "run", lambda *args, **kwargs: pytest.fail("it ran"))
    with threads(points):
        assert status_of(monkeypatch, "parity", option, "broken", "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err == (
        "gravity: the backend cannot be imported: broken: RuntimeError: no driver\n"
    )


def test_a_missing_cli_extra_is_named():
    code = "import sys; sys.modules['rich'] = None\n"
    code += "from gravity_conformance.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"gravity: the command line needs rich: {install('cli')}\n"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_an_interrupted_run_keeps_the_old_report(tmp_path):
    out = tmp_path / "out"
    # A background job of a shell ignores SIGINT, and so do its children. So the child restores the
    # handler itself: a preexec_fn would fork, and JAX warns about forks.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from gravity_conformance.__main__ import main; main()"
    arguments = ["parity", "--backend", "numpy", "--steps", "20000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + HANG
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (out / "parity.json").write_text("old")
    time.sleep(1)  # the run has started; twenty thousand steps take longer
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 130
    assert errors == "gravity: interrupted\n"
    assert [p.name for p in out.iterdir()] == ["parity.json"]
    assert (out / "parity.json").read_text() == "old"


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
def test_backends_that_cannot_be_imported(error, missing, failures):
    result = compared(["mine"], points={"mine": Point("mine", "my_backend", raising(error))})
    assert result.not_installed == missing
    assert result.failures == failures
    assert not result.passed


@pytest.mark.parametrize(("option", "backend"), [([], None), (["--backend", "mine"], "jax")])
def test_keras_is_on_its_default_backend_in_a_run_of_all(option, backend, monkeypatch, tmp_path):
    seen = []

    def load():
        seen.append(os.environ.get("KERAS_BACKEND"))
        return Stranger()

    monkeypatch.setenv("KERAS_BACKEND", "jax")
    arguments = ["--dtype", "float32", "--steps", "1", "--out", str(tmp_path)]
    with threads({"mine": Point("mine", "mine", load)}):
        assert status_of(monkeypatch, "parity", *option, *arguments) == 0
    assert seen == [backend]


class Stranger:
    """A correct backend; tests override parts of it."""

    def versions(self):
        return {"stranger": "1"}

    def dtypes(self):
        return ("float32",)

    def modes(self):
        return {"plain": Mode("eager")}

    def replay(self, replay, mode):
        return numpy_backend.replay(replay, mode)

    def train(self, task):
        return numpy_backend.train(task)


def compare(*backends, **options):
    """Run `gravity parity` on backends with the names s0, s1, …."""
    points = {f"s{i}": Point(f"s{i}", "stranger", lambda b=b: b) for i, b in enumerate(backends)}
    return compared(list(points), points=points, **options)


def test_a_correct_stranger_passes_and_is_measured():
    result = compare(Stranger(), steps=45)
    assert result.passed
    assert result.versions["stranger"] == "1"
    (row,), (training,) = result.replays, result.trainings
    assert (row.backend, row.mode, row.dtype) == ("s0", "plain", "float32")
    assert len(row.grade.deviation) == result.steps == 45
    assert training.weight_deviation == 0.0
    task = digits_task("float32", seed=7, steps=45, options={"seed": 7})
    alone = numpy_backend.train(task)
    assert training.correct == (alone.predictions == task.y_test).sum() > 100
    assert training.losses == alone.losses


def test_the_recording_equals_the_numpy_training():
    task = digits_task("float32", seed=7, steps=5, options={"seed": 7})
    replay, trained = parity.record(task)
    batch = task.epochs[0][0]
    _, first = loss_and_gradients(task.weights, task.x_train[batch], task.y_train[batch])
    for got, expected in zip(replay.gradients[0], first, strict=True):
        assert np.array_equal(got, expected)
        assert got.any()
    *_, last = numpy_backend.replay(replay, "blocked")
    for got, expected in zip(last.weights, trained, strict=True):
        assert np.array_equal(got, expected)


def test_backends_receive_their_own_read_only_arrays():
    class Modifying(Stranger):
        def replay(self, replay, mode):
            for gradient in replay.gradients[0]:
                gradient *= 0
            yield

        def train(self, task):
            task.y_test[:] = 0

    result = compare(Modifying(), Stranger())
    assert "read-only" in result.replays[0].error
    assert "read-only" in result.trainings[0].error
    assert result.replays[1].passed
    assert result.trainings[1].error is None


class Exiting(Stranger):
    def replay(self, replay, mode):
        sys.exit(0)

    def train(self, task):
        raise ValueError("train\nfell over")


def test_a_failing_backend_does_not_affect_others():
    result = compare(Exiting(), Stranger())
    assert not result.passed
    assert result.replays[0].error == "SystemExit: 0"
    assert result.trainings[0].error == "ValueError: train fell over"
    assert result.replays[1].passed
    assert "s0 plain float32: SystemExit: 0" in report.notes(result)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modes", ["plain"]),
        ("modes", {"plain": "eager"}),
        ("modes", {"plain": Mode("graph")}),
        ("modes", {1: Mode("eager"), "1": Mode("eager")}),
        ("versions", None),
        ("dtypes", None),
    ],
)
def test_the_description_of_a_backend_is_validated(name, value):
    bad = type("Bad", (Stranger,), {name: lambda self: value})()
    result = compare(bad, Stranger())
    assert not result.passed
    assert result.failures[0].startswith("s0: ")
    assert [row.backend for row in result.replays] == ["s1"]


def test_modes_that_are_shown_alike_are_both_compared():
    names = ["a b", "a  b", "x" * 600, "x" * 601]

    class Alike(Stranger):
        def modes(self):
            return dict.fromkeys(names, Mode("eager"))

        def replay(self, replay, mode):
            if mode != "a b":
                raise ValueError(f"{names.index(mode)} is wrong")
            return super().replay(replay, mode)

    rows = compare(Alike()).replays
    assert [row.passed for row in rows] == [True, False, False, False]
    assert [row.error for row in rows[1:]] == [f"ValueError: {i} is wrong" for i in (1, 2, 3)]
    shown = "x" * 499 + "…"
    assert [row.mode for row in rows] == ["a b", "a b (2)", shown, f"{shown} (2)"]


@pytest.mark.parametrize("modes", [{}, {"fast": Mode("compiled", "no compiler")}])
def test_a_backend_without_comparisons_fails(modes):
    result = compare(type("Idle", (Stranger,), {"modes": lambda self: modes})(), Stranger())
    assert not result.passed
    assert "s0: nothing was compared" in result.failures
    assert result.not_run == ({"s0 fast": "no compiler"} if modes else {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t._replace(losses=[]), "losses must be 1 finite numbers"),
        (lambda t: t._replace(losses=[float("nan")]), "losses must be 1 finite numbers"),
        (lambda t: t._replace(weights=t.weights[:3]), "weights must be arrays"),
        (lambda t: t._replace(weights=[w * np.nan for w in t.weights]), "weights must be finite"),
        (lambda t: t._replace(predictions=t.predictions[:, None]), "predictions must be integers"),
        (lambda t: t._replace(predictions=t.predictions * 1.0), "predictions must be integers"),
    ],
)
def test_a_training_must_be_complete_and_finite(change, message):
    class Changed(Stranger):
        def train(self, task):
            return change(super().train(task))

    result = compare(Changed())
    assert not result.passed
    assert message in result.trainings[0].error


def test_the_first_step_of_a_compiled_mode_is_said_to_compile():
    said = []
    modes = {"a": Mode("eager"), "b": Mode("compiled")}
    both = type("Both", (Stranger,), {"modes": lambda self: modes})()
    compare(both, steps=2, progress=lambda what, done, total: said.append((what, done, total)))
    assert [line for line in said if line[2]] == [
        *(("s0 a float32", done, 2) for done in range(3)),
        ("s0 b float32: compiling", 0, 2),
        *(("s0 b float32", done, 2) for done in (1, 2)),
    ]


def test_modes_are_chosen_by_kind():
    modes = {"a": Mode("eager"), "b": Mode("compiled")}
    both = type("Both", (Stranger,), {"modes": lambda self: modes})()
    assert [row.mode for row in compare(both).replays] == ["a", "b"]
    assert [row.mode for row in compare(both, kinds=["compiled"]).replays] == ["b"]


def test_a_backend_may_lack_the_requested_kind_of_mode():
    compiled = type("Compiled", (Stranger,), {"modes": lambda self: {"c": Mode("compiled")}})()
    result = compare(Stranger(), compiled, kinds=["compiled"])
    assert result.passed
    assert result.not_run == {"s0": "it has no compiled mode"}


def test_different_accuracies_are_explained():
    result = compare(Stranger(), Stranger())
    good, bad = result.trainings
    bad.correct = good.correct - 5
    (line,) = [n for n in report.notes(result) if "images" in n]
    assert line.startswith(
        "s1 float32: it misclassifies 5 more images than the best; its optimizer agrees"
    )
    result.replays[1].grade.verdict = "divergent"
    (line,) = [n for n in report.notes(result) if "images" in n]
    assert "also disagrees on recorded gradients" in line
    bad.correct = good.correct - 1
    assert not [n for n in report.notes(result) if "images" in n]


def test_the_output_of_a_backend_is_kept_out_of_the_json(tmp_path):
    package = tmp_path / "talk-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: talk\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[gravity.backends]\ntalk = talk\n")
    (tmp_path / "talk.py").write_text(
        "from gravity_conformance.parity.numpy_backend import *\n"
        "import os\nprint('hello'); os.write(1, b'raw')\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = tmp_path / "out"
    done = gravity(
        *("parity", "--backend", "talk", "--steps", "2", "--json", "--out", str(out)),
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    assert {row["backend"] for row in json.loads(done.stdout)["replays"]} == {"talk"}


@pytest.mark.parametrize("name", report.FILES)
@pytest.mark.parametrize("content", ["of the user", '{"passed": true}', ""])
def test_a_folder_with_files_of_the_user_is_refused(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CouldNotError, match=f"earlier report, got .* holds '{name}'; --force"):
        report.check_folder(tmp_path)
    report.write(parity.new_report(seed=0), tmp_path)  # --force
    (tmp_path / report.PICTURE).write_bytes(plots.picture(parity.new_report(seed=0)))
    report.check_folder(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CouldNotError, match=f"which holds '{name}'"):  # beside a report's others
        report.check_folder(tmp_path)


def test_the_command_refuses_a_folder_with_files_of_the_user(tmp_path):
    (tmp_path / "parity.md").write_text("of the user")
    done = gravity("parity", "--backend", "numpy", "--out", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "--force writes there all the same" in done.stderr
    assert (tmp_path / "parity.md").read_text() == "of the user"
    assert [p.name for p in tmp_path.iterdir()] == ["parity.md"]


def test_a_blocked_report_path_is_refused_at_once(tmp_path):
    (tmp_path / "parity.json").mkdir()
    done = gravity("parity", "--backend", "numpy", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "parity.json': Is a directory" in done.stderr


def test_a_narrow_encoding_does_not_fail_the_run(tmp_path):
    done = gravity(
        *("parity", "--backend", "numpy", "--steps", "2", "--out", str(tmp_path)),
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr


def status_of(monkeypatch, *arguments):
    """Run the command in this process, and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["gravity", *arguments])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_an_unsupported_dtype_gives_one_line_and_status_2(monkeypatch, capsys, tmp_path):
    points = {"broken": Point("broken", "broken_backend", Stranger)}
    with threads(points):
        assert status_of(monkeypatch, "parity", "--dtype", "float64", "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err == (
        "gravity: --dtype must be one of float32 for the backend broken, got 'float64'\n"
    )


def test_a_full_report_is_written_as_json_and_markdown_and_drawn(tmp_path):
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
    (tmp_path / "parity.png").write_text("of an earlier run")
    paths = report.write(result, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert plots.picture(result).startswith(b"\x89PNG")
    found = json.loads((tmp_path / "parity.json").read_text())
    assert found["passed"] is False
    assert found["replays"][0]["grade"]["share"] == "inf"
    text = (tmp_path / "parity.md").read_text()
    for part in (
        "divergent",
        "X: y",
        "V of tensor 0",
        "misclassifies 10 more images",
        "cupy: not installed",
    ):
        assert part in text


def test_a_run_passes_if_something_is_compared_and_all_of_it_passes():
    result = parity.new_report(seed=0)
    assert not result.passed
    result.replays = [parity.ReplayRow("a", "m", "eager", "float32", grade=Grade("bounded"))]
    assert result.passed
    result.replays[0].grade.v0_identical = False
    assert not result.passed
