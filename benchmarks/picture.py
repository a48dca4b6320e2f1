"""Bars as one SVG that needs no style sheet and no program to be seen."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from transformer.files import whole_file

_WIDTH, _LABEL, _VALUE, _ROW = 720, 190, 80, 22  # of the picture, of what stands before and behind a bar; of a bar
_OURS, _OTHERS = "#0072b2", "#b8bcc4"


def draw_bars(path: str | Path, title: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """Draw the values of each group, by name, one scale for all; what is called "ours" stands out."""
    most = max(value for group in groups.values() for value in group.values())
    drawn, y = f'<text x="12" y="22" font-weight="600">{escape(title)}</text>', 34
    for group, values in groups.items():
        y += _ROW
        drawn += f'<text x="12" y="{y}" font-weight="600" fill="#555b66">{escape(group)}</text>'
        for name, value in values.items():
            y += _ROW
            length = (_WIDTH - _LABEL - _VALUE) * value / most
            color = _OURS if name == "ours" else _OTHERS
            drawn += (
                f'<text x="{_LABEL - 8}" y="{y}" text-anchor="end">{escape(name)}</text>'
                f'<rect x="{_LABEL}" y="{y - 12}" width="{length:.1f}" height="{_ROW - 6}" rx="2" fill="{color}"/>'
                f'<text x="{_LABEL + length + 6:.1f}" y="{y}">{value:,.0f}</text>'
            )
        y += 6
    with whole_file(path) as partial:
        partial.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 14}" width="{_WIDTH}" '
            'font-family="system-ui, sans-serif" font-size="13" fill="#20242c">'
            f'<rect width="100%" height="100%" fill="#fff"/>{drawn}</svg>\n',
            encoding="utf-8",
        )
