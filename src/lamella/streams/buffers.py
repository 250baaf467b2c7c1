# SPDX-License-Identifier: Apache-2.0
"""The uncompressed stream as a tar reader wants it: one full buffer after the other."""

from __future__ import annotations

import queue
from typing import BinaryIO, Final, Protocol

BUFFER_SIZE: Final = 1 << 20
"""Bytes of every buffer but the last of a stream; a multiple of tar's 512, so that no header straddles two."""

NOTHING: Final = memoryview(b"")


class Buffers(Protocol):
    """A stream that is given out in buffers, each full save the last."""

    def next_buffer(self) -> memoryview:
        """The next buffer, valid until the next call; empty at the end and from there on."""
        ...


class FileBuffers:
    """`Buffers` over an uncompressed file that is open already and stays the caller's."""

    __slots__ = ("_buffer", "_raw")

    def __init__(self, raw: BinaryIO, size: int = BUFFER_SIZE) -> None:
        self._raw = raw
        self._buffer = memoryview(bytearray(size))

    def next_buffer(self) -> memoryview:
        """The next buffer, valid until the next call; empty at the end and from there on."""
        buffer = self._buffer
        filled = 0
        while filled < len(buffer):
            chunk = self._raw.read(len(buffer) - filled)
            if not chunk:
                break
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return buffer[:filled]


class Ring(Protocol):
    """Where buffers of `BUFFER_SIZE` come from, and go back to when nobody looks into them any more."""

    def take(self) -> memoryview | None:
        """A buffer, waited for; None from when the ring is closed. Called by one thread at a time."""
        ...

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back."""
        ...

    def close(self) -> None:
        """Let go of whoever waits for a buffer. From any thread."""
        ...


class OwnRing:
    """At most ``count`` buffers, each made when it is first needed."""

    __slots__ = ("_closed", "_free", "_to_make")

    def __init__(self, count: int) -> None:
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._to_make = count
        self._closed = False

    def take(self) -> memoryview | None:
        try:
            buffer = self._free.get_nowait()
        except queue.Empty:
            if self._to_make and not self._closed:
                self._to_make -= 1
                return memoryview(bytearray(BUFFER_SIZE))
            buffer = self._free.get()
        return None if self._closed else buffer

    def give(self, buffer: memoryview) -> None:
        self._free.put(buffer)

    def close(self) -> None:
        self._closed = True
        self._free.put(None)
