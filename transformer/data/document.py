"""Documents, and pieces of long documents, which are tokenized one at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from transformer.data.conversation import Parts

PIECE = 2**17  # characters; the maximum length of a piece is twice this
_WIKITEXT_TITLE = re.compile(r"^ ?= [^=].* = ?\n?$")  # " = Title = ": the first line of an article in WikiText
# Boundaries between the pre-tokens of a byte-level BPE (" word" is one, a run of white space is another): a cut
# there does not change the tokens.
_BETWEEN_WORDS = re.compile(r"(?<=[\S\n])(?= \S)|(?<=\S\n)(?=\S)")


@dataclass(frozen=True)
class Document:
    """A text, or a piece of a long one.

    parts: consecutive texts, each with whether its tokens are targets of the loss; those of prompts are not.
    continues: this is a piece of the same document as the one before it.
    left_out: bytes in the file that are not in the text: a byte order mark, and the "\\r" of line ends.
    """

    parts: Parts
    continues: bool = False
    left_out: int = field(default=0, compare=False)

    @classmethod
    def of(cls, text: str, prompt: str = "") -> Document:
        """A document with `text` as targets, after `prompt`, which is excluded from the loss."""
        return cls(((prompt, False), (text, True)) if prompt else ((text, True),))

    @property
    def text(self) -> str:
        """The parts, joined."""
        return "".join(text for text, _ in self.parts)

    @property
    def n_bytes(self) -> int:
        """Its size in the file, in bytes of UTF-8."""
        return len(self.text.encode()) + self.left_out


def pieces_of(document: Document) -> Iterator[Document]:
    """The document, or its pieces if it is long."""
    if sum(len(text) for text, _ in document.parts) <= 2 * PIECE:
        yield document
        return
    continues, left_out = document.continues, document.left_out
    for text, is_target in document.parts:
        for piece in _cut([text]):
            yield Document(((piece, is_target),), continues, left_out)
            continues, left_out = True, 0


def articles(lines: Iterable[str]) -> Iterator[Document]:
    """Lines joined into pieces of articles; an article starts at each WikiText title.

    Lines without any title are one article. Blank articles are skipped.
    """
    number, blank = 0, True

    def article_of(line: str) -> int:
        nonlocal number, blank
        if not blank and _WIKITEXT_TITLE.match(line):
            number, blank = number + 1, True
        blank = blank and not line.strip()
        return number

    for _, article in itertools.groupby(lines, article_of):
        continues = False
        for piece in _cut(article):
            if continues or piece.strip():
                yield Document(((piece, True),), continues)
                continues = True


def are_wikitext_lines(rows: list[str]) -> bool:
    """Whether rows are single lines of WikiText, rather than texts of several lines."""
    return all("\n" not in row[:-1] for row in rows) and any(_WIKITEXT_TITLE.match(row) for row in rows)


def first_documents(pieces: Iterable[Document], count: int) -> Iterator[Document]:
    """The pieces of the first `count` documents."""
    for piece in pieces:
        count -= not piece.continues
        if count < 0:
            return
        yield piece


def join_pieces(pieces: Iterable[Document]) -> Iterator[Document]:
    """The documents that consist of these pieces."""
    parts: list[tuple[str, bool]] = []
    left_out = 0
    for piece in pieces:
        if parts and not piece.continues:
            yield _joined(parts, left_out)
            parts, left_out = [], 0
        parts += piece.parts
        left_out += piece.left_out
    if parts:
        yield _joined(parts, left_out)


def _joined(parts: list[tuple[str, bool]], left_out: int) -> Document:
    """One document of the parts; consecutive parts with the same loss mask are merged."""
    groups = itertools.groupby(parts, key=lambda part: part[1])
    joined = tuple(("".join(text for text, _ in group), is_target) for is_target, group in groups)
    return Document(joined, left_out=left_out)


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """The joined texts in pieces, cut between words if possible; no piece is empty."""
    waiting: list[str] = []
    length = 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length > 2 * PIECE:
            whole, start = "".join(waiting), 0
            while length - start > 2 * PIECE:
                between = _BETWEEN_WORDS.search(whole, start + PIECE, start + 2 * PIECE)
                stop = between.start() if between else start + 2 * PIECE
                yield whole[start:stop]
                start = stop
            waiting, length = [whole[start:]], length - start
    if length:
        yield "".join(waiting)


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can have and UTF-8 cannot, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
