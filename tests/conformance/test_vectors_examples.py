"""The shipped examples: a port to JavaScript, its run on the vectors, and the bridge to Python."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gravity_conformance.conform.verdict import sentence
from gravity_conformance.explain import explain
from gravity_conformance.vectors import files
from gravity_core import update
from tests.support.command import quick
from tests.support.limits import HANG

VECTORS = Path(files()[0].parent)
EXAMPLES = VECTORS / "examples"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="the port is to JavaScript and needs node")
FLOATS = ("update", "trajectory", "float64", "non-finite", "maximize", "weight-decay", "gradient")


def copied(folder, *changes):
    """Copy the examples and replace parts of their text; return the folder."""
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    for file, old, new in changes:
        text = (folder / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, (old, text.count(old))
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def run_vectors(folder, results):
    command = [NODE, folder / "run_vectors.mjs", VECTORS, results]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, encoding="utf-8")


# The run on the vectors


@needs_node
def test_a_port_to_another_language_needs_only_the_readme(tmp_path):
    """The port follows the README, reads no hexadecimal floats, and computes V₀ from z."""
    done = run_vectors(EXAMPLES, tmp_path / "results.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"[0-9]{4} results compared, 0 wrong\n", done.stdout)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert explain(text).endswith(" tests were run, and none failed. There is nothing to explain.")


PORT, JUDGE = "gravity.mjs", "judge.mjs"
LARGEST = "g.reduce((largest, x) => Math.max(largest, Math.abs(x)), 0)"
S = "const s = fl(x * largest);"
ZETA = "return fl(x / fl(1 + fl(s * s)));"
COEFFICIENTS = "const [old, next] = coefficients(t, beta, dtype);"
STEP = "fl(fl(keep * x) - fl(rate * velocity[i]))"
KEEP = "fl(1 - lr * weight_decay)"
STD = "velocity_std ?? (learning_rate === 0 ? 0 : alpha / learning_rate)"
KEY = "threefry(seed, [0, index])"
FLIP = "maximize ? g.map((x) => -x) : g;"
PLANTED = {
    "max|G| is the max of G": (PORT, LARGEST, "g.reduce((a, b) => Math.max(a, b), -Infinity)"),
    "mean in place of max": (
        *(PORT, LARGEST),
        "(g.length ? g.reduce((sum, x) => sum + Math.abs(x), 0) / g.length : 0)",
    ),
    "norm in place of max": (PORT, LARGEST, "Math.sqrt(g.reduce((sum, x) => sum + x * x, 0))"),
    "m is max|G|, not 1 / max|G|": (PORT, S, "const s = largest ? fl(x / largest) : 0;"),
    "m per element, not per tensor": (PORT, S, "const s = fl(x * Math.abs(x));"),
    "missing square": (PORT, ZETA, "return fl(x / fl(1 + Math.abs(s)));"),
    "1e-8 is added to the denominator": (PORT, ZETA, "return fl(x / fl(1e-8 + 1 + fl(s * s)));"),
    "ζ is the bare gradient": (PORT, ZETA, "return x;"),
    "what is not finite is replaced by 0": (
        *(PORT, FLIP),
        "g.map((x) => (Number.isFinite(x) ? (maximize ? -x : x) : 0));",
    ),
    "maximize ignored": (PORT, FLIP, "g;"),
    "gradient negated in place": (
        *(PORT, FLIP),
        "g;\n  if (maximize) g.forEach((x, i) => { g[i] = -x; });",
    ),
    "β̂ uses t − 1": (PORT, COEFFICIENTS, "const [old, next] = coefficients(t - 1, beta, dtype);"),
    "β̂ uses t + 1": (PORT, COEFFICIENTS, "const [old, next] = coefficients(t + 1, beta, dtype);"),
    "β in place of β̂": (PORT, COEFFICIENTS, "const [old, next] = [fl(beta), fl(1 - beta)];"),
    "(1 − β̂) omitted": (
        PORT,
        COEFFICIENTS,
        "const [old, next] = [coefficients(t, beta, dtype)[0], 1];",
    ),
    "β̂ and 1 − β̂ exchanged": (
        *(PORT, COEFFICIENTS),
        "const [next, old] = coefficients(t, beta, dtype);",
    ),
    "1 − β̂ taken as a difference, which loses digits": (
        *(PORT, COEFFICIENTS),
        "const old = coefficients(t, beta, dtype)[0], next = fl(1 - old);",
    ),
    "W moves by +η V": (PORT, STEP, "fl(fl(keep * x) + fl(rate * velocity[i]))"),
    "learning rate applied twice": (
        PORT,
        STEP,
        "fl(fl(keep * x) - fl(rate * fl(rate * velocity[i])))",
    ),
    "weight decay is not scaled by the learning rate": (PORT, KEEP, "fl(1 - weight_decay)"),
    "weight decay after the step, not beside it": (
        *(PORT, STEP),
        "fl(keep * fl(x - fl(rate * velocity[i])))",
    ),
    "weight decay ignored": (PORT, KEEP, "1"),
    "0 · ∞ in W where there is no weight decay": (
        *(PORT, STEP),
        "fl(fl(x - fl(lr * weight_decay * x)) - fl(rate * velocity[i]))",
    ),
    "the learning rate of the constructor is used throughout": (
        *(JUDGE, "lr: step.learning_rate.decimal"),
        "lr: test.hyperparameters.learning_rate.decimal",
    ),
    "V₀ std is α, not α / η": (PORT, STD, "velocity_std ?? alpha"),
    "V₀ std is α · η, not α / η": (PORT, STD, "velocity_std ?? alpha * learning_rate"),
    "V₀ std is 1": (PORT, STD, "velocity_std ?? 1"),
    "V₀ is zero": (PORT, STD, "velocity_std ?? 0"),
    "All tensors get the same V₀": (PORT, KEY, "threefry(seed, [0, 0])"),
    "V₀ does not depend on the seed": (PORT, KEY, "threefry([0, 0], [0, index])"),
    "The high 32 bits of the seed are lost": (PORT, KEY, "threefry([0, seed[1]], [0, index])"),
    "V₀ has other bits": (
        PORT,
        "[13, 15, 26, 6, 17, 29, 16, 24]",
        "[13, 15, 26, 6, 17, 29, 16, 23]",
    ),
    "The index of an element is held in 32 bits and wraps around": (
        *(PORT, "words(Math.floor(i / 4))"),
        "words(Math.floor((i % 2 ** 32) / 4))",
    ),
    "The block counter is held in 32 bits": (PORT, "[Math.floor(n / 2 ** 32), n", "[0, n"),
}


@needs_node
@pytest.mark.parametrize("name", PLANTED)
def test_a_mistake_that_is_planted_in_the_port_is_named(name, tmp_path):
    folder = copied(tmp_path / "port", PLANTED[name])
    done = run_vectors(folder, tmp_path / "failed.json")
    assert (done.returncode, done.stderr) == (1, "")
    text = explain((tmp_path / "failed.json").read_text(encoding="utf-8"))
    if name == "gradient negated in place":
        assert "A step changed a gradient array in " in text
    else:
        assert f"\nMistake: {name}.\n" in text


# The bridge


def loaded(folder, monkeypatch, command=None):
    """Return the module bridge.py of a folder, whose program ends with the test."""
    if command is not None:
        monkeypatch.setenv("GRAVITY_PORT", command)
    spec = importlib.util.spec_from_file_location("bridge_under_test", folder / "bridge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bridge(monkeypatch):
    modules = []

    def load(folder=EXAMPLES, command=None):
        modules.append(loaded(folder, monkeypatch, command))
        return modules[-1]

    yield load
    for module in modules:
        if module._process is not None:
            module._process.kill()
            module._end(module._process)


@pytest.mark.slow
@needs_node
def test_a_right_port_conforms_through_the_bridge():
    report = quick(f"{EXAMPLES / 'bridge.py'}:gravity", only=[*FLOATS, "float16"])
    found = {line.check: line.outcome for line in report.results}
    assert found == dict.fromkeys(FLOATS, "pass") | {"float16": "remark"}
    assert report.status == 0
    assert sentence(report).startswith("conforms in float32 and float64")
    assert sentence(report).endswith("float16: not offered")


@needs_node
def test_a_wrong_port_differs_through_the_bridge_and_is_named(tmp_path):
    folder = copied(tmp_path, PLANTED["missing square"])
    report = quick(f"{folder / 'bridge.py'}:gravity", only=["update", "trajectory"])
    assert report.status == 1
    assert {line.outcome for line in report.results} == {"differs"}
    assert report.diagnoses == ["missing square"]


@needs_node
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_cross_the_bridge_exactly(bridge, dtype):
    """With V = 0, G = 0 and η = 0, W stays, bit for bit: −0 − 0 is −0."""
    gravity, info = bridge().gravity, np.finfo(dtype)
    w = [0.1, -0.0, 0.0, np.inf, -np.inf, np.nan, info.max, info.smallest_subnormal, 1 + info.eps]
    w = np.asarray([w, w[::-1], w], dtype)
    zero = np.zeros_like(w)
    given = w.copy()
    after, _ = gravity(given, zero, zero, 1, 0.0, 0.9)
    assert after.dtype == w.dtype
    assert after.shape == w.shape
    assert given.tobytes() == w.tobytes()
    assert np.where(np.isnan(w), 0, after).tobytes() == np.where(np.isnan(w), 0, w).tobytes()
    assert np.isnan(after).tolist() == np.isnan(w).tolist()
    g = np.random.default_rng(0).standard_normal((4, 5)).astype(dtype)
    want = update(g, g, 3, beta=0.9)
    for _ in range(2):  # one process answers every call
        assert np.abs(gravity(g, g, g, 3, 0.1, 0.9)[1] - want).max() < 8 * info.eps
    zero_d = np.asarray(0.5, dtype)
    assert gravity(zero_d, zero_d, zero_d, 3, 0.1, 0.9)[0].shape == ()


def test_half_types_are_refused_before_a_program_starts(bridge):
    module = bridge()
    half = np.ones(2, np.float16)
    with pytest.raises(TypeError, match=r"float32 and float64 only, got float16"):
        module.gravity(half, half, half, 1, 0.1, 0.9)
    assert module._process is None


PROGRAMS = {
    "ends": ("raise SystemExit(3)", "has ended with status 3"),
    "ends later": ("input(); raise SystemExit(4)", "has ended with status 4"),
    "noise": ("input(); print('hello')", "an answer must be one line of JSON, got b'hello"),
    "a list": ("input(); print('[]')", "w must be a list of 2 numbers, got None"),
    "too short": ('input(); print(\'{"w": [1], "v": [1]}\')', "w must be a list of 2 numbers"),
    "refuses": ('input(); print(\'{"error": "no dtype"}\')', "the program refused: no dtype"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_errors_of_the_program_become_errors_of_python(bridge, case, tmp_path):
    code, message = PROGRAMS[case]
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    module = bridge(command=f"{sys.executable} {tmp_path / 'program.py'}")
    one = np.ones(2, np.float32)
    for _ in range(2 if case == "ends" else 1):  # the same error again, and no new program
        with pytest.raises(RuntimeError, match=re.escape(message)):
            module.gravity(one, one, one, 1, 0.1, 0.9)


@needs_node
def test_an_error_of_the_port_becomes_one_of_python_and_the_program_lives_on(bridge, tmp_path):
    wrong = (PORT, FLIP, f"{FLIP}\n  if (t === 7) throw new RangeError('no t');")
    gravity = bridge(copied(tmp_path, wrong)).gravity
    one = np.ones(2, np.float32)
    with pytest.raises(RuntimeError, match="the program refused: RangeError: no t"):
        gravity(one, one, one, 7, 0.1, 0.9)
    assert gravity(one, one, one, 1, 0.1, 0.9)[0].shape == (2,)


def test_the_program_ends_with_its_parent(tmp_path):
    """It reads to the end of its input, and then writes a file."""
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "for line in sys.stdin:\n"
        '    print(\'{"w": [1], "v": [1]}\', flush=True)\n'
        "open(sys.argv[1], 'w').write('ended')\n",
        encoding="utf-8",
    )
    command = f"{sys.executable} {tmp_path / 'program.py'} {tmp_path / 'ended'}"
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import numpy as np; import bridge\n"
        "one = np.ones(1); print(*bridge.gravity(one, one, one, 1, 0.1, 0.9))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-B", "-c", code],
        env={"GRAVITY_PORT": command, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1.] [1.]\n", "")
    assert (tmp_path / "ended").read_text() == "ended"


def test_the_page_links_every_example():
    text = (VECTORS / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(examples/(\S+?)\)", text))
    shipped = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert linked == shipped


def test_the_protocol_in_the_docstring_is_json():
    text = (EXAMPLES / "bridge.py").read_text(encoding="utf-8")
    request = re.search(r'\{"dtype": .*?\}', text, re.S).group()
    assert json.loads(request)["g"] == [0.5, "NaN"]
