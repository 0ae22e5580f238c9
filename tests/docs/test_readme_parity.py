"""The parity sections of the README and of docs/parity.md match docs/readme_parity.py."""

import json
import shutil

import pytest

from tests.support.docs_scripts import FOLDER, docs_script

pytest.importorskip("sklearn", reason="gravity_conformance's report needs the cli extra")


@pytest.fixture
def script():
    return docs_script("readme_parity")


@pytest.fixture(params=["README", "PAGE"])
def page(request, script):
    """The text of a page, and what writes its section."""
    write = {"README": script.with_summary, "PAGE": script.with_tables}[request.param]
    return getattr(script, request.param).read_text(encoding="utf-8"), write


def test_the_section_matches_the_stored_figures(script, page):
    kept = json.loads(script.KEPT.read_text(encoding="utf-8"))
    text, write = page
    assert write(text, kept) == text


def test_the_stored_run_passed_and_has_every_backend(script):
    kept = json.loads(script.KEPT.read_text(encoding="utf-8"))
    assert kept["passed"] is True
    assert {row["backend"] for row in kept["replays"]} == {"numpy", "torch", "jax", "tensorflow"}
    assert kept["command"] == "gravity parity"


def test_a_changed_figure_is_detected(script, page):
    kept = json.loads(script.KEPT.read_text(encoding="utf-8"))
    text, write = page
    for grade in (row["grade"] for row in kept["replays"]):
        grade["worst"] += 0.01
        grade["share"] += 0.01
    assert write(text, kept) != text
    with pytest.raises(SystemExit, match="one section 'parity'"):
        write(text + text, kept)


def test_a_failed_run_changes_no_page(script, tmp_path):
    run = json.loads(script.KEPT.read_text(encoding="utf-8")) | {"passed": False}
    (tmp_path / "parity.json").write_text(json.dumps(run))
    with pytest.raises(SystemExit, match="did not pass"):
        script.main(tmp_path)


def test_a_whole_run_is_copied(script, tmp_path, monkeypatch):
    places = {"README": "a.md", "PAGE": "b.md", "KEPT": "kept.json", "PICTURE": "p.png"}
    for name, path in places.items():
        monkeypatch.setattr(script, name, tmp_path / path)
    for path in ("a.md", "b.md"):
        (tmp_path / path).write_text("a\n<!-- parity: x -->\nold\n<!-- /parity -->\nb\n")
    run = json.loads((FOLDER / "parity.json").read_text(encoding="utf-8"))
    for row in run["replays"]:
        row["grade"]["deviation"] = [1.0] * 9 + row["grade"]["deviation"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "parity.json").write_text(json.dumps(run))
    shutil.copyfile(FOLDER / "images" / "parity.png", tmp_path / "run" / "parity.png")
    script.main(tmp_path / "run")
    for path in ("a.md", "b.md"):
        text = (tmp_path / path).read_text(encoding="utf-8")
        assert text.startswith("a\n<!-- parity: x -->\n\nMeasured once on ")
        assert text.endswith("<!-- /parity -->\nb\n")
    kept = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert {len(row["grade"]["deviation"]) for row in kept["replays"]} == {1}
    assert script.with_tables(text, kept) == text
