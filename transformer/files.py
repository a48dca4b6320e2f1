"""Files written whole or not at all, small untrusted ones read with care, and the folder of this package's cache."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformer.errors import CheckpointError, WriteError

_MAX_JSON_BYTES = 16 * 2**20  # the index of a model of a thousand layers is a tenth of it


def cache_folder() -> Path:
    """Where this package keeps what it can bring or compute again.

    Raises:
        RuntimeError: for a user without a home, unless XDG_CACHE_HOME is set.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decoder-only-transformer"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error.

    A crash within the block leaves what was at `path` before.

    Raises:
        WriteError: if it cannot be written, as on a full disk, in a read-only folder, or where a folder has its name.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        move_into_place(partial, path)
    except Exception as error:
        # safetensors has an error of its own for a full disk, and tokenizers raises a bare Exception.
        if isinstance(error, OSError) or type(error) is Exception or type(error).__name__ == "SafetensorError":
            raise WriteError(f"{path} cannot be written: {reason(error)}.") from error
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """Why a file could not be written or read, without the name of the file and the number of the error."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip()
    return (said or type(error).__name__).splitlines()[0].rstrip(".")


def move_into_place(partial: Path, path: Path) -> None:
    """Give a complete file its name, on the disk too: what has the name survives a loss of power."""
    os.chmod(partial, 0o644)  # some writers make their files readable by the owner alone
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)  # the folder's entry: the new name


def remove_partial(directory: Path) -> None:
    """Delete what writers left half written that were killed."""
    for partial in directory.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, which is too much for what it is.")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is not a model directory: it has no {path.name}.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds {type(fields).__name__}, expected an object.")
    return fields


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
