"""Write the tables and the picture of the last `make parity` into the README.

python docs/readme_parity.py parity

docs/parity.json keeps the results of the run, without the curves. A test compares the README with
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
PICTURE = ROOT / "docs" / "images" / "parity.png"


def with_section(text: str, report: dict[str, Any]) -> str:
    """Return the README's text with its parity section made from the report."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    when = datetime.date.fromisoformat(report["date"]).strftime("%-d %B %Y")
    caption = (
        f"Measured once on {when}, {report['platform']['cpu']}, {report['platform']['system']}; "
        f"{versions}. {report['steps']} steps, seed {report['seed']}."
    )
    picture = "![Loss curves, and deviations under their certified bound](docs/images/parity.png)"
    tables = markdown(Report.from_json(report))
    return sections.with_section(text, "parity", f"{caption}\n\n{tables}\n{picture}", "README.md")


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
    README.write_text(with_section(README.read_text(encoding="utf-8"), report), encoding="utf-8")
    KEPT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "parity.png", PICTURE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
