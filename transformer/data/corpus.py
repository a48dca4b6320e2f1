"""Where text comes from: local files, a folder, or a data set on the Hub.

Files of text, JSON and parquet are read row by row by `row_reader`; all else by `datasets`, which also knows what files
a folder or a data set on the Hub has.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformer.credentials import check_login, scrub
from transformer.data.conversation import Parts
from transformer.data.document import Document, articles, first_documents, join_pieces, pieces_of
from transformer.data.file_format import BOM, is_data_name, suffix
from transformer.data.row_layouts import COLUMNS, Layout, find_layout
from transformer.data.row_reader import Position, RowReader, TextLines, read_rows
from transformer.data.wikipedia import clean_articles
from transformer.errors import CorpusError

logger = logging.getLogger("transformer")
_READ_HERE = {"text": (".txt",), "json": (".json", ".jsonl", ".ndjson"), "parquet": (".parquet",)}
_ROWS_TO_LOOK_AT = 200
_LINES, _NO_ROWS = Layout("text", lines=True), Layout("text")
_LINES_OF_ROWS = -1  # the article's number, which for lines of a text file is the file's


def documents(
    source: str, config: str | None = None, split: str = "train", text_column: str | None = None
) -> Iterator[Document]:
    r"""The documents of a corpus, one after the other, without holding them all in memory.

    Args:
        source: a file of text, JSON (lines or an array) or parquet, also compressed with gzip; a folder of such files
            with the names of splits; or the id of a data set on the Hub. What a file holds is recognised by its
            content, so it may have lost its name.
        config: the configuration of a Hub data set ("wikitext-2-raw-v1").
        split: "train" or "validation"; a single file has "train" alone.
        text_column: the column that holds the text; None: as follows.

    Rows need a column "messages" or "conversations" (see `conversation`), or "prompt" and "completion", or
    "instruction" and "output" (and "input"), which is a conversation of one question, or "text". Other columns are not
    read. In a text file, and in data sets whose rows are single lines of WikiText, an article is a document; a text
    file without WikiText's titles is one document.

    Texts are UTF-8. In every container "\r\n" and "\r" become "\n", a byte order mark in front is left out, and half a
    UTF-16 pair becomes U+FFFD; `Document.n_bytes` counts the bytes as they were.

    Raises:
        CorpusError: if the source is not there, has no such split, no text, or nothing that would be learned.
    """
    yield from join_pieces(pieces(source, config, split, text_column=text_column))


def pieces(
    source: str,
    config: str | None = None,
    split: str = "train",
    clean: str | None = None,
    text_column: str | None = None,
    max_documents: int | None = None,
) -> Iterator[Document]:
    """As `documents`, but one that is longer than memory may hold comes in pieces that say they continue it.

    Args:
        max_documents: only this many, the first ones; no more is downloaded of a data set on the Hub.
        clean: "wikipedia": articles are cleaned, and poor ones left out, by `transformer.data.wikipedia`.
    """
    found = Corpus(source, config, split, text_column).read()
    if max_documents is not None:
        found = first_documents(found, max_documents)
    if clean is None:
        yield from found
        return
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


@dataclass(frozen=True)
class _Row:
    """article: rows that follow one another with the same number are lines of articles; None: this is a document.

    left_out: as `Document.left_out`.
    """

    parts: Parts
    article: int | None = None
    left_out: int = 0


class _Rows(Protocol):
    """The rows of a corpus. layout: of the ones read next, or of all."""

    layout: Layout

    def read(self) -> _Row | None: ...

    def position(self) -> Position: ...

    def go_to(self, position: Position) -> None: ...


class Corpus:
    """An open corpus, read row by row, whose position in the rows can be kept and returned to.

    Raises:
        CorpusError: as `documents`, here and in every method.
    """

    def __init__(
        self, source: str, config: str | None = None, split: str = "train", text_column: str | None = None
    ) -> None:
        self.source = source
        files = _files(source, config, split)
        self._rows: _Rows
        if files is not None:
            self._rows = _FileRows(files, text_column)
        else:
            self._rows = _DatasetRows(source, _load("load_dataset", source, config, split, streaming=True), text_column)
        self._found = self._learns = False

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

        def line(row: _Row) -> str:
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

    def _read_rows(self, characters: int | None) -> Iterator[_Row]:
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


class _FileRows:
    """The rows of files, one file after the other, each with a layout of its own."""

    def __init__(self, paths: Sequence[str], text_column: str | None) -> None:
        self._paths, self._text_column = paths, text_column
        self._open(0)

    def read(self) -> _Row | None:
        while (row := self._reader.read()) is None:
            if self._number + 1 == len(self._paths):
                return None
            self._open(self._number + 1)
        if isinstance(self._reader, TextLines):
            left_out, self._reader.left_out = self._reader.left_out, 0
            return _Row(((row, True),), self._number, left_out)
        return _row(self.layout, row, self._reader.number, self._paths[self._number])

    def position(self) -> Position:
        name = Path(self._paths[self._number]).name
        return {"file": self._number, "name": name, "reader": self._reader.position()}

    def go_to(self, position: Position) -> None:
        number = position["file"]
        if not 0 <= number < len(self._paths) or Path(self._paths[number]).name != position["name"]:
            raise CorpusError(f"{position['name']}, which the run had reached, is not there: begin again (--restart).")
        self._open(number, position["reader"])

    def _open(self, number: int, position: Position | None = None) -> None:
        if number:
            self._reader.close()
        self._number, path = number, self._paths[number]
        self.layout, columns = _layout_of_file(path, self._text_column)
        self._reader: RowReader = read_rows(path, position, columns)


def _layout_of_file(path: str, text_column: str | None) -> tuple[Layout, set[str]]:
    """How a file holds text, and the columns of it that are read.

    Raises:
        CorpusError: if it holds none.
    """
    columns = {*COLUMNS, text_column} if text_column else set(COLUMNS)
    reader = read_rows(path)
    try:
        if reader.line_oriented:
            if text_column:
                raise CorpusError(f"{path} is a text without columns: it is read without --text-column.")
            return _LINES, columns
        if not columns & set(reader.columns) and reader.columns:
            columns = set(reader.columns)  # to say which of them hold text
        head = list(itertools.islice(iter(reader.read, None), _ROWS_TO_LOOK_AT))
        return find_layout(head, reader.columns, path, text_column) if head else _NO_ROWS, columns
    finally:
        reader.close()


class _DatasetRows:
    """The rows of a data set that `datasets` reads as a stream."""

    def __init__(self, source: str, dataset: Any, text_column: str | None) -> None:
        self._source, self._dataset = source, dataset
        try:
            head = list(itertools.islice(dataset, _ROWS_TO_LOOK_AT))
        except Exception as error:
            raise CorpusError(f"{source} cannot be read: {_first_line(error)}") from scrub(error)
        self.layout = find_layout(head, dataset.column_names or (), source, text_column) if head else _NO_ROWS
        self._iterator = iter(dataset)
        self._count = 0  # rows read
        # The position, until a row is read from there: only then does the reader know it.
        self._untouched: Position | None = {"row": 0, "dataset": None}

    def read(self) -> _Row | None:
        try:
            row = next(self._iterator, None)
        except Exception as error:  # whatever the reader of this format raises in mid-file
            raise CorpusError(f"{self._source} cannot be read to its end: {_first_line(error)}") from scrub(error)
        if row is None:
            return None
        self._untouched = None
        self._count += 1
        return _row(self.layout, row, self._count, self._source)

    def position(self) -> Position:
        return self._untouched or {"row": self._count, "dataset": self._dataset.state_dict()}

    def go_to(self, position: Position) -> None:
        row, state = position["row"], position["dataset"]
        if state is not None:
            self._dataset.load_state_dict(state)
        self._iterator, self._count, self._untouched = iter(self._dataset), row, {"row": row, "dataset": state}


def _row(layout: Layout, row: Any, number: int, source: str) -> _Row:
    """A row of columns as text.

    Raises:
        CorpusError: with the number of the row, if it does not hold what its columns promise.
    """
    try:
        parts = layout.parts(row)
    except CorpusError as error:
        raise CorpusError(f"row {number} of {source}: {error}") from error
    texts = [_plain(text) for text, _ in parts]
    left_out = sum(before for _, before in texts)
    plain = tuple((text, learned) for (text, _), (_, learned) in zip(texts, parts, strict=True))
    return _Row(plain, _LINES_OF_ROWS if layout.lines else None, left_out)


def _plain(text: str) -> tuple[str, int]:
    r"""A text with "\n" alone as line ends, without a byte order mark; and the bytes that were left out for that."""
    left_out = 0
    if text.startswith(BOM):
        text, left_out = text.removeprefix(BOM), len(BOM.encode())
    if "\r" in text:
        left_out += text.count("\r\n")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a UTF-16 pair, which JSON can carry and UTF-8 cannot
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text, left_out


def columns(source: str, names: Sequence[str], config: str | None = None, split: str = "train") -> Iterator[list[str]]:
    """These columns of every row, which have to be strings.

    Raises:
        CorpusError: if the source is not there, has no such split, or a row has something else there.
    """
    for number, (row, where) in enumerate(_raw_rows(source, config, split, names), 1):
        texts = []
        for name in names:
            value = row.get(name) if isinstance(row, dict) else None
            if not isinstance(value, str):
                raise CorpusError(f"row {number} of {where} has no text in a column {name!r}, which is needed.")
            texts.append(_plain(value)[0])
        yield texts


def _raw_rows(source: str, config: str | None, split: str, names: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """Rows as they are read, each with where it is from."""
    files = _files(source, config, split)
    if files is None:
        for row in _load("load_dataset", source, config, split, streaming=True):
            yield row, source
        return
    for path in files:
        reader = read_rows(path, None, names)
        try:
            while (row := reader.read()) is not None:
                yield row, path
        finally:
            reader.close()


def has_conversations(source: str, config: str | None, text_column: str | None = None) -> bool:
    """Whether the rows of the corpus are conversations.

    Raises:
        CorpusError: as `documents`.
    """
    files = _files(source, config, "train")
    if files is not None:
        return any(_layout_of_file(file, text_column)[0].is_conversation for file in files)
    return Corpus(source, config, text_column=text_column)._rows.layout.is_conversation


def has_split(source: str, config: str | None, split: str) -> bool:
    """Whether the corpus has a split of this name."""
    try:
        return split in _splits(source, config)
    except CorpusError:
        return False


def fingerprint(source: str, config: str | None, split: str) -> list[str]:
    """What changes when the text does: names and SHA-256 of local files; on the Hub, addresses with the revision.

    Raises:
        CorpusError: if the source is not there or has no such split.
    """
    if os.path.isfile(source):
        return [Path(source).name, _sha256(source)]
    builder = _load_builder(source, config)
    files = (builder.config.data_files or {}).get(split)
    if files is None:
        raise _no_split(source, config, split)
    if all(Path(file).is_file() for file in files):
        return [entry for file in sorted(files) for entry in (Path(file).name, _sha256(file))]
    return [builder.hash, *files, *(repr(origin) for origin in files.origin_metadata)]


def _splits(source: str, config: str | None) -> list[str]:
    """The names of the splits that a corpus has."""
    if os.path.isfile(source):
        return ["train"]
    builder = _load_builder(source, config)
    return [str(name) for name in builder.config.data_files or _load("get_dataset_split_names", source, config)]


def _no_split(source: str, config: str | None, split: str) -> CorpusError:
    there = _splits(source, config)
    those = f"--split {there[0]} reads it" if len(there) == 1 else f"it has {', '.join(there)}, for --split"
    training = " (A training needs files whose names say train.)" if split == "train" else ""
    return CorpusError(f"{source} has no split {split!r}: {those}.{training}")


def _files(source: str, config: str | None, split: str) -> list[str] | None:
    """The files of a split that are read here; None: `datasets` reads them.

    Raises:
        CorpusError: if there is no such corpus or split.
    """
    if os.path.isfile(source):
        if config is not None:
            raise CorpusError(f"{source} is a file, which has no configurations: leave out {config!r}.")
        if split != "train":
            raise _no_split(source, config, split)
        return [source]
    builder = _load_builder(source, config)
    if (found := builder.config.data_files) is None:
        return None
    if split not in found:
        raise _no_split(source, config, split)
    files = [str(file) for file in found[split]]
    on_the_hub = not os.path.isdir(source)
    known = () if on_the_hub and builder.name != "json" else _READ_HERE.get(builder.name, ())
    has_options = getattr(builder.config, "field", None) is not None
    return files if all(suffix(file) in known for file in files) and not has_options else None


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}.") from error


def _load_builder(source: str, config: str | None) -> Any:
    _check_there(source)
    return _load("load_dataset_builder", source, config)


def _check_there(source: str) -> None:
    path = Path(source)
    if not source.strip():
        raise CorpusError("no data is named: expected a file, a folder, or the id of a data set on the Hub.")
    if os.path.isdir(source):
        if set("*?[]") & set(str(path.resolve())):
            raise CorpusError(f"the folder {source} has one of * ? [ ] in its path: rename it.")
        return
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1 or is_data_name(source):
        raise CorpusError(f"there is no file or folder {source}.")


def _load(function: str, source: str, config: str | None, split: str | None = None, **options: Any) -> Any:
    """Call a function of `datasets`, imported late because it costs a second; its many errors become one."""
    import datasets

    datasets.utils.logging.disable_progress_bar()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or local files too ask the Hub, and wait for an answer
    if split is not None:
        options["split"] = split
    try:
        if "data_files" not in options and not Path(source).exists():
            check_login()
        return getattr(datasets, function)(source, config, **options)
    except Exception as error:
        raise CorpusError(f"{source} cannot be opened as a data set: {_first_line(error)}") from scrub(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
