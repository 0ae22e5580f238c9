"""The counts in docs/reliability.md are those of docs/hostile.json."""

import copy
import json

import pytest

from tests.support.docs_scripts import docs_script


@pytest.fixture
def script():
    return docs_script("reliability")


@pytest.fixture
def kept(script):
    return json.loads(script.KEPT.read_text(encoding="utf-8"))


def test_the_page_has_the_kept_counts(script, kept):
    assert script.table(kept) in script.PAGE.read_text(encoding="utf-8")


def test_a_broken_promise_does_not_reach_the_page(script, kept):
    spoilt = copy.deepcopy(kept)
    name = next(iter(spoilt["parts"]))
    spoilt["parts"][name]["fault"] = "other numbers"
    with pytest.raises(SystemExit, match=f"^{name}: other numbers$"):
        script.table(spoilt)


def test_outcomes_are_added_up_and_adam_stands_apart(script):
    outcomes = {"a: refused; Adam ran": 2, "b: x: refused; Adam refused": 1200, "c: read": 3}
    part = {"tried": 1205, "outcomes": outcomes, "fault": None}
    report = {"seed": 1, "minutes": 10, "versions": ["numpy 2"], "parts": {"files": part}}
    row = script.table(report).splitlines()[-1]
    assert row == "| files | 1,205 | 1,202 refused; 3 read | 1,200 refused; 2 ran |"
