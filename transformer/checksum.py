"""Checksums of files, which are cached until the file changes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path

from transformer.errors import WriteError
from transformer.files import atomic_write, cache_folder

_BLOCK = 2**20


def checksum(file: Path, git: bool = False) -> str:
    """The SHA-256 of a file as hexadecimal digits. git: the SHA-1 of its git blob instead.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size) if git else hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_intact(file: Path, expected: str) -> bool:
    """Whether a file exists and has this checksum, a SHA-256 or the SHA-1 of a git blob.

    The file is read only if its size, times, device or inode differ from the cached ones: any write changes one.
    """
    try:
        status = file.stat()
        seen = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]
        if _read_record(expected) == seen:
            return True
        intact = checksum(file, git=len(expected) == 40) == expected
    except OSError:
        return False
    if intact:
        _write_record(expected, seen)
    return intact


def cached_checksum(file: Path) -> str | None:
    """The checksum in the name of the file that a link of the Hub's cache points to; None: the name has none.

    It is the SHA-256 of a large file, and the SHA-1 of the git blob of a small one.
    """
    name = Path(os.readlink(file)).name if file.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def _record(expected: str) -> Path:
    return cache_folder() / "verified" / expected


def _read_record(expected: str) -> list[int] | None:
    try:
        seen = json.loads(_record(expected).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return None
    return seen if isinstance(seen, list) else None


def _write_record(expected: str, seen: list[int]) -> None:
    # Without a cache the file is read again the next time.
    with suppress(WriteError, RuntimeError), atomic_write(_record(expected)) as partial:
        partial.write_text(json.dumps(seen), encoding="utf-8")
