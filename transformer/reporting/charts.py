"""Charts as SVG, by matplotlib, which is imported only when a chart is drawn.

Labels are SVG text, and the same data give the same file: ids are derived from the chart's name, without a date.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue, vermilion and green of Okabe and Ito (2008), a palette for colour-blind readers.
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
CARD, INK, SOFT, GRID = "#ffffff", "#20242a", "#636b7a", "#e8e9ec"
# The CSS variables of `page.COLOURS`, by their colours on a light page.
_VARIABLES = {
    BLUE: "blue",
    VERMILION: "vermilion",
    GREEN: "green",
    CARD: "card",
    INK: "ink",
    SOFT: "soft",
    GRID: "grid",
}
_RIGHT, _BOTTOM = 44, 60  # pixels at the right of and below the plot
_MARGIN = 0.05  # above and below the values, as a fraction of their range
_STYLE: Any = {
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # whose character widths matplotlib has
    "font.size": 12,
    "text.color": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": GRID,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "figure.facecolor": CARD,
}


def svg(
    name: str, description: str, draw: Callable[[Axes], None], width: int, height: int, left: int = 78, top: int = 40
) -> str:
    """Draw a chart as an SVG element of `width` × `height` pixels.

    Args:
        name: prefix of the ids in it, which are unique in a page with several charts.
        description: a text alternative.
        draw: draws the chart on matplotlib's axes.
        left: pixels at the left of the plot, for labels. top: above it, for title and legend.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(f"a chart needs {error.name}: install decoder-only-transformer[train].") from error

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72))
        figure.subplots_adjust(left / width, _BOTTOM / height, 1 - _RIGHT / width, 1 - top / height)
        draw(figure.add_subplot())
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata={**nothing, "Title": description})
    head, _, content = file.getvalue().partition("<svg")[2].partition(">")
    head = head.replace('pt"', 'px"')  # matplotlib's point is a pixel here
    content = content.replace('<g id="', f'<g id="{name}-')
    return f'<svg role="img" aria-label="{escape(description)}"{head}>{content.rstrip()}'


def with_variables(chart: str) -> str:
    """The chart with the CSS variables of `page.COLOURS` as colours, for a light and a dark colour scheme."""
    for colour, variable in _VARIABLES.items():
        chart = chart.replace(colour, f"var(--{variable})")
    return chart


def number_axes(axes: Axes, steps: float, text: Callable[[float], str], logarithmic: bool = False) -> None:
    """Set up the x-axis for steps from 0 to `steps`, and format the numbers of both axes with `text`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(0, max(1.0, steps))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: text(step)))
    axes.grid(visible=False, axis="x")
    if logarithmic:
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def limits(low: float, high: float) -> tuple[float, float]:
    """Axis limits for values from `low` to `high`, with a margin, also if they are equal."""
    size = max(abs(low), abs(high))
    margin = _MARGIN * (high - low) if high - low > 1e-9 * max(size, 1e-3) else max(size / 10, 0.1)
    return low - margin, high + margin


def loss_limits(steps: np.ndarray, losses: np.ndarray, opening: float = 0.05) -> tuple[float, float]:
    """Axis limits for the losses of a run, ignoring outliers.

    Args:
        opening: fraction of the run, at its start, that may be above the upper limit.
    """
    finite = losses[np.isfinite(losses)]
    kept = losses[np.isfinite(losses) & (steps >= opening * steps.max(initial=0))]
    kept = kept if len(kept) else finite
    return limits(*np.percentile(kept, (0.3, 99))) if len(kept) else (0.0, 1.0)
