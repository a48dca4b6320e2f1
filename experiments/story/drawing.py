"""The charts of the page: losses over the steps, as SVG that follows the reader's light or dark scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transformer.reporting.charts import BLUE, GREEN, VERMILION, limits, number_axes, svg, with_variables
from transformer.reporting.page import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, VERMILION, GREEN)
_OPENING = 0.15  # the share of the steps whose losses the scale does not have to hold: they fall steeply there


@dataclass(frozen=True)
class Line:
    """points: (step, nats per token). colour: 0, 1 or 2. dashed: what the run itself reported."""

    name: str
    points: list[tuple[float, float]]
    colour: int
    dashed: bool = False


def curves(name: str, title: str, lines: list[Line]) -> str:
    """A chart of lines over the steps, the falling beginning of the losses cut off at the top."""
    last = max(step for line in lines for step, _ in line.points)
    losses = [loss for line in lines for step, loss in line.points if step >= _OPENING * last]

    def draw(axes: Axes) -> None:
        number_axes(axes, last, "{:,.0f}".format)
        axes.set_ylim(*limits(min(losses), max(losses)))
        for number, line in enumerate(lines):
            style = {"linestyle": "--", "linewidth": 1.3} if line.dashed else {"linewidth": 2}
            axes.plot(
                *np.array(line.points).T, color=_COLOURS[line.colour], label=line.name, gid=f"run-{number}", **style
            )
        axes.set(title=title, xlabel="step", ylabel="nats per token")
        axes.legend(loc="best")

    chart = with_variables(svg(name, f"{title}: loss in nats per token, by step", draw, 760, 360))
    return chart.replace("<defs>", f"<style>{COLOURS}</style><defs>", 1) + "\n"
