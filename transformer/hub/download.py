"""A file from a URL, on `urllib`: a download that breaks off goes on where it was, in this process or a later one."""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import re
import socket
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from transformer.errors import CheckpointError
from transformer.files import settle

logger = logging.getLogger("transformer")
WAITS = [1.0, 3.0, 10.0, 30.0]  # seconds before another attempt; progress begins them anew
_LONGEST_WAIT = 60.0  # that a server may ask for
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_TIMEOUT = 60  # seconds without a byte
_MAX_BYTES = 32 * 2**30
_BLOCK = 2**20


class _BrokenOff(OSError):
    """The answer ended before the file did."""


def download(url: str, target: Path) -> None:
    """Bring what is at `url` to `target`, which is there whole or not at all.

    What has arrived waits beside it under another name, with the server's mark of the version it is of: only of the
    same version is the rest asked for.

    Raises:
        CheckpointError: if the server refuses, or breaks off again and again without sending anything.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.arriving")
    with open(partial, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two processes may want the same
        if target.exists():
            return
        waits = iter(WAITS)
        while True:
            before = file.seek(0, 2)
            try:
                _receive(url, file, partial.with_suffix(".version"))
                break
            except (OSError, http.client.HTTPException) as error:
                if file.seek(0, 2) > before:
                    waits = iter(WAITS)
                seconds = _wait(error, next(waits, None))
                if seconds is None:
                    if not file.tell():
                        partial.unlink()
                        partial.with_suffix(".version").unlink(missing_ok=True)
                    raise CheckpointError(f"{url} cannot be downloaded: {error}") from error
                logger.info("the download of %s broke off at %s bytes; it goes on", url, f"{file.tell():,}")
                time.sleep(seconds)
        settle(partial, target)
    partial.with_suffix(".version").unlink(missing_ok=True)


def _receive(url: str, file: BinaryIO, version_file: Path) -> None:
    """One attempt to bring the rest of the file, or all of it.

    Raises:
        OSError, HTTPException: if it fails.
    """
    request, have = urllib.request.Request(url), file.seek(0, 2)
    version = _read(version_file) if have else None
    if version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)  # of another version the whole comes instead
    try:
        reply = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        file.truncate(0)  # it is shorter now
        raise _BrokenOff("the file has changed") from error
    with reply:
        start, end = _span(reply.status, reply.headers)
        if reply.status == 206 and (start != have or _version(reply.headers) != version):
            file.truncate(0)
            raise _BrokenOff("the file has changed")
        if start == 0:
            file.truncate(0)
        if end is not None and end > _MAX_BYTES:
            raise CheckpointError(f"{url} has {end:,} bytes, more than a model may have here.")
        version_file.write_text(json.dumps(_version(reply.headers)), encoding="utf-8")
        while block := reply.read(_BLOCK):
            file.write(block)
            if file.tell() > _MAX_BYTES:
                raise CheckpointError(f"{url} has more than {_MAX_BYTES:,} bytes, more than a model may have here.")
        file.flush()
        if end is not None and file.tell() < end:
            raise _BrokenOff(f"it broke off at {file.tell():,} of {end:,} bytes")


def _span(status: int, headers: Message) -> tuple[int, int | None]:
    """The first byte that comes, and the length of the whole file, None if it is not known.

    Raises:
        OSError: if a part comes that was not asked for.
    """
    if status == 206:
        said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
        if said is None:
            raise OSError("a part of the file came without saying which")
        return int(said[1]), int(said[3])
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _version(headers: Message) -> str | None:
    """The mark of the file's version that If-Range takes: a strong ETag, or the time it was changed."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _read(version_file: Path) -> str | None:
    try:
        version = json.loads(version_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return version if isinstance(version, str) else None


def _wait(error: Exception, seconds: float | None) -> float | None:
    """Seconds after which another attempt makes sense; None if it does not."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, (ConnectionRefusedError, socket.gaierror)):
        return None  # nobody is there
    if seconds is None or not isinstance(error, urllib.error.HTTPError):
        return seconds
    if error.code not in _PASSING:
        return None
    asked = error.headers.get("Retry-After", "")
    return min(max(seconds, float(asked)), _LONGEST_WAIT) if asked.isdigit() else seconds
