"""Checks for targets that are learned without reading the text: padding, special tokens, repeated tokens, constants.

Their loss is soon zero, so that the mean over all targets is too low. If a share s of them is trivial and the loss of
the others is L, the reported perplexity is exp((1 - s) L): with two thirds of padding, 3 in place of 25.

Dimensions: R rows · T positions
"""

from __future__ import annotations

import numpy as np

from transformer.data.batches import IGNORE_INDEX
from transformer.preflight.check import Check, Expected
from transformer.preflight.places import LocatedRows
from transformer.preflight.subject import Subject

_REPORTED = 3.0  # the perplexity of the example
_REPEATED = 0.2  # of the targets; of English text a hundredth is the token before
_LEAST_ROWS = 16  # with fewer nothing is said of a column
_ALWAYS, _ELSEWHERE = 0.9, 0.1  # of a column's targets, and of all others, that are its most common one
_FEW_COLUMNS = 0.1  # of all; more of them are a text of fixed records, not a mistake
_CHUNK = 2**22  # tokens read at once


def real_perplexity(reported: float, trivial: float) -> float:
    """The perplexity of the other targets, if `reported` is that of all and the loss of the share `trivial` is zero."""
    return reported ** (1 / (1 - trivial)) if trivial < 1 else float("inf")


def padding_counted(subject: Subject) -> Check:
    """No target is padding, in training batches and validation batches."""
    expected = Expected("none: IGNORE_INDEX wherever a row is filled up")
    for what, rows in (("training", subject.rows), ("validation", subject.validation_rows)):
        padding = _padded_targets(subject, rows)
        if padding.any():
            share = float(padding.sum() / rows.learned.sum())
            text, real = subject.decoded(rows.targets[padding][0]), real_perplexity(_REPORTED, share)
            return expected.failed(
                f"{share:.1%} of the {what} targets",
                f"{share:.1%} of the targets are padding ({text!r}), which is learned at once: a perplexity of "
                f"{_REPORTED:.0f} reported is {real:.3g} per real token; give padding the target {IGNORE_INDEX}.",
            )
    return expected.passed(f"none ({float(subject.rows.padding.mean()):.1%} of the inputs are padding)")


def _padded_targets(subject: Subject, rows: LocatedRows) -> np.ndarray:
    """(R, T) bool: targets where the text has nothing, or with an id of padding that no text can have."""
    own = {subject.tokenizer.pad_id} - {None, subject.tokenizer.end_of_text_id}
    by_id = np.isin(rows.targets, [id for id in own if id is not None and not _may_be_text(subject, id)])
    return rows.learned & (by_id | (rows.padding & (rows.targets == rows.inputs)))


def _may_be_text(subject: Subject, id: int) -> bool:
    """Whether tokenizing a text can give this id, as it should not for most special tokens."""
    token = subject.tokenizer.backend.id_to_token(id)
    if token is None or token == getattr(subject.tokenizer.backend.model, "unk_token", None):
        return True
    return id in subject.tokenizer.encode_documents([token])[0]


def special(subject: Subject) -> Check:
    """The only special token in the targets is the end of text, once for each document."""
    tokenizer, targets = subject.tokenizer, subject.rows.targets[subject.rows.learned]
    expected = Expected("end-of-text once for each document, no other")
    end = tokenizer.end_of_text_id
    for id, token in tokenizer.backend.get_added_tokens_decoder().items():
        if not token.special or id in (end, tokenizer.pad_id):  # padding has a check of its own
            continue
        count = int((targets == id).sum())
        if count and not _may_be_text(subject, id):
            cause = f"{token.content!r} is {count / len(targets):.1%} of the targets: set add_special_tokens=False."
            return expected.failed(f"{token.content} in {count:,} of {len(targets):,} targets", cause)
    measured = f"end-of-text {float((targets == end).mean()) if len(targets) else 0.0:.2%} of the targets"
    if subject.training is None:
        return expected.passed(measured)
    tokens, n_documents = subject.training.stream.tokens, len(subject.training.stream.starts)
    ends = sum(int((tokens[i : i + _CHUNK] == end).sum()) for i in range(0, len(tokens), _CHUNK))
    measured += f", {ends:,} in the text of {n_documents:,} documents"
    if ends > n_documents + 1 and not _may_be_text(subject, end):
        cause = f"{tokenizer.end_of_text!r} is also where no document ends, and will be generated there: take it out."
        return expected.failed(measured, cause)
    return expected.passed(measured)


def repeated(subject: Subject) -> Check:
    """Few targets are the token before them."""
    rows = subject.rows
    considered = rows.learned & ~_padded_targets(subject, rows)
    again = considered & (rows.targets == rows.inputs)
    share = float(again.sum() / max(1, considered.sum()))
    expected = Expected(f"less than {_REPEATED:.0%} of the targets are their own input")
    if share < _REPEATED:
        return expected.passed(f"{share:.2%}")
    why = "look for targets that are not shifted, or padding that is not known as such"
    if rows.exact.all():
        values, counts = np.unique(rows.targets[again], return_counts=True)
        why = f"the text repeats above all {subject.decoded(values[counts.argmax()])!r}; try a larger vocabulary"
    cause = (
        f"{share:.0%} of the targets are the token before them: {why}; a perplexity of {_REPORTED:.0f} reported is "
        f"{real_perplexity(_REPORTED, share):.3g} for the others."
    )
    return expected.warned(f"{share:.1%}", cause)


def constant_columns(subject: Subject) -> Check:
    """No column, and not the last target of each row, is nearly always the same token, unless the text is like that."""
    expected = Expected(f"no column with one target in {_ALWAYS:.0%} of its rows")
    rows = subject.rows
    wrong = rows.learned & rows.there[:, 1:] & (rows.targets != rows.text[:, 1:])
    if rows.exact.all() and not rows.padding.any() and not wrong.any():
        return expected.passed("every target is that of the text")
    _, unique = np.unique(rows.inputs, axis=0, return_index=True)
    targets, learned = rows.targets[unique], rows.learned[unique] & ~_padded_targets(subject, rows)[unique]
    if len(unique) < _LEAST_ROWS:
        return expected.passed(f"only {len(unique)} different rows: too few to tell")
    positions = np.arange(targets.shape[1])
    found_at = {n: _constant(targets, learned, positions == n) for n in positions.tolist()}
    constant = {n: token for n, token in found_at.items() if token >= 0}
    last = positions == len(positions) - 1 - learned[:, ::-1].argmax(axis=1)[:, None]  # wherever it is
    token = _constant(targets, learned, last)
    if constant and len(constant) <= max(1, _FEW_COLUMNS * len(positions)):
        what, token = f"column {', '.join(map(str, [*constant][:5]))} of the targets", next(iter(constant.values()))
    elif token >= 0 and token != subject.tokenizer.end_of_text_id:  # a row may well end where its document does
        what = "the last target of each row"
    else:
        return expected.passed(f"none in {len(unique)} different rows")
    text = subject.decoded(token)
    cause = f"In nearly every row {what} is {text!r} (id {token}), which is learned at once: leave it out, or mask it."
    return expected.failed(f"{text!r}: {what}", cause)


def _constant(targets: np.ndarray, learned: np.ndarray, where: np.ndarray) -> int:
    """The token that is nearly always the target at these positions, and rarely at others; -1: there is none."""
    values, counts = np.unique(targets[learned & where], return_counts=True)
    if counts.sum() < _LEAST_ROWS or counts.max() < _ALWAYS * counts.sum():
        return -1
    token, others = int(values[counts.argmax()]), targets[learned & ~where]
    return token if len(others) and (others == token).mean() < _ELSEWHERE else -1
