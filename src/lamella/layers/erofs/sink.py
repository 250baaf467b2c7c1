# SPDX-License-Identifier: Apache-2.0
"""A layer, or several, into a new EROFS image: contents as they come, all else at the end."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from lamella.changes.apply import apply
from lamella.changes.contracts import Mine, View
from lamella.changes.diff import diff
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Buffer, Content, Entry, Kind, Link, Posix, Put, StoredContent, Whiteout
from lamella.changes.tree import MemorySink, MemoryTree, walk
from lamella.errors import AlreadyExists, InvalidInput, MissingFacet, from_os
from lamella.formats.erofs.structures import encode_device, pack_xattrs, split_prefix
from lamella.formats.erofs.writer import BLOCK, ErofsWriter, NewInode, Placed
from lamella.host import flags
from lamella.layers.erofs.files import ErofsLayer
from lamella.layers.erofs.tree import MARKS, TYPES, ErofsTree, is_whiteout
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath, split

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | flags.O_NOFOLLOW | flags.O_CLOEXEC | flags.O_BINARY
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


class _Written:
    """Content that is in the image that is being made."""

    __slots__ = ("placed", "sink", "size")

    def __init__(self, sink: ErofsSink, placed: Placed) -> None:
        self.sink = sink
        self.placed = placed
        self.size = placed.size

    @property
    def stored(self) -> bool:
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
                yield self.sink.written(placed.chunks[1][offset // step] * BLOCK, length)
            return
        tail = placed.tail
        at, left = placed.block * BLOCK, self.size - (tail[1] if tail is not None else 0)
        while left:
            part = self.sink.written(at, min(left, _PENDING))
            yield part
            at, left = at + len(part), left - len(part)
        if tail is not None:
            yield self.sink.tail(*tail)


class ErofsSink:
    """Applies a layer to the new image ``layer``, which has its name when all is in it.

    ``parents`` is what lies below; without it, or with an empty stack, the layer is a base layer.
    """

    def __init__(
        self,
        layer: ErofsLayer,
        *,
        parents: LayerStack[ErofsLayer] | None = None,
        losses: Losses | None = None,
    ) -> None:
        """Raises AlreadyExists, and what reading the parents raises."""
        path = layer.path
        if os.path.lexists(path):
            raise AlreadyExists(f"{os.fspath(path)!r} is there already")
        self._layer = layer
        self._losses = losses if losses is not None else Losses()
        self.more = False
        """Whether another layer follows in the same image: `commit` ends the layer alone then."""
        self._lost: set[LayerPath] = set()
        self._below: ErofsTree | None = None
        self._unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        self._tails: _Tails | None = None
        self._file = -1
        try:
            self._tree = MemoryTree()
            if parents is not None and len(parents):
                self._below = ErofsTree(parents)
                self._tree = apply(walk(self._below), MemorySink(self._tree))
            self._inner = MemorySink(self._tree)
            try:
                self._file = os.open(self._unfinished, _NEW, 0o666)
                self._tails = _Tails(path.parent)
            except OSError as error:
                raise from_os(error, f"make the image {os.fspath(path)!r}") from error
            self._writer = ErofsWriter(self._write, self._tails.spill, self._tails.unspill)
        except BaseException:
            self.abort()
            raise

    @property
    def view(self) -> View:
        """See `Sink.view`."""
        return self._inner

    @property
    def layered(self) -> bool:
        """See `Sink.layered`."""
        return self._inner.layered

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """See `Sink.put`. A device 0/0 is recorded as lost, since an overlay would take it for a whiteout."""
        posix = entry.posix
        if posix is None:
            raise MissingFacet(entry.path, "POSIX")
        if is_whiteout(entry):
            self._losses.record(Loss(entry.path, "character device 0:0", "an overlay would take it for a whiteout"))
            self._lost.add(entry.path)
            return self._inner.whiteout(entry.path)
        entry = self._fitting(entry, posix)
        assert entry.posix is not None  # noqa: S101  # it had one
        stored: StoredContent | None = None
        if entry.kind is Kind.FILE and content is not None:
            room = len(pack_xattrs(entry.posix.xattrs))
            try:
                placed = self._writer.place(content.size, content.chunks(), content.extents, room)
            except OSError as error:
                raise from_os(error, f"write {entry.path!r} into the image") from error
            stored = _Written(self, placed)
        return self._inner.put(entry, stored)

    def _fitting(self, entry: Entry, posix: Posix) -> Entry:
        """The entry with what an image can hold of it."""
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
            self._losses.record(Loss(entry.path, f"extended attribute {name}", why))
        device = posix.device
        if device != (0, 0):
            encode_device(*device)
        if len(kept) == len(posix.xattrs):
            return entry
        return replace(entry, posix=replace(posix, xattrs=kept))

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        """See `Sink.link`."""
        if target in self._lost:
            self._losses.record(Loss(path, "hard link", f"its target {target!r} is not kept"))
            self._lost.add(path)
            return self._inner.whiteout(path)
        return self._inner.link(path, target)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """See `Sink.stream`: none is kept."""
        del content
        self._losses.record(Loss(path, f"alternate data stream {name!r}", "an EROFS image has none"))

    def whiteout(self, path: LayerPath) -> bool | None:
        """See `Sink.whiteout`."""
        return self._inner.whiteout(path)

    def opaque(self, path: LayerPath, mine: Mine) -> bool | None:
        """See `Sink.opaque`."""
        return self._inner.opaque(path, mine)

    def commit(self) -> Losses:
        """Write what is not content, and give the image its name. Raises AlreadyExists, Exhausted."""
        if self.more:
            self._inner = MemorySink(self._tree)
            return self._losses
        try:
            os.ftruncate(self._file, self._writer.finish(self._root()))
            os.link(self._unfinished, self._layer.path)
        except OSError as error:
            raise from_os(error, f"make the image {os.fspath(self._layer.path)!r}") from error
        self.abort()
        return self._losses

    def abort(self) -> None:
        """See `Sink.abort`. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._unfinished.unlink(missing_ok=True)
        if self._tails is not None:
            self._tails.close()
        if self._below is not None:
            self._below.close()

    def _root(self) -> NewInode:
        """The files of the layer: all, or what differs from what lies below."""
        tree = self._tree
        files: dict[LayerPath, NewInode] = {}
        lower = None if self._below is None else self._below.merged
        entry = tree.lookup(ROOT)
        assert entry is not None  # noqa: S101  # a tree has a root
        root = files[ROOT] = self._inode(entry, None)
        for change in diff(lower, tree, exact=True):
            match change:
                case Put(entry, content):
                    if not entry.path:
                        continue
                    inode = self._inode(entry, content)
                case Link(_, target):
                    inode = files[target]
                case Whiteout():
                    inode = NewInode(stat.S_IFCHR)
                case _:
                    raise AssertionError(f"a diff has no {change!r}")
            path = change.entry.path if isinstance(change, Put) else change.path
            files[path] = inode
            parent, name = split(path)
            files[parent].children[name.encode("utf-8", "surrogateescape")] = inode
        return root

    def _inode(self, entry: Entry, content: Content | None) -> NewInode:
        posix = entry.posix
        assert posix is not None  # noqa: S101  # put refuses others
        placed: Placed | None = None
        if content is not None:
            if isinstance(content, _Written):
                placed = content.placed
            else:  # of a file below that has a further name, or other metadata, here
                room = len(pack_xattrs(posix.xattrs))
                placed = self._writer.place(content.size, content.chunks(), content.extents, room)
        return NewInode(
            TYPES[entry.kind] | posix.mode,
            posix.uid,
            posix.gid,
            posix.mtime,
            posix.xattrs,
            placed,
            entry.target.encode("utf-8", "surrogateescape"),
            posix.device,
        )

    def _write(self, offset: int, data: Buffer) -> None:
        _write(self._file, offset, data)

    def written(self, offset: int, length: int) -> bytes:
        """Bytes of the image as it is so far."""
        return os.pread(self._file, length, offset)

    def tail(self, offset: int, length: int) -> bytes:
        """The rest of a content, which is not in the image yet."""
        assert self._tails is not None  # noqa: S101  # it has been there since the beginning
        return self._tails.unspill(offset, length)


def _write(file: int, offset: int, data: Buffer) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        offset += done
        view = view[done:]
