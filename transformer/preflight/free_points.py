"""Targets that a model knows without reading: padding, special tokens, repetitions, columns that are always the same.

They are learned within minutes and then cost nothing, so that a loss over all targets flatters the model. If a share s
of the targets is free and the others cost L nats each, what is reported is the perplexity exp((1 - s) L): with two
thirds of padding (s = 0.66) a reported 3 is a perplexity of 3^(1 / 0.34) = 25 per real token.

Dimensions: R rows · T places
"""

from __future__ import annotations

import numpy as np

from transformer.data.batches import IGNORE_INDEX
from transformer.preflight.alignment import as_in_text, placed, validation_placed
from transformer.preflight.check import Check
from transformer.preflight.places import Places
from transformer.preflight.rows import Rows
from transformer.preflight.subject import Subject

_REPORTED = 3.0  # the perplexity of the example
_REPEATED = 0.2  # of the targets; of English text a hundredth is the token before
_LEAST_ROWS = 16  # of which a column can be said to be always the same
_ALWAYS, _ELSEWHERE = 0.9, 0.1  # of a column's targets, and of all others, that are its most common one
_FEW_COLUMNS = 0.1  # of all; more of them are a text of fixed records, not a mistake


def reported_perplexity(real: float, free: float) -> float:
    """The perplexity over all targets, when the share `free` costs nothing and the others have perplexity `real`."""
    return real ** (1 - free)


def real_perplexity(reported: float, free: float) -> float:
    """The inverse: the perplexity of the targets that are not free."""
    return reported ** (1 / (1 - free)) if free < 1 else float("inf")


def padding_counted(subject: Subject) -> Check:
    """No target is padding, in training batches and validation batches."""
    name, expected = "padding in the targets", "none: IGNORE_INDEX wherever a row is filled up"
    shares = {}
    for what, rows, found in (
        ("training", subject.rows, placed(subject)),
        ("validation", subject.validation_rows, validation_placed(subject)),
    ):
        padding = padded_targets(subject, rows, found)
        shares[what] = float(padding.sum() / max(1, rows.learned.sum()))
        if shares[what]:
            text = subject.tokenizer.decode([int(rows.targets[padding][0])], skip_special=False)
            return Check(
                name,
                f"{shares[what]:.1%} of the {what} targets",
                expected,
                "fail",
                f"{shares[what]:.1%} of the targets are padding ({text!r}), which is learned at once: a perplexity of "
                f"{_REPORTED:.0f} reported is {real_perplexity(_REPORTED, shares[what]):.3g} per real token; "
                f"give padding the target {IGNORE_INDEX}.",
            )
    filled = float(placed(subject).padding.mean())
    return Check(name, f"none ({filled:.1%} of the inputs are padding)", expected)


def padded_targets(subject: Subject, rows: Rows, found: Places) -> np.ndarray:
    """(R, T) bool: targets that are padding: they stand where the text has nothing, or have an id no text can have."""
    own = {subject.tokenizer.pad_id} - {None, subject.tokenizer.end_of_text_id}
    by_id = np.isin(rows.targets, sorted(id for id in own if id is not None and not _may_be_text(subject, id)))
    return rows.learned & (by_id | (found.padding & (rows.targets == rows.inputs)))


def _may_be_text(subject: Subject, id: int) -> bool:
    """Whether tokenising a text can give this id, which special tokens are not meant for."""
    token = subject.tokenizer.backend.id_to_token(id)
    if token is None or token == getattr(subject.tokenizer.backend.model, "unk_token", None):
        return True
    return id in subject.tokenizer.encode_documents([token])[0]


def special(subject: Subject) -> Check:
    """The only special token in the targets is the end of text, once for each document."""
    tokenizer, targets = subject.tokenizer, subject.rows.targets[subject.rows.learned]
    name, expected = "special tokens", "end-of-text once for each document, no other"
    added = tokenizer.backend.get_added_tokens_decoder()
    model = tokenizer.backend.model
    fine = {tokenizer.end_of_text_id, tokenizer.backend.token_to_id(getattr(model, "unk_token", None) or "")}
    fine |= {tokenizer.pad_id}  # looked at by itself
    for id, token in added.items():
        if token.special and id not in fine and (count := int((targets == id).sum())):
            if _may_be_text(subject, id):
                continue
            share = count / len(targets)
            cause = (
                f"The special token {token.content!r} is {share:.1%} of the targets, free points that the model learns "
                "to say: leave it out of the text (add_special_tokens=False), or give it the target IGNORE_INDEX."
            )
            return Check(name, f"{token.content} in {count:,} of {len(targets):,} targets", expected, "fail", cause)
    share = float((targets == tokenizer.end_of_text_id).mean()) if len(targets) else 0.0
    measured = f"end-of-text {share:.2%} of the targets"
    stream = subject.training.stream if subject.training is not None else None
    if stream is not None:
        chunks = range(0, len(stream.tokens), 2**22)
        ends = sum(int((stream.tokens[i : i + 2**22] == tokenizer.end_of_text_id).sum()) for i in chunks)
        measured += f", {ends:,} in the text of {len(stream.starts):,} documents"
        if ends > len(stream.starts) + 1 and not _may_be_text(subject, tokenizer.end_of_text_id):
            cause = (
                f"{tokenizer.end_of_text!r} stands in the text {ends:,} times, but there are only "
                f"{len(stream.starts):,} documents: it is put where no document ends, and the model will say it."
            )
            return Check(name, measured, expected, "fail", cause)
    return Check(name, measured, expected)


def repeated(subject: Subject) -> Check:
    """Few targets are the token before them."""
    rows, found = subject.rows, placed(subject)
    considered = rows.learned & ~padded_targets(subject, rows, found)
    again = considered & (rows.targets == rows.inputs)
    share = float(again.sum() / max(1, considered.sum()))
    name, expected = "repeated tokens", f"less than {_REPEATED:.0%} of the targets are their own input"
    if share < _REPEATED:
        return Check(name, f"{share:.2%}", expected)
    if found.exact.all():
        values, counts = np.unique(rows.targets[again], return_counts=True)
        often = subject.tokenizer.decode([int(values[counts.argmax()])], skip_special=False)
        why = f"the text is like that, above all with {often!r} ({counts.max() / again.sum():.0%} of them)"
    else:
        why = "targets that are not shifted, padding that is not known as such, or a text of repetitions"
    cause = (
        f"{share:.0%} of the targets are the token before them, which is learned at once: {why}; a perplexity of "
        f"{_REPORTED:.0f} reported is {real_perplexity(_REPORTED, share):.3g} for the others."
    )
    return Check(name, f"{share:.1%}", expected, "warn", cause)


def constant_columns(subject: Subject) -> Check:
    """No column, and not the last target of each row, is nearly always the same token, unless the text is like that.

    Lines of one length, or records, have their ends in the same column of every row; so what is in the text is none.
    """
    name, expected = "the same in every row", f"no column with one target in {_ALWAYS:.0%} of its rows"
    rows = subject.rows
    places = placed(subject)
    if as_in_text(rows, places, subject.text.tokens):
        return Check(name, "every target is that of the text", expected)
    _, unique = np.unique(rows.inputs, axis=0, return_index=True)
    targets, learned = rows.targets[unique], rows.learned[unique] & ~padded_targets(subject, rows, places)[unique]
    if len(unique) < _LEAST_ROWS:
        return Check(name, f"only {len(unique)} different rows: nothing can be said", expected)
    found = [column for column in range(targets.shape[1]) if _constant(targets, learned, column) is not None]
    if found and len(found) <= max(1, _FEW_COLUMNS * targets.shape[1]):
        token = _constant(targets, learned, found[0])
        return _always(subject, name, expected, f"column {', '.join(map(str, found[:5]))} of the targets", token)
    # The last target of each row, wherever it stands; that a row ends where its document does is no mistake.
    has = learned.any(axis=1)
    last = learned.shape[1] - 1 - learned[:, ::-1].argmax(axis=1)
    ends = targets[np.arange(len(targets)), last][has]
    values, counts = np.unique(ends, return_counts=True)
    if len(ends) >= _LEAST_ROWS and counts.max() >= _ALWAYS * len(ends):
        token = int(values[counts.argmax()])
        if token != subject.tokenizer.end_of_text_id and (targets[learned] == token).mean() < _ELSEWHERE:
            return _always(subject, name, expected, "the last target of each row", token)
    return Check(name, f"none in {len(unique)} different rows", expected)


def _constant(targets: np.ndarray, learned: np.ndarray, column: int) -> int | None:
    """The token that is nearly always the target in this column, and seldom in others; None if there is none."""
    values, counts = np.unique(targets[learned[:, column], column], return_counts=True)
    if counts.sum() < _LEAST_ROWS or counts.max() < _ALWAYS * counts.sum():
        return None
    token = int(values[counts.argmax()])
    others = learned.copy()
    others[:, column] = False
    return token if (targets[others] == token).mean() < _ELSEWHERE else None


def _always(subject: Subject, name: str, expected: str, what: str, token: int | None) -> Check:
    text = subject.tokenizer.decode([token or 0], skip_special=False)
    cause = (
        f"In nearly every row {what} is {text!r} (id {token}), which a model learns at once and then says: "
        "take it out of the examples, or give it the target IGNORE_INDEX."
    )
    return Check(name, f"{text!r}: {what}", expected, "fail", cause)
