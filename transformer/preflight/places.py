"""Where the rows of a batch are in the tokenized text, word for word, and which of their positions are padding.

A run of spaces, dashes or equal lines is text if the text has it there, and padding if it has not: so a row is looked
up as it is first, and without the runs at its ends only if it is not found. All of the text is searched by hashes, so
that a row that is not found is not in it.

Dimensions: N tokens of text · R rows · T positions in the longest of them
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from transformer.data.batches import IGNORE_INDEX
from transformer.data.tokenize import TokenStream
from transformer.preflight.damaged_rows import NOWHERE, locate, text_at
from transformer.preflight.rows import ABSENT, Rows, end_runs
from transformer.preflight.token_runs import CHUNK, HashSet, hashes

SEARCHED = 2**27  # tokens of the text, at most
_COMPARED = 2**12  # of the places where a row's inputs are, compared with its targets
_RUN_OF_ANYTHING = 8  # the shortest run of a token that may be padding, if it is no padding token

Segment = tuple[int, int, int]  # a row, its first position, and the one after its last


@dataclass(frozen=True)
class Places:
    """offsets: (R,) where the first position of each row is in the text, or NOWHERE.

    exact: (R,) bool, the inputs of the row are there word for word, padding aside. count: (R,) how often they are.
    real, padding: (R, T) bool. text, there: (R, T + 1) the tokens of the text from each offset on, and which of them
    there are. searched_all: the text was searched to its end.
    """

    offsets: np.ndarray
    exact: np.ndarray
    count: np.ndarray
    real: np.ndarray
    padding: np.ndarray
    text: np.ndarray
    there: np.ndarray
    searched_all: bool

    @property
    def lost(self) -> np.ndarray:
        """(R,) bool: rows that are nowhere, not even damaged."""
        return (self.offsets == NOWHERE) & self.real.any(axis=1)

    def is_text(self, rows: Rows) -> bool:
        """Whether all rows are in the text word for word, with the targets that it has."""
        wrong = rows.learned & self.there[:, 1:] & (rows.targets != self.text[:, 1:])
        return bool(self.exact.all() and not self.padding.any() and not wrong.any())


def places(rows: Rows, stream: TokenStream, padding_ids: Collection[int], first_differs: int | None = None) -> Places:
    """Look up rows.

    Args:
        padding_ids: tokens that may be padding, in shorter runs than others.
        first_differs: a token that may be at a row's first position instead of that of the text; None: there is none.
    """
    n_rows, length = rows.inputs.shape
    present, columns = rows.inputs != ABSENT, np.arange(rows.inputs.shape[1])
    starts, stops = np.zeros(n_rows, np.int64), present.sum(axis=1)
    left, right, long_runs = _without_runs(rows, stops, padding_ids)
    skipped = np.zeros(n_rows, np.int64)
    if first_differs is not None:
        skipped[(rows.inputs[:, 0] == first_differs) & (stops > 1)] = 1
    offsets, count = np.full(n_rows, NOWHERE), np.zeros(n_rows, np.int64)
    first, last = starts.copy(), stops.copy()  # of the text in each row
    for attempts in (((starts, stops),), ((skipped, stops), (left, stops), (starts, right), (left, right))):
        todo = np.flatnonzero((offsets == NOWHERE) & (stops > 0)).tolist()
        segments = dict.fromkeys((row, int(begin[row]), int(end[row])) for row in todo for begin, end in attempts)
        found = _search(stream.tokens[:SEARCHED], rows.inputs, [s for s in segments if s[2] > s[1]])
        for row, begin, end in segments:  # in the order of the attempts
            if offsets[row] == NOWHERE and (row, begin, end) in found:
                where = found[row, begin, end]
                offsets[row] = _best(stream, where - begin, rows.targets[row, begin:end], begin)
                count[row], first[row], last[row] = len(where), begin, end
    exact = offsets != NOWHERE
    # Of a run that was left out, the part that agrees with the text beside it is text.
    text, there = text_at(stream.tokens, offsets, length)
    agrees = (text[:, :-1] == rows.inputs) & there[:, :-1]
    for row in np.flatnonzero(exact & ((first > 0) | (last < stops))).tolist():
        while first[row] > 0 and agrees[row, first[row] - 1]:
            first[row] -= 1
        while last[row] < stops[row] and agrees[row, last[row]]:
            last[row] += 1
    real = present & (columns >= first[:, None]) & (columns < last[:, None])
    padding = present & ~real
    padding[skipped == 1, 0] = False
    if not exact.all():
        damaged = np.flatnonzero(~exact)
        padding[damaged] = ((long_runs | rows.padding) & present)[damaged]
        real[damaged] = present[damaged] & ~padding[damaged]
        real[damaged[skipped[damaged] == 1], 0] = False
        inputs, targets = rows.inputs[damaged], rows.targets[damaged]
        offsets[damaged] = locate(stream.tokens, inputs, targets, real[damaged], stream.loss_mask)
        text, there = text_at(stream.tokens, offsets, length)
    return Places(offsets, exact, count, real, padding, text, there, len(stream.tokens) <= SEARCHED)


def _without_runs(
    rows: Rows, stops: np.ndarray, padding_ids: Collection[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R,), (R,) where the text of each row begins and ends if a run of one token at its ends is none; and (R, T) bool,
    runs that are long, whatever their token."""
    inputs, ids = rows.inputs, sorted(padding_ids)
    at_left, at_right = end_runs(inputs)
    left, right = at_left.sum(axis=1), at_right.sum(axis=1) - (inputs.shape[1] - stops)
    last = np.take_along_axis(inputs, (stops - 1)[:, None], axis=1)[:, 0]
    is_long_left, is_long_right = left >= _RUN_OF_ANYTHING, right >= _RUN_OF_ANYTHING
    begins = np.where(np.isin(inputs[:, 0], ids) | is_long_left, left, 0)
    ends = stops - np.where(np.isin(last, ids) | is_long_right, right, 0)
    return begins, ends, (at_left & is_long_left[:, None]) | (at_right & is_long_right[:, None])


def _search(tokens: np.ndarray, inputs: np.ndarray, segments: Sequence[Segment]) -> dict[Segment, np.ndarray]:
    """All places in the text of each segment that is in it.

    A segment of m tokens is where the hashes of its first and of its last 2^k tokens are, 2^k <= m < 2^(k + 1).
    """
    by_size: dict[int, list[Segment]] = {}
    for segment in segments:
        by_size.setdefault(1 << ((segment[2] - segment[1]).bit_length() - 1), []).append(segment)
    found: dict[Segment, list[np.ndarray]] = {}
    for size, group in by_size.items():
        longest = max(end - begin for _, begin, end in group)
        ends = [(inputs[row, begin : begin + size], inputs[row, end - size : end]) for row, begin, end in group]
        wanted = hashes(np.array(ends), size)[..., 0]  # (segments, 2)
        heads, tails = HashSet(wanted[:, 0]), wanted[:, 1].tolist()
        for start in range(0, max(0, len(tokens) - size + 1), CHUNK):
            hashed = hashes(tokens[start : start + CHUNK + longest], size)
            hits, number = heads.find(hashed[:CHUNK])
            order = np.argsort(number, kind="stable")
            bounds = np.searchsorted(number[order], np.arange(len(heads.values) + 1))
            same: dict[tuple[int, int, int], np.ndarray] = {}  # rows of a text of repetitions are equal
            for segment, head, tail in zip(group, heads.number.tolist(), tails, strict=True):
                beyond = segment[2] - segment[1] - size
                if (head, tail, beyond) not in same:
                    where = hits[order[bounds[head] : bounds[head + 1]]]
                    where = where[where + beyond < len(hashed)]
                    same[head, tail, beyond] = start + where[hashed[where + beyond] == np.uint64(tail)]
                if len(where := same[head, tail, beyond]):
                    found.setdefault(segment, []).append(where)
    return {segment: np.concatenate(parts) for segment, parts in found.items()}


def _best(stream: TokenStream, offsets: np.ndarray, targets: np.ndarray, begin: int) -> int:
    """Of the places where the inputs of a row are, one whose next tokens are its targets, learned as they are."""
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
