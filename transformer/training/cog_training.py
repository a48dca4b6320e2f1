"""Training within Cog's HTTP server: what a request may read, its temporary folder, and shutdown of the server.

The server runs a training in a thread of a worker process. After SIGTERM it stops listening and does not tell the
training: it kills the worker after ten seconds or, while a client waits for the response, waits forever. It also does
not delete the files of a response. The worker therefore polls the status of the server, and does both itself.
"""

from __future__ import annotations

import atexit
import ctypes
import http.client
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

from transformer.errors import CorpusError, TransformerError
from transformer.hub.resolve import WEIGHTS, pack
from transformer.training.interrupt import Interrupted
from transformer.training.run import train
from transformer.training.train_config import TrainConfig

logger = logging.getLogger("transformer")
_POLL_SECONDS = 0.5
_SECONDS_TO_STOP = 4.0  # for the current step, before the thread of the training is stopped
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)

_folders: set[Path] = set()  # to be deleted when the server has sent their files


class _ServerGone(BaseException):
    """Raised in the thread of a training that did not stop in time after the server was shut down."""


def data_source(train_data: str | os.PathLike[str]) -> str:
    """The text that a request may train on: a file that Cog uploaded or downloaded, or the id of a Hub data set.

    Cog passes a file in its temporary folder as a path, and anything else as the string of the request.

    Raises:
        CorpusError: if it is anything else, such as a file of the server.
    """
    text = os.fspath(train_data)
    if isinstance(train_data, os.PathLike):
        inside = Path(text).resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())
        if inside or not in_server():
            return text
    elif _HUB_ID.fullmatch(text) and not Path(text).exists():
        return text
    raise CorpusError(
        f"train_data is {text!r:.100}: expected the content of a file as a data URL (`-i train_data=@my.txt`), an "
        "http(s) URL, or the id of a data set on the Hub such as Salesforce/wikitext. Files of the server are not read."
    )


def train_to_archive(config: TrainConfig, hub_token: str | None = None) -> Path:
    """Train with `config`, in a temporary folder in place of its output.

    Within Cog's server the folder is deleted once the archive was sent, and at the latest when the process ends. If the
    server is shut down during the training, the run ends within seconds, with the best model so far.

    Returns:
        A tar of the model directory.

    Raises:
        TransformerError: as `train`, or if the server was shut down before there was a model. The folder is deleted.
    """
    _remove_sent()  # the response of an earlier request was sent, or this one would not have started
    folder = Path(tempfile.mkdtemp(prefix="training-"))
    try:
        output = folder / "output"
        with _ShutdownMonitor() as monitor:
            try:
                train(config.with_options(output=str(output)), hub_token, monitor.stop)
            except (Interrupted, _ServerGone):
                if not (output / WEIGHTS).exists():
                    raise
                logger.warning("the server is shut down: the weights are the best of the training until now")
        archive = pack(output, folder / "weights.tar")
        shutil.rmtree(output)
    except BaseException as error:  # also when Cog cancels the request
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (Interrupted, _ServerGone)):
            raise TransformerError(
                "the server was shut down before the training had a model: send the same request again."
            ) from error
        raise
    if in_server():
        _folders.add(folder)
        threading.Thread(target=_remove_when_sent, daemon=True).start()
    return archive


class _ShutdownMonitor:
    """A context that sets `stop` when the server is shut down, and stops its thread if that has no effect in time."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._parent = os.getppid()

    def __enter__(self) -> _ShutdownMonitor:
        if in_server():
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._over.set()

    def _poll(self) -> None:
        listened = False
        while not self._over.wait(_POLL_SECONDS):
            status = _server_status()
            # A server that never responded listens at another address.
            if os.getppid() != self._parent or (listened and status is None):
                self.stop.set()
                if not self._over.wait(_SECONDS_TO_STOP):
                    self._raise_in_thread()
                return
            listened = listened or bool(status)

    def _raise_in_thread(self) -> None:
        """Raise an exception in the thread of the training, as Cog does to cancel it."""
        with self._lock:
            if not self._over.is_set():
                thread = ctypes.c_ulong(self._thread)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_ServerGone))


def in_server() -> bool:
    """Whether this is a worker of Cog's server."""
    try:
        from coglet import server
    except ImportError:
        return False
    return bool(server.active)


def _server_status() -> str | None:
    """The status of the server of this worker, such as READY or BUSY; None: it is not listening; "": unknown."""
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "5000")), timeout=2)
    try:
        connection.request("GET", "/health-check")
        return str(json.load(connection.getresponse())["status"])
    except ConnectionRefusedError:
        return None
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _remove_when_sent() -> None:
    """Delete the folders once the server is ready for another request: then it has sent the response to this one."""
    mine = set(_folders)
    while (status := _server_status()) != "READY":
        if status is None:  # shut down, perhaps while sending: the folders are deleted when the process ends
            return
        time.sleep(_POLL_SECONDS)
    _remove_sent(mine)


@atexit.register
def _remove_sent(folders: set[Path] | None = None) -> None:
    for folder in list(_folders if folders is None else folders & _folders):
        _folders.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)
