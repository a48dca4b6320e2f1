"""Is the text read in a new order, and not from its beginning to its end?"""

from __future__ import annotations

import numpy as np

from transformer.training.preflight.check import Check
from transformer.training.preflight.subject import Subject

_LEAST = 12  # pairs of rows, so that a shuffle does not give them in order by chance
_IN_ORDER = 0.9  # of the pairs
_BY_CHANCE = 0.5  # of the pairs that are two apart: then rows are alike wherever they come from


def shuffled(subject: Subject) -> Check:
    """A row of a batch is not followed by the row that follows it in the text.

    With windows that stand end to end the last target of a row is then the first input of the next; where they overlap,
    the end of a row is the beginning of the next.
    """
    name, expected = "shuffling", "rows of a batch come from all over the text"
    windows, rows = subject.training, subject.rows
    if windows is None:
        return Check(name, "a stream is read as it comes", "for your information")
    length = rows.inputs.shape[1]
    overlap = length - windows.stride + 1
    if len(rows.inputs) <= _LEAST or length != windows.length:
        return Check(name, f"{len(rows.inputs)} rows are too few to say", expected)
    tokens = np.concatenate([rows.inputs, rows.targets[:, -1:]], axis=1)  # (R, T + 1)

    def follow(apart: int) -> float:
        left, right = tokens[:-apart, -overlap:], tokens[apart:, :overlap]
        left_real = rows.targets[:-apart, -1] >= 0
        return float((left == right).all(axis=1)[left_real].mean()) if left_real.any() else 0.0

    share = follow(1)
    measured = f"{share:.0%} of {len(tokens) - 1} rows are followed by the next of the text"
    if share < _IN_ORDER or follow(2) > _BY_CHANCE:
        return Check(name, measured, expected)
    cause = "Windows are learned in the order of the text: their order is not shuffled, so batches are all alike."
    return Check(name, measured, expected, "fail", cause)
