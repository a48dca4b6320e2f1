"""Texts by name: a local file, a folder, or a data set on the Hub.

Files of text, JSON and parquet are read row by row by `data.row_reader`; all else by `datasets`, which also knows what
files a folder or a data set on the Hub has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from transformer.credentials import scrub
from transformer.data.corpus import Corpus
from transformer.data.document import Document, join_pieces
from transformer.data.file_format import is_data_name, suffix
from transformer.data.text_source import TextSource, open_local
from transformer.errors import CorpusError, first_line

_READ_HERE = {"text": (".txt",), "json": (".json", ".jsonl", ".ndjson"), "parquet": (".parquet",)}


def find_text(source: str, config: str | None = None, split: str = "train") -> TextSource:
    """The split of a corpus, found but not read.

    Args:
        source: a file of text, JSON (lines or an array) or parquet, also compressed with gzip; a folder of such files
            with the names of splits; or the id of a data set on the Hub. What a file holds is recognised by its
            content, so it may have lost its name.
        config: the configuration of a Hub data set ("wikitext-2-raw-v1").
        split: "train" or "validation"; a single file has "train" alone.

    Raises:
        CorpusError: if the source is not there, or has no such split.
    """
    if os.path.isfile(source):
        if config is not None:
            raise CorpusError(f"{source} is a file, which has no configurations: leave out {config!r}.")
        if split != "train":
            raise _no_split(source, config, split)
        return TextSource(source, config, split, partial(_fingerprint, [source]), (source,))
    builder = _load_builder(source, config)
    open_rows = partial(_load, "load_dataset", source, config, split, streaming=True)
    if (found := builder.config.data_files) is None:  # a data set that a script builds
        return TextSource(source, config, split, partial(_no_fingerprint, source, config, split), open_rows=open_rows)
    if split not in found:
        raise _no_split(source, config, split)
    files = tuple(str(file) for file in found[split])
    if all(Path(file).is_file() for file in files):
        fingerprint = partial(_fingerprint, files)
    else:
        fingerprint = partial(list, [builder.hash, *files, *(repr(origin) for origin in found[split].origin_metadata)])
    if not _is_read_here(builder, files, on_the_hub=not os.path.isdir(source)):
        return TextSource(source, config, split, fingerprint, open_rows=open_rows)
    return TextSource(source, config, split, fingerprint, files, _open_anywhere, open_rows)


def documents(
    source: str, config: str | None = None, split: str = "train", text_column: str | None = None
) -> Iterator[Document]:
    """The documents of a corpus, one after the other, without holding them all in memory.

    Args:
        source, config, split: as of `find_text`. text_column: as of `data.corpus.Corpus`, which says how rows are read.

    Raises:
        CorpusError: as `find_text`, and if there is no text, or nothing that would be learned.
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
    """As `documents`, but long ones come in pieces; `clean` and `max_documents` as of `Corpus.pieces`."""
    yield from Corpus(find_text(source, config, split), text_column).pieces(clean, max_documents)


def has_conversations(source: str, config: str | None, text_column: str | None = None) -> bool:
    """Whether the rows of the corpus are conversations.

    Raises:
        CorpusError: as `documents`.
    """
    return Corpus(find_text(source, config), text_column).has_conversations


def has_split(source: str, config: str | None, split: str) -> bool:
    """Whether the corpus has a split of this name."""
    try:
        return split in _splits(source, config)
    except CorpusError:
        return False


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


def _is_read_here(builder: Any, files: Sequence[str], on_the_hub: bool) -> bool:
    """Whether `data.row_reader` reads the files of a split, not `datasets`."""
    known = () if on_the_hub and builder.name != "json" else _READ_HERE.get(builder.name, ())
    has_options = getattr(builder.config, "field", None) is not None
    return all(suffix(file) in known for file in files) and not has_options


def _fingerprint(files: Sequence[str]) -> list[str]:
    """Names and SHA-256 of local files."""
    return [entry for file in sorted(files) for entry in (Path(file).name, _sha256(file))]


def _no_fingerprint(source: str, config: str | None, split: str) -> list[str]:
    raise _no_split(source, config, split)


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}.") from error


def _open_anywhere(path: str) -> BinaryIO:
    """A local file, or one at an address such as `hf://datasets/...`."""
    if "://" not in path:
        return open_local(path)
    import fsspec  # type: ignore[import-untyped]  # imported late: local files do not need it

    filesystem, inside = fsspec.core.url_to_fs(path)
    file: BinaryIO = filesystem.open(inside, "rb")
    return file


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

    from transformer.hub.client import check_login

    datasets.utils.logging.disable_progress_bar()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or local files too ask the Hub, and wait for an answer
    if split is not None:
        options["split"] = split
    try:
        if not Path(source).exists():
            check_login()
        return getattr(datasets, function)(source, config, **options)
    except Exception as error:
        raise CorpusError(f"{source} cannot be opened as a data set: {first_line(error)}") from scrub(error)
