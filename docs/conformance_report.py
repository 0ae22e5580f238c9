"""Write the report of `gravity conform` on pytorch_optimizer's Gravity into docs/conformance.md.

python docs/conformance_report.py
"""

from pathlib import Path

from sections import write_section

from gravity_conformance.conform.report import markdown
from gravity_conformance.conform.runner import conform

PAGE = Path(__file__).with_name("conformance.md")
SPEC = "pytorch_optimizer:Gravity"


def main() -> None:
    """Run the checks and update the page."""
    write_section(PAGE, "report", markdown(conform(SPEC)))


if __name__ == "__main__":
    main()
