"""Readers of the rows of files, whose position can be saved and restored.

A row of JSON or parquet is a dictionary by column; a row of plain text is a line. Rows of JSON are parsed one by one,
so that unused columns may have different types in different rows, or be missing in some.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import shutil
import tempfile
from collections.abc import Collection
from typing import Any, BinaryIO, Protocol

from transformer.data.file_format import BOM, is_json_name, looks_like_json, not_utf8, open_unpacked, unreadable
from transformer.data.text_source import Opener, open_local
from transformer.errors import CorpusError

Position = dict[str, Any]  # of JSON types
CHUNK = 2**20  # bytes that are read at a time
_BATCH = 256  # rows of parquet
_SPACE = re.compile(rf"[\s{BOM}\x1e]*")
_CUT_CHARACTER = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")
_TOKEN = 16  # characters; a number or literal that is cut off at the end of the buffer is shorter


class RowReader(Protocol):
    """The rows of one file.

    columns: names of its columns, if they are known before a row is read. line_oriented: whether rows are lines of
    text. number: rows read so far.
    """

    columns: list[str]
    line_oriented: bool
    number: int

    def read(self) -> Any:
        """The next row, a dictionary or a line; None at the end.

        Raises:
            CorpusError: if it is malformed.
        """

    def position(self) -> Position:
        """The position of the next row."""

    def close(self) -> None:
        """Close the file."""


def read_rows(
    path: str,
    position: Position | None = None,
    columns: Collection[str] | None = None,
    open_file: Opener = open_local,
) -> RowReader:
    """Open a file of any supported format.

    Args:
        path: passed to `open_file`.
        position: of an earlier reader of the same file; None: the start.
        columns: to read of a parquet file; None: all.

    Raises:
        CorpusError: if it cannot be opened, or its format is not supported.
    """
    file, format = open_unpacked(path, open_file)
    try:
        if format == "parquet":
            return ParquetRows(file, path, position, columns)
        return JsonRows(file, path, position) if format == "json" else TextLines(file, path, position)
    except (CorpusError, ModuleNotFoundError):  # pyarrow, which is in an extra
        raise
    except Exception as error:
        raise unreadable(path, error) from error


class TextLines:
    r"""The lines of a text file, including line ends. "\r\n" and "\r" become "\n".

    left_out: bytes of the file that are in no line (the byte order mark and "\r"), counted since it was last set to 0.
    """

    line_oriented = True

    def __init__(self, file: BinaryIO, path: str, position: Position | None = None) -> None:
        self._file, self._path = file, path
        self.columns: list[str] = []
        self.left_out = 0
        position = position or {"chunk": 0, "lines": 0, "row": 0, "line": 0}
        self._lines_before, self.number = position["line"], position["row"]
        self._next_chunk = position["chunk"]
        self._file.seek(self._next_chunk)
        self._lines: list[str] = []
        self._load()
        self._at = position["lines"]

    def read(self) -> str | None:
        if self._at == len(self._lines):
            self._load()
            if not self._lines:
                return None
        self._at += 1
        self.number += 1
        return self._lines[self._at - 1]

    def position(self) -> Position:
        return {"chunk": self._chunk, "lines": self._at, "row": self.number, "line": self._lines_before}

    def close(self) -> None:
        self._file.close()

    def _load(self) -> None:
        """Read the next chunk, of complete characters and, unless they are very long, complete lines."""
        self._lines_before += sum(line.endswith("\n") for line in self._lines)
        self._chunk, self._at = self._next_chunk, 0
        try:
            chunk = self._file.read(CHUNK)
            chunk += self._file.readline(CHUNK)
            while chunk.endswith(b"\r") or _CUT_CHARACTER.search(chunk[-4:]):
                if not (more := self._file.read(1)):
                    break
                chunk += more
        except Exception as error:
            raise unreadable(self._path, error) from error
        try:
            text = chunk.decode()
        except UnicodeDecodeError as error:
            line = self._lines_before + chunk[: error.start].count(b"\n") + 1
            raise not_utf8(self._path, chunk[max(0, error.start - 2**12) :], f" in line {line:,}") from error
        if not self._chunk:
            text = text.removeprefix(BOM)
        text = text.replace("\r\n", "\n")
        self.left_out += len(chunk) - len(text.encode())
        self._lines = list(io.StringIO(text.replace("\r", "\n")))
        self._next_chunk += len(chunk)


class JsonRows:
    """The objects of JSON lines, of one array, or of a sequence of objects.

    A string in place of an object is a text. Control characters within strings are accepted.
    """

    line_oriented = False

    def __init__(self, file: BinaryIO, path: str, position: Position | None = None) -> None:
        self._file, self._path = file, path
        self.columns: list[str] = []
        position = position or {"offset": 0, "row": 0, "line": 0, "array": None}
        self._start, self.number, self._line = position["offset"], position["row"], position["line"]
        self._array = position["array"]  # "[" or ",": before the next row; "]": after the last one; None: not an array
        self._file.seek(self._start)
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._decoder = json.JSONDecoder(strict=False)
        self._buffer, self._at = "", 0  # text from byte `_start` on, and the index of the next unused character

    def read(self) -> dict[str, Any] | None:
        first = not self._start and not self._at
        self._skip_space()
        if first and self._peek() == "[":
            self._array = "["
            self._at += 1
            self._skip_space()
        if self._array in ("[", ",") and not self._peek():
            raise self._error("the array has no end", len(self._buffer))
        if self._array == "[" and self._peek() == "]":
            self._array = "]"
            self._at += 1
            self._skip_space()
        if not self._peek():
            return None
        if self._array == "]":
            raise self._error("expected nothing after the end of the array", self._at)
        row = self._value()
        self.number += 1
        if self._array:
            self._skip_space()
            self._array = self._peek()
            if self._array not in (",", "]"):
                raise self._error("expected a comma or the end of the array after a row", self._at)
            self._at += 1
            self._skip_space()
        if isinstance(row, str) and not looks_like_json(row):
            return {"text": row}
        if not isinstance(row, dict):
            raise CorpusError(
                f"row {self.number} of {self._path} is {json.dumps(row):.50}: "
                'expected an object with columns, such as {"text": ...}.'
            )
        return row

    def position(self) -> Position:
        offset = self._start + len(self._buffer[: self._at].encode())
        line = self._line + self._buffer.count("\n", 0, self._at)
        return {"offset": offset, "row": self.number, "line": line, "array": self._array}

    def close(self) -> None:
        self._file.close()

    def _peek(self) -> str:
        return self._buffer[self._at : self._at + 1]

    def _skip_space(self) -> None:
        while True:
            space = _SPACE.match(self._buffer, self._at)
            assert space is not None  # it also matches the empty string
            self._at = space.end()
            if self._at < len(self._buffer) or not self._fill():
                return

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                may_be_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._buffer) - _TOKEN
                into_the_row = error.pos - self._at
                if may_be_cut and self._fill():
                    continue
                raise self._error(error.msg, self._at + into_the_row) from error
            except RecursionError as error:
                raise self._error("it is nested too deeply", self._at) from error
            except ValueError:  # an integer of thousands of digits
                self._decoder = json.JSONDecoder(strict=False, parse_int=float)
                continue
            if end == len(self._buffer) and self._fill():  # a number may continue
                continue
            self._at = end
            return value

    def _fill(self) -> bool:
        """Read more of the file, at least as much as is unused; False at the end of the file."""
        used, self._buffer = self._buffer[: self._at], self._buffer[self._at :]
        self._start, self._line, self._at = self._start + len(used.encode()), self._line + used.count("\n"), 0
        try:
            chunk = self._file.read(max(CHUNK, len(self._buffer)))
        except Exception as error:
            raise unreadable(self._path, error) from error
        try:
            self._buffer += (more := self._characters.decode(chunk, final=not chunk))
        except UnicodeDecodeError as error:
            line = self._line + self._buffer.count("\n") + error.object[: error.start].count(b"\n") + 1
            raise not_utf8(self._path, error.object[max(0, error.start - 2**12) :], f" in line {line:,}") from error
        return bool(chunk) and (bool(more) or self._fill())

    def _error(self, fault: str, at: int) -> CorpusError:
        line = self._line + self._buffer.count("\n", 0, at) + 1
        column = at - self._buffer.rfind("\n", 0, at)
        place = f"line {line:,}, column {column:,}"
        sentence = f"row {self.number + 1} of {self._path} is not valid JSON: {fault} ({place})."
        if is_json_name(self._path):
            return CorpusError(sentence)
        return CorpusError(
            f"{sentence} The file looks like JSON, so it is not read as plain text. "
            'To train on it as plain text, write it as {"text": ...}.'
        )


class ParquetRows:
    """The rows of a parquet file, with some of its columns."""

    line_oriented = False

    def __init__(
        self, file: BinaryIO, path: str, position: Position | None = None, columns: Collection[str] | None = None
    ) -> None:
        import pyarrow.parquet  # type: ignore[import-untyped]  # imported late, since the import takes a while

        if isinstance(file, gzip.GzipFile):  # in which seeking from the end is not supported
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this reader
            shutil.copyfileobj(file, unpacked)
            file = unpacked
        self._file, self._path = file, path
        self._parquet = pyarrow.parquet.ParquetFile(file)
        self.columns: list[str] = list(self._parquet.schema_arrow.names)
        wanted = [name for name in self.columns if columns is None or name in columns]
        self.number = skip = position["row"] if position else 0
        groups = list(range(self._parquet.num_row_groups))
        while groups and skip >= (rows := self._parquet.metadata.row_group(groups[0]).num_rows):
            skip -= rows
            groups.pop(0)
        self._batches = self._parquet.iter_batches(_BATCH, row_groups=groups, columns=wanted)
        self._rows: list[dict[str, Any]] = []
        self._at = 0
        for _ in range(skip):
            self._next()

    def read(self) -> dict[str, Any] | None:
        row = self._next()
        if row is not None:
            self.number += 1
        return row

    def position(self) -> Position:
        return {"row": self.number}

    def close(self) -> None:
        self._file.close()

    def _next(self) -> dict[str, Any] | None:
        while self._at == len(self._rows):
            try:
                batch = next(self._batches, None)
                if batch is None:
                    return None
                self._rows, self._at = batch.to_pylist(), 0
            except Exception as error:  # pyarrow has many error classes
                raise unreadable(self._path, error) from error
        self._at += 1
        return self._rows[self._at - 1]
