"""Blank charts: a training draws five at each validation, which takes ten times as long as the steps of a tiny one."""

from __future__ import annotations

from html import escape
from typing import Any

import pytest

from transformer.reporting import charts, loss_curve, training_report

_DRAWN_BY = (loss_curve, training_report)


def leave_charts_blank(patch: pytest.MonkeyPatch) -> None:
    """Have trainings write charts with nothing in them."""
    for module in _DRAWN_BY:
        patch.setattr(module, "svg", _blank)


def draw_charts(patch: pytest.MonkeyPatch) -> None:
    """Have trainings draw their charts, for a test that looks at them."""
    for module in _DRAWN_BY:
        patch.setattr(module, "svg", charts.svg)


def _blank(name: str, description: str, *_: Any, **__: Any) -> str:
    return f'<svg id="{name}" role="img" aria-label="{escape(description)}"></svg>'
