"""Is the tokenised text the text, and is there something in it that should not be learned?"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from transformer.preflight.check import Check
from transformer.preflight.subject import Subject

_DOCUMENTS = 200  # compared with their tokens
_SAMPLE = 2**20  # tokens in which unknown ones are counted
_UNKNOWN_WARN, _UNKNOWN_FAIL = 0.01, 0.5
_LIKE = 0.9  # of a document comes back from its tokens, if the tokenizer fits
_LEAST_BYTES = 1.5  # in a token of a vocabulary that could do better
_LARGE_VOCABULARY = 4096
_LEAST_TEXT = 2000  # bytes of which that can be said
_NEARLY_ALL = 0.9  # of the documents or lines that a marker stands at the end of
_LEAST_DOCUMENTS, _LEAST_LINES = 8, 20  # different ones, of which that can be said
# [SEP], <s>, <eos>, <|im_end|>: special tokens of some tokenizer, written out. A log's "[INFO]" is none.
_SPECIAL = (
    r"\[(?:SEP|CLS|PAD|MASK|BOS|EOS|EOT|/?INST)\]|<\|[^<>|\s]{1,30}\|>|</?s>"
    r"|</?(?:bos|eos|pad|sep|cls|eot|mask|start_of_turn|end_of_turn)>"
)
# Those that belong to no text, and to no layout of conversations: a tokenizer or a collator puts them in.
_NEVER_TEXT = re.compile(r"\[(?:SEP|CLS|PAD|MASK)\]|<\|?(?:sep|cls|pad|mask)\|?>", re.IGNORECASE)
_RULE = r"([#*_~|@%&+<>-])\1{2,}"  # ###, ---, and the like
_CODE = re.compile(r"[`~{}()\[\];,]+")  # a line that belongs to code or Markdown: a fence, a closing bracket
_WORDS_BETWEEN = 300  # on average, or less, from one written special token to the next
_SAME_LINE = 0.2  # of the lines are one
_PLAIN_END = " \t\n\r.,;:!?…\"'’”»)]}>=|*_-"  # what lines of an ordinary text may end with, all of them
_PLAIN_BEGINNING = " \t\n\r\"'‘“«([{<=#*>|_-•·0123456789"
_AT_THE_CUT = 64  # characters at the end of a document of which only the beginning was read
_COMPARED = 5000  # characters of a document that cannot come back exactly
_DECODED = 2**18  # characters whose encoding is looked at
_CODECS = ("cp1252", "cp1251", "latin-1")  # what UTF-8 is most often mistaken for
_WRONG, _LEAST_WRONG = 0.2, 20  # of the characters beyond ASCII, and how many at least
_SHOWN = 40  # characters of an example


def round_trip(subject: Subject) -> Check:
    """The tokens of the first documents, decoded with their special tokens, are those documents."""
    name, expected = "tokens back to text", "the documents as they stand in the corpus"
    stream = subject.text
    ends = [*stream.starts[1:].tolist(), len(stream.tokens) - 1]
    characters = compared = 0
    lossy: tuple[float, int] | None = None  # the worst likeness, and its document
    for number, (text, is_whole) in enumerate(subject.documents[:_DOCUMENTS]):
        if number >= len(ends):
            break
        first, last = int(stream.starts[number]) + 1, ends[number]
        last = last if is_whole else min(last, first + len(text.encode()))  # no more tokens than bytes
        decoded = subject.tokenizer.decode(stream.tokens[first:last].tolist(), skip_special=False)
        if not is_whole:  # a token may reach beyond what was read
            shorter = min(len(decoded), len(text))
            decoded, text = decoded[:shorter], text[:shorter]
        characters, compared = characters + len(text), compared + 1
        if decoded == text:
            continue
        # Some tokenizers keep no case, accents or spaces: then a text is compared with what they make of it.
        made = subject.tokenizer.decode(subject.tokenizer.encode_documents([text])[0], skip_special=False)
        if made == text or not _same_but_for_space(decoded, made, is_whole):
            place = _agreed(decoded, made)
            cause = (
                f"Document {number} differs from its tokens at character {place:,}: the corpus has "
                f"{made[place : place + _SHOWN]!r}, the tokens {decoded[place : place + _SHOWN]!r}; the text was "
                "changed, or something was put into it, before or while it was tokenised."
            )
            return Check(name, f"document {number} is another", expected, "fail", cause)
        likeness = _likeness(made, text)
        lossy = min(lossy or (likeness, number), (likeness, number))
    if lossy and lossy[0] < _LIKE:
        cause = (
            f"Only {lossy[0]:.0%} of document {lossy[1]} comes back from its tokens, case, accents and spaces aside: "
            "this tokenizer does not fit the text, as one of another language or alphabet."
        )
        return Check(name, f"{lossy[0]:.0%} of document {lossy[1]}", expected, "warn", cause)
    how = "the same but for case, accents and spaces, which this tokenizer does not keep" if lossy else "the same"
    return Check(name, f"{compared} documents, {characters:,} characters, {how}", expected)


def unknown(subject: Subject) -> Check:
    """The tokenizer knows the text. (WikiText's written "<unk>" is text like any other.)"""
    token = getattr(subject.tokenizer.backend.model, "unk_token", None)
    name, expected = "unknown tokens", f"less than {_UNKNOWN_WARN:.0%} of the text"
    id = subject.tokenizer.backend.token_to_id(token) if token else None
    if id is None:
        return Check(name, "none possible: every string has tokens", expected)
    share = float((_sample(subject) == id).mean())
    if share < _UNKNOWN_WARN:
        return Check(name, f"{share:.3%}", expected)
    cause = (
        f"{share:.1%} of the tokens are {token}, whatever they stood for: this tokenizer was made for another "
        "language or alphabet; take one made for this text, or train one on it (no --tokenizer)."
    )
    return Check(name, f"{share:.1%}", expected, "fail" if share > _UNKNOWN_FAIL else "warn", cause)


def bytes_per_token(subject: Subject) -> Check:
    """A token stands for as much text as its vocabulary allows."""
    stream = subject.text
    n_learned = len(stream.tokens) if stream.loss_mask is None else int(np.count_nonzero(stream.loss_mask))
    ratio = stream.n_bytes / max(1, n_learned)
    # One that was trained on this text, of random letters perhaps, does what can be done.
    foreign = bool(subject.config.data.tokenizer or subject.config.model.init_from)
    large = subject.tokenizer.vocab_size >= _LARGE_VOCABULARY
    name = "bytes per token"
    expected = f"at least {_LEAST_BYTES} with a vocabulary of {_LARGE_VOCABULARY:,}"
    if not large or not foreign or ratio >= _LEAST_BYTES or stream.n_bytes < _LEAST_TEXT:
        return Check(name, f"{ratio:.2f}, vocabulary {subject.tokenizer.vocab_size:,}", expected)
    cause = (
        f"{ratio:.2f} bytes in a token: the vocabulary was made for another kind of text or language, so the context "
        "holds little of it and training takes longer; a tokenizer trained on this text (no --tokenizer, no "
        "--init-from) holds more."
    )
    return Check(name, f"{ratio:.2f}", expected, "warn", cause)


def encoding(subject: Subject) -> Check:
    """The text was decoded as what it was encoded as: no "Ã©" for "é", and no replacement characters."""
    name, expected = "encoding of the text", f"less than {_WRONG:.0%} of the letters beyond ASCII misread"
    text = "".join(text for text, _ in subject.documents)[:_DECODED]
    runs = re.findall(r"[^\x00-\x7f]+", text)
    characters = sum(map(len, runs))
    replaced = text.count("\ufffd")
    misread = {codec: [run for run in runs if _is_misread(run, codec)] for codec in _CODECS}
    codec = max(_CODECS, key=lambda codec: sum(map(len, misread[codec])))
    wrong = sum(map(len, misread[codec]))
    measured = f"{wrong:,} of {characters:,} misread, {replaced:,} replaced"
    if wrong >= max(_LEAST_WRONG, _WRONG * characters):
        run = Counter(misread[codec]).most_common(1)[0][0]
        cause = (
            f"The text is UTF-8 that was read as {codec}: {run!r} was {_undone(run, codec)!r}, {len(misread[codec]):,} "
            "times so; read the original as UTF-8 and write it again."
        )
        return Check(name, measured, expected, "warn", cause)
    if replaced >= max(_LEAST_WRONG, _WRONG * characters):
        cause = (
            f"{replaced:,} characters are U+FFFD, which stands for bytes that could not be decoded: read the original "
            "in the encoding that it has."
        )
        return Check(name, measured, expected, "warn", cause)
    return Check(name, measured, expected)


def _is_misread(run: str, codec: str) -> bool:
    return len(run) > 1 and _undone(run, codec) is not None


def _undone(run: str, codec: str) -> str | None:
    """The characters whose UTF-8 was read as `codec`, if these are such bytes."""
    try:
        # Bytes that cp1252 leaves undefined are read as the controls of Latin-1.
        encoded = b"".join(c.encode("latin-1") if "\x80" <= c <= "\x9f" else c.encode(codec) for c in run)
        return encoded.decode("utf-8")
    except UnicodeError:
        return None


def markers(subject: Subject) -> Check:
    """No text that stands at the beginning or end of nearly every document or line, like a written "[SEP]"."""
    documents = [text.strip() for text in subject.learned_texts if text.strip()]
    lines = [line.strip() for text in documents for line in text.splitlines() if line.strip()]
    name, expected = "markers in the text", "none at the ends of nearly all documents or lines, or again and again"
    for what, units, least in (("document", documents, _LEAST_DOCUMENTS), ("line", lines, _LEAST_LINES)):
        different = list(dict.fromkeys(units))
        if len(different) < least:
            continue
        for at_end in (True, False):
            # Of different ones, since one that is repeated has its own end; and of all, or they are not nearly all.
            marker, _, is_special = marker_of(different, at_end)
            share = sum(unit.endswith(marker) if at_end else unit.startswith(marker) for unit in units) / len(units)
            if marker and share >= _NEARLY_ALL:
                side = "ends" if at_end else "begins"
                pieces = len(subject.tokenizer.encode_documents([marker])[0])
                tokens = sum(map(len, subject.tokenizer.encode_documents(units[:200]))) / len(units[:200])
                cause = (
                    f"Nearly every {what} {side} with {marker!r} ({pieces} tokens, {pieces / max(1.0, tokens):.1%} of "
                    "the targets), which the model learns at once and then says: if that is not wanted, take it out of "
                    "the text; the end of a document has a token already."
                )
                measured = f"{marker!r}: {share:.0%} of {len(units):,} {what}s {side[:-1]} with it"
                return Check(
                    name, measured, expected, "fail" if is_special and _is_never_text(marker) else "warn", cause
                )
    if (again := _again_and_again(subject.learned_texts))[0]:
        marker, often = again
        cause = (
            f"{marker!r} stands in the text again and again ({often}), free points that the model learns to say: if "
            "that is not wanted, take it out; the end of a document has a token already."
        )
        return Check(name, f"{marker!r}: {often}", expected, "fail" if _is_never_text(marker) else "warn", cause)
    return Check(name, f"none in {len(documents):,} documents, {len(lines):,} lines", expected)


def _is_never_text(marker: str) -> bool:
    return bool(_NEVER_TEXT.fullmatch(marker.strip()))


def _again_and_again(texts: Sequence[str]) -> tuple[str, str]:
    """A written special token that stands anywhere, or a line that is repeated: what, and how often."""
    text = "\n".join(texts)
    found, words = Counter(match[0] for match in re.finditer(_SPECIAL, text)), len(text.split())
    if found and (most := found.most_common(1)[0])[1] >= _LEAST_LINES and most[1] * _WORDS_BETWEEN >= words:
        return most[0], f"once in {words // most[1]} words"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = Counter(line for line in lines if not _CODE.fullmatch(line))
    line, count = repeated.most_common(1)[0] if repeated else ("", 0)
    if count >= max(_LEAST_LINES, _SAME_LINE * len(lines)) and len(set(lines)) >= _LEAST_LINES:
        return line[:_SHOWN], f"{count / len(lines):.0%} of the lines"
    return "", ""


def marker_of(texts: Sequence[str], at_end: bool) -> tuple[str, float, bool]:
    """What nearly all texts end (or begin) with, the share of them, and whether it is written like a special token.

    Sentences end in marks and lines begin with dashes, numbers or WikiText's "=": those alone are no marker. ("", 0,
    False) if there is none.
    """
    for pattern, is_special in ((_SPECIAL, True), (_RULE, False)):
        ending = re.compile(f"(?:{pattern})$" if at_end else pattern)
        matches = [(ending.search(text) if at_end else ending.match(text)) for text in texts]
        counts = Counter(match[0] for match in matches if match)
        if counts and (most := counts.most_common(1)[0])[1] >= _NEARLY_ALL * len(texts):
            return most[0], most[1] / len(texts), is_special
    common = ""
    turned = [text[::-1] if at_end else text for text in texts]
    while True:
        following = Counter(text[len(common)] for text in turned if text.startswith(common) and len(text) > len(common))
        if not following or following.most_common(1)[0][1] < _NEARLY_ALL * len(texts):
            break
        common += following.most_common(1)[0][0]
    common = common[::-1] if at_end else common
    marker = common.strip(_PLAIN_END if at_end else _PLAIN_BEGINNING)
    if len(marker) < 2:
        return "", 0.0, False
    kept = common.strip()
    return kept, sum(text.endswith(kept) if at_end else text.startswith(kept) for text in texts) / len(texts), False


def _same_but_for_space(left: str, right: str, whole: bool) -> bool:
    """Whether two texts agree without white space, which a tokenizer may lose elsewhere where a text was cut in parts.

    whole: to the end of both; else but for the end of the shorter one, where a word was cut.
    """
    left, right = "".join(left.split()), "".join(right.split())
    return left == right if whole else _agreed(left, right) >= min(len(left), len(right)) - _AT_THE_CUT


def _agreed(left: str, right: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def _likeness(left: str, right: str) -> float:
    """How much of two texts is the same, in [0, 1], without case, accents and white space."""

    def plain(text: str) -> str:
        decomposed = unicodedata.normalize("NFKD", text[:_COMPARED].lower())
        return "".join(c for c in decomposed if not c.isspace() and not unicodedata.combining(c))

    return SequenceMatcher(None, plain(left), plain(right), autojunk=False).quick_ratio()


def _sample(subject: Subject) -> np.ndarray:
    """Tokens from all over the text."""
    stream = subject.text
    step = max(1, len(stream.tokens) // _SAMPLE)
    return stream.tokens[::step]
