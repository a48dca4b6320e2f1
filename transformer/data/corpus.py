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
    r"""A corpus that is read row by row, whose position can be saved and restored.

    Rows need a column "messages" or "conversations" (see `conversation`), or "prompt" and "completion", or
    "instruction" and "output" (and optionally "input"), which is a conversation of one question, or "text". Other
    columns are ignored. In text files, and in data sets whose rows are single lines of WikiText, each article is a
    document. A text file without WikiText's titles is one document.

    Texts are UTF-8. In every format "\r\n" and "\r" become "\n", an initial byte order mark is removed, and a lone
    surrogate becomes U+FFFD; `Document.n_bytes` counts the original bytes.

    Args:
        text_column: name of the column with the text; None: as above.

    Raises:
        CorpusError: if the source cannot be read, or has no text or no targets. All methods raise it.
    """

    def __init__(self, source: TextSource, text_column: str | None = None) -> None:
        self.source = source.name
        self._rows = open_rows(source, text_column)
        self._has_text = self._has_targets = False

    @property
    def has_conversations(self) -> bool:
        """Whether the rows are conversations."""
        return self._rows.has_conversations

    def pieces(self, clean: str | None = None, max_documents: int | None = None) -> Iterator[Document]:
        """All documents, very long ones in pieces.

        Args:
            clean: "wikipedia": articles are cleaned and filtered by `transformer.data.wikipedia`.
            max_documents: at most this many, the first ones; no more is downloaded of a data set on the Hub.
        """
        found = self.read()
        if max_documents is not None:
            found = first_documents(found, max_documents)
        yield from found if clean is None else _cleaned(found, self.source)

    def position(self) -> Position:
        """The position of the next `read`, for `go_to`, as JSON."""
        return {**self._rows.position(), "found": self._has_text, "learns": self._has_targets}

    def go_to(self, position: Position) -> None:
        """Continue from a position."""
        try:
            self._rows.go_to(position)
            self._has_text, self._has_targets = position["found"], position["learns"]
        except (KeyError, TypeError) as error:
            raise CorpusError(
                f"the position in {self.source} cannot be restored: it was probably saved by another version. "
                "Start again with --restart."
            ) from error

    def read(self, characters: int | None = None) -> Iterator[Document]:
        """The documents of the next rows, long ones in pieces; none at the end of the corpus.

        Args:
            characters: stop after rows with this many characters, also within an article of several rows; None: read
                all rows.
        """
        left_out = 0  # bytes of lines, to be added to the next piece

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
        """The rows, including empty ones."""
        read = 0
        while characters is None or read < characters:
            row = self._rows.read()
            if row is None:
                self._check_contents()
                return
            for text, is_target in row.parts:
                if text := text.strip():
                    self._has_text, self._has_targets = True, self._has_targets or is_target
                    read += len(text)
            yield row

    def _check_contents(self) -> None:
        if not self._has_text:
            raise CorpusError(f"{self.source} has no text.")
        if not self._has_targets:
            raise CorpusError(f"nothing in {self.source} would be learned: no row has a completion or an answer.")


def columns_of(source: TextSource, names: Sequence[str]) -> Iterator[list[str]]:
    """The texts in these columns of every row.

    Raises:
        CorpusError: if a value is not a string.
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
        if not all(is_target for _, is_target in document.parts):
            raise CorpusError(f"{source} has prompts or conversations: cleaning is for articles only.")
        yield document
