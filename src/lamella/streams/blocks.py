# SPDX-License-Identifier: Apache-2.0
"""The uncompressed stream as a tar reader wants it: one full buffer after the other."""

from __future__ import annotations

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
