"""Finds rows of a batch in the tokenized text although some of their tokens were changed.

Dimensions: N tokens of text · R rows · T positions
"""

from __future__ import annotations

import numpy as np

from transformer.data.batches import IGNORE_INDEX
from transformer.preflight.token_runs import RunSearch, hashes

NOWHERE = np.iinfo(np.int64).min
_MOST = 2**25  # tokens searched, of a text that is larger
_RUN = 4  # tokens
_VOTES = 16  # runs of a row that vote for its place: the rarest that the text has
_CANDIDATES = 2**10  # places with the most votes, which are compared in full
_SAME = 0.2  # of a row has to be there; two places of a text have some hundredth in common by chance


def locate(
    tokens: np.ndarray, inputs: np.ndarray, targets: np.ndarray, real: np.ndarray, learned: np.ndarray | None = None
) -> np.ndarray:
    """(R,) the offset in `tokens` (N,) of the first position of each row, or NOWHERE.

    Each run of a row that is in the text votes for an offset. Of those with the most votes, the one is taken where most
    inputs and targets are the same and most targets are learned as in the row.

    Args:
        inputs, targets: (R, T). real: (R, T) bool, inputs that are text; the others are not compared.
        learned: (N,) bool, False at tokens that are no targets; None: all are.
    """
    offsets = np.full(len(inputs), NOWHERE)
    if inputs.shape[1] < _RUN:
        return offsets
    search = RunSearch(hashes(inputs, _RUN), _RUN)
    hits = search.find(tokens[:_MOST])
    is_real = np.lib.stride_tricks.sliding_window_view(real, _RUN, axis=1).min(axis=-1)
    for row, runs in enumerate(search.number):
        known = [place for place in np.flatnonzero(is_real[row]) if len(hits[runs[place]])]
        voting = sorted(known, key=lambda place: len(hits[runs[place]]))[:_VOTES]
        if voting:
            places, votes = np.unique(np.concatenate([hits[runs[p]] - p for p in voting]), return_counts=True)
            places = places[np.argsort(-votes, kind="stable")[:_CANDIDATES]]
            offsets[row] = _best(tokens, places, inputs[row], targets[row], real[row], learned)
    return offsets


def text_at(tokens: np.ndarray, offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, T + 1) the tokens of the text from each offset on, and whether there is such a token."""
    places = offsets[:, None] + np.arange(length + 1)
    there = (offsets != NOWHERE)[:, None] & (places >= 0) & (places < len(tokens))
    return tokens[np.where(there, places, 0)].astype(np.int64), there


def _best(
    tokens: np.ndarray,
    offsets: np.ndarray,
    inputs: np.ndarray,
    targets: np.ndarray,
    real: np.ndarray,
    learned: np.ndarray | None,
) -> int:
    """The offset at which the text is most like the row, or NOWHERE if it is not like it anywhere."""
    text, there = text_at(tokens, offsets, len(inputs))
    is_target = targets != IGNORE_INDEX
    same_inputs = ((text[:, :-1] == inputs) & there[:, :-1] & real).sum(axis=1)
    score = same_inputs + ((text[:, 1:] == targets) & there[:, 1:] & is_target).sum(axis=1)
    if learned is not None:
        is_learned, _ = text_at(learned, offsets, len(inputs))
        score = score + ((is_learned[:, 1:] == is_target) & there[:, 1:] & real).sum(axis=1)
    best = int(score.argmax())
    return int(offsets[best]) if same_inputs[best] >= _SAME * max(1, real.sum()) else NOWHERE
