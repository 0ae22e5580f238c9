"""`gravity parity --html`: one self-contained page with all results of the run."""

import json
import re
import shlex
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gravity_conformance import _drawing
from gravity_conformance.parity import page as pages
from gravity_conformance.parity import plots, report
from gravity_conformance.parity import run as parity
from gravity_conformance.parity.grading import Grade
from tests.support.command import gravity

pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")

NUMERICS = (Path(__file__).resolve().parents[2] / "docs" / "numerics.md").read_text("utf-8")
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects text, links and table rows, and asserts that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.rows, self.words, self.tags = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "action"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(self.words)


@pytest.mark.slow
def test_the_page_holds_the_run_and_the_command_that_reproduces_it(tmp_path):
    html = tmp_path / "deep" / "page.html"
    arguments = ["parity", "--backend", "numpy", "--steps", "4", "--seed", "9"]
    done = gravity(*arguments, "--out", str(tmp_path / "out"), "--html", str(html))
    assert done.returncode == 0, done.stderr
    assert f"wrote {html}" in done.stdout
    assert [p.name for p in html.parent.iterdir()] == ["page.html"]
    found = Reader(html.read_text(encoding="utf-8"))
    values = json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8"))
    result = parity.Report.from_json(values)
    for row in report.replay_rows(result) + report.training_rows(result):
        assert row in found.rows
    assert {row.dtype for row in result.replays} == {"float32", "float64"}
    for pair in values["versions"].items():
        assert list(pair) in found.rows
    assert f"To reproduce it: {shlex.join(['gravity', *arguments])}" in found.text
    assert values["date"] in found.text
    assert all(link.startswith("#") for link in found.links)
    for dtype in ("float32", "float64"):
        for title in (
            "Own gradients, {}",
            "Own gradients, {}: difference",
            "Replayed gradients, {}",
        ):
            assert f'aria-label="{title.format(dtype)}"' in html.read_text(encoding="utf-8")
    for title, text in pages.FACTS:
        assert f"{title}: {text}" in found.text
    program, *again = shlex.split(values["command"])
    assert [program, *again] == ["gravity", *arguments]
    done = gravity(*again, "--json", "--out", str(tmp_path / "again"))
    grades = [[row["grade"] for row in v["replays"]] for v in (values, json.loads(done.stdout))]
    assert grades[0] == grades[1]


EVIL = "<script>alert('x')</script>&\"><img src=http://example.org>"


def test_text_of_backends_is_escaped():
    result = parity.new_report(seed=0)
    result.versions[EVIL] = EVIL
    result.platform["cpu"] = EVIL
    result.command = EVIL
    result.replays.append(parity.ReplayRow(EVIL, EVIL, "eager", EVIL, error=EVIL))
    result.replays.append(
        parity.ReplayRow(
            "b", "m", "eager", "float32", grade=Grade("divergent", first_divergence=EVIL)
        )
    )
    result.trainings.append(parity.TrainingRow(EVIL, EVIL, error=EVIL))
    result.trainings += [
        parity.TrainingRow(name, EVIL, losses=[1.0], images=1) for name in (EVIL, "numpy")
    ]
    result.failures.append(EVIL)
    result.not_run[EVIL] = result.not_installed[EVIL] = EVIL
    text = pages.page(result)
    found = Reader(text)
    assert "script" not in found.tags
    assert "img" not in found.tags
    assert all(link.startswith("#") for link in found.links)
    assert found.text.count(EVIL) > 10
    assert "<script" not in text
    assert "FAILED" in found.text
    assert '<td class="bad">divergent</td>' in text
    assert '<td class="bad">error</td>' in text


def a_result():
    """Return a report with curves in two dtypes."""
    result = parity.new_report(seed=0)
    for dtype in ("float32", "float64"):
        grade = Grade("bounded", deviation=[1e-9, 2e-9], bound=[1e-7, 2e-7])
        result.replays.append(parity.ReplayRow("b", "m", "eager", dtype, grade=grade))
        for name, loss in (("numpy", 1.0), ("b", 1.0 + 1e-7)):
            result.trainings.append(
                parity.TrainingRow(name, dtype, losses=[loss, loss / 2], images=1)
            )
    return result


def test_the_drawings_of_a_page_are_whole_and_have_ids_of_their_own():
    text = pages.page(a_result())
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        ET.fromstring(drawing)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 6
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= set(ids)


@pytest.mark.parametrize("draw", [plots.losses, plots.loss_differences, plots.deviations])
def test_no_legend_covers_a_curve(draw):
    with _drawing.clean():
        figure, axes = _drawing.figure((4.4, 3.4))
        draw(axes[0, 0], a_result(), "float32")
        _drawing.legend_below(figure, axes[0, 0])
        figure.draw_without_rendering()
        (legend,) = figure.legends
        inside = axes[0, 0].get_window_extent()
        assert legend.get_window_extent().y1 <= axes[0, 0].get_tightbbox().y0  # with its labels
        assert inside.height > 0.5 * figure.bbox.height
        assert figure.bbox.x0 <= legend.get_window_extent().x0
        assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_the_difference_of_curves_that_coincide_is_drawn():
    with _drawing.clean():
        _, axes = _drawing.figure((4.4, 3.4))
        plots.loss_differences(axes[0, 0], a_result(), "float32")
        (curve,) = [line for line in axes[0, 0].get_lines() if line.get_label() == "b"]
        assert list(curve.get_ydata()) == [1.0 + 1e-7 - 1.0, (1.0 + 1e-7) / 2 - 0.5]


def test_a_page_is_for_phones_and_for_the_dark():
    text = pages.page(a_result())
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media (prefers-color-scheme: dark)" in text
    for table in re.findall(r"(.*)<table", text):
        assert table.endswith('<div class="wide" tabindex="0">')
    # A drawing is black on white, in the dark too.
    assert re.search(r"^figure \{[^}]*background: #fff", text, re.MULTILINE)


def test_the_page_states_the_overflow_of_float32():
    top = float(np.finfo(np.float32).max)
    first = top**0.25  # above it, (g max|G|)² of the largest element overflows
    largest = first / (1 + first**4)  # ζ there, and it falls from there on
    text = dict(pages.FACTS)["Huge gradients"]
    assert f"above {first:.1e}. ".replace("e+09", "e9") in text
    assert f"at most {largest:.1e}, " in text
    assert "4.3 × 10⁹" in NUMERICS
    assert "1.3 × 10⁻²⁹" in NUMERICS


def test_the_page_loads_nothing_external():
    text = pages.page(a_result())
    assert not re.findall(r"(?:https?:)?//|@import|url\((?!#)", text)
    assert "default-src &#x27;none&#x27;" in text


def test_an_unwritable_file_is_refused_before_the_run(tmp_path):
    (tmp_path / "taken").mkdir()
    for target in (tmp_path / "taken", "/dev/null/page.html"):
        done = gravity("parity", "--html", str(target), "--out", str(tmp_path / "out"))
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("gravity: --html cannot write '")
        assert done.stderr.count("\n") == 1


def test_a_report_is_restored_from_json(tmp_path):
    result = parity.new_report(seed=3)
    bad = Grade("divergent", False, 2, float("nan"), float("inf"), [0.5], [float("inf")], "V")
    result.replays.append(parity.ReplayRow("b", "m", "eager", "float32", 1.0, grade=bad))
    result.replays.append(parity.ReplayRow("b", "n", "eager", "float32", error="no"))
    result.trainings.append(parity.TrainingRow("b", "float32", losses=[1.0], images=3))
    result.failures.append("x")
    path, _ = report.write(result, tmp_path)
    again = parity.Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert repr(again) == repr(result)
    assert report.markdown(again) == report.markdown(result)
