# SPDX-License-Identifier: Apache-2.0
"""An HTTP server for tests: bodies of requests are read on demand, answers may be malformed."""

from __future__ import annotations

import io
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from msgspec import Struct, field


class Answer(Struct):
    """An answer, well-formed or not."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""
    cut: int | None = None
    """Reset the connection after so many bytes of the body."""
    chunked: bool = False
    raw: bytes | Iterable[bytes] | None = None
    """Send exactly this, from the status line on, and close."""


class Request(Struct):
    """A received request."""

    method: str
    path: str
    query: dict[str, str]
    """Values of a repeated name are joined by spaces."""
    headers: dict[str, str]
    read: Callable[[int], bytes]
    """Reads at most so many bytes of the body; fewer at its end."""
    host: str
    taken: int = 0
    """Bytes of the body read so far."""

    def body(self) -> bytes:
        """The rest of the body."""
        return b"".join(iter(lambda: self.take(1 << 16), b""))

    def preload(self) -> None:
        """Read the body into memory."""
        self.read = io.BytesIO(self.body()).read

    def take(self, count: int) -> bytes:
        """A part of the body."""
        part = self.read(count)
        self.taken += len(part)
        return part


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(30)
        if self.tls is not None:
            request = self.tls.wrap_socket(request, server_side=True)
        try:
            super().finish_request(request, client_address)
        finally:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may disconnect at any time."""


def handler(respond: Callable[[Request], Answer], stopped: threading.Event) -> type[BaseHTTPRequestHandler]:
    """A handler class that answers requests by ``respond``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _one(self) -> None:
            target = urlsplit(self.path)
            request = Request(
                self.command,
                target.path,
                {name: " ".join(values) for name, values in parse_qs(target.query, keep_blank_values=True).items()},
                dict(self.headers.items()),
                self._body(),
                self.headers.get("Host", ""),
            )
            answer = respond(request)
            if answer.cut == 0 and not answer.status:
                self._reset()
                return
            if answer.raw is not None:
                self.close_connection = True
                for piece in [answer.raw] if isinstance(answer.raw, bytes) else answer.raw:
                    if stopped.is_set():
                        raise ConnectionAbortedError
                    self.wfile.write(piece)
                return
            if request.take(1):  # an unread body would be taken for the next request
                self.close_connection = True
            self._send(answer)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _one  # noqa: N815

        def _send(self, answer: Answer) -> None:
            headers = dict(answer.headers)
            bodiless = answer.status in (204, 304)
            if answer.chunked:
                headers["Transfer-Encoding"] = "chunked"
            elif isinstance(answer.body, bytes) and not bodiless:
                headers.setdefault("Content-Length", str(len(answer.body)))
            if self.close_connection:
                headers.setdefault("Connection", "close")
            self.wfile.write(head(answer.status, headers))
            if self.command == "HEAD" or bodiless:
                return
            left = answer.cut if answer.cut is not None else float("inf")
            for piece in [answer.body] if isinstance(answer.body, bytes) else answer.body:
                if stopped.is_set():
                    raise ConnectionAbortedError
                part = piece if len(piece) <= left else piece[: int(left)]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if answer.chunked and part else part)
                left -= len(part)
                if left <= 0:
                    self._reset()
                    return
            if answer.chunked:
                self.wfile.write(b"0\r\n\r\n")
            if isinstance(answer.body, bytes) and headers.get("Content-Length", "") != str(len(answer.body)):
                self.close_connection = True

        def _body(self) -> Callable[[int], bytes]:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                whole = b"".join(self._chunks())
                length, source = len(whole), iter([whole])
                kept = bytearray(next(source))
            else:
                length, kept = int(self.headers.get("Content-Length", "0")), bytearray()
            left = length

            def read(count: int) -> bytes:
                nonlocal left
                count = min(count, left)
                if kept:
                    part = bytes(kept[:count])
                    del kept[:count]
                else:
                    part = self.rfile.read(count) if count else b""
                    if len(part) < count:
                        raise ConnectionResetError
                left -= len(part)
                return part

            return read

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def _reset(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            time.sleep(0.1)  # a reset discards data that the client has not read yet
            if not isinstance(self.connection, ssl.SSLSocket):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    return Handler


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The bytes of status line and headers."""
    lines = [f"HTTP/1.1 {status} so", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")
