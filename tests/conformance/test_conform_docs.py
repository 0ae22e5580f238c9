"""docs/conformance.md shows the real report on pytorch_optimizer's Gravity."""

import importlib.util
import json
import re
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import pytest

from gravity_conformance.conform import report as reports
from gravity_conformance.conform.checks.gradients import FAR
from gravity_conformance.conform.runner import conform

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTION = TEXT.split("<!-- report: ")[1].split("<!-- /report -->")[0]


def shown(text):
    """Return the check, result and diagnosis of each row; the figures depend on the CPU."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    found = []
    for check, result, _, *words in rows[2:]:
        diagnosis = [w for w in " ".join(words).split("; ") if w.startswith("diagnosis: ")]
        found.append((check, result, *diagnosis))
    return found


@pytest.mark.slow
def test_the_page_shows_what_the_command_finds():
    if importlib.util.find_spec("pytorch_optimizer") is None:
        pytest.skip("the report is on pytorch_optimizer's Gravity")
    report = conform("pytorch_optimizer:Gravity")
    assert f"pytorch_optimizer {version('pytorch_optimizer')}" in SECTION
    assert shown(SECTION) == shown(reports.markdown(report))
    assert f"**{reports.verdict(report)}**" in SECTION
    assert ("inputs left untouched", "differs", "diagnosis: gradient negated in place") in shown(
        SECTION
    )


def test_the_page_names_the_fields_of_the_report():
    """The table of fields has those of the schema, and the version of the format."""
    table = TEXT.split("| field | meaning |")[1].split("\n\n")[0].splitlines()[2:]
    named = [name for row in table for name in row.split(" | ")[0].strip("| ").split(", ")]
    file = resources.files("gravity_conformance.conform") / "schema.json"
    fields = json.loads(file.read_text(encoding="utf-8"))["properties"]
    assert sorted(named) == sorted(fields)
    assert f'"gravity-conform" and {fields["version"]["const"]},' in table[0]


def test_the_page_names_the_far_steps():
    (line,) = (line for line in TEXT.splitlines() if line.startswith("**Far steps.**"))
    assert [int(n.replace(",", "")) for n in re.findall(r"[0-9][0-9,]*[0-9]", line)] == [*FAR]
