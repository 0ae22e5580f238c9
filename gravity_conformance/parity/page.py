"""The report of a parity run as one HTML page.

Guarantees: the page needs no other file and no network; its Content-Security-Policy forbids both.
It contains no script. All text from a backend is escaped.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from gravity_conformance._output import POLICY
from gravity_conformance.parity import report as reports
from gravity_conformance.parity.run import Report

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { padding: .2rem .8rem; text-align: left; border-bottom: 1px solid #ccc }
.exact { background: #d9f2dd } .bounded { background: #e3ecfa }
.divergent, .error, .differs { background: #f8d3d3; font-weight: bold }
img { max-width: 100% } code { background: #eee; padding: .1rem .3rem }
"""

# Known differences between frameworks, which no backend can remove; see docs/numerics.md.
FACTS = (
    (
        "Subnormal numbers",
        "JAX and TensorFlow flush numbers below the smallest normal number to zero, eager and "
        "compiled. NumPy and PyTorch keep them. The report counts them as equal, and the bound "
        "has a term for them.",
    ),
    (
        "Fused multiply-add",
        "XLA on the CPU rounds a·b + c once; NumPy rounds it twice. So jax.jit and "
        "TensorFlow with XLA are bounded, not exact.",
    ),
    (
        "NaN in a maximum",
        "XLA on the CPU can drop a NaN from max|G|: TensorFlow with XLA at every size, JAX for "
        "large tensors. Then only that element becomes NaN. In other modes its whole tensor does.",
    ),
    (
        "Non-finite gradients",
        "They are not filtered: one of them spoils its whole tensor. Each framework has a guard: "
        "torch.amp.GradScaler, optax.apply_if_finite, keras.optimizers.LossScaleOptimizer.",
    ),
    (
        "Huge gradients",
        "In float32, (G max|G|)² may overflow for max|G| above about 1e9. ζ is then 0. The exact "
        "value is about 1e-30, below the resolution of any step.",
    ),
    (
        "Half precision",
        "float16 and bfloat16 are computed in float32 and rounded once, at the end.",
    ),
    (
        "The learning rate in Keras",
        "Keras keeps the learning rate in keras.config.floatx(). Set it to float64 for float64 "
        "variables. On TensorFlow, the schedules of Keras always return float32.",
    ),
    (
        "Weight decay",
        "optax and Keras round W − η λ W in other places than NumPy, so runs with weight decay are "
        "bounded, not exact.",
    ),
)


def page(report: Report, picture: bytes) -> str:
    """Return the page.

    Args:
        report: the report of a run.
        picture: its plots, as a PNG file.
    """
    verdict = "every backend present is exact or bounded" if report.passed else "FAILED"
    notes = [reports.LEGEND, *reports.notes(report)]
    versions = [[name, version] for name, version in report.versions.items()]
    where = ", ".join(value for value in report.platform.values() if value)
    image = base64.b64encode(picture).decode("ascii")
    parts = [
        "<h1>Gravity: parity of implementations</h1>",
        f'<p class="{"exact" if report.passed else "error"}">{escape(verdict)}</p>',
        f"<p>{report.steps} steps, seed {report.seed}; {escape(report.date)}, {escape(where)}. "
        f"To reproduce it: <code>{escape(report.command)}</code></p>",
        "<h2>Recorded gradients, replayed</h2>",
        _table(reports.REPLAY_HEADER, reports.replay_rows(report)),
        "<h2>Own gradients</h2>",
        _table(reports.TRAINING_HEADER, reports.training_rows(report)),
        _list(escape(note) for note in notes),
        "<h2>Curves</h2>",
        '<p><img alt="Loss curves, and deviations under their certified bound" '
        f'src="data:image/png;base64,{image}"></p>',
        "<h2>Versions</h2>",
        _table(["package", "version"], versions),
        "<h2>Known differences between frameworks</h2>",
        _list(f"<b>{escape(title)}</b>: {escape(text)}" for title, text in FACTS),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<title>Gravity: parity</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"]
    lines += [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cell(text: str) -> str:
    marked = text in ("exact", "bounded", "divergent", "error", "differs")
    return f'<td class="{text}">{text}</td>' if marked else f"<td>{escape(text)}</td>"


def _list(items: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>"
