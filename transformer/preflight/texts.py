"""Checks of the text: that its tokens give it back, that the tokenizer fits it, and that completions are answers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from difflib import SequenceMatcher

import numpy as np

from transformer.preflight.check import Check, Expected
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
_LEAST_COMPLETIONS = 8  # with fewer nothing is said of them
_COPIES, _ONE = 0.5, 0.9  # of the completions that may be in their prompts, and that may be one
_LONG = 20  # characters of a completion; a shorter one may well be in a long prompt
_SHOWN = 40  # characters of an example


def round_trip(subject: Subject) -> Check:
    """The tokens of the first documents, decoded with their special tokens, are those documents."""
    expected = Expected("the documents as they are in the corpus")
    stream, tokenizer = subject.text, subject.tokenizer
    ends = [*stream.starts[1:].tolist(), len(stream.tokens) - 1]
    characters = 0
    worst: tuple[float, int] | None = None  # the lowest similarity of a document to its tokens, and its number
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
            place = _common_prefix(decoded, made)
            text, token_text = (repr(one[place : place + _SHOWN]) for one in (made, decoded))
            cause = (
                f"Document {number} differs from its tokens at character {place:,}: the corpus has {text}, the tokens "
                f"{token_text}; the text was changed, or something was put into it, before or while it was tokenized."
            )
            return expected.failed(f"document {number} is another", cause)
        similarity = (_similarity(made, text), number)
        worst = min(worst or similarity, similarity)
    if worst and worst[0] < _LIKE:
        share = f"{worst[0]:.0%} of document {worst[1]}"
        cause = f"Only {share} is decoded from its tokens: this tokenizer is for another language or alphabet."
        return expected.warned(share, cause)
    how = "the same but for case, accents and spaces, which this tokenizer does not keep" if worst else "the same"
    return expected.passed(f"{len(compared)} documents, {characters:,} characters, {how}")


def unknown(subject: Subject) -> Check:
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
    cause = f"{share:.1%} of the tokens are {token}: it is for another language; train a tokenizer (no --tokenizer)."
    return expected.failed(f"{share:.1%}", cause, certain=share > _UNKNOWN_FAIL)


def bytes_per_token(subject: Subject) -> Check:
    """A token stands for as much text as its vocabulary allows."""
    stream, config, vocab_size = subject.text, subject.config, subject.tokenizer.vocab_size
    n_learned = len(stream.tokens) if stream.loss_mask is None else int(np.count_nonzero(stream.loss_mask))
    ratio = stream.n_bytes / max(1, n_learned)
    expected = Expected(f"at least {_LEAST_BYTES} with a vocabulary of {_LARGE_VOCABULARY:,}")
    # One that was trained on this text, even on random letters, does what can be done.
    foreign = bool(config.text.tokenizer or config.model.init_from)
    if not foreign or vocab_size < _LARGE_VOCABULARY or ratio >= _LEAST_BYTES or stream.n_bytes < _LEAST_TEXT:
        return expected.passed(f"{ratio:.2f}, vocabulary {vocab_size:,}")
    cause = "The vocabulary is for another kind of text or language: train a tokenizer (no --tokenizer, --init-from)."
    return expected.warned(f"{ratio:.2f}", cause)


def encoding(subject: Subject) -> Check:
    """The text was decoded as what it was encoded as: no "Ã©" for "é", and no replacement characters."""
    expected = Expected(f"less than {_WRONG:.0%} of the letters beyond ASCII misread")
    text = "".join(document.text for document, _ in subject.documents)[:_DECODED]
    runs = re.findall(r"[^\x00-\x7f]+", text)
    characters, replaced = len("".join(runs)), text.count("\ufffd")
    misread = {codec: [run for run in runs if len(run) > 1 and _reread(run, codec) is not None] for codec in _CODECS}
    wrong, codec = max(((len("".join(misread[codec])), codec) for codec in _CODECS), key=lambda counted: counted[0])
    least = max(_LEAST_WRONG, _WRONG * characters)
    measured = f"{wrong:,} of {characters:,} misread, {replaced:,} replaced"
    if wrong >= least:
        run = Counter(misread[codec]).most_common(1)[0][0]
        cause = f"The text is UTF-8 that was read as {codec}: {run!r} was {_reread(run, codec)!r}; read it as UTF-8."
        return expected.warned(measured, cause)
    if replaced >= least:
        cause = f"{replaced:,} characters are U+FFFD: bytes that could not be decoded; read the text in its encoding."
        return expected.warned(measured, cause)
    return expected.passed(measured)


def completions(subject: Subject) -> Check:
    """Completions are neither all the same nor copies of their prompts."""
    expected = Expected("different from one another, and not to be found in their prompts")
    pairs = _prompts_and_completions(subject)
    if len(pairs) < _LEAST_COMPLETIONS:
        return expected.passed(f"{len(pairs)} with a prompt: too few to tell")
    counts = Counter(answer for _, answer in pairs)
    (answer, count), n_pairs = counts.most_common(1)[0], len(pairs)
    equal = sum(prompt == answer for prompt, answer in pairs) / n_pairs
    inside = sum(len(answer) >= _LONG and answer in prompt for prompt, answer in pairs) / n_pairs
    measured = (
        f"{len(counts):,} different of {n_pairs:,}; {inside:.0%} are in their prompts, {equal:.0%} are the prompt"
    )
    for share, most, what in (
        (count / n_pairs, _ONE, f"{answer[:_SHOWN]!r}, which becomes the answer to everything"),
        (equal, _COPIES, "their prompt again, which the model learns to repeat"),
        (inside, _COPIES, "in their prompts word for word, which is right only if answers are to be quoted"),
    ):
        if share >= most:
            cause = f"{share:.0%} of the completions are {what}; look at the columns of prompts and completions."
            return expected.warned(measured, cause)
    return expected.passed(measured)


def _prompts_and_completions(subject: Subject) -> list[tuple[str, str]]:
    """Prompts, each with what is learned after it, of the first documents of the corpus."""
    found: list[tuple[str, str]] = []
    for document, _ in subject.documents:
        prompt = ""
        for text, learned in document.parts:
            if not learned:
                prompt += text
            elif prompt and text.strip():
                found.append((prompt.strip(), text.strip()))
                prompt = ""
    return found


def _reread(run: str, codec: str) -> str | None:
    """The characters whose UTF-8 was read as `codec`, if these are such bytes."""
    try:
        # Bytes that cp1252 leaves undefined are read as the controls of Latin-1.
        encoded = b"".join(c.encode("latin-1") if "\x80" <= c <= "\x9f" else c.encode(codec) for c in run)
        return encoded.decode("utf-8")
    except UnicodeError:
        return None


def _same_but_for_space(left: str, right: str, is_whole: bool) -> bool:
    """Whether two texts are the same without white space, which tokenizers lose in different places.

    is_whole: False: the end of the shorter one, where a word was cut, may differ.
    """
    left, right = "".join(left.split()), "".join(right.split())
    return left == right if is_whole else _common_prefix(left, right) >= min(len(left), len(right)) - _AT_THE_CUT


def _common_prefix(left: str, right: str) -> int:
    """How many characters two texts have in common at the beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def _similarity(left: str, right: str) -> float:
    """How much of two texts is the same, in [0, 1], without case, accents and white space."""

    def plain(text: str) -> str:
        decomposed = unicodedata.normalize("NFKD", text[:_COMPARED].lower())
        return "".join(c for c in decomposed if not c.isspace() and not unicodedata.combining(c))

    return SequenceMatcher(None, plain(left), plain(right), autojunk=False).quick_ratio()
