"""The report says how to mend each mistake that it can name."""

import re

import pytest

from gravity_conformance.conform import report as reports
from gravity_conformance.conform.mending import MENDING, mends
from gravity_conformance.conform.runner import Report, Result
from gravity_conformance.mutations import MUTATIONS

DESCRIPTIONS = sorted({variant.description for variant in MUTATIONS})


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_every_known_mistake_has_one_line_that_mends_it(description):
    text = MENDING[description]
    assert "\n" not in text
    assert len(text) <= 120
    assert " or " not in description  # a diagnosis joins several mistakes by it


EQUATION = re.compile(r"[←=~]")
NO_EQUATION = {
    "computed in half precision, not in float32 and rounded once",
    *(name for name in MENDING if name.startswith(("gradient ", "inputs "))),
}


def test_each_names_its_equation_unless_it_is_about_none():
    assert {name for name, text in MENDING.items() if not EQUATION.search(text)} == NO_EQUATION


def test_the_reports_show_it_below_the_verdict():
    results = [
        Result("differs", check="update", title="one update", diagnosis="missing square"),
        Result("differs", check="v0", title="V₀", diagnosis="V₀ is zero or V₀ std is 1"),
        Result("differs", check="long", title="long", diagnosis="nobody knows"),
    ]
    report = Report("a:b", "plain", results=results)
    found = mends(report.diagnoses)
    assert [mistake for mistake, _ in found] == ["missing square", "V₀ is zero", "V₀ std is 1"]
    text, page = reports.text(report), reports.page(report, "gravity conform a:b")
    verdict = text.index("conform: does not conform")
    for mistake, mend in found:
        assert text.index(f'to mend "{mistake}": {mend}\n') > verdict
        assert f"- To mend *{mistake}*: {mend}\n" in reports.markdown(report).split("**")[2]
        assert f"<b>To mend {mistake}</b>: {mend}" in page.split("does not conform")[1]


def test_a_report_without_a_known_mistake_ends_with_its_verdict():
    report = Report("a:b", "plain", results=[Result("pass", check="update", title="one update")])
    assert reports.text(report).splitlines()[-1] == f"conform: {reports.verdict(report)}"
    assert "mend" not in reports.text(report) + reports.markdown(report)
