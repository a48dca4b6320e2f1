"""A document, and how a long one is cut into pieces that are tokenised one at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from transformer.data.conversation import Parts

PIECE = 2**17  # characters; no piece is longer than two of these
_WIKITEXT_TITLE = re.compile(r"^ ?= [^=].* = ?\n?$")  # " = Title = ": the first line of an article in WikiText
# Where a byte-level BPE, for which " word" is one piece and a run of white space is another, begins a new one anyway:
# cut there, a text has the same tokens.
_BETWEEN_WORDS = re.compile(r"(?<=[\S\n])(?= \S)|(?<=\S\n)(?=\S)")


@dataclass(frozen=True)
class Document:
    """A text in parts, each with whether it is learned; a part that is not learned is only read, as prompts are.

    continues: this is a further piece of the document before it, which is too long to be held in memory.
    left_out: bytes that its file has for it besides the text: a byte order mark, and the "\\r" of line ends.
    """

    parts: Parts
    continues: bool = False
    left_out: int = field(default=0, compare=False)

    @classmethod
    def of(cls, text: str, prompt: str = "") -> Document:
        """A text to learn, after a prompt that is read."""
        return cls(((prompt, False), (text, True)) if prompt else ((text, True),))

    @property
    def text(self) -> str:
        """All of it, what is read and what is learned."""
        return "".join(text for text, _ in self.parts)

    @property
    def n_bytes(self) -> int:
        """Bytes of it in its file, as UTF-8."""
        return len(self.text.encode()) + self.left_out

    @property
    def learns(self) -> bool:
        """Whether there is something to learn in it."""
        return any(learned and text.strip() for text, learned in self.parts)


def pieces_of(document: Document) -> Iterator[Document]:
    """The document itself, or the pieces of one that is too long to be tokenised at once."""
    if sum(len(text) for text, _ in document.parts) <= 2 * PIECE:
        yield document
        return
    continues, left_out = document.continues, document.left_out
    for text, learned in document.parts:
        for piece in _cut([text]):
            yield Document(((piece, learned),), continues, left_out)
            continues, left_out = True, 0


def articles(lines: Iterable[str]) -> Iterator[Document]:
    """Lines, with their ends, joined into pieces of articles: a new article begins at each WikiText title.

    Where there is no title all of it is one article. Blank articles are left out.
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
    """Whether rows are the single lines of WikiText, and not whole texts."""
    return all("\n" not in row[:-1] for row in rows) and any(_WIKITEXT_TITLE.match(row) for row in rows)


def first_documents(pieces: Iterable[Document], count: int) -> Iterator[Document]:
    """The pieces of the first `count` documents."""
    for piece in pieces:
        count -= not piece.continues
        if count < 0:
            return
        yield piece


def join_pieces(pieces: Iterable[Document]) -> Iterator[Document]:
    """Whole documents, from pieces of them."""
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
    """One document of the parts; what was cut is one part again."""
    groups = itertools.groupby(parts, key=lambda part: part[1])
    joined = tuple(("".join(text for text, _ in group), learned) for learned, group in groups)
    return Document(joined, left_out=left_out)


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """The texts joined and cut between words, or anywhere where a text has none; no piece is empty."""
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
