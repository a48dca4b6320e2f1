"""Does the source give the same batches again from the same position, each window once, in random order?"""

from __future__ import annotations

import numpy as np
import torch

from transformer.preflight.alignment import placed
from transformer.preflight.check import Expected, Finding
from transformer.preflight.places import Places
from transformer.preflight.subject import Subject

_LEAST_STEPS = 8  # from one row to the next; with fewer nothing is said of their order
_IN_ORDER = 0.5  # of them go to the next window of the text; in a random order of n windows 1 in n does


def same_again(subject: Subject) -> Finding:
    """From the same position the source gives the same batch, as resuming needs; and no row twice in an epoch."""
    source, first = subject.source, subject.batches[0]
    before = source.state()
    again = source.next()
    source.restore(before)
    expected = Expected("the same again from the same position, and no row twice")
    if again.inputs.shape != first.inputs.shape or not torch.equal(again.inputs, first.inputs):
        return expected.failed(
            "another batch from the same position",
            "The source does not return to where it was, so a resumed run would read other text: correct its restore.",
        )
    if not torch.equal(again.targets, first.targets):
        return expected.failed(
            "other targets from the same position",
            "The source makes other targets of the same inputs each time: draw what is random in the collator from a "
            "seed and the position.",
        )
    rows, found = subject.rows.inputs, subject.once(placed)
    _, index, inverse, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    measured = f"{len(index)} different of {len(rows)} rows"
    # A text of repetitions has equal rows: no row may come more often than it is in the text.
    most = np.zeros(len(index), np.int64)
    np.maximum.at(most, inverse.reshape(-1), np.where(found.exact, found.count, len(rows)))
    if _within_epoch(subject, found) and found.searched_all and (counts > most).any():
        return expected.failed(
            measured,
            "The source repeats rows within an epoch, so other parts of the text are never read: correct its order.",
        )
    return expected.passed(measured)


def _within_epoch(subject: Subject, found: Places) -> bool:
    """Whether the rows that were read can all be of one epoch, in which no window comes twice."""
    windows = subject.training
    if windows is None:
        return False
    overlapping = windows.stride < windows.length
    most = len(windows) * windows.length if overlapping else windows.stop - windows.first - 1
    return int(found.real.sum()) <= most


def shuffled(subject: Subject) -> Finding:
    """Rows that follow one another in the batches do not follow one another in the text."""
    expected = Expected("windows in random order")
    found, length = subject.once(placed), subject.rows.inputs.shape[1]
    known = found.exact & (found.count == 1)
    steps = np.diff(found.offsets)[known[1:] & known[:-1]]
    if len(steps) < _LEAST_STEPS:
        return expected.passed(f"only {len(steps)} pairs of rows: too few to tell")
    share = float(((steps > 0) & (steps <= length)).mean())
    measured = f"{share:.0%} of {len(steps)} rows are followed by the next of the text"
    if share <= _IN_ORDER:
        return expected.passed(measured)
    return expected.warned(
        measured,
        "The batches go through the text in its order, so that consecutive steps learn from similar text: shuffle the "
        "windows in each epoch.",
    )
