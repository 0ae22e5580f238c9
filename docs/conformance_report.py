"""Write the report of `gravity conform` on pytorch_optimizer's Gravity into docs/conformance.md.

python docs/conformance_report.py
"""

import re
from pathlib import Path

from gravity_conformance.conform.report import markdown
from gravity_conformance.conform.runner import conform

PAGE = Path(__file__).with_name("conformance.md")
SPEC = "pytorch_optimizer:Gravity"
MARKED = re.compile(r"(<!-- report: .*? -->\n).*?(<!-- /report -->)", re.DOTALL)


def main() -> None:
    """Run the checks and update the page."""
    text = PAGE.read_text(encoding="utf-8")
    report = markdown(conform(SPEC))
    new, count = MARKED.subn(lambda found: f"{found[1]}\n{report}\n{found[2]}", text)
    if count != 1:
        raise SystemExit(f"{PAGE} must have one report between its two markers, got {count}")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
