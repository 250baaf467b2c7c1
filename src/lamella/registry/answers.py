# SPDX-License-Identifier: Apache-2.0
"""Answers of HTTP/1.1 (RFC 9112), whose bodies go from the connection straight into a buffer of the caller's.

What could be read in two ways is refused, since whoever stands between us and the server may read it in the other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from lamella.errors import InvalidInput

_BUFFER: Final = 64 << 10
"""Bytes that are read at once where lines are looked for, and so the longest line."""

_HEAD: Final = 256 << 10
_FIELDS: Final = 100

_DIGITS: Final = 18
"""Of a number that says how much is to come."""

_HEX: Final = b"0123456789abcdefABCDEF"
_NAME: Final = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_VERSIONS: Final = (b"HTTP/1.0 ", b"HTTP/1.1 ")
_BODILESS: Final = (204, 304)

_CLOSED: Final = "the connection was closed"
_NOT_HTTP: Final = "the answer is not HTTP"
_MALFORMED: Final = "the head of the answer is malformed"


class BrokenAnswer(Exception):
    """The answer ends too early, or is not HTTP; the message says which."""


def is_field(name: str, value: str) -> bool:
    """Whether a field of a header may have that name and that value (RFC 9110, 5.1 and 5.5)."""
    return name != "" and not name.strip(_NAME) and not _CONTROL.search(value)


class Headers(Mapping[str, str]):
    """The fields of a header by name in any case, those that are there more than once joined (RFC 9110, 5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields: dict[str, str] = {}
        for name, value in fields:
            if not is_field(name, value):
                raise BrokenAnswer(_MALFORMED)
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

    def __init__(self, connected: Any, method: str, patience: float) -> None:
        self._connected = connected
        self._patience = patience
        # The connection's own timeout begins anew with each byte.
        self._until = time.monotonic() + 2 * patience
        self._buffer = bytearray(_BUFFER)
        self._at = self._filled = 0
        while True:
            current, self.status, self.headers = self._head()
            if self.status < 100:
                raise BrokenAnswer(_NOT_HTTP)
            if self.status >= 200:
                break
        length, coding = self._length(), self.headers.get("Transfer-Encoding")
        if coding is not None and coding.lower() != "chunked":
            raise BrokenAnswer("the answer is encoded in a way that nobody asked for")
        self._chunked = coding is not None
        self._between = self._last = False
        """Whether a chunk has been read and not yet what ends it; whether the last one has."""
        self._left = 0 if self._chunked else length
        """Bytes of the body, or of the chunk, that are yet to come; None where the connection's end is that of both."""
        self._ended = (
            method == "HEAD"
            or self.status in _BODILESS
            or (length == 0 and not self._chunked)
            or (method == "CONNECT" and self.status < 300)
        )
        wishes = {wish.strip().lower() for wish in self.headers.get("Connection", "").split(",")}
        stays = "close" not in wishes if current else "keep-alive" in wishes
        ends = self._ended or self._chunked or length is not None
        # Whoever states both lengths may mean another than those who stand between us.
        self._stays = stays and ends and not (self._chunked and length is not None)

    @property
    def whole(self) -> bool:
        """Whether all of the answer has been read and nothing besides, so that the connection is good for another."""
        return self._ended and self._stays and self._at == self._filled

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what has arrived, and say how much that is; 0 at the end of the body alone.

        Raises BrokenAnswer and OSError where the body is cut.
        """
        if self._ended:
            return 0
        self._until = time.monotonic() + self._patience
        if self._chunked:
            return self._chunks(view)
        if self._left is not None:
            view = view[: self._left]
        count = self._taken(view) or self._received(view)
        if self._left is not None:
            if not count:
                raise BrokenAnswer(_CLOSED)
            self._left -= count
        self._ended = not (count if self._left is None else self._left)
        return count

    def _chunks(self, view: memoryview) -> int:
        """What of the chunks is at hand, at least something unless they have ended."""
        got = 0
        while got < len(view):
            if not self._left:
                # What has come is not kept waiting for lines that have not.
                if got and self._buffer.count(b"\n", self._at, self._filled) < 1 + self._between:
                    break
                if not self._last:
                    self._next_chunk()
                if self._last:
                    if not got:
                        self._trailers()
                    break
            assert self._left is not None  # noqa: S101 chunks have lengths
            part = view[got : got + self._left]
            count = self._taken(part)
            if not count:
                if got:
                    break
                count = self._received(part)
                if not count:
                    raise BrokenAnswer(_CLOSED)
            got += count
            self._left -= count
        return got

    def _next_chunk(self) -> None:
        if self._between and self._line():
            raise BrokenAnswer(_NOT_HTTP)
        size = self._line().partition(b";")[0].rstrip(b" \t")
        if not 0 < len(size) <= _DIGITS or size.strip(_HEX):
            raise BrokenAnswer(_NOT_HTTP)
        self._left = int(size, 16)
        self._between = bool(self._left)
        self._last = not self._left

    def _trailers(self) -> None:
        """Pass over the fields behind the last chunk, which nobody needs."""
        for _ in range(_FIELDS):
            if not self._line():
                self._ended = True
                return
        raise BrokenAnswer(_NOT_HTTP)

    def _head(self) -> tuple[bool, int, Headers]:
        """Whether the version is 1.1, the status and the fields of one head."""
        line = self._line()
        start, status, rest = line[:9], line[9:12], line[12:13]
        if start not in _VERSIONS or not (status.isdigit() and len(status) == 3) or rest not in (b"", b" "):
            raise BrokenAnswer(_NOT_HTTP)
        fields: list[tuple[str, str]] = []
        size = len(line)
        while line := self._line():
            size += len(line)
            if size > _HEAD or len(fields) >= _FIELDS:
                raise BrokenAnswer(_MALFORMED)
            text = line.decode("latin-1")
            if text[0] in " \t":  # the line before goes on, as was once allowed
                if not fields:
                    raise BrokenAnswer(_MALFORMED)
                name, before = fields[-1]
                fields[-1] = (name, " ".join((before, text.strip(" \t"))).strip(" \t"))
                continue
            name, colon, value = text.partition(":")
            if not colon:
                raise BrokenAnswer(_MALFORMED)
            fields.append((name, value.strip(" \t")))
        return start == _VERSIONS[1], int(status), Headers(fields)

    def _line(self) -> bytes:
        """The next line without its end."""
        while (end := self._buffer.find(b"\n", self._at, self._filled)) < 0:
            if self._at:
                rest = self._filled - self._at
                self._buffer[:rest] = self._buffer[self._at : self._filled]
                self._at, self._filled = 0, rest
            if self._filled == _BUFFER:
                raise BrokenAnswer(_MALFORMED)
            count = self._received(memoryview(self._buffer)[self._filled :])
            if not count:
                raise BrokenAnswer(_CLOSED)
            self._filled += count
        line = bytes(self._buffer[self._at : end])
        self._at = end + 1
        return line.removesuffix(b"\r")

    def _taken(self, view: memoryview) -> int:
        """What has arrived behind the lines that were looked for."""
        count = min(len(view), self._filled - self._at)
        if count:
            view[:count] = self._buffer[self._at : self._at + count]
            self._at += count
        return count

    def _received(self, view: memoryview) -> int:
        """What arrives; 0 where the other end has no more."""
        if time.monotonic() > self._until:
            raise TimeoutError
        count: int = self._connected.recv_into(view)
        return count

    def _length(self) -> int | None:
        text = self.headers.get("Content-Length")
        if text is None:
            return None
        # Two lengths, or one that is none, are read differently by different programs; the same twice is well-formed.
        lengths = {one.strip() for one in text.split(",")}
        if len(lengths) > 1 or not all(map(_is_number, lengths)):
            raise InvalidInput("the answer has a malformed Content-Length")
        return int(lengths.pop())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS
