"""The check for validation text that is in the training text too.

Runs of `LENGTH` tokens, or more if tokens are short, are compared by hashes, as runs of 13 words in the contamination
study of GPT-3 (Brown et al., 2020, appendix C).

Dimensions: N tokens
"""

from __future__ import annotations

import math

import numpy as np

from transformer.data.batches import Windows
from transformer.preflight.check import Check, Expected
from transformer.preflight.subject import Subject
from transformer.preflight.token_runs import RunSearch, hashes

LENGTH, _LONGEST = 16, 64  # tokens in a run, powers of two
_BYTES = 60  # of text in a run: about a dozen words
_MOST = 2**29  # training tokens searched
_MOST_VALIDATION = 2**19
_MEASURED = 2**14  # tokens whose bytes are counted
_SHARE = 0.1  # of the validation text that may be in the training text
_DOCUMENT = 0.8  # of a document's runs: then it is the same document
_DIFFERENT = 0.75  # of a run's tokens differ from the one before, or it is not counted
_LEAST_TOKENS, _LEAST_RUNS = 48, 8  # of a document; a shorter one may well occur twice
_SHOWN = 60


def overlap(subject: Subject) -> Check:
    """Few runs of tokens of the validation text are in the training text, and no document is."""
    validation, tokenizer = subject.validation, subject.tokenizer
    tokens = np.asarray(validation.stream.tokens[validation.first : validation.stop][:_MOST_VALIDATION])
    sample = tokens[:_MEASURED].tolist()
    bytes_per_token = max(1, len(tokenizer.decode(sample).encode())) / max(1, len(sample))
    length = min(_LONGEST, max(LENGTH, 2 ** math.ceil(math.log2(_BYTES / bytes_per_token))))
    expected = Expected(f"less than {_SHARE:.0%} of its runs of {length} tokens, and no document")
    if len(tokens) < length:
        return expected.passed("the validation text is too short to tell")
    varied = _varied(tokens, length)
    known = _known(hashes(tokens, length), subject, length) & varied
    share = float(known.sum() / max(1, varied.sum()))
    starts = _starts(validation)
    copies = _copies(validation, starts, known, length)
    measured = f"{share:.1%} of {int(varied.sum()):,} runs, {len(copies)} of {len(starts)} documents"
    if share < _SHARE and not copies:
        return expected.passed(measured)
    start = copies[0] if copies else int(known.argmax())
    example = tokenizer.decode(tokens[start : start + length].tolist())
    example = " ".join(example.split())[:_SHOWN] or example[:_SHOWN]
    what = f"{len(copies)} documents" if len(copies) > 1 else "1 document" if copies else f"{share:.0%}"
    what = f"Of the validation text {what} is in the training text too, such as {example!r}"
    cause = f"{what}: its loss measures memorization; take it out, or give other --validation-data."
    return expected.warned(measured, cause)


def _varied(tokens: np.ndarray, length: int) -> np.ndarray:
    """(N - length + 1,) bool: runs that are not mostly repetitions of one token, such as a space or a dash."""
    changes = np.concatenate([[0], np.cumsum(tokens[1:] != tokens[:-1])])
    return changes[length - 1 :] - changes[: len(tokens) - length + 1] >= _DIFFERENT * (length - 1)


def _known(wanted: np.ndarray, subject: Subject, length: int) -> np.ndarray:
    """Which of these hashes are those of a run in the training text, without the part that is held out."""
    span = (0, None) if subject.training is None else (subject.training.first, subject.training.stop)
    tokens = subject.text.tokens[slice(*span)][:_MOST]
    search = RunSearch(wanted, length)
    return np.array([len(places) > 0 for places in search.find(tokens)])[search.number]


def _starts(windows: Windows) -> np.ndarray:
    """Where documents begin within the windows' part of the text, counted from its first token."""
    starts, limit = windows.stream.starts, min(windows.stop, windows.first + _MOST_VALIDATION)
    inside = starts[(starts >= windows.first) & (starts < limit)] - windows.first
    return inside if len(inside) and inside[0] == 0 else np.concatenate([[0], inside])


def _copies(windows: Windows, starts: np.ndarray, known: np.ndarray, length: int) -> list[int]:
    """The first tokens of documents that are in the training text: nearly all their runs are known."""
    within = windows.first not in windows.stream.starts  # what is held out may begin within a document
    found = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(known) + length - 1], strict=True):
        if within and not start:
            continue
        runs = known[start + 1 : stop - length + 1]
        if len(runs) >= max(_LEAST_RUNS, _LEAST_TOKENS - length) and runs.mean() >= _DOCUMENT:
            found.append(start + 1)
    return found
