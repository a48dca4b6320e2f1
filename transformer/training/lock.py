"""One run in an output folder at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from transformer.errors import ConfigError, WriteError
from transformer.files import reason

LOCK_FILE = ".lock"


@contextmanager
def only_run_in(output: str | Path) -> Iterator[None]:
    """A context in which no other run can start in this folder. Only the first process of a run takes the lock.

    The operating system releases the lock when the process ends, even if the file stays.

    Raises:
        ConfigError: if another run has the lock; nothing in the folder is changed.
        WriteError: if the folder cannot be created or written to.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    output = Path(output)
    lock = FileLock(output / LOCK_FILE, blocking=False)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another run is training in {output}: wait until it has ended, or choose another folder with --output."
        ) from None
    except OSError as error:
        raise WriteError(f"{output} cannot be written to: {reason(error)}. Choose another --output.") from error
    try:
        yield
    finally:
        lock.release()
