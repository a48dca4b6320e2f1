"""Where the rows of a batch stand in the tokenised text word for word, and which of their places are padding.

A run of spaces, dashes or equal lines is text if the text has it there, and padding if it does not: so a row is looked
up as it is first, and without the runs at its ends only where it stands nowhere. All of the text is searched, by a
hash, so that a row that is not found is not in it.

Dimensions: N tokens of text · R rows · T places in the longest of them
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from transformer.data.batches import IGNORE_INDEX
from transformer.data.tokenize import TokenStream
from transformer.preflight import reference
from transformer.preflight.reference import NOWHERE
from transformer.preflight.rows import ABSENT, Rows

SEARCHED = 2**27  # tokens of the text, at most
_CHUNK = 2**22  # tokens hashed at once
_COMPARED = 2**12  # of the places where a row's inputs stand, compared with its targets
_RUN_OF_ANYTHING = 8  # of one token at a row's end: the least that may be padding, if its id is not one of padding
_TABLE_BITS = 22
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio: a multiplier that mixes well

Segment = tuple[int, int, int]  # a row, and the first and one more than the last of its places


@dataclass(frozen=True)
class Places:
    """offsets: (R,) where the first place of each row would stand in the text, or NOWHERE.

    exact: (R,) bool, the inputs of the row stand there word for word, padding aside. count: (R,) how often they do.
    real, padding: (R, T) bool. searched_all: the text was searched to its end.
    """

    offsets: np.ndarray
    exact: np.ndarray
    count: np.ndarray
    real: np.ndarray
    padding: np.ndarray
    searched_all: bool

    @property
    def lost(self) -> np.ndarray:
        """(R,) bool: rows that stand nowhere, not even damaged."""
        return (self.offsets == NOWHERE) & self.real.any(axis=1)


def places(rows: Rows, stream: TokenStream, padding_ids: Collection[int], first_differs: int | None = None) -> Places:
    """Look up rows; what was found for the same rows and text is kept with the rows.

    Args:
        padding_ids: tokens that may be padding, in shorter runs than others.
        first_differs: a token that may stand at a row's first place instead of that of the text; None: there is none.
    """
    key = id(stream), first_differs
    if key not in rows.kept:
        rows.kept[key] = _places(rows, stream, padding_ids, first_differs)
    found: Places = rows.kept[key]
    return found


def _places(rows: Rows, stream: TokenStream, padding_ids: Collection[int], first_differs: int | None) -> Places:
    n_rows, length = rows.inputs.shape
    present = rows.inputs != ABSENT
    stops = present.sum(axis=1)
    starts = np.zeros(n_rows, np.int64)
    left, right = _runs(rows, stops, padding_ids)
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
                standing = found[row, begin, end]
                offsets[row] = _best(stream, standing - begin, rows, row, begin, end)
                count[row], first[row], last[row] = len(standing), begin, end
    exact = offsets != NOWHERE
    # Within a run that was left out, what agrees with the text beside it is text.
    text, there = reference.expected(stream.tokens, offsets, length)
    agrees = (text[:, :-1] == rows.inputs) & there[:, :-1]
    columns = np.arange(length)
    real = present & (columns >= first[:, None]) & (columns < last[:, None])
    for row in np.flatnonzero(exact & ((first > 0) | (last < stops))).tolist():
        while first[row] > 0 and agrees[row, first[row] - 1]:
            first[row] -= 1
        while last[row] < stops[row] and agrees[row, last[row]]:
            last[row] += 1
        real[row] = present[row] & (columns >= first[row]) & (columns < last[row])
    padding = present & ~real
    padding[skipped == 1, 0] = False
    damaged = np.flatnonzero(~exact)
    if len(damaged):
        padding[damaged] = _padding(rows, left, right, stops)[damaged]
        real[damaged] = present[damaged] & ~padding[damaged]
        real[damaged[skipped[damaged] == 1], 0] = False
        offsets[damaged] = reference.locate(
            stream.tokens, rows.inputs[damaged], rows.targets[damaged], real[damaged], stream.loss_mask
        )
    return Places(offsets, exact, count, real, padding, len(stream.tokens) <= SEARCHED)


def _runs(rows: Rows, stops: np.ndarray, padding_ids: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
    """(R,), (R,) where the text of each row would begin and end without a run of one token at its ends."""
    inputs, ids = rows.inputs, np.array(sorted(padding_ids))
    columns = np.arange(inputs.shape[1])

    def without_short(run: np.ndarray, token: np.ndarray) -> np.ndarray:
        return np.where(np.isin(token, ids) | (run >= _RUN_OF_ANYTHING), run, 0)

    left = np.logical_and.accumulate(inputs == inputs[:, :1], axis=1).sum(axis=1)
    last = np.take_along_axis(inputs, (stops - 1)[:, None], axis=1)
    backwards = ((inputs == last) | (columns >= stops[:, None]))[:, ::-1]
    right = np.logical_and.accumulate(backwards, axis=1).sum(axis=1) - (inputs.shape[1] - stops)
    return without_short(left, inputs[:, 0]), stops - without_short(right, last[:, 0])


def _padding(rows: Rows, left: np.ndarray, right: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """(R, T) bool: padding of rows that are not in the text as they are, as far as can be said."""
    columns = np.arange(rows.inputs.shape[1])
    long = (columns < np.where(left >= _RUN_OF_ANYTHING, left, 0)[:, None]) | (
        columns >= np.where(stops - right >= _RUN_OF_ANYTHING, right, stops)[:, None]
    )
    return (long & (columns < stops[:, None])) | rows.padding


def _search(tokens: np.ndarray, inputs: np.ndarray, segments: Sequence[Segment]) -> dict[Segment, np.ndarray]:
    """All places in the text of each segment that stands in it.

    A segment of m tokens is there where the hashes of its first and of its last 2^k tokens are, 2^k <= m < 2^(k + 1).
    """
    by_size: dict[int, list[Segment]] = {}
    for segment in segments:
        by_size.setdefault((segment[2] - segment[1]).bit_length() - 1, []).append(segment)
    found: dict[Segment, list[np.ndarray]] = {}
    for size, group in by_size.items():
        part, longest = 1 << size, max(end - begin for _, begin, end in group)
        ends = [(inputs[row, begin : begin + part], inputs[row, end - part : end]) for row, begin, end in group]
        wanted = _hashes(np.array(ends, np.uint64), size)[..., 0]  # (segments, 2)
        heads, number = np.unique(wanted[:, 0], return_inverse=True)
        table = np.zeros(2**_TABLE_BITS, bool)  # a first look, which leaves out nearly all
        table[heads >> np.uint64(64 - _TABLE_BITS)] = True
        for start in range(0, max(0, len(tokens) - part + 1), _CHUNK):
            hashed = _hashes(tokens[start : start + _CHUNK + longest].astype(np.uint64), size)
            hits = np.flatnonzero(table[hashed[:_CHUNK] >> np.uint64(64 - _TABLE_BITS)])
            nearest = np.searchsorted(heads, hashed[hits]).clip(0, len(heads) - 1)
            same = heads[nearest] == hashed[hits]
            hits, nearest = hits[same], nearest[same]
            order = np.argsort(nearest, kind="stable")
            bounds = np.searchsorted(nearest[order], np.arange(len(heads) + 1))
            alike: dict[tuple[int, int, int], np.ndarray] = {}  # rows of a text of repetitions are
            for segment, head, tail in zip(group, number.tolist(), wanted[:, 1].tolist(), strict=True):
                beyond = segment[2] - segment[1] - part
                if (head, tail, beyond) not in alike:
                    standing = hits[order[bounds[head] : bounds[head + 1]]]
                    standing = standing[standing + beyond < len(hashed)]
                    alike[head, tail, beyond] = start + standing[hashed[standing + beyond] == np.uint64(tail)]
                if len(standing := alike[head, tail, beyond]):
                    found.setdefault(segment, []).append(standing)
    return {segment: np.concatenate(parts) for segment, parts in found.items()}


def _hashes(tokens: np.ndarray, size: int) -> np.ndarray:
    """(..., N - 2^size + 1) uint64: a polynomial of each run of 2^size tokens, doubled from runs of half the length."""
    run, length, power = tokens + np.uint64(1), 1, _BASE
    with np.errstate(over="ignore"):
        for _ in range(size):
            run = run[..., :-length] * power + run[..., length:]
            length, power = 2 * length, power * power
    return run


def _best(stream: TokenStream, offsets: np.ndarray, rows: Rows, row: int, begin: int, end: int) -> int:
    """Of the places where the inputs of a row stand, the one whose next tokens are its targets, learned as they are."""
    targets = rows.targets[row, begin:end]
    for some in (offsets[:_COMPARED], offsets):
        best = _nearest(stream, some, targets, begin)
        learned = np.arange(best + begin + 1, best + end + 1)
        same = targets[-1] == IGNORE_INDEX or _following(stream.tokens, learned[-1:])[0] == targets[-1]
        if same and (
            stream.loss_mask is None or (_following(stream.loss_mask, learned) == (targets != IGNORE_INDEX)).all()
        ):
            break
    return best


def _nearest(stream: TokenStream, offsets: np.ndarray, targets: np.ndarray, begin: int) -> int:
    follows, last = targets != IGNORE_INDEX, len(targets) - 1
    if follows[last]:  # the others are inputs too, and so the same everywhere
        offsets = _preferred(offsets, _following(stream.tokens, offsets + begin + last + 1) == targets[last])
    if stream.loss_mask is None:
        return int(offsets[0])
    changes = np.flatnonzero(follows[1:] != follows[:-1]).tolist()
    for place in sorted({0, last, *changes, *(place + 1 for place in changes)}):
        offsets = _preferred(offsets, _following(stream.loss_mask, offsets + begin + place + 1) == follows[place])
    some = offsets[:_COMPARED]
    following = _following(stream.loss_mask, some[:, None] + np.arange(begin + 1, begin + len(targets) + 1))
    return int(some[(following != follows).sum(axis=1).argmin()])


def _following(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.asarray(values[where.clip(0, len(values) - 1)])


def _preferred(offsets: np.ndarray, preferred: np.ndarray) -> np.ndarray:
    return offsets[preferred] if preferred.any() else offsets
