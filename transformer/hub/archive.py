"""A model directory in a tar, packed and unpacked. A tar may be untrusted."""

from __future__ import annotations

import atexit
import fcntl
import gzip
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from transformer.data.template_files import FOLDER as TEMPLATE_FOLDER
from transformer.errors import CheckpointError, first_line
from transformer.files import atomic_write

_MAX_BYTES = 32 * 2**30  # unpacked
_MAX_MEMBERS = 10_000  # the ones that are left out included
_MAX_RATIO = 50  # times smaller that compression makes a model: weights hardly shrink, and tokenizers by ten at most
_FREE_BYTES = 2**24  # that a small archive may hold in any case
_unpacked: dict[Path, int] = {}  # folders that `unpack` made, with the descriptors that hold their locks
_MAX_READ = 2**22  # bytes at once: tarfile reads a header in one piece, however long it says that it is
_PREFIX = "decoder-only-transformer-model-"  # of a folder that a tar was unpacked into


class DamagedArchive(CheckpointError):
    """A file is no tar of a model: cut, changed on the way, or another thing altogether."""


def pack(directory: Path, archive: Path, wanted: Callable[[str], bool]) -> None:
    """Write the files of `directory` whose names are wanted into the tar `archive`."""
    with atomic_write(archive) as partial, tarfile.open(partial, "w") as tar:
        for name, file in paths_of(directory).items():
            if wanted(name):
                tar.add(file, arcname=name)


def paths_of(directory: Path) -> dict[str, Path]:
    """What stands in a model directory and in its folder of chat templates, by the paths within it."""
    found = [*directory.iterdir(), *directory.glob(f"{TEMPLATE_FOLDER}/*")]
    return {file.relative_to(directory).as_posix(): file for file in sorted(found)}


def unpack(archive: Path, wanted: Callable[[str], bool], name: str | None = None) -> Path:
    """The model directory within a tar, plain or gzipped, in a temporary folder of its own.

    The folder is there until `discard`, or until the interpreter exits. Only regular files with wanted names are
    taken, wherever in the tar they stand.

    Args:
        name: what messages call the tar; by default its path.

    Raises:
        DamagedArchive: if it is no tar, is cut, holds no model, or more than a model: known before it is unpacked.
        CheckpointError: if it cannot be unpacked here, such as onto a full disk.
    """
    name = name or str(archive)
    directory, lock = _own_folder()
    _unpacked[directory] = lock
    try:
        with open(archive, "rb") as file:
            _unpack(name, file, wanted, directory)
        if not (directory / "config.json").exists():
            raise DamagedArchive(f"{name} holds no model: there is no config.json in it.")
    except BaseException as error:
        discard(directory)
        if isinstance(error, OSError) and error.errno is not None:
            raise CheckpointError(f"{name} cannot be unpacked: {error.strerror} ({directory}).") from error
        # tarfile and gzip raise these, and others where a header is broken on purpose
        if isinstance(error, (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, ArithmeticError)):
            raise DamagedArchive(f"{name} is not a tar that can be read: {first_line(error)}") from error
        raise
    return directory


def discard(directory: Path) -> None:
    """Remove a folder that `unpack` made, when its model is loaded; any other is left alone."""
    if (lock := _unpacked.pop(directory, None)) is not None:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _unpack(name: str, file: BinaryIO, wanted: Callable[[str], bool], directory: Path) -> None:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    content = _Bounded(gzip.GzipFile(fileobj=file) if gzipped else file)
    left = min(_MAX_BYTES, _MAX_RATIO * size + _FREE_BYTES)
    with tarfile.open(fileobj=content, mode="r:") as tar:
        for number, member in enumerate(tar):
            left -= max(member.size, 0)
            if number >= _MAX_MEMBERS:
                raise DamagedArchive(f"{name} holds more than {_MAX_MEMBERS:,} files.")
            if left < 0 or member.size < 0 or member.type == tarfile.GNUTYPE_SPARSE:
                raise DamagedArchive(f"{name} of {size:,} bytes says that it holds more than such an archive can.")
            path = Path(member.name)
            place = path.name if path.parent.name != TEMPLATE_FOLDER else f"{TEMPLATE_FOLDER}/{path.name}"
            if member.isfile() and wanted(place):
                member.name = place
                tar.extract(member, directory, filter="data")
        content.seek(tar.offset)
        if content.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it has no end, so that it is not whole")
        while left >= 0 and (block := content.read(_MAX_READ)):  # to its end: there gzip's checksum is compared
            left -= len(block)


def _own_folder() -> tuple[Path, int]:
    """A new temporary folder, removed when this process ends, or by the next call in any process if it was killed.

    Its owner holds a lock on it, by the descriptor that is returned too: it ends with the process.
    """
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*"):
        if (lock := _lock(folder, wait=False)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = _lock(folder, wait=True)
        if lock is not None and folder.exists():  # or another process took it for one that was left behind
            atexit.register(_remove, folder, os.getpid())
            return folder, lock


def _lock(folder: Path, wait: bool) -> int | None:
    """A descriptor of the folder that holds its lock; None if it is another process's, or is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a process forked from it
        shutil.rmtree(folder, ignore_errors=True)


class _Bounded(io.BufferedIOBase):
    """A file of which only so much is read at once."""

    def __init__(self, file: io.BufferedIOBase | BinaryIO) -> None:
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()
