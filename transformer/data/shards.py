"""A cache of tokenized corpora on disk, which are memory-mapped and may be larger than memory.

The folder of a corpus is named by a hash of everything that determines its tokens: the text, the tokenizer and options.
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
_FORMAT = 3  # to be increased when the tokens or files of the same text and tokenizer change
_META = "meta.json"
_FILES = ("tokens", "loss_mask", "starts")
_DAMAGED = (OSError, ValueError, KeyError)  # exceptions when a damaged folder is read
_ABANDONED_SECONDS = 24 * 3600  # after this long without a write, the process that writes a partial folder was killed


def tokenized(
    source: TextSource,
    tokenizer: Tokenizer,
    cache: Path | None = None,
    clean: str | None = None,
    text_column: str | None = None,
    max_documents: int | None = None,
) -> TokenStream:
    """The tokens of a corpus as memory-mapped arrays, from the cache or tokenized now.

    The memory in use does not grow with the corpus. Several processes may call this at the same time.

    Args:
        cache: folder of the cache; None: "tokens" in `cache_folder()`.
        clean, text_column, max_documents: as in `Corpus` and `Corpus.pieces`.

    Raises:
        CorpusError: if the corpus cannot be read or has no targets, or the tokens cannot be written.
    """
    cache = cache or cache_folder() / "tokens"
    folder = cache / _key(source, tokenizer, clean, text_column, max_documents)
    if folder.exists():
        try:
            return _open(folder)
        except _DAMAGED as error:
            logger.warning("the tokens in %s are damaged (%s): the text is tokenized again", folder, error)
    logger.info("tokenizing %s (%s)", source.name, source.split)
    try:
        with _partial_folder(folder) as partial:
            _write(partial, tokenizer, Corpus(source, text_column).pieces(clean, max_documents), source.name)
            stream = _open(partial)  # the mapped files stay, even if another process replaces the folder
            _put_in_place(partial, folder)
            return stream
    except OSError as error:
        raise CorpusError(
            f"the tokens of {source.name} cannot be written to {cache}: {error}. "
            "Free some space there, or set XDG_CACHE_HOME to another folder."
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
        OSError, ValueError, KeyError: if they are damaged.
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
    """Write the files of a corpus. text: pieces of documents. source: name of the corpus."""
    n_bytes, all_targets = 0, True
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in _FILES}
        for part in token_parts(text, tokenizer):
            assert part.loss_mask is not None  # in parts it is always given
            files["tokens"].write(part.tokens.tobytes())
            files["loss_mask"].write(part.loss_mask.tobytes())
            files["starts"].write(part.starts.tobytes())
            n_bytes += part.n_bytes
            all_targets = all_targets and bool(part.loss_mask.all())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # or files could have the right size and no content after a power failure
    if all_targets:
        (folder / "loss_mask").unlink()
    sizes = {name: (folder / name).stat().st_size for name in _FILES if (folder / name).exists()}
    meta = {"dtype": np.dtype(token_dtype(tokenizer)).name, "n_bytes": n_bytes, "sizes": sizes, "source": source}
    (folder / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which is deleted in any case."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(".*.partial"):
        with suppress(OSError):  # its writer has just deleted a file: the folder is in use
            if time.time() - max(path.stat().st_mtime for path in (old, *old.iterdir())) > _ABANDONED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name[:16]}.", suffix=".partial", dir=folder.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename the complete folder, unless another process has written the same."""
    try:
        partial.rename(folder)
    except OSError:
        try:
            _open(folder)
        except _DAMAGED:
            damaged = Path(tempfile.mkdtemp(suffix=".partial", prefix=".", dir=folder.parent))
            with suppress(OSError):  # another process did the same at the same time
                folder.rename(damaged)  # atomic: no process sees an incomplete folder
                partial.rename(folder)
            shutil.rmtree(damaged, ignore_errors=True)
