"""Where the rows of a batch are in the tokenized text although some of their tokens were changed.

Dimensions: N tokens of text · R rows · T positions
"""

from __future__ import annotations

import numpy as np

from transformer.data.batches import IGNORE_INDEX
from transformer.preflight.token_runs import CHUNK

_MOST = 2**29  # tokens searched, of a text that is larger
_ANCHORS = 4  # positions of a row whose token is looked for: the rarest of each quarter
_NEAR = np.arange(-4, 5)  # positions around an anchor that are compared first
_NEAR_ENOUGH = 0.6  # of those that are text, this share has to be the same
_CANDIDATES = 2**12  # places in the text that are compared in full
_SAME = 0.2  # of a row has to be there; two places of a text have some hundredth in common by chance
NOWHERE = np.iinfo(np.int64).min


def locate(
    tokens: np.ndarray,
    inputs: np.ndarray,
    targets: np.ndarray,
    real: np.ndarray,
    learned: np.ndarray | None = None,
) -> np.ndarray:
    """(R,) where in `tokens` (N,) the first position of each row is, or NOWHERE.

    It is the place at which most inputs and targets are the same, and most targets are learned as in the row.

    Args:
        inputs, targets: (R, T). real: (R, T) bool, inputs that are text; the others are not compared.
        learned: (N,) bool, False at tokens that are no targets; None: all are.
    """
    tokens = tokens[:_MOST]
    chunks = [(start, tokens[start : start + CHUNK]) for start in range(0, len(tokens), CHUNK)]
    counts = np.zeros(int(tokens.max()) + 1, np.int64)
    for _, chunk in chunks:
        counts += np.bincount(chunk, minlength=len(counts))
    anchors = _anchors(inputs, real, counts)
    wanted = np.zeros(len(counts), bool)
    wanted[[inputs[row, place] for row, places in enumerate(anchors) for place in places]] = True
    hits = np.concatenate([start + np.flatnonzero(wanted[chunk]) for start, chunk in chunks])
    hits = hits[np.argsort(tokens[hits], kind="stable")]
    found = tokens[hits]

    offsets = np.full(len(inputs), NOWHERE)
    for row, places in enumerate(anchors):
        candidates = []
        for place in places:
            where = hits[slice(*np.searchsorted(found, [inputs[row, place], inputs[row, place] + 1]))]
            candidates.append(_near(tokens, where, inputs[row], real[row], place))
        if candidates and len(offset := np.unique(np.concatenate(candidates))[:_CANDIDATES]):
            offsets[row] = _best(tokens, offset, inputs[row], targets[row], real[row], learned)
    return offsets


def text_at(tokens: np.ndarray, offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, T + 1) the tokens of the text from each offset on, and which of them there are."""
    places = offsets[:, None] + np.arange(length + 1)
    there = (offsets != NOWHERE)[:, None] & (places >= 0) & (places < len(tokens))
    return tokens[np.where(there, places, 0)].astype(np.int64), there


def _anchors(inputs: np.ndarray, real: np.ndarray, counts: np.ndarray) -> list[list[int]]:
    """For each row the positions of the rarest known token in each part of its text."""
    known = real & (inputs < len(counts)) & (inputs >= 0)
    rarity = counts[np.where(known, inputs, 0)]
    known &= rarity > 0
    parts = ([p for p in np.array_split(np.flatnonzero(row), _ANCHORS) if len(p)] for row in known)
    return [[int(part[rarity[row, part].argmin()]) for part in of_row] for row, of_row in enumerate(parts)]


def _near(tokens: np.ndarray, hits: np.ndarray, inputs: np.ndarray, real: np.ndarray, place: int) -> np.ndarray:
    """Offsets of the row in the text at which most positions around one of its own are the same."""
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
    text, there = text_at(tokens, offsets, len(inputs))
    is_target = targets != IGNORE_INDEX
    same_inputs = ((text[:, :-1] == inputs) & there[:, :-1] & real).sum(axis=1)
    score = same_inputs + ((text[:, 1:] == targets) & there[:, 1:] & is_target).sum(axis=1)
    if learned is not None:
        places = (offsets[:, None] + np.arange(1, len(inputs) + 1)).clip(0, len(tokens) - 1)
        score = score + ((learned[places] == is_target) & there[:, 1:] & real).sum(axis=1)
    best = int(score.argmax())
    return int(offsets[best]) if same_inputs[best] >= _SAME * max(1, real.sum()) else NOWHERE
