# SPDX-License-Identifier: Apache-2.0
"""Tar archives of images, plain or compressed, whose members can be opened by name."""

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
"""Substitute for data that is skipped."""


class HeaderStream(Protocol):
    """The buffers of an archive for a tar reader; data that the reader skips may be replaced by zeros."""

    def next_buffer(self) -> memoryview:
        """The next part of the archive; empty at its end."""
        ...

    def skip_to(self, offset: int) -> None:
        """Allow zeros for the data between here and ``offset``."""
        ...


class ArchiveSource(Protocol):
    """The bytes of a tar archive: once in order, then by random access."""

    def stream(self) -> AbstractContextManager[HeaderStream]:
        """The whole archive, from the start."""
        ...

    def window(self, offset: int, size: int) -> BinaryIO:
        """A part of the archive as a file, usable after `close` too."""
        ...

    def close(self) -> None:
        """Release the file. May be called again."""
        ...


class PlainSource:
    """An uncompressed archive. Owns the file descriptor."""

    def __init__(self, file: int) -> None:
        self._file = file

    @contextmanager
    def stream(self) -> Iterator[HeaderStream]:
        yield _Headers(self._file)

    def window(self, offset: int, size: int) -> BinaryIO:
        return cast("BinaryIO", Window(os.dup(self._file), offset, size))

    def close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class CompressedSource:
    """An archive that is compressed as a whole. Owns the file descriptor."""

    def __init__(self, file: int) -> None:
        from lamella.streams.seekable import SeekableBlob

        self._file = file
        self._blob = SeekableBlob(self._open)
        self._lock = threading.Lock()
        self._users = 1  # the archive itself, then its windows
        self._closed = False

    @contextmanager
    def stream(self) -> Iterator[HeaderStream]:
        from lamella.streams.blob_reader import BlobReader

        with self._open() as file, BlobReader(file, hash_blob=False, hash_stream=False) as reader:
            yield _Sequential(reader.next_buffer)
            reader.finish()

    def window(self, offset: int, size: int) -> BinaryIO:
        with self._lock:
            self._users += 1
        return cast("BinaryIO", StreamWindow(lambda at: self._blob.chunks(offset + at, size - at), size, self._leave))

    def close(self) -> None:
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
        pass  # compressed data cannot be skipped


class _Positioned(io.RawIOBase):
    """A seekable file of a known size."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        left = self._size - self._position
        view = memoryview(buffer).cast("B")[: max(left, 0)]
        count = self._fill(view) if view else 0
        self._position += count
        return count

    def _fill(self, view: memoryview) -> int:
        """Read at least one byte at the position into a view that is not empty."""
        raise NotImplementedError


class Window(_Positioned):
    """A part of a file. Owns the file descriptor, and shares no position with others."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        super().__init__(size)
        self._descriptor = descriptor
        self._offset = offset

    def _fill(self, view: memoryview) -> int:
        return os.preadv(self._descriptor, [view], self._offset + self._position)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


class StreamWindow(_Positioned):
    """A part of a stream that can be read from any position on; ``leave`` is called once, by `close`."""

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
        if not self.closed:
            self._chunks = None
            self._leave()
        super().close()


MAX_MEMBERS: Final = 100_000
"""Members of one archive; an image has a few for each of its layers."""

MAX_LINKS: Final = 8
"""Links from one member to the next that are followed."""

_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


class _Member(Struct, frozen=True):
    kind: str
    """The typeflag."""
    offset: int
    size: int
    target: str
    """Of a link."""
    sparse: bool


class Archive:
    """A tar archive, plain or compressed as a whole, indexed by name when it is opened.

    Opening a plain archive reads only the headers. Links are followed only inside the archive. A name that occurs twice
    with two contents is refused when it is used, since readers would disagree. ``cancel`` ends the indexing and
    `sha256`. Usable from several threads.
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
        """Close the archive; open files stay usable."""
        self._source.close()

    def __contains__(self, path: str) -> bool:
        return path in self._members

    def open(self, path: LayerPath) -> tuple[BinaryIO, int]:
        """Open the regular file at ``path``, links followed. Returns it with its size.

        Raises NotFound, InvalidInput, Unsupported.
        """
        member = self._unambiguous(path)
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
            member = self._unambiguous(path)
        else:
            raise InvalidInput(f"{self.where}: {path}: more than {MAX_LINKS} links from name to name")
        if member.sparse:
            raise Unsupported(f"{self.where}: {path} is stored as a sparse file")
        return self._source.window(member.offset, member.size), member.size

    def _unambiguous(self, path: str) -> _Member:
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
    """Open the OCI layout in the archive at ``path``. Raises InvalidInput, NotFound, Unsupported, Exhausted."""
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
