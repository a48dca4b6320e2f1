"""Where a model comes from: a folder, an archive of one (a path or a URL), or the Hub. All become a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from transformer.errors import CheckpointError
from transformer.hub import archive as archives

# What a model directory is made of, as patterns of names. Unless asked for by name, nothing else is fetched or
# unpacked: no pickles, no code.
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
    "loss.svg",
)


def fetch(source: str | Path, files: Sequence[str] = MODEL_FILES) -> Path:
    """The model directory that `source` names, brought here if it is elsewhere.

    Args:
        source: a folder; the path or http(s) URL of a tar of one, as training makes it; or a model on the Hub,
            `user/name` or `user/name@revision`.
        files: names, or patterns of names, of the files that are wanted of an archive or a Hub model, as far as it
            has them. An archive must have a config.json, which is how it is known to be a model.

    Raises:
        CheckpointError: if it is not there, or is no model.
    """
    text = str(source)
    if text.startswith(("http://", "https://")):
        return archives.unpack(_download(text), lambda name: _wanted(name, files))
    path = Path(text)
    if path.is_dir():
        return path
    if path.is_file():
        return archives.unpack(path, lambda name: _wanted(name, files))
    if text.count("/") == 1 and not text.startswith((".", "/")):
        return _from_hub(text, files)
    raise CheckpointError(f"there is no model at {text}: expected a folder, a tar, a URL, or a Hub id like user/name.")


def pack(directory: str | Path, archive: str | Path) -> Path:
    """Write the files of a model directory into the tar `archive`, which `fetch` takes back."""
    archives.pack(Path(directory), Path(archive), lambda name: _wanted(name, MODEL_FILES))
    return Path(archive)


def _wanted(name: str, files: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in files)


def _from_hub(hub_id: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download  # imported late: a local model needs no network client

    from transformer.hub.client import ask

    name, _, revision = hub_id.partition("@")

    def download() -> Path:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
        _verify(folder)
        return folder

    return ask(download, f"{hub_id} cannot be fetched from the Hub", CheckpointError)


def _verify(folder: Path) -> None:
    """Check the files of a snapshot, each once; the Hub's client counts bytes and does not look at them.

    The Hub's cache names a file by its checksum: the SHA-256 of a large one, git's SHA-1 of a small one.

    Raises:
        DamagedDownload: if one is not what it should be; it is removed, so that it will be downloaded again.
    """
    from transformer.hub.client import DamagedDownload

    for link in (path for path in folder.iterdir() if path.is_symlink()):
        file = link.resolve()
        seen = _cache() / "verified" / file.name
        if seen.exists():
            continue
        digest = hashlib.sha256() if len(file.name) == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
        with open(file, "rb") as content:
            while block := content.read(2**20):
                digest.update(block)
        if digest.hexdigest() != file.name:
            link.unlink()
            file.unlink()
            raise DamagedDownload(f"{link.name} has not the checksum that the Hub says it has.")
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.touch()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "decoder-only-transformer"


def _download(url: str) -> Path:
    """The file at `url`, kept under its name in the cache."""
    from transformer.hub.download import download  # imported late: a model that is here needs no network client

    target = _cache() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    if not target.exists():
        download(url, target)
    return target
