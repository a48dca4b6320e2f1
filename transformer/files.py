"""Atomic writes of files, reading of untrusted JSON files, and the cache folder of this package."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformer.errors import CheckpointError, WriteError

_MAX_JSON_BYTES = 16 * 2**20  # ten times the index file of a model of a thousand layers


def cache_folder() -> Path:
    """The folder for files that can be downloaded or computed again.

    Raises:
        RuntimeError: if the user has no home directory and XDG_CACHE_HOME is not set.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decoder-only-transformer"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A context with a temporary path to write to, which replaces `path` at its end, unless there is an error.

    Raises:
        WriteError: if it cannot be written, as on a full disk, in a read-only folder, or if a folder has its name.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        move_into_place(partial, path)
    except Exception as error:
        # On a full disk, safetensors raises its own error, and tokenizers a bare Exception.
        if isinstance(error, OSError) or type(error) is Exception or type(error).__name__ == "SafetensorError":
            raise WriteError(f"{path} cannot be written: {reason(error)}.") from error
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """The reason in an error of reading or writing, without file name and error number."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return (message or type(error).__name__).splitlines()[0].rstrip(".")


def move_into_place(partial: Path, path: Path) -> None:
    """Rename a complete file to `path`, and flush it and its folder to the disk."""
    os.chmod(partial, 0o644)  # some libraries create files that only the owner can read
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)  # the new name


def remove_partial(directory: Path) -> None:
    """Delete incomplete files of processes that were killed."""
    for partial in directory.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small, untrusted JSON file.

    Raises:
        CheckpointError: if there is no such file, or it is too large or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes: expected at most {_MAX_JSON_BYTES:,}.")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a model directory: it has no {path.name}.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} contains {type(fields).__name__}: expected an object.")
    return fields


def write_json(path: str | Path, fields: dict[str, Any]) -> None:
    """Write an object as a JSON file, as `atomic_write` does."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
