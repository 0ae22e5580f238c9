"""docs/published.md has the numbers of docs/published.json, and ours when there are any."""

import json

import pytest

from benchmarks.paper import report
from benchmarks.paper.settings import Settings
from tests.support.docs_scripts import docs_script

START = {"device": "cpu", "cores": 2, "cpu": "a machine", "versions": {"keras": "3.1"}}
LINE = {"epoch": 2.0, "loss": 0.5, "val_accuracy": 0.875}


@pytest.fixture
def script():
    return docs_script("published")


def test_the_page_has_the_kept_numbers(script):
    page = script.PAGE.read_text(encoding="utf-8")
    assert f"-->\n\n{script.runs()}\n\n<!-- /published -->" in page
    assert f"-->\n\n{script.ours()}\n\n<!-- /ours -->" in page
    assert f"(images/{script.PICTURE.name})" in page
    assert script.PICTURE.is_file()


def test_the_mislabelled_run_is_marked_and_explained(script):
    lines = script.runs().splitlines()
    (marked,) = (line for line in lines if r"\* |" in line)
    assert marked.startswith(r"| CIFAR100 (Fine), VGG19 | Gravity\* | 0.1 | 49.58% |")
    assert any(line.startswith(r"\* The run “CIFAR100 (Fine), VGG19, Gravity”") for line in lines)


def test_our_runs_become_a_section(script, tmp_path, monkeypatch):
    path, page = tmp_path / "paper.json", tmp_path / "published.md"
    monkeypatch.setattr(script, "OURS", path)
    assert script.ours() == ""
    run = report.Ours(Settings("mnist", "vgg16", "gravity"), [START], [LINE])
    path.write_text(report.as_json([run]), encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    monkeypatch.setattr(script, "PICTURE", tmp_path / "published.png")
    sections = [f"<!-- {name}: x -->\nold\n<!-- /{name} -->\n" for name in ("published", "ours")]
    page.write_text("".join(sections), encoding="utf-8")
    script.main()
    text = page.read_text(encoding="utf-8")
    then = report.published()["mnist", "vgg16", "gravity"].val_accuracy[1]
    assert f"| MNIST, VGG16 | Gravity | keras | 0 | 2 | 0.5000 | 87.50% | {then:.2%} |" in text
    assert "Made on a machine, cpu, 2 cores, with keras 3.1." in text
    assert (tmp_path / "published.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(path.read_text())["runs"][0]["history"] == [LINE]
