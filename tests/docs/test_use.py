"""The page "Should I use Gravity?" has the numbers of docs/compare.json, and claims that hold."""

import copy
import json
import math

import pytest

from tests.support.docs_scripts import docs_script


@pytest.fixture
def script():
    return docs_script("use")


@pytest.fixture
def report(script):
    return json.loads(script.REPORT.read_text(encoding="utf-8"))


def test_the_pages_have_the_kept_numbers(script, report):
    found = script.Comparison(report)
    page = script.PAGE.read_text(encoding="utf-8")
    for name, content in script.sections(found).items():
        assert f"<!-- {name}: written by docs/use.py -->\n\n{content}\n\n<!-- /{name} -->" in page
    assert f"\n\n{script.summary(found)}\n\n<!-- /use -->" in (script.ROOT / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_new_median_reaches_the_page(script, report):
    before = script.sections(script.Comparison(report))
    changed = copy.deepcopy(report)
    changed["problems"]["wine"]["results"]["gravity"]["tuned"]["median"] = 0.123
    after = script.sections(script.Comparison(changed))
    assert f"| wine, MLP: wrong answers | 12.3{script.NARROW}%" in after["errors"]
    assert after["errors"] != before["errors"]


def exchanged(report, problem, one, other):
    changed = copy.deepcopy(report)
    results = changed["problems"][problem]["results"]
    results[one], results[other] = results[other], results[one]
    return changed


@pytest.mark.parametrize("problem", ["corrupt-batches", "diabetes-raw"])
def test_a_claim_that_the_report_refutes_is_not_written(script, report, problem):
    changed = exchanged(report, problem, "gravity", "momentum")
    with pytest.raises(SystemExit, match=r"docs/compare.json refutes: It "):
        script.sections(script.Comparison(changed))


def test_a_report_with_missing_cells_is_refused(script, report):
    with pytest.raises(SystemExit, match=r"docs/compare.json lacks wine/sgd$"):
        script.Comparison(report | {"missing": ["wine/sgd"]})


def test_better_ties_and_worse_are_counted_from_the_same_seeds(script, report):
    found = script.Comparison(report)
    for other in script.RIVALS:
        sides, back = found.beside(other), found.beside("gravity", other)
        assert sides["better"] == back["worse"]
        assert sides["tie"] == back["tie"]
        assert sum(map(len, sides.values())) == len(report["problems"])


def test_a_factor_between_rates_is_that_of_the_problems_that_both_learn(script, report):
    changed = copy.deepcopy(report)
    for number, problem in enumerate(changed["problems"].values()):
        for name, rate in (("gravity", 0.3), ("momentum", 0.03)):
            problem["results"][name] |= {"rate": rate, "at_edge": False}
            problem["results"][name]["tuned"]["progress"] = 1.0
        gravity = problem["results"]["gravity"]
        if number % 3 == 1:
            gravity |= {"rate": 70.0, "at_edge": True}
        elif number % 3 == 2:
            gravity["rate"] = 70.0
            gravity["tuned"]["progress"] = 0.1
    assert script.Comparison(changed).factor("momentum") == pytest.approx((10, 10, 10), rel=1e-12)


def test_the_sentences_written_by_hand_hold(script, report):
    """The kick makes no difference in fine-tuning; VGG16 leaves its plateau later without it."""
    assert "fine-tuning" in script.Comparison(report).beside("alpha-0")["tie"]
    runs = json.loads((script.ROOT / "docs" / "paper.json").read_text(encoding="utf-8"))["runs"]
    left = {}  # the first epoch whose mean loss is clearly below that of equal probabilities
    for run in runs:
        settings = run["settings"]
        assert (settings["dataset"], settings["architecture"]) == ("mnist", "vgg16")
        epochs = [e["epoch"] for e in run["history"] if e["loss"] < 0.99 * math.log(10)]
        left[settings["optimizer"], settings["ablation"]] = min(epochs)
    assert left["gravity", None] == 1
    assert left["gravity", "alpha0"] == 2
