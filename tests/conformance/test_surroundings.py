"""The environment and the folder of the caller do not change what a command reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gravity_conformance import _caller, _drawing
from tests.support.command import RIGHT, gravity, gravity_conform, written
from tests.support.limits import HANG

pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")

C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ALONE = {
    "Jupyter": {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "LaTeX": {"MATPLOTLIBRC": "matplotlibrc", "TERM": "dumb"},
    "C": C_LOCALE,
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252:strict", "NO_COLOR": "1"},
    "colour": {"FORCE_COLOR": "1", "TERM": "xterm-256color"},
}
# One with several at once; the profile `thorough` has each alone, too.
SURROUNDINGS = {"many": ALONE["LaTeX"] | ALONE["Jupyter"] | ALONE["C"] | ALONE["cp1252"]}
if os.environ.get("HYPOTHESIS_PROFILE") == "thorough":
    SURROUNDINGS |= ALONE
HIDDEN = ("torch", "numpy", "random", "json", "matplotlib", "click", "typing", "traceback")


@pytest.fixture
def place(tmp_path):
    """A folder with a function to check, LaTeX in matplotlibrc, and files that hide modules."""
    (tmp_path / "code").mkdir()
    written(tmp_path / "code", "")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 90\n")
    for name in HIDDEN:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('this is {name} of the caller')")
    return tmp_path


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_conform_reports_the_same_everywhere(name, place):
    arguments = ["code/odd.py:right", "--only", "update", "--only", "trajectory", "--quick"]
    done = gravity_conform(
        *(*arguments, "--json", "-", "--html", "a.html"), cwd=place, env=SURROUNDINGS[name]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [r["outcome"] for r in json.loads(done.stdout)["results"]] == ["pass", "pass"]
    assert "η" not in (place / "a.html").read_text(encoding="utf-8")  # it has no mistake to mend
    assert "β" in done.stdout or "check" in done.stdout
    done = gravity_conform(*arguments, cwd=place, env=SURROUNDINGS[name])
    assert (done.returncode, done.stderr) == (0, "")
    assert "conform: conforms" in done.stdout


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_parity_reports_the_same_everywhere(name, place):
    arguments = [
        "parity",
        "--backend",
        "numpy",
        "--dtype",
        "float32",
        "--steps",
        "2",
        "--html",
        "a.html",
    ]
    done = gravity(*arguments, cwd=place, env=SURROUNDINGS[name])
    assert (done.returncode, done.stderr) == (0, "")
    assert "parity: every backend present is exact or bounded" in done.stdout
    assert {p.name for p in (place / "parity").iterdir()} == {
        "parity.json", "parity.md", "parity.png"
    }  # fmt: skip
    assert "<svg" in (place / "a.html").read_text(encoding="utf-8")


def test_conform_without_click_ignores_the_current_folder(place):
    command = [sys.executable, "-m", "gravity_conformance.conform", "code/none.py:right"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 2
    assert done.stderr == ""
    assert "there is no file code/none.py" in done.stdout


def test_json_is_utf_8_on_a_terminal_without_greek(place):
    wrong = RIGHT + "def step(w, v, g, t, lr, beta):\n    return right(w, v, g, t - 1, lr, beta)"
    (place / "code" / "odd.py").write_text(wrong, encoding="utf-8")
    words = ["code/odd.py:step", "--only", "update", "--quick"]
    environment = {"PYTHONIOENCODING": "ascii"}
    done = gravity_conform(*words, "--json", "-", cwd=place, env=environment, errors="strict")
    assert json.loads(done.stdout)["diagnoses"] == ["β̂ uses t − 1"]
    done = gravity_conform(*words, cwd=place, env=environment, errors="strict")
    assert done.returncode == 1
    assert "diagnosis: ?? uses t ? 1" in done.stdout


def test_drawing_changes_no_setting_of_the_caller():
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "font.size": 90}):
        before = dict(matplotlib.rcParams)
        with _drawing.clean():
            figure, axes = _drawing.figure((3, 3))
            axes[0, 0].set_title("β̂")
            assert _drawing.png(figure).startswith(b"\x89PNG")
            assert matplotlib.rcParams["font.size"] == 10
        assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_variables_of_jax_do_not_change_the_verdict():
    pytest.importorskip("optax", reason="it is about JAX's variables")
    environment = dict.fromkeys(("JAX_DEBUG_NANS", "JAX_DEBUG_INFS"), "1")
    environment |= {"JAX_TRANSFER_GUARD": "disallow", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    environment |= {"JAX_CHECK_TRACER_LEAKS": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    checks = ["--quick", "--only", "update", "--only", "non-finite", "--only", "huge"]
    done = gravity_conform("gravity_jax:gravity", *checks, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.slow
def test_keras_json_does_not_change_the_verdict(tmp_path):
    pytest.importorskip("tensorflow", reason="it is about Keras on TensorFlow")
    settings = {"floatx": "float16", "epsilon": 1e-3, "backend": "torch"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    environment = {"KERAS_HOME": str(tmp_path), "KERAS_MAX_STEPS_PER_EPOCH": "1"}
    checks = ["--quick", "--only", "update", "--only", "compiled"]
    done = gravity_conform("gravity_tf:Gravity", *checks, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert " tensorflow " in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "backend"),
    [('{"backend": "jax"}', "jax"), ('{"floatx": "float16"}', None), ("[", None)],
)
def test_only_the_backend_of_keras_json_counts_and_only_without_tensorflow(
    text, backend, tmp_path, monkeypatch
):
    (tmp_path / "keras.json").write_text(text)
    monkeypatch.setattr(os, "environ", {"KERAS_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _caller.without_settings()
    assert os.environ.get("KERAS_BACKEND") == backend
    assert os.environ["KERAS_HOME"] == os.devnull
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    monkeypatch.setattr(os, "environ", {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch"})
    _caller.without_settings()
    assert os.environ["KERAS_BACKEND"] == "torch"


@pytest.mark.parametrize("other", [False, True])
def test_a_checkout_that_is_not_installed_still_runs(other, tmp_path):
    """`python -m` finds it in the current folder, also where another version is installed."""
    import array_api_compat
    import numpy as np

    root = Path(_caller.__file__).parents[1]
    for name in ("gravity_core", "gravity_conformance"):
        (tmp_path / name).symlink_to(root / name)
    code = tmp_path / "code"
    code.mkdir()
    written(code, "")
    packages = [str(Path(module.__file__).parents[1]) for module in (np, array_api_compat)]
    if other:
        (tmp_path / "installed").mkdir()
        (tmp_path / "installed" / "gravity_core.py").write_text("raise SystemError('it is older')")
        packages.insert(0, str(tmp_path / "installed"))
    command = [sys.executable, "-S", "-m", "gravity_conformance.conform", "code/none.py:right"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(packages)},
    )
    assert "there is no file code/none.py" in done.stdout, done.stderr
