"""Write the counts of the last `make hostile` into docs/reliability.md.

make hostile HOSTILE="--seed 1 --json hostile.json"
python docs/reliability.py hostile.json

docs/hostile.json keeps the report. A test compares the page with it.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from sections import write_section

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "docs" / "hostile.json"
ADAM = "; Adam "  # between our outcome and that of the framework's Adam


def table(report: dict[str, Any]) -> str:
    """Return what was tried in each part, and what came of it.

    Raises:
        SystemExit: if a promise was broken.
    """
    broken = [f"{name}: {part['fault']}" for name, part in report["parts"].items() if part["fault"]]
    if broken:
        raise SystemExit("\n".join(broken))
    rows = [["faults in", "tried", "outcomes", "the framework's Adam"], ["---"] * 4]
    for name, part in report["parts"].items():
        ours: Counter[str] = Counter()
        adam: Counter[str] = Counter()
        for key, count in part["outcomes"].items():
            own, _, other = key.rpartition(": ")[2].partition(ADAM)
            ours[own] += count
            adam[other] += count if other else 0
        rows.append([name, f"{part['tried']:,}", _listed(ours), _listed(adam)])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    versions = ", ".join(report["versions"])
    return (
        f"Run once for {report['minutes']:g} minutes, seed {report['seed']}, with {versions}.\n\n"
        f"{lines}"
    )


def _listed(counts: Counter[str]) -> str:
    return "; ".join(f"{count:,} {outcome}" for outcome, count in counts.most_common() if count)


def main(path: Path) -> None:
    """Copy the report into the page and into docs/."""
    report = json.loads(path.read_text(encoding="utf-8"))
    write_section(PAGE, "hostile", table(report))
    KEPT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
