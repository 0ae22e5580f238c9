"""``python -m gravity_conformance.conform SPEC``: the report as text, with NumPy alone."""

import sys

from gravity_conformance.conform.report import text
from gravity_conformance.conform.runner import conform

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m gravity_conformance.conform SPEC")
    report = conform(sys.argv[1])
    print(text(report), end="")
    sys.exit(report.status)
