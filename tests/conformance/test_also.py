"""`gravity parity --also SPEC`: what `gravity conform` can drive, compared."""

import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from gravity_conformance import _drawing
from gravity_conformance.__main__ import main
from gravity_conformance.drive.driven import as_backend
from gravity_conformance.drive.spec import load
from gravity_conformance.parity import connection, plots, report
from gravity_conformance.parity import run as parity
from gravity_conformance.parity.grading import Grade, grade
from gravity_conformance.protocol import Mode, Replay
from tests.support import parity as support
from tests.support import strangers
from tests.support.command import gravity

pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")

FILE = strangers.__file__
NEEDS = {
    "gravity_torch:Gravity": "torch",
    "gravity_jax:gravity": "optax",
    "gravity_tf:Gravity": "keras",
}
# Written by hand as a user would, with mistakes and other habits beside it.
MINE = """
import torch

print("hello")


class Mine(torch.optim.Optimizer):
    def __init__(self, params, lr=0.01, alpha=0.05, beta=0.5):
        super().__init__(params, {"lr": lr, "alpha": alpha, "beta": beta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state, beta = self.state[p], group["beta"]
                if not state:
                    state["v"] = torch.randn_like(p) * (group["alpha"] / group["lr"])
                    state["t"] = 0
                t = state["t"] = state["t"] + 1
                zeta = self.zeta(p.grad)
                old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
                state["v"] = old * state["v"] + new * zeta
                p -= group["lr"] * state["v"]

    def zeta(self, g):
        s = g * g.abs().max()
        return g / (1 + s * s)


class Wrong(Mine):
    def zeta(self, g):
        return g / (1 + (g * g.abs().max()).abs())


class FixedBeta(Mine):
    def __init__(self, params, lr=0.1, alpha=0.01):
        super().__init__(params, lr, alpha, beta=0.5)


class Raises(Mine):
    def __init__(self, params):
        raise RuntimeError("no\\ngood")


class Silent(Mine):
    def step(self):
        kept = getattr(self, "kept", {})
        self.state.update(kept)
        super().step()
        self.kept = dict(self.state)
        self.state.clear()


class NotANumber(Mine):
    def zeta(self, g):
        return g / g.abs().max()


class HalfW(Mine):
    def __init__(self, params, lr=0.1):
        params = list(params)
        super().__init__(params, lr)
        for p in params:
            p.data *= 0.5


class MovesWOnce(Mine):
    def step(self):
        first = not self.state
        super().step()
        for p in self.param_groups[0]["params"] if first else ():
            p.data += 1
"""


@pytest.fixture
def mine(tmp_path):
    pytest.importorskip("torch", reason="a class of torch")
    path = tmp_path / "mine_for_parity.py"
    path.write_text(MINE)
    return path


def compared(*specs, **options):
    return support.compared(specs=specs, **options)


@pytest.mark.slow
@pytest.mark.parametrize("spec", NEEDS)
def test_our_own_by_spec(spec):
    pytest.importorskip(NEEDS[spec], reason=f"{spec} needs it")
    result = compared(spec, dtypes=("float32", "float64"))
    assert result.passed
    assert all(row.grade.v0_identical for row in result.replays)
    assert all(row.grade.verdict == "exact" for row in result.replays if row.mode == "eager")
    assert all(row.weight_deviation < 1e-6 for row in result.trainings)
    assert {row.dtype for row in result.trainings} == {"float32", "float64"}


@pytest.mark.parametrize("kind", ["torch", "optax", "keras"])
def test_a_stranger_has_a_v0_of_its_own(kind):
    pytest.importorskip(kind, reason=f"a stranger of {kind}")
    result = compared(f"{FILE}:{kind}_right")
    assert result.passed
    assert not any(row.grade.v0_identical for row in result.replays)
    assert {cells[3] for cells in report.replay_rows(result)} == {"own"}
    (line,) = [line for line in report.notes(result) if "it has its own V₀" in line]
    assert line.startswith(f"{FILE}:{kind}_right: ")
    # The state of torch optimizers is made by their first step.
    assert {row.grade.begun for row in result.replays} == {int(kind == "torch")}


def test_a_plain_function_is_replayed_and_not_trained():
    result = compared(f"{FILE}:plain_right")
    assert result.passed
    assert result.replays[0].grade.verdict == "exact"
    assert result.replays[0].grade.v0_identical
    assert result.trainings == []


@pytest.mark.parametrize("kind", ["torch", "optax", "keras", "plain"])
def test_a_mistake_is_divergent(kind):
    if kind != "plain":
        pytest.importorskip(kind, reason=f"a stranger of {kind}")
    result = compared(f"{FILE}:{kind}_square")
    assert not result.passed
    assert {row.grade.verdict for row in result.replays} == {"divergent"}
    # The function gets t.
    tried = any("neither t from 1 nor t from 0 fits" in line for line in report.notes(result))
    assert tried == (kind != "plain")


def test_the_other_convention_is_named():
    pytest.importorskip("torch", reason="a stranger of torch")
    result = compared(f"{FILE}:torch_minus_one")
    assert result.passed
    assert any("it counts t from 0" in line for line in report.notes(result))


def test_options_that_are_offered_get_our_defaults(mine):
    result = compared(f"{mine}:Mine", f"{mine}:FixedBeta")
    offered, fixed = result.replays
    assert offered.passed
    assert fixed.grade.verdict == "divergent"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Raises", "RuntimeError: no good"),
        ("Silent", "its state does not show V"),
        ("NotANumber", "V and W must be finite in the first state"),
        ("HalfW", "W of tensor 0 must be W₀ − η V in the first state that shows V, got "),
        ("MovesWOnce", "W of tensor 0 must be W₀ − η V in the first state that shows V, got "),
    ],
)
def test_what_fails_is_the_error_of_its_row(mine, name, message):
    result = compared(f"{mine}:{name}")
    assert not result.passed
    assert message in result.replays[0].error


def test_the_command(mine, tmp_path):
    command = [sys.executable, "-m", "gravity_conformance", "parity", "--backend", "numpy"]
    command += ["--also", f"{mine}:Mine", "--also", f"{mine}:Wrong", "--dtype", "float32"]
    command += ["--steps", "2", "--json", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [(row["backend"], row["grade"]["verdict"]) for row in found["replays"]] == [
        ("numpy", "exact"),
        (f"{mine}:Mine", "exact"),
        (f"{mine}:Wrong", "divergent"),
    ]
    assert f"--also {mine}:Mine --also {mine}:Wrong" in found["command"]
    assert f"{mine}:Mine" in (tmp_path / "out" / "parity.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("right", "wrong"), [("a b.py", "a  b.py"), ("d/" * 240 + "a.py", "d/" * 240 + "b.py")]
)
def test_names_that_are_shown_alike_are_both_compared(right, wrong, tmp_path):
    """Shown are 499 characters, and one space for several."""
    step = STEP.replace("from mine import K", "K = 1")
    for name, text in ((right, step), (wrong, step.replace("v = old", "v = 2 * old"))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    right, wrong = f"{tmp_path / right}:step", f"{tmp_path / wrong}:step"
    result = compared(wrong, right, right)
    assert [row.grade.verdict for row in result.replays] == ["divergent", "exact"]
    first, second = (row.backend for row in result.replays)
    assert second == f"{first} (2)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:X", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("gravity_core:Nobody", "gravity_core has no Nobody"),
        ("gravity_core", "SPEC must be module:attribute or path.py:attribute"),
        (".:step", "SPEC must be module:attribute or path.py:attribute, got '.:step'"),
        ("gravity_core:Gravity", "-> (w, v), got the class Gravity"),
    ],
)
def test_a_spec_that_names_nothing_is_one_line_and_status_2(spec, message, tmp_path):
    done = gravity("parity", "--backend", "numpy", "--also", spec, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gravity: --also: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("spec", ["gravity_core", "no_such.py:step", ":step"])
def test_a_spec_of_the_wrong_form_is_refused_before_anything_starts(spec, monkeypatch, capsys):
    monkeypatch.setattr(connection, "Process", lambda *job: pytest.fail("it started"))
    monkeypatch.setattr(sys, "argv", ["gravity", "parity", "--also", spec])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "gravity: --also: " in capsys.readouterr().err


def test_a_declaration_must_show_v0():
    pytest.importorskip("torch", reason="a declaration for torch")
    from gravity_torch import Gravity

    declaration = types.SimpleNamespace(optimizer=Gravity, kind="torch")
    replay = Replay([np.ones(3, np.float32)], [[np.ones(3, np.float32)]])
    with pytest.raises(ValueError, match="a declaration needs export_state"):
        grade(replay, as_backend(declaration).replay(replay, "default"))


def test_declared_modes_are_those_of_the_kind():
    pytest.importorskip("optax", reason="a declaration for JAX")
    from gravity_jax import gravity

    modes = {"pmap": Mode("compiled")}
    backend = as_backend(
        types.SimpleNamespace(optimizer=gravity, kind="optax", modes=lambda: modes)
    )
    with pytest.raises(ValueError, match=r"modes\(\) must return only eager, jit, got 'pmap'"):
        backend.modes()


def test_tensors_keep_their_order():
    pytest.importorskip("optax", reason="a tree of JAX")
    from gravity_jax import backend

    weights = [np.full(2, i, np.float32) for i in range(12)]
    replay = Replay(weights, [weights, weights])
    assert grade(replay, as_backend(backend).replay(replay, "eager")).verdict == "exact"


def test_a_file_does_not_take_the_place_of_a_module(tmp_path):
    Path(tmp_path, "json.py").write_text("answer = 42")
    assert load(f"{tmp_path}/json.py:answer") == 42
    assert sys.modules["json"] is json


STEP = """
import random
from mine import K
import numpy as np
def step(w, v, g, t, lr, beta):
    assert random.random() < 1
    old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
    s = g * np.max(np.abs(g))
    v = old * v + new * (K * g / (1 + s * s))
    return w - lr * v, v
"""


def test_each_spec_imports_its_own_modules_and_hides_no_library(tmp_path):
    """A SPEC and what lies beside it may have the names of a library, and of another SPEC's."""
    names = {"right/numpy.py": 1, "wrong/torch.py": 2, "module/optax/__init__.py": 1}
    for name, k in names.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(STEP)
        folder = path.parent if path.name != "__init__.py" else path.parent.parent
        (folder / "mine.py").write_text(f"K = {k}")
        for library in ("random", "scipy", "keras"):
            (folder / f"{library}.py").write_text("raise SystemExit('not the library')")
    specs = [f"{tmp_path}/right/numpy.py:step", f"{tmp_path}/wrong/torch.py:step"]
    also = [word for spec in [*specs, "own:step"] for word in ("--also", spec)]
    (tmp_path / "module" / "own.py").write_text("from mine import K\n" + STEP)
    arguments = ["--backend", "numpy", "--dtype", "float32", "--steps", "1", "--json"]
    done = gravity("parity", *arguments, *also, cwd=tmp_path / "module")
    assert done.returncode == 1, done.stderr
    grades = [row["grade"]["verdict"] for row in json.loads(done.stdout)["replays"]]
    assert grades == ["exact", "exact", "divergent", "exact"]


def report_of(*rows):
    """Return a report of (name, whether V₀ is the reference's, right images, notes)."""
    result = parity.new_report(seed=0)
    for name, same, correct, notes in rows:
        row = parity.ReplayRow(name, "default", "eager", "float32", notes=list(notes))
        row.grade = Grade(v0_identical=same, deviation=[1e-7], bound=[1e-6])
        row.stranger = name != "numpy"
        result.replays.append(row)
        training = parity.TrainingRow(name, "float32", losses=[1.0], correct=correct, images=100)
        result.trainings.append(training)
    return result


@pytest.mark.parametrize(("draw", "more"), [(plots.losses, 0), (plots.deviations, 1)])
def test_any_name_can_be_drawn(draw, more):
    """Matplotlib reads $ as mathematics, and hides a label that starts with an underscore.

    It warns of letters that its font lacks, and here a warning is an error.
    """
    names = ("$x^$.py:f", "_port.py:f", "long/" * 30 + "$.py:f", "日本.py:f", "नमस्ते.py:f")
    result = report_of(*((name, True, 90, []) for name in names))
    result.replays[0].mode = r"$\frac$"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.picture(result).startswith(b"\x89PNG")
    with _drawing.clean():
        figure, axes = _drawing.figure((4, 3))
        draw(axes[0, 0], result, "float32")
        axes[0, 0].legend()
        assert _drawing.png(figure).startswith(b"\x89PNG")
        shown = [text.get_text() for text in axes[0, 0].get_legend().texts]
    assert len(shown) == len(names) + more  # and the bound
    assert max(map(len, shown)) < 60


def test_runs_from_another_v0_are_no_measure_of_the_others():
    found = report.notes(report_of(("numpy", True, 80, []), ("a.py:f", False, 90, [])))
    assert not any("more images" in line for line in found)
    found = report.notes(report_of(("numpy", True, 90, []), ("a.py:f", False, 80, [])))
    assert any(line.endswith("it starts from its own V₀") for line in found)


def test_a_note_names_its_dtype_if_the_others_have_none():
    result = report_of(("a.py:f", True, 90, ["late"]), ("b.py:f", True, 90, ["late"]))
    result.replays.append(parity.ReplayRow("b.py:f", "default", "eager", "float64"))
    found = report.notes(result)
    assert "a.py:f: late" in found
    assert "b.py:f float32: late" in found


def test_a_backend_with_five_functions_may_have_an_optimizer():
    own = types.SimpleNamespace(optimizer=object(), replay=lambda replay, mode: iter(()))
    assert as_backend(own) is own
