"""Packing and unpacking of model directories as tars, which may be untrusted."""

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
_MAX_MEMBERS = 10_000  # including those that are skipped
_MAX_RATIO = 50  # of compression: weights hardly shrink, and tokenizers at most to a tenth
_FREE_BYTES = 2**24  # of content in any archive, beyond that ratio
_unpacked: dict[Path, int] = {}  # folders of `unpack`, with the file descriptors that hold their locks
_MAX_READ = 2**22  # bytes at once: tarfile reads a header in one piece, whatever length it claims
_PREFIX = "decoder-only-transformer-model-"  # of the names of folders of `unpack`


class DamagedArchive(CheckpointError):
    """A file is not a complete tar of a model."""


def pack(directory: Path, archive: Path, wanted: Callable[[str], bool]) -> None:
    """Write the files of `directory` whose names are wanted into the tar `archive`."""
    with atomic_write(archive) as partial, tarfile.open(partial, "w") as tar:
        for name, file in paths_of(directory).items():
            if wanted(name):
                tar.add(file, arcname=name)


def paths_of(directory: Path) -> dict[str, Path]:
    """The files of a model directory and of its folder of chat templates, by their paths within it."""
    found = [*directory.iterdir(), *directory.glob(f"{TEMPLATE_FOLDER}/*")]
    return {file.relative_to(directory).as_posix(): file for file in sorted(found)}


def unpack(archive: Path, wanted: Callable[[str], bool], name: str | None = None) -> Path:
    """The model directory in a tar, plain or gzipped, in a new temporary folder.

    The folder exists until `discard`, or until the interpreter exits. It gets regular files with wanted names only,
    from any folder in the tar.

    Args:
        name: of the tar in messages; None: its path.

    Raises:
        DamagedArchive: if it is not a tar, is incomplete, has no model, or is larger than a model can be.
        CheckpointError: if it cannot be unpacked, as on a full disk.
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
        # of tarfile and gzip; some are raised only for headers that were damaged on purpose
        if isinstance(error, (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, ArithmeticError)):
            raise DamagedArchive(f"{name} is not a tar that can be read: {first_line(error)}") from error
        raise
    return directory


def discard(directory: Path) -> None:
    """Delete a folder of `unpack` after its model was loaded; other folders are not changed."""
    if (lock := _unpacked.pop(directory, None)) is not None:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _unpack(name: str, file: BinaryIO, wanted: Callable[[str], bool], directory: Path) -> None:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    content = _BoundedReader(gzip.GzipFile(fileobj=file) if gzipped else file)
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
        while left >= 0 and (block := content.read(_MAX_READ)):  # to the end, where gzip compares its checksum
            left -= len(block)


def _own_folder() -> tuple[Path, int]:
    """A new temporary folder, and the file descriptor that holds its lock until the process ends.

    The folder is deleted when this process ends or, if it was killed, by the next call in any process.
    """
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{_PREFIX}*"):
        if (lock := _lock(folder, wait=False)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = _lock(folder, wait=True)
        if lock is not None and folder.exists():  # otherwise another process deleted it before it was locked
            atexit.register(_remove, folder, os.getpid())
            return folder, lock


def _lock(folder: Path, wait: bool) -> int | None:
    """A file descriptor that holds the folder's lock; None: another process has it, or there is no such folder."""
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
    if os.getpid() == process:  # not in forked processes
        shutil.rmtree(folder, ignore_errors=True)


class _BoundedReader(io.BufferedIOBase):
    """A file of which at most `_MAX_READ` bytes are read at once."""

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
