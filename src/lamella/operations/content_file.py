# SPDX-License-Identifier: Apache-2.0
"""Stored content as a file object."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lamella.changes.model import Content, dense

if TYPE_CHECKING:
    from lamella.changes.model import Buffer


class ContentFile(io.RawIOBase):
    """Stored content as a raw file. Seeking back opens the content anew, since that is all that content promises."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._size = content.size
        self._position = 0
        self._rest: Iterator[Buffer] | None = None
        self._chunk = memoryview(b"")
        self._reached = 0
        """Where the chunk at hand begins."""

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; nothing is read before the next read."""
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._size
        if offset < 0:
            raise ValueError(f"negative position {offset}")
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        """At most one chunk of the content."""
        if self.closed:
            raise ValueError("read of a closed file")
        if self._rest is None or self._position < self._reached:
            self._rest, self._chunk, self._reached = iter(dense(self._content)), memoryview(b""), 0
        while self._position >= self._reached + len(self._chunk):
            following = next(self._rest, None)
            if following is None:
                return 0
            self._reached += len(self._chunk)
            self._chunk = memoryview(following).cast("B")
        part = self._chunk[self._position - self._reached :][: len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        """Let go of the content."""
        self._rest, self._chunk = None, memoryview(b"")
        super().close()
