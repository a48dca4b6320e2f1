"""The folders that Cog's server makes for each prediction, and does not remove."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/tmp/coglet/predictions")
_AGE = 600.0  # seconds after which an empty folder is no longer one that a prediction is about to use
_INTERVAL = 600.0  # seconds from one removal to the next


def remove_empty(folder: Path = FOLDER, age: float = _AGE) -> int:
    """Remove the folders of predictions in which nothing is and nothing has changed for `age` seconds; their number.

    Folders with a file in them stay.
    """
    removed, before = 0, time.time() - age
    with suppress(OSError):  # there is no such folder
        for prediction in list(folder.iterdir()):
            with suppress(OSError):  # one with something in it, or another process was faster
                if prediction.is_symlink() or prediction.stat().st_mtime > before:
                    continue
                for part in ("inputs", "outputs"):
                    with suppress(FileNotFoundError):
                        (prediction / part).rmdir()
                prediction.rmdir()
                removed += 1
    return removed


def keep_removing_empty(interval: float = _INTERVAL) -> threading.Thread:
    """Call `remove_empty` now and again in a thread that ends with the process."""

    def work() -> None:
        while True:
            remove_empty()
            time.sleep(interval)

    thread = threading.Thread(target=work, name="remove-empty-folders", daemon=True)
    thread.start()
    return thread
