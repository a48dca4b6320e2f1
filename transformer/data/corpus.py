"""The documents of a corpus, read row by row."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from transformer.data.corpus_rows import Row, open_rows, plain_text, raw_rows
from transformer.data.document import Document, articles, first_documents, join_pieces, pieces_of
from transformer.data.row_reader import Position
from transformer.data.text_source import TextSource
from transformer.data.wikipedia import clean_articles
from transformer.errors import CorpusError

logger = logging.getLogger("transformer")


class Corpus:
    r"""An open corpus, read row by row, whose position in the rows can be kept and returned to.

    Rows need a column "messages" or "conversations" (see `conversation`), or "prompt" and "completion", or
    "instruction" and "output" (and "input"), which is a conversation of one question, or "text". Other columns are not
    read. In a text file, and in data sets whose rows are single lines of WikiText, an article is a document; a text
    file without WikiText's titles is one document.

    Texts are UTF-8. In every container "\r\n" and "\r" become "\n", a byte order mark in front is left out, and half a
    UTF-16 pair becomes U+FFFD; `Document.n_bytes` counts the bytes as they were.

    Args:
        text_column: the column that holds the text; None: as above.

    Raises:
        CorpusError: if the source cannot be read, has no text, or nothing that would be learned; here and in every
            method.
    """

    def __init__(self, source: TextSource, text_column: str | None = None) -> None:
        self.source = source.name
        self._rows = open_rows(source, text_column)
        self._found = self._learns = False

    @property
    def has_conversations(self) -> bool:
        """Whether the rows are conversations."""
        return self._rows.has_conversations

    def pieces(self, clean: str | None = None, max_documents: int | None = None) -> Iterator[Document]:
        """All documents; one that is longer than memory may hold comes in pieces that say they continue it.

        Args:
            max_documents: only this many, the first ones; no more is downloaded of a data set on the Hub.
            clean: "wikipedia": articles are cleaned, and poor ones left out, by `transformer.data.wikipedia`.
        """
        found = self.read()
        if max_documents is not None:
            found = first_documents(found, max_documents)
        yield from found if clean is None else _cleaned(found, self.source)

    def position(self) -> Position:
        """Where the next `read` begins, for `go_to`; it can be written as JSON."""
        return {**self._rows.position(), "found": self._found, "learns": self._learns}

    def go_to(self, position: Position) -> None:
        """Read on from there."""
        try:
            self._rows.go_to(position)
            self._found, self._learns = position["found"], position["learns"]
        except (KeyError, TypeError) as error:
            raise CorpusError(
                f"the position in {self.source} is not one that can be returned to: was it kept by another version? "
                "Begin again (--restart)."
            ) from error

    def read(self, characters: int | None = None) -> Iterator[Document]:
        """Documents, long ones in pieces, of the next rows, to the end or until this many characters are read.

        Articles of single lines are cut where it stops. Nothing is left when it yields nothing.
        """
        left_out = 0  # bytes of lines, to be counted in the next piece

        def line(row: Row) -> str:
            nonlocal left_out
            left_out += row.left_out
            return row.parts[0][0]

        for article, rows in itertools.groupby(self._read_rows(characters), lambda row: row.article):
            if article is None:
                found = (Document(row.parts, left_out=row.left_out) for row in rows)
                yield from itertools.chain.from_iterable(pieces_of(row) for row in found if row.text.strip())
                continue
            for piece in articles(map(line, rows)):
                yield Document(piece.parts, piece.continues, left_out)
                left_out = 0

    def _read_rows(self, characters: int | None) -> Iterator[Row]:
        """The rows as they are, empty ones and all."""
        read = 0
        while characters is None or read < characters:
            row = self._rows.read()
            if row is None:
                self._check_found()
                return
            for text, learned in row.parts:
                if text := text.strip():
                    self._found, self._learns = True, self._learns or learned
                    read += len(text)
            yield row

    def _check_found(self) -> None:
        if not self._found:
            raise CorpusError(f"{self.source} has no text.")
        if not self._learns:
            raise CorpusError(f"nothing in {self.source} would be learned: no row has a completion or an answer.")


def columns_of(source: TextSource, names: Sequence[str]) -> Iterator[list[str]]:
    """These columns of every row, which have to be strings.

    Raises:
        CorpusError: if a row has something else there.
    """
    for number, (row, where) in enumerate(raw_rows(source, names), 1):
        texts = []
        for name in names:
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, str):
                raise CorpusError(f"row {number} of {where} has no text in a column {name!r}, which is needed.")
            texts.append(plain_text(value)[0])
        yield texts


def _cleaned(found: Iterator[Document], source: str) -> Iterator[Document]:
    counts: Counter[str] = Counter()
    for article in clean_articles(_whole_articles(found, source), counts):
        yield from pieces_of(article)
    for what, count in counts.items():
        logger.info("%s: %s", what, f"{count:,}")
    if not counts["characters kept"]:
        reasons = ", ".join(f"{count:,} {what}" for what, count in counts.items() if "left out" in what)
        raise CorpusError(f"cleaning leaves nothing of {source} ({reasons}): train without it.")


def _whole_articles(found: Iterator[Document], source: str) -> Iterator[Document]:
    for document in join_pieces(found):
        if not all(learned for _, learned in document.parts):
            raise CorpusError(f"{source} holds prompts or conversations: cleaning is for articles alone.")
        yield document
