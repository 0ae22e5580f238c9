"""Write the tables and the picture of the last `make parity` into docs/parity.md and the README.

python docs/readme_parity.py parity

docs/parity.json keeps the results of the run, without the curves. A test compares the pages with
it.
"""

import datetime
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import sections

from gravity_conformance.parity.report import markdown
from gravity_conformance.parity.run import Report

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
KEPT = ROOT / "docs" / "parity.json"
PAGE = ROOT / "docs" / "parity.md"
PICTURE = ROOT / "docs" / "images" / "parity.png"
ALT = "Loss curves, and deviations under their certified bound"


def with_tables(text: str, report: dict[str, Any]) -> str:
    """Return the text of docs/parity.md with all tables of the report."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    caption = (
        f"Measured once on {_date(report)}, {report['platform']['cpu']}, "
        f"{report['platform']['system']}; {versions}. {report['steps']} steps, "
        f"seed {report['seed']}."
    )
    tables = markdown(Report.from_json(report))
    content = f"{caption}\n\n{tables}\n![{ALT}](images/parity.png)"
    return sections.with_section(text, "parity", content, "parity.md")


def with_summary(text: str, report: dict[str, Any]) -> str:
    """Return the README's text with one row for each backend of the report."""
    rows = [
        ["backend", "exact", "bounded", "worst, of its bound", "test accuracy, own gradients"],
        ["---"] * 5,
    ]
    for training in report["trainings"]:
        if training["dtype"] != "float32":
            continue
        replays = [row for row in report["replays"] if row["backend"] == training["backend"]]
        grades = {"exact": [], "bounded": []}
        for row in replays:
            if row["mode"] not in (modes := grades[row["grade"]["verdict"]]):
                modes.append(row["mode"])
        worst = max(row["grade"]["share"] for row in replays)
        accuracy = f"{training['correct'] / training['images']:.2%}"
        modes = [", ".join(modes) or "–" for modes in grades.values()]
        rows.append([training["backend"], *modes, f"{worst:.3f}", accuracy])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    caption = f"Measured once on {_date(report)}, in float32 and float64."
    content = f"{caption}\n\n{table}\n\n![{ALT}](docs/images/parity.png)"
    return sections.with_section(text, "parity", content, "README.md")


def _date(report: dict[str, Any]) -> str:
    return datetime.date.fromisoformat(report["date"]).strftime("%-d %B %Y")


def without_curves(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with only the last point of each curve, which the tables show."""
    for row in report["replays"]:
        if row["grade"]:
            for curve in ("deviation", "bound"):
                row["grade"][curve] = row["grade"][curve][-1:]
    for row in report["trainings"]:
        row["losses"] = row["losses"][-1:]
    return report


def main(folder: Path) -> None:
    """Copy the report in `folder` into README.md and docs/."""
    report = without_curves(json.loads((folder / "parity.json").read_text(encoding="utf-8")))
    if not report["passed"]:
        raise SystemExit(f"the run in {folder} did not pass")
    for page, written in ((README, with_summary), (PAGE, with_tables)):
        page.write_text(written(page.read_text(encoding="utf-8"), report), encoding="utf-8")
    KEPT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "parity.png", PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
