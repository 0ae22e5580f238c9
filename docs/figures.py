"""Draw the figures of the documentation with the functions of gravity_core.

    python docs/figures.py

writes docs/images/*.svg. Guarantee: the same versions of NumPy and Matplotlib write the same bytes.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("svg")

import matplotlib.pyplot as plt

from gravity_core import Gravity, beta_hat, gradient_term, max_step_grad

IMAGES = Path(__file__).resolve().parent / "images"

INK = "#1f2933"
MUTED = "#66727f"
BLUE, ORANGE, GREEN, PURPLE = "#1f5fa8", "#c8501e", "#2b7a4b", "#6d4a9c"

STYLE = {
    "svg.hashsalt": "gravity",
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "mathtext.fontset": "dejavusans",
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "path.simplify_threshold": 0.3,
}


def worked_example(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Return f and its gradient for the worked example, f(x, y) = (x² + 4 y²) / 2."""
    c = np.asarray([1.0, 4.0])
    return float(0.5 * (c * x * x).sum()), c * x


def page_code(page: str) -> dict[str, Any]:
    """Return the namespace of a page's code without prompts, so that a figure shows the same."""
    text = (IMAGES.parent / page).read_text(encoding="utf-8")
    namespace: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if ">>>" not in code:
            exec(code, namespace)
    return namespace


def ball_on_slope() -> plt.Figure:
    """Draw the inclined plane under a weight, and the accelerations of the ball on it."""
    angle, radius, length = np.radians(32.0), 0.34, 2.7
    down, side = np.asarray([-np.cos(angle), -np.sin(angle)]), np.asarray([-1.0, 0.0])
    foot, top = np.asarray([0.0, 0.0]), np.asarray([6.0, 6.0 * np.tan(angle)])
    ball = 0.72 * top + radius * np.asarray([-np.sin(angle), np.cos(angle)])

    fig, ax = plt.subplots(figsize=(7.2, 4.0))
    ax.fill([foot[0], top[0], top[0]], [foot[1], top[1], foot[1]], color="#eef1f5", lw=0)
    ax.plot(*np.stack([foot, top]).T, color=INK)
    ax.plot([foot[0], top[0]], [0, 0], color=MUTED, lw=1)
    ax.add_patch(plt.Circle(ball, radius, color="#b4bfca", ec=INK, lw=1.2, zorder=4))
    arc = np.linspace(0, angle, 30)
    ax.plot(1.3 * np.cos(arc), 1.3 * np.sin(arc), color=INK, lw=1.2)
    ax.text(1.42, 0.3, r"$\theta$", fontsize=14)
    ax.text(2.3, 0.12, r"$\tan\theta = g/m$", color=INK)

    along = length * np.sin(angle) * down
    arrows = (
        (np.asarray([0.0, -length]), MUTED, r"$g_0$", (8, 4)),
        (along, BLUE, r"$g_0 \sin\theta$", (-52, -10)),
        (along[0] * -side, ORANGE, r"$g_0 \sin\theta \cos\theta$", (-72, 8)),
    )
    for vector, color, label, offset in arrows:
        end = ball + vector
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", end, ball, arrowprops=arrow, zorder=5)
        ax.annotate(label, end, offset, textcoords="offset points", color=color, fontsize=12)
    ax.plot(*np.stack([ball + along, ball + along[0] * -side]).T, color=MUTED, lw=1, ls=":")

    axis = {"arrowstyle": "-|>", "color": MUTED, "lw": 1.2}
    ax.annotate("", (6.9, -0.5), (-0.6, -0.5), arrowprops=axis)
    ax.annotate("", (-0.6, 4.3), (-0.6, -0.5), arrowprops=axis)
    ax.text(6.95, -0.45, "weight, $W$", color=MUTED, ha="right", va="bottom")
    ax.text(-0.45, 4.2, "loss", color=MUTED, va="top")
    ax.plot([ball[0]] * 2, [-0.5, ball[1] - length], color=MUTED, lw=1, ls=":")
    ax.set(xlim=(-0.8, 7.1), ylim=(-0.7, 4.5), aspect="equal")
    ax.set_axis_off()
    return fig


def step_curve() -> plt.Figure:
    """Draw η ζ against g for a tensor whose largest element is 4, so that m = 1/4."""
    lr = 0.1
    g = np.append(np.linspace(0.0, 1.5, 301), 4.0)  # the last element sets m
    m = float(max_step_grad(g))
    step = (lr * gradient_term(g))[:-1]
    g = g[:-1]
    top = lr * m / 2

    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    ax.axvspan(0, m, color=BLUE, alpha=0.07, lw=0)
    descent = g[lr * g < 1.32 * top]
    ax.plot(descent, lr * descent, color=MUTED, ls=(0, (5, 3)), lw=1.6)
    ax.plot(g, step, color=BLUE)
    ax.plot([0, m], [top, top], color=ORANGE, lw=1.1, ls=":")
    ax.plot([m, m], [0, top], color=ORANGE, lw=1.1, ls=":")
    ax.plot([m], [top], "o", color=ORANGE, ms=8, zorder=5)
    ax.annotate(
        "largest step, $\\eta\\,m/2$, at $g = m$",
        (m, top),
        xytext=(16, 2),
        textcoords="offset points",
        color=ORANGE,
    )
    ax.text(descent[-1] + 0.02, 1.26 * top, "gradient descent, $\\eta\\,g$", color=MUTED)
    ax.text(m / 2, 0.03 * top, "rising", color=BLUE, ha="center")
    ax.text(
        0.9, 0.62 * top, "Gravity, $\\eta\\,\\zeta = \\eta\\,g\\,/\\,(1 + (g/m)^2)$", color=BLUE
    )
    ax.text(m + 0.02, 0.03 * top, "falling: the step shrinks as $g$ grows", color=MUTED)
    ax.set(
        xlim=(0, 1.5),
        ylim=(0, 1.4 * top),
        xlabel="gradient of one element, $g$",
        ylabel="size of its step",
        title=f"The step against the gradient, max|G| = 4, so m = {m}; η = {lr}",
    )
    return fig


def largest_step() -> plt.Figure:
    """Draw |ζ| of the largest element, and the largest |ζ| in a tensor, against max|G|."""
    m_abs = np.geomspace(0.03, 30, 181)
    at_largest, at_peak = [], []
    for value in m_abs:
        g = np.asarray([min(value, 1.0 / value), value])  # the element nearest to m; the largest
        zeta = gradient_term(g)
        at_peak.append(zeta[0])
        at_largest.append(zeta[1])
    cap, where = 3**0.75 / 4, 3**-0.25

    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    ax.loglog(m_abs, m_abs, color=MUTED, ls=(0, (5, 3)), lw=1.6)
    ax.loglog(m_abs, np.maximum(at_peak, at_largest), color=ORANGE, lw=2.0)
    ax.loglog(m_abs, at_largest, color=BLUE)
    ax.plot([where], [cap], "o", color=INK, ms=6, zorder=5)
    ax.annotate(
        f"never above {cap:.2f}",
        (where, cap),
        xytext=(-34, -36),
        textcoords="offset points",
        ha="center",
    )
    ax.text(2.3, 0.33, "any element: at most $1/(2M)$", color=ORANGE)
    ax.text(3.6, 0.006, "the largest: $M/(1+M^4)$", color=BLUE, ha="right")
    ax.text(1.35, 1.75, "gradient descent: $M$", color=MUTED, ha="right")
    ax.set(
        xlim=(0.03, 30),
        ylim=(1e-3, 3),
        xlabel="largest gradient in the tensor, M = max|G|",
        ylabel="gradient term, |ζ|",
        title="How far the largest gradient lets a tensor move",
    )
    return fig


def averaging_weight() -> plt.Figure:
    """Draw β̂ against the update number for several β and both step conventions."""
    updates = np.arange(13)
    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    for beta, color in ((1.0, PURPLE), (0.9, BLUE), (0.7, GREEN), (0.4, ORANGE)):
        for first_step, fill in ((1, color), (0, "white")):
            values = [beta_hat(int(n) + first_step, beta) for n in updates]
            ax.plot(updates, values, color=color, lw=1.0, alpha=0.5)
            ax.plot(updates, values, "o", color=color, mfc=fill, ms=4.6, mew=1.1)
        ax.text(12.4, values[-1] + 0.003, f"β = {beta:g}", color=color, va="center")
    ax.axhline(0.5, color=MUTED, lw=1, ls=":")
    ax.plot([], [], "o", color=INK, ms=5, label="first_step=1 (Algorithm 1)")
    ax.plot([], [], "o", color=INK, mfc="white", ms=5, label="first_step=0 (original Keras code)")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.2), handletextpad=0.3)
    ax.set(
        xlim=(-0.4, 13.9),
        xticks=range(0, 13, 2),
        ylim=(0.38, 1.0),
        xlabel="update number, from 0",
        ylabel="weight of the old velocity, β̂",
        title="β̂ is one half at t = 0 and tends to β",
    )
    return fig


def trajectory() -> plt.Figure:
    """Draw the path and the loss of the worked example."""
    run = Gravity().minimize(worked_example, [1.2, 0.6], steps=100)
    x, y = np.meshgrid(np.linspace(-0.42, 1.35, 60), np.linspace(-0.28, 0.72, 40))
    f = 0.5 * (x**2 + 4 * y**2)

    fig, (left, right) = plt.subplots(
        1, 2, figsize=(8.6, 3.9), gridspec_kw={"width_ratios": [1.45, 1]}
    )
    left.contour(x, y, f, levels=[0.01, 0.05, 0.15, 0.35, 0.7, 1.2], colors="#b4bfca", linewidths=1)
    left.plot(*run.x.T, color=BLUE, lw=1.4)
    left.plot(*run.x[::10].T, "o", color=BLUE, ms=4.5)
    left.plot(*run.x[0], "o", color=ORANGE, ms=7, zorder=5)
    left.plot(0, 0, "+", color=INK, ms=11, mew=1.6, zorder=5)
    left.annotate("start", run.x[0], (7, 5), textcoords="offset points", color=ORANGE)
    left.grid(False)
    left.set(xlabel="x", ylabel="y", title="The path, a dot every 10 updates")

    n = np.arange(len(run.f))
    right.semilogy(n, run.f, color=BLUE, label="loss, f")
    right.semilogy(n[:-1], [float(s.m) for s in run.steps], color=ORANGE, lw=1.5, label="m")
    right.legend(loc="upper left", handlelength=1.4)
    right.set(xlabel="update", title="The loss falls and m grows", ylim=(1e-5, 1e4))
    return fig


def comparison() -> plt.Figure:
    """Draw what the page on the comparison computes: each optimizer at its best rate."""
    page = page_code("course/comparison.md")
    colors = {"SGD": MUTED, "momentum": GREEN, "Adam": PURPLE, "Gravity": BLUE}
    fig, axes = plt.subplots(2, 3, figsize=(9.6, 5.6), sharex=True, sharey=True)
    for ax, name in zip(axes.flat, page["PROBLEMS"], strict=True):
        for optimizer, step in page["OPTIMIZERS"].items():
            values = page["run"](step, name)
            slowest = values.max(axis=2)
            steps = page["arrival"](values)
            arrives = np.isfinite(steps).any()
            best = np.argmin(steps) if arrives else np.nanargmin(slowest[-1])
            shown = np.unique(np.geomspace(1, len(slowest), 48).astype(int)) - 1
            line = {"color": colors[optimizer], "lw": 2.4 if optimizer == "Gravity" else 1.5}
            ax.loglog(shown + 1, np.maximum(slowest[shown, best], 1e-7), label=optimizer, **line)
        ax.axhline(1e-3, color=INK, lw=0.8, ls=":")
        ax.set(title=name, xlim=(1, 2000), ylim=(1e-5, 1e4), yticks=[1e-4, 1, 1e4])
        ax.minorticks_off()
    axes[0, 0].legend(loc="upper right", fontsize=9)
    fig.supylabel("loss of the slowest start")
    fig.supxlabel("update")
    return fig


FIGURES = (ball_on_slope, step_curve, largest_step, averaging_weight, trajectory, comparison)


def compact(svg: str) -> str:
    """Return `svg` with numbers rounded to five digits and without indentation."""
    svg = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.5g}", svg)
    return re.sub(r" *\n +", "\n", svg)


def main() -> None:
    """Write all figures."""
    IMAGES.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for draw in FIGURES:
            fig = draw()
            fig.tight_layout()
            plt.close(fig)
            svg = io.StringIO()
            fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
            (IMAGES / f"{draw.__name__}.svg").write_text(compact(svg.getvalue()), encoding="utf-8")


if __name__ == "__main__":
    main()
