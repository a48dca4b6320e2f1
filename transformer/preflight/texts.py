"""Is the tokenized text the text, and does its tokenizer fit it?"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from difflib import SequenceMatcher

import numpy as np

from transformer.preflight.check import Expected, Finding
from transformer.preflight.subject import Subject

_DOCUMENTS = 200  # compared with their tokens
_SAMPLE = 2**20  # tokens in which unknown ones are counted
_UNKNOWN_WARN, _UNKNOWN_FAIL = 0.01, 0.5
_LIKE = 0.9  # of a document is decoded from its tokens, if the tokenizer fits
_LEAST_BYTES = 1.5  # in a token of a vocabulary that could do better
_LARGE_VOCABULARY = 4096
_LEAST_TEXT = 2000  # bytes; with less nothing is said of it
_AT_THE_CUT = 64  # characters at the end of a document of which only the beginning was read
_COMPARED = 5000  # characters of a document that cannot be decoded exactly
_DECODED = 2**18  # characters whose encoding is checked
_CODECS = ("cp1252", "cp1251", "latin-1")  # what UTF-8 is most often mistaken for
_WRONG, _LEAST_WRONG = 0.2, 20  # of the characters beyond ASCII, and how many at least
_SHOWN = 40  # characters of an example


def round_trip(subject: Subject) -> Finding:
    """The tokens of the first documents, decoded with their special tokens, are those documents."""
    expected = Expected("the documents as they are in the corpus")
    stream, tokenizer = subject.text, subject.tokenizer
    ends = [*stream.starts[1:].tolist(), len(stream.tokens) - 1]
    characters = 0
    worst: tuple[float, int] | None = None  # similarity of the document that is least like its tokens, and its number
    compared = list(enumerate(zip(subject.documents[:_DOCUMENTS], stream.starts.tolist(), ends, strict=False)))
    for number, ((document, is_whole), start, last) in compared:
        text, first = document.text, start + 1
        last = last if is_whole else min(last, first + len(text.encode()))  # no more tokens than bytes
        decoded = tokenizer.decode(stream.tokens[first:last].tolist(), skip_special=False)
        if not is_whole:  # a token may reach beyond what was read
            shorter = min(len(decoded), len(text))
            decoded, text = decoded[:shorter], text[:shorter]
        characters += len(text)
        if decoded == text:
            continue
        # Some tokenizers keep no case, accents or spaces: then a text is compared with what they make of it.
        made = tokenizer.decode(tokenizer.encode_documents([text])[0], skip_special=False)
        if made == text or not _same_but_for_space(decoded, made, is_whole):
            place = _agreed(decoded, made)
            return expected.failed(
                f"document {number} is another",
                f"Document {number} differs from its tokens at character {place:,}: the corpus has "
                f"{made[place : place + _SHOWN]!r}, the tokens {decoded[place : place + _SHOWN]!r}; the text was "
                "changed, or something was put into it, before or while it was tokenized.",
            )
        similarity = (_similarity(made, text), number)
        worst = min(worst or similarity, similarity)
    if worst and worst[0] < _LIKE:
        return expected.warned(
            f"{worst[0]:.0%} of document {worst[1]}",
            f"Only {worst[0]:.0%} of document {worst[1]} is decoded from its tokens, apart from case, accents and "
            "spaces: this tokenizer does not fit the text, like one of another language or alphabet.",
        )
    how = "the same but for case, accents and spaces, which this tokenizer does not keep" if worst else "the same"
    return expected.passed(f"{len(compared)} documents, {characters:,} characters, {how}")


def unknown(subject: Subject) -> Finding:
    """The tokenizer has tokens for the text. (A written "<unk>", as in WikiText, is text like any other.)"""
    expected = Expected(f"less than {_UNKNOWN_WARN:.0%} of the text")
    token = getattr(subject.tokenizer.backend.model, "unk_token", None)
    id = subject.tokenizer.backend.token_to_id(token) if token else None
    if id is None:
        return expected.passed("none possible: every string has tokens")
    tokens = subject.text.tokens
    share = float((tokens[:: max(1, len(tokens) // _SAMPLE)] == id).mean())
    if share < _UNKNOWN_WARN:
        return expected.passed(f"{share:.3%}")
    return expected.failed(
        f"{share:.1%}",
        f"{share:.1%} of the tokens are {token}, whatever they stand for: this tokenizer was made for another "
        "language or alphabet; take one made for this text, or train one on it (no --tokenizer).",
        certain=share > _UNKNOWN_FAIL,
    )


def bytes_per_token(subject: Subject) -> Finding:
    """A token stands for as much text as its vocabulary allows."""
    stream, config, vocab_size = subject.text, subject.config, subject.tokenizer.vocab_size
    n_learned = len(stream.tokens) if stream.loss_mask is None else int(np.count_nonzero(stream.loss_mask))
    ratio = stream.n_bytes / max(1, n_learned)
    expected = Expected(f"at least {_LEAST_BYTES} with a vocabulary of {_LARGE_VOCABULARY:,}")
    # One that was trained on this text, even on random letters, does what can be done.
    foreign = bool(config.text.tokenizer or config.model.init_from)
    if not foreign or vocab_size < _LARGE_VOCABULARY or ratio >= _LEAST_BYTES or stream.n_bytes < _LEAST_TEXT:
        return expected.passed(f"{ratio:.2f}, vocabulary {vocab_size:,}")
    return expected.warned(
        f"{ratio:.2f}",
        f"{ratio:.2f} bytes in a token: the vocabulary was made for another kind of text or language, so the context "
        "holds little of it and training takes longer; train a tokenizer on this text (no --tokenizer, no "
        "--init-from).",
    )


def encoding(subject: Subject) -> Finding:
    """The text was decoded as what it was encoded as: no "Ã©" for "é", and no replacement characters."""
    expected = Expected(f"less than {_WRONG:.0%} of the letters beyond ASCII misread")
    text = "".join(document.text for document, _ in subject.documents)[:_DECODED]
    runs = re.findall(r"[^\x00-\x7f]+", text)
    characters, replaced = sum(map(len, runs)), text.count("\ufffd")
    misread = {codec: [run for run in runs if len(run) > 1 and _reread(run, codec) is not None] for codec in _CODECS}
    codec = max(_CODECS, key=lambda codec: sum(map(len, misread[codec])))
    wrong, least = sum(map(len, misread[codec])), max(_LEAST_WRONG, _WRONG * characters)
    measured = f"{wrong:,} of {characters:,} misread, {replaced:,} replaced"
    if wrong >= least:
        run = Counter(misread[codec]).most_common(1)[0][0]
        return expected.warned(
            measured,
            f"The text is UTF-8 that was read as {codec}: {run!r} was {_reread(run, codec)!r}, in "
            f"{len(misread[codec]):,} places; read the original as UTF-8 and write it again.",
        )
    if replaced >= least:
        return expected.warned(
            measured,
            f"{replaced:,} characters are U+FFFD, which stands for bytes that could not be decoded: read the original "
            "in the encoding that it has.",
        )
    return expected.passed(measured)


def _reread(run: str, codec: str) -> str | None:
    """The characters whose UTF-8 was read as `codec`, if these are such bytes."""
    try:
        # Bytes that cp1252 leaves undefined are read as the controls of Latin-1.
        encoded = b"".join(c.encode("latin-1") if "\x80" <= c <= "\x9f" else c.encode(codec) for c in run)
        return encoded.decode("utf-8")
    except UnicodeError:
        return None


def _same_but_for_space(left: str, right: str, is_whole: bool) -> bool:
    """Whether two texts agree without white space, which a tokenizer may lose elsewhere where a text was cut in parts.

    is_whole: to the end of both; else but for the end of the shorter one, where a word was cut.
    """
    left, right = "".join(left.split()), "".join(right.split())
    return left == right if is_whole else _agreed(left, right) >= min(len(left), len(right)) - _AT_THE_CUT


def _agreed(left: str, right: str) -> int:
    """How many characters two texts have in common at the beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def _similarity(left: str, right: str) -> float:
    """How much of two texts is the same, in [0, 1], without case, accents and white space."""

    def plain(text: str) -> str:
        decomposed = unicodedata.normalize("NFKD", text[:_COMPARED].lower())
        return "".join(c for c in decomposed if not c.isspace() and not unicodedata.combining(c))

    return SequenceMatcher(None, plain(left), plain(right), autojunk=False).quick_ratio()
