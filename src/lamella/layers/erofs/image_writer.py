# SPDX-License-Identifier: Apache-2.0
"""A new EROFS image on its way: contents as they come, all else at the end, and its name when all is in it."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from lamella.changes.losses import Loss, Losses
from lamella.changes.model import TYPE_BITS, Buffer, Content, Entry, Kind, Posix
from lamella.errors import AlreadyExists, InvalidInput, from_os
from lamella.formats.erofs.structures import encode_device, pack_xattrs, split_prefix
from lamella.formats.erofs.writer import BLOCK, ErofsWriter, NewInode, Placed
from lamella.host import file_io
from lamella.layers.erofs.tree import MARKS

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | file_io.O_NOFOLLOW | file_io.O_CLOEXEC | file_io.O_BINARY
_NO_CHILDREN: Final[dict[bytes, NewInode]] = {}
_PENDING: Final = 1 << 20
"""Bytes of tails that are written at once."""


class _Tails:
    """What is left of contents beyond whole blocks, in a file that nobody sees, until it goes behind its inode."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0, prefix=".lamella-")  # noqa: SIM115
        self._pending = bytearray()
        self._written = 0

    def spill(self, offset: int, data: Buffer) -> None:
        """Take ``data``, which comes behind all that came before."""
        del offset
        self._pending += data
        if len(self._pending) >= _PENDING:
            self._flush()

    def _flush(self) -> None:
        _write(self._file.fileno(), self._written, self._pending)
        self._written += len(self._pending)
        self._pending = bytearray()

    def unspill(self, offset: int, length: int) -> bytes:
        """What was taken."""
        if offset + length > self._written:
            self._flush()
        return os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        """Drop all."""
        self._file.close()


class NewImage:
    """An image that gets the name ``path`` when it is finished; until then, and after `abort`, nothing is there."""

    def __init__(self, path: Path) -> None:
        """Raises AlreadyExists, Denied, Exhausted."""
        if os.path.lexists(path):
            raise AlreadyExists(f"{os.fspath(path)!r} is there already")
        self._path = path
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
        """Write the content of the file ``path``, whose attributes take so many bytes, packed. Raises Exhausted."""
        try:
            return self._writer.place(content.size, content.chunks(), content.extents, xattrs)
        except OSError as error:
            raise from_os(error, f"write {path!r} into the image") from error

    def finish(self, root: NewInode) -> None:
        """Write all that is not content, and give the image its name. Raises AlreadyExists, Exhausted, InvalidInput."""
        try:
            os.ftruncate(self._file, self._writer.finish(root))
            os.link(self._unfinished, self._path)
        except OSError as error:
            raise from_os(error, f"make the image {os.fspath(self._path)!r}") from error
        self.abort()

    def abort(self) -> None:
        """Drop what has not got its name. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._unfinished.unlink(missing_ok=True)
        if self._tails is not None:
            self._tails.close()

    def _write(self, offset: int, data: Buffer) -> None:
        _write(self._file, offset, data)

    def written(self, offset: int, length: int) -> bytes:
        """Bytes of the image as it is so far."""
        return os.pread(self._file, length, offset)

    def tail(self, offset: int, length: int) -> bytes:
        """The rest of a content, which is not in the image yet."""
        assert self._tails is not None  # noqa: S101  # it has been there since the beginning
        return self._tails.unspill(offset, length)


class Written:
    """Content that is in the image that is being made."""

    __slots__ = ("image", "placed", "size")

    def __init__(self, image: NewImage, placed: Placed) -> None:
        self.image = image
        self.placed = placed
        self.size = placed.size

    @property
    def stored(self) -> Literal[True]:
        """True."""
        return True

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """See `Content.extents`."""
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
        """See `Content.chunks`."""
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
    """What an image is to have of ``entry``."""
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


def fitting(entry: Entry, posix: Posix, losses: Losses) -> Posix:
    """What an image can hold of the metadata of a file. Raises InvalidInput for a device number that is too large."""
    if posix.device != (0, 0):
        encode_device(*posix.device)
    if not posix.xattrs:
        return posix
    kept = dict(posix.xattrs)
    for name, value in posix.xattrs.items():
        if name.startswith(MARKS):
            why = "an overlay would take it for a mark"
        else:
            try:
                pack_xattrs({name: value})
                split_prefix(name)
                continue
            except InvalidInput as error:
                why = str(error)
        del kept[name]
        losses.record(Loss(entry.path, f"extended attribute {name}", why))
    return posix if len(kept) == len(posix.xattrs) else replace(posix, xattrs=kept)


def _write(file: int, offset: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        offset += done
        view = view[done:]
