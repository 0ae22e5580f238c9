"""The site's own code: links that leave docs/, docstrings, and the check of the API pages."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("sphinx", reason="the site needs the extra docs")


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "_site" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_leads_to_the_same_file_from_the_site(pages):
    text = "[a](docs/state.md#the-file) [b](#here) [c](https://example.org) [d](docs/none.md)"
    assert pages.relinked(text, "CHANGELOG.md", "docs/about/changelog.md") == (
        "[a](../state.md#the-file) [b](#here) [c](https://example.org) [d](docs/none.md)"
    )


def test_a_link_to_a_shown_file_leads_to_its_page(pages):
    text = "[a](../SECURITY.md) [b](../tests/conftest.py) [c](torch.md)"
    assert pages.relinked(text, "docs/reliability.md", "docs/reliability.md") == (
        "[a](about/security.md) [b](../tests/conftest.py) [c](torch.md)"
    )


def test_each_shown_file_has_a_page_that_links_to_it(pages):
    for page, file in pages.SHOWN.items():
        path = ROOT / "docs" / f"{page}.md"
        (target,) = re.findall(r"\]\((.*?)\)", path.read_text(encoding="utf-8"))
        assert (path.parent / target).resolve() == ROOT / file


def test_a_name_without_an_entry_is_found(pages):
    pytest.importorskip("torch")
    pytest.importorskip("optax")
    pytest.importorskip("keras")
    names = pages.undocumented([])
    assert {"gravity_core.update", "gravity_torch.Gravity", "gravity_jax.gravity"} < set(names)
    assert {"gravity_tf.Gravity", "gravity_conformance.protocol.Backend"} < set(names)
    assert "gravity_conformance.protocol.np" not in names
    assert pages.undocumented(names) == []


def test_bars_and_stars_of_a_docstring_stay(pages):
    lines = ["max|G| and `|G|` and *", "Example:", "    >>> a * b | c"]
    pages.read_docstring(None, "function", "name", None, None, lines)
    assert lines == [r"max\|G\| and `|G|` and \*", "Example:", "    >>> a * b | c"]


def test_a_literal_block_of_a_docstring_stays(pages):
    bound = ["      e * |V|", "      e", ""]
    math = [".. math::", r"    \max|G|", ""]
    lines = ["- The bound:", "", *bound, "  and |W|", "", *math, "Args:", "    x: a|b"]
    pages.read_docstring(None, "class", "name", None, None, lines)
    after = [r"  and \|W\|", "", *math, "Args:", r"    x: a\|b"]
    assert lines == ["- The bound:", "", "  ::", "", *bound, *after]


PAGE = """
# A page

## A section

<!-- tabs -->

### First

$\\lvert g\\rvert \\lt 1$

### Second

FORMULA

## Another section

Some ($x$), $y$ and $-z$.

| head | head |
|---|---|
| a cell with quite a few words | short |
"""


@pytest.mark.parametrize(
    ("formula", "right"), [("$\\sin x^2 \\hat x_1$", True), ("$\\nosuchcommand$", False)]
)
def test_a_page_with_tabs_and_formulas(formula, right, tmp_path):
    (tmp_path / "conf.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'docs' / '_site')!r})\n"
        'extensions = ["myst_parser", "sphinx_design", "tabs_and_formulas"]\n'
        'html_math_renderer, myst_enable_extensions = "mathml", ["dollarmath"]\n'
    )
    (tmp_path / "tabs_and_formulas.py").write_text(
        "import pages\n"
        "def setup(app):\n"
        "    app.add_html_math_renderer('mathml', (pages.mathml, None), (pages.mathml, None))\n"
        "    for transform in (pages.Tabs, pages.LongCells, pages.Unbroken):\n"
        "        app.add_transform(transform)\n"
    )
    (tmp_path / "index.md").write_text(PAGE.replace("FORMULA", formula))
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ".", "out"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) is right, done.stderr
    if not right:
        assert "not a formula" in done.stderr
        return
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    labels = re.findall(r'<label [^>]*class="sd-tab-label"[^>]*>\s*(\w+)', html)
    assert labels == ["First", "Second"]
    first, second, *others = re.findall(r"<math.*?</math>", html, re.DOTALL)
    assert "&lt;" in first
    assert "<msup>" in second
    assert re.search('<mo [^>]*lspace="0.17em"[^>]*>sin</mo>', second)
    assert re.search(r"<msub><mover><mi>x</mi><mo[^>]*>ˆ</mo></mover><mn>1</mn></msub>", second)
    unbroken = re.findall(r'<span class="unbroken">(.*?)<math.*?</math>(.*?)</span>', html, re.S)
    assert unbroken == [("(", "),"), ("", ".")]
    assert len(others) == 3
    (cell,) = re.findall(r"<td[^>]*long[^>]*>\s*<p>(.*?)</p>", html)
    assert cell == "a cell with quite a few words"


def test_every_page_is_in_one_table_of_contents():
    """The site reaches every page, so that each has a next and a previous one."""
    docs = ROOT / "docs"
    entries = []
    for page in docs.rglob("*.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            entries += [(page.parent / f"{name}.md").resolve() for name in names]
    assert len(entries) == len(set(entries))
    assert set(docs.rglob("*.md")) - set(entries) == {docs / "index.md"}
