"""The figures of a report: colour-blind safe, with the labels on the lines."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.compare.analysis import FLOOR
from benchmarks.compare.problems import VALUE, WRONG
from benchmarks.labels import spread
from gravity_conformance._output import write

Json = dict[str, Any]
# The colours of Okabe and Ito, and a dash for each, so that no line needs its colour.
STYLES = {
    "gravity": ("#000000", "-"),
    "sgd": ("#E69F00", "-"),
    "momentum": ("#0072B2", "-"),
    "momentum-clip": ("#56B4E9", "--"),
    "rmsprop": ("#009E73", "-."),
    "adam": ("#D55E00", "-"),
    "adamw": ("#CC79A7", "--"),
    "gravity-t0": ("#E69F00", "--"),
    "alpha-0": ("#009E73", "-"),
    "beta-fixed": ("#CC79A7", "-."),
    "m-infinite": ("#D55E00", ":"),
    "momentum-noise": ("#56B4E9", "--"),
}
OTHERS = ("gravity", "sgd", "momentum", "momentum-clip", "rmsprop", "adam", "adamw")
PARTS = (
    *("gravity", "gravity-t0", "alpha-0", "beta-fixed", "m-infinite"),
    *("momentum", "momentum-noise"),
)
RC: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "axes.axisbelow": True,
}
GAP = 9  # points between two labels
LEAST = {WRONG: 1e-3}  # what is drawn for smaller errors


def save(report: Json, folder: Path) -> list[Path]:
    """Draw and write all figures for which there are results; return their paths."""
    figures = {}
    with mpl.rc_context(RC):
        if report["problems"]:
            figures["curves"] = curves(report, OTHERS)
            figures["curves-parts"] = curves(report, PARTS)
            figures["sensitivity"] = sensitivity(report)
            figures["profile"] = profile(report)
            figures["table"] = table(report)
        if report["studies"]:
            figures["studies"] = studies(report)
        contents: dict[Path, str | bytes | None] = {}
        for name, figure in figures.items():
            contents[folder / f"{name}.png"] = _png(figure)
    folder.mkdir(parents=True, exist_ok=True)
    write(contents)
    return list(contents)


def _png(figure: Figure) -> bytes:
    """Return a picture of few colours: a quarter of the bytes, and a third of those of an SVG."""
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    palette = Image.open(file).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    palette.save(small, "png", optimize=True)
    return small.getvalue()


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = min(2, len(titles))  # with three, a page shows the text too small
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, loc="left")
    for ax in axes[len(titles) :]:
        ax.remove()
    figure.subplots_adjust(wspace=0.85, hspace=0.45)
    return figure, axes[: len(titles)]


def _label(ax: Axes, lines: Iterable[tuple[float, float, str, str]]) -> None:
    """Write labels beside the ends of lines, given as (x, y, text, colour), without overlaps."""
    height = ax.get_window_extent().height * 72 / ax.get_figure().dpi  # in points
    ax.autoscale_view()  # else the limits change when the figure is drawn
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = sorted((to_axes.transform((x, y))[1], x, y, text, c) for x, y, text, c in lines)
    places = spread([place * height for place, *_ in wanted], GAP, height)
    for place, (_, x, y, text, colour) in zip(places, wanted, strict=True):
        arrow = {"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 0}
        ax.annotate(
            text,
            xy=(x, y),
            xytext=(1.07, place / height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=7.5,
            arrowprops=arrow | {"relpos": (0, 0.5)},  # to the left edge of the text
        )


def _drawn(values: Sequence[float], measure: str) -> np.ndarray:
    return np.maximum(np.asarray(values, float), LEAST.get(measure, FLOOR))


def curves(report: Json, names: Sequence[str]) -> Figure:
    """Draw the error on validation against the steps: medians, and bands between quartiles."""
    problems = report["problems"].values()
    figure, axes = _panels([f"{p['title']}: {p['measure']}" for p in problems])
    for ax, problem in zip(axes, problems, strict=True):
        ends = []
        for name in names:
            if name not in problem["results"]:
                continue
            found, (colour, dash) = problem["results"][name]["curve"], STYLES[name]
            lower, middle, upper = (
                _drawn(found[key], problem["measure"]) for key in ("lower", "median", "upper")
            )
            x = np.linspace(0, problem["steps"], len(middle))
            ax.fill_between(x, lower, upper, color=colour, alpha=0.12, lw=0)
            ax.plot(x, middle, color=colour, ls=dash, lw=1.4)
            ends.append((x[-1], middle[-1], report["optimizers"][name]["title"], colour))
        ax.set(yscale="log", xlim=(0, problem["steps"]), xlabel="step")
        ax.axhline(problem["target"], color="#66727f", lw=0.7, ls=(0, (1, 3)))
        _label(ax, ends)
    return figure


def sensitivity(report: Json) -> Figure:
    """Draw the error on validation against the learning rate, from the tuning seeds."""
    problems = report["problems"].values()
    figure, axes = _panels([f"{p['title']}: {p['measure']}" for p in problems])
    for ax, problem in zip(axes, problems, strict=True):
        lines = []
        for name in OTHERS:
            if name not in problem["results"]:
                continue
            result, (colour, dash) = problem["results"][name], STYLES[name]
            rates = [rate for rate, _ in result["sensitivity"]]
            errors = _drawn([error for _, error in result["sensitivity"]], problem["measure"])
            ax.plot(rates, errors, color=colour, ls=dash, lw=1.3, marker="o", ms=2)
            lines.append((rates[-1], errors[-1], report["optimizers"][name]["title"], colour))
        ax.set(xscale="log", yscale="log", xlabel="learning rate")
        _label(ax, lines)
    return figure


def profile(report: Json) -> Figure:
    """Draw the share of problems solved within a factor of the fastest."""
    found = report["profile"]
    figure, axes = _panels(["Gravity and others", "Gravity and its parts"])
    for ax, names in zip(axes, (OTHERS, PARTS), strict=True):
        lines = []
        for name in names:
            colour, dash = STYLES[name]
            shares = found["shares"][name]
            ax.step(found["factors"], shares, where="post", color=colour, ls=dash, lw=1.5)
            lines.append(
                (found["factors"][-1], shares[-1], report["optimizers"][name]["title"], colour)
            )
        ax.set(
            xscale="log",
            xlim=(1, found["factors"][-1]),
            ylim=(0, 1.02),
            xlabel="steps to the target, relative to the fastest",
            ylabel="share of problems",
        )
        _label(ax, lines)
    return figure


def shown(error: float, measure: str) -> str:
    """Return an error as a short text.

    Example:
        >>> shown(0.0278, WRONG), shown(2.4, ""), shown(0.00031, VALUE), shown(19.2, VALUE)
        ('2.8 %', '2.40', '3e-04', '19')
        >>> shown(549.4, VALUE), shown(1e-31, VALUE)
        ('549', '< 1e-16')
    """
    if measure == WRONG:
        return f"{100 * error:.1f} %"
    if measure != VALUE:
        return f"{error:.2f}"
    if error < FLOOR:
        return f"< {FLOOR:.0e}"
    if error < 0.1 or error >= 1000:
        return f"{error:.0e}"
    return f"{error:.3g}" if error >= 100 else f"{error:.2g}"


def table(report: Json) -> Figure:
    """Draw the median errors on test, tuned above untuned. Dark is near the best tuned optimizer.

    A star ties with it.
    """
    problems = report["problems"].values()
    rows = [
        (name, key, f"{optimizer['title']}{words}")
        for key, words in (("tuned", ""), ("untuned", ", default rate"))
        for name, optimizer in report["optimizers"].items()
    ]
    figure = Figure(figsize=(0.9 * len(problems) + 2, 0.3 * len(rows) + 2))
    ax = figure.subplots()
    shades = np.full((len(rows), len(problems)), np.nan)
    for column, problem in enumerate(problems):
        for row, (name, key, _) in enumerate(rows):
            if (result := problem["results"].get(name)) is None:
                continue
            shades[row, column] = shade = result[key]["progress"]
            star = " *" if key == "tuned" and result["ties_with_best"] else ""
            text = shown(result[key]["median"], problem["measure"]) + star
            colour = "white" if shade > 0.55 else "black"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
    ax.imshow(shades, cmap="cividis_r", vmin=0, vmax=1, aspect="auto")
    ax.axhline(len(rows) / 2 - 0.5, color="white", lw=4)
    titles = [problem["title"] for problem in problems]
    ax.set_xticks(range(len(problems)), titles, rotation=40, ha="right")
    ax.set_yticks(range(len(rows)), [title for _, _, title in rows])
    ax.grid(False)
    return figure


def studies(report: Json) -> Figure:
    """Draw the error on test against the setting of each study, with two rates."""
    panels = [(study, key) for study in report["studies"].values() for key in WORDS]
    titles = [f"{study['problem']}, {WORDS[key]}" for study, key in panels]
    figure, axes = _panels(titles)
    for ax, (study, key) in zip(axes, panels, strict=True):
        lines = []
        for name in OTHERS:
            if name not in study["results"]:
                continue
            colour, dash = STYLES[name]
            medians = [found[key]["median"] for found in study["results"][name]]
            errors = _drawn(medians, study["measure"])
            ax.plot(study["settings"], errors, color=colour, ls=dash, lw=1.4, marker="o", ms=2.5)
            lines.append(
                (study["settings"][-1], errors[-1], report["optimizers"][name]["title"], colour)
            )
        ax.set(xscale="log", yscale="log", xlabel=study["title"], ylabel=study["measure"])
        _label(ax, lines)
    return figure


WORDS = {"ordinary": "the same rate", "tuned": "the best rate"}
