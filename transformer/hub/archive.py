"""A model directory in a tar, packed and unpacked. A tar may come from a stranger."""

from __future__ import annotations

import atexit
import gzip
import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from transformer.errors import CheckpointError
from transformer.files import whole_file

_MAX_BYTES = 32 * 2**30  # unpacked
_MAX_MEMBERS = 10_000  # the ones that are left out included
_MAX_RATIO = 50  # times smaller that compression makes a model: weights hardly shrink, and tokenizers by ten at most
_FREE_BYTES = 2**24  # that a small archive may hold in any case
_unpacked: set[Path] = set()  # folders that `unpack` made, to be removed at the latest when the interpreter exits
_MAX_READ = 2**22  # bytes at once: tarfile reads a header in one piece, however long it says that it is


def pack(directory: Path, archive: Path, wanted: Callable[[str], bool]) -> None:
    """Write the files of `directory` whose names are wanted into the tar `archive`."""
    with whole_file(archive) as partial, tarfile.open(partial, "w") as tar:
        for file in sorted(directory.iterdir()):
            if wanted(file.name):
                tar.add(file, arcname=file.name)


def unpack(archive: Path, wanted: Callable[[str], bool]) -> Path:
    """The model directory within a tar, plain or gzipped, in a temporary folder of its own.

    The folder is there until `discard`, or until the interpreter exits. Only regular files with wanted names are
    taken, wherever in the tar they stand.

    Raises:
        CheckpointError: if it is no tar, holds no model, or more than a model: known before it is unpacked.
    """
    directory = Path(tempfile.mkdtemp(prefix="model-"))
    _unpacked.add(directory)
    try:
        with open(archive, "rb") as file:
            _unpack(archive, file, wanted, directory)
        if not (directory / "config.json").exists():
            raise CheckpointError(f"{archive} holds no model: there is no config.json in it.")
    except BaseException as error:
        discard(directory)
        # tarfile and gzip raise these, and others where a header is broken on purpose
        if isinstance(error, (tarfile.TarError, EOFError, OSError, ValueError, ArithmeticError)):
            raise CheckpointError(f"{archive} is not a tar that can be read: {_first_line(error)}") from error
        raise
    return directory


def discard(directory: Path) -> None:
    """Remove a folder that `unpack` made, when its model is loaded; any other is left alone."""
    if directory in _unpacked:
        _unpacked.remove(directory)
        shutil.rmtree(directory, ignore_errors=True)


@atexit.register
def _discard_all() -> None:
    for directory in list(_unpacked):
        discard(directory)


def _unpack(archive: Path, file: BinaryIO, wanted: Callable[[str], bool], directory: Path) -> None:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    content = _Bounded(gzip.GzipFile(fileobj=file) if gzipped else file)
    left = min(_MAX_BYTES, _MAX_RATIO * size + _FREE_BYTES)
    with tarfile.open(fileobj=content, mode="r:") as tar:
        for number, member in enumerate(tar):
            name = Path(member.name).name
            left -= max(member.size, 0)
            if number >= _MAX_MEMBERS:
                raise CheckpointError(f"{archive} holds more than {_MAX_MEMBERS:,} files.")
            if left < 0 or member.size < 0 or member.type == tarfile.GNUTYPE_SPARSE:
                raise CheckpointError(f"{archive} of {size:,} bytes says that it holds more than such an archive can.")
            if member.isfile() and wanted(name):
                member.name = name
                tar.extract(member, directory, filter="data")


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
