"""The tables of speed match docs/speed.json, and are made from what the benchmark writes."""

import copy
import json

import pytest

from benchmarks.step import BACKENDS
from tests.support.docs_scripts import docs_script


@pytest.fixture
def script():
    return docs_script("speed")


@pytest.fixture
def kept(script):
    return json.loads(script.KEPT.read_text(encoding="utf-8"))


def test_the_pages_have_the_kept_figures(script, kept):
    page = (script.ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert script.tables(kept) in page
    assert script.summary(kept) in (script.ROOT / "README.md").read_text(encoding="utf-8")


def test_limits_hold_for_medians_of_five_runs(kept):
    of_torch = [report for report in kept if report["backend"] == "torch"]
    assert {(report["threads"], report["dtype"]) for report in of_torch} == {
        (threads, dtype) for threads in (1, 2) for dtype in ("float32", "bfloat16")
    }
    assert min(report["runs"] for report in of_torch) >= 5


def test_every_backend_has_a_table(script, kept):
    assert {report["backend"] for report in kept} == {*script.BACKENDS} == {*BACKENDS}
    page = script.tables(kept)
    for title, _ in script.BACKENDS.values():
        assert f"## {title}\n\nMeasured once on " in page


def test_every_figure_reaches_a_page(script, kept):
    before = script.tables(kept), script.summary(kept)
    for key, change in (("ratio", 1.0), ("range", None), ("extra_bytes", 2**21)):
        other = copy.deepcopy(kept)
        result = other[0]["results"]["16M"][script.DEFAULT]
        result[key] = [8.0, 9.0] if change is None else result[key] + change
        assert script.tables(other) != before[0]
        assert (script.summary(other) != before[1]) == (key != "extra_bytes")


def test_the_files_of_the_benchmark_become_sections(script, kept, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    pages = tmp_path / "README.md", tmp_path / "docs" / "benchmarks.md"
    for page in pages:
        page.write_text("a\n<!-- speed: x -->\nold\n<!-- /speed -->\nb\n", encoding="utf-8")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "KEPT", tmp_path / "docs" / "speed.json")
    files = []
    for i, report in enumerate(kept):
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(report), encoding="utf-8")
    script.main(files)
    for page, content in zip(pages, (script.summary(kept), script.tables(kept)), strict=True):
        expected = f"a\n<!-- speed: x -->\n\n{content}\n\n<!-- /speed -->\nb\n"
        assert page.read_text(encoding="utf-8") == expected
    assert json.loads(script.KEPT.read_text(encoding="utf-8")) == kept
    pages[0].write_text("nothing", encoding="utf-8")
    with pytest.raises(SystemExit, match="one section 'speed'"):
        script.main(files)
