"""Removal of the folders that Cog's server creates for each prediction and does not remove."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/tmp/coglet/predictions")
_AGE = 600.0  # seconds; a younger empty folder may be of a prediction that is starting
_INTERVAL = 600.0  # seconds between removals


def remove_empty(folder: Path = FOLDER, age: float = _AGE) -> int:
    """Remove the empty folders of predictions that have not changed for `age` seconds.

    Returns:
        The number of removed folders.
    """
    removed, before = 0, time.time() - age
    with suppress(OSError):  # the folder does not exist
        for prediction in list(folder.iterdir()):
            with suppress(OSError):  # it is not empty, or another process has removed it
                if prediction.is_symlink() or prediction.stat().st_mtime > before:
                    continue
                for part in ("inputs", "outputs"):
                    with suppress(FileNotFoundError):
                        (prediction / part).rmdir()
                prediction.rmdir()
                removed += 1
    return removed


def keep_removing_empty(interval: float = _INTERVAL) -> threading.Thread:
    """Call `remove_empty` every `interval` seconds, in a daemon thread."""

    def work() -> None:
        while True:
            remove_empty()
            time.sleep(interval)

    thread = threading.Thread(target=work, name="remove-empty-folders", daemon=True)
    thread.start()
    return thread
