# SPDX-License-Identifier: Apache-2.0
"""Reads 512-byte blocks from a stream of buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lamella.errors import FormatError
from lamella.formats.tar.fields import BLOCK, BLOCK_AT, DATA, STRUCTURE, ZEROS


class Blocks:
    """The reader's position in the stream: ``position`` in ``buffer``, whose first byte is at stream offset ``base``.

    ``next_buffer`` returns views whose length is a multiple of 512 bytes (except the last), and an empty view at the
    end. In the methods, ``header`` is the offset that errors name. All raise FormatError if the stream ends early.
    """

    __slots__ = ("_next_buffer", "base", "buffer", "position")

    def __init__(self, next_buffer: Callable[[], memoryview]) -> None:
        self._next_buffer = next_buffer
        self.buffer = memoryview(b"")
        self.base = 0
        self.position = 0

    @property
    def offset(self) -> int:
        """Stream offset of the position."""
        return self.base + self.position

    def refill(self) -> bool:
        """Switch to the next buffer; False at the end of the stream."""
        self.base += len(self.buffer)
        self.buffer = self._next_buffer()
        self.position = 0
        return len(self.buffer) > 0

    def seek(self, target: int, header: int) -> bool:
        """Move to the block at stream offset ``target``; False if the stream ends exactly there."""
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
        """The next block; None at the end of the stream."""
        if self.position + BLOCK > len(self.buffer) and not self.seek(self.offset, header):
            return None
        block: bytes = BLOCK_AT(self.buffer, self.position)[0]
        self.position += BLOCK
        return block

    def next(self, header: int) -> bytes:
        """The next block."""
        block = self.next_or_end(header)
        if block is None:
            raise FormatError(STRUCTURE, header, "truncated: the stream ends inside the member's headers")
        return block

    def take(self, count: int, header: int) -> Iterator[bytes]:
        """The next ``count`` blocks, read lazily."""
        for _ in range(count):
            yield self.next(header)

    def data(self, size: int, header: int) -> bytes:
        """The next ``size`` bytes; also skip the padding after them."""
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
        """Read the second zero block of the end marker and the rest of the stream."""
        block = self.next_or_end(header)
        if block is not None and block != ZEROS:
            raise FormatError(STRUCTURE, header, "a single zero block is followed by data")
        while block is not None and self.refill():
            pass
