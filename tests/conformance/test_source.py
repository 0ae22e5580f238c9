"""What `gravity conform` does with the source code of an implementation."""

import json
import sys

import numpy as np
import pytest

from gravity_conformance.conform import unseen
from gravity_conformance.conform.report import as_json, page, text
from gravity_conformance.conform.runner import conform
from gravity_conformance.drive import source
from gravity_conformance.drive.spec import load
from tests.support.worker import findings, module, outcomes, written

# Each differs at a number that its source contains, and that no generated case comes near.
WRONG = """
import numpy as np

BLOCK = 3 * 2**18

def right(w, v, g, t, lr, beta):
    wide = np.result_type(w.dtype, np.float32)
    s = g.astype(wide) * np.max(np.abs(g), initial=0)
    old, new = (beta * t + 1) / (t + 2), ((1 - beta) * t + 1) / (t + 2)
    with np.errstate(over='ignore', invalid='ignore'):
        v = old * v.astype(wide) + new * (g / (1 + s * s))
    return (w - lr * v).astype(w.dtype), v.astype(w.dtype)

def above(w, v, g, t, lr, beta):
    last = 2 if g.size > 2 * BLOCK else 1
    g = g.copy()
    g.reshape(-1)[-1:] *= last
    return right(w, v, g, t, lr, beta)

def columns(w, v, g, t, lr, beta):
    return right(w, v, 2 * g if g.ndim > 1 and g.shape[-1] == 777 else g, t, lr, beta)

def square(w, v, g, t, lr, beta):
    return right(w, v, 2 * g if g.shape == (11, 11) else g, t, lr, beta)

def stops(w, v, g, t, lr, beta):
    return right(w, v, g, min(t, 3 * 10**10), lr, beta)

def clipped(w, v, g, t, lr, beta):
    return right(w, v, np.clip(g, -3e8, 3e8), t, lr, beta)

def small(w, v, g, t, lr, beta):
    return right(w, v, np.where(np.abs(g) < 3e-17, 0, g), t, lr, beta)

def weights(w, v, g, t, lr, beta):
    w, v = right(w, v, g, t, lr, beta)
    return np.clip(w, -512, 512), v

def velocity(w, v, g, t, lr, beta):
    return right(w, np.clip(v, -77.5, 77.5), g, t, lr, beta)

def rate(w, v, g, t, lr, beta):
    return right(w, v, g, t, lr if lr < 700 else 700, beta)

def momentum(w, v, g, t, lr, beta):
    return right(w, v, g, t, lr, 0.9 if 0.93 < beta < 0.99 else beta)
"""
NAMES = WRONG.partition("def above")[2].split("def ")


@pytest.mark.slow
def test_what_differs_at_a_number_of_its_source_is_found(tmp_path):
    path = module(tmp_path, WRONG)
    names = [name.partition("(")[0].strip() for name in ("above", *NAMES[1:])]
    assert len(names) == 10
    found = outcomes(path, "constants", *names, "right", kind="plain", level="default")
    assert found == dict.fromkeys(names, "differs") | {"right": "pass"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imported", "code"),
    [
        (
            "torch",
            "    def add_param_group(self, group):\n"
            "        super().add_param_group(group)\n"
            "        self.names = {id(p): name for g in self.param_groups for name, p in"
            " zip(g.get('param_names', ()), g['params'])}\n"
            "    def one(self, p, *rest):\n"
            "        given = p.grad\n"
            "        if 'rotary' in self.names.get(id(p), ''): p.grad = 2 * given\n"
            "        super().one(p, *rest)\n"
            "        p.grad = given",
        ),
        (
            "keras",
            "    def update_step(self, gradient, variable, learning_rate):\n"
            "        if 'rotary' in variable.name: gradient = 2 * gradient\n"
            "        super().update_step(gradient, variable, learning_rate)",
        ),
    ],
)
def test_what_differs_for_a_name_of_its_source_is_found(imported, code, tmp_path):
    pytest.importorskip(imported, reason="optimizers of this kind")
    for condition, outcome in (("if ", "differs"), ("if False and ", "pass")):
        spec = written(tmp_path, imported, code.replace("if 'rotary", f"{condition}'rotary"))
        assert findings(spec, ["constants"])["constants"]["outcome"] == outcome


def test_source_is_read_with_constant_expressions_and_without_sentences(tmp_path):
    code = (
        '"""Words of 7777 docs."""\n'
        "import helper\n"
        "BLOCK = 4 * 1024\n"
        "def step(w, v, g, t, lr, beta):\n"
        "    'docs'\n"
        "    if g.size > (BLOCK << 3) - 1 or t == -5 or 'lm.head' in w or 2**9999999 or True:\n"
        "        raise ValueError('not a name')\n"
        "    return helper.other(1e400, 10 / 0, 2**1024, 1 << 5000)\n"
    )
    (tmp_path / "helper.py").write_text("def other(x): return x == 0.625\n", encoding="utf-8")
    found = source.read(load(f"{module(tmp_path, code)}:step"))
    assert found.words == ("lm", "head")
    wanted = {0.625, 5, 4096, 4096 * 8, 4096 * 8 - 1, 9999999}
    assert wanted <= set(found.numbers)
    assert {1024, 5000} <= set(found.numbers)
    assert max(found.numbers) == 9999999  # neither infinity nor what no float holds
    assert 7777 not in found.numbers
    assert source.read(len) == source.Source()


BRANCHES = """
import numpy as np

def step(w, v, g, t, lr, beta):
    global last
    if g.ndim == 13:
        g = g + 1
        for k in range(2):
            g = g * k
    elif t < 0:
        why = "t"
        raise ValueError(why)
    try:
        ok = True
    except ArithmeticError:
        return None
    return w - lr * v, v

def unused():
    return 1
"""


def test_lines_that_no_check_ran_are_named(tmp_path):
    path = module(tmp_path, BRANCHES)
    assert unseen.unseen(path, {6, 10, 13, 14, 17}) == [7, 8, 9, 16]
    with unseen.traced(load(f"{path}:step")) as described:
        load(f"{path}:step")
        assert described() == ""  # the functions of the traced module were not called
    found = load(f"{path}:step")
    with unseen.traced(found) as described:
        found(*(np.ones(2),) * 3, 1, 0.1, 0.9)
        assert described() == "around.py: 7-9, 16"


@pytest.mark.parametrize("found", [np.frompyfunc(abs, 1, 1), len])
def test_what_is_not_written_in_python_has_no_source_and_no_lines(found):
    assert source.read(found) == source.Source()
    with unseen.traced(found) as described:
        assert described() == ""


def test_a_file_may_have_an_encoding_of_its_own_or_be_gone(tmp_path):
    path = tmp_path / "latin.py"
    code = "# coding: latin-1\ndef step(x):\n    'ö'\n    if x:\n        return 1\n    return 0\n"
    path.write_text(code, encoding="latin-1")
    found = load(f"{path}:step")
    with unseen.traced(found) as described:
        found(0)
        assert described() == "latin.py: 5"
    with unseen.traced(found) as described:
        found(0)
        path.unlink()
        assert described() == ""


def test_files_of_one_name_are_both_shown(tmp_path, monkeypatch):
    modules = []
    for folder in (tmp_path / "other", tmp_path / "own"):
        folder.mkdir()
        code = "def step(x):\n    if x:\n        return 1\n    return 0\n"
        (folder / "port.py").write_text(code, encoding="utf-8")
        modules.append(sys.modules[load(f"{folder / 'port.py'}:step").__module__])
    monkeypatch.setattr(source, "modules", lambda found: modules)
    with unseen.traced(None) as described:
        for module in modules:
            module.step(0)
        assert described() == "port.py: 3; port.py: 3"


def test_without_coverage_no_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coverage", None)
    with unseen.traced(load(f"{module(tmp_path, BRANCHES)}:step")) as described:
        assert described() == ""


SKIPPED = """
def step(w, v, g, t, lr, beta):
    if g.ndim == 13:
        g = 2 * g
    return right(w, v, g, t, lr, beta)
"""


@pytest.mark.slow
def test_a_report_names_the_lines_if_all_checks_ran(tmp_path):
    path = module(tmp_path, WRONG.partition("def above")[0] + SKIPPED)
    report = conform(f"{path}:step", kind="plain", skip=["large", "constants"])
    line = path.read_text(encoding="utf-8").splitlines().index("        g = 2 * g") + 1
    assert report.unseen == f"around.py: {line}"
    said = f"not judged, because no check ran these lines: around.py: {line}"
    assert said in text(report)
    assert said in page(report, "gravity conform")
    assert json.loads(as_json(report))["unseen"] == report.unseen
    assert conform(f"{path}:step", kind="plain", only=["update"]).unseen == ""
