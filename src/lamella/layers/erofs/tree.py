# SPDX-License-Identifier: Apache-2.0
"""Reads EROFS images: the files or the changes of one image, and the merged tree of a stack."""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Self

from msgspec import Struct
from msgspec.structs import replace

from lamella.changes.contracts import Seen
from lamella.changes.model import KIND_BY_TYPE_BITS, Buffer, Change, Entry, Kind, Posix
from lamella.changes.tree import merge
from lamella.errors import FormatError, InvalidInput, NotFound, Unsupported, from_os
from lamella.formats.erofs.reader import ErofsReader, Inode
from lamella.formats.erofs.structures import Layout, decode_device
from lamella.host import file_io
from lamella.layers.overlay.rules import is_whiteout
from lamella.layers.overlay_view import UNCLEAR, Listings, StackTree, layer_changes
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath, Way, join


class ErofsLayer(Struct, frozen=True):
    """A layer in the EROFS image ``path``."""

    path: Path


class OpenErofs:
    """An open image. Close it, or use it as a context manager."""

    def __init__(self, layer: ErofsLayer) -> None:
        """Raises NotFound, FormatError, Unsupported (features of the image), Denied."""
        self.layer = layer
        name = os.fspath(layer.path)
        try:
            self._file = os.open(layer.path, file_io.READ_FILE)
        except OSError as error:
            raise from_os(error, f"open the image {name!r}") from error
        try:
            status = os.fstat(self._file)
            size = status.st_size
            if stat.S_ISBLK(status.st_mode):
                size = os.lseek(self._file, 0, os.SEEK_END)
            elif not stat.S_ISREG(status.st_mode):
                raise InvalidInput(f"{name!r} is neither a regular file nor a block device")
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
        """Close the file. May be called again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ErofsContent(Struct, frozen=True):
    """The content of a file in an image, readable while the image is open. Equal for the same file of one image."""

    reader: ErofsReader
    inode: Inode

    @property
    def size(self) -> int:
        return self.inode.size

    @property
    def extents(self) -> Sequence[tuple[int, int]] | None:
        """The data extents. Raises FormatError; Unsupported for a compressed file."""
        if self.inode.layout != Layout.CHUNKED:
            return None
        return [(position, length) for position, length, _ in self.reader.extents(self.inode)]

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        """The data. Raises as `extents`."""
        return self.reader.read(self.inode)


OVERLAY_XATTRS: Final = "trusted.overlay."
"""The prefix of the overlay's extended attributes."""

OPAQUE: Final = f"{OVERLAY_XATTRS}opaque"
"""The attribute of an opaque directory; its value is ``y``."""

_FILE: Final = Seen(Kind.FILE)
_DIRECTORY: Final = Seen(Kind.DIRECTORY)


class ErofsImage:
    """The files of one image (`Tree`), without whiteouts, sockets and the overlay's attributes.

    Files are read on demand.
    """

    def __init__(self, layer: ErofsLayer) -> None:
        """Open the image. Raises as `OpenErofs`."""
        self.image = OpenErofs(layer)
        self.reader = self.image.reader
        self._names: Listings[dict[str, int]] = Listings()
        root = self.reader.superblock.root
        self._places: dict[int, tuple[int, str]] = {root: (0, "")}
        """Node of a directory -> node of its parent, and its name; refuses directories with several names."""
        self._near: tuple[str, int] = ("", root)
        self._way = Way(root)

    def close(self) -> None:
        """Close the image."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        inode = self.inode(path)
        if inode is None:
            return None
        entry = self.entry(path, inode)
        return None if is_whiteout(entry) else without_overlay_xattrs(entry)

    def entries(self, directory: LayerPath) -> list[Entry]:
        return [without_overlay_xattrs(entry) for entry in self.raw_entries(directory) if not is_whiteout(entry)]

    def raw_entries(self, directory: LayerPath) -> list[Entry]:
        """The entries of a directory, sorted by name, with the overlay's attributes; sockets appear as whiteouts."""
        inode = self.inode(directory)
        if inode is None:
            raise NotFound(f"{directory!r} does not exist")
        if not stat.S_ISDIR(inode.mode):
            raise InvalidInput(f"{directory!r} is not a directory")
        found: list[Entry] = []
        for name, node in self._children(inode).items():
            found.append(self.entry(join(directory, name), self._inode(node, inode.node, name)))
        return found

    def open(self, path: LayerPath) -> ErofsContent:
        inode = self.inode(path)
        if inode is None:
            raise NotFound(f"{path!r} does not exist")
        if not stat.S_ISREG(inode.mode):
            raise InvalidInput(f"{path!r} is not a file")
        return ErofsContent(self.reader, inode)

    def identity(self, path: LayerPath) -> Hashable:
        inode = self.inode(path)
        return inode.node if inode is not None and inode.links > 1 and not stat.S_ISDIR(inode.mode) else None

    def entry(self, path: LayerPath, inode: Inode) -> Entry:
        """The metadata of an inode; a socket is described as a whiteout. Raises FormatError."""
        kind = KIND_BY_TYPE_BITS.get(stat.S_IFMT(inode.mode))
        if kind is None:
            if stat.S_ISSOCK(inode.mode):
                return Entry(path, Kind.CHARACTER, Posix(0, 0, 0, 0))
            raise FormatError("EROFS inode", inode.end, f"mode {inode.mode:#o} of {path!r} has no valid file type")
        device = decode_device(inode.union) if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0)
        xattrs = self.reader.xattrs(inode)
        posix = Posix(stat.S_IMODE(inode.mode), inode.uid, inode.gid, inode.mtime, xattrs, device)
        target = ""
        if kind is Kind.SYMLINK:
            target = self.reader.target(inode).decode("utf-8", "surrogateescape")
        return Entry(path, kind, posix, inode.size if kind is Kind.FILE else 0, target)

    def inode(self, path: str) -> Inode | None:
        """The inode at ``path``, whiteouts included; None if it does not exist. Raises FormatError."""
        parent, _, name = path.rpartition("/")
        if not path:
            return self.reader.inode(self.reader.superblock.root)
        if parent != self._near[0]:
            directory = self._way.find(parent, self._inner)
            if directory is None:
                return None
            self._near = parent, directory
        above = self._near[1]
        node = self._child(above, name)
        return None if node is None else self._inode(node, above, name)

    def _inner(self, directory: int, name: str) -> int | None:
        """The node of the directory ``name`` in ``directory``."""
        node = self._child(directory, name)
        return node if node is not None and stat.S_ISDIR(self._inode(node, directory, name).mode) else None

    def _child(self, directory: int, name: str) -> int | None:
        names = self._names.get(directory)
        if names is None:
            inode = self.reader.inode(directory)
            if not stat.S_ISDIR(inode.mode):
                return None
            names = self._children(inode)
        return names.get(name)

    def _inode(self, node: int, directory: int, name: str) -> Inode:
        """The inode of the entry ``name`` of ``directory``."""
        inode = self.reader.inode(node)
        if stat.S_ISDIR(inode.mode):
            known = self._places.setdefault(node, (directory, name))
            if known != (directory, name):
                raise FormatError(
                    "EROFS directory", inode.end, f"{name!r} is another name of the directory {known[1] or '/'!r}"
                )
        return inode

    def _children(self, directory: Inode) -> dict[str, int]:
        names = self._names.get(directory.node)
        if names is None:
            names = {}
            for name, node in self.reader.names(directory):
                names[name.decode("utf-8", "surrogateescape")] = node
            self._names.keep(directory.node, names)
        return names


def without_overlay_xattrs(entry: Entry) -> Entry:
    """The entry without the overlay's attributes; whiteouts are returned unchanged.

    Raises Unsupported for ``metacopy`` and ``redirect``, whose entries depend on other layers.
    """
    posix = entry.posix
    if posix is None or not any(name.startswith(OVERLAY_XATTRS) for name in posix.xattrs) or is_whiteout(entry):
        return entry
    for mark in ("metacopy", "redirect"):
        if OVERLAY_XATTRS + mark in posix.xattrs:
            raise Unsupported(
                f"{entry.path or '/'!r} has the attribute {OVERLAY_XATTRS}{mark}: it depends on other layers"
            )
    kept = {name: value for name, value in posix.xattrs.items() if not name.startswith(OVERLAY_XATTRS)}
    return replace(entry, posix=replace(posix, xattrs=kept))


class ShownErofs:
    """One image of a stack (`ShownLayer`)."""

    __slots__ = ("_opaque", "close", "identity", "image", "open")

    def __init__(self, layer: ErofsLayer) -> None:
        """Open the image. Raises as `OpenErofs`."""
        self.image = ErofsImage(layer)
        self.open, self.identity, self.close = self.image.open, self.image.identity, self.image.close
        self._opaque: set[LayerPath] = set()
        """The opaque directories found by the last call."""

    def glance(self, path: LayerPath) -> Seen | None:
        inode = self.image.inode(path)
        if inode is None:
            return None
        if stat.S_ISREG(inode.mode):
            return _FILE
        return _DIRECTORY if stat.S_ISDIR(inode.mode) else UNCLEAR

    def lookup(self, path: LayerPath) -> Entry | None:
        self._opaque.clear()
        inode = self.image.inode(path)
        return None if inode is None else self._record_opaque(self.image.entry(path, inode))

    def entries(self, directory: LayerPath) -> list[Entry]:
        self._opaque.clear()
        return [self._record_opaque(entry) for entry in self.image.raw_entries(directory)]

    def _record_opaque(self, entry: Entry) -> Entry:
        posix = entry.posix
        if posix is not None and posix.xattrs.get(OPAQUE) == b"y":
            self._opaque.add(entry.path)
        return without_overlay_xattrs(entry)

    def is_opaque(self, path: LayerPath) -> bool:
        return bool(path) and path in self._opaque

    def whiteouts(self, directory: LayerPath, found: list[Entry]) -> set[LayerPath]:
        del directory
        return {entry.path for entry in found if is_whiteout(entry)}

    def is_whiteout(self, entry: Entry) -> bool:
        return is_whiteout(entry)


class ErofsChanges:
    """The changes in an image, in the order of a walk. Content can be read until `close`."""

    def __init__(self, layer: ErofsLayer) -> None:
        """Open the image. Raises as `OpenErofs`."""
        self._shown = ShownErofs(layer)

    def close(self) -> None:
        """Close the image."""
        self._shown.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lookup(self, path: LayerPath) -> Entry | None:
        """The entry at ``path``; None for a whiteout."""
        return self._shown.image.lookup(path)

    def __iter__(self) -> Iterator[Change]:
        root = self._shown.lookup(ROOT)
        if root is None or root.kind is not Kind.DIRECTORY:
            raise FormatError("EROFS superblock", 0, "the root is not a directory")
        return layer_changes(self._shown)


class ErofsTree:
    """The merged tree of a stack, with all metadata in memory. `close` it, or use it as a context manager."""

    def __init__(self, layers: LayerStack[ErofsLayer]) -> None:
        """Read the metadata of all layers. Raises FormatError, Unsupported and what applying layers raises."""
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
        """Close the images."""
        for image in self._open:
            image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ErofsStack(StackTree):
    """The merged tree of a stack, read on demand."""

    def __init__(self, layers: LayerStack[ErofsLayer]) -> None:
        """Open the images. Raises as `OpenErofs`; the methods raise FormatError, Unsupported."""
        super().__init__()
        try:
            for layer in layers.nearest_first():
                self._layers.append(ShownErofs(layer))
        except BaseException:
            self.close()
            raise
