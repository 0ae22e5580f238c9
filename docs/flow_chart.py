"""Draw images/does-not-learn.svg: questions in a column, and beside each what to do for "yes".

python docs/flow_chart.py
"""

from pathlib import Path

from gravity_conformance import _drawing

PICTURE = Path(__file__).resolve().parent / "images" / "does-not-learn.svg"
CHART = (
    ("Does a tensor become NaN?", "Skip steps whose gradient is not finite."),
    ("Does the loss explode at the first steps?", "velocity_std = alpha / rate"),
    ("Is the rate one for Adam (0.001 or less)?", "Take the rate of SGD. Begin with 0.1."),
    ("Is the loss a sum, or max|G| above 1?", "Take the mean, or clip the gradient."),
    ("Does one tensor alone hardly move?", "Clip its outliers by value."),
    ("Does a trained model forget?", "velocity_std = 0"),
    ("Do several processes learn worse than one?", "Shard each tensor, not their concatenation."),
)
LAST = "Look at the numbers of each tensor."
ASK, DO = "#0072B2", "#009E73"


def figure():
    """Return the chart."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7.4, 0.72 * (len(CHART) + 1)))
    ax = drawn.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 10), ylim=(-len(CHART) - 0.5, 0.6))
    ax.axis("off")

    def box(x: float, y: float, text: str, colour: str):
        frame = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": colour, "lw": 1.5}
        return ax.text(x, y, text, ha="left", va="center", fontsize=9.5, color="black", bbox=frame)

    for row, (question, mend) in enumerate(CHART):
        box(0.25, -row, question, ASK)
        box(5.9, -row, mend, DO)
        arrow = {"arrowstyle": "->", "color": "#66727f"}
        ax.annotate("", (5.7, -row), (4.75, -row), arrowprops=arrow)
        ax.text(5.2, -row + 0.12, "yes", ha="center", fontsize=8.5, color="#66727f")
        ax.annotate("", (0.7, -row - 0.68), (0.7, -row - 0.3), arrowprops=arrow)
        ax.text(0.85, -row - 0.56, "no", fontsize=8.5, color="#66727f")
    box(0.25, -len(CHART), LAST, DO)
    return drawn


def main() -> None:
    """Write the picture."""
    with _drawing.clean():
        figure().savefig(PICTURE, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    main()
