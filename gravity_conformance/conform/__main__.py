"""``python -m gravity_conformance.conform SPEC``: the report as text, with NumPy alone."""

import sys

from gravity_conformance._caller import without_current_folder, without_settings


def _command() -> int:
    from gravity_conformance._status import CouldNotError, emit
    from gravity_conformance.conform.report import text
    from gravity_conformance.conform.runner import conform

    without_settings()
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise CouldNotError(
            "usage: python -m gravity_conformance.conform SPEC; "
            "gravity conform, of the extra cli, has options"
        )
    report = conform(sys.argv[1])
    emit(text(report))
    return report.status


if __name__ == "__main__":
    without_current_folder()
    from gravity_conformance._status import run

    run("conform", _command)
