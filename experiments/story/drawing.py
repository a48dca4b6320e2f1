"""The pictures of the page: losses over the steps, as SVG that follows the reader's light or dark scheme."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

from transformer.reporting.page import COLOURS
from transformer.reporting.training_report import linear

_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 62, 34  # margins around the lines
_COLOURS = ("blue", "vermilion", "green")
_STYLE = """
svg { font: 13px system-ui, sans-serif; } .card { fill: var(--card); stroke: var(--grid); }
text { fill: var(--soft); } .title { fill: var(--ink); font-size: 15px; font-weight: 600; }
.grid { stroke: var(--grid); } polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.blue { stroke: var(--blue); } .vermilion { stroke: var(--vermilion); } .green { stroke: var(--green); }
.thin { stroke-width: 1.3; stroke-dasharray: 4 4; }
"""


@dataclass(frozen=True)
class Line:
    """points: (step, nats per token). colour: 0, 1 or 2. dashed: what the run itself reported."""

    name: str
    points: list[tuple[float, float]]
    colour: int
    dashed: bool = False


def curves(title: str, lines: list[Line]) -> str:
    """A chart of lines over the steps, the falling beginning of the losses cut off at the top."""
    steps = np.array([step for line in lines for step, _ in line.points])
    losses = np.array([loss for line in lines for step, loss in line.points if step >= 0.15 * steps.max()])
    x, y = linear(0, float(steps.max()), 5), linear(float(losses.min()), float(losses.max()), 5)
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(step: float) -> float:
        return _LEFT + wide * float(x.place(np.array(step)))

    def down(loss: float) -> float:
        return _TOP + high * (1 - min(1.0, float(y.place(np.array(loss)))))

    parts = [f'<text class="title" x="16" y="25">{escape(title)}</text>']
    for tick in y.ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{down(tick) + 4:.1f}" text-anchor="end">{y.text(tick)}</text>')
    for tick in x.ticks:
        parts.append(f'<text x="{across(tick):.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{x.text(tick)}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="25" text-anchor="end">nats per token, by step</text>')
    key = 16.0
    for line in lines:
        kind = f"{_COLOURS[line.colour]}{' thin' if line.dashed else ''}"
        points = " ".join(f"{across(step):.1f},{down(loss):.1f}" for step, loss in line.points)
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
        parts.append(f'<polyline class="{kind}" points="{key:.0f},44 {key + 22:.0f},44"/>')
        parts.append(f'<text x="{key + 28:.0f}" y="48">{escape(line.name)}</text>')
        key += 48 + 6.6 * len(line.name)
    card = f'<rect class="card" x=".5" y=".5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="10"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'role="img"><title>{escape(title)}</title><style>{COLOURS}{_STYLE}</style>{card}{"".join(parts)}</svg>\n'
    )
