"""Validation text that is in the training text too: a loss on it measures memorization.

Runs of `LENGTH` tokens, of more where tokens are short, are compared by hashes (as GPT-3's contamination study compared
runs of 13 words; Brown et al., 2020, appendix C).

Dimensions: N tokens
"""

from __future__ import annotations

import numpy as np

from transformer.data.batches import Windows
from transformer.preflight.check import Expected, Finding
from transformer.preflight.subject import Subject
from transformer.preflight.token_runs import CHUNK, HashSet, hashes

LENGTH = 16  # tokens at least, a power of two
_BYTES = 60  # of text in a run: about a dozen words
_MOST = 2**29  # training tokens searched
_MOST_VALIDATION = 2**19
_MEASURED = 2**14  # tokens whose bytes are counted
_SHARE = 0.1  # of the validation text that may be in the training text
_DOCUMENT = 0.8  # of a document's runs: then it is the same document
_DIFFERENT = 0.75  # of a run's tokens differ from the one before, or it is not counted
_LEAST_TOKENS, _LEAST_RUNS = 48, 8  # of a document; a shorter one may well occur twice
_SHOWN = 60


def overlap(subject: Subject) -> Finding:
    """Few runs of tokens of the validation text are in the training text, and no document is."""
    validation, tokenizer = subject.validation, subject.tokenizer
    tokens = np.asarray(validation.stream.tokens[validation.first : validation.stop][:_MOST_VALIDATION])
    measured_tokens = tokens[:_MEASURED].tolist()
    length = _length(len(tokenizer.decode(measured_tokens).encode()), len(measured_tokens))
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
    many = len(copies) > 1
    what = f"{len(copies)} document{'s' * many} of" if copies else f"{share:.0%} of"
    return expected.warned(
        measured,
        f"{what} the validation text {'are' if many else 'is'} in the training text too, such as {example!r}: its loss "
        "will measure memorization; take them out of one of the two, or give other --validation-data.",
    )


def _varied(tokens: np.ndarray, length: int) -> np.ndarray:
    """(N - length + 1,) bool: runs that are not mostly repetitions of one token, such as a space or a dash."""
    changes = np.concatenate([[0], np.cumsum(tokens[1:] != tokens[:-1])])
    return changes[length - 1 :] - changes[: len(tokens) - length + 1] >= _DIFFERENT * (length - 1)


def _length(n_bytes: int, n_tokens: int) -> int:
    """Tokens in a run, a power of two: as many as `_BYTES` of this text take."""
    length = LENGTH
    while length < _BYTES and length * n_bytes < _BYTES * n_tokens:
        length *= 2
    return length


def _known(wanted: np.ndarray, subject: Subject, length: int) -> np.ndarray:
    """Which of these hashes are those of some run in the training text, without what is held out from it."""
    span = (0, None) if subject.training is None else (subject.training.first, subject.training.stop)
    tokens = subject.text.tokens[slice(*span)][:_MOST]
    looked_for = HashSet(wanted)
    seen = np.zeros(len(looked_for.values), bool)
    for start in range(0, max(0, len(tokens) - length + 1), CHUNK):
        seen[looked_for.find(hashes(tokens[start : start + CHUNK + length - 1], length))[1]] = True
    return seen[looked_for.number]


def _starts(windows: Windows) -> np.ndarray:
    """Where documents begin within the windows' part of the text, counted from its first token."""
    starts, limit = windows.stream.starts, min(windows.stop, windows.first + _MOST_VALIDATION)
    inside = starts[(starts >= windows.first) & (starts < limit)] - windows.first
    return inside if len(inside) and inside[0] == 0 else np.concatenate([[0], inside])


def _copies(windows: Windows, starts: np.ndarray, known: np.ndarray, length: int) -> list[int]:
    """The first tokens of the documents nearly all of whose runs are known; the rest of one is no document."""
    within = windows.first not in windows.stream.starts  # what is held out may begin within a document
    found = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(known) + length - 1], strict=True):
        if within and not start:
            continue
        runs = known[start + 1 : stop - length + 1]
        if len(runs) >= max(_LEAST_RUNS, _LEAST_TOKENS - length) and runs.mean() >= _DOCUMENT:
            found.append(start + 1)
    return found
