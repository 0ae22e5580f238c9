"""The README's parity section matches the output of docs/readme_parity.py."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="gravity_conformance's report needs the cli extra")

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "readme_parity.py"


def load_script():
    spec = importlib.util.spec_from_file_location("readme_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script():
    return load_script()


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
    with pytest.raises(SystemExit, match="one parity section"):
        script.with_section(text + text, kept)


def test_a_whole_run_is_copied(script, tmp_path, monkeypatch):
    for name, path in (("README", "README.md"), ("KEPT", "kept.json"), ("PICTURE", "p.png")):
        monkeypatch.setattr(script, name, tmp_path / path)
    (tmp_path / "README.md").write_text("a\n<!-- parity: x -->\nold\n<!-- /parity -->\nb\n")
    run = json.loads((SCRIPT.parent / "parity.json").read_text(encoding="utf-8"))
    for row in run["replays"]:
        row["grade"]["deviation"] = [1.0] * 9 + row["grade"]["deviation"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "parity.json").write_text(json.dumps(run))
    shutil.copyfile(SCRIPT.parent / "images" / "parity.png", tmp_path / "run" / "parity.png")
    script.main(tmp_path / "run")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("a\n<!-- parity: x -->\n\nMeasured once on ")
    assert text.endswith("<!-- /parity -->\nb\n")
    kept = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert {len(row["grade"]["deviation"]) for row in kept["replays"]} == {1}
    assert script.with_section(text, kept) == text
