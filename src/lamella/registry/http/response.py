# SPDX-License-Identifier: Apache-2.0
"""Answers of HTTP/1.1, read by the standard library, whose bodies go straight into a buffer of the caller's."""

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
_PIECE: Final = 16 << 10
_LENGTH: Final = re.compile("[0-9]{1,18}")
_FOLD: Final = re.compile(r"\r?\n[ \t]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class BrokenAnswer(Exception):
    """The answer ends too early, or is not HTTP; the message says which."""


class Headers(Mapping[str, str]):
    """The fields of a header by name in any case, those that are there more than once joined (RFC 9110, 5.3)."""

    __slots__ = ("_fields",)

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields: dict[str, str] = {}
        for name, raw in fields:
            # The line before goes on in one that begins with a space, as was once allowed.
            value = _FOLD.sub(" ", raw).strip(" \t")
            if _CONTROL.search(value):
                raise BrokenAnswer("the head of the answer is malformed")
            before = self._fields.get(name.lower())
            self._fields[name.lower()] = value if before is None else f"{before}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _Arriving(io.RawIOBase):
    """What arrives on a connection, until a time: the connection's own timeout begins anew with each byte."""

    def __init__(self, connected: Any) -> None:
        self._connected = connected
        self.until = math.inf
        self.closed_there = False
        """Whether the other end has said that it has no more."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.until < 0:  # no more is wanted
            return None
        if time.monotonic() > self.until:
            raise TimeoutError
        count: int = self._connected.recv_into(buffer)
        self.closed_there = not count
        return count


class _Buffered(io.BufferedReader):
    """What the standard library takes for the file of a socket; closing it leaves the connection open."""

    fills = True
    """Whether `readinto` waits until the buffer is full, rather than for something to be there."""
    rest = False
    """Once closed: whether something had arrived that nobody read."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(buffer) if self.fills else super().readinto1(buffer)

    def close(self) -> None:
        if not self.closed:
            cast("_Arriving", self.raw).until = -math.inf
            self.rest = bool(self.peek())
        super().close()

    def makefile(self, _: str) -> _Buffered:
        """The file of the socket for which this passes."""
        return self


class _Response(HTTPResponse):
    def flush(self) -> None:
        """Nothing: what it reads from may be closed before it, which Python 3.13 and later would tell of."""


class Answer:
    """An answer whose status and headers are there, and whose body is yet to come.

    Made by reading the head, which may take twice ``patience`` seconds. Raises BrokenAnswer, OSError, and InvalidInput
    for a length that could be read in two ways.
    """

    def __init__(self, connected: Any, method: str, patience: float) -> None:
        self._patience = patience
        self._arriving = _Arriving(connected)
        self._arriving.until = time.monotonic() + 2 * patience
        self._buffered = _Buffered(self._arriving, _BUFFER)
        try:
            while True:
                self._response = _Response(cast("Any", self._buffered), method=method)
                self._response.begin()
                if self._arriving.closed_there:
                    raise BrokenAnswer("the connection was closed")
                if self._response.headers.defects:
                    raise BrokenAnswer("the head of the answer is malformed")
                if self._response.status >= 200:
                    break
                self._response.fp = None  # type: ignore[assignment]  # or it would close what the next one reads
        except HTTPException as problem:
            raise _broken(problem) from problem
        self.status = self._response.status
        self.headers = Headers(self._response.getheaders())
        length, coding = self._length(), self.headers.get("Transfer-Encoding")
        if coding is not None and not self._response.chunked:
            raise BrokenAnswer("the answer is encoded in a way that nobody asked for")
        # Whoever states both lengths may mean another than those who stand between us.
        self._stays = not self._response.will_close and not (coding is not None and length is not None)
        self._buffered.fills = self._response.chunked
        if self._response.length is None and not self._response.chunked:
            self._response.length = length  # which is said twice
        self._ended = method == "HEAD" or self._response.length == 0 or (method == "CONNECT" and self.status < 300)

    @property
    def whole(self) -> bool:
        """Whether all of the answer has been read and nothing besides, so that the connection is good for another."""
        if self._ended:
            self._buffered.close()
        return self._ended and self._stays and not self._buffered.rest

    def readinto(self, view: memoryview) -> int:
        """Fill the start of ``view`` with what has arrived, and say how much that is; 0 at the end of the body alone.

        Raises BrokenAnswer and OSError where the body is cut.
        """
        if self._ended:
            return 0
        self._arriving.until = time.monotonic() + self._patience
        response = self._response
        try:
            # Chunks are put together until the view is full, so it must not be so large that it takes long.
            count = response.readinto(view[:_PIECE] if response.chunked else view)
        except HTTPException as problem:
            raise _broken(problem) from problem
        if not count and not response.chunked and response.length:
            raise BrokenAnswer("the connection was closed")
        self._ended = not count or response.length == 0
        return count

    def _length(self) -> int | None:
        text = self.headers.get("Content-Length")
        if text is None:
            return None
        # Two lengths, or one that is none, are read differently by different programs; the same twice is well-formed.
        lengths = {one.strip() for one in text.split(",")}
        if len(lengths) > 1 or not all(_LENGTH.fullmatch(one) for one in lengths):
            raise InvalidInput("the answer has a malformed Content-Length")
        return int(lengths.pop())


def _broken(problem: HTTPException) -> BrokenAnswer:
    if isinstance(problem, RemoteDisconnected | IncompleteRead):
        return BrokenAnswer("the connection was closed")
    return BrokenAnswer("the answer is not HTTP")
