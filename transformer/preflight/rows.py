"""Rows of several batches stacked in one array, and which of their positions can only be padding.

Dimensions: R rows · T positions in the longest of them
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from transformer.data.batches import IGNORE_INDEX, Batch

ABSENT = -1  # after the end of a row of a shorter batch
_RUN_OF_PADDING = 3  # the shortest run of a padding token; two may be how a document begins


@dataclass(frozen=True)
class Rows:
    """inputs, targets, segment_ids: (R, T), as in `Batch`; ABSENT, IGNORE_INDEX and ABSENT after the end of a row.

    batch, place: (R,) the batch that each row is of, and its place in it. padding: (R, T) bool, runs of a padding token
    that fill up the beginning or the end of a row. (Runs of any other token may be text: `places` looks them up.)
    """

    inputs: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    batch: np.ndarray
    place: np.ndarray
    padding: np.ndarray

    @classmethod
    def of(cls, batches: Sequence[Batch], padding_ids: Collection[int]) -> Rows:
        """Stack the rows of batches. padding_ids: tokens that may be padding."""
        length = max(batch.inputs.shape[1] for batch in batches)

        def stacked(name: str, fill: int) -> np.ndarray:
            arrays = [getattr(batch, name).cpu().numpy() for batch in batches]
            padded = [np.pad(a, ((0, 0), (0, length - a.shape[1])), constant_values=fill) for a in arrays]
            return np.concatenate(padded).astype(np.int64)

        inputs, targets = stacked("inputs", ABSENT), stacked("targets", IGNORE_INDEX)
        counts = [len(batch.inputs) for batch in batches]
        number = np.repeat(np.arange(len(batches)), counts)
        place = np.concatenate([np.arange(count) for count in counts])
        padding = _padding(inputs, targets, padding_ids)
        return cls(inputs, targets, stacked("segment_ids", ABSENT), number, place, padding)

    @property
    def real(self) -> np.ndarray:
        """(R, T) bool: inputs that are text."""
        return (self.inputs != ABSENT) & ~self.padding

    @property
    def learned(self) -> np.ndarray:
        """(R, T) bool: where there is a target."""
        return self.targets != IGNORE_INDEX

    @property
    def left_padding(self) -> np.ndarray:
        """(R,): padding before the text of each row."""
        return self.padding.argmin(axis=1) * ~self.padding.all(axis=1)

    def where(self, wrong: np.ndarray) -> str:
        """The columns and rows of the True of (R, T), in words."""
        columns, rows = np.flatnonzero(wrong.any(axis=0)), np.flatnonzero(wrong.any(axis=1))
        if len(columns) <= 3:
            ends = {0: " (the first)", wrong.shape[1] - 1: " (the last)"}
            names = ", ".join(f"{column}{ends.get(column, '')}" for column in columns)
            text = f"column{'s' if len(columns) > 1 else ''} {names}"
        else:
            text = f"{len(columns)} columns from {columns[0]} to {columns[-1]}"
        text += f" of {len(rows)} of {len(wrong)} rows"
        places = np.unique(self.place[rows])
        several = len(np.unique(self.batch[rows])) > 1
        return f"{text} (row {places[0]} of each batch)" if len(places) == 1 and several else text


def end_runs(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, T) bool twice: the run of one token at the beginning of each row, and that at its end, ABSENT included."""
    stops = (inputs != ABSENT).sum(axis=1)
    last = np.take_along_axis(inputs, (stops - 1)[:, None], axis=1)
    return _prefix(inputs == inputs[:, :1]), _suffix((inputs == last) | (inputs == ABSENT))


def _padding(inputs: np.ndarray, targets: np.ndarray, padding_ids: Collection[int]) -> np.ndarray:
    """(R, T) bool: runs of a padding token that fill rows up, on the left or on the right."""
    present, ids = inputs != ABSENT, sorted(padding_ids)
    left, right = end_runs(inputs)
    last = np.take_along_axis(inputs, present.sum(axis=1, keepdims=True) - 1, axis=1)
    left &= np.isin(inputs[:, :1], ids) & (left.sum(axis=1, keepdims=True) >= _RUN_OF_PADDING)
    # At the end of a row, positions without a target are padding already where the run is shorter.
    right &= (right.sum(axis=1, keepdims=True) >= _RUN_OF_PADDING) | _suffix(targets == IGNORE_INDEX)
    return (left | (right & np.isin(last, ids))) & present


def _prefix(mask: np.ndarray) -> np.ndarray:
    """(R, T) bool: the True of each row before its first False."""
    return np.logical_and.accumulate(mask, axis=1)


def _suffix(mask: np.ndarray) -> np.ndarray:
    """(R, T) bool: the True of each row after its last False."""
    return _prefix(mask[:, ::-1])[:, ::-1]
