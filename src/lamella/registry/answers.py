# SPDX-License-Identifier: Apache-2.0
"""Answers of HTTP/1.1 (RFC 9112), whose bodies go from the connection straight into a buffer of the caller's.

The standard library's client reads them as well, but takes longer to be imported than a small image to be copied.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lamella.errors import InvalidInput

_MAX_LINE: Final = 64 << 10
_MAX_HEAD: Final = 256 << 10
_MAX_FIELDS: Final = 256
_PIECE: Final = 16 << 10

_STATUS: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9]{2})(?: .*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH: Final = re.compile("[0-9]{1,18}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class BrokenAnswer(Exception):
    """The answer ends too early, or is not HTTP; the message says which."""


class Incoming:
    """What arrives on a connection, by lines or as it comes."""

    __slots__ = ("_buffer", "_connected")

    def __init__(self, connected: Any) -> None:
        self._connected = connected
        self._buffer = bytearray()

    def line(self, until: float) -> bytes:
        """The next line without its end. Raises BrokenAnswer, OSError; TimeoutError beyond ``until``."""
        buffer, seen = self._buffer, 0
        while (end := buffer.find(b"\n", seen)) < 0:
            seen = len(buffer)
            if seen > _MAX_LINE:
                raise BrokenAnswer("a line of the answer is too long")
            # The connection's own timeout begins anew with each byte that drips in.
            if time.monotonic() > until:
                raise TimeoutError
            arrived = self._connected.recv(_PIECE)
            if not arrived:
                raise BrokenAnswer("the connection was closed")
            buffer += arrived
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        return line.removesuffix(b"\r")

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what is at hand; 0 at the end of the connection. Raises OSError."""
        if not self._buffer:
            count: int = self._connected.recv_into(view)
            return count
        count = min(len(view), len(self._buffer))
        view[:count] = self._buffer[:count]
        del self._buffer[:count]
        return count

    @property
    def empty(self) -> bool:
        """Whether nothing has arrived that was not read."""
        return not self._buffer


class Headers(Mapping[str, str]):
    """The fields of a header by name in any case, those that are there more than once joined (RFC 9110, 5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields: dict[str, str] = {}
        for name, value in fields:
            before = self._fields.get(name.lower())
            self._fields[name.lower()] = value if before is None else f"{before}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class Answer:
    """An answer whose status and headers are there, and whose body is yet to come.

    Made by reading the head, which may take twice ``patience`` seconds. Raises BrokenAnswer, OSError, and InvalidInput
    for a length that could be read in two ways.
    """

    def __init__(self, incoming: Incoming, method: str, patience: float) -> None:
        self._incoming = incoming
        self._patience = patience
        self._read_head(2 * patience)
        self._left: int | None = None
        """Bytes that are left of the body, or of its chunk; None where the end of the connection ends it."""
        self._chunked = False
        self._ended = False
        tokens = [token.strip() for token in self.headers.get("Connection", "").lower().split(",")]
        self._stays = "close" not in tokens if self._version else "keep-alive" in tokens
        coding = self.headers.get("Transfer-Encoding", "").strip().lower()
        length = self._length()
        if method == "HEAD" or self.status in (204, 304) or (method == "CONNECT" and self.status < 300):
            self._ended = True
        elif coding:
            if coding != "chunked":
                raise BrokenAnswer("the answer is encoded in a way that nobody asked for")
            self._chunked = True
            # Whoever states both lengths may mean another than those who stand between us.
            self._stays = self._stays and length is None
        else:
            self._left = length
            self._ended = length == 0

    @property
    def whole(self) -> bool:
        """Whether all of the answer has been read and nothing besides, so that the connection is good for another."""
        return self._ended and self._stays and self._incoming.empty

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what has arrived, and say how much that is; 0 at the end of the body alone.

        Raises BrokenAnswer and OSError where the body is cut.
        """
        if self._ended:
            return 0
        if self._chunked and not self._left:
            self._left = self._next_chunk()
            if not self._left:
                self._ended = True
                return 0
        count = self._incoming.readinto(view if self._left is None else view[: self._left])
        if self._left is None:
            self._stays = False
            self._ended = not count
        elif not count:
            raise BrokenAnswer("the connection was closed")
        else:
            self._left -= count
            self._ended = not self._left and not self._chunked
        return count

    def _read_head(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            match = _STATUS.fullmatch(self._incoming.line(until))
            if match is None:
                raise BrokenAnswer("the answer is not HTTP")
            self._version, self.status = int(match[1]), int(match[2])
            self.headers = Headers(self._fields(until))
            if self.status >= 200:
                return

    def _fields(self, until: float) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        size = 0
        while line := self._incoming.line(until):
            size += len(line)
            match = _FIELD.fullmatch(line)
            if size > _MAX_HEAD or len(found) > _MAX_FIELDS:
                raise BrokenAnswer("the head of the answer is too long")
            if _CONTROL.search(line):
                raise BrokenAnswer("the head of the answer is malformed")
            if match is not None:
                found.append((match[1].decode("ascii"), match[2].decode("latin-1")))
            elif line[:1] in b" \t" and found:  # the line before goes on, as was once allowed
                name, value = found.pop()
                found.append((name, f"{value} {line.strip().decode('latin-1')}"))
            else:
                raise BrokenAnswer("the head of the answer is malformed")
        return found

    def _length(self) -> int | None:
        text = self.headers.get("Content-Length")
        if text is None:
            return None
        # Two lengths, or one that is none, are read differently by different programs; the same twice is well-formed.
        lengths = {one.strip() for one in text.split(",")}
        if len(lengths) > 1 or not all(_LENGTH.fullmatch(one) for one in lengths):
            raise InvalidInput("the answer has a malformed Content-Length")
        return int(lengths.pop())

    def _next_chunk(self) -> int:
        """The size of the next chunk; 0 for the last, behind which nothing is left."""
        until = time.monotonic() + self._patience
        if self._left == 0 and self._incoming.line(until):
            raise BrokenAnswer("a chunk of the answer does not end where it should")
        match = _CHUNK.fullmatch(self._incoming.line(until))
        if match is None:
            raise BrokenAnswer("the length of a chunk of the answer is malformed")
        size = int(match[1], 16)
        if not size:
            self._fields(until)
        return size
