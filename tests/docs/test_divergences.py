"""The lines of docs/divergences.md give the results that the page says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "divergences.md"
ROWS = re.findall(
    r"^\| `gravity conform (\S+)((?: --only \S+)+)` \| (\w+) \|",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_the_page_has_lines():
    assert {"differs", "remark"} == {outcome for _, _, outcome in ROWS}


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "options", "outcome"), ROWS, ids=lambda value: value.strip())
def test_a_line_gives_the_result_of_the_page(spec, options, outcome):
    pytest.importorskip(spec.partition(":")[0])
    from gravity_conformance.conform.runner import conform

    report = conform(spec, only=options.split()[1::2])
    assert report.results[-1].outcome == outcome
