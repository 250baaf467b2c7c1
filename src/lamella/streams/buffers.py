# SPDX-License-Identifier: Apache-2.0
"""Streams as a sequence of full buffers, and the rings that buffers come from."""

from __future__ import annotations

import queue
from typing import BinaryIO, Final, Protocol

BUFFER_SIZE: Final = 1 << 20
"""Bytes of each buffer except the last; a multiple of tar's 512, so that no header spans two buffers."""

NOTHING: Final = memoryview(b"")


class FileBuffers:
    """Reads an open uncompressed file in full buffers. The caller closes the file."""

    __slots__ = ("_buffer", "_raw")

    def __init__(self, raw: BinaryIO, size: int = BUFFER_SIZE) -> None:
        self._raw = raw
        self._buffer = memoryview(bytearray(size))

    def next_buffer(self) -> memoryview:
        """The next buffer, valid until the next call; empty at the end of the file."""
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
    """A pool of buffers of `BUFFER_SIZE` bytes."""

    def take(self) -> memoryview | None:
        """Wait for a buffer; None once the ring is closed. Called by one thread at a time."""
        ...

    def give(self, buffer: memoryview) -> None:
        """Return a buffer to the ring."""
        ...

    def close(self) -> None:
        """Wake threads that wait for a buffer. Callable from any thread."""
        ...


class OwnRing:
    """A ring of at most ``count`` buffers, allocated on demand."""

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
