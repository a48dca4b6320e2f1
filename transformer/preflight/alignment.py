"""Checks that inputs are the text, and targets the next tokens; and rows for a person to look at.

Dimensions: R rows · T positions
"""

from __future__ import annotations

import numpy as np
import torch

from transformer.data.batches import IGNORE_INDEX
from transformer.preflight.check import Check, Expected, ShownRow
from transformer.preflight.damaged_rows import NOWHERE, text_at
from transformer.preflight.places import LocatedRows
from transformer.preflight.subject import Subject

_SHOWN_ROWS = 2
_SHOWN_HEAD, _SHOWN_TAIL = 7, 3
_SHIFTS = (-1, 0, 2, 3)  # of targets against inputs, that are tried where they are not 1


def shown(subject: Subject) -> tuple[ShownRow, ...]:
    """Rows of the first batch, and one of the validation text, as a person can read them."""
    first, validation = subject.batches[0], subject.validation_batches[0]
    rows = [(f"{subject.where}, row {row}", first, row) for row in range(min(_SHOWN_ROWS, len(first.inputs)))]
    found = []
    for where, batch, row in (*rows, ("validation, row 0", validation, 0)):
        pairs: list[tuple[str, str | None] | None] = [
            (subject.decoded(token), None if target == IGNORE_INDEX else subject.decoded(target))
            for token, target in zip(batch.inputs[row].tolist(), batch.targets[row].tolist(), strict=True)
        ]
        if len(pairs) > _SHOWN_HEAD + _SHOWN_TAIL:
            pairs[_SHOWN_HEAD:-_SHOWN_TAIL] = [None]
        found.append(ShownRow(where, tuple(pairs)))
    return tuple(found)


def ids(subject: Subject) -> Check:
    """Every id has a row of the embedding, and inputs and targets have the same shape."""
    vocab_size, largest = subject.model.config.vocab_size, -1
    expected = Expected(f"whole numbers within the model's vocabulary of {vocab_size:,}")
    for batch in [*subject.batches, *subject.validation_batches]:
        if batch.inputs.shape != batch.targets.shape or batch.inputs.dim() != 2:
            shapes = f"inputs {tuple(batch.inputs.shape)}, targets {tuple(batch.targets.shape)}"
            cause = "Inputs and targets have to be of one shape (rows, positions): correct the collator."
            return expected.failed(shapes, cause)
        for tensor in (batch.inputs, batch.targets[batch.targets != IGNORE_INDEX]):
            low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, -1)
            if tensor.dtype != torch.int64 or low < 0 or high >= vocab_size:
                cause = "The text was tokenized for another vocabulary: take the tokenizer that belongs to the model."
                return expected.failed(f"{tensor.dtype} from {low} to {high}", cause)
            largest = max(largest, high)
    return expected.passed(f"at most {largest:,}")


# ---- targets follow inputs ----


def shifted(rows: LocatedRows) -> Check:
    """Each target is the next input of its row."""
    # A target within padding, or the last before it, has no input to compare it with.
    both = rows.learned[:, :-1] & rows.real[:, 1:]
    wrong = np.zeros_like(rows.learned)
    wrong[:, :-1] = both & (rows.targets[:, :-1] != rows.inputs[:, 1:])
    pairs, expected = int(both.sum()), Expected("each target is the next input")
    if not wrong.any():
        return expected.passed(f"{pairs:,} of {pairs:,} pairs" if pairs else "no pairs")
    where, values = rows.where(wrong), np.unique(rows.targets[wrong])
    shift, share = _likeliest_shift(rows)
    if wrong.sum() > 0.5 * rows.learned.sum() and share > 0.9:
        cause = f"Targets are the inputs shifted by {shift} instead of 1: take targets[i] = inputs[i + 1]."
    elif len(values) == 1 and wrong.sum() > 1:
        cause = f"Targets in {where} are all the id {values[0]}: the collator overwrites them; leave them as they are."
    else:
        cause = f"Targets in {where} are not the token that follows: the collator overwrites or moves them."
    return expected.failed(f"{pairs - int(wrong.sum()):,} of {pairs:,} pairs", cause)


def _likeliest_shift(rows: LocatedRows) -> tuple[int, float]:
    """The wrong shift of targets against inputs that is most frequent, and its share."""
    shares = {0: 0.0}
    for shift in _SHIFTS:
        first, last = max(0, -shift), rows.inputs.shape[1] - max(0, shift)
        if last > first:
            of_inputs = slice(first + shift, last + shift)
            learned = rows.learned[:, first:last] & rows.real[:, of_inputs]
            same = rows.targets[:, first:last] == rows.inputs[:, of_inputs]
            shares[shift] = float((same & learned).sum() / max(1, learned.sum()))
    return max(shares.items(), key=lambda item: item[1])


# ---- rows are in the text ----


def in_text(subject: Subject, rows: LocatedRows) -> Check:
    """Each row is in the tokenized text, with what follows it, first input and last target included.

    Only the beginning of a stream is read, and cut elsewhere than in its blocks: a row need not be in it.
    """
    expected = Expected("each row as it is in the tokenized text, and what follows it")
    known = rows.exact
    if rows.is_whole and rows.searched_all:
        lost = (rows.offsets == NOWHERE) & rows.real.any(axis=1)
        if lost.any():
            measured = f"{lost.sum()} of {len(rows.inputs)} rows are nowhere in it"
            cause = "Inputs are not this text: the collator changes them, or the batches are of another text."
            return expected.failed(measured, cause)
        known = rows.offsets != NOWHERE
    elif not known.any():
        measured = f"none of {len(known)} rows is in the part of the text that was read"
        cause = "No row is in the beginning of the text: the collator changes inputs, or the rows are of a later part."
        return expected.warned(measured, cause)
    there = rows.there & known[:, None]
    verified = int((rows.real & there[:, :-1]).sum())
    for what, wrong, cause in _differences(subject, rows, there):
        if wrong.any():
            cause = f"{what.capitalize()} in {rows.where(wrong)} {cause or _difference(subject, rows, wrong, what)}"
            return expected.failed(f"{int(wrong.sum()):,} {what} differ in {verified:,} positions", cause)
    missing = f", {int((~known).sum())} not in the part that was read" if not known.all() else ""
    return expected.passed(f"{int(known.sum()):,} rows found, {verified:,} positions the same{missing}")


def _differences(subject: Subject, rows: LocatedRows, there: np.ndarray) -> list[tuple[str, np.ndarray, str]]:
    """What may differ from the text, where it does, (R, T) bool, and how ("": described by an example)."""
    real, padding, targets_there = rows.real, rows.padding, there[:, 1:]
    other_inputs = real & there[:, :-1] & (rows.inputs != rows.text[:, :-1])
    # A padded position is followed by nothing; the last before it may leave its target out.
    other_targets = rows.learned & ~padding & targets_there & (rows.targets != rows.text[:, 1:])
    if not rows.is_whole:  # a block ends with the end-of-text token, wherever it was cut
        other_targets &= rows.targets != subject.tokenizer.end_of_text_id
    learned = np.ones_like(real)
    if rows.stream.loss_mask is not None:
        learned = text_at(rows.stream.loss_mask, rows.offsets, real.shape[1])[0][:, 1:] > 0
    before_padding = np.pad(padding[:, 1:], ((0, 0), (0, 1)))
    left_out = real & targets_there & learned & ~rows.learned & ~before_padding
    prompts = real & targets_there & ~learned & rows.learned
    documents = np.zeros_like(real)
    if subject.config.text.separate_documents:
        places = rows.offsets[:, None] + np.arange(real.shape[1])
        number = np.searchsorted(rows.stream.starts, places, side="right")
        differs = (np.diff(number, axis=1) != 0) != (np.diff(rows.segment_ids, axis=1) != 0)
        documents[:, 1:] = differs & real[:, 1:] & real[:, :-1] & there.any(axis=1, keepdims=True)
    return [
        ("inputs", other_inputs, ""),
        ("targets", other_targets, ""),
        ("targets left out", left_out, "are not learned although the text is: the collator ignores too much."),
        ("prompts learned", prompts, "are part of a prompt, which is not to be learned: set them to IGNORE_INDEX."),
        ("document numbers", documents, "do not change where documents begin: correct them."),
    ]


def _difference(subject: Subject, rows: LocatedRows, wrong: np.ndarray, what: str) -> str:
    """How inputs or targets differ from the text, with the first position as an example."""

    def quoted(token: int) -> str:
        return f"{subject.decoded(token)!r} (id {int(token)})"

    actual, text = (rows.inputs, rows.text[:, :-1]) if what == "inputs" else (rows.targets, rows.text[:, 1:])
    row, place = (int(index[0]) for index in np.nonzero(wrong))
    values = np.unique(actual[wrong])
    constant = f" and are all {quoted(values[0])}" if len(values) == 1 and wrong.sum() > 1 else ""
    return (
        f"are not those of the text{constant}; the first, in row {row}, is {quoted(actual[row, place])} where the text "
        f"has {quoted(text[row, place])}: the collator overwrites or moves them."
    )
