"""Rows of several batches, stacked in arrays.

Dimensions: R rows · T positions in the longest of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transformer.data.batches import IGNORE_INDEX, Batch

ABSENT = -1  # after the end of a row of a shorter batch


@dataclass(frozen=True)
class Rows:
    """inputs, targets, segment_ids: (R, T), as in `Batch`; ABSENT, IGNORE_INDEX and ABSENT after the end of a row.

    batch, place: (R,) the batch that each row is of, and its place in it.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    batch: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Rows:
        """Stack the rows of batches."""
        length = max(batch.inputs.shape[1] for batch in batches)

        def stacked(name: str, fill: int) -> np.ndarray:
            arrays = [getattr(batch, name).cpu().numpy() for batch in batches]
            padded = [np.pad(a, ((0, 0), (0, length - a.shape[1])), constant_values=fill) for a in arrays]
            return np.concatenate(padded).astype(np.int64)

        counts = [len(batch.inputs) for batch in batches]
        place = np.concatenate([np.arange(count) for count in counts])
        tokens = stacked("inputs", ABSENT), stacked("targets", IGNORE_INDEX), stacked("segment_ids", ABSENT)
        return cls(*tokens, np.repeat(np.arange(len(batches)), counts), place)

    @property
    def present(self) -> np.ndarray:
        """(R, T) bool: positions before the end of their row."""
        return self.inputs != ABSENT

    @property
    def learned(self) -> np.ndarray:
        """(R, T) bool: where there is a target."""
        return self.targets != IGNORE_INDEX

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
