# SPDX-License-Identifier: Apache-2.0
"""EROFS images as places of layers: the kernel mounts one as it is, or several over each other by an overlay.

A layer with parents is an image in the form of an overlay's lower directory: a device 0/0 where something below is
gone. Opaque directories are understood (``trusted.overlay.opaque``) and not made, since whiteouts say as much.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from lamella.changes.apply import apply
from lamella.changes.contracts import Mine, View
from lamella.changes.diff import diff
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import (
    Buffer,
    Change,
    Content,
    Entry,
    Kind,
    Link,
    Opaque,
    Posix,
    Put,
    StoredContent,
    Whiteout,
)
from lamella.changes.tree import MemorySink, MemoryTree, merge, walk
from lamella.errors import AlreadyExists, FormatError, InvalidInput, MissingFacet, NotFound, Unsupported, from_os
from lamella.formats.erofs.reader import ErofsReader, Inode
from lamella.formats.erofs.structures import Layout, decode_device, encode_device, pack_xattrs, split_prefix
from lamella.formats.erofs.writer import BLOCK, ErofsWriter, NewInode, Placed
from lamella.host import flags
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath, join, split

_TYPES: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_KINDS: Final = {number: kind for kind, number in _TYPES.items()}
_MARKS: Final = "trusted.overlay."
_OPEN: Final = os.O_RDONLY | flags.O_NOFOLLOW | flags.O_NONBLOCK | flags.O_CLOEXEC | flags.O_BINARY
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | flags.O_NOFOLLOW | flags.O_CLOEXEC | flags.O_BINARY
_KNOWN: Final = 4096
"""Directories of an image that are remembered."""
_PENDING: Final = 1 << 20
"""Bytes of tails that are written at once."""


@dataclass(slots=True, frozen=True)
class ErofsLayer:
    """The layer in the image ``path``."""

    path: Path


class OpenErofs:
    """An image that is open for reading; close it, or use it as a context manager."""

    def __init__(self, layer: ErofsLayer) -> None:
        """Raises NotFound, FormatError, Unsupported (features of the image), Denied."""
        self.layer = layer
        name = os.fspath(layer.path)
        try:
            self._file = os.open(layer.path, _OPEN)
        except OSError as error:
            raise from_os(error, f"open the image {name!r}") from error
        try:
            status = os.fstat(self._file)
            size = status.st_size
            if stat.S_ISBLK(status.st_mode):
                size = os.lseek(self._file, 0, os.SEEK_END)
            elif not stat.S_ISREG(status.st_mode):
                raise InvalidInput(f"{name!r} is no regular file, so it is no image")
            self.reader = ErofsReader(self._read, size)
        except BaseException:
            self.close()
            raise

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._file, length, offset)
        except OSError as error:
            raise from_os(error, f"read the image {os.fspath(self.layer.path)!r}") from error

    def close(self) -> None:
        """Let go of the file. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(slots=True, frozen=True)
class ErofsContent:
    """The bytes of a file in an image, good as long as the image is open. Equal for the same file of one image."""

    reader: ErofsReader
    inode: Inode

    @property
    def size(self) -> int:
        """See `Content.size`."""
        return self.inode.size

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """See `Content.extents`. Raises FormatError, and Unsupported for a compressed file."""
        if self.inode.layout != Layout.CHUNKED:
            return None
        return [(position, length) for position, length, _ in self.reader.extents(self.inode)]

    @property
    def stored(self) -> bool:
        """True."""
        return True

    def chunks(self) -> Iterable[Buffer]:
        """See `Content.chunks`. Raises as `extents` does."""
        return self.reader.read(self.inode)


class ErofsImage:
    """The files of one image (`Tree`), without whiteouts and marks of an overlay; what is below is not looked at.

    Sockets are left out, as everywhere. Files are looked for when they are asked for, so that opening takes no time.
    """

    def __init__(self, layer: ErofsLayer) -> None:
        """Open it. Raises as `OpenErofs` does."""
        self.image = OpenErofs(layer)
        self.reader = self.image.reader
        self._names: dict[int, dict[str, int]] = {}
        self._paths: dict[int, str] = {self.reader.superblock.root: ""}
        """Node of a directory -> where it is: no directory is in two places, and so none in itself."""
        self._near: tuple[str, int] = ("", self.reader.superblock.root)

    def close(self) -> None:
        """Close the image."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        """See `Tree.lookup`. Raises FormatError."""
        inode = self._find(path)
        entry = None if inode is None else self.entry(path, inode)
        return None if entry is None or is_whiteout(entry) else _unmarked(entry)

    def entries(self, directory: LayerPath) -> list[Entry]:
        """See `Tree.entries`. Raises FormatError."""
        return [_unmarked(entry) for entry in self.marked(directory) if not is_whiteout(entry)]

    def marked(self, directory: LayerPath) -> list[Entry]:
        """What the image has in a directory, whiteouts and marks included, by the bytes of the names."""
        inode = self._find(directory)
        if inode is None:
            raise NotFound(f"{directory!r} is not there")
        if not stat.S_ISDIR(inode.mode):
            raise InvalidInput(f"{directory!r} is not a directory")
        found: list[Entry] = []
        for name, node in self._children(inode).items():
            path = join(directory, name)
            entry = self.entry(path, self._inode(path, node))
            if entry is not None:
                found.append(entry)
        return found

    def open(self, path: LayerPath) -> ErofsContent:
        """See `Tree.open`."""
        inode = self._find(path)
        if inode is None:
            raise NotFound(f"{path!r} is not there")
        if not stat.S_ISREG(inode.mode):
            raise InvalidInput(f"{path!r} is not a file")
        return ErofsContent(self.reader, inode)

    def identity(self, path: LayerPath) -> Hashable:
        """See `Tree.identity`."""
        inode = self._find(path)
        return inode.node if inode is not None and inode.links > 1 and not stat.S_ISDIR(inode.mode) else None

    def entry(self, path: LayerPath, inode: Inode) -> Entry | None:
        """The metadata of a file as the image has it; None for a socket. Raises FormatError."""
        kind = _KINDS.get(stat.S_IFMT(inode.mode))
        if kind is None:
            if stat.S_ISSOCK(inode.mode):
                return None
            raise FormatError("EROFS inode", inode.end, f"mode {inode.mode:#o} of {path!r} is that of no file")
        device = decode_device(inode.union) if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0)
        xattrs = self.reader.xattrs(inode)
        posix = Posix(stat.S_IMODE(inode.mode), inode.uid, inode.gid, inode.mtime, xattrs, device)
        target = ""
        if kind is Kind.SYMLINK:
            target = self.reader.target(inode).decode("utf-8", "surrogateescape")
        return Entry(path, kind, posix, inode.size if kind is Kind.FILE else 0, target)

    def _find(self, path: str) -> Inode | None:
        parent, _, name = path.rpartition("/")
        if not path:
            return self._inode("", self.reader.superblock.root)
        where, node = self._near
        if parent != where:
            where, node = "", self.reader.superblock.root
            for step in parent.split("/") if parent else ():
                found = self._step(where, node, step)
                if found is None:
                    return None
                where, node = join(where, step), found
            self._near = where, node
        found = self._step(parent, node, name)
        return None if found is None else self._inode(path, found)

    def _step(self, where: str, node: int, name: str) -> int | None:
        inode = self._inode(where, node)
        return self._children(inode).get(name) if stat.S_ISDIR(inode.mode) else None

    def _inode(self, path: str, node: int) -> Inode:
        inode = self.reader.inode(node)
        if stat.S_ISDIR(inode.mode):
            known = self._paths.setdefault(node, path)
            if known != path:
                raise FormatError("EROFS directory", inode.end, f"{path!r} is {known or '/'!r} once more")
        return inode

    def _children(self, directory: Inode) -> dict[str, int]:
        names = self._names.get(directory.node)
        if names is None:
            if len(self._names) >= _KNOWN:
                self._names.clear()
            names = {}
            for name, node in self.reader.names(directory):
                names[name.decode("utf-8", "surrogateescape")] = node
            self._names[directory.node] = names
        return names


def is_whiteout(entry: Entry) -> bool:
    """Whether an overlay takes the file for a whiteout."""
    return entry.kind is Kind.CHARACTER and entry.posix is not None and entry.posix.device == (0, 0)


def _unmarked(entry: Entry) -> Entry:
    """The entry without marks of an overlay. Raises Unsupported where it does not stand for itself."""
    posix = entry.posix
    if posix is None or not any(name.startswith(_MARKS) for name in posix.xattrs):
        return entry
    for mark in ("metacopy", "redirect"):
        if _MARKS + mark in posix.xattrs:
            raise Unsupported(f"{entry.path or '/'!r} has the attribute {_MARKS}{mark}: it does not stand for itself")
    kept = {name: value for name, value in posix.xattrs.items() if not name.startswith(_MARKS)}
    return replace(entry, posix=replace(posix, xattrs=kept))


class ErofsChanges:
    """What the image of a layer states, in the order of a walk. Content can be opened until `close`."""

    def __init__(self, layer: ErofsLayer) -> None:
        """Open the image. Raises as `OpenErofs` does."""
        self._tree = ErofsImage(layer)

    def close(self) -> None:
        """Close the image."""
        self._tree.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        """What the image has at ``path``, whiteouts left out."""
        return self._tree.lookup(path)

    def __iter__(self) -> Iterator[Change]:
        """Raises FormatError, Unsupported."""
        tree = self._tree
        root = tree.entry(ROOT, tree.reader.inode(tree.reader.superblock.root))
        if root is None or root.kind is not Kind.DIRECTORY:
            raise FormatError("EROFS superblock", 0, "the root is no directory")
        firsts: dict[Hashable, LayerPath] = {}
        todo = [root]
        while todo:
            entry = todo.pop()
            path = entry.path
            if entry.kind is Kind.DIRECTORY:
                yield Put(_unmarked(entry), None)
                # The kernel takes no such mark on the root.
                if path and entry.posix is not None and entry.posix.xattrs.get(f"{_MARKS}opaque") == b"y":
                    yield Opaque(path)
                inside = tree.marked(path)
                yield from (Whiteout(one.path) for one in inside if is_whiteout(one))
                todo.extend(one for one in reversed(inside) if not is_whiteout(one))
                continue
            identity = tree.identity(path)
            if identity is not None:
                first = firsts.setdefault(identity, path)
                if first != path:
                    yield Link(path, first)
                    continue
            yield Put(_unmarked(entry), tree.open(path) if entry.kind is Kind.FILE else None)


class ErofsTree:
    """The tree that a mount of the stack would show, held in memory but for contents. `close` it, or use a block."""

    def __init__(self, layers: LayerStack[ErofsLayer]) -> None:
        """Read the layers. Raises FormatError, Unsupported and what applying layers raises."""
        self._open: list[ErofsChanges] = []
        try:
            for layer in layers.base_first():
                self._open.append(ErofsChanges(layer))
            self.merged = merge(self._open)
        except BaseException:
            self.close()
            raise
        self.lookup = self.merged.lookup
        self.entries = self.merged.entries
        self.open = self.merged.open
        self.identity = self.merged.identity

    def close(self) -> None:
        """Close all images."""
        for image in self._open:
            image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
            if name.startswith(_MARKS):
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
            _TYPES[entry.kind] | posix.mode,
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
