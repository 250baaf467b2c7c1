# SPDX-License-Identifier: Apache-2.0
"""Writes a new EROFS image: contents as they arrive, metadata at the end, then the name."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from lamella.changes.losses import Loss, Losses
from lamella.changes.model import TYPE_BITS, Buffer, Content, Entry, Kind, Posix
from lamella.errors import AlreadyExists, InvalidInput, from_os
from lamella.formats.erofs.structures import (
    MAX_ID,
    MAX_NAME,
    MAX_TARGET,
    MAX_TIME,
    MAX_XATTRS,
    encode_device,
    pack_xattrs,
    split_prefix,
)
from lamella.formats.erofs.writer import BLOCK, ErofsWriter, NewInode, Placed
from lamella.host import file_io
from lamella.host.durability import outputs_are_durable, sync_directory
from lamella.layers.erofs.tree import OVERLAY_XATTRS
from lamella.times import SECOND

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | file_io.O_NOFOLLOW | file_io.O_CLOEXEC | file_io.O_BINARY
_NO_CHILDREN: Final[dict[bytes, NewInode]] = {}
_PENDING: Final = 1 << 20
"""Bytes of tails that are buffered."""


class _Tails:
    """The tails of contents beyond whole blocks, in an unnamed file until they are stored inline after their inodes."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0, prefix=".lamella-")  # noqa: SIM115
        self._pending = bytearray()
        self._written = 0

    def spill(self, offset: int, data: Buffer) -> None:
        """Append ``data``."""
        del offset
        self._pending += data
        if len(self._pending) >= _PENDING:
            self._flush()

    def _flush(self) -> None:
        _write(self._file.fileno(), self._written, self._pending)
        self._written += len(self._pending)
        self._pending = bytearray()

    def unspill(self, offset: int, length: int) -> bytes:
        """Read appended data."""
        if offset + length > self._written:
            self._flush()
        return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        """Drop the file."""
        self._file.close()


class NewImage:
    """An image that gets the name ``path`` when it is finished. `abort` leaves nothing."""

    def __init__(self, path: Path) -> None:
        """Raises AlreadyExists, Denied, Exhausted."""
        if os.path.lexists(path):
            raise AlreadyExists(f"{os.fspath(path)!r} exists")
        self._path = path
        self._durable = outputs_are_durable()
        self._unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        self._tails: _Tails | None = None
        self._file = -1
        try:
            self._file = os.open(self._unfinished, _NEW, 0o666)
            self._tails = _Tails(path.parent)
        except OSError as error:
            self.abort()
            raise from_os(error, f"make the image {os.fspath(path)!r}") from error
        self._writer = ErofsWriter(self._write, self._tails.spill, self._tails.unspill)

    def place(self, path: str, content: Content, xattrs: int) -> Placed:
        """Write the content of ``path``, whose extended attributes take ``xattrs`` bytes packed. Raises Exhausted."""
        try:
            return self._writer.place(content.size, content.chunks(), content.extents, xattrs)
        except OSError as error:
            raise from_os(error, f"write {path!r} into the image") from error

    def finish(self, root: NewInode) -> None:
        """Write the metadata and give the image its name. Raises AlreadyExists, Exhausted, InvalidInput."""
        try:
            os.ftruncate(self._file, self._writer.finish(root))
            if self._durable:
                os.fsync(self._file)
            os.link(self._unfinished, self._path)
            if self._durable:
                sync_directory(self._path.parent)
        except OSError as error:
            raise from_os(error, f"make the image {os.fspath(self._path)!r}") from error
        self.abort()

    def abort(self) -> None:
        """Remove the unfinished image. May be called again. What cannot be removed has a hidden name, and stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            with suppress(OSError):
                self._unfinished.unlink()
        if self._tails is not None:
            self._tails.close()

    def _write(self, offset: int, data: Buffer) -> None:
        _write(self._file, offset, data)

    def written(self, offset: int, length: int) -> bytes:
        """Read bytes that were written to the image."""
        return os.pread(self._file, length, offset)

    def tail(self, offset: int, length: int) -> bytes:
        """Read a tail that is not in the image yet."""
        assert self._tails is not None  # noqa: S101  # set by __init__
        return self._tails.unspill(offset, length)


class WrittenContent:
    """Content in an unfinished image."""

    __slots__ = ("image", "placed", "size")

    def __init__(self, image: NewImage, placed: Placed) -> None:
        self.image = image
        self.placed = placed
        self.size = placed.size

    @property
    def stored(self) -> Literal[True]:
        return True

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        chunks = self.placed.chunks
        if chunks is None:
            return None
        step = BLOCK << chunks[0]
        return [
            (number * step, min(step, self.size - number * step))
            for number, address in enumerate(chunks[1])
            if address != 0xFFFFFFFF
        ]

    def chunks(self) -> Iterable[Buffer]:
        placed = self.placed
        if placed.chunks is not None:
            step = BLOCK << placed.chunks[0]
            for offset, length in self.extents or ():
                yield self.image.written(placed.chunks[1][offset // step] * BLOCK, length)
            return
        tail = placed.tail
        at, left = placed.block * BLOCK, self.size - (tail[1] if tail is not None else 0)
        while left:
            part = self.image.written(at, min(left, _PENDING))
            yield part
            at, left = at + len(part), left - len(part)
        if tail is not None:
            yield self.image.tail(*tail)


def new_inode(entry: Entry, posix: Posix, placed: Placed | None) -> NewInode:
    """The inode of ``entry``."""
    return NewInode(
        TYPE_BITS[entry.kind] | posix.mode,
        posix.uid,
        posix.gid,
        posix.mtime,
        posix.xattrs,
        placed,
        entry.target.encode("utf-8", "surrogateescape"),
        posix.device,
        {} if entry.kind is Kind.DIRECTORY else _NO_CHILDREN,
    )


def encode_name(path: str) -> bytes:
    """The last component of ``path`` as a directory of an image stores it. Raises InvalidInput: it is too long."""
    name = path.rpartition("/")[2].encode("utf-8", "surrogateescape")
    if len(name) > MAX_NAME:
        raise InvalidInput(f"{path[:80]!r}...: a name of {len(name)} bytes; an EROFS image holds {MAX_NAME}")
    return name


def drop_unsupported(entry: Entry, posix: Posix, losses: Losses) -> Posix:
    """The part of the metadata that an image can hold.

    Raises InvalidInput for an owner, a time, a link's target or a device number that is out of range.
    """
    if not (0 <= posix.uid <= MAX_ID and 0 <= posix.gid <= MAX_ID):
        raise InvalidInput(f"{entry.path!r}: owner {posix.uid}:{posix.gid}: ids end at {MAX_ID}")
    if not -MAX_TIME - 1 <= posix.mtime // SECOND <= MAX_TIME:
        raise InvalidInput(f"{entry.path!r}: an EROFS image cannot hold the time {posix.mtime // SECOND}")
    if entry.target and len(entry.target.encode("utf-8", "surrogateescape")) > MAX_TARGET:
        raise InvalidInput(f"{entry.path!r}: the target of a symbolic link has at most {MAX_TARGET} bytes")
    if posix.device != (0, 0):
        encode_device(*posix.device)
    if not posix.xattrs:
        return posix
    kept = dict(posix.xattrs)
    room = MAX_XATTRS
    for name, value in posix.xattrs.items():
        if name.startswith(OVERLAY_XATTRS):
            why = "an overlay would take it for its own"
        else:
            try:
                size = len(pack_xattrs({name: value}))
                split_prefix(name)
            except InvalidInput as error:
                why = str(error)
            else:
                if size <= room:
                    room -= size
                    continue
                why = "an EROFS inode has no room for it beside the other attributes"
        del kept[name]
        losses.record(Loss(entry.path, f"extended attribute {name}", why))
    return posix if len(kept) == len(posix.xattrs) else replace(posix, xattrs=kept)


def _write(file: int, offset: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        offset += done
        view = view[done:]
