"""The loss curve of a run, for its report and for the model card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transformer.files import atomic_write
from transformer.reporting.charts import BLUE, VERMILION, loss_limits, number_axes, svg
from transformer.reporting.display import short
from transformer.reporting.metrics_reader import (
    Row,
    column,
    is_validation,
    mean_width,
    moving_mean,
    number,
    read_metrics,
    thin,
)
from transformer.reporting.model_card import CURVE_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_MARKS = 300  # validations; if there are more, only their line is drawn


def draw_curve(directory: Path) -> Path | None:
    """Draw the loss curve of the run in `directory` from its `metrics.jsonl`, as `loss.svg`.

    Returns:
        The file; None, and the file is deleted, if there is no validation in `metrics.jsonl`. Without a `metrics.jsonl`
        an existing file is kept.
    """
    metrics, picture = directory / "metrics.jsonl", directory / CURVE_FILE
    if not metrics.exists():
        return picture if picture.exists() else None
    rows, every = read_metrics(metrics)
    if not np.isfinite(column(rows, "validation_loss")).any():
        picture.unlink(missing_ok=True)  # of another run
        return None
    with atomic_write(picture) as partial:
        partial.write_text(loss_chart(rows, every) + "\n", encoding="utf-8")
    return picture


def loss_chart(rows: list[Row], every: int) -> str:
    """The training loss, its moving mean, and the validation loss, as SVG. rows, every: of `read_metrics`."""
    training = [row for row in rows if not is_validation(row)]
    validations = [row for row in rows if is_validation(row)]
    steps, losses = column(training, "step"), column(training, "loss")
    at, scores = column(validations, "step"), column(validations, "validation_loss")
    recorded = np.array(["loss" in row for row in training], dtype=bool)
    broken = np.union1d(steps[recorded & ~np.isfinite(losses)], at[~np.isfinite(scores)])
    counted = [row for row in rows if math.isfinite(number(row, "tokens"))]
    read_at, read = (np.append(0.0, column(counted, key)) for key in ("step", "tokens"))

    def step_label(step: float) -> str:
        return f"{short(step)}\n{short(float(np.interp(step, read_at, read)), 3)} tokens" if counted else short(step)

    def draw(axes: Axes) -> None:
        number_axes(axes, max((row["step"] for row in rows), default=1), step_label)
        axes.set_ylim(*loss_limits(np.concatenate((steps, at)), np.concatenate((losses, scores))))
        if np.isfinite(losses).any():
            width, each = mean_width(losses), "each step" if every == 1 else f"one step in {every}"
            axes.plot(*thin(steps, losses), color=BLUE, alpha=0.3, linewidth=1, label=f"training, {each}", gid="raw")
            mean = moving_mean(losses, width)
            axes.plot(*thin(steps, mean), color=BLUE, label=f"mean of {width * every:,} steps", gid="training")
        finite = np.isfinite(scores)
        draw_validations(axes, at[finite], scores[finite])
        if len(broken):
            _draw_broken(axes, broken)
        axes.set(title="Loss", xlabel="step", ylabel="nats per token")
        if axes.lines:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)

    return svg("loss", "Loss in nats per token, by step", draw, 1000, 440, top=72)


def draw_validations(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw a line with a mark for each value, a ring for the lowest, and triangles for values outside the limits."""
    if not len(steps):
        return
    low, high = axes.get_ylim()
    best = int(values.argmin())
    marker = "o" if len(steps) <= _MOST_MARKS else ""
    axes.plot(steps, values, marker=marker, markersize=5, color=VERMILION, label="validation", gid="validation")
    lowest = slice(best, best + 1)
    label = f"lowest: {values[best]:.4f} at step {steps[best]:,.0f}"
    (ring,) = axes.plot(steps[lowest], values[lowest], "o", color=VERMILION, label=label, gid="lowest", clip_on=False)
    ring.set(markersize=9, markerfacecolor="none")
    if len(off := np.flatnonzero((values < low) | (values > high))):
        edge = np.clip(values[off], low, high)
        axes.plot(steps[off], edge, "^", color=VERMILION, label="off the scale", gid="off-the-scale", clip_on=False)


def _draw_broken(axes: Axes, steps: np.ndarray) -> None:
    """Draw crosses at the top for steps whose loss was not a number, at most one per hundredth of the width."""
    shown = steps[np.unique((100 * steps / max(1, steps.max())).astype(int), return_index=True)[1]]
    label = f"not a number, first at step {steps[0]:,.0f}"
    (crosses,) = axes.plot(shown, np.ones(len(shown)), "x", color=VERMILION, label=label, gid="not-a-number")
    crosses.set(transform=axes.get_xaxis_transform(), clip_on=False)
