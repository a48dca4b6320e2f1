"""Checks of the windows: that they have targets, and that the source gives each once, shuffled, and can be restored."""

from __future__ import annotations

import numpy as np
import torch

from transformer.data.batches import with_targets
from transformer.preflight.check import Check, Expected
from transformer.preflight.subject import Subject

_EMPTY = 0.2  # of the windows may have no target
_LEAST_STEPS = 8  # from one row to the next; with fewer nothing is said of their order
_IN_ORDER = 0.5  # of them go to the next window of the text; in a random order of n windows 1 in n does


def to_learn(subject: Subject) -> Check:
    """Windows have targets, in training and in validation."""
    expected = Expected(f"targets in {1 - _EMPTY:.0%} of the windows")
    missing, n_batches = sum(not batch.n_targets for batch in subject.batches), len(subject.batches)
    windows, of_all = subject.training, "the windows"
    if windows is None:
        share, of_all = 1 - float(subject.rows.learned.any(axis=1).mean()), "the rows that were read"
    else:
        share = 1 - len(with_targets(windows)) / len(windows)
    measured = f"{share:.1%} of {of_all} have no target, {missing} of {n_batches} batches"
    cure = "prompts that fill a window leave none in it; shorten them, raise --context-length, or mask less."
    if not subject.validation_rows.learned.any():
        cause = f"The validation windows have no target: {cure} Or give --validation-data."
        return expected.failed(f"{measured}; none in validation", cause)
    if windows is not None and share == 1:
        return expected.failed(measured, f"No token of the text would be learned: {cure}")
    if windows is not None and missing == n_batches and share < _EMPTY:
        cause = "No batch has a target, although windows of the text have: the collator masks all of them."
        return expected.failed(measured, cause)
    if share > _EMPTY:
        return expected.warned(measured, f"{share:.0%} of {of_all} have no target: {cure}")
    if missing:
        return expected.warned(measured, f"{missing} batches have no target: {cure}")
    return expected.passed(measured)


def order(subject: Subject) -> Check:
    """From the same position the source gives the same batch, and it gives no row twice in an epoch."""
    source, first = subject.source, subject.batches[0]
    before = source.state_dict()
    again = source.next()
    source.load_state_dict(before)
    expected = Expected("the same again from the same position, and no row twice")
    if again.inputs.shape != first.inputs.shape or not torch.equal(again.inputs, first.inputs):
        cause = "The source does not return to where it was, so a resumed run reads other text: fix load_state_dict."
        return expected.failed("another batch from the same position", cause)
    if not torch.equal(again.targets, first.targets):
        cause = "The source makes other targets of the same inputs: seed what is random in it by its position."
        return expected.failed("other targets from the same position", cause)
    rows = subject.rows
    _, index, inverse, counts = np.unique(
        rows.inputs, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    measured = f"{len(index)} different of {len(rows.inputs)} rows"
    # Rows of a repetitive text may be equal: none may come more often than it is in the text.
    most = np.zeros(len(index), np.int64)
    np.maximum.at(most, inverse.reshape(-1), np.where(rows.exact, rows.count, len(rows.inputs)))
    if _within_epoch(subject) and rows.searched_all and (counts > most).any():
        cause = "The source repeats rows within an epoch, so other parts of the text are never read: correct its order."
        return expected.failed(measured, cause)
    return expected.passed(measured)


def _within_epoch(subject: Subject) -> bool:
    """Whether all rows that were read may be of one epoch."""
    windows = subject.training
    if windows is None:
        return False
    overlapping = windows.stride < windows.length
    most = len(windows) * windows.length if overlapping else windows.stop - windows.first - 1
    return int(subject.rows.real.sum()) <= most


def shuffled(subject: Subject) -> Check:
    """Rows that follow one another in the batches do not follow one another in the text."""
    expected, rows = Expected("windows in random order"), subject.rows
    known = rows.exact & (rows.count == 1)
    steps = np.diff(rows.offsets)[known[1:] & known[:-1]]
    if len(steps) < _LEAST_STEPS:
        return expected.passed(f"only {len(steps)} pairs of rows: too few to tell")
    share = float(((steps > 0) & (steps <= rows.inputs.shape[1])).mean())
    measured = f"{share:.0%} of {len(steps)} rows are followed by the next of the text"
    if share <= _IN_ORDER:
        return expected.passed(measured)
    cause = "The batches go through the text in its order, so consecutive steps read similar text: shuffle the windows."
    return expected.warned(measured, cause)
