"""A page that shows a training run: `metrics.jsonl` read, thinned and drawn as one self-contained HTML file.

Losses are in nats per token, everywhere. Each chart is an <svg> as wide as the window lets it be: texts and marks are
placed in percent and keep their size; the lines lie in an inner <svg> of 1000 × 1000 units that stretches beneath them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from transformer.files import whole_file
from transformer.reporting.display import clock, perplexity
from transformer.reporting.page import page, tiles

_MOST_LINES = 10_000  # of the file that are parsed, for speed; of a longer one, every k-th
_NEVER_SKIPPED = (b"validation_loss", b"NaN", b"Infinity", b"null")
_BUCKETS = 400  # along the steps: no line needs more points than a screen has columns
_MOST_MARKS, _MOST_SAMPLES = 300, 50
_OPENING = 0.05  # the share of the steps that the scale of the loss does not have to hold: it falls steeply there
_MEAN_SHARE = 0.02  # of the steps, that one point of the moving mean averages
_WIDE = 50  # times the smallest gradient norm: from there on its scale is logarithmic

Row = dict[str, Any]
Numbers = np.ndarray | None
Drawn = tuple[str, str]  # the lines and the marks of a chart, as SVG


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with `ticks` at round values; all in units of the data."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where values lie: 0 at `low`, 1 at `high`. What is far off the scale stays just outside, in sight of SVG."""
        if self.logarithmic:
            part = np.log(np.maximum(values, 1e-30) / self.low) / math.log(self.high / self.low)
        else:
            part = (values - self.low) / (self.high - self.low)
        return np.clip(part, -1, 2)

    def text(self, tick: float) -> str:
        if self.logarithmic or self.high >= 10_000:
            return short(tick)
        decimals = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        return f"{tick:,.{decimals}f}" if decimals < 6 else f"{tick:.2g}"


def write_report(directory: Path, title: str) -> Path:
    """Draw the run whose `metrics.jsonl` is in `directory`; the page `directory/report.html` is written whole.

    Raises:
        FileNotFoundError: if there is no `metrics.jsonl`.
    """
    rows, every = read_rows(directory / "metrics.jsonl")
    with whole_file(directory / "report.html") as partial:
        # A sample may hold half of a character, which UTF-8 cannot.
        partial.write_text(_page(title, rows, every), encoding="utf-8", errors="replace")
    return directory / "report.html"


def read_rows(path: Path) -> tuple[list[Row], int]:
    """The lines of a metrics file in the order of their steps, and k where only every k-th step was read.

    Validations and numbers that are not finite are read whatever k. Lines that are no JSON (a crash tears the last one)
    are passed over. Where the steps begin again, what a run that was resumed or restarted did over is left out.
    """
    data = path.read_bytes()
    lines = data.split(b"\n")
    every = len(lines) // _MOST_LINES + 1
    picked = {*range(0, len(lines), every), *range(max(0, len(lines) - 3), len(lines))}
    for word in _NEVER_SKIPPED if every > 1 else ():
        if word in data:
            picked |= {i for i, line in enumerate(lines) if word in line}
    rows: list[Row] = []
    for i in sorted(picked):
        try:
            row = json.loads(lines[i])
        except ValueError:
            continue
        if isinstance(row, dict) and math.isfinite(_number(row, "step")):
            if rows and row["step"] < rows[-1]["step"]:
                rows = [before for before in rows if before["step"] < row["step"]]
            rows.append(row)
    return rows, every


def _parts(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The steps and the validations."""
    return [row for row in rows if "validation_loss" not in row], [row for row in rows if "validation_loss" in row]


def _number(row: Row, key: str) -> float:
    """The number under `key`; nan where there is none."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _column(rows: list[Row], key: str) -> np.ndarray:
    return np.array([_number(row, key) for row in rows], dtype=float)


def _latest(rows: list[Row], key: str) -> float:
    """The last finite number under `key`; nan where there is none."""
    return next((value for row in reversed(rows) if math.isfinite(value := _number(row, key))), math.nan)


def linear(low: float, high: float, ticks: int = 5, outward: bool = True, least: float = 0.0) -> Axis:
    """A scale with about `ticks` ticks at multiples of 1, 2 or 5 times a power of ten, `least` or more apart.

    It ends on ticks where `outward`, otherwise at `low` and `high`.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    size = max(abs(low), abs(high))
    if high - low < 1e-9 * max(size, 1e-3):  # one value
        margin = size / 10 if size > 1e-9 else 0.1
        low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / ticks))
    wide = min((m * power for m in (1, 2, 5, 10)), key=lambda wide: abs(math.log((high - low) / wide / ticks)))
    wide = max(wide, least)
    first, last = math.floor(low / wide + 1e-9), math.ceil(high / wide - 1e-9)
    if outward:
        low, high = first * wide, last * wide
    places = (i * wide for i in range(first, last + 1))
    return Axis(low, high, tuple(tick for tick in places if low - wide / 1e6 <= tick <= high + wide / 1e6))


def logarithmic(low: float, high: float) -> Axis:
    """A scale of whole powers of ten, at most seven of them ticks. Both ends are above 0."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    ticks = tuple(10.0**power for power in range(first, last + 1, math.ceil((last - first) / 6)))
    return Axis(10.0**first, 10.0**last, ticks, logarithmic=True)


def loss_axis(steps: np.ndarray, losses: np.ndarray) -> Axis:
    """A scale for the loss after the opening of a run, that a few wild steps do not stretch either."""
    kept = losses[np.isfinite(losses) & (steps >= _OPENING * steps.max(initial=0))]
    kept = kept if len(kept) else losses[np.isfinite(losses)]
    low, high = np.percentile(kept, (0.3, 99)) if len(kept) else (0, 1)
    return linear(low, high, ticks=6)


def short(value: float, digits: int = 4) -> str:
    """19,234,816 as 19.23M; a number below ten thousand as it is."""
    value = float(f"{value:.{digits}g}")
    if abs(value) >= 1e15:
        return f"{value:g}"
    for size, unit, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= size:
            return f"{value / unit:.{digits}g}{letter}"
    return f"{value:,.0f}" if value.is_integer() else f"{value:g}"


def moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` values around each one, fewer at the ends. Values that are not finite are not counted."""
    counted = np.isfinite(values)
    if not counted.any():
        return values
    # Sums of their own for each window: differences of running sums would be lost in one huge value before them.
    sums = np.convolve(np.where(counted, values, 0.0), np.ones(width), "same")
    counts = np.convolve(counted, np.ones(width), "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each bucket of steps; none that is not finite."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    bucket = (steps * (_BUCKETS / steps.max(initial=1))).astype(int)
    order = np.lexsort((values, bucket))  # by bucket, then by value
    edges = np.flatnonzero(np.diff(bucket[order], prepend=-1, append=_BUCKETS + 1))
    kept = np.unique(np.concatenate((order[edges[:-1]], order[edges[1:] - 1])))
    return steps[kept], values[kept]


def _line(kind: str, x: Axis, y: Axis, steps: np.ndarray, values: np.ndarray) -> str:
    """A line through the values; `kind` is its class in the style sheet."""
    steps, values = thin(steps, values)
    across, down = 1000 * x.place(steps), 1000 * (1 - y.place(values))
    points = " ".join(f"{a:.1f},{d:.1f}" for a, d in zip(across.tolist(), down.tolist(), strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _raw_and_mean(x: Axis, y: Axis, steps: np.ndarray, values: np.ndarray) -> str:
    """Two lines: every value, pale, and their moving mean."""
    return _line("raw", x, y, steps, values) + _line("train", x, y, steps, moving_mean(values, _width(values)))


def _width(values: np.ndarray) -> int:
    """How many values the moving mean takes together: an odd number, three where there are so many."""
    return 2 * min(max(1, round(len(values) * _MEAN_SHARE / 2)), (len(values) - 1) // 2) + 1


def _marks(x: Axis, y: Axis, steps: np.ndarray, values: np.ndarray, unit: str) -> str:
    """A dot for each value, the lowest a ring; one that is off the scale lies on its edge, hollow."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if not len(steps):
        return ""
    best = int(values.argmin())
    across, up = 100 * x.place(steps), 100 * y.place(values)
    dots = ""
    shown = np.linspace(0, len(steps) - 1, min(len(steps), _MOST_MARKS)).round().astype(int).tolist()
    for i in sorted({*shown, best}):
        kind = "off" if not -0.01 <= up[i] <= 100.01 else "best" if i == best else "dot"
        dots += (
            f'<circle class="mark {kind}" cx="{across[i]:.2f}%" cy="{100 - min(max(up[i], 0), 100):.2f}%" r="3.5">'
            f"<title>step {steps[i]:,.0f}: {values[i]:.4f} {unit}</title></circle>"
        )
    return dots


def _crosses(x: Axis, steps: np.ndarray) -> str:
    """A cross at the top of the chart for the steps whose loss was no number, one for a hundredth of its width."""
    across = 100 * x.place(steps)
    _, shown = np.unique(across.astype(int), return_index=True)
    return "".join(
        f'<text class="cross" x="{across[i]:.2f}%" dy="5">×<title>step {steps[i]:,.0f}: not a number</title></text>'
        for i in shown
    )


def _chart(name: str, unit: str, x: Axis, y: Axis, drawn: Drawn, legend: str = "", tokens: Numbers = None) -> str:
    """A figure with its grid and labels. `tokens`, at the ticks of the steps, are a second row of labels."""
    lines, marks = drawn
    grid, labels = "", '<text class="y name" x="-14" y="100%" dy="20">step</text>'
    if tokens is not None:
        labels += '<text class="y name" x="-14" y="100%" dy="37">tokens</text>'
    for tick, up in zip(y.ticks, 100 * y.place(np.array(y.ticks)), strict=True):
        grid += f'<line x2="100%" y1="{100 - up:.2f}%" y2="{100 - up:.2f}%"/>'
        labels += f'<text class="y" x="-8" y="{100 - up:.2f}%" dy="4">{y.text(tick)}</text>'
    for i, (tick, across) in enumerate(zip(x.ticks, 100 * x.place(np.array(x.ticks)), strict=True)):
        labels += f'<text class="x" x="{across:.2f}%" y="100%" dy="20">{x.text(tick)}</text>'
        if tokens is not None and tick > 0:
            labels += f'<text class="x" x="{across:.2f}%" y="100%" dy="37">{short(float(tokens[i]), 3)}</text>'
    inner = f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">{lines}</svg>'
    return (
        f'<figure class="{"wide" if legend else "small"}">'
        f"<figcaption><span><b>{name}</b> {unit}</span>{legend}</figcaption>"
        f'<svg role="img" aria-label="{name} {unit}, by step">'
        f'<g class="grid">{grid}</g><g class="labels">{labels}</g>{inner}{marks}</svg></figure>'
    )


def _loss_chart(rows: list[Row], x: Axis, every: int) -> str:
    """Loss of the training steps, each and in the mean, and of the validations; `every` as read_rows gives it."""
    training, validations = _parts(rows)
    steps, losses = _column(training, "step"), _column(training, "loss")
    at, scores = _column(validations, "step"), _column(validations, "validation_loss")
    y = loss_axis(np.concatenate((steps, at)), np.concatenate((losses, scores)))
    legend = f'<span class="key raw">training, {"each step" if every == 1 else f"one step in {every}"}</span>'
    legend += f'<span class="key train">mean of {_width(losses) * every:,} steps</span>'
    if len(at):
        legend += '<span class="key validation">validation</span>'
    recorded = np.array(["loss" in row for row in training], dtype=bool)
    broken = np.union1d(steps[recorded & ~np.isfinite(losses)], at[~np.isfinite(scores)])
    if len(broken):
        legend += f'<span class="key broken">× not a number, first at step {broken[0]:,.0f}</span>'
    lines = _raw_and_mean(x, y, steps, losses) + _line("validation", x, y, at, scores)
    marks = _marks(x, y, at, scores, "nats per token") + _crosses(x, broken)
    counted = [row for row in rows if math.isfinite(_number(row, "tokens"))]
    tokens = np.interp(x.ticks, _column(counted, "step"), _column(counted, "tokens")) if counted else None
    return _chart("Loss", "nats per token", x, y, (lines, marks), legend, tokens)


def _small_chart(name: str, unit: str, x: Axis, rows: list[Row], key: str) -> str:
    """One number over the steps; nothing where a run has not recorded it."""
    steps, values = _column(rows, "step"), _column(rows, key)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ""
    if key == "bits_per_byte":
        y = linear(finite.min(), finite.max(), 4)
        drawn = _line("validation", x, y, steps, values), _marks(x, y, steps, values, unit)
    elif key == "learning_rate":
        y = linear(0, finite.max(), 4)
        drawn = _line("train", x, y, steps, values), ""
    else:
        wide = key == "gradient_norm" and finite.min() > 0 and finite.max() > _WIDE * finite.min()
        y = logarithmic(finite.min(), finite.max()) if wide else linear(min(0, finite.min()), finite.max(), 4)
        drawn = _raw_and_mean(x, y, steps, values), ""
        unit += ", logarithmic" if wide else ""
    return _chart(name, unit, x, y, drawn)


def _tiles(rows: list[Row]) -> str:
    """The numbers at the head of the page, those that are known."""
    training, validations = _parts(rows)
    scored = [row for row in validations if math.isfinite(_number(row, "validation_loss"))]
    best = min(scored, key=lambda row: row["validation_loss"], default={})
    loss, bits = _number(best, "validation_loss"), _number(best, "bits_per_byte")
    latest = math.nan if best else _latest(training, "loss")
    tokens, seconds, cost = (_latest(rows, key) for key in ("tokens", "seconds", "cost"))
    rates, use = _column(training, "tokens_per_second"), _latest(training, "model_flop_utilisation")
    rate = float(np.median(rates[np.isfinite(rates)])) if np.isfinite(rates).any() else math.nan
    of_peak = f", {100 * use:.0f} % of the peak" if math.isfinite(use) else ""
    numbers = (
        ("Validation loss", loss, f"{loss:.3f}", f"nats per token, best at step {_number(best, 'step'):,.0f}"),
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
    """What the model wrote at its validations, the newest first."""
    told = [row for row in reversed(rows) if isinstance(row.get("sample"), str)]
    articles = ""
    for row in told[:_MOST_SAMPLES]:
        facts = f"loss {_number(row, 'validation_loss'):.3f}"
        if math.isfinite(bits := _number(row, "bits_per_byte")):
            facts += f" · {bits:.3f} bits per byte"
        head = f"<h3>step {row['step']:,} <small>{facts}</small></h3>"
        articles += f'<article>{head}<p dir="auto">{escape(row["sample"])}</p></article>'
    if len(told) > _MOST_SAMPLES:
        articles += f"<p>{len(told) - _MOST_SAMPLES:,} older ones are in metrics.jsonl.</p>"
    return f"<section><h2>Samples, newest first</h2>{articles}</section>" if told else ""


def _page(title: str, rows: list[Row], every: int) -> str:
    training, validations = _parts(rows)
    x = linear(0, max(1, max((row["step"] for row in rows), default=1)), outward=False, least=1)
    charts = (
        _loss_chart(rows, x, every)
        + _small_chart("Compression of the validation text", "bits per byte", x, validations, "bits_per_byte")
        + _small_chart("Learning rate", "", x, training, "learning_rate")
        + _small_chart("Speed", "tokens per second", x, training, "tokens_per_second")
        + _small_chart("Gradient norm", "before clipping", x, training, "gradient_norm")
    )
    written = datetime.now().strftime("%-d %B %Y, %H:%M")
    body = f'<dl>{_tiles(rows)}</dl>\n<div class="charts">{charts}</div>\n{_samples(rows)}'
    return page(title, written, body, _STYLE)


_STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure, article { margin: 0; background: var(--card); border: 1px solid var(--grid); border-radius: 10px; }
figure { padding: 1rem 1.6rem 2.2rem 4rem; min-width: 0; }
figure.wide { grid-column: 1 / -1; padding-bottom: 3.2rem; } .wide > svg { height: 22rem; }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 1.2rem; margin: 0 0 1rem -2.8rem; }
figcaption b { color: var(--ink); font-size: .9375rem; font-weight: 600; margin-right: .3em; }
.key::before { display: inline-block; width: 1.1em; margin-right: .45em; vertical-align: .25em; border-top: 2px solid; }
.key.raw::before { content: ""; border-color: var(--blue); border-top-width: 6px; vertical-align: .1em; opacity: .3; }
.key.train::before, .key.validation::before { content: ""; border-color: var(--blue); }
.key.validation::before { border-color: var(--vermilion); }
figure > svg { display: block; width: 100%; height: 10.5rem; overflow: visible; } .small svg svg { overflow: visible; }
polyline { fill: none; stroke: var(--blue); stroke-width: 1.8; vector-effect: non-scaling-stroke; }
polyline.raw { stroke-width: 1; opacity: .3; } polyline.validation { stroke: var(--vermilion); }
.grid line { stroke: var(--grid); } svg text { fill: var(--soft); font-size: 12px; text-anchor: middle; }
svg .y { text-anchor: end; } svg .name { font-style: italic; } svg .cross { fill: var(--vermilion); font-size: 18px; }
.mark { fill: var(--card); stroke: var(--vermilion); stroke-width: 2; }
.mark.dot { fill: var(--vermilion); stroke: var(--card); stroke-width: 1.5; }
article { padding: .9rem 1.25rem; margin-bottom: .75rem; }
article h3 { margin: 0; font-size: .875rem; font-weight: 600; } article h3 small { margin-left: .5em; }
article p { margin: .3rem 0 0; max-width: 46rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .wide > svg { height: 16rem; } figure { padding: 1rem 1.2rem 2.2rem 3.6rem; } }
"""
