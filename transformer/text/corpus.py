"""Where text comes from: local files, a folder, or a data set on the Hub, all through `datasets`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer.errors import CorpusError

_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_WIKITEXT_TITLE = re.compile(r"^ ?= [^=].* = ?\n?$")  # " = Title = ": the first line of an article in WikiText
_ROWS_TO_LOOK_AT = 200
_LOST_SUFFIXES = ("", ".bin")  # what uploaded .jsonl files arrive with


@dataclass(frozen=True)
class Document:
    """One text. `prompt` stands before it and is read, but not learned."""

    text: str
    prompt: str = ""


def documents(source: str, config: str | None = None, split: str = "train") -> Iterator[Document]:
    """The documents of a corpus, one after the other, without holding them all in memory.

    Args:
        source: a file (.txt, .jsonl, .json, .parquet, also compressed as .gz), a folder of such files with the names
            of splits, or the id of a data set on the Hub.
        config: the configuration of a Hub data set ("wikitext-2-raw-v1").
        split: "train" or "validation"; a single file has "train" alone.

    Rows need a "text" column, or "prompt" and "completion". In a .txt file, and in data sets whose rows are single
    lines of WikiText, an article is a document; a .txt file without WikiText's titles is one document.

    Raises:
        CorpusError: if the source is not there, has no such split or no text.
    """
    count = 0
    try:
        for document in _read(source, config, split):
            if not isinstance(document.text, str) or not isinstance(document.prompt, str):
                raise CorpusError(f"a row of {source} holds {document!r}: expected strings.")
            if document.text.strip():
                count += 1
                yield document
    except CorpusError:
        raise
    except Exception as error:  # whatever the reader of this format raises in mid-file
        raise CorpusError(f"{source} cannot be read to its end: {error}") from error
    if not count:
        raise CorpusError(f"{source} has no text.")


def _read(source: str, config: str | None, split: str) -> Iterator[Document]:
    """The documents as they stand in the rows, empty ones and all."""
    dataset = _open(source, config, split)
    columns = set(dataset.column_names or next(iter(dataset), {}))
    if {"prompt", "completion"} <= columns:
        yield from (Document(row["completion"], prompt=row["prompt"]) for row in dataset)
        return
    if "text" not in columns:
        raise CorpusError(
            f"{source} has no text: expected a column 'text', or 'prompt' and 'completion', found {sorted(columns)}."
        )
    texts: Iterable[str] = (row["text"] for row in dataset)
    if _is_text_files(source):
        texts = articles(line + "\n" for line in texts)  # the reader of text files takes the line ends off
    else:
        head = list(itertools.islice(texts, _ROWS_TO_LOOK_AT))
        texts = itertools.chain(head, texts)
        if _are_wikitext_lines(head):
            texts = articles(texts)
    yield from (Document(text) for text in texts)


def has_split(source: str, config: str | None, split: str) -> bool:
    """Whether the corpus has a split of this name."""
    if Path(source).is_file():
        return split == "train"
    try:
        return split in _load("get_dataset_split_names", source, config)
    except CorpusError:
        return False


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Join lines into articles, a new one at each WikiText title; all of it is one article if there is no title."""
    article: list[str] = []
    for line in lines:
        if _WIKITEXT_TITLE.match(line) and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append(line)
    if "".join(article).strip():
        yield "".join(article)


def _are_wikitext_lines(rows: list[str]) -> bool:
    lines = all(isinstance(row, str) and "\n" not in row[:-1] for row in rows)
    return lines and any(_WIKITEXT_TITLE.match(row) for row in rows)


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
    if path.is_file():
        files = {"train": str(path)}
        return _load("load_dataset", _builder(path), None, data_files=files, split=split, streaming=True)
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise CorpusError(f"there is no file or folder {source}.")
    return _load("load_dataset", source, config, split=split, streaming=True)


def _load(function: str, source: str, config: str | None, **options: Any) -> Any:
    """Call a function of `datasets`, imported late because it costs a second; its many errors become one."""
    import datasets

    datasets.utils.logging.disable_progress_bar()
    try:
        return getattr(datasets, function)(source, config, **options)
    except Exception as error:
        raise CorpusError(f"{source} cannot be opened as a data set: {error}") from error
