"""The real Cog HTTP server as a subprocess, the one that runs inside every image; only Docker is missing."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from tools import cog_schema
from transformer.files import cache_folder
from transformer.inference.native import load_kernel
from transformer.inference.native.compiled_kernel import FOLDER_VARIABLE

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "cog.yaml").read_text())
PATIENCE = 120  # seconds after which something that should have happened counts as failed


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: dict[str, Any]


@dataclass(frozen=True)
class CogServer:
    """A running server."""

    http: httpx.Client
    log: Path

    def health(self) -> dict[str, Any]:
        return self.http.get("/health-check").json()

    def wait_for(self, *states: str) -> dict[str, Any]:
        """The health check, once it shows one of `states`."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if (health := self.health())["status"] in states:
                return health
            time.sleep(0.05)
        raise TimeoutError(f"the server is {health['status']}, not {' or '.join(states)}:\n{self.log.read_text()}")

    def predict(self, **inputs: Any) -> dict[str, Any]:
        """The answer to a prediction that the client waits for."""
        self.wait_for("READY")  # the slot of the one before is free a moment after its answer
        reply = self.http.post("/predictions", json={"input": inputs})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def text(self, **inputs: Any) -> str:
        """The text of a prediction that succeeds."""
        answer = self.predict(**inputs)
        assert answer["status"] == "succeeded", answer
        return "".join(answer["output"])

    @contextmanager
    def stream(self, id: str, **inputs: Any) -> Iterator[Iterator[Event]]:
        """The events of a prediction, as they arrive."""
        headers = {"Accept": "text/event-stream"}
        with self.http.stream("PUT", f"/predictions/{id}", json={"input": inputs}, headers=headers) as reply:
            assert reply.status_code == 200, reply.read()
            assert reply.headers["content-type"] == "text/event-stream"
            yield parse_events(reply.iter_lines())


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """Server-sent events from the lines of the stream (https://html.spec.whatwg.org, 9.2.6)."""
    name, data = "message", []
    for line in lines:
        if not line:
            if data:
                yield Event(name, json.loads("\n".join(data)))
            name, data = "message", []
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


def assert_only_fault(reply: httpx.Response, name: str) -> None:
    """The request was refused because of this input, which may be wrong in two ways at once."""
    assert reply.status_code == 422
    faults = reply.json()["detail"]
    assert faults and all(fault["loc"] == ["body", "input", name] and fault["msg"] for fault in faults)


@contextmanager
def cog_server(environment: Mapping[str, str], mode: str = "predict") -> Iterator[CogServer]:
    """A server in the project's folder, as cog.yaml describes it; it may still be starting, see `wait_for`.

    Args:
        environment: variables beside those of cog.yaml.
        mode: "predict" or "train".
    """
    schema = cog_schema.openapi_schema(ROOT, CONFIG["predict"], CONFIG["train"])
    cog_schema.write(schema, ROOT / cog_schema.OUTPUT)
    load_kernel()  # compiles it where the server looks for it
    port = _free_port()
    command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1", f"--x-mode={mode}"]
    with tempfile.TemporaryDirectory(prefix="cog-") as folder, open(Path(folder, "log"), "wb") as log:
        variables = {**_environment(port, folder), **environment}
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
                _wait_until_it_listens(process, client, Path(log.name))
                yield CogServer(client, Path(log.name))
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(port: int, folder: str) -> dict[str, str]:
    """What the image sets, and what keeps a server to itself: all that it leaves behind is in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COG_", "HF_"))}
    of_the_image = dict(variable.split("=", 1) for variable in CONFIG.get("environment", []))
    return {
        **inherited,
        **of_the_image,
        FOLDER_VARIABLE: str(cache_folder() / "native"),  # as in the image, nothing is compiled at the start
        "COG_PREDICT_TYPE_STUB": CONFIG["predict"],
        "COG_TRAIN_TYPE_STUB": CONFIG["train"],
        # The server starts its worker as plain `python`.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PORT": str(port),
        "LOG_FORMAT": "console",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": folder,
        "XDG_CACHE_HOME": folder,
        "HF_HOME": folder,
        "HF_HUB_OFFLINE": "1",
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_until_it_listens(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.get("/health-check")
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")


class Webhooks:
    """A receiver of webhooks: what was posted to its `url`, in order."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self._arriving: queue.Queue[dict[str, Any]] = queue.Queue()
        arriving = self._arriving

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                arriving.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Webhooks:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def until(self, *states: str) -> dict[str, Any]:
        """The first prediction posted here that is in one of `states`."""
        while True:
            posted = self._arriving.get(timeout=PATIENCE)
            self.received.append(posted)
            if posted["status"] in states:
                return posted
