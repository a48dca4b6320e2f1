"""Are inputs the text, and targets what follows it? Shown to a person, and verified at every place of several batches.

Dimensions: R rows · T places
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from transformer.data.batches import IGNORE_INDEX, Windows
from transformer.data.tokenize import TokenStream
from transformer.data.tokenizer import Tokenizer
from transformer.preflight import reference
from transformer.preflight.check import Check, ShownRow
from transformer.preflight.places import Places, places
from transformer.preflight.rows import ABSENT, Rows
from transformer.preflight.subject import Subject

_SHOWN_ROWS = 2
_SHOWN_HEAD, _SHOWN_TAIL = 7, 3
_EMPTY = 0.2  # of the windows may have nothing to learn
_SAMPLED = 4096  # windows of the text in which targets are looked for
_LEAST_STEPS = 8  # from one row to the next, of which an order can be said
_IN_ORDER = 0.5  # of them go to the next window of the text; in a random order of n windows 1 in n does
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
        for tensor in (batch.inputs, batch.targets[batch.targets != IGNORE_INDEX]):
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


def placed(subject: Subject) -> Places:
    """Where the rows of the run stand in its text. Of windows with a `prompt_share`, and of a stream's first window of
    each block, the first input is the end-of-text token, whatever the text has there."""
    begins = bool(subject.config.data.prompt_share) or subject.training is None
    first = subject.tokenizer.end_of_text_id if begins else None
    return places(subject.rows, subject.text, subject.padding_ids, first)


def validation_placed(subject: Subject) -> Places:
    """The same of validation rows."""
    return places(subject.validation_rows, subject.validation.stream, subject.padding_ids)


def to_learn(subject: Subject) -> Check:
    """Windows have targets, in training and in validation. (Prompts that fill a window leave none.)"""
    name, expected = "something to learn", f"targets in {1 - _EMPTY:.0%} of the windows"
    missing = sum(not bool((batch.targets != IGNORE_INDEX).any()) for batch in subject.batches)
    share = 1 - float(subject.rows.learned.any(axis=1).mean())
    of_all = "the rows that were looked at"
    if subject.training is not None:
        has = _have_targets(subject.training)
        share, of_all = 1 - float(has.mean()), "the windows"
    measured = f"{share:.1%} of {of_all} have no target, {missing} of {len(subject.batches)} batches"
    length = subject.rows.inputs.shape[1]
    cure = (
        f"prompts that are longer than a window of {length} tokens fill it, and nothing is learned from it; shorten "
        "them, raise --context-length, or look at what is masked"
    )
    if not subject.validation_rows.learned.any():
        cause = (
            "The validation windows have no target, so no loss can be measured on them: give --validation-data, or "
            "raise --context-length, so that the windows hold completions."
        )
        return Check(name, f"{measured}; none in validation", expected, "fail", cause)
    if share == 1 and _nothing_at_all(subject):
        return Check(name, measured, expected, "fail", f"No token of the text would be learned: {cure}.")
    if missing == len(subject.batches) and subject.training is not None and share < _EMPTY:
        cause = (
            f"None of {missing} batches has a target, although {1 - share:.0%} of the windows of the text have: "
            "something masks all targets after they were cut."
        )
        return Check(name, measured, expected, "fail", cause)
    if share > _EMPTY or missing:
        what = (
            f"{share:.0%} of {of_all} have nothing to learn" if share > _EMPTY else f"{missing} batches have no target"
        )
        return Check(name, measured, expected, "warn", f"{what}: {cure}.")
    return Check(name, measured, expected)


def with_targets(subject: Subject) -> Subject | None:
    """The subject with a batch first that has targets, by which a model can be checked; None if there is none."""
    counts = [int((batch.targets != IGNORE_INDEX).sum()) for batch in subject.batches]
    if 2 * counts[0] >= max(counts) > 0:
        return subject
    order = sorted(range(len(counts)), key=lambda number: -counts[number])
    batches, where = [subject.batches[n] for n in order], [subject.places[n] for n in order]
    if max(counts) == 0:
        if subject.training is None or not (has := _have_targets(subject.training)).any():
            return None
        windows = _sampled(subject.training)[has][: len(batches[0].inputs)]
        batches, where = [subject.training.batch(windows), *batches], ["windows with targets", *where]
    return replace(subject, batches=batches, places=where)


def _sampled(windows: Windows) -> np.ndarray:
    return np.unique(np.linspace(0, len(windows) - 1, min(len(windows), _SAMPLED)).round().astype(np.int64))


def _have_targets(windows: Windows) -> np.ndarray:
    """(W,) bool: which of the sampled windows have something to learn."""
    numbers, learned = _sampled(windows), windows.stream.loss_mask
    if learned is None:
        return np.ones(len(numbers), bool)
    starts = windows.first + 1 + numbers * windows.stride
    return np.array([bool(learned[start : min(start + windows.length, windows.stop)].any()) for start in starts])


def _nothing_at_all(subject: Subject) -> bool:
    windows = subject.training
    if windows is None or windows.stream.loss_mask is None:
        return windows is not None  # targets are lost although all of the text is learned
    return not bool(windows.stream.loss_mask[windows.first + 1 : windows.stop].any())


def shifted(subject: Subject) -> Check:
    """Each target is the next input of its row."""
    return _shifted("targets follow inputs", subject.rows, placed(subject))


def validation_shifted(subject: Subject) -> Check:
    """The same in validation batches."""
    return _shifted("validation targets", subject.validation_rows, validation_placed(subject))


def in_text(subject: Subject) -> Check:
    """Each row stands in the tokenised text, with what follows it, first input and last target included.

    Its place is found by its content: this does not believe the code that made the row.
    """
    # Of a stream only the beginning is read, and cut elsewhere than in its blocks: a row may well not be in it.
    whole = subject.training is not None
    return _in_text("rows in the text", subject, subject.rows, subject.text, placed(subject), whole)


def validation_in_text(subject: Subject) -> Check:
    """The same for validation rows."""
    stream, found = subject.validation.stream, validation_placed(subject)
    return _in_text("validation in its text", subject, subject.validation_rows, stream, found, True)


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
    rows, found = subject.rows.inputs, placed(subject)
    _, index, inverse, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    measured = f"{len(index)} different of {len(rows)} rows"
    # A text of repetitions has equal rows: no row may come more often than it stands in the text.
    most = np.zeros(len(index), np.int64)
    np.maximum.at(most, inverse.reshape(-1), np.where(found.exact, found.count, len(rows)))
    if _within_epoch(subject, found) and found.searched_all and (counts > most).any():
        cause = "The source repeats rows within an epoch: as much of the text would never be read."
        return Check(name, measured, expected, "fail", cause)
    return Check(name, measured, expected)


def _within_epoch(subject: Subject, found: Places) -> bool:
    """Whether the rows that were looked at can all be of one epoch, in which no window comes twice."""
    windows = subject.training
    if windows is None:
        return False
    overlapping = windows.stride < windows.length
    most = len(windows) * windows.length if overlapping else windows.stop - windows.first - 1
    return int(found.real.sum()) <= most


def shuffled(subject: Subject) -> Check:
    """Rows that follow one another in the batches do not follow one another in the text."""
    name, expected = "shuffling", "windows in an order of their own"
    found, length = placed(subject), subject.rows.inputs.shape[1]
    known = found.exact & (found.count == 1)
    both = known[1:] & known[:-1]
    steps = (found.offsets[1:] - found.offsets[:-1])[both]
    if len(steps) < _LEAST_STEPS:
        return Check(name, f"only {len(steps)} pairs of rows: nothing can be said", expected)
    share = float(((steps > 0) & (steps <= length)).mean())
    measured = f"{share:.0%} of {len(steps)} rows are followed by the next of the text"
    if share <= _IN_ORDER:
        return Check(name, measured, expected)
    cause = (
        "The batches go through the text in its order, so that each step learns from one place of it and forgets the "
        "others: shuffle the windows in each epoch."
    )
    return Check(name, measured, expected, "warn", cause)


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


def _shifted(name: str, rows: Rows, found: Places) -> Check:
    following = rows.inputs[:, 1:]
    # A target within padding, or the last before it, has no input that it could be the same as.
    both = rows.learned[:, :-1] & found.real[:, 1:]
    wrong = np.zeros_like(rows.learned)
    wrong[:, :-1] = both & (rows.targets[:, :-1] != following)
    pairs, expected = int(both.sum()), "each target is the next input"
    if not wrong.any():
        return Check(name, f"{pairs:,} of {pairs:,} pairs" if pairs else "no pairs", expected)
    measured = f"{pairs - int(wrong.sum()):,} of {pairs:,} pairs"
    return Check(name, measured, expected, "fail", _cause_of_targets(rows, wrong, _by_shift(rows, found)))


def _by_shift(rows: Rows, found: Places) -> dict[int, float]:
    """How many targets are the input this many places on, for shifts that they should not have."""
    length, shares = rows.inputs.shape[1], {}
    for shift in _SHIFTS:
        first, last = max(0, -shift), length - max(0, shift)
        if last > first:
            learned = rows.learned[:, first:last] & found.real[:, first + shift : last + shift]
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


def as_in_text(rows: Rows, found: Places, tokens: np.ndarray) -> bool:
    """Whether all rows stand in the text word for word, with the targets that it has."""
    text, there = reference.expected(tokens, found.offsets, rows.inputs.shape[1])
    wrong = rows.learned & there[:, 1:] & (rows.targets != text[:, 1:])
    return bool(found.exact.all() and not found.padding.any() and not wrong.any())


def _in_text(name: str, subject: Subject, rows: Rows, stream: TokenStream, found: Places, whole: bool) -> Check:
    length, expected_text = rows.inputs.shape[1], "each row as it stands in the tokenised text, and what follows it"
    offsets, real = found.offsets, found.real
    known = found.exact
    if whole and found.searched_all:
        if found.lost.any():
            measured = f"{found.lost.sum()} of {len(rows.inputs)} rows stand nowhere in it"
            cause = (
                "Their inputs are not this text: the collator changes them, or the batches are of another text than "
                "the one that is checked."
            )
            return Check(name, measured, expected_text, "fail", cause)
        known = offsets != reference.NOWHERE
    elif not known.any():
        measured = f"none of {len(known)} rows stands in the part of it that was read"
        cause = (
            "No row is this text, of which the beginning was read: either the collator changes inputs, or the rows are "
            "of a later part; look at the rows that are shown."
        )
        return Check(name, measured, expected_text, "warn", cause)

    tokens, there = reference.expected(stream.tokens, offsets, length)
    there = there & known[:, None]
    other_inputs = real & there[:, :-1] & (rows.inputs != tokens[:, :-1])
    # A padded place is followed by nothing; the last before it may leave its target out.
    other_targets = rows.learned & ~found.padding & there[:, 1:] & (rows.targets != tokens[:, 1:])
    if not whole:  # a block ends with the end-of-text token, wherever it was cut
        other_targets &= rows.targets != subject.tokenizer.end_of_text_id
    if stream.loss_mask is None:
        learned = np.ones_like(rows.learned)
    else:
        places = (offsets[:, None] + np.arange(1, length + 1)).clip(0, len(stream.tokens) - 1)
        learned = np.asarray(stream.loss_mask[places])
    before_padding = np.zeros_like(real)
    before_padding[:, :-1] = found.padding[:, 1:]
    left_out = real & there[:, 1:] & learned & ~rows.learned & ~before_padding
    prompt_learned = real & there[:, 1:] & ~learned & rows.learned
    verified = int((real & there[:, :-1]).sum())
    for wrong, what, cause in (
        (other_inputs, "inputs", ""),
        (other_targets, "targets", ""),
        (left_out, "targets left out", "are not learned although the text is to be: the collator ignores too much."),
        (prompt_learned, "prompts learned", "are of a prompt, which is only to be read: mask them with IGNORE_INDEX."),
        (
            _other_documents(subject, rows, stream, offsets, real & known[:, None]),
            "document numbers",
            "do not change where documents begin.",
        ),
    ):
        if wrong.any():
            measured = f"{int(wrong.sum()):,} {what} differ in {verified:,} places"
            if not cause:
                actual, of_text = (rows.inputs, tokens[:, :-1]) if what == "inputs" else (rows.targets, tokens[:, 1:])
                cause = _difference(subject.tokenizer, rows, wrong, actual, of_text)
            else:
                cause = f"Targets in {rows.where(wrong)} {cause}"
            return Check(name, measured, expected_text, "fail", f"{cause}")
    unknown = f", {int((~known).sum())} not in the part that was read" if not known.all() else ""
    return Check(name, f"{int(known.sum()):,} rows found, {verified:,} places the same{unknown}", expected_text)


def _other_documents(
    subject: Subject, rows: Rows, stream: TokenStream, offsets: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """(R, T) bool: where a document begins in the text and not in the row, or the other way round."""
    wrong = np.zeros_like(real)
    if not subject.config.data.separate_documents:
        return wrong
    places = offsets[:, None] + np.arange(rows.inputs.shape[1])
    number = np.searchsorted(stream.starts, places, side="right")
    begins, said = np.diff(number, axis=1) != 0, np.diff(rows.document, axis=1) != 0
    wrong[:, 1:] = (begins != said) & real[:, 1:] & real[:, :-1]
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
