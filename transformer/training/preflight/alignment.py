"""Are inputs the text, and targets what follows it? Shown to a person, and verified at every place of several batches.

Dimensions: R rows · T places
"""

from __future__ import annotations

import numpy as np
import torch

from transformer.text.batches import IGNORE, Windows
from transformer.text.tokenizer import Tokenizer
from transformer.text.tokens import TokenStream
from transformer.training.preflight import reference
from transformer.training.preflight.check import Check, ShownRow
from transformer.training.preflight.rows import ABSENT, Rows
from transformer.training.preflight.subject import Subject

_SHOWN_ROWS = 2
_SHOWN_HEAD, _SHOWN_TAIL = 7, 3
_DIFFERENT = 0.9  # of the rows of an epoch; a text may say a thing twice
_PICKED = 64  # windows by which a text is known to be repetitive
_SHIFTS = (-1, 0, 2, 3)  # of targets against inputs, that are tried where they are not 1


def shown(subject: Subject) -> tuple[ShownRow, ...]:
    """Rows of the first batch, and one of the validation text, as a person can read them."""
    found = [
        _shown(subject.tokenizer, f"{subject.places[0]}, row {row}", subject.rows, row)
        for row in range(min(_SHOWN_ROWS, len(subject.batches[0].inputs)))
    ]
    return (*found, _shown(subject.tokenizer, "validation, row 0", subject.validation_rows, 0))


def ids(subject: Subject) -> Check:
    """Every id has a row of the embedding, and inputs and targets have the same shape."""
    vocab_size, expected = subject.model.config.vocab_size, "whole numbers within the model's vocabulary"
    largest = -1
    for batch in [*subject.batches, *subject.validation_batches]:
        if batch.inputs.shape != batch.targets.shape or batch.inputs.dim() != 2:
            shapes = f"inputs {tuple(batch.inputs.shape)}, targets {tuple(batch.targets.shape)}"
            return Check("token ids", shapes, "two of one shape (rows, places)", "fail", "Mend the collator's shapes.")
        for tensor in (batch.inputs, batch.targets[batch.targets != IGNORE]):
            if tensor.dtype != torch.int64 or (
                len(tensor) and (int(tensor.min()) < 0 or int(tensor.max()) >= vocab_size)
            ):
                measured = f"{tensor.dtype}" + (f" from {tensor.min()} to {tensor.max()}" if len(tensor) else "")
                cause = (
                    f"The text was tokenised for another vocabulary than the model's {vocab_size:,}, or the collator "
                    "makes ids that are none: take the tokenizer that belongs to the model."
                )
                return Check("token ids", measured, f"{expected} of {vocab_size:,}", "fail", cause)
            largest = max(largest, int(tensor.max()) if len(tensor) else -1)
    return Check("token ids", f"at most {largest:,}", f"{expected} of {vocab_size:,}")


def shifted(subject: Subject) -> Check:
    """Each target is the next input of its row."""
    return _shifted("targets follow inputs", subject.rows)


def validation_shifted(subject: Subject) -> Check:
    """The same in validation batches."""
    return _shifted("validation targets", subject.validation_rows)


def in_text(subject: Subject) -> Check:
    """Each row stands in the tokenised text, with what follows it, first input and last target included.

    Its place is found by its content: this does not believe the code that made the row. Of windows with a
    `prompt_share` the first input may be the end-of-text token.
    """
    return _in_text("rows in the text", subject, subject.rows, subject.text, bool(subject.config.prompt_share))


def validation_in_text(subject: Subject) -> Check:
    """The same for validation rows."""
    return _in_text("validation in its text", subject, subject.validation_rows, subject.validation.stream, False)


def same_again(subject: Subject) -> Check:
    """From the same position the source gives the same batch, as a run that goes on needs; and others after it."""
    source, first = subject.source, subject.batches[0]
    before = source.state()
    again = source.next()
    source.restore(before)
    name, expected = "order of the batches", "the same again from the same position, and no row twice"
    if again.inputs.shape != first.inputs.shape or not torch.equal(again.inputs, first.inputs):
        cause = "The source does not return to where it was (restore), so a resumed run would read another text."
        return Check(name, "another batch from the same position", expected, "fail", cause)
    if not torch.equal(again.targets, first.targets):
        cause = "The source makes other targets of the same inputs each time: its collator is random."
        return Check(name, "other targets from the same position", expected, "fail", cause)
    unique, rows = len(np.unique(subject.rows.inputs, axis=0)), len(subject.rows.inputs)
    measured = f"{unique} different of {rows} rows"
    if unique < _DIFFERENT * rows and _various(subject):
        cause = "The source repeats rows within an epoch: as much of the text would never be read."
        return Check(name, measured, expected, "fail", cause)
    return Check(name, measured, expected)


def _various(subject: Subject) -> bool:
    """Whether the text is long enough for so many different rows, and not so repetitive that rows may be the same."""
    windows = subject.training or Windows(subject.text, subject.rows.inputs.shape[1])
    picked = windows.batch(range(min(len(windows), _PICKED))).inputs.numpy()
    is_long = subject.training is not None or len(windows) >= len(subject.rows.inputs)  # or a stream began anew
    return is_long and len(np.unique(picked, axis=0)) > _DIFFERENT * len(picked)


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
        pairs.append((text(int(rows.inputs[row, place])), None if target == IGNORE else text(target)))
    return ShownRow(where, tuple(pairs))


def _shifted(name: str, rows: Rows) -> Check:
    following = rows.inputs[:, 1:]
    # A target within padding, or the last before it, has no input that it could be the same as.
    both = rows.learned[:, :-1] & rows.real[:, 1:]
    wrong = np.zeros_like(rows.learned)
    wrong[:, :-1] = both & (rows.targets[:, :-1] != following)
    pairs, expected = int(both.sum()), "each target is the next input"
    if not rows.learned.any():
        return Check(name, "no targets at all", expected, "fail", "Every target is IGNORE: nothing would be learned.")
    if not wrong.any():
        return Check(name, f"{pairs:,} of {pairs:,} pairs", expected)
    measured = f"{pairs - int(wrong.sum()):,} of {pairs:,} pairs"
    return Check(name, measured, expected, "fail", _cause_of_targets(rows, wrong, _by_shift(rows)))


def _by_shift(rows: Rows) -> dict[int, float]:
    """How many targets are the input so many places on, for shifts that they should not have."""
    length, shares = rows.inputs.shape[1], {}
    for shift in _SHIFTS:
        first, last = max(0, -shift), length - max(0, shift)
        if last > first:
            learned = rows.learned[:, first:last] & rows.real[:, first + shift : last + shift]
            same = rows.targets[:, first:last] == rows.inputs[:, first + shift : last + shift]
            shares[shift] = float((same & learned).sum() / max(1, learned.sum()))
    return shares


def _cause_of_targets(rows: Rows, wrong: np.ndarray, by_shift: dict[int, float]) -> str:
    where = rows.where(wrong)
    values = np.unique(rows.targets[wrong])
    share = wrong.sum() / max(1, rows.learned.sum())
    shift = max(by_shift, key=lambda k: by_shift[k], default=0)
    if share > 0.5 and by_shift.get(shift, 0.0) > 0.9:
        return f"Targets are the inputs shifted by {shift} instead of 1: take targets[i] = inputs[i + 1]."
    if len(values) == 1 and wrong.sum() > 1:
        return f"Targets in {where} are all the id {values[0]}: something overwrites them after they were cut."
    return f"Targets in {where} are not the token that follows: something overwrites or moves them."


def _in_text(name: str, subject: Subject, rows: Rows, stream: TokenStream, prompts: bool) -> Check:
    length, expected_text = rows.inputs.shape[1], "each row as it stands in the tokenised text, and what follows it"
    real = rows.real
    considered = real.sum(axis=1) >= min(8, length)
    if prompts:
        replaced = rows.inputs[:, 0] == subject.tokenizer.end_of_text_id
        real = real.copy()
        real[replaced, 0] = False
    offsets = reference.locate(stream.tokens, rows.inputs, rows.targets, real)
    lost = considered & (offsets == reference.NOWHERE)
    if lost.any():
        measured, all_read = f"{lost.sum()} of {len(lost)} rows stand nowhere in it", subject.training is not None
        cause = (
            "Their inputs are not this text: the collator changes them, or the batches are of another text than "
            "the one that is checked."
        )
        return Check(name, measured, expected_text, "fail" if all_read or lost.all() else "warn", cause)

    tokens, there = reference.expected(stream.tokens, offsets, length)
    other_inputs = real & there[:, :-1] & (rows.inputs != tokens[:, :-1])
    # A padded place is followed by nothing; the last before it may leave its target out.
    other_targets = rows.learned & ~rows.padding & there[:, 1:] & (rows.targets != tokens[:, 1:])
    if stream.learned is None:
        learned = np.ones_like(rows.learned)
    else:
        places = (offsets[:, None] + np.arange(1, length + 1)).clip(0, len(stream.tokens) - 1)
        learned = np.asarray(stream.learned[places])
    before_padding = np.zeros_like(real)
    before_padding[:, :-1] = rows.padding[:, 1:]
    left_out = real & there[:, 1:] & learned & ~rows.learned & ~before_padding
    prompt_learned = real & there[:, 1:] & ~learned & rows.learned
    verified = int((real & there[:, :-1]).sum())
    for wrong, what, cause in (
        (other_inputs, "inputs", ""),
        (other_targets, "targets", ""),
        (left_out, "targets left out", "are not learned although the text is to be: the collator ignores too much."),
        (prompt_learned, "prompts learned", "are of a prompt, which is only to be read: mask them with IGNORE."),
        (_other_documents(subject, rows, stream, offsets), "document numbers", "do not change where documents begin."),
    ):
        if wrong.any():
            measured = f"{int(wrong.sum()):,} {what} differ in {verified:,} places"
            if not cause:
                actual, of_text = (rows.inputs, tokens[:, :-1]) if what == "inputs" else (rows.targets, tokens[:, 1:])
                cause = _difference(subject.tokenizer, rows, wrong, actual, of_text)
            else:
                cause = f"Targets in {rows.where(wrong)} {cause}"
            return Check(name, measured, expected_text, "fail", f"{cause}")
    return Check(name, f"{int(considered.sum()):,} rows found, {verified:,} places the same", expected_text)


def _other_documents(subject: Subject, rows: Rows, stream: TokenStream, offsets: np.ndarray) -> np.ndarray:
    """(R, T) bool: where a document begins in the text and not in the row, or the other way round."""
    wrong = np.zeros_like(rows.real)
    if not subject.config.separate_documents:
        return wrong
    places = offsets[:, None] + np.arange(rows.inputs.shape[1])
    number = np.searchsorted(stream.starts, places, side="right")
    begins, said = np.diff(number, axis=1) != 0, np.diff(rows.document, axis=1) != 0
    wrong[:, 1:] = (begins != said) & rows.real[:, 1:] & rows.real[:, :-1]
    return wrong


def _difference(tokenizer: Tokenizer, rows: Rows, wrong: np.ndarray, actual: np.ndarray, of_text: np.ndarray) -> str:
    """Where the batch is not the text, with the first place as an example."""
    row, place = (int(index[0]) for index in np.nonzero(wrong))
    kind = "Inputs" if actual is rows.inputs else "Targets"
    values = np.unique(actual[wrong])
    constant = f" and are all {_quoted(tokenizer, values[0])}" if len(values) == 1 and wrong.sum() > 1 else ""
    return (
        f"{kind} in {rows.where(wrong)} are not those of the text{constant}; the first, in row {row}, is "
        f"{_quoted(tokenizer, actual[row, place])} where the text has {_quoted(tokenizer, of_text[row, place])}: "
        "the collator overwrites or moves them."
    )


def _quoted(tokenizer: Tokenizer, token: int) -> str:
    return f"{tokenizer.decode([int(token)], skip_special=False)!r} (id {int(token)})"
