"""The rows of batches, and where they are in the tokenized text, word for word.

The text is searched by hashes of all its tokens, so that a row that is not found is not in it. A run of spaces, dashes
or equal lines is text if the text has it there, and else padding.

Dimensions: N tokens of text · R rows · T positions in the longest of them
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from transformer.data.batches import IGNORE_INDEX, Batch
from transformer.data.tokenize import TokenStream
from transformer.preflight import damaged_rows
from transformer.preflight.damaged_rows import NOWHERE, text_at
from transformer.preflight.token_runs import RunSearch, hashes

ABSENT = -1  # after the end of a row of a shorter batch
SEARCHED = 2**27  # tokens of the text, at most
_COMPARED = 2**12  # of the places where a row's inputs are, compared with its targets
_RUN_OF_PADDING = 3  # of a padding token, in a row that is not in the text; two may be how a document begins
_RUN_OF_ANYTHING = 8  # the shortest run of a token that may be padding, if it is no padding token

Segment = tuple[int, int, int]  # a row, its first position, and the one after its last


@dataclass(frozen=True)
class Rows:
    """The rows of several batches, stacked.

    inputs, targets, segment_ids: (R, T), as in `Batch`; ABSENT, IGNORE_INDEX and ABSENT after the end of a row.

    batch, place: (R,) the number of each row's batch, and of the row in it.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    batch: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Rows:
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


@dataclass(frozen=True)
class LocatedRows(Rows):
    """Rows, and the part of the text that each of them is.

    stream: the text. is_whole: whether this is all of it, not the beginning of a stream. offsets: (R,) the token of the
    text at the first position of each row, or NOWHERE. exact: (R,) bool, whether the inputs are there word for word,
    padding aside. count: (R,) how often. real, padding: (R, T) bool. text: (R, T + 1) the tokens of the text from each
    offset on. there: (R, T + 1) bool, whether there is such a token.
    """

    stream: TokenStream
    is_whole: bool
    offsets: np.ndarray
    exact: np.ndarray
    count: np.ndarray
    real: np.ndarray
    padding: np.ndarray
    text: np.ndarray
    there: np.ndarray

    @property
    def searched_all(self) -> bool:
        return len(self.stream.tokens) <= SEARCHED


def places(
    rows: Rows,
    stream: TokenStream,
    padding_ids: Collection[int],
    is_whole: bool = True,
    first_differs: int | None = None,
) -> LocatedRows:
    """Find rows in the text.

    Args:
        padding_ids: tokens that may be padding, in shorter runs than others. first_differs: a token that may be at the
            first position of a row, in place of that of the text.
    """
    length, stops = rows.inputs.shape[1], rows.present.sum(axis=1).tolist()
    tokens = [row[:stop] for row, stop in zip(rows.inputs, stops, strict=True)]
    skips = np.array([first_differs is not None and len(row) > 1 and row[0] == first_differs for row in tokens])
    offsets, count, spans = _look_up(rows, tokens, stream, padding_ids, skips)
    exact = offsets != NOWHERE
    text, there = text_at(stream.tokens, offsets, length)
    agrees = (text[:, :-1] == rows.inputs) & there[:, :-1]
    real = np.zeros_like(rows.present)
    for row, (begin, end) in enumerate(spans):
        if exact[row]:  # of a run that was left out, the part that agrees with the text beside it is text
            while begin > 0 and agrees[row, begin - 1]:
                begin -= 1
            while end < stops[row] and agrees[row, end]:
                end += 1
        elif stops[row]:
            at_end = 1 if rows.targets[row, end - 1] == IGNORE_INDEX else _RUN_OF_PADDING
            left, right = _padding_runs(tokens[row], padding_ids, _RUN_OF_PADDING, at_end)
            begin, end = max(left, int(skips[row])), end - right
        real[row, begin:end] = True
    padding = rows.present & ~real
    padding[skips, 0] = False
    if not exact.all():
        damaged = rows.inputs[~exact], rows.targets[~exact], real[~exact]
        offsets[~exact] = damaged_rows.locate(stream.tokens, *damaged, stream.loss_mask)
        text, there = text_at(stream.tokens, offsets, length)
    stacked = rows.inputs, rows.targets, rows.segment_ids, rows.batch, rows.place
    return LocatedRows(*stacked, stream, is_whole, offsets, exact, count, real, padding, text, there)


def _look_up(
    rows: Rows, tokens: Sequence[np.ndarray], stream: TokenStream, padding_ids: Collection[int], skips: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """(R,) the offset of each row or NOWHERE; (R,) how often it is in the text; and the span of the row that is.

    A row that is not found as it is, is looked up without its first token (skips) and without the runs at its ends.
    """
    spans = [(0, len(row)) for row in tokens]
    offsets, count = np.full(len(tokens), NOWHERE), np.zeros(len(tokens), np.int64)
    for is_first in (True, False):
        segments: list[Segment] = []
        for row, text in enumerate(tokens):
            if offsets[row] == NOWHERE and len(text):
                stop, (left, right) = len(text), _padding_runs(text, padding_ids, 1, 1)
                without = (int(skips[row]), stop), (left, stop), (0, stop - right), (left, stop - right)
                segments += [(row, *span) for span in ([(0, stop)] if is_first else without) if span[0] < span[1]]
        found = _search(stream.tokens[:SEARCHED], rows.inputs, segments)
        for row, begin, end in segments:
            if offsets[row] == NOWHERE and (row, begin, end) in found:
                where = found[row, begin, end]
                offsets[row] = _best(stream, where - begin, rows.targets[row, begin:end], begin)
                count[row], spans[row] = len(where), (begin, end)
    return offsets, count, spans


def _padding_runs(row: np.ndarray, ids: Collection[int], at_begin: int, at_end: int) -> tuple[int, int]:
    """How many tokens at the beginning and at the end of a row may be padding: a run of one of `ids`, or a long run.

    at_begin, at_end: the shortest run of `ids` that may be padding.
    """
    changes = np.flatnonzero(row[1:] != row[:-1])
    left, right = (int(changes[0]) + 1, len(row) - 1 - int(changes[-1])) if len(changes) else (len(row), len(row))
    is_left = left >= (at_begin if row[0] in ids else _RUN_OF_ANYTHING)
    is_right = right >= (at_end if row[-1] in ids else _RUN_OF_ANYTHING)
    return left * is_left, right * is_right


def _search(tokens: np.ndarray, inputs: np.ndarray, segments: Sequence[Segment]) -> dict[Segment, np.ndarray]:
    """All places in the text of each segment that is in it.

    A segment of m tokens is where the hashes of its first and of its last 2^k tokens are, 2^k <= m < 2^(k + 1).
    """
    by_size: dict[int, list[Segment]] = {}
    for segment in dict.fromkeys(segments):
        by_size.setdefault(1 << ((segment[2] - segment[1]).bit_length() - 1), []).append(segment)
    found: dict[Segment, np.ndarray] = {}
    for size, group in by_size.items():
        ends = [(inputs[row, begin : begin + size], inputs[row, end - size : end]) for row, begin, end in group]
        search = RunSearch(hashes(np.array(ends), size)[..., 0], size)  # (segments, 2)
        hits = search.find(tokens)
        same: dict[Segment, np.ndarray] = {}  # rows of a text of repetitions are equal
        for (row, begin, end), (head, tail) in zip(group, search.number, strict=True):
            key = head, tail, end - begin - size
            if key not in same:
                matches = np.isin(hits[head] + key[2], hits[tail], assume_unique=True)
                same[key] = hits[head][matches]
            if len(same[key]):
                found[row, begin, end] = same[key]
    return found


def _best(stream: TokenStream, offsets: np.ndarray, targets: np.ndarray, begin: int) -> int:
    """The offset at which the next tokens are the targets of the row, and as many of them are learned; of those at
    which its inputs are."""
    learned, last = targets != IGNORE_INDEX, len(targets) - 1

    def preferred(values: np.ndarray, position: int, wanted: object) -> np.ndarray:
        """The offsets at which the text has the wanted value after this position; all, if there are none."""
        same = values[(offsets + begin + position + 1).clip(0, len(values) - 1)] == wanted
        return offsets[same] if same.any() else offsets

    if learned[last]:  # the other targets are inputs too, and so the same everywhere
        offsets = preferred(stream.tokens, last, targets[last])
    if stream.loss_mask is None:
        return int(offsets[0])
    changes = np.flatnonzero(learned[1:] != learned[:-1]).tolist()
    for position in sorted({0, last, *changes, *(place + 1 for place in changes)}):
        offsets = preferred(stream.loss_mask, position, learned[position])
    some = offsets[:_COMPARED]
    after = (some[:, None] + np.arange(begin + 1, begin + len(targets) + 1)).clip(0, len(stream.loss_mask) - 1)
    return int(some[(stream.loss_mask[after] != learned).sum(axis=1).argmin()])
