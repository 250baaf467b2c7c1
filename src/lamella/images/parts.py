# SPDX-License-Identifier: Apache-2.0
"""Parts of a file, or of what a compressed file holds, as files of their own."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from lamella.images.contract import Buffer

_BLOCK: Final = 512
_HEADERS: Final = 32 << 10
"""Bytes read at a time where only headers matter."""

_SKIPPED: Final = memoryview(bytes(1 << 20))
"""Stands for bytes that are passed over."""


class HeaderStream(Protocol):
    """Gives a tar reader its buffers, and may give anything in place of data that nobody will look at."""

    def next_buffer(self) -> memoryview:
        """The next part of the archive; empty at its end."""
        ...

    def skip_to(self, offset: int) -> None:
        """Nobody looks at what lies before ``offset`` and has not been given yet."""
        ...


class ArchiveSource(Protocol):
    """The bytes of a tar archive: once in order, then any part of them."""

    def stream(self) -> AbstractContextManager[HeaderStream]:
        """All of it, from the start."""
        ...

    def window(self, offset: int, size: int) -> BinaryIO:
        """A part of it, good even after `close`."""
        ...

    def close(self) -> None:
        """Let go. May be called again."""
        ...


class PlainSource:
    """An archive that is not compressed. Owns the descriptor it is given."""

    def __init__(self, file: int) -> None:
        self._file = file

    @contextmanager
    def stream(self) -> Iterator[HeaderStream]:
        """The headers; data is passed over without being read."""
        yield _Headers(self._file)

    def window(self, offset: int, size: int) -> BinaryIO:
        """A part of the file."""
        return cast("BinaryIO", Window(os.dup(self._file), offset, size))

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class CompressedSource:
    """An archive that is compressed as a whole. Owns the descriptor it is given."""

    def __init__(self, file: int) -> None:
        from lamella.streams.seekable import SeekableBlob

        self._file = file
        self._blob = SeekableBlob(self._open)
        self._lock = threading.Lock()
        self._users = 1  # the archive itself, then its windows
        self._closed = False

    @contextmanager
    def stream(self) -> Iterator[HeaderStream]:
        """All of it, decompressed, and checked at its end."""
        from lamella.streams.reading import BlobReader

        with self._open() as file, BlobReader(file, hash_blob=False, hash_stream=False) as reader:
            yield _Sequential(reader.next_buffer)
            reader.finish()

    def window(self, offset: int, size: int) -> BinaryIO:
        """A part of what the file holds."""
        with self._lock:
            self._users += 1
        return cast("BinaryIO", StreamWindow(lambda at: self._blob.chunks(offset + at, size - at), size, self._leave))

    def close(self) -> None:
        """Let go, as soon as no window is open."""
        if not self._closed:
            self._closed = True
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._blob.close()
            os.close(self._file)

    def _open(self) -> BinaryIO:
        return cast("BinaryIO", Window(os.dup(self._file), 0, os.fstat(self._file).st_size))


class _Headers:
    def __init__(self, file: int) -> None:
        self._file = file
        self._size = os.fstat(file).st_size
        self._at = 0
        self._skip = 0

    def skip_to(self, offset: int) -> None:
        self._skip = min(offset & -_BLOCK, self._size)

    def next_buffer(self) -> memoryview:
        skip = self._skip - self._at
        if skip > 0:
            self._at += min(skip, len(_SKIPPED))
            return _SKIPPED[:skip]
        got = os.pread(self._file, _HEADERS, self._at)
        self._at += len(got)
        return memoryview(got)


class _Sequential:
    def __init__(self, next_buffer: Callable[[], memoryview]) -> None:
        self.next_buffer = next_buffer

    def skip_to(self, offset: int) -> None:
        """There is no way past compressed bytes."""


class _Positioned(io.RawIOBase):
    """A file of a known size that can be read and sought in."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the window."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position in the window."""
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read what fits of what is left."""
        left = self._size - self._position
        view = memoryview(buffer).cast("B")[: max(left, 0)]
        count = self._fill(view) if view else 0
        self._position += count
        return count

    def _fill(self, view: memoryview) -> int:
        """Read something, at the position, into a view that is not empty."""
        raise NotImplementedError


class Window(_Positioned):
    """A part of a file. Owns the descriptor it is given, and shares no position with others."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        super().__init__(size)
        self._descriptor = descriptor
        self._offset = offset

    def _fill(self, view: memoryview) -> int:
        return os.preadv(self._descriptor, [view], self._offset + self._position)

    def close(self) -> None:
        """Close the window and its descriptor."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class StreamWindow(_Positioned):
    """A part of a stream that can be read from any position on; ``closed`` is called once, at the end."""

    def __init__(self, chunks: Callable[[int], Iterator[Buffer]], size: int, leave: Callable[[], None]) -> None:
        super().__init__(size)
        self._chunks_from = chunks
        self._chunks: Iterator[Buffer] | None = None
        self._chunk = memoryview(b"")
        self._next = 0
        self._leave = leave

    def _fill(self, view: memoryview) -> int:
        if self._chunks is None or self._next != self._position:
            self._chunks, self._chunk = self._chunks_from(self._position), memoryview(b"")
        if not self._chunk:
            self._chunk = memoryview(next(self._chunks, b""))
        count = min(len(view), len(self._chunk))
        view[:count] = self._chunk[:count]
        self._chunk = self._chunk[count:]
        self._next = self._position + count
        return count

    def close(self) -> None:
        """Let go of the stream."""
        if not self.closed:
            self._chunks = None
            self._leave()
        super().close()
