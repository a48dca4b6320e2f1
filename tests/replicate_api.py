"""The part of Replicate's HTTP API that its client uses to stream a prediction, in front of a local Cog server.

A prediction is created by POST /v1/models/<owner>/<name>/predictions and answered with the address of its stream of
server-sent events. https://replicate.com/docs/topics/predictions/streaming
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def replicate_api(predict: Callable[[dict[str, Any]], list[str]], model: str) -> Iterator[str]:
    """The address of an API with one model, whose inputs `predict` turns into pieces of text."""
    outputs: dict[str, list[str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != f"/v1/models/{model}/predictions" or not asked["stream"]:
                self._answer(404, "application/json", b"{}")
                return
            outputs["1"] = predict(asked["input"])
            address = f"http://127.0.0.1:{self.server.server_address[1]}/stream"
            prediction = {"id": "1", "model": model, "version": "hidden", "status": "starting", "input": asked["input"]}
            prediction |= {"output": None, "logs": "", "error": None, "created_at": "2026-01-01T00:00:00Z"}
            prediction |= {"urls": {"stream": address, "get": address, "cancel": address}}
            self._answer(201, "application/json", json.dumps(prediction).encode())

        def do_GET(self) -> None:
            events = [("output", piece) for piece in outputs["1"]] + [("done", "{}")]
            written = ""
            for number, (event, data) in enumerate(events):
                lines = "".join(f"data: {line}\n" for line in data.split("\n"))
                written += f"event: {event}\nid: {number}\n{lines}\n"
            self._answer(200, "text/event-stream", written.encode())

        def log_message(self, *message: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
