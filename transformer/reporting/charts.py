"""Charts as SVG, drawn by matplotlib, which is imported only when one is drawn.

Texts stay texts, and the same data give the same file: ids are derived from the chart's name, and there is no date.
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

# Blue, vermilion and green of Okabe and Ito (2008), told apart by colour-blind readers too.
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
CARD, INK, SOFT, GRID = "#ffffff", "#20242a", "#636b7a", "#e8e9ec"
# The variables of `page.COLOURS`, by the colour that each of them has in a light page.
_VARIABLES = {
    BLUE: "blue",
    VERMILION: "vermilion",
    GREEN: "green",
    CARD: "card",
    INK: "ink",
    SOFT: "soft",
    GRID: "grid",
}
_RIGHT, _BOTTOM = 44, 60  # pixels beside and below the plot, for its labels
_MARGIN = 0.05  # of the range of the values, left free above and below them
_STYLE: Any = {
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # whose widths matplotlib knows
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
    """An SVG element of `width` × `height` pixels with what `draw` draws.

    Args:
        name: begins the ids in it, so that charts of different names can stand in one page.
        description: what it shows, for those who do not see it.
        left: pixels beside the plot, for labels. top: above it, for its title and its legend.

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
    """The chart in the colours that a style sheet with `page.COLOURS` gives it: it follows a light or dark scheme."""
    for colour, variable in _VARIABLES.items():
        chart = chart.replace(colour, f"var(--{variable})")
    return chart


def number_axes(axes: Axes, steps: float, text: Callable[[float], str], logarithmic: bool = False) -> None:
    """Give `axes` steps from 0 to `steps` across, and numbers that `text` writes up."""
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
    """The ends of a scale that holds the values from `low` to `high`, with a margin, also where they are one value."""
    size = max(abs(low), abs(high))
    margin = _MARGIN * (high - low) if high - low > 1e-9 * max(size, 1e-3) else max(size / 10, 0.1)
    return low - margin, high + margin


def loss_limits(steps: np.ndarray, losses: np.ndarray, opening: float = 0.05) -> tuple[float, float]:
    """The ends of a scale for the losses of a run, that a few wild steps do not stretch.

    Args:
        opening: the share of the steps, from the first, that it does not have to hold: the loss falls steeply there.
    """
    finite = losses[np.isfinite(losses)]
    kept = losses[np.isfinite(losses) & (steps >= opening * steps.max(initial=0))]
    kept = kept if len(kept) else finite
    return limits(*np.percentile(kept, (0.3, 99))) if len(kept) else (0.0, 1.0)
