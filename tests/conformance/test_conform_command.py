"""The command `gravity conform` in its own process, on good and bad implementations."""

import functools
import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from gravity_conformance import _html
from gravity_conformance.conform import report as reports
from gravity_conformance.conform.checks.registry import CHECKS
from gravity_conformance.conform.runner import Report, Result
from gravity_conformance.mutations import MUTATIONS
from tests.support.command import RIGHT, gravity_conform, quick, without, written

FRAMEWORKS = ("torch", "jax", "optax", "tensorflow", "keras")


@pytest.fixture
def odd(tmp_path):
    return functools.partial(written, tmp_path)


def outcomes(report):
    return {line.check: line.outcome for line in report.results}


@pytest.mark.parametrize(
    ("code", "attribute", "message"),
    [
        ("", "nothing", "odd.py has no nothing"),
        ("1 +", "right", "SyntaxError"),
        ("import not_there", "right", "ModuleNotFoundError: No module named 'not_there'"),
        ("raise SystemExit(0)", "right", "SystemExit: 0"),
        ("os._exit(0)", "right", "before the first check: its process ended with status 0"),
        ("def step(a, b): pass", "step", "a function of (a, b)"),
        ("step = 3", "step", "of type int"),
        ("class step:\n    def __init__(self, a, b): pass", "step", "got the class step"),
        ("class T:\n    init = update = 1\nstep = T()", "step", "got an optax transformation"),
    ],
)
def test_an_unusable_spec_gives_one_line_and_status_2(odd, code, attribute, message):
    report = quick(odd(code, attribute))
    assert report.status == 2
    assert report.results == []
    assert message in report.error
    assert "\n" not in report.error
    assert reports.text(report).endswith(f"conform: could not run: {report.error}\n")


def test_a_placeholder_that_is_none_of_ours_is_refused(odd):
    report = quick(odd("", "right"), kw={"lr": "{eta}"})
    assert report.status == 2
    assert "--kw lr must be a literal or one of {learning_rate}, " in report.error


@pytest.mark.parametrize("spec", ["", "odd", ":step", "odd:", "/none/odd.py:step"])
def test_a_spec_without_a_target_is_refused(spec):
    done = gravity_conform(spec)
    assert done.returncode == 2
    assert "conform: could not run: " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("torch", "right", "constructed as torch from an iterator of one parameter (see --kind, "),
        ("optax", "right", "cannot be constructed as optax (see --kind, --kw): "),
        ("plain", "os", "got an object of type module"),
        ("plain", "sleep", "could not run: error in 2 of 2 checks"),
    ],
)
def test_a_wrong_kind_gives_one_line_and_status_2(odd, kind, spec, message):
    sleep = "def sleep(*arguments): time.sleep(*arguments)"  # its signature accepts everything
    report = quick(odd(sleep, spec), kind=kind, only=["convention", "update"])
    assert report.status == 2
    assert message in reports.verdict(report)
    assert "\n" not in reports.verdict(report)


# The body of `step`, the outcome, and a part of the message.
MISBEHAVIOUR = {
    "raises": ("raise ValueError('two\\nlines')", "error", "ValueError: two lines"),
    "exits": ("sys.exit(0)", "error", "SystemExit: 0"),
    "shape": (
        "return right(w, v, g, t, lr, beta)[0][..., None], v",
        "differs",
        "W of tensor 0 must",
    ),
    "dtype": (
        "return tuple(np.float64(x) for x in right(w, v, g, t, lr, beta))",
        "differs",
        "must be float32 of shape",
    ),
    "none": ("return None", "error", "TypeError: it must return (w, v), got NoneType"),
    "text": ("return 'wv'", "error", "it must return (w, v), got str"),
    "lists": ("return [x.tolist() for x in right(w, v, g, t, lr, beta)]", "differs", "got list"),
    "nan": ("return w * np.nan, v * np.nan", "differs", ": nan, not "),
    "nothing": ("return w, v", "differs", "V of tensor 0 after step 1"),
    "exchanged": ("return right(w, v, g, t, lr, beta)[::-1]", "differs", "V of tensor 0"),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_misbehaving_function_does_not_pass(odd, name):
    code, outcome, message = MISBEHAVIOUR[name]
    report = quick(odd(f"def step(w, v, g, t, lr, beta):\n    {code}"), only=["update"])
    (line,) = report.results
    assert line.outcome == outcome
    assert message in f"{line.note} {line.first}"
    assert report.status == (2 if outcome == "error" else 1)
    assert "Traceback" not in reports.text(report)


def test_writes_to_inputs_are_caught(odd):
    for name in "wvg":
        code = "def step(w, v, g, t, lr, beta):\n    result = right(w, v, g, t, lr, beta)\n"
        code += f"    {name} += 1\n    return result"
        report = quick(odd(code), only=["update", "gradient"])
        # The implementation receives copies, so the update itself is right.
        assert outcomes(report) == {"update": "pass", "gradient": "differs"}
        assert report.results[1].diagnosis == (
            "gradient overwritten" if name == "g" else "inputs overwritten"
        )


def test_a_hanging_function_is_killed_and_other_checks_run(odd):
    code = "def step(w, v, g, t, lr, beta):\n    while w.dtype == np.float64: time.sleep(1)\n"
    code += "    return right(w, v, g, t, lr, beta)"
    report = quick(odd(code), only=["update", "float64", "gradient"], timeout=3)
    assert outcomes(report) == {"update": "pass", "float64": "error", "gradient": "pass"}
    notes = {line.check: line.note for line in report.results}
    assert notes["float64"] == "no answer in 3 s (see --timeout)"
    assert report.status == 1


def test_a_function_that_exits_its_process_never_passes(odd):
    code = "def step(w, v, g, t, lr, beta):\n    os._exit(0)"
    report = quick(odd(code), only=["update", "trajectory", "long", "float64", "float16"])
    assert set(outcomes(report).values()) == {"error"}
    assert len(report.results) == 5
    assert report.status == 2


def test_a_hanging_module_is_killed():
    report = quick("time:sleep", timeout=0.01)
    assert report.status == 2
    assert report.error == "before the first check: no answer in 0.01 s (see --timeout)"


def test_the_output_of_the_implementation_is_left_out(odd):
    code = 'print(\'{"event": "done", "printed": 0}\')\n'
    code += "def step(w, v, g, t, lr, beta):\n"
    code += "    print('hello'); os.write(1, b'raw'); os.write(2, b'raw'); sys.stdout.flush()\n"
    code += "    sys.stdin.read()\n    return right(w, v, g, t, lr, beta)"
    done = gravity_conform(odd(code), "--quick", "--only", "update")
    assert done.returncode == 0, done.stdout
    assert "hello" not in done.stdout
    assert re.search(r"^the implementation printed \d+ bytes", done.stdout, re.MULTILINE)
    assert done.stderr == ""


def test_a_check_that_could_not_run_does_not_count_as_passed():
    results = [Result(outcome, check="update", title="one update") for outcome in ("pass", "error")]
    assert Report("a:b", "plain", results=results).status == 1
    assert Report("a:b", "plain", results=results[:1]).status == 0
    assert Report("a:b", "plain", results=results[1:]).status == 2
    none = Result("not applicable", check="v0", title="V₀")
    assert Report("a:b", "plain", results=[none]).status == 2
    assert Report("a:b", "plain").status == 2


def test_json_and_html(tmp_path, odd):
    spec = odd("")
    spec = spec.replace(":step", ":right")
    json_file, html_file = tmp_path / "report.json", tmp_path / "report.html"
    done = gravity_conform(spec, "--quick", "--json", json_file, "--html", html_file)
    assert done.returncode == 0, done.stdout
    found = json.loads(json_file.read_text(encoding="utf-8"))
    assert found["status"] == 0
    assert found["kind"] == "plain"
    quick = {name: check for name, check in CHECKS.items() if check.quick}
    assert [line["check"] for line in found["results"]] == list(quick)
    page = html_file.read_text(encoding="utf-8")
    HTMLParser().feed(page)
    for check in quick.values():
        assert f"<td>{check.title}</td>" in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for drawing in drawings:
        ET.fromstring(drawing)
    titles = ["first element of W (thick: exact)", "first element of W − exact", "max |W − exact|"]
    assert re.findall(r'<svg role="img" aria-label="([^"]*)"', page) == titles
    # The page is one file and loads nothing. It has the style of parity's pages.
    assert not re.search(r"<(script|link|img)|src=|@import", page)
    assert f"<style>{_html.STYLE}</style>" in page
    assert f"gravity conform {spec} --quick" in page


def test_list_names_every_check_and_mistake():
    done = gravity_conform("--list")
    assert done.returncode == 0
    for name in CHECKS:
        assert re.search(rf"^  {name} +\S", done.stdout, re.MULTILINE)
    for variant in MUTATIONS:
        assert f"\n  {variant.description}\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'SPEC'"),
        (["a:b", "--only", "nope"], "'nope' is not one of"),
        (["a:b", "--kind", "nope"], "'nope' is not one of"),
        (["a:b", "--kw", "beta"], "--kw must be NAME=VALUE, got 'beta'"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(arguments, message):
    done = gravity_conform(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gravity: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_arguments_by_other_names(tmp_path):
    path = tmp_path / "other.py"
    path.write_text(
        RIGHT + "def step(W, V, G, time, rate, momentum, *, ascend=False, power=1, lam=0.0):\n"
        "    return right(W - rate * lam * W, V, -G if ascend else G, time, rate, momentum * power)"
    )
    given = {"ascend": "{maximize}", "lam": "{weight_decay}", "power": "1.0"}
    checks = ["update", "maximize", "weight-decay"]
    report = quick(f"{path}:step", kw=given, only=checks)
    assert report.arguments == {"maximize": "ascend", "weight_decay": "lam"}
    assert outcomes(report) == dict.fromkeys(checks, "pass")
    wrong = quick(f"{path}:step", kw=given | {"power": "0.5"}, only=checks)
    assert set(outcomes(wrong).values()) == {"differs"}


@pytest.mark.slow
def test_with_numpy_alone(odd):
    """Neither the frameworks nor the packages of the command line are installed."""
    refused = (*FRAMEWORKS, "click", "rich", "matplotlib", "sklearn", "scipy", "ml_dtypes")
    code = without(refused)
    spec = odd(code).replace(":step", ":right")
    module = "gravity_conformance.conform"
    run = f"import runpy\nsys.argv = ['conform', {spec!r}]\nrunpy.run_module({module!r}, "
    run += "run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code + run], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("conform: conforms in float32 and float64; ")


ADAPTERS = {"torch": "gravity_torch:Gravity", "jax": "gravity_jax:gravity"}
ADAPTERS["tensorflow"] = "gravity_tf:Gravity"


@pytest.mark.slow
@pytest.mark.parametrize("framework", ADAPTERS)
def test_our_adapters_conform(framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"the adapter needs {framework}")
    report = quick(ADAPTERS[framework], only=list(CHECKS))
    assert report.status == 0, reports.text(report)
    assert len(report.results) == len(CHECKS)
