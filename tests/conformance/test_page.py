"""`gravity parity --html`: one self-contained page with all results of the run."""

import base64
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from gravity_conformance.parity import page as pages
from gravity_conformance.parity import report
from gravity_conformance.parity import run as parity
from gravity_conformance.parity.grading import Grade

pytest.importorskip("sklearn", reason="gravity parity trains on scikit-learn's digits")

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


def gravity(*arguments):
    command = [sys.executable, "-m", "gravity_conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


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
    (image,) = found.links
    head, _, data = image.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data, validate=True) == (tmp_path / "out/parity.png").read_bytes()
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
    result.failures.append(EVIL)
    result.not_run[EVIL] = result.not_installed[EVIL] = EVIL
    text = pages.page(result, b"picture")
    found = Reader(text)
    assert "script" not in found.tags
    assert len(found.links) == 1
    assert found.text.count(EVIL) == text.count("&lt;script&gt;") > 10
    assert "FAILED" in found.text
    assert '<td class="divergent">' in text
    assert '<td class="error">' in text


def test_the_page_loads_nothing_external():
    text = pages.page(parity.new_report(seed=0), b"")
    assert not re.findall(r"(?:https?:)?//|@import|url\(", text)
    assert "default-src &#x27;none&#x27;" in text


def test_an_unwritable_file_is_refused_before_the_run(tmp_path):
    (tmp_path / "taken").mkdir()
    for target in (tmp_path / "taken", "/dev/null/page.html"):
        done = gravity("parity", "--html", str(target), "--out", str(tmp_path / "out"))
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("gravity: --html must be a file in a writable folder, got ")
        assert done.stderr.count("\n") == 1


def test_a_report_is_restored_from_json(tmp_path):
    result = parity.new_report(seed=3)
    bad = Grade("divergent", False, 2, float("nan"), float("inf"), [0.5], [float("inf")], "V")
    result.replays.append(parity.ReplayRow("b", "m", "eager", "float32", 1.0, grade=bad))
    result.replays.append(parity.ReplayRow("b", "n", "eager", "float32", error="no"))
    result.trainings.append(parity.TrainingRow("b", "float32", losses=[1.0], images=3))
    result.failures.append("x")
    (path, *_) = report.write(result, tmp_path)
    again = parity.Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    assert repr(again) == repr(result)
    assert report.markdown(again) == report.markdown(result)
