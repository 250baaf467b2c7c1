# SPDX-License-Identifier: Apache-2.0
"""A stream of buffers as a stream of 512-byte blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from lamella.errors import FormatError
from lamella.formats.tar.fields import BLOCK, BLOCK_AT, ZEROS

STRUCTURE: Final = "tar header"
DATA: Final = "tar data"


class Blocks:
    """Where a reader stands: ``position`` in ``buffer``, whose first byte has the offset ``base`` in the stream.

    ``next_buffer`` gives views of a multiple of 512 bytes, but for the last, and an empty one at the end. In the
    methods, ``header`` is the offset that an error names. All raise FormatError where the stream ends too early.
    """

    __slots__ = ("_next_buffer", "base", "buffer", "position")

    def __init__(self, next_buffer: Callable[[], memoryview]) -> None:
        self._next_buffer = next_buffer
        self.buffer = memoryview(b"")
        self.base = 0
        self.position = 0

    @property
    def offset(self) -> int:
        """Of the position, in the stream."""
        return self.base + self.position

    def refill(self) -> bool:
        """Go on to the next buffer; False at the end of the stream."""
        self.base += len(self.buffer)
        self.buffer = self._next_buffer()
        self.position = 0
        return len(self.buffer) > 0

    def seek(self, target: int, header: int) -> bool:
        """Stand at the block at offset ``target``; False where the stream ends right there."""
        while True:
            left = self.base + len(self.buffer) - target
            if left >= BLOCK:
                self.position = target - self.base
                return True
            if left > 0:
                raise FormatError(STRUCTURE, target, f"truncated: {left} of {BLOCK} bytes")
            if not self.refill():
                if left == 0:
                    return False
                raise FormatError(DATA, header, f"truncated: the stream ends {-left} bytes early")

    def next_or_end(self, header: int) -> bytes | None:
        """The next block; None where the stream ends in its place."""
        if self.position + BLOCK > len(self.buffer) and not self.seek(self.offset, header):
            return None
        block: bytes = BLOCK_AT(self.buffer, self.position)[0]
        self.position += BLOCK
        return block

    def next(self, header: int) -> bytes:
        """The next block, which must be there."""
        block = self.next_or_end(header)
        if block is None:
            raise FormatError(STRUCTURE, header, "truncated: the stream ends inside the member's headers")
        return block

    def take(self, count: int, header: int) -> Iterator[bytes]:
        """The next ``count`` blocks, read as they are asked for."""
        for _ in range(count):
            yield self.next(header)

    def data(self, size: int, header: int) -> bytes:
        """The next ``size`` bytes; the padding after them is passed."""
        stop = self.position + size
        if stop <= len(self.buffer):
            data = bytes(self.buffer[self.position : stop])
            self.position = (stop + 511) & -BLOCK
            return data
        parts = []
        left = size
        while left:
            if self.position >= len(self.buffer) and not self.refill():
                raise FormatError(DATA, header, f"truncated: the stream ends {left} bytes early")
            part = bytes(self.buffer[self.position : self.position + left])
            self.position += len(part)
            left -= len(part)
            parts.append(part)
        self.position += -size & (BLOCK - 1)
        return b"".join(parts)

    def finish(self, header: int) -> None:
        """Take the second zero block of the end marker, and all that follows it."""
        block = self.next_or_end(header)
        if block is not None and block != ZEROS:
            raise FormatError(STRUCTURE, header, "a single zero block stands before further data")
        while block is not None and self.refill():
            pass
