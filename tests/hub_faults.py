"""An HTTP server in a thread that remembers what it was asked, and misbehaves on demand."""

from __future__ import annotations

import json
import re
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

FaultKind = int | Literal["cut", "corrupt", "stall"]


@dataclass
class Request:
    """What a client asked; `status` is that of the answer, once there is one. Names of headers are lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str] = field(repr=False)
    raw_path: str = field(repr=False)  # still quoted
    body: bytes = field(repr=False)
    status: int | None = None

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")


@dataclass
class Reply:
    """An answer; of a body that is cut only the first `sent` bytes leave."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None


class Refusal(Exception):
    """An answer that is an error, the way the Hub says it; `details` join the message in the body."""

    def __init__(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None, **details: Any
    ) -> None:
        super().__init__(message)
        known = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply(status, json.dumps({"error": message, **details}).encode(), known | (headers or {}))


def say(value: Any, **headers: str) -> Reply:
    return Reply(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **headers})


def serve(request: Request, whole: bytes, etag: str, headers: dict[str, str]) -> Reply:
    """A file, or the range of it that is asked for."""
    size, headers = len(whole), {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "bytes=-"))
    if asked is None or asked[0] == "bytes=-":
        return Reply(200, whole, headers)
    start = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
    end = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
    if start >= end:
        raise Refusal(416, None, "Requested range not satisfiable", {"Content-Range": f"bytes */{size}"})
    return Reply(206, whole[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"})


@dataclass
class Fault:
    """A misbehaviour, see `FaultyServer.fault`; `hits` counts how often it struck."""

    match: str
    kind: FaultKind
    times: int | None
    seconds: float
    retry_after: int | None
    code: str | None
    after: int | None
    hits: int = 0

    def refusal(self) -> Reply:
        wait = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        assert isinstance(self.kind, int)
        return Refusal(self.kind, self.code, "The Hub was told to fail", wait).reply

    def spoil(self, reply: Reply) -> None:
        if self.kind == "cut":
            reply.sent = len(reply.body) // 2 if self.after is None else self.after
        else:
            reply.body = reply.body[:-1] + bytes([reply.body[-1] ^ 1])


class FaultyServer(ABC):
    """The server, while it is entered; `answer` is what a subclass says.

    Attributes:
        url: where it listens.
        requests: what was asked, in order.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    @abstractmethod
    def answer(self, request: Request) -> Reply:
        """What the server says when nothing is wrong."""

    def fault(
        self,
        match: str,
        kind: FaultKind,
        times: int | None = 1,
        *,
        seconds: float = 5,
        retry_after: int | None = None,
        code: str | None = None,
        after: int | None = None,
    ) -> Fault:
        """Misbehaves at requests in whose "METHOD path" `match` is found, `times` times (None: always).

        Args:
            kind: the status of an error, with X-Error-Code `code` and Retry-After `retry_after`;
                "cut": the connection closes after `after` bytes of the body, without it after half of them;
                "corrupt": the last byte of the body is another one;
                "stall": nothing is sent for `seconds`, then the answer.
                What brings no content (HEAD, redirect, error) is neither cut nor corrupt, and does not count.
        """
        if not (isinstance(kind, int) or kind in ("cut", "corrupt", "stall")):
            raise ValueError(f"no such fault: {kind}")
        self._faults.append(Fault(match, kind, times, seconds, retry_after, code, after))
        return self._faults[-1]

    def _strike(self, request: Request, *kinds: str) -> Fault | None:
        """The fault of one of `kinds` ("status" is any error) that this request meets, counted."""
        for fault in self._faults:
            kind = "status" if isinstance(fault.kind, int) else fault.kind
            left = fault.times is None or fault.hits < fault.times
            if kind in kinds and left and re.search(fault.match, f"{request.method} {request.path}"):
                fault.hits += 1
                return fault
        return None

    def _reply(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            stall, error = self._strike(request, "stall"), self._strike(request, "status")
        if stall:
            self._stopped.wait(stall.seconds)
        with self._lock:
            try:
                reply = error.refusal() if error else self.answer(request)
            except Refusal as refusal:
                reply = refusal.reply
            request.status = reply.status
            has_content = reply.body and reply.status < 300 and request.method != "HEAD"
            if has_content and (fault := self._strike(request, "cut", "corrupt")):
                fault.spoil(reply)
            return reply


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that lost its patience
            super().handle()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(url.path), query, headers, url.path, self._body())
        reply = self.owner._reply(request)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.sent])
        self.close_connection |= reply.sent is not None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
