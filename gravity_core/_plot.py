"""Pictures of a trajectory. matplotlib is imported only here, inside the functions."""

import html
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gravity_core.trajectory import Trajectory

SIZE = (10.5, 3.4)
ROWS = 9  # of the table in a notebook


def plot(run: "Trajectory", function: Callable[[np.ndarray], Any] | None) -> np.ndarray:
    """Draw a trajectory with pyplot, so that notebooks show it, and return the axes."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Trajectory.plot needs matplotlib, which is not installed: pip install matplotlib",
            name=error.name,
        ) from error
    return _draw(run, pyplot.figure(figsize=SIZE, layout="constrained"), function)


def as_html(run: "Trajectory") -> str:
    """Return a trajectory as a table, with a picture if matplotlib is installed."""
    columns = ("update", "t", "&#946;&#770;", "m", "f before")
    lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in columns)}</tr>"]
    for n in np.unique(np.linspace(0, len(run.steps) - 1, ROWS).astype(int)) if run.steps else ():
        step = run.steps[n]
        values = (n, step.t, *(f"{float(x):.4g}" for x in (step.beta_hat, step.m, run.f[n])))
        lines.append(f"<tr>{''.join(f'<td>{value}</td>' for value in values)}</tr>")
    title = html.escape(
        f"{len(run.steps)} updates of an array of shape {run.x.shape[1:]}, "
        f"f from {run.f[0]:.4g} to {run.f[-1]:.4g}"
    )
    return f"<p>{title}</p><table>{''.join(lines)}</table>{_svg(run, title)}"


def _svg(run: "Trajectory", title: str) -> str:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return ""
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    _draw(run, figure, None)
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # HTML allows no XML declaration here
    width = "max-width: 100%; height: auto"
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}" style="{width}"', 1)


def _draw(run: "Trajectory", figure: "Figure", function: Any) -> np.ndarray:
    axes = np.asarray(figure.subplots(1, 3), dtype=object)
    left, middle, right = axes
    points = run.x.reshape(len(run.x), -1)
    if points.shape[1] == 2:
        _draw_path(points, left, function)
    else:
        left.plot(points)
        left.set(xlabel="update", ylabel="weights", title="The weights")
    middle.plot(run.f)
    middle.set(xlabel="update", ylabel="$f$", title="The loss", yscale=_scale(run.f))
    m = np.asarray([float(step.m) for step in run.steps])
    v = np.abs(run.v).reshape(len(run.v), -1).max(axis=1)
    right.plot(m, label="$m$")
    right.plot(v, label="largest $|V|$")
    right.set(xlabel="update", title="The step", yscale=_scale(np.append(m, v)))
    right.legend()
    return axes


def _draw_path(points: np.ndarray, axis: "Axes", function: Any) -> None:
    if function is not None:
        low, high = points.min(axis=0), points.max(axis=0)
        margin = 0.15 * (high - low) + 0.05 * np.max(high - low) + 1e-9
        sides = [np.linspace(a, b, 60) for a, b in zip(low - margin, high + margin, strict=True)]
        grid = np.stack(np.meshgrid(*sides), axis=-1)
        f = np.apply_along_axis(lambda x: float(function(x)[0]), -1, grid)
        axis.contour(*sides, f, levels=12, colors="0.75", linewidths=0.8, zorder=0)
    axis.plot(*points.T)
    axis.plot(*points[0], "o", label="start")
    axis.plot(*points[-1], "s", label="end")
    axis.legend()
    axis.set(xlabel="$x_0$", ylabel="$x_1$", title="The path")


def _scale(values: np.ndarray) -> str:
    """Return "log" if all values are positive, else "linear"."""
    return "log" if bool((values > 0).all()) else "linear"
