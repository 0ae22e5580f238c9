r"""Write the times of a step into docs/benchmarks.md and the README.

    for t in 1 2; do for d in float32 bfloat16; do python -m benchmarks.step --backend torch \
        --threads $t --dtype $d --runs 5 --rounds 7 --without foreach=False \
        --without pytorch_optimizer --json speed-torch-$t-$d.json; done; done
    for b in jax tf tf_jit numpy; do python -m benchmarks.step --backend $b --runs 3 --rounds 5 \
        --json speed-$b.json; done
    python docs/speed.py speed-*.json

docs/speed.json keeps the reports. A test compares the pages with it.
"""

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from sections import write_section

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "speed.json"
DEFAULT = "gravity_torch.Gravity()"
BACKENDS = {
    "torch": ("PyTorch", ("torch", "numba")),
    "jax": ("JAX", ("jax", "optax")),
    "tf": ("TensorFlow", ("tensorflow", "keras")),
    "tf_jit": ("TensorFlow, compiled by XLA", ("tensorflow", "keras")),
    "numpy": ("NumPy, the reference", ("numpy", "torch")),
}


def tables(reports: list[dict[str, Any]]) -> str:
    """Return every step of every report, relative to the first of its backend."""
    parts = []
    for backend, (title, _) in BACKENDS.items():
        if not (chosen := [report for report in reports if report["backend"] == backend]):
            continue
        parts += [f"## {title}", _caption(chosen)]
        for report in chosen:
            cases = list(report["results"])
            parts.append(
                f"**{report['dtype']}, {_threads(report)}** ({report['rounds']} rounds in each of "
                f"{report['runs']} runs)"
            )
            rows = [["step", *cases], ["---"] * (1 + len(cases))]
            for name in report["results"][cases[0]]:
                if name != "torch.Tensor.copy_":
                    rows.append([name, *(_cell(report["results"][c][name]) for c in cases)])
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


def summary(reports: list[dict[str, Any]]) -> str:
    """Return torch's default step in every report, relative to Adam's."""
    chosen = [report for report in reports if report["backend"] == "torch"]
    cases = list(chosen[0]["results"])
    rows = [["", *cases], ["---"] * (1 + len(cases))]
    for report in chosen:
        row = [_ratio(report["results"][case][DEFAULT]) for case in cases]
        rows.append([f"{report['dtype']}, {_threads(report)}", *row])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_caption(chosen)}\n\n{table}"


def _caption(reports: list[dict[str, Any]]) -> str:
    first = reports[0]
    day = date.fromisoformat(first["date"])
    loads = [report["load_average"][end][0] for report in reports for end in ("start", "end")]
    packages = BACKENDS[first["backend"]][1]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in packages)
    return (
        f"Measured once on {day.day} {day:%B %Y} on {first['device'] or 'cpu'} "
        f"({first['machine']}), with {versions}, Python {first['python']} and a load of "
        f"{min(loads):.1f} to {max(loads):.1f}."
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
    if "extra_bytes" in result:
        lines.append(f"{result['extra_bytes'] / 2**20:.1f} MiB")
    return "<br>".join(lines)


def main(paths: list[str]) -> None:
    """Copy the reports into the pages and docs/speed.json."""
    reports = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    order = list(BACKENDS)
    reports.sort(key=lambda r: (order.index(r["backend"]), r["dtype"] != "float32", r["threads"]))
    write_section(ROOT / "README.md", "speed", summary(reports))
    write_section(ROOT / "docs" / "benchmarks.md", "speed", tables(reports))
    KEPT.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
