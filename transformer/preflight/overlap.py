"""Validation text that also stands in the training text: what is validated on it is memory.

Runs of `LENGTH` tokens, of more where tokens are short, are compared by a hash (as GPT-3's contamination study compared
runs of 13 words; Brown et al., 2020, appendix C). Memory is that of the validation text's hashes and of one chunk of
the training text.

Dimensions: N tokens
"""

from __future__ import annotations

import numpy as np

from transformer.data.batches import Windows
from transformer.data.tokenize import TokenStream
from transformer.preflight.check import Check
from transformer.preflight.subject import Subject

LENGTH = 16  # tokens at least, a power of two
_BYTES = 60  # of text in a run: about a dozen words
_CHUNK = 2**22
_MOST = 2**29  # training tokens looked at
_MOST_VALIDATION = 2**19
_MEASURED = 2**14  # tokens whose bytes are counted
_SHARE = 0.1  # of the validation text that may stand in the training text
_DOCUMENT = 0.8  # of a document's runs: then it is the same document
_DIFFERENT = 0.75  # of a run's tokens are another than the one before, or it says nothing
_LEAST_TOKENS, _LEAST_RUNS = 48, 8  # of a document; a shorter one may well be said twice
_TABLE_BITS = 24
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio: a multiplier that mixes well
_SHOWN = 60


def overlap(subject: Subject) -> Check:
    """Hardly any run of tokens of the validation text stands in the training text, and no document does."""
    name = "validation in training"
    validation = subject.validation
    tokens = np.asarray(validation.stream.tokens[validation.first : validation.stop][:_MOST_VALIDATION])
    length = _length(len(subject.tokenizer.decode(tokens[:_MEASURED].tolist()).encode()), len(tokens[:_MEASURED]))
    expected = f"less than {_SHARE:.0%} of its runs of {length} tokens, and no document"
    if len(tokens) < length:
        return Check(name, "the validation text is too short to say", expected)
    wanted, number = np.unique(hashes(tokens, length), return_inverse=True)
    says = _says_something(tokens, length)
    known = _seen(wanted, _training(subject), length)[number] & says
    share = float(known.sum() / max(1, says.sum()))
    twins = _twins(validation, known, length)
    where = f"{share:.1%} of {int(says.sum()):,} runs, {len(twins)} of {_documents(validation)} documents"
    if share < _SHARE and not twins:
        return Check(name, where, expected)
    start = twins[0] if twins else int(known.argmax())
    example = subject.tokenizer.decode(tokens[start : start + length].tolist())
    example = " ".join(example.split())[:_SHOWN] or example[:_SHOWN]
    if twins:
        what = f"{len(twins)} {'documents' if len(twins) > 1 else 'document'} of the validation text "
        what += "stand" if len(twins) > 1 else "stands"
    else:
        what = f"{share:.0%} of the validation text stands"
    cause = (
        f"{what} in the training text too, such as {example!r}: its loss will measure memory; take them out of one of "
        "the two, or give other --validation-data."
    )
    return Check(name, where, expected, "warn", cause)


def _says_something(tokens: np.ndarray, length: int) -> np.ndarray:
    """(N - length + 1,) bool: runs that are not mostly one token again and again, such as a space or a dash."""
    changes = np.concatenate([[0], np.cumsum(tokens[1:] != tokens[:-1])])
    return changes[length - 1 :] - changes[: len(tokens) - length + 1] >= _DIFFERENT * (length - 1)


def _length(n_bytes: int, n_tokens: int) -> int:
    """Tokens in a run, a power of two: as many as `_BYTES` of this text take."""
    length = LENGTH
    while length < _BYTES and length * n_bytes < _BYTES * n_tokens:
        length *= 2
    return length


def hashes(tokens: np.ndarray, length: int = LENGTH) -> np.ndarray:
    """(N - length + 1,) uint64: a polynomial of each run of `length` tokens, doubled from runs of half the length."""
    run = tokens.astype(np.uint64) + np.uint64(1)
    part, power = 1, _BASE
    with np.errstate(over="ignore"):
        while part < length:
            run = run[:-part] * power + run[part:]
            part, power = 2 * part, power * power
        return run ^ (run >> np.uint64(32))


def _seen(wanted: np.ndarray, tokens: np.ndarray, length: int) -> np.ndarray:
    """Which of the sorted hashes are those of some run in `tokens`."""
    shift = np.uint64(64 - _TABLE_BITS)
    table = np.zeros(2**_TABLE_BITS, bool)  # a first look, which leaves out nearly all
    table[_slots(wanted, shift)] = True
    seen = np.zeros(len(wanted), bool)
    for start in range(0, max(0, len(tokens) - length + 1), _CHUNK):
        found = hashes(tokens[start : start + _CHUNK + length - 1], length)
        found = found[table[_slots(found, shift)]]
        places = np.searchsorted(wanted, found).clip(0, len(wanted) - 1)
        seen[places[wanted[places] == found]] = True
    return seen


def _slots(values: np.ndarray, shift: np.uint64) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (values * _BASE) >> shift


def _training(subject: Subject) -> np.ndarray:
    """The training tokens; those that are held out from them are not among them."""
    span = (0, None) if subject.training is None else (subject.training.first, subject.training.stop)
    return subject.text.tokens[slice(*span)][:_MOST]


def _documents(windows: Windows) -> int:
    return len(_starts(windows.stream, windows))


def _starts(stream: TokenStream, windows: Windows) -> np.ndarray:
    """Where documents begin within the windows' part of the text, counted from its first token."""
    limit = min(windows.stop, windows.first + _MOST_VALIDATION)
    inside = stream.starts[(stream.starts >= windows.first) & (stream.starts < limit)] - windows.first
    return inside if len(inside) and inside[0] == 0 else np.concatenate([[0], inside])


def _twins(windows: Windows, known: np.ndarray, length: int) -> list[int]:
    """The first tokens of the documents nearly all of whose runs are known; the rest of one is no document."""
    starts = _starts(windows.stream, windows)
    within = windows.first not in windows.stream.starts  # what is held out may begin within a document
    found = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(known) + length - 1], strict=True):
        if within and not start:
            continue
        runs = known[start + 1 : stop - length + 1]
        if len(runs) >= max(_LEAST_RUNS, _LEAST_TOKENS - length) and runs.mean() >= _DOCUMENT:
            found.append(start + 1)
    return found
