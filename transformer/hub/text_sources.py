"""Finds texts by name: a local file, a folder, or a data set on the Hub.

Files of text, JSON and parquet are read row by row by `data.row_reader`, and other formats by the library `datasets`,
which also lists the files of a folder or of a data set on the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from transformer.checksum import checksum
from transformer.credentials import scrub
from transformer.data.corpus import Corpus
from transformer.data.document import Document, join_pieces
from transformer.data.file_format import is_data_name, suffix
from transformer.data.text_source import TextSource, open_local
from transformer.errors import CorpusError, first_line

_READ_HERE = {"text": (".txt",), "json": (".json", ".jsonl", ".ndjson"), "parquet": (".parquet",)}


def find_text(source: str, config: str | None = None, split: str = "train") -> TextSource:
    """A split of a corpus, to be read.

    Args:
        source: a file of text, JSON (lines or an array) or parquet, also compressed with gzip; a folder of such files
            with the names of splits; or the id of a data set on the Hub. The format of a file is detected by its
            content, whatever its name.
        config: the configuration of a Hub data set ("wikitext-2-raw-v1").
        split: "train" or "validation"; a single file has only "train".

    Raises:
        CorpusError: if the source does not exist, or has no such split.
    """
    if os.path.isfile(source):
        if config is not None:
            raise CorpusError(f"{source} is a file, which has no configurations: leave out {config!r}.")
        if split != "train":
            raise _no_split(source, config, split)
        return TextSource(source, config, split, partial(_fingerprint, [source]), (source,))
    builder = _load_builder(source, config)
    open_rows = partial(_load, "load_dataset", source, config, split, streaming=True)
    if (found := builder.config.data_files) is None:  # a data set that is built by a script
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
    """The documents of a corpus, of which only one is in memory at a time.

    Args:
        source, config, split: as in `find_text`. text_column: as in `data.corpus.Corpus`.

    Raises:
        CorpusError: as `find_text`, and if there is no text, or no target of training.
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
    """As `documents`, with long ones in pieces; `clean` and `max_documents` as in `Corpus.pieces`."""
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
    """The names of the splits of a corpus."""
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
    """Whether the files of a split are read by `data.row_reader`, and not by `datasets`."""
    known = () if on_the_hub and builder.name != "json" else _READ_HERE.get(builder.name, ())
    has_options = getattr(builder.config, "field", None) is not None
    return all(suffix(file) in known for file in files) and not has_options


def _fingerprint(files: Sequence[str]) -> list[str]:
    """Names and checksums of local files."""
    try:
        return [entry for file in sorted(files) for entry in (Path(file).name, checksum(Path(file)))]
    except OSError as error:
        raise CorpusError(f"{error.filename} cannot be read: {error.strerror}.") from error


def _no_fingerprint(source: str, config: str | None, split: str) -> list[str]:
    raise _no_split(source, config, split)


def _open_anywhere(path: str) -> BinaryIO:
    """Open a local file, or one at a URL such as `hf://datasets/...`."""
    if "://" not in path:
        return open_local(path)
    import fsspec  # type: ignore[import-untyped]  # imported here, since local files do not need it

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
    """Call a function of `datasets`, which is imported here because that takes a second. All its errors become one."""
    import datasets

    from transformer.hub.client import check_login

    datasets.utils.logging.disable_progress_bar()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # otherwise there is a request to the Hub even for local files
    if split is not None:
        options["split"] = split
    try:
        if not Path(source).exists():
            check_login()
        return getattr(datasets, function)(source, config, **options)
    except Exception as error:
        raise CorpusError(f"{source} cannot be opened as a data set: {first_line(error)}") from scrub(error)
