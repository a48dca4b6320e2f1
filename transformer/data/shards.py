"""A corpus tokenised once, into files that are mapped into memory: larger than memory, and there at once the next time.

A folder of shards is named after all that its tokens follow from; a changed text or tokenizer has another folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from transformer.data.corpus import Corpus
from transformer.data.document import Document
from transformer.data.text_source import TextSource
from transformer.data.tokenize import TokenStream, token_dtype, token_parts
from transformer.data.tokenizer import Tokenizer
from transformer.data.wikipedia import VERSION as CLEANING
from transformer.errors import CorpusError
from transformer.files import cache_folder

logger = logging.getLogger("transformer")
_FORMAT = 3  # to be raised when the same text and tokenizer give other tokens, or other files
_META = "meta.json"
_FILES = ("tokens", "loss_mask", "starts")
_DAMAGED = (OSError, ValueError, KeyError)  # what reading a folder raises that is not as it was written
_ABANDONED_SECONDS = 24 * 3600  # a partial folder without a write for this long is of a process that died


def tokenized(
    source: TextSource,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    clean: str | None = None,
    text_column: str | None = None,
    max_documents: int | None = None,
) -> TokenStream:
    """The tokens of a corpus as memory-mapped arrays; made now if they are not in `cache` yet.

    Memory does not grow with the corpus. Several processes may do this at the same time.

    Args:
        clean, text_column, max_documents: as of `Corpus` and its `pieces`.
        cache: folder of shards; None: "tokens" in the cache of this package, see `cache_folder`.

    Raises:
        CorpusError: if the corpus cannot be read or has nothing to learn, or the tokens cannot be written.
    """
    cache = cache or cache_folder() / "tokens"
    folder = cache / _key(source, tokenizer, clean, text_column, max_documents)
    if folder.exists():
        try:
            return _open(folder)
        except _DAMAGED as error:
            logger.warning("the tokens in %s are damaged (%s) and are made again", folder, error)
    logger.info("tokenising %s (%s)", source.name, source.split)
    try:
        with _partial_folder(folder) as partial:
            _write(partial, tokenizer, Corpus(source, text_column).pieces(clean, max_documents), source.name)
            stream = _open(partial)  # what is mapped stays, whatever other processes do to the folder
            _put_in_place(partial, folder)
            return stream
    except OSError as error:
        raise CorpusError(
            f"the tokens of {source.name} cannot be written to {cache}: {error}. "
            "Make room there, or let XDG_CACHE_HOME name a folder with more."
        ) from error


def _key(
    source: TextSource,
    tokenizer: Tokenizer,
    clean: str | None,
    text_column: str | None,
    max_documents: int | None,
) -> str:
    everything = [_FORMAT, tokenizer.backend.to_str(), tokenizer.end_of_text, source.config, source.split]
    everything += [clean, CLEANING] if clean else []
    everything += ["text column", text_column] if text_column else []
    everything += [max_documents] if max_documents else []
    return hashlib.sha256(json.dumps([*everything, source.fingerprint()]).encode()).hexdigest()


def _open(folder: Path) -> TokenStream:
    """Map the files of a folder.

    Raises:
        OSError, ValueError, KeyError: if they are not as they were written.
    """
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    for name, size in meta["sizes"].items():
        if (found := (folder / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found} bytes, not {size}")

    def mapped(name: str, dtype: str) -> np.ndarray:
        return np.memmap(folder / name, dtype, mode="r")

    loss_mask = mapped("loss_mask", "bool") if "loss_mask" in meta["sizes"] else None
    return TokenStream(mapped("tokens", meta["dtype"]), loss_mask, mapped("starts", "int64"), meta["n_bytes"])


def _write(folder: Path, tokenizer: Tokenizer, text: Iterable[Document], source: str) -> None:
    """All files of a corpus, written part by part. text: of `pieces`; source: where it is from."""
    n_bytes, counts_all = 0, True
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in _FILES}
        for part in token_parts(text, tokenizer):
            assert part.loss_mask is not None  # as long as it is a part
            files["tokens"].write(part.tokens.tobytes())
            files["loss_mask"].write(part.loss_mask.tobytes())
            files["starts"].write(part.starts.tobytes())
            n_bytes += part.n_bytes
            counts_all = counts_all and bool(part.loss_mask.all())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave files of the right size without their content
    if counts_all:
        (folder / "loss_mask").unlink()
    sizes = {name: (folder / name).stat().st_size for name in _FILES if (folder / name).exists()}
    meta = {"dtype": np.dtype(token_dtype(tokenizer)).name, "n_bytes": n_bytes, "sizes": sizes, "source": source}
    (folder / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write in, which is gone in the end whatever happens."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(".*.partial"):
        with suppress(OSError):  # a file that its writer has just removed: the folder is in use
            if time.time() - max(path.stat().st_mtime for path in (old, *old.iterdir())) > _ABANDONED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name[:16]}.", suffix=".partial", dir=folder.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    """Give the complete folder its name, unless another process was faster."""
    try:
        partial.rename(folder)
    except OSError:
        try:
            _open(folder)
        except _DAMAGED:
            damaged = Path(tempfile.mkdtemp(suffix=".partial", prefix=".", dir=folder.parent))
            with suppress(OSError):  # another process has done the same in this moment
                folder.rename(damaged)  # atomic: no other process sees half of it
                partial.rename(folder)
            shutil.rmtree(damaged, ignore_errors=True)
