"""Bars as one SVG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformer.files import atomic_write
from transformer.reporting.charts import BLUE, INK, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHERS = "#b8bcc4"
_ROW = 22  # pixels


def draw_bars(path: str | Path, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the values of each group, by name, on one scale; what is called "ours" stands out."""
    rows: list[tuple[str, float | None]] = []
    for group, values in groups.items():
        rows += [(group, None), *values.items()]

    def draw(axes: Axes) -> None:
        names, numbers = zip(*rows, strict=True)
        colours = [BLUE if name == "ours" else _OTHERS for name in names]
        bars = axes.barh(range(len(rows)), [number or 0.0 for number in numbers], height=0.75, color=colours)
        axes.bar_label(bars, ["" if number is None else f"{number:,.0f}" for number in numbers], padding=6)
        axes.set_yticks(range(len(rows)), names)
        for (_, number), label in zip(rows, axes.get_yticklabels(), strict=True):
            if number is None:
                label.set(fontweight="bold", color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.1)
        axes.set(title=title, xlabel=unit)

    with atomic_write(path) as partial:
        picture = svg("bars", f"{title}, in {unit}", draw, 720, 110 + _ROW * len(rows), left=160)
        partial.write_text(picture + "\n", encoding="utf-8")
