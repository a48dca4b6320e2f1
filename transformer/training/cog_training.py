"""A training within Cog's HTTP server: what it may read, its temporary folder, and the server's end.

The server runs a training in a thread of a worker process. After SIGTERM it stops listening, and does not tell the
training: it kills the worker after ten seconds, or, while a client waits for the answer, waits without end. It also
leaves the files of an answer where they are. So the worker asks the server how it is, and sees to both itself.
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
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_STOP = 4.0  # for the step that is being made; what cannot end by then is ended
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)

_folders: set[Path] = set()  # that are to be removed when the server has sent what is in them


class _ServerGone(BaseException):
    """Raised in the thread of a training that the end of the server has overtaken."""


def data_source(train_data: str | os.PathLike[str]) -> str:
    """What a request may train on: a file that Cog brought (an upload, or from a URL), or the id of a Hub data set.

    Cog hands on a file that it has written to its temporary folder as a path, and all else as the string that was sent.

    Raises:
        CorpusError: if it names a file or folder of the server, or nothing.
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
    """Train as `config` says, in a temporary folder, which takes the place of its output.

    Within Cog's server the folder is removed when the archive was sent, and in any case when the process ends. If the
    server is shut down meanwhile, the run ends within seconds, with the best model until then.

    Returns:
        A tar of the model directory, alone in a folder of its own.

    Raises:
        TransformerError: as `train`; or if the server was shut down before there was a model. Nothing is left then.
    """
    _remove_sent()  # the answer before this one was sent, or this one would not have begun
    folder = Path(tempfile.mkdtemp(prefix="training-"))
    try:
        output = folder / "output"
        with _Watch() as watch:
            try:
                train(config.with_options(output=str(output)), hub_token, watch.stop)
            except (Interrupted, _ServerGone):
                if not (output / WEIGHTS).exists():
                    raise
                logger.warning("the server is shut down: the weights are the best of the training until now")
        archive = pack(output, folder / "weights.tar")
        shutil.rmtree(output)
    except BaseException as error:  # a cancelation too
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


class _Watch:
    """Within it `stop` is set when the server is shut down or gone, and the thread is stopped that does not obey."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._parent = os.getppid()

    def __enter__(self) -> _Watch:
        if in_server():
            threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._over.set()

    def _look(self) -> None:
        listened = False
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            status = _server_status()
            # A server that never answers here listens at another address than this one.
            if os.getppid() != self._parent or (listened and status is None):
                self.stop.set()
                if not self._over.wait(_SECONDS_TO_STOP):
                    self._raise_there()
                return
            listened = listened or bool(status)

    def _raise_there(self) -> None:
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
    """The status of the server whose worker this is: READY, BUSY and so on; None: it does not listen; "": unknown."""
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
    """Wait until the server is ready for another request: then it has sent the answer to this one."""
    mine = set(_folders)
    while (status := _server_status()) != "READY":
        if status is None:  # shut down; it may be sending still, and the process ends after that
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    _remove_sent(mine)


@atexit.register
def _remove_sent(folders: set[Path] | None = None) -> None:
    for folder in list(_folders if folders is None else folders & _folders):
        _folders.discard(folder)
        shutil.rmtree(folder, ignore_errors=True)
