"""Rows of several batches beneath one another, and which of their places can only be padding.

Dimensions: R rows · T places in the longest of them
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transformer.data.batches import IGNORE_INDEX, Batch

ABSENT = -1  # where a row of a shorter batch has ended
_RUN_OF_PADDING = 3  # the least run of a token of padding; two may be a prompt's beginning before a document


@dataclass(frozen=True)
class Rows:
    """inputs, targets, document: (R, T), as in `Batch`; ABSENT, IGNORE_INDEX and ABSENT where a row has ended.

    batch, place: (R,) the batch each row is of, and its place in it. padding: (R, T) bool, runs of a token of padding
    at a row's beginning or end that fill it up. (Runs of any other token may be text: `places` compares with the text.)
    kept: what was found out about these rows.
    """

    inputs: np.ndarray
    targets: np.ndarray
    document: np.ndarray
    batch: np.ndarray
    place: np.ndarray
    padding: np.ndarray
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, batches: Sequence[Batch], padding_ids: Collection[int]) -> Rows:
        """Stack the rows of batches.

        Args:
            padding_ids: tokens that may be padding.
        """
        length = max(batch.inputs.shape[1] for batch in batches)

        def stacked(arrays: list[np.ndarray], fill: int) -> np.ndarray:
            return np.concatenate(
                [np.pad(a, ((0, 0), (0, length - a.shape[1])), constant_values=fill) for a in arrays]
            ).astype(np.int64)

        inputs = stacked([batch.inputs.cpu().numpy() for batch in batches], ABSENT)
        targets = stacked([batch.targets.cpu().numpy() for batch in batches], IGNORE_INDEX)
        return cls(
            inputs,
            targets,
            stacked([batch.segment_ids.cpu().numpy() for batch in batches], ABSENT),
            np.concatenate([np.full(len(batch.inputs), number) for number, batch in enumerate(batches)]),
            np.concatenate([np.arange(len(batch.inputs)) for batch in batches]),
            _padding(inputs, targets, padding_ids),
        )

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
        """(R,): places of padding before the text of each row."""
        return self.padding.argmin(axis=1) * ~self.padding.all(axis=1)

    def where(self, wrong: np.ndarray) -> str:
        """In words, where the True of (R, T) stand: their columns and rows."""
        columns, rows = np.flatnonzero(wrong.any(axis=0)), np.flatnonzero(wrong.any(axis=1))
        last = wrong.shape[1] - 1
        if len(columns) <= 3:
            ends = {0: " (the first)", last: " (the last)"}
            names = ", ".join(f"{column}{ends.get(column, '')}" for column in columns)
            text = f"column{'s' if len(columns) > 1 else ''} {names}"
        else:
            text = f"{len(columns)} columns from {columns[0]} to {columns[-1]}"
        text += f" of {len(rows)} of {len(wrong)} rows"
        places = np.unique(self.place[rows])
        several = len(np.unique(self.batch[rows])) > 1
        return f"{text} (row {places[0]} of each batch)" if len(places) == 1 and several else text


def _padding(inputs: np.ndarray, targets: np.ndarray, padding_ids: Collection[int]) -> np.ndarray:
    """(R, T) bool: runs of one token that fill rows up, on the left or on the right."""
    ids = np.array(sorted(padding_ids))
    left = _run_at_the_left(inputs, ids)
    # Where nothing is learned a single place at the right is padding already, and where a row has ended.
    absent = inputs == ABSENT
    filled = np.where(absent, np.take_along_axis(inputs, _last_present(absent)[:, None], axis=1), inputs)
    right = _run_at_the_left(filled[:, ::-1], ids)[:, ::-1]
    unlearned = np.logical_and.accumulate((targets == IGNORE_INDEX)[:, ::-1], axis=1)[:, ::-1]
    right |= unlearned & (filled == filled[:, -1:]) & np.isin(filled, ids)
    right &= np.logical_and.accumulate(right[:, ::-1], axis=1)[:, ::-1]
    return (left | right) & ~absent


def _run_at_the_left(tokens: np.ndarray, ids: np.ndarray) -> np.ndarray:
    run = np.logical_and.accumulate(tokens == tokens[:, :1], axis=1)
    is_padding = np.isin(tokens[:, 0], ids) & (run.sum(axis=1) >= _RUN_OF_PADDING)
    return run & is_padding[:, None]


def _last_present(absent: np.ndarray) -> np.ndarray:
    """(R,): the last place of each row before it has ended."""
    return absent.shape[1] - 1 - (~absent)[:, ::-1].argmax(axis=1)
