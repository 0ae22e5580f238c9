r"""Write the tables of torch's speed into the README and docs/torch.md.

    for t in 1 2; do for d in float32 bfloat16; do python -m benchmarks.step --backend torch \
        --threads $t --dtype $d --runs 5 --rounds 7 --without foreach=False \
        --without pytorch_optimizer --json speed-$t-$d.json; done; done
    python docs/speed.py speed-*.json

docs/speed.json keeps the reports. A test compares the pages with it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from sections import write_section

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "speed.json"
DEFAULT = "gravity_torch.Gravity()"


def tables(reports: list[dict[str, Any]]) -> str:
    """Return every step of every report, relative to Adam's."""
    parts = [_caption(reports)]
    for report in reports:
        cases = list(report["results"])
        parts.append(
            f"**{report['dtype']}, {_threads(report)}** ({report['rounds']} rounds in each of "
            f"{report['runs']} runs)"
        )
        rows = [["step", *cases], ["---"] * (1 + len(cases))]
        for name in report["results"][cases[0]]:
            if "ratio" in report["results"][cases[0]][name] and name != "torch.Tensor.copy_":
                rows.append([name, *(_cell(report["results"][c][name]) for c in cases)])
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


def summary(reports: list[dict[str, Any]]) -> str:
    """Return the default step of every report, relative to Adam's."""
    cases = list(reports[0]["results"])
    rows = [["", *cases], ["---"] * (1 + len(cases))]
    for report in reports:
        row = [_ratio(report["results"][case][DEFAULT]) for case in cases]
        rows.append([f"{report['dtype']}, {_threads(report)}", *row])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_caption(reports)}\n\n{table}"


def _caption(reports: list[dict[str, Any]]) -> str:
    first = reports[0]
    loads = [report["load_average"][end][0] for report in reports for end in ("start", "end")]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("torch", "numba"))
    return (
        f"Measured once on {first['device']} ({first['machine']}), with {versions}, Python "
        f"{first['python']} and a load of {min(loads):.1f} to {max(loads):.1f}."
    )


def _threads(report: dict[str, Any]) -> str:
    return f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"


def _ratio(result: dict[str, Any]) -> str:
    lower, upper = result["range"]
    return f"{result['ratio']:.2f} ({lower:.2f}–{upper:.2f})"


def _cell(result: dict[str, Any]) -> str:
    lines = [_ratio(result)]
    if "bytes_per_element" in result:
        lines.append(
            f"{result['picoseconds_per_element']:.0f} ps, {result['bytes_per_element']:.1f} B"
        )
    if "share_of_limit" in result:
        lines[-1] += f", {result['share_of_limit']:.0%}"
    lines.append(f"{result['extra_bytes'] / 2**20:.1f} MiB")
    return "<br>".join(lines)


def main(paths: list[str]) -> None:
    """Copy the reports into the pages and docs/speed.json."""
    reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    write_section(ROOT / "README.md", "speed", summary(reports))
    write_section(ROOT / "docs" / "torch.md", "speed", tables(reports))
    KEPT.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
