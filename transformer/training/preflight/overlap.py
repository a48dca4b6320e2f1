"""Validation text that also stands in the training text: what is validated on it is memory.

Runs of `LENGTH` tokens are compared by a hash (as GPT-3's contamination study compared runs of 13 words; Brown et al.,
2020, appendix C). Memory is that of the validation text's hashes and of one chunk of the training text.

Dimensions: N tokens
"""

from __future__ import annotations

import numpy as np

from transformer.text.batches import Windows
from transformer.text.tokens import TokenStream
from transformer.training.preflight.check import Check
from transformer.training.preflight.subject import Subject

LENGTH = 16  # tokens: about a dozen words; a power of two
_CHUNK = 2**22
_MOST = 2**29  # training tokens looked at
_MOST_VALIDATION = 2**19
_SHARE = 0.1  # of the validation text that may stand in the training text
_DOCUMENT = 0.8  # of a document's runs: then it is the same document
_LEAST_RUNS = 32  # a shorter document may well be said twice
_TABLE_BITS = 24
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, from the golden ratio: a multiplier that mixes well
_SHOWN = 60


def overlap(subject: Subject) -> Check:
    """Hardly any run of tokens of the validation text stands in the training text, and no document does."""
    name = "validation in training"
    expected = f"less than {_SHARE:.0%} of its runs of {LENGTH} tokens, and no document"
    validation = subject.validation
    tokens = np.asarray(validation.stream.tokens[validation.first : validation.stop][:_MOST_VALIDATION])
    if len(tokens) < LENGTH:
        return Check(name, "the validation text is too short to say", expected)
    wanted, number = np.unique(hashes(tokens), return_inverse=True)
    known = _seen(wanted, _training(subject))[number]
    share = float(known.mean())
    twins = _twins(validation, known)
    where = f"{share:.1%} of {len(known):,} runs, {len(twins)} of {_documents(validation)} documents"
    if share < _SHARE and not twins:
        return Check(name, where, expected)
    start = twins[0] if twins else int(known.argmax())
    example = " ".join(subject.tokenizer.decode(tokens[start : start + LENGTH].tolist()).split())[:_SHOWN]
    what = (
        f"{len(twins)} documents of the validation text stand"
        if twins
        else f"{share:.0%} of the validation text stands"
    )
    cause = (
        f"{what} in the training text too, such as {example!r}: its loss will measure memory; take them out of one of "
        "the two, or give other --validation-data."
    )
    return Check(name, where, expected, "warn", cause)


def hashes(tokens: np.ndarray) -> np.ndarray:
    """(N - LENGTH + 1,) uint64: a polynomial of each run of LENGTH tokens, doubled from runs of half the length."""
    run = tokens.astype(np.uint64) + np.uint64(1)
    length, power = 1, _BASE
    with np.errstate(over="ignore"):
        while length < LENGTH:
            run = run[:-length] * power + run[length:]
            length, power = 2 * length, power * power
        return run ^ (run >> np.uint64(32))


def _seen(wanted: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Which of the sorted hashes are those of some run in `tokens`."""
    shift = np.uint64(64 - _TABLE_BITS)
    table = np.zeros(2**_TABLE_BITS, bool)  # a first look, which leaves out nearly all
    table[_slots(wanted, shift)] = True
    seen = np.zeros(len(wanted), bool)
    for start in range(0, max(0, len(tokens) - LENGTH + 1), _CHUNK):
        found = hashes(tokens[start : start + _CHUNK + LENGTH - 1])
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


def _twins(windows: Windows, known: np.ndarray) -> list[int]:
    """The first tokens of the documents nearly all of whose runs are known."""
    starts = _starts(windows.stream, windows)
    found = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(known) + LENGTH - 1], strict=True):
        runs = known[start + 1 : stop - LENGTH + 1]
        if len(runs) >= _LEAST_RUNS and runs.mean() >= _DOCUMENT:
            found.append(start + 1)
    return found
