"""The README's parity section matches the output of docs/readme_parity.py."""

import json
import shutil

import pytest

from tests.support.docs_scripts import FOLDER, docs_script

pytest.importorskip("sklearn", reason="gravity_conformance's report needs the cli extra")


@pytest.fixture
def script():
    return docs_script("readme_parity")


def test_the_section_matches_the_stored_figures(script):
    kept = json.loads(script.KEPT.read_text(encoding="utf-8"))
    text = script.README.read_text(encoding="utf-8")
    assert script.with_section(text, kept) == text


def test_the_stored_run_passed_and_has_every_backend(script):
    kept = json.loads(script.KEPT.read_text(encoding="utf-8"))
    assert kept["passed"] is True
    assert {row["backend"] for row in kept["replays"]} == {"numpy", "torch", "jax", "tensorflow"}
    assert kept["command"] == "gravity parity"


def test_a_changed_figure_is_detected(script):
    kept = json.loads(script.KEPT.read_text(encoding="utf-8"))
    text = script.README.read_text(encoding="utf-8")
    kept["replays"][1]["grade"]["worst"] += 0.01
    assert script.with_section(text, kept) != text
    with pytest.raises(SystemExit, match="one section 'parity'"):
        script.with_section(text + text, kept)


def test_a_whole_run_is_copied(script, tmp_path, monkeypatch):
    for name, path in (("README", "README.md"), ("KEPT", "kept.json"), ("PICTURE", "p.png")):
        monkeypatch.setattr(script, name, tmp_path / path)
    (tmp_path / "README.md").write_text("a\n<!-- parity: x -->\nold\n<!-- /parity -->\nb\n")
    run = json.loads((FOLDER / "parity.json").read_text(encoding="utf-8"))
    for row in run["replays"]:
        row["grade"]["deviation"] = [1.0] * 9 + row["grade"]["deviation"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "parity.json").write_text(json.dumps(run))
    shutil.copyfile(FOLDER / "images" / "parity.png", tmp_path / "run" / "parity.png")
    script.main(tmp_path / "run")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("a\n<!-- parity: x -->\n\nMeasured once on ")
    assert text.endswith("<!-- /parity -->\nb\n")
    kept = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert {len(row["grade"]["deviation"]) for row in kept["replays"]} == {1}
    assert script.with_section(text, kept) == text
