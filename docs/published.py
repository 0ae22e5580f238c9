r"""Write the tables and the figure of the published runs, and ours, into docs/published.md.

    python -m benchmarks.paper published RESULTS.csv HISTORIES.csv    # docs/published.json
    python -m benchmarks.paper report --json docs/paper.json          # our runs, if there are any
    python docs/published.py

A test compares the page with the two files.
"""

from pathlib import Path

from sections import write_section

from benchmarks.paper import report
from gravity_conformance import _drawing
from gravity_conformance._output import Table, markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "published.md"
OURS = ROOT / "docs" / "paper.json"
PICTURE = ROOT / "docs" / "images" / "published.png"


def runs() -> str:
    """Return the thirty runs, and who is ahead."""
    parts = [
        _markdown(report.published_table()),
        f"\\{report.MARK} {report.reason()} It is in no comparison.",
        report.counted(),
    ]
    return "\n\n".join(parts)


def ours() -> str:
    """Return the section on our runs; nothing while there are none."""
    if not OURS.exists():
        return ""
    found = report.from_json(OURS)
    starts = [start for run in found for start in run.starts]
    packages = {
        f"{name} {start['versions'][name]}"
        for start in starts
        for name in ("keras", "tensorflow", "torch")
        if name in start["versions"]
    }
    machines = {f"{start['cpu']}, {start['device']}, {start['cores']} cores" for start in starts}
    return "\n\n".join(
        [
            "## Our repetitions",
            "Each row is one run of `python -m benchmarks.paper run`. The last column is the "
            "published test accuracy after as many epochs.",
            _markdown(report.ours_table(found)),
            f"Made on {'; '.join(sorted(machines))}, with {', '.join(sorted(packages))}.",
        ]
    )


def _markdown(table: Table) -> str:
    return "\n".join(markdown_table(table.header, table.rows)).replace(
        f"{report.MARK} |", f"\\{report.MARK} |"
    )


def picture() -> bytes:
    """Return the figure, with our runs over the published ones."""
    with _drawing.clean():
        return _drawing.png(report.figure(report.from_json(OURS) if OURS.exists() else []))


def main() -> None:
    """Write the page's sections and its figure."""
    write_section(PAGE, "published", runs())
    write_section(PAGE, "ours", ours())
    PICTURE.write_bytes(picture())


if __name__ == "__main__":
    main()
