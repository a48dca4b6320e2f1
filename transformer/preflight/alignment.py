"""Are inputs the text, and targets the next tokens? At every position of several batches; some rows are shown.

Dimensions: R rows · T positions
"""

from __future__ import annotations

import numpy as np
import torch

from transformer.data.batches import IGNORE_INDEX
from transformer.data.tokenize import TokenStream
from transformer.data.tokenizer import Tokenizer
from transformer.preflight.check import Expected, Finding, ShownRow
from transformer.preflight.damaged_rows import NOWHERE
from transformer.preflight.places import Places, places
from transformer.preflight.rows import ABSENT, Rows
from transformer.preflight.subject import Subject

_SHOWN_ROWS = 2
_SHOWN_HEAD, _SHOWN_TAIL = 7, 3
_SHIFTS = (-1, 0, 2, 3)  # of targets against inputs, that are tried where they are not 1


def shown(subject: Subject) -> tuple[ShownRow, ...]:
    """Rows of the first batch, and one of the validation text, as a person can read them."""
    first, tokenizer = range(min(_SHOWN_ROWS, len(subject.batches[0].inputs))), subject.tokenizer
    found = [_shown(tokenizer, f"{subject.places[0]}, row {row}", subject.rows, row) for row in first]
    return (*found, _shown(tokenizer, "validation, row 0", subject.validation_rows, 0))


def _shown(tokenizer: Tokenizer, where: str, rows: Rows, row: int) -> ShownRow:
    def text(token: int) -> str:
        return tokenizer.decode([token], skip_special=False)

    present = int((rows.inputs[row] != ABSENT).sum())
    tail = max(_SHOWN_HEAD, present - _SHOWN_TAIL)
    pairs: list[tuple[str, str | None] | None] = []
    for place in (*range(min(_SHOWN_HEAD, present)), *range(tail, present)):
        if place == tail and tail > _SHOWN_HEAD:
            pairs.append(None)
        target = int(rows.targets[row, place])
        pairs.append((text(int(rows.inputs[row, place])), None if target == IGNORE_INDEX else text(target)))
    return ShownRow(where, tuple(pairs))


def ids(subject: Subject) -> Finding:
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
                return expected.failed(
                    f"{tensor.dtype} from {low} to {high}",
                    f"The text was tokenized for another vocabulary than the model's {vocab_size:,}, or the collator "
                    "makes ids that do not exist: take the tokenizer that belongs to the model.",
                )
            largest = max(largest, high)
    return expected.passed(f"at most {largest:,}")


def placed(subject: Subject) -> Places:
    """Where the rows of the run are in its text. Of windows with a `prompt_share`, and of the first window of each
    block of a stream, the first input is the end-of-text token, whatever the text has there."""
    begins = bool(subject.config.text.prompt_share) or subject.training is None
    first = subject.tokenizer.end_of_text_id if begins else None
    return places(subject.rows, subject.text, subject.padding_ids, first)


def validation_placed(subject: Subject) -> Places:
    """Where the validation rows are in the validation text."""
    return places(subject.validation_rows, subject.validation.stream, subject.padding_ids)


# ---- targets follow inputs ----


def shifted(subject: Subject) -> Finding:
    """Each target is the next input of its row."""
    return _shifted(subject.rows, subject.once(placed))


def validation_shifted(subject: Subject) -> Finding:
    """The same in validation batches."""
    return _shifted(subject.validation_rows, subject.once(validation_placed))


def _shifted(rows: Rows, found: Places) -> Finding:
    # A target within padding, or the last before it, has no input to compare it with.
    both = rows.learned[:, :-1] & found.real[:, 1:]
    wrong = np.zeros_like(rows.learned)
    wrong[:, :-1] = both & (rows.targets[:, :-1] != rows.inputs[:, 1:])
    pairs, expected = int(both.sum()), Expected("each target is the next input")
    if not wrong.any():
        return expected.passed(f"{pairs:,} of {pairs:,} pairs" if pairs else "no pairs")
    measured = f"{pairs - int(wrong.sum()):,} of {pairs:,} pairs"
    where, values, by_shift = rows.where(wrong), np.unique(rows.targets[wrong]), _by_shift(rows, found)
    shift = max(by_shift, key=lambda k: by_shift[k], default=0)
    if wrong.sum() > 0.5 * rows.learned.sum() and by_shift.get(shift, 0.0) > 0.9:
        cause = f"Targets are the inputs shifted by {shift} instead of 1: take targets[i] = inputs[i + 1]."
    elif len(values) == 1 and wrong.sum() > 1:
        cause = f"Targets in {where} are all the id {values[0]}: the collator overwrites them; leave them as they are."
    else:
        cause = f"Targets in {where} are not the token that follows: the collator overwrites or moves them."
    return expected.failed(measured, cause)


def _by_shift(rows: Rows, found: Places) -> dict[int, float]:
    """The share of targets that are the input this many positions on, for shifts that they should not have."""
    length, shares = rows.inputs.shape[1], {}
    for shift in _SHIFTS:
        first, last = max(0, -shift), length - max(0, shift)
        if last > first:
            of_inputs = slice(first + shift, last + shift)
            learned = rows.learned[:, first:last] & found.real[:, of_inputs]
            same = rows.targets[:, first:last] == rows.inputs[:, of_inputs]
            shares[shift] = float((same & learned).sum() / max(1, learned.sum()))
    return shares


# ---- rows are in the text ----


def in_text(subject: Subject) -> Finding:
    """Each row is in the tokenized text, with what follows it, first input and last target included.

    It is found by its content, so that the code that made the row is not trusted.
    """
    # Of a stream only the beginning is read, and cut elsewhere than in its blocks: a row may well not be in it.
    is_whole = subject.training is not None
    return _in_text(subject, subject.rows, subject.text, subject.once(placed), is_whole)


def validation_in_text(subject: Subject) -> Finding:
    """The same for validation rows."""
    found = subject.once(validation_placed)
    return _in_text(subject, subject.validation_rows, subject.validation.stream, found, True)


def _in_text(subject: Subject, rows: Rows, stream: TokenStream, found: Places, is_whole: bool) -> Finding:
    expected = Expected("each row as it is in the tokenized text, and what follows it")
    known = found.exact
    if is_whole and found.searched_all:
        if found.lost.any():
            return expected.failed(
                f"{found.lost.sum()} of {len(rows.inputs)} rows are nowhere in it",
                "Their inputs are not this text: the collator changes them, or the batches are of another text than "
                "the one that is checked.",
            )
        known = found.offsets != NOWHERE
    elif not known.any():
        return expected.warned(
            f"none of {len(known)} rows is in the part of the text that was read",
            "No row is this text, of which the beginning was read: either the collator changes inputs, or the rows are "
            "of a later part; look at the rows that are shown.",
        )
    there = found.there & known[:, None]
    verified = int((found.real & there[:, :-1]).sum())
    for what, wrong, cause in _differences(subject, rows, stream, found, there, is_whole):
        if wrong.any():
            cause = cause or _difference(subject.tokenizer, rows, wrong, found, what)
            return expected.failed(f"{int(wrong.sum()):,} {what} differ in {verified:,} positions", cause)
    missing = f", {int((~known).sum())} not in the part that was read" if not known.all() else ""
    return expected.passed(f"{int(known.sum()):,} rows found, {verified:,} positions the same{missing}")


def _differences(
    subject: Subject, rows: Rows, stream: TokenStream, found: Places, there: np.ndarray, is_whole: bool
) -> list[tuple[str, np.ndarray, str]]:
    """What may differ from the text, where it does, (R, T) bool, and why; the first two have an example instead."""
    real, padding, length = found.real, found.padding, rows.inputs.shape[1]
    other_inputs = real & there[:, :-1] & (rows.inputs != found.text[:, :-1])
    # A padded position is followed by nothing; the last before it may leave its target out.
    other_targets = rows.learned & ~padding & there[:, 1:] & (rows.targets != found.text[:, 1:])
    if not is_whole:  # a block ends with the end-of-text token, wherever it was cut
        other_targets &= rows.targets != subject.tokenizer.end_of_text_id
    learned = np.ones_like(real)
    if stream.loss_mask is not None:
        places = (found.offsets[:, None] + np.arange(1, length + 1)).clip(0, len(stream.tokens) - 1)
        learned = np.asarray(stream.loss_mask[places])
    before_padding = np.pad(padding[:, 1:], ((0, 0), (0, 1)))
    left_out = real & there[:, 1:] & learned & ~rows.learned & ~before_padding
    prompts = real & there[:, 1:] & ~learned & rows.learned
    documents = _other_documents(subject, rows, stream, found.offsets, real & there.any(axis=1, keepdims=True))
    return [
        ("inputs", other_inputs, ""),
        ("targets", other_targets, ""),
        (
            "targets left out",
            left_out,
            f"Targets in {rows.where(left_out)} are not learned although the text is: the collator ignores too much.",
        ),
        (
            "prompts learned",
            prompts,
            f"Targets in {rows.where(prompts)} belong to a prompt, which is not to be learned: set them to "
            "IGNORE_INDEX.",
        ),
        (
            "document numbers",
            documents,
            f"The document numbers in {rows.where(documents)} do not change where documents begin: correct them.",
        ),
    ]


def _other_documents(
    subject: Subject, rows: Rows, stream: TokenStream, offsets: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """(R, T) bool: where a document begins in the text and not in the row, or the other way round."""
    wrong = np.zeros_like(real)
    if subject.config.text.separate_documents:
        places = offsets[:, None] + np.arange(rows.inputs.shape[1])
        number = np.searchsorted(stream.starts, places, side="right")
        differs = (np.diff(number, axis=1) != 0) != (np.diff(rows.segment_ids, axis=1) != 0)
        wrong[:, 1:] = differs & real[:, 1:] & real[:, :-1]
    return wrong


def _difference(tokenizer: Tokenizer, rows: Rows, wrong: np.ndarray, found: Places, what: str) -> str:
    """Where the batch is not the text, with the first position as an example."""

    def quoted(token: int) -> str:
        return f"{tokenizer.decode([int(token)], skip_special=False)!r} (id {int(token)})"

    actual, text = (rows.inputs, found.text[:, :-1]) if what == "inputs" else (rows.targets, found.text[:, 1:])
    row, place = (int(index[0]) for index in np.nonzero(wrong))
    values = np.unique(actual[wrong])
    constant = f" and are all {quoted(values[0])}" if len(values) == 1 and wrong.sum() > 1 else ""
    return (
        f"{what.capitalize()} in {rows.where(wrong)} are not those of the text{constant}; the first, in row {row}, is "
        f"{quoted(actual[row, place])} where the text has {quoted(text[row, place])}: the collator overwrites or moves "
        "them."
    )
