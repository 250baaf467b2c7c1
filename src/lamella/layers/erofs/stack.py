# SPDX-License-Identifier: Apache-2.0
"""Images that lie over each other, read as the tree that they come to, as much of it as is asked for."""

from __future__ import annotations

import stat
from collections.abc import Hashable
from typing import Final

from lamella.changes.contracts import Seen
from lamella.changes.model import Entry, Kind, StoredContent
from lamella.layers.erofs.files import ErofsLayer
from lamella.layers.erofs.tree import OPAQUE, ErofsImage, is_whiteout, unmarked
from lamella.layers.stack import LayerStack
from lamella.layers.stack_tree import UNCLEAR, StackTree
from lamella.paths import LayerPath

_FILE: Final = Seen(Kind.FILE)
_DIRECTORY: Final = Seen(Kind.DIRECTORY)


class ErofsStack(StackTree):
    """The tree that a mount of the images would show. Opening reads no more of them than where they begin."""

    def __init__(self, layers: LayerStack[ErofsLayer]) -> None:
        """Open the images. Raises as `OpenErofs` does; what is asked raises FormatError, Unsupported."""
        super().__init__()
        try:
            for layer in layers.nearest_first():
                self._layers.append(_Shown(layer))
        except BaseException:
            self.close()
            raise


class _Shown:
    """One image (`ShownLayer`)."""

    __slots__ = ("_image", "_opaque")

    def __init__(self, layer: ErofsLayer) -> None:
        self._image = ErofsImage(layer)
        self._opaque: set[LayerPath] = set()
        """Of what the last call found, the opaque directories."""

    def glance(self, path: LayerPath) -> Seen | None:
        inode = self._image.inode(path)
        if inode is None:
            return None
        if stat.S_ISREG(inode.mode):
            return _FILE
        return _DIRECTORY if stat.S_ISDIR(inode.mode) else UNCLEAR

    def lookup(self, path: LayerPath) -> Entry | None:
        self._opaque.clear()
        inode = self._image.inode(path)
        return None if inode is None else self._noted(self._image.entry(path, inode))

    def entries(self, directory: LayerPath) -> list[Entry]:
        self._opaque.clear()
        return [self._noted(entry) for entry in self._image.marked(directory)]

    def _noted(self, entry: Entry) -> Entry:
        posix = entry.posix
        if posix is not None and posix.xattrs.get(OPAQUE) == b"y":
            self._opaque.add(entry.path)
        return unmarked(entry)

    def is_opaque(self, path: LayerPath) -> bool:
        return bool(path) and path in self._opaque

    def whiteouts(self, directory: LayerPath, found: list[Entry]) -> set[LayerPath]:
        del directory
        return {entry.path for entry in found if is_whiteout(entry)}

    def is_whiteout(self, entry: Entry) -> bool:
        return is_whiteout(entry)

    def open(self, path: LayerPath) -> StoredContent:
        return self._image.open(path)

    def identity(self, path: LayerPath) -> Hashable:
        return self._image.identity(path)

    def close(self) -> None:
        self._image.close()
