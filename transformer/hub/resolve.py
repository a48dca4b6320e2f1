"""Finds a model by its name: a folder, a tar (a path or a URL), or a model on the Hub. Each becomes a local folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from transformer.checksum import cached_checksum, checksum, is_intact
from transformer.errors import CheckpointError
from transformer.files import cache_folder
from transformer.hub import archive as archives

# Patterns for the names of files in a model directory. Other files, such as pickles and code, are downloaded or
# unpacked only if a caller names them.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # one file, or several with an index
WEIGHT_FILES = (WEIGHTS, INDEX, "model-*-of-*.safetensors")
TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
MODEL_FILES = (*WEIGHT_FILES, *TOKENIZER_FILES, "README.md", "loss.svg")
_REPETITIONS = 2  # of a download that is not a model


def fetch(source: str | Path, files: Sequence[str] = MODEL_FILES) -> Path:
    """The model directory that `source` names, downloaded or unpacked if necessary.

    Args:
        source: a folder; the path or http(s) URL of a tar of a model directory, as training writes it; or a model on
            the Hub, `user/name` or `user/name@revision`.
        files: names, or patterns of names, of the files to take from a tar or the Hub; missing ones are ignored. A tar
            must have a config.json.

    Raises:
        CheckpointError: if it does not exist or is not a model.
    """
    text = str(source)
    if text.lower().startswith(("http://", "https://")):
        return _from_url(text, files)
    path = Path(text)
    if path.is_dir():
        return path
    if path.is_file():
        return archives.unpack(path, lambda name: _wanted(name, files))
    if text.count("/") == 1 and not text.startswith((".", "/")):
        return _from_hub(text, files)
    raise CheckpointError(f"there is no model at {text}: expected a folder, a tar, a URL, or a Hub id like user/name.")


def fetch_tokenizer(source: str | Path) -> Path:
    """The file or folder of a tokenizer, for `Tokenizer.load`, downloaded if it is on the Hub.

    Args:
        source: a file, a folder, or a model on the Hub, `user/name` or `user/name@revision`.

    Raises:
        CheckpointError: if it does not exist.
    """
    path, text = Path(source), str(source)
    if path.exists():
        return path
    if text.count("/") > 1 or text.startswith((".", "/")):
        raise CheckpointError(f"there is no tokenizer at {text}: expected a file, a folder, or a Hub id.")
    return _from_hub(text, TOKENIZER_FILES)


def pack(directory: str | Path, archive: str | Path) -> Path:
    """Write the files of a model directory into the tar `archive`, from which `fetch` reads them."""
    archives.pack(Path(directory), Path(archive), lambda name: _wanted(name, MODEL_FILES))
    return Path(archive)


def _wanted(name: str, files: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in files)


def _from_hub(hub_id: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download  # imported late: a local model needs no network client

    from transformer.hub.client import ask

    name, _, revision = hub_id.partition("@")

    def download() -> Path:
        began = time.time()
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
        for file, link in archives.paths_of(folder).items():
            if _wanted(file, files):
                _verify(link, file, name, began)
        return folder

    return ask(download, f"{hub_id} cannot be fetched from the Hub", CheckpointError)


def _verify(link: Path, file: str, repository: str, began: float) -> None:
    """Compare a file of a snapshot with its checksum, which the Hub's client does not do; download it again if it is
    damaged.

    Args:
        file: its path in the repository.
        began: start of this attempt, in seconds since 1970. A damaged file that is newer is not downloaded once more.

    Raises:
        DamagedFile: if it is damaged. It is removed, unless the new download failed.
    """
    from huggingface_hub import hf_hub_download, is_offline_mode
    from huggingface_hub.errors import OfflineModeIsEnabled

    from transformer.hub.client import DamagedFile

    expected = cached_checksum(link)
    if expected is None or is_intact(link, expected):
        return
    if not link.exists() or link.stat().st_mtime < began:
        try:
            if is_offline_mode():
                raise OfflineModeIsEnabled
            revision = link.parents[file.count("/")].name
            hf_hub_download(repository, file, revision=revision, force_download=True)
        except Exception as error:
            # The client raises a ValueError whose cause is the error of the network.
            reason = error.__cause__ if isinstance(error, ValueError) and error.__cause__ else error
            raise DamagedFile(f"{link.name} in the Hub's cache is damaged") from reason
        if is_intact(link, expected):
            return
    for path in (link.resolve(), link.parent / os.readlink(link), link):
        path.unlink(missing_ok=True)
    raise DamagedFile(f"{link.name} has not the checksum that the Hub says it has.")


def _from_url(url: str, files: Sequence[str]) -> Path:
    """The model in the tar at `url`, which is kept in the cache.

    A file that is not a tar of a model is downloaded again: it may be incomplete, or an error page.

    Raises:
        CheckpointError: if it cannot be downloaded, or is still not a model; then it is not kept.
    """
    from transformer.hub.download import download, forget  # imported late: a local model needs no network client

    target = cache_folder() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    seen: list[str] = []
    while True:
        download(url, target)
        try:
            return archives.unpack(target, lambda name: _wanted(name, files), url)
        except archives.DamagedArchive:
            seen.append(checksum(target))
            forget(target)
            if seen.count(seen[-1]) > 1 or len(seen) > _REPETITIONS:
                raise
