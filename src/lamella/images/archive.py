# SPDX-License-Identifier: Apache-2.0
"""Parts of a file, or of what a compressed file holds, as files of their own."""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol, cast

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import Exhausted, FormatError, InvalidInput, LamellaError, NotFound, Unsupported, from_os
from lamella.host import file_io
from lamella.paths import LayerPath, parse_path

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from lamella.images.contract import Buffer
    from lamella.images.layout import LayoutReader
    from lamella.progress import Cancellation

_BLOCK: Final = 512
_HEADERS: Final = 32 << 10
"""Bytes read at a time where only headers matter."""

_CHUNK: Final = 1 << 20

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
        from lamella.streams.blob_reader import BlobReader

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


MAX_MEMBERS: Final = 100_000
"""Members of one archive; an image has a few for each of its layers."""

MAX_LINKS: Final = 8
"""Links from one name to the file it means."""

_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


class _Member(Struct, frozen=True):
    kind: str
    """The typeflag."""
    offset: int
    size: int
    target: str
    """What a link says."""
    sparse: bool


class Archive:
    """A tar archive, plain or compressed as a whole, indexed by name when it is opened.

    Of a plain one only the headers are read then. Links are followed inside the archive alone. A name that is there
    twice with two contents is refused when it is used, since readers would differ about it. Usable from several
    threads.
    """

    def __init__(self, path: str, where: str, cancel: Cancellation | None = None) -> None:
        self.where = where
        self._cancel = cancel
        self._source = _open_source(path, where)
        self.plain_files = isinstance(self._source, PlainSource)
        try:
            self._members = self._index()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the archive; windows that are open stay so."""
        self._source.close()

    def __contains__(self, path: str) -> bool:
        return path in self._members

    def open(self, path: LayerPath) -> tuple[BinaryIO, int]:
        """The regular file at ``path``, links followed, and its size. Raises NotFound, InvalidInput, Unsupported."""
        member = self._only(path)
        for _ in range(MAX_LINKS):
            if member.kind == "0":
                break
            if member.kind == "1":
                goal = member.target
            elif member.kind == "2":
                if member.target.startswith("/"):
                    raise InvalidInput(f"{self.where}: {path} is a link to {member.target[:200]!r}, out of the archive")
                goal = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.target))
            else:
                raise InvalidInput(f"{self.where}: {path} is not a regular file")
            try:
                path = parse_path(goal)
            except InvalidInput as problem:
                raise InvalidInput(f"{self.where}: {path} is a link out of the archive: {problem}") from None
            member = self._only(path)
        else:
            raise InvalidInput(f"{self.where}: {path}: more than {MAX_LINKS} links from name to name")
        if member.sparse:
            raise Unsupported(f"{self.where}: {path} is stored as a sparse file")
        return self._source.window(member.offset, member.size), member.size

    def _only(self, path: str) -> _Member:
        found = self._members.get(path)
        if not found:
            raise NotFound(f"{self.where}: {path[:300]} is not there")
        first = found[0]
        for other in found[1:]:
            if (other.kind, other.size, other.target) != (first.kind, first.size, first.target) or (
                first.kind == "0" and self._hash(other) != self._hash(first)
            ):
                raise InvalidInput(f"{self.where}: {path[:300]} is there twice, and the two differ")
        return first

    def _hash(self, member: _Member) -> Digest:
        return self._sha256(self._source.window(member.offset, member.size))

    def sha256(self, path: LayerPath) -> Digest:
        """The digest of the regular file at ``path``. Raises as `open`; Cancelled."""
        return self._sha256(self.open(path)[0])

    def _sha256(self, file: BinaryIO) -> Digest:
        state = hashlib.sha256()
        with file:
            while chunk := file.read(_CHUNK):
                self._check()
                state.update(chunk)
        return Digest.finish(state)

    def _check(self) -> None:
        if self._cancel is not None:
            self._cancel.check()

    def _buffers(self, stream: HeaderStream) -> Callable[[], memoryview]:
        def next_buffer() -> memoryview:
            self._check()
            return stream.next_buffer()

        return next_buffer

    def _index(self) -> dict[str, list[_Member]]:
        from lamella.formats.tar.reader import TarReader

        members: dict[str, list[_Member]] = {}
        count = 0
        try:
            with self._source.stream() as stream:
                for member in TarReader(self._buffers(stream), facet=_no_facet):
                    stream.skip_to(member.data_offset + member.stored_size)
                    count += 1
                    if count > MAX_MEMBERS:
                        raise Exhausted(f"{self.where}: more than {MAX_MEMBERS} members")
                    if member.typeflag == "5":
                        continue
                    found = _Member(
                        member.typeflag, member.data_offset, member.size, member.linkname, member.extents is not None
                    )
                    members.setdefault(parse_path(member.name), []).append(found)
        except FormatError as problem:
            raise InvalidInput(f"{self.where}: not a tar archive, or a damaged one: {problem}") from problem
        except InvalidInput as problem:
            raise InvalidInput(f"{self.where}: {problem}") from problem
        return members


def open_oci_archive(path: str) -> LayoutReader:
    """A reader of the OCI layout in the archive at ``path``."""
    from lamella.images.layout import LayoutReader

    archive = Archive(path, f"oci-archive:{path}")
    try:
        return LayoutReader(archive)
    except BaseException as problem:
        archive.close()
        if isinstance(problem, LamellaError) and "manifest.json" in archive:
            problem.hint = problem.hint or f"it looks like docker-archive:{path}"
        raise


def _open_source(path: str, where: str) -> ArchiveSource:
    try:
        file = os.open(path, os.O_RDONLY | file_io.O_NONBLOCK | file_io.O_CLOEXEC)
    except OSError as problem:
        raise from_os(problem, f"open the archive {path!r}") from problem
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InvalidInput(f"the archive {path!r} is not a regular file")
        start = os.pread(file, 6, 0)
        if start.startswith(_COMPRESSED):
            return CompressedSource(file)
        for magic, name in _OTHERS.items():
            if start.startswith(magic):
                raise Unsupported(f"{where}: the archive is compressed with {name}", hint="decompress it first")
        return PlainSource(file)
    except BaseException:
        os.close(file)
        raise


def _no_facet(_mode: int, _uid: int, _gid: int, _mtime: int) -> None:
    return None
