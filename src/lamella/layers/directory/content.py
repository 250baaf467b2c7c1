# SPDX-License-Identifier: Apache-2.0
"""Content of files on disk, read and written. A file that changes while it is read raises Conflict."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

from lamella.changes.model import Buffer, Content
from lamella.errors import Conflict, Denied, LamellaError, SizeMismatch, from_os
from lamella.host import file_io


def write_rest(file: int, chunk: bytes | bytearray | memoryview, done: int) -> None:
    """Write the rest of ``chunk`` after a short write of ``done`` bytes."""
    view = memoryview(chunk)
    while done < len(view):
        done += os.write(file, view[done:])


def write_sparse(file: int, content: Content, path: str) -> None:
    """Write content with holes. Raises SizeMismatch if its data does not fill its extents."""
    extents = content.extents or ()
    wanted = sum(length for _, length in extents)
    written = left = 0
    places = iter(extents)
    for chunk in content.chunks():
        view = memoryview(chunk)
        while view:
            if not left:
                place = next(places, None)
                if place is None:
                    raise SizeMismatch(f"content of {path!r}", expected=wanted, actual="more")
                offset, left = place
                os.lseek(file, offset, os.SEEK_SET)
                continue
            done = os.write(file, view[:left])
            left -= done
            written += done
            view = view[done:]
    if written != wanted:
        raise SizeMismatch(f"content of {path!r}", expected=wanted, actual=written)
    os.ftruncate(file, content.size)


OpenDirectory: TypeAlias = Callable[[str], int]
"""Opens a directory by its canonical path, without following links; the descriptor is valid until the next call."""

Facts: TypeAlias = tuple[int, int, int, int, bool]
"""Facts of a regular file: size, mtime in ns, inode, device, and whether it may have holes."""

REPLACED: Final = frozenset((errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EAGAIN, errno.EISDIR))
"""Errors of opening a file that was a regular file when it was listed and has been replaced or removed."""
_AT_ONCE: Final = 256 << 10
"""Largest file that is read by one call, in bytes; also the step through larger files in a comparison."""
_STEP: Final = 128 << 10
"""Bytes of a step through a larger file: few enough to be in the processor's cache when they are used."""


class FileOnDisk:
    """The content of a regular file as it was when its directory was listed; each read opens the file.

    Raises Conflict if the file has been replaced or its size or modification time has changed: before the first byte or
    after the last, always before the iteration completes.
    """

    __slots__ = ("_extents", "_open_directory", "facts", "path", "size")

    def __init__(self, open_directory: OpenDirectory, path: str, facts: Facts) -> None:
        self._open_directory = open_directory
        self.path = path
        self.facts = facts
        self.size = facts[0]
        self._extents: tuple[tuple[int, int], ...] | None = None

    @property
    def stored(self) -> Literal[True]:
        return True

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        if not self.facts[4]:
            return None
        if self._extents is None:
            file = self.open()
            try:
                self._extents = tuple(data_extents(file, self.size))
                self.check(file)
            except OSError as error:
                raise self.failure(error) from error
            finally:
                os.close(file)
        return None if self._extents == ((0, self.size),) else self._extents

    def chunks(self) -> Iterable[Buffer]:
        facts = self.facts
        if facts[0] > _AT_ONCE or facts[4]:
            return self._steps()
        return (self.read_all(),) if facts[0] else ()

    def read_all(self) -> bytes:
        """Read a small file, by as few calls as possible."""
        size, mtime, inode, device, _ = self.facts
        parent, _, name = self.path.rpartition("/")
        directory = self._open_directory(parent)
        try:
            file = os.open(name, file_io.READ_FILE, dir_fd=directory)
            try:
                # One byte more than expected shows a file that has grown.
                content = os.read(file, size + 1)
                while len(content) < size and (more := os.read(file, size - len(content))):
                    content += more
                status = os.fstat(file)
            finally:
                os.close(file)
        except OSError as error:
            raise self.failure(error) from error
        if (
            len(content) != size
            or status[6] != size
            or status.st_mtime_ns != mtime
            or status[1] != inode
            or status[2] != device
        ):
            raise changed(self.path)
        return content

    def _steps(self) -> Iterator[Buffer]:
        extents = self.extents
        ranges = ((0, self.size),) if extents is None else extents
        file = self.open()
        try:
            self.check(file)
            # One buffer for each reader: two readers of one file may alternate.
            buffer = memoryview(bytearray(min(_STEP, self.size)))
            for offset, length in ranges:
                while length:
                    part = buffer[:length]
                    done = os.preadv(file, (part,), offset)
                    if not done:
                        raise changed(self.path)
                    yield buffer[:done]
                    offset += done
                    length -= done
            self.check(file)
        except OSError as error:
            raise self.failure(error) from error
        finally:
            os.close(file)

    def open(self) -> int:
        """Open the file; the caller closes the descriptor. Raises Conflict, Denied."""
        parent, _, name = self.path.rpartition("/")
        try:
            return os.open(name, file_io.READ_FILE, dir_fd=self._open_directory(parent))
        except OSError as error:
            raise self.failure(error) from error

    def check(self, file: int) -> None:
        """Raise Conflict unless the open ``file`` has the facts of the listing."""
        status = os.fstat(file)
        size, mtime, inode, device, _ = self.facts
        # The type of an inode never changes, so an equal inode is still a regular file.
        if status[6] != size or status.st_mtime_ns != mtime or status[1] != inode or status[2] != device:
            raise changed(self.path)

    def failure(self, error: OSError) -> LamellaError:
        """The error for a failed system call on the file."""
        if error.errno in REPLACED:
            return changed(self.path)
        if isinstance(error, PermissionError):
            return Denied(f"read {self.path!r}: {error.strerror}", hint="its owner or root can read it")
        return from_os(error, f"read {self.path!r}")


def changed(path: str) -> Conflict:
    """The error of a file that changed while it was read."""
    return Conflict(
        f"{path!r} changed while it was read", hint="stop what writes to the tree, or read a snapshot of it"
    )


def data_extents(file: int, size: int) -> Iterator[tuple[int, int]]:
    """The extents of an open file of ``size`` bytes (SEEK_DATA); one extent if the file system does not report holes.

    Raises OSError; ENXIO if the file became shorter.
    """
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            if error.errno == errno.EINVAL:  # this file system does not report holes
                yield (at, size - at)
                return
            raise
        if start >= size:
            return
        at = min(os.lseek(file, start, os.SEEK_HOLE), size)
        yield (start, at - start)


def same_bytes(one: FileOnDisk, other: FileOnDisk) -> bool:
    """Whether two files have the same content; if both have holes, only their data is read."""
    if one.size != other.size:
        return False
    if not one.size or one.facts[2:4] == other.facts[2:4]:
        return True
    if one.size <= _AT_ONCE:
        return one.read_all() == other.read_all()
    ranges: Sequence[tuple[int, int]] = ((0, one.size),)
    if one.facts[4] and other.facts[4]:
        first_extents, second_extents = one.extents, other.extents
        if first_extents is not None and second_extents is not None:
            ranges = _union(first_extents, second_extents)
    first = second = -1
    try:
        first, second = one.open(), other.open()
        same = _same_ranges(first, second, ranges)
        one.check(first)
        other.check(second)
    except OSError as error:
        raise one.failure(error) from error
    finally:
        for file in (first, second):
            if file >= 0:
                os.close(file)
    return same


def _same_ranges(first: int, second: int, ranges: Iterable[tuple[int, int]]) -> bool:
    for offset, length in ranges:
        end = offset + length
        while offset < end:
            step = min(_AT_ONCE, end - offset)
            part = os.pread(first, step, offset)
            if not part or part != os.pread(second, len(part), offset):
                return False
            offset += len(part)
    return True


def _union(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for offset, length in sorted((*one, *other)):
        if merged and offset <= sum(merged[-1]):
            start, known = merged[-1]
            merged[-1] = (start, max(known, offset + length - start))
        else:
            merged.append((offset, length))
    return tuple(merged)
