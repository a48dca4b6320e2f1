"""Cleaning of text that was extracted from Wikipedia: removal of markup and other remains of the extraction.

The functions are pure. They work on one article as plain text, one paragraph or heading a line, as in the
`wikimedia/wikipedia` data set and in extractions by WikiExtractor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby

from transformer.data.document import Document

VERSION = 1  # to be increased when the cleaned text of an article changes
MIN_CHARACTERS = 400  # a shorter article is a stub
_MIN_PROSE = 0.5  # minimum fraction of the characters in paragraphs
_MIN_LETTERS = 0.7  # minimum fraction of Latin letters in the characters that are not spaces
_PARAGRAPH = 100  # characters; a shorter line that ends without punctuation is a list item or a heading
_LIST_ITEMS = 4  # consecutive ones are a list

# Sections of references instead of prose.
_BACK_MATTER = re.compile(
    r"(see also|references?|external links|further reading|bibliography|notes?|footnotes|citations|sources"
    r"|notes and references|references and notes|works cited|general references|literature cited|discography"
    r"|filmography|gallery|selected bibliography|endnotes)\.?",
    re.IGNORECASE,
)
_HEADING_WITH_STOP = re.compile(r"[A-Z0-9][^.!?:;]{0,60}\.")
_TAG = re.compile(
    r"</?(?:br|dl|dt|dd|li|ul|ol|div|span|small|big|center|poem|p|blockquote|nowiki|i|b|u)\b[^<>]*>", re.IGNORECASE
)
_MARKUP = re.compile(
    r"</?[a-z]+(?:\s[^<>]*)?/?>|\{\{|\}\}|\{\||\|\}|\[\[|^\s*[|!]|\b(?:style|class|colspan|rowspan|bgcolor|cellpadding)="
    r"|\burlencode\b|\b(?:formula|codice)_\d|^\S{1,30} ?=\s*\S*$|&[a-z]{2,6};"
)
_EMPTY_QUOTES = re.compile(r'(?:^|[\s(])""(?=[\s,.;:)]|$)')
_AS_OF = re.compile(r"(^|[.] )?\bs of (?=\d{4}\[ ?\[update\]\])")  # "As of" without its first letter
_UPDATE_NOTICE = re.compile(r"\[ ?\[update\]\]")
_EMPTY_BRACKETS = re.compile(r"[ \u00a0]?(?:\((?:[\s;:,/\]]|or|and)*\)|\[\s*\])")
_BRACKET_START = re.compile(r"\((?:\s*(?:[;:,\]]|(?:or|and)(?=\s*[;:,])))+\s*|\(\s+")
# Matches only from the start of a run, or the time would grow with the square of its length.
_BRACKET_END = re.compile(r"(?<![\s;:,])(?:(?:\s*[;:,]|(?<=[;:,])\s*\])+\s*|\s+)\)")
_SPACE_BEFORE = re.compile(r"(?<! ) +(?=[,.;:!?](?:\s|$))")
_SENTENCE_END = (".", "!", "?", '."', '!"', '?"', ".)", ".”", "…")


def clean_article(text: str) -> str:
    """The prose of an article, without markup, empty brackets, lists, and sections of references.

    Args:
        text: one article; each paragraph and each heading is a line.

    Returns:
        The remaining paragraphs and headings, one per line; blank lines between paragraphs are kept.
    """
    cleaned = map(_clean_line, _without_back_matter(text.split("\n")))
    lines = _without_lists([line for line in cleaned if line is not None])
    while lines and (not lines[-1] or _is_heading(lines[-1])):  # the heading of an empty section
        lines.pop()
    return "\n".join(lines).strip()


def fault_of(text: str) -> str | None:
    """Why a cleaned article is not used for training; None: it is used."""
    if len(text) < MIN_CHARACTERS:
        return f"shorter than {MIN_CHARACTERS} characters"
    if sum(len(line) for line in text.split("\n") if len(line) >= _PARAGRAPH) < _MIN_PROSE * len(text):
        return "mostly short lines"
    visible = [character for character in text if not character.isspace()]
    if sum(character.isalpha() and character < "\u0250" for character in visible) < _MIN_LETTERS * len(visible):
        return "mostly other characters than Latin letters"
    return None


def clean_articles(documents: Iterable[Document], counts: Counter[str]) -> Iterator[Document]:
    """Clean articles, and filter them by `fault_of`; copies are left out.

    Args:
        counts: receives the numbers of articles and characters read and kept, and of articles left out by reason.
    """
    seen: set[int] = set()
    for document in documents:
        text = clean_article(document.text)
        counts["articles read"] += 1
        counts["characters read"] += len(document.text)
        reason = fault_of(text) or ("a copy of another" if hash(text) in seen else None)
        if reason:
            counts[f"articles left out: {reason}"] += 1
            continue
        seen.add(hash(text))
        counts["characters kept"] += len(text)
        yield Document.of(text)


def _clean_line(line: str) -> str | None:
    """A line without remains of the extraction; None: the line is removed."""
    line = _AS_OF.sub(lambda found: "as of " if found[1] is None else f"{found[1]}As of ", line)
    line = _TAG.sub("", _UPDATE_NOTICE.sub("", line)).strip()
    if _MARKUP.search(line) or _EMPTY_QUOTES.search(line):
        return None
    cleaned = _EMPTY_BRACKETS.sub("", line)
    cleaned = _BRACKET_END.sub(")", _BRACKET_START.sub("(", cleaned))
    cleaned = _SPACE_BEFORE.sub("", _EMPTY_BRACKETS.sub("", cleaned)) if cleaned != line else cleaned
    return None if line and not cleaned else re.sub(r" {2,}", " ", cleaned)


def _without_back_matter(lines: list[str]) -> Iterator[str]:
    skipping = False
    for line in lines:
        stripped = line.strip()
        if _BACK_MATTER.fullmatch(stripped):
            skipping = True
        elif skipping and _HEADING_WITH_STOP.fullmatch(stripped):
            skipping = False
        if not skipping:
            yield line


def _is_heading(line: str) -> bool:
    return len(line) < _PARAGRAPH and (not line.endswith(_SENTENCE_END) or bool(_HEADING_WITH_STOP.fullmatch(line)))


def _without_lists(lines: list[str]) -> list[str]:
    """The lines without lists, which are runs of short lines that are not sentences."""

    def is_item(line: str) -> bool:
        return len(line) < _PARAGRAPH and not line.endswith(_SENTENCE_END)

    kept: list[str] = []
    for item, group in groupby(lines, is_item):
        run = list(group)
        if not item or len([line for line in run if line]) < _LIST_ITEMS:
            kept += run
    return kept
