"""Do windows and batches have targets? With prompts that fill a window there are none in it."""

from __future__ import annotations

from dataclasses import replace

from transformer.data import batches as batching
from transformer.preflight.check import Expected, Finding
from transformer.preflight.subject import Subject, n_targets

_EMPTY = 0.2  # of the windows may have no target


def to_learn(subject: Subject) -> Finding:
    """Windows have targets, in training and in validation."""
    expected = Expected(f"targets in {1 - _EMPTY:.0%} of the windows")
    missing, n_batches = sum(not n_targets(batch) for batch in subject.batches), len(subject.batches)
    windows, of_all = subject.training, "the windows"
    if windows is None:
        share, of_all = 1 - float(subject.rows.learned.any(axis=1).mean()), "the rows that were read"
    else:
        share = 1 - len(batching.with_targets(windows)) / len(windows)
    measured = f"{share:.1%} of {of_all} have no target, {missing} of {n_batches} batches"
    cure = (
        f"prompts longer than a window of {subject.rows.inputs.shape[1]} tokens leave no target in it; shorten them, "
        "raise --context-length, or look at what is masked."
    )
    if not subject.validation_rows.learned.any():
        return expected.failed(
            f"{measured}; none in validation",
            "The validation windows have no target, so no loss can be measured on them: give --validation-data, or "
            "raise --context-length, so that the windows hold completions.",
        )
    if windows is not None and share == 1:
        return expected.failed(measured, f"No token of the text would be learned: {cure}")
    if windows is not None and missing == n_batches and share < _EMPTY:
        return expected.failed(
            measured,
            f"None of {missing} batches has a target, although {1 - share:.0%} of the windows of the text have: the "
            "collator masks all targets; look at what it sets to IGNORE_INDEX.",
        )
    if share > _EMPTY:
        return expected.warned(measured, f"{share:.0%} of {of_all} have no target: {cure}")
    if missing:
        return expected.warned(measured, f"{missing} batches have no target: {cure}")
    return expected.passed(measured)


def with_targets(subject: Subject) -> Subject | None:
    """The subject with a batch first that has targets, by which a model can be checked; None if there is none."""
    counts = [n_targets(batch) for batch in subject.batches]
    if 2 * counts[0] >= max(counts) > 0:
        return subject
    order = sorted(range(len(counts)), key=lambda number: -counts[number])
    batches, where = [subject.batches[n] for n in order], [subject.places[n] for n in order]
    if max(counts) == 0:
        windows = subject.training
        if windows is None or not len(usable := batching.with_targets(windows)):
            return None
        first = windows.batch(usable[: len(batches[0].inputs)])
        batches, where = [first, *batches], ["windows with targets", *where]
    return replace(subject, batches=batches, places=where, kept={})
