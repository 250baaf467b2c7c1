# SPDX-License-Identifier: Apache-2.0
"""The files of a layer's folder, written: content as itself, or attributes and backup streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from lamella.changes.model import Buffer, Content, Windows, dense
from lamella.errors import InvalidInput, SizeMismatch
from lamella.formats import backup
from lamella.formats.ntfs import extended_attributes
from lamella.formats.ntfs.extended_attributes import ExtendedAttribute
from lamella.layers.windows_tar import EmptyData


def write_plain(
    file: int, content: Content, path: str, *, size: int | None = None, at: int = 0
) -> Sequence[tuple[int, int]] | None:
    """Write the content at the offset ``at`` of an open file; holes stay holes. The result is its extents.

    Raises SizeMismatch, OSError.
    """
    wanted = content.size if size is None else size
    extents = content.extents
    if extents is None:
        done = at
        for chunk in content.chunks():
            done += _write(file, chunk)
        if done - at != wanted:
            raise SizeMismatch(f"content of {path!r}", expected=wanted, actual=done - at)
        return None
    if content.size != wanted:
        raise SizeMismatch(f"content of {path!r}", expected=wanted, actual=content.size)
    starts = iter(extents)
    offset = left = 0
    for chunk in content.chunks():
        view = memoryview(chunk)
        while view:
            if not left:
                offset, left = next(starts)
                os.lseek(file, at + offset, os.SEEK_SET)
            part = view[:left]
            _write(file, part)
            left -= len(part)
            view = view[len(part) :]
    os.ftruncate(file, at + wanted)
    os.lseek(file, at + wanted, os.SEEK_SET)
    return tuple(extents)


def _write(file: int, chunk: Buffer) -> int:
    size = len(chunk)
    done = os.write(file, chunk)
    while done < size:
        done += os.write(file, memoryview(chunk)[done:])
    return size


class BackupStreams:
    """The backup streams of one file, given to ``write``; small ones by a single call."""

    __slots__ = ("_held", "_position", "_windows", "_write", "_writer", "extents")

    def __init__(self, write: Callable[[Buffer], object], windows: Windows) -> None:
        self._write = write
        self._windows = windows
        self._held: list[Buffer] = []
        self._position = 0
        self._writer = backup.BackupWriter(self._take)
        self.extents: Sequence[tuple[int, int]] | None = None
        """Of the content, where it has holes."""

    def head(self, content: Content | None, size: int, *, prefix: bytes = b"", sparse: bool = True) -> int | None:
        """``prefix``, then everything but alternate streams; where the content begins.

        With ``sparse``, holes in the content are left out as BackupRead leaves them; else they are zeros.
        """
        windows = self._windows
        if prefix:
            self._take(prefix)
        writer = self._writer
        if windows.security_descriptor:
            writer.small(backup.SECURITY_DATA, windows.security_descriptor)
        if windows.extended_attributes:
            writer.small(backup.EA_DATA, extended_attributes.encode(_attributes(windows.extended_attributes)))
        if windows.reparse is not None:
            writer.small(backup.REPARSE_DATA, windows.reparse)
        if content is None or (not size and type(content) is not EmptyData):
            return None
        if content.size != size:
            raise SizeMismatch("content", expected=size, actual=content.size)
        extents = content.extents
        if sparse and extents is not None and list(extents) != [(0, size)]:
            self.extents = tuple(extents)
            return self._sparse(content, size)
        writer.stream(backup.DATA, size)
        at = self._position
        for chunk in content.chunks() if extents is None else dense(content):
            writer.data(chunk)
            self.flush()
        writer.finish()
        return at

    def _sparse(self, content: Content, size: int) -> int:
        writer = self._writer
        assert self.extents is not None  # noqa: S101
        writer.stream(backup.DATA, 0, attributes=backup.SPARSE_ATTRIBUTE)
        at = self._position
        starts = iter(self.extents)
        left = 0
        for chunk in content.chunks():
            view = memoryview(chunk)
            while view:
                if not left:
                    offset, left = next(starts)
                    writer.stream(backup.SPARSE_BLOCK, left, offset=offset)
                part = view[:left]
                writer.data(part)
                self.flush()
                left -= len(part)
                view = view[len(part) :]
        writer.stream(backup.SPARSE_BLOCK, 0, offset=size)
        return at

    def alternate(self, name: str, content: Content) -> int:
        """An alternate data stream; where in the file its content begins."""
        self._writer.stream(backup.ALTERNATE_DATA, content.size, name=backup.stream_name(name))
        at = self._position
        for chunk in content.chunks() if content.extents is None else dense(content):
            self._writer.data(chunk)
            self.flush()
        self._writer.finish()
        return at

    def _take(self, chunk: Buffer) -> None:
        self._held.append(chunk)
        self._position += len(chunk)

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            self._write(self._held[0] if len(self._held) == 1 else b"".join(self._held))
            self._held.clear()


class Backup(BackupStreams):
    """One file of a transport folder. The file belongs to this, and is closed by `close`."""

    __slots__ = ("_file",)

    def __init__(self, file: int, windows: Windows) -> None:
        super().__init__(partial(_write, file), windows)
        self._file = file

    def close(self) -> None:
        """Write what is held, set the times, and close. Raises OSError."""
        try:
            self.flush()
            write = self._windows.write_time
            if write is not None:
                access = self._windows.access_time
                os.utime(self._file, ns=(write if access is None else access, write))
        finally:
            os.close(self._file)


def _attributes(attributes: Mapping[str, bytes]) -> list[ExtendedAttribute]:
    """In the order of their names: the tar has them so, and go-winio in any."""
    found = []
    for name in sorted(attributes):
        try:
            found.append(ExtendedAttribute(name.encode("utf-8", "surrogateescape"), attributes[name]))
        except UnicodeEncodeError as error:
            raise InvalidInput(f"malformed name of an extended attribute {name[:80]!r}: {error.reason}") from None
    return found
