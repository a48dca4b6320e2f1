"""Reading, averaging and thinning of `metrics.jsonl` for charts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

_MOST_LINES = 10_000  # that are parsed, for speed; of a longer file, every k-th line
_NEVER_SKIPPED = (b"validation_loss", b"NaN", b"Infinity", b"null")
_BUCKETS = 400  # of steps; each has at most two points in a line
_MEAN_SHARE = 0.02  # fraction of the steps that a point of the moving average averages

Row = dict[str, Any]


def read_metrics(path: Path) -> tuple[list[Row], int]:
    """The lines of a metrics file in the order of steps, and k if only every k-th step was read.

    Validations and numbers that are not finite are always read. Invalid lines, such as an incomplete last one, are
    skipped. If a step is repeated by a resumed run, only the last line counts.
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
        if isinstance(row, dict) and math.isfinite(number(row, "step")):
            if rows and row["step"] < rows[-1]["step"]:
                rows = [before for before in rows if before["step"] < row["step"]]
            rows.append(row)
    return rows, every


def number(row: Row, key: str) -> float:
    """The number with this key; nan if there is none."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def is_validation(row: Row) -> bool:
    """Whether the row is of a validation, and not of a training step."""
    return "validation_loss" in row


def column(rows: list[Row], key: str) -> np.ndarray:
    """The numbers with this key, one per row; nan if a row has none."""
    return np.array([number(row, key) for row in rows], dtype=float)


def mean_width(values: np.ndarray) -> int:
    """The window of the moving average for these values: an odd number, at least 3 for three values or more."""
    return 2 * min(max(1, round(len(values) * _MEAN_SHARE / 2)), (len(values) - 1) // 2) + 1


def moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` values around each value, fewer at the ends, without values that are not finite."""
    counted = np.isfinite(values)
    if not counted.any():
        return values
    # Not as differences of cumulative sums, which lose precision after one huge value.
    sums = np.convolve(np.where(counted, values, 0.0), np.ones(width), "same")
    counts = np.convolve(counted, np.ones(width), "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest finite value of each bucket of steps."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    bucket = (steps * (_BUCKETS / steps.max(initial=1))).astype(int)
    order = np.lexsort((values, bucket))  # by bucket, then by value
    edges = np.flatnonzero(np.diff(bucket[order], prepend=-1, append=_BUCKETS + 1))
    kept = np.unique(np.concatenate((order[edges[:-1]], order[edges[1:] - 1])))
    return steps[kept], values[kept]
