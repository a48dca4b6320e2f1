"""The check for markers in the text, such as "[SEP]" at the end of every line, which the model learns to generate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from transformer.preflight.check import Check, Expected
from transformer.preflight.subject import Subject

_NEARLY_ALL = 0.9  # of the documents or lines that a marker is at the end of
_LEAST_DOCUMENTS, _LEAST_LINES = 8, 20  # different ones; with fewer nothing is said of them
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
_CURE = "the model learns and then generates: take it out if that is not wanted; documents have an end token already."
_SHOWN = 40  # characters of an example


def markers(subject: Subject) -> Check:
    """Nearly all documents or lines do not begin or end with the same text, such as "[SEP]"."""
    expected = Expected("none at the ends of nearly all documents or lines, or again and again")
    texts = ["".join(text for text, learned in document.parts if learned) for document, _ in subject.documents]
    documents = [text.strip() for text in texts if text.strip()]
    lines = [line.strip() for text in documents for line in text.splitlines() if line.strip()]
    for what, units, least in (("document", documents, _LEAST_DOCUMENTS), ("line", lines, _LEAST_LINES)):
        different = list(dict.fromkeys(units))
        for at_end in (True, False) if len(different) >= least else ():
            # Found among different units, since a repeated one has its own ending; the share is that of all units.
            marker = marker_of(different, at_end)
            share = sum(unit.endswith(marker) if at_end else unit.startswith(marker) for unit in units) / len(units)
            if marker and share >= _NEARLY_ALL:
                verb = "end" if at_end else "begin"
                measured = f"{marker!r}: {share:.0%} of {len(units):,} {what}s {verb} with it"
                cause = f"Nearly every {what} {verb}s with {marker!r}, which {_CURE}"
                return expected.failed(measured, cause, certain=_is_never_text(marker))
    if repeated := _repeated(texts):
        marker, often = repeated
        cause = f"{marker!r} is in the text again and again ({often}), which {_CURE}"
        return expected.failed(f"{marker!r}: {often}", cause, certain=_is_never_text(marker))
    return expected.passed(f"none in {len(documents):,} documents, {len(lines):,} lines")


def _is_never_text(marker: str) -> bool:
    return bool(_NEVER_TEXT.fullmatch(marker.strip()))


def _repeated(texts: Sequence[str]) -> tuple[str, str] | None:
    """A special token in the text, or a repeated line: what, and how often. None: there is neither."""
    text = "\n".join(texts)
    found, words = Counter(match[0] for match in re.finditer(_SPECIAL, text)), len(text.split())
    if found and (most := found.most_common(1)[0])[1] >= _LEAST_LINES and most[1] * _WORDS_BETWEEN >= words:
        return most[0], f"once in {words // most[1]} words"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = Counter(line for line in lines if not _CODE.fullmatch(line))
    line, count = repeated.most_common(1)[0] if repeated else ("", 0)
    if count >= max(_LEAST_LINES, _SAME_LINE * len(lines)) and len(set(lines)) >= _LEAST_LINES:
        return line[:_SHOWN], f"{count / len(lines):.0%} of the lines"
    return None


def marker_of(texts: Sequence[str], at_end: bool) -> str:
    """What nearly all texts end (or begin) with, other than the usual punctuation; an empty string: nothing."""
    least = _NEARLY_ALL * len(texts)
    for pattern in (_SPECIAL, _RULE):
        ending = re.compile(f"(?:{pattern})$" if at_end else pattern)
        matches = [ending.search(text) if at_end else ending.match(text) for text in texts]
        counts = Counter(match[0] for match in matches if match)
        if counts and (most := counts.most_common(1)[0])[1] >= least:
            return most[0]
    common, reversed_texts = "", [text[::-1] if at_end else text for text in texts]
    while True:
        having = (text for text in reversed_texts if text.startswith(common) and len(text) > len(common))
        following = Counter(text[len(common)] for text in having)
        if not following or following.most_common(1)[0][1] < least:
            break
        common += following.most_common(1)[0][0]
    common = common[::-1] if at_end else common
    return common.strip() if len(common.strip(_PLAIN_END if at_end else _PLAIN_BEGINNING)) >= 2 else ""
