"""Where text comes from: local files, a folder, or a data set on the Hub, all through `datasets`."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer.errors import CorpusError
from transformer.text.conversation import Parts, conversation
from transformer.text.document import Document, are_wikitext_lines, articles, first_documents, join_pieces, pieces_of
from transformer.text.wikipedia import clean_articles

logger = logging.getLogger("transformer")
_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_ROWS_TO_LOOK_AT = 200
_TEXT_CHUNK = 2**20  # characters of a text file in memory, as lines; the reader's own 10 MB take 200 MB of memory
_LOST_SUFFIXES = ("", ".bin")  # what uploaded .jsonl files arrive with


def documents(source: str, config: str | None = None, split: str = "train") -> Iterator[Document]:
    """The documents of a corpus, one after the other, without holding them all in memory.

    Args:
        source: a file (.txt, .jsonl, .json, .parquet, also compressed as .gz), a folder of such files with the names
            of splits, or the id of a data set on the Hub.
        config: the configuration of a Hub data set ("wikitext-2-raw-v1").
        split: "train" or "validation"; a single file has "train" alone.

    Rows need a column "text", or "prompt" and "completion", or "messages" (see `conversation`). In a .txt file, and in
    data sets whose rows are single lines of WikiText, an article is a document; a .txt file without WikiText's titles
    is one document.

    Raises:
        CorpusError: if the source is not there, has no such split, no text, or nothing that would be learned.
    """
    yield from join_pieces(pieces(source, config, split))


def pieces(
    source: str,
    config: str | None = None,
    split: str = "train",
    clean: str | None = None,
    max_documents: int | None = None,
) -> Iterator[Document]:
    """As `documents`, but one that is longer than memory may hold comes in pieces that say they continue it.

    Args:
        max_documents: only so many, the first ones; no more is downloaded of a data set on the Hub.
        clean: "wikipedia": articles are cleaned, and poor ones left out, by `transformer.text.wikipedia`.
    """
    found = Corpus(source, config, split).read()
    if max_documents is not None:
        found = first_documents(found, max_documents)
    if clean is None:
        yield from found
        return
    counts: Counter[str] = Counter()
    for article in clean_articles(join_pieces(found), counts):
        yield from pieces_of(article)
    for what, count in counts.items():
        logger.info("%s: %s", what, f"{count:,}")


class Corpus:
    """An open corpus, read row by row, whose position in the rows can be kept and returned to.

    Raises:
        CorpusError: as `documents`, here and in every method.
    """

    def __init__(self, source: str, config: str | None = None, split: str = "train") -> None:
        self.source = source
        self._dataset = _open(source, config, split)
        self._is_text_files = _is_text_files(source)
        self._layout = self._find_layout()
        self._rows = iter(self._dataset)
        self._count = 0  # rows read
        self._found = self._learns = False
        # The position, until a row is read from there: only then does the reader know it.
        self._untouched: dict[str, Any] | None = {"row": 0, "reader": None}

    def position(self) -> dict[str, Any]:
        """Where the next `read` begins, for `go_to`; it can be written as JSON."""
        return self._untouched or {"row": self._count, "reader": self._dataset.state_dict()}

    def go_to(self, position: dict[str, Any]) -> None:
        """Read on from there."""
        if position["reader"] is not None:
            self._dataset.load_state_dict(position["reader"])
        self._rows, self._count, self._untouched = iter(self._dataset), position["row"], position
        self._found = self._learns = self._count > 0  # or it would have been refused before

    def read(self, characters: int | None = None) -> Iterator[Document]:
        """Documents, long ones in pieces, of the next rows, to the end or until so many characters are read.

        Articles of single lines are cut where it stops. Nothing is left when it yields nothing.
        """
        rows = self._read_rows(characters)
        if self._layout == "lines":
            end = "\n" if self._is_text_files else ""  # the reader of text files takes the line ends off
            yield from articles(row.text + end for row in rows)
        else:
            yield from itertools.chain.from_iterable(pieces_of(row) for row in rows if row.text.strip())

    def _read_rows(self, characters: int | None) -> Iterator[Document]:
        """The rows as they are, empty ones and all."""
        read = 0
        self._untouched = None
        while characters is None or read < characters:
            try:
                row = next(self._rows, None)
            except Exception as error:  # whatever the reader of this format raises in mid-file
                raise CorpusError(f"{self.source} cannot be read to its end: {error}") from error
            if row is None:
                self._check_found()
                return
            self._count += 1
            document = Document(self._parts(row))
            self._learns = self._learns or document.learns
            if text := document.text.strip():
                self._found = True
                read += len(text)
            yield document

    def _check_found(self) -> None:
        if not self._found:
            raise CorpusError(f"{self.source} has no text.")
        if not self._learns:
            raise CorpusError(f"nothing in {self.source} would be learned: no row has a completion or an answer.")

    def _parts(self, row: dict[str, Any]) -> Parts:
        if self._layout == "messages":
            try:
                return conversation(row["messages"])
            except CorpusError as error:
                raise CorpusError(f"row {self._count} of {self.source}: {error}") from error
        names = ("prompt", "completion") if self._layout == "prompt" else ("text",)
        parts = tuple((row[name], name != "prompt") for name in names)
        if not all(isinstance(text, str) for text, _ in parts):
            raise CorpusError(f"row {self._count} of {self.source} holds {row!r:.200}: expected strings.")
        return parts

    def _find_layout(self) -> str:
        """How rows hold text: "messages", "prompt", "text", or "lines" that are joined to articles."""
        if self._is_text_files:
            return "lines"
        try:
            head = list(itertools.islice(self._dataset, _ROWS_TO_LOOK_AT))
        except Exception as error:
            raise CorpusError(f"{self.source} cannot be read: {error}") from error
        columns = set(self._dataset.column_names or (head[0] if head else {}))
        if "messages" in columns:
            return "messages"
        if {"prompt", "completion"} <= columns:
            return "prompt"
        if "text" not in columns:
            raise CorpusError(
                f"{self.source} has no text: expected a column 'text', or 'prompt' and 'completion', or 'messages', "
                f"found {sorted(columns)}."
            )
        texts = [row["text"] for row in head]
        return "lines" if all(isinstance(text, str) for text in texts) and are_wikitext_lines(texts) else "text"


def has_conversations(source: str, config: str | None) -> bool:
    """Whether the rows of the corpus are messages.

    Raises:
        CorpusError: as `documents`.
    """
    return Corpus(source, config)._layout == "messages"


def has_split(source: str, config: str | None, split: str) -> bool:
    """Whether the corpus has a split of this name."""
    if Path(source).is_file():
        return split == "train"
    try:
        return split in _load("get_dataset_split_names", source, config)
    except CorpusError:
        return False


def fingerprint(source: str, config: str | None, split: str) -> list[str]:
    """What changes when the text does: names and SHA-256 of local files; on the Hub, addresses with the revision.

    Raises:
        CorpusError: if the source is not there or has no such split.
    """
    if Path(source).is_file():
        return [Path(source).name, _sha256(source)]
    builder = _load_builder(source, config)
    files = (builder.config.data_files or {}).get(split)
    if files is None:
        raise CorpusError(f"{source} has no split {split}.")
    if all(Path(file).is_file() for file in files):
        return [entry for file in sorted(files) for entry in (Path(file).name, _sha256(file))]
    return [builder.hash, *files, *(repr(origin) for origin in files.origin_metadata)]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffix(path: Path) -> str:
    """ ".jsonl" of both a.jsonl and a.jsonl.gz."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _builder(path: Path) -> str:
    """The reader of `datasets` for a file: by its suffix, or, where an upload lost that, by how the file begins."""
    if builder := _BUILDERS.get(_suffix(path)):
        return builder
    with path.open("rb") as file:
        head = file.read(4096)
    if path.suffix not in _LOST_SUFFIXES or (b"\0" in head and not head.startswith(b"PAR1")):
        raise CorpusError(f"{path.name} is not a text file that can be read: expected {', '.join(_BUILDERS)} (.gz).")
    return "parquet" if head.startswith(b"PAR1") else "json" if head.lstrip().startswith(b"{") else "text"


def _is_text_files(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        suffixes = [_suffix(file) for file in path.rglob("*")]
        return max(_BUILDERS, key=suffixes.count) == ".txt"  # `datasets` too goes by what most files are
    return path.is_file() and _builder(path) == "text"


def _open(source: str, config: str | None, split: str) -> Any:
    path = Path(source)
    options = {"chunksize": _TEXT_CHUNK} if _is_text_files(source) else {}
    if path.is_file():
        files = {"train": str(path)}
        return _load("load_dataset", _builder(path), None, data_files=files, split=split, streaming=True, **options)
    _check_there(source)
    return _load("load_dataset", source, config, split=split, streaming=True, **options)


def _load_builder(source: str, config: str | None) -> Any:
    _check_there(source)
    return _load("load_dataset_builder", source, config)


def _check_there(source: str) -> None:
    path = Path(source)
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise CorpusError(f"there is no file or folder {source}.")


def _load(function: str, source: str, config: str | None, **options: Any) -> Any:
    """Call a function of `datasets`, imported late because it costs a second; its many errors become one."""
    import datasets

    datasets.utils.logging.disable_progress_bar()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or local files too ask the Hub, and wait for an answer
    try:
        return getattr(datasets, function)(source, config, **options)
    except Exception as error:
        raise CorpusError(f"{source} cannot be opened as a data set: {error}") from error
