# SPDX-License-Identifier: Apache-2.0
"""Responses of HTTP/1.1 (RFC 9112), whose bodies go from the socket straight into the caller's buffer.

The standard library parses heads and chunks; what it leaves open (ambiguous lengths, malformed fields, heads that
never end) is refused here. tests/unit/registry/http/test_http_client.py pins the undocumented parts of it in use.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected
from typing import Any, Final, cast

from lamella.errors import InvalidInput

_BUFFER: Final = 64 << 10
_CHUNKED_READ: Final = 16 << 10
_LENGTH: Final = re.compile("[0-9]{1,18}")
_FOLD: Final = re.compile(r"\r?\n[ \t]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class MalformedResponse(Exception):
    """The response is not HTTP, or ends too early; the message says which."""


class Headers(Mapping[str, str]):
    """Header fields by case-insensitive name; repeated fields are joined by commas (RFC 9110, section 5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields: dict[str, str] = {}
        for name, raw in fields:
            value = _FOLD.sub(" ", raw).strip(" \t")  # obsolete line folding
            if _CONTROL.search(value):
                raise MalformedResponse("the head of the response is malformed")
            before = self._fields.get(name.lower())
            self._fields[name.lower()] = value if before is None else f"{before}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _SocketReader(io.RawIOBase):
    """Reads a socket until a deadline, since the socket's own timeout starts again with each byte."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.deadline = math.inf
        """Monotonic time; negative to read nothing more."""
        self.at_end = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.deadline < 0:
            return None
        if time.monotonic() > self.deadline:
            raise TimeoutError
        count: int = self._sock.recv_into(buffer)
        self.at_end = not count
        return count


class _Buffered(io.BufferedReader):
    """Passes for a socket and for its file, which `http.client` closes at the end of a body; the socket stays open."""

    def makefile(self, _: str) -> _Buffered:
        return self

    def close(self) -> None:
        pass

    def flush(self) -> None:
        """Do nothing: a response that the collector closes after its socket would raise here."""


class RawResponse:
    """A response whose head has been read and whose body has not.

    Reading the head takes at most twice ``timeout`` seconds, interim responses (1xx) included. Raises
    MalformedResponse, OSError, and InvalidInput for an ambiguous length.
    """

    def __init__(self, sock: Any, method: str, timeout: float) -> None:
        self._timeout = timeout
        self._socket = _SocketReader(sock)
        self._socket.deadline = time.monotonic() + 2 * timeout
        self._buffered = _Buffered(self._socket, _BUFFER)
        try:
            while True:
                self._parsed = HTTPResponse(cast("Any", self._buffered), method=method)
                self._parsed.begin()
                if self._socket.at_end:
                    raise MalformedResponse("the connection was closed")
                if self._parsed.headers.defects:
                    raise MalformedResponse("the head of the response is malformed")
                if self._parsed.status >= 200:
                    break
        except HTTPException as problem:
            raise _malformed(problem) from problem
        self.status = self._parsed.status
        self.headers = Headers(self._parsed.getheaders())
        self._chunked = bool(self._parsed.chunked)
        self._left = self._content_length()
        """Bytes of the body to come; None for a body that the end of the connection or the last chunk ends."""
        if "Transfer-Encoding" in self.headers and not self._chunked:
            raise MalformedResponse("the response has an unsupported transfer encoding")
        bodiless = method == "HEAD" or self.status in (204, 304) or (method == "CONNECT" and self.status < 300)
        # A chunked body beside a length may be two bodies to a proxy on the way: such a connection is not reused.
        self._reusable = not self._parsed.will_close and not (self._chunked and self._left is not None)
        self._ended = bodiless or (self._left == 0 and not self._chunked)

    @property
    def reusable(self) -> bool:
        """Whether the body has been read to its end, and nothing follows it, so that another request can be sent."""
        if not (self._ended and self._reusable):
            return False
        self._socket.deadline = -math.inf
        return not self._buffered.peek()

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with the bytes that have arrived and return their number; 0 at the end only.

        Raises MalformedResponse and OSError for a body that is cut.
        """
        if self._ended:
            return 0
        self._socket.deadline = time.monotonic() + self._timeout
        if self._chunked:
            try:
                # Chunks are joined until the view is full: a large view would wait too long.
                count = self._parsed.readinto(view[:_CHUNKED_READ])
            except HTTPException as problem:
                raise _malformed(problem) from problem
            self._ended = not count
            return count
        left = self._left
        count = self._buffered.readinto1(view if left is None else view[:left])
        if left is None:
            self._ended = not count
        elif not count:
            raise MalformedResponse("the connection was closed")
        else:
            self._left = left - count
            self._ended = left == count
        return count

    def _content_length(self) -> int | None:
        text = self.headers.get("Content-Length")
        if text is None:
            return None
        # Programs differ in how they read two lengths; the same one twice is well-formed (RFC 9110, section 8.6).
        lengths = {one.strip() for one in text.split(",")}
        if len(lengths) > 1 or not all(_LENGTH.fullmatch(one) for one in lengths):
            raise InvalidInput("the response has a malformed Content-Length")
        return int(lengths.pop())


def _malformed(problem: HTTPException) -> MalformedResponse:
    if isinstance(problem, RemoteDisconnected | IncompleteRead):
        return MalformedResponse("the connection was closed")
    return MalformedResponse("the response is not HTTP")
