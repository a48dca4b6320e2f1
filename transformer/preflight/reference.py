"""Where the rows of a batch stand in the tokenised text, found by their content and not by what made them.

Dimensions: N tokens of text · R rows · T places
"""

from __future__ import annotations

import numpy as np

from transformer.data.batches import IGNORE_INDEX

_CHUNK = 2**22  # tokens looked at at once
_MOST = 2**29  # tokens looked at, of a text that is larger
_ANCHORS = 4  # places of a row whose token is looked for: the rarest of each quarter
_NEAR = np.arange(-4, 5)  # places around an anchor that are compared first
_NEAR_ENOUGH = 0.6  # of those that are text, as many have to be the same
_CANDIDATES = 2**12  # places in the text that are compared in full
_SAME = 0.2  # of a row has to stand there; two places of a text have some hundredth in common by chance
NOWHERE = np.iinfo(np.int64).min


def locate(
    tokens: np.ndarray,
    inputs: np.ndarray,
    targets: np.ndarray,
    real: np.ndarray,
    learned: np.ndarray | None = None,
) -> np.ndarray:
    """(R,) where in `tokens` (N,) the first place of each row would stand, or NOWHERE.

    A row may be damaged in many of its places: that place is taken at which most inputs and targets are the same, and
    of places that say the same, that which is learned as the row is.

    Args:
        inputs, targets: (R, T). real: (R, T) bool, inputs that are text; the others stand for nothing.
        learned: (N,) bool, False at tokens that are only read; None: all are learned.
    """
    tokens = tokens[:_MOST]
    counts = _counts(tokens)
    places = _anchors(inputs, real, counts)  # (R, _ANCHORS), -1: none
    wanted = np.zeros(len(counts), bool)
    wanted[[inputs[row, place] for row, row_places in enumerate(places) for place in row_places if place >= 0]] = True
    hits = np.concatenate(
        [start + np.flatnonzero(wanted[tokens[start : start + _CHUNK]]) for start in range(0, len(tokens), _CHUNK)]
    )
    found = tokens[hits]
    order = np.argsort(found, kind="stable")
    hits, found = hits[order], found[order]

    offsets = np.full(len(inputs), NOWHERE)
    for row in range(len(inputs)):
        candidates = [
            _near(tokens, hits[slice(*np.searchsorted(found, [token, token + 1]))], inputs[row], real[row], place)
            for place in places[row]
            if place >= 0
            for token in [inputs[row, place]]
        ]
        if candidates and len(offset := np.unique(np.concatenate(candidates))[:_CANDIDATES]):
            offsets[row] = _best(tokens, offset, inputs[row], targets[row], real[row], learned)
    return offsets


def expected(tokens: np.ndarray, offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, T + 1) the tokens of the text from each offset on, and which of them there are."""
    places = offsets[:, None] + np.arange(length + 1)
    there = (offsets != NOWHERE)[:, None] & (places >= 0) & (places < len(tokens))
    return tokens[np.where(there, places, 0)].astype(np.int64), there


def _counts(tokens: np.ndarray) -> np.ndarray:
    """How often each id stands in the text."""
    size = int(tokens.max()) + 1
    return sum(
        (np.bincount(tokens[start : start + _CHUNK], minlength=size) for start in range(0, len(tokens), _CHUNK)),
        np.zeros(size, np.int64),
    )


def _anchors(inputs: np.ndarray, real: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(R, _ANCHORS) places of the rarest known token in each part of a row's text."""
    known = real & (inputs < len(counts)) & (inputs >= 0)
    rarity = np.where(known, counts[np.where(known, inputs, 0)], 0)
    rarity = np.where(rarity > 0, rarity, np.iinfo(np.int64).max)
    found = np.full((len(inputs), _ANCHORS), -1)
    for row in range(len(inputs)):
        text = np.flatnonzero(rarity[row] < np.iinfo(np.int64).max)
        for number, part in enumerate(np.array_split(text, _ANCHORS)):
            if len(part):
                found[row, number] = part[rarity[row, part].argmin()]
    return found


def _near(tokens: np.ndarray, hits: np.ndarray, inputs: np.ndarray, real: np.ndarray, place: int) -> np.ndarray:
    """Offsets of the row in the text at which the places around one of its own are mostly the same."""
    around = place + _NEAR
    around = around[(around >= 0) & (around < len(inputs))]
    around = around[real[around]]
    offsets = hits - place
    places = offsets[:, None] + around
    same = tokens[places.clip(0, len(tokens) - 1)] == inputs[around]
    return offsets[(same & (places >= 0) & (places < len(tokens))).mean(axis=1) >= _NEAR_ENOUGH]


def _best(
    tokens: np.ndarray,
    offsets: np.ndarray,
    inputs: np.ndarray,
    targets: np.ndarray,
    real: np.ndarray,
    learned: np.ndarray | None,
) -> int:
    text, there = expected(tokens, offsets, len(inputs))
    follow = targets != IGNORE_INDEX
    same_inputs = ((text[:, :-1] == inputs) & there[:, :-1] & real).sum(axis=1)
    score = same_inputs + ((text[:, 1:] == targets) & there[:, 1:] & follow).sum(axis=1)
    if learned is not None:
        places = (offsets[:, None] + np.arange(1, len(inputs) + 1)).clip(0, len(tokens) - 1)
        score = score + ((learned[places] == follow) & there[:, 1:] & real).sum(axis=1)
    best = int(score.argmax())
    return int(offsets[best]) if same_inputs[best] >= _SAME * max(1, real.sum()) else NOWHERE
