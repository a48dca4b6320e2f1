"""The report of a training run: `metrics.jsonl` as charts in one self-contained HTML file.

Losses are in nats per token, everywhere.
"""

from __future__ import annotations

import math
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transformer.evaluation.perplexity import perplexity
from transformer.files import atomic_write
from transformer.reporting.charts import BLUE, limits, number_axes, svg, with_variables
from transformer.reporting.display import clock, short
from transformer.reporting.loss_curve import draw_validations, loss_chart
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
from transformer.reporting.page import page, tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_SAMPLES = 50
_WIDE = 50  # the ratio of gradient norms above which their axis is logarithmic


def write_report(directory: Path, title: str) -> Path:
    """Write `report.html` for the run in `directory`.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if there is no `metrics.jsonl`.
        WriteError: if the page cannot be written.
    """
    rows, every = read_metrics(directory / "metrics.jsonl")
    with atomic_write(directory / "report.html") as partial:
        # A sample may have lone surrogates.
        partial.write_text(_page(title, rows, every), encoding="utf-8", errors="replace")
    return directory / "report.html"


def _latest(rows: list[Row], key: str) -> float:
    """The last finite number with this key; nan if there is none."""
    return next((value for row in reversed(rows) if math.isfinite(value := number(row, key))), math.nan)


def _small_chart(name: str, unit: str, rows: list[Row], key: str, last: float) -> str:
    """A number by step, up to step `last`, as SVG; empty if it was not recorded."""
    steps, values = column(rows, "step"), column(rows, key)
    finite = np.isfinite(values)
    if not finite.any():
        return ""
    low, high = float(values[finite].min()), float(values[finite].max())
    logarithmic = key == "gradient_norm" and low > 0 and high > _WIDE * low

    def draw(axes: Axes) -> None:
        number_axes(axes, last, short, logarithmic)
        if key == "bits_per_byte":
            axes.set_ylim(*limits(low, high))
            draw_validations(axes, steps[finite], values[finite])
        else:
            if not logarithmic:
                axes.set_ylim(*limits(min(0.0, low), high))
            raw = key != "learning_rate"
            if raw:
                axes.plot(*thin(steps, values), color=BLUE, alpha=0.3, linewidth=1, gid="raw")
            mean = moving_mean(values, mean_width(values)) if raw else values
            axes.plot(*thin(steps, mean), color=BLUE, gid="training")
        axes.set(title=name, xlabel="step", ylabel=f"{unit}, logarithmic" if logarithmic else unit)

    return svg(key, f"{name} in {unit}, by step", draw, 480, 250)


def _tiles(rows: list[Row]) -> str:
    """The numbers at the top of the page, without unknown ones."""
    training = [row for row in rows if not is_validation(row)]
    scored = [row for row in rows if math.isfinite(number(row, "validation_loss"))]
    best = min(scored, key=lambda row: row["validation_loss"], default={})
    loss, bits = number(best, "validation_loss"), number(best, "bits_per_byte")
    latest = math.nan if best else _latest(training, "loss")
    tokens, seconds, cost = (_latest(rows, key) for key in ("tokens", "seconds", "cost"))
    rates, use = column(training, "tokens_per_second"), _latest(training, "model_flop_utilisation")
    rate = float(np.median(rates[np.isfinite(rates)])) if np.isfinite(rates).any() else math.nan
    of_peak = f", {100 * use:.0f} % of the peak" if math.isfinite(use) else ""
    numbers = (
        ("Validation loss", loss, f"{loss:.3f}", f"nats per token, best at step {number(best, 'step'):,.0f}"),
        ("Training loss", latest, f"{latest:.3f}", "nats per token; no validation yet"),
        ("Perplexity", loss, short(perplexity(loss)), "per token"),
        ("Compression", bits, f"{bits:.3f}", "bits per byte"),
        ("Length", _latest(rows, "step"), f"{_latest(rows, 'step'):,.0f}", "steps"),
        ("Text", tokens, short(tokens), "tokens"),
        ("Time", seconds, clock(seconds), "hours" if seconds >= 3600 else "minutes"),
        ("Speed", rate, f"{rate:,.0f}", f"tokens/s{of_peak}"),
        ("Cost", cost, f"{cost:,.2f}", "unit of price_per_hour"),
    )
    return tiles([(name, text, unit) for name, number, text, unit in numbers if math.isfinite(number)])


def _samples(rows: list[Row]) -> str:
    """The samples of validations, the newest first."""
    told = [row for row in reversed(rows) if isinstance(row.get("sample"), str)]
    articles = ""
    for row in told[:_MOST_SAMPLES]:
        facts = f"loss {number(row, 'validation_loss'):.3f}"
        if math.isfinite(bits := number(row, "bits_per_byte")):
            facts += f" · {bits:.3f} bits per byte"
        head = f"<h3>step {row['step']:,} <small>{facts}</small></h3>"
        articles += f'<article>{head}<p dir="auto">{escape(row["sample"])}</p></article>'
    if len(told) > _MOST_SAMPLES:
        articles += f"<p>{len(told) - _MOST_SAMPLES:,} older ones are in metrics.jsonl.</p>"
    return f"<section><h2>Samples, newest first</h2>{articles}</section>" if told else ""


def _page(title: str, rows: list[Row], every: int) -> str:
    training = [row for row in rows if not is_validation(row)]
    validations = [row for row in rows if is_validation(row)]
    last = float(max((row["step"] for row in rows), default=1))
    charts = (
        loss_chart(rows, every),
        _small_chart("Compression of the validation text", "bits per byte", validations, "bits_per_byte", last),
        _small_chart("Learning rate", "step size", training, "learning_rate", last),
        _small_chart("Speed", "tokens per second", training, "tokens_per_second", last),
        _small_chart("Gradient norm", "norm before clipping", training, "gradient_norm", last),
    )
    figures = "".join(f"<figure>{with_variables(chart)}</figure>" for chart in charts if chart)
    written = datetime.now().strftime("%-d %B %Y, %H:%M")
    body = f'<dl>{_tiles(rows)}</dl>\n<div class="charts">{figures}</div>\n{_samples(rows)}'
    return page(title, written, body, _STYLE)


_STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure, article { margin: 0; background: var(--card); border: 1px solid var(--grid); border-radius: 10px; }
figure { padding: .75rem; min-width: 0; overflow-x: auto; } figure:first-child { grid-column: 1 / -1; }
figure > svg { display: block; width: 100%; height: auto; min-width: 26rem; }
figure:first-child > svg { min-width: 40rem; }
article { padding: .9rem 1.25rem; margin-bottom: .75rem; }
article h3 { margin: 0; font-size: .875rem; font-weight: 600; } article h3 small { margin-left: .5em; }
article p { margin: .3rem 0 0; max-width: 46rem; white-space: pre-wrap; overflow-wrap: anywhere; }
"""
