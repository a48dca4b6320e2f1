"""Writing a file whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error.

    A crash within the block leaves what was at `path` before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        settle(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def settle(partial: Path, path: Path) -> None:
    """Give a complete file its name, on the disk too: what has the name survives a loss of power."""
    os.chmod(partial, 0o644)  # some writers make their files readable by the owner alone
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)  # the folder's entry: the new name


def remove_partial(directory: Path) -> None:
    """Delete what writers left half written that were killed."""
    for partial in directory.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
