"""Download of a file from a URL, which resumes an interrupted download, also of an earlier process.

The file is kept. Each call asks the server whether it has changed, by its ETag or its modification time.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import re
import socket
import string
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from transformer.checksum import checksum, is_intact
from transformer.credentials import redact, scrub, split_credentials
from transformer.errors import CheckpointError
from transformer.files import move_into_place
from transformer.hub.retry import delay_of_response, with_retries

logger = logging.getLogger("transformer")
TIMEOUT = 60  # seconds without a byte
_QUESTION_TIMEOUT = 10  # the same if there is a file already
MAX_BYTES = 32 * 2**30
_BLOCK = 2**20


class _Incomplete(OSError):
    """The response ended before the file."""


@dataclass(frozen=True)
class _Version:
    """The version of the file at a URL, as the server describes it; of a complete download, also its checksum."""

    etag: str | None = None
    modified: str | None = None
    length: int | None = None
    sha256: str | None = None

    @property
    def strong(self) -> str | None:
        """The value for If-Range: a strong ETag, or the modification time."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def is_of(self, other: _Version) -> bool:
        """Whether both are the same version, as far as that is known."""
        if self.etag and other.etag:
            return self.etag.removeprefix("W/") == other.etag.removeprefix("W/")
        if self.modified and other.modified and self.modified != other.modified:
            return False
        return None in (self.length, other.length) or self.length == other.length


def download(url: str, target: Path) -> None:
    """Download `url` to `target`, unless the current version is already there. `target` is never a partial file.

    A partial download is kept beside it under another name, together with its version: it is resumed only if the server
    still has this version. A user and password in the URL are sent to its host only.

    If the server does not send the length of the file, a lost connection looks like the end of the file.

    Raises:
        CheckpointError: if the server refuses, or every attempt fails without progress. The file of an earlier download
            is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.arriving")
    version_file, partial_version = target.with_suffix(".version"), partial.with_suffix(".arriving-version")
    with open(partial, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process may download the same file
        if target.exists() and _is_current(url, target, version_file):
            if not file.seek(0, 2):
                partial.unlink()
            return
        try:
            version = with_retries(
                lambda: _receive(url, file, partial_version), _retry_delay, progress=lambda: file.seek(0, 2)
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not file.seek(0, 2):
                partial.unlink()
                partial_version.unlink(missing_ok=True)
            raise CheckpointError(f"{url} cannot be downloaded: {error}") from scrub(error)
        move_into_place(partial, target)
    _write(version_file, _Version(version.etag, version.modified, version.length, checksum(target)))
    partial_version.unlink(missing_ok=True)


def forget(target: Path) -> None:
    """Remove a downloaded file."""
    target.unlink(missing_ok=True)
    target.with_suffix(".version").unlink(missing_ok=True)


def _is_current(url: str, target: Path, version_file: Path) -> bool:
    """Whether the downloaded file is the one at the URL; assumed if the server does not answer."""
    version = _read(version_file)
    if version.sha256 and not is_intact(target, version.sha256):
        logger.warning("the copy of %s in the cache is damaged; it is fetched again", redact(url))
        return False
    marks = {"If-None-Match": version.etag, "If-Modified-Since": None if version.etag else version.modified}
    try:
        request = _request(url, {name: mark for name, mark in marks.items() if mark})
        with urllib.request.urlopen(request, timeout=_QUESTION_TIMEOUT) as reply:
            kept = _Version(version.etag, version.modified, target.stat().st_size)
            return _version(reply.headers).is_of(kept)
    except urllib.error.HTTPError as error:
        if error.code == 304:
            return True
        cause: Exception = error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error
    logger.warning("%s is taken from the cache: whether it has changed is not known (%s)", redact(url), cause)
    return True


def _request(url: str, headers: dict[str, str]) -> urllib.request.Request:
    address, authorization = split_credentials(url)
    request = urllib.request.Request(quote(address, safe=string.punctuation), headers=headers)
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    return request


def _receive(url: str, file: BinaryIO, version_file: Path) -> _Version:
    """One attempt to download the rest of the file, or all of it.

    Raises:
        OSError, HTTPException: if it fails.
    """
    have = file.seek(0, 2)
    version = _read(version_file).strong if have else None
    # If the version has changed, the server sends the complete file.
    request = _request(url, {"Range": f"bytes={have}-", "If-Range": version} if version else {})
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        file.truncate(0)  # the file is shorter now
        raise _Incomplete("the file has changed") from error
    with reply:
        start, end = _span(reply.status, reply.headers)
        arriving = _version(reply.headers)
        if reply.status == 206 and (start != have or arriving.strong != version):
            file.truncate(0)
            raise _Incomplete("the file has changed")
        if start == 0:
            file.truncate(0)
        if end is not None and end > MAX_BYTES:
            raise CheckpointError(f"{url} has {end:,} bytes, more than a model may have here.")
        _write(version_file, arriving)
        while block := reply.read(_BLOCK):
            file.write(block)
            if file.tell() > MAX_BYTES:
                raise CheckpointError(f"{url} has more than {MAX_BYTES:,} bytes, more than a model may have here.")
        file.flush()
        if end is not None and file.tell() < end:
            raise _Incomplete(f"it broke off at {file.tell():,} of {end:,} bytes")
    return _Version(arriving.etag, arriving.modified, end)


def _span(status: int, headers: Message) -> tuple[int, int | None]:
    """The position of the first byte in the response, and the length of the complete file; None: it is unknown.

    Raises:
        OSError: if a partial response does not say which part it is.
    """
    if status == 206:
        said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
        if said is None:
            raise OSError("a part of the file came without saying which")
        return int(said[1]), int(said[3])
    return 0, _version(headers).length


def _version(headers: Message) -> _Version:
    length = headers.get("Content-Length", "")
    return _Version(headers.get("ETag"), headers.get("Last-Modified"), int(length) if length.isdigit() else None)


def _read(version_file: Path) -> _Version:
    """The version of a downloaded file; an empty one if it cannot be read."""
    try:
        return _Version(**json.loads(version_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Version()


def _write(version_file: Path, version: _Version) -> None:
    version_file.write_text(json.dumps(asdict(version)), encoding="utf-8")


def _retry_delay(error: BaseException) -> float | None:
    """As `retry_delay` of `with_retries`."""
    if isinstance(error, urllib.error.HTTPError):
        return delay_of_response(error.code, error.headers.get("Retry-After"))
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, (ConnectionRefusedError, socket.gaierror)):
        return None  # there is no server
    if isinstance(error, (http.client.InvalidURL, ValueError)):  # it is no URL
        return None
    return 0.0 if isinstance(error, (OSError, http.client.HTTPException)) else None
