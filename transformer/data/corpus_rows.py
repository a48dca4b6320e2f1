"""The rows of a corpus as text, from files or from a data set of the library `datasets`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformer.credentials import scrub
from transformer.data.conversation import Parts
from transformer.data.document import replace_surrogates
from transformer.data.file_format import BOM
from transformer.data.row_layouts import COLUMNS, Layout, find_layout
from transformer.data.row_reader import Position, RowReader, TextLines, read_rows
from transformer.data.text_source import Opener, TextSource
from transformer.errors import CorpusError, first_line

_HEAD_ROWS = 200  # for detection of the layout
_LINES, _NO_ROWS = Layout("text", lines=True), Layout("text")
_LINES_OF_ROWS = -1  # as `Row.article` for a data set; for a text file it is the number of the file


@dataclass(frozen=True)
class Row:
    """The text of a row.

    article: consecutive rows with the same number are lines of articles; None: the row is a document of its own.
    left_out: as in `Document`.
    """

    parts: Parts
    article: int | None = None
    left_out: int = 0


class Rows(Protocol):
    """The rows of a corpus, in order. has_conversations: whether some of them are conversations."""

    @property
    def has_conversations(self) -> bool: ...

    def read(self) -> Row | None:
        """The next row; None at the end."""

    def position(self) -> Position:
        """The position of the next row."""

    def go_to(self, position: Position) -> None:
        """Continue from a position.

        Raises:
            CorpusError, KeyError, TypeError: if it is not a position in these rows.
        """


def open_rows(source: TextSource, text_column: str | None) -> Rows:
    """The rows of a source, as text according to their layout.

    Raises:
        CorpusError: if it cannot be read, or no column has text.
    """
    if source.files is not None:
        return _FileRows(source.files, source.open_file, text_column)
    return _DatasetRows(source, text_column)


def raw_rows(source: TextSource, names: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """The rows with (at least) these columns, each with the name of its file or data set."""
    if source.files is None:
        assert source.open_rows is not None  # a source has one or the other
        for row in source.open_rows():
            yield row, source.name
        return
    for path in source.files:
        reader = read_rows(path, None, names, source.open_file)
        try:
            while (row := reader.read()) is not None:
                yield row, path
        finally:
            reader.close()


class _FileRows:
    """The rows of files, each of which may have another layout."""

    def __init__(self, paths: Sequence[str], open_file: Opener, text_column: str | None) -> None:
        self._paths, self._open_file, self._text_column = paths, open_file, text_column
        self._open(0)

    @property
    def has_conversations(self) -> bool:
        return any(self._layout_of(path)[0].is_conversation for path in self._paths)

    def read(self) -> Row | None:
        while (row := self._reader.read()) is None:
            if self._number + 1 == len(self._paths):
                return None
            self._open(self._number + 1)
        if isinstance(self._reader, TextLines):
            left_out, self._reader.left_out = self._reader.left_out, 0
            return Row(((row, True),), self._number, left_out)
        return _row_as_text(self._layout, row, self._reader.number, self._paths[self._number])

    def position(self) -> Position:
        name = Path(self._paths[self._number]).name
        return {"file": self._number, "name": name, "reader": self._reader.position()}

    def go_to(self, position: Position) -> None:
        number = position["file"]
        if not 0 <= number < len(self._paths) or Path(self._paths[number]).name != position["name"]:
            raise CorpusError(f"{position['name']}, which the run was reading, is missing: start again with --restart.")
        self._open(number, position["reader"])

    def _open(self, number: int, position: Position | None = None) -> None:
        if number:
            self._reader.close()
        self._number, path = number, self._paths[number]
        self._layout, columns = self._layout_of(path)
        self._reader: RowReader = read_rows(path, position, columns, self._open_file)

    def _layout_of(self, path: str) -> tuple[Layout, set[str]]:
        return _layout_of_file(path, self._open_file, self._text_column)


def _layout_of_file(path: str, open_file: Opener, text_column: str | None) -> tuple[Layout, set[str]]:
    """The layout of a file, and the columns that are read.

    Raises:
        CorpusError: if it has no text.
    """
    columns = {*COLUMNS, text_column} if text_column else set(COLUMNS)
    reader = read_rows(path, open_file=open_file)
    try:
        if reader.line_oriented:
            if text_column:
                raise CorpusError(f"{path} is a text file, without columns: leave out --text-column.")
            return _LINES, columns
        if not columns & set(reader.columns) and reader.columns:
            columns = set(reader.columns)  # to list those with text in the error
        head = list(itertools.islice(iter(reader.read, None), _HEAD_ROWS))
        return find_layout(head, reader.columns, path, text_column) if head else _NO_ROWS, columns
    finally:
        reader.close()


class _DatasetRows:
    """The rows of a streamed data set of the library `datasets`."""

    def __init__(self, source: TextSource, text_column: str | None) -> None:
        assert source.open_rows is not None  # a source has files, or this
        self._source, self._dataset = source.name, source.open_rows()
        try:
            head = list(itertools.islice(self._dataset, _HEAD_ROWS))
        except Exception as error:
            raise CorpusError(f"{self._source} cannot be read: {first_line(error)}") from scrub(error)
        names = self._dataset.column_names or ()
        self._layout = find_layout(head, names, self._source, text_column) if head else _NO_ROWS
        self._iterator = iter(self._dataset)
        self._count = 0  # rows read
        # The position until a row is read: before that, the data set's state is not that of the position.
        self._untouched: Position | None = {"row": 0, "dataset": None}

    @property
    def has_conversations(self) -> bool:
        return self._layout.is_conversation

    def read(self) -> Row | None:
        try:
            row = next(self._iterator, None)
        except Exception as error:  # errors of the reader of any format
            raise CorpusError(f"{self._source} cannot be read to its end: {first_line(error)}") from scrub(error)
        if row is None:
            return None
        self._untouched = None
        self._count += 1
        return _row_as_text(self._layout, row, self._count, self._source)

    def position(self) -> Position:
        return self._untouched or {"row": self._count, "dataset": self._dataset.state_dict()}

    def go_to(self, position: Position) -> None:
        row, state = position["row"], position["dataset"]
        if state is not None:
            self._dataset.load_state_dict(state)
        self._iterator, self._count, self._untouched = iter(self._dataset), row, {"row": row, "dataset": state}


def _row_as_text(layout: Layout, row: Any, number: int, source: str) -> Row:
    """The text of a row.

    Raises:
        CorpusError: with the number of the row, if a column has no text.
    """
    try:
        parts = layout.parts(row)
    except CorpusError as error:
        raise CorpusError(f"row {number} of {source}: {error}") from error
    texts = [plain_text(text) for text, _ in parts]
    left_out = sum(before for _, before in texts)
    plain = tuple((text, is_target) for (text, _), (_, is_target) in zip(texts, parts, strict=True))
    return Row(plain, _LINES_OF_ROWS if layout.lines else None, left_out)


def plain_text(text: str) -> tuple[str, int]:
    r"""A text with "\n" as line ends and without a byte order mark, and the number of bytes that were removed."""
    left_out = 0
    if text.startswith(BOM):
        text, left_out = text.removeprefix(BOM), len(BOM.encode())
    if "\r" in text:
        left_out += text.count("\r\n")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return replace_surrogates(text), left_out
