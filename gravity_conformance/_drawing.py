"""Figures that look alike on every machine, whatever its matplotlibrc and MPLBACKEND say.

Guarantee: no figure needs a display, a LaTeX or pyplot, and drawing changes no setting of its
caller. matplotlib is imported only here, inside the functions.
"""

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gravity",  # the same ids in every run
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "axes.titlesize": "medium",
}


@contextlib.contextmanager
def clean() -> Iterator[None]:
    """Draw with matplotlib's defaults and ours; every figure is made and saved inside."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may be in any script, and what its font lacks is drawn as a box.
        for message in ("Glyph .* missing from", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", message)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def figure(size: tuple[float, float], rows: int = 1, columns: int = 1) -> "tuple[Figure, Any]":
    """Return a figure of a size in inches, and the array of its axes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size, layout="constrained")
    return drawn, drawn.subplots(rows, columns, squeeze=False)


def png(drawn: "Figure", title: str | None = None) -> bytes:
    """Return a figure as the bytes of a PNG file, which hold its title, if it has one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(drawn)
    file = io.BytesIO()
    drawn.savefig(file, dpi=110, format="png", metadata={"Title": title} if title else None)
    return file.getvalue()


def svg(drawn: "Figure", title: str, prefix: str) -> str:
    """Return a figure as an element of an HTML page.

    Args:
        drawn: the figure.
        title: what it shows, for those who cannot see it.
        prefix: of its ids, which must differ from those of the page's other figures.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(drawn)
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(file, format="svg", metadata=nothing)
    element = file.getvalue()
    element = element[element.index("<svg") :]  # HTML allows no XML declaration here,
    element = re.sub(r' xmlns(:xlink)?="[^"]*"', "", element)  # and needs no XML namespaces
    element = element.replace(" xlink:href=", " href=")
    element = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}-", element)
    label = html.escape(title)
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def label(name: str) -> str:
    """Return a name for a legend: short, without mathematics, and not hidden by an underscore."""
    short = (name if len(name) <= 40 else f"…{name[-39:]}").replace("$", r"\$")
    return f"\u200b{short}" if short.startswith("_") else short


def legend_below(drawn: "Figure", axis: "Axes") -> None:
    """Put the legend of an axis below it, where it covers no curve."""
    handles, names = axis.get_legend_handles_labels()
    if handles:
        most = int(drawn.get_figwidth() * 13) // (max(map(len, names)) + 8)
        columns = max(1, min(len(names), most))
        drawn.legend(handles, names, loc="outside lower center", ncols=columns)
