"""The loss of a run as one picture, for the model card: an SVG that needs no style sheet and no program to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transformer.files import whole_file
from transformer.reporting.model_card import CURVE_FILE
from transformer.reporting.training_report import Axis, linear, loss_axis, moving_mean, read_rows, thin

_WIDTH, _HEIGHT = 720, 360  # of the picture
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 40, 20, 48  # around the curves
_TRAIN, _VALIDATION = "#0072b2", "#d55e00"  # of Okabe and Ito (2008), told apart by colour-blind readers too
_MEAN_SHARE = 0.02  # of the steps, that one point of the moving mean averages


def draw_curve(directory: Path) -> Path | None:
    """Draw the run whose `metrics.jsonl` is in `directory`, as `loss.svg` beside it.

    Returns:
        The picture; None, and no picture, where no validation was recorded. One of a run that recorded nothing here
        is left.
    """
    metrics, picture = directory / "metrics.jsonl", directory / CURVE_FILE
    if not metrics.exists():
        return picture if picture.exists() else None
    rows, _ = read_rows(metrics)
    steps, losses = _points(rows, "loss")
    at, scores = _points(rows, "validation_loss")
    if not len(at):
        picture.unlink(missing_ok=True)  # of another run
        return None
    x = linear(0, max(steps.max(initial=1), at.max()), outward=False, least=1)
    y = loss_axis(np.concatenate((steps, at)), np.concatenate((losses, scores)))
    width = 2 * max(1, round(len(losses) * _MEAN_SHARE / 2)) + 1
    mean = moving_mean(losses, width) if len(losses) > width else losses
    drawn = _grid(x, y) + _line(x, y, steps, mean, _TRAIN, 1.5) + _line(x, y, at, scores, _VALIDATION, 2.5)
    with whole_file(picture) as partial:
        partial.write_text(_picture(drawn), encoding="utf-8")
    return picture


def _points(rows: list[dict[str, object]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of the rows that have `key`."""
    pairs = [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]  # type: ignore[arg-type]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _across(x: Axis, steps: np.ndarray) -> np.ndarray:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x.place(steps)


def _down(y: Axis, losses: np.ndarray) -> np.ndarray:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y.place(losses)


def _line(x: Axis, y: Axis, steps: np.ndarray, losses: np.ndarray, color: str, width: float) -> str:
    steps, losses = thin(steps, losses)
    points = " ".join(f"{a:.1f},{d:.1f}" for a, d in zip(_across(x, steps), _down(y, losses), strict=True))
    return (
        f'<polyline clip-path="url(#plot)" fill="none" stroke="{color}" stroke-width="{width}" '
        f'stroke-linejoin="round" points="{points}"/>'
    )


def _grid(x: Axis, y: Axis) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    drawn = ""
    for tick, down in zip(y.ticks, _down(y, np.array(y.ticks)), strict=True):
        drawn += f'<path stroke="#e1e3e8" d="M{_LEFT} {down:.1f}H{right}"/>'
        drawn += f'<text x="{_LEFT - 8}" y="{down + 4:.1f}" text-anchor="end">{y.text(tick)}</text>'
    for tick, across in zip(x.ticks, _across(x, np.array(x.ticks)), strict=True):
        drawn += f'<text x="{across:.1f}" y="{bottom + 20}" text-anchor="middle">{x.text(tick)}</text>'
    return drawn + f'<text x="{right}" y="{bottom + 38}" text-anchor="end" font-style="italic">step</text>'


def _picture(drawn: str) -> str:
    plot = f'x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">
<title>Loss in nats per token, by step</title>
<rect width="100%" height="100%" fill="#ffffff"/>
<clipPath id="plot"><rect {plot}/></clipPath>
<g font-family="sans-serif" font-size="12" fill="#636b7a">
<text x="{_LEFT}" y="24" font-size="13">Loss in nats per token:
<tspan fill="{_TRAIN}">training steps, moving mean;</tspan>
<tspan fill="{_VALIDATION}">validation text</tspan></text>
{drawn}
</g></svg>
"""
