"""The report of a parity run as one HTML page."""

from html import escape

from gravity_conformance import _html
from gravity_conformance._output import Line, Table
from gravity_conformance.parity import plots
from gravity_conformance.parity import report as reports
from gravity_conformance.parity.run import Report

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
        "In float32, (G max|G|)² overflows at the largest element for max|G| above 4.3e9. ζ is "
        "then 0. The exact value is at most 1.3e-29, far below the resolution of any step.",
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


def page(report: Report) -> str:
    """Return the page of a run, with its plots."""
    notes = [reports.LEGEND, *reports.notes(report)]
    versions = [[name, version] for name, version in report.versions.items()]
    where = ", ".join(value for value in report.platform.values() if value)
    verdict = Line(reports.verdict(report), "good" if report.passed else "bad")
    parts = [
        "<h1>Gravity: parity of implementations</h1>",
        _html.paragraph(verdict),
        _html.paragraph(Line(f"{report.steps} steps, seed {report.seed}; {report.date}, {where}")),
        *(_html.table(table) for table in reports.tables(report) if table.rows),
        _html.bullets(map(escape, notes)),
        "<h2>Curves</h2>",
        _html.plots(plots.drawings(report)),
        _html.table(Table(["package", "version"], versions, "Versions")),
        "<h2>Known differences between frameworks</h2>",
        _html.bullets(f"<b>{escape(title)}</b>: {escape(text)}" for title, text in FACTS),
        _html.origin(report.command),
    ]
    return _html.page("Gravity: parity", parts)
