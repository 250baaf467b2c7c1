# SPDX-License-Identifier: Apache-2.0
"""Applies one or several layers to a new EROFS image, which holds the differences from the parents."""

from __future__ import annotations

import stat

from msgspec.structs import replace

from lamella.changes.apply import apply
from lamella.changes.contracts import View
from lamella.changes.diff import diff
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import Content, Entry, Kind, Link, Put, StoredContent, Whiteout
from lamella.changes.tree import MemorySink, MemoryTree, walk
from lamella.changes.whiteouts import PutRecord
from lamella.errors import MissingFacet
from lamella.formats.erofs.structures import pack_xattrs
from lamella.formats.erofs.writer import NewInode, Placed
from lamella.layers.erofs.image_writer import NewImage, WrittenContent, drop_unsupported, encode_name, new_inode
from lamella.layers.erofs.tree import ErofsLayer, ErofsTree
from lamella.layers.overlay.rules import is_whiteout
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath, split


class ErofsSink:
    """Applies a layer to the new image ``layer``, which gets its name when it is complete.

    Without ``parents``, or with an empty stack, the layer is a base layer.
    """

    def __init__(
        self,
        layer: ErofsLayer,
        *,
        parents: LayerStack[ErofsLayer] | None = None,
        losses: Losses | None = None,
    ) -> None:
        """Read the parents. Raises AlreadyExists, and what reading the parents raises."""
        self._losses = losses if losses is not None else Losses()
        self.more = False
        """Whether another layer follows in the same image, so that `commit` only ends the current layer."""
        self._lost: set[LayerPath] = set()
        self._below: ErofsTree | None = None
        self._image = NewImage(layer.path)
        try:
            self._tree = MemoryTree()
            if parents is not None and len(parents):
                self._below = ErofsTree(parents)
                self._tree = apply(walk(self._below), MemorySink(self._tree))
            self._inner = MemorySink(self._tree)
        except BaseException:
            self.abort()
            raise

    @property
    def view(self) -> View:
        return self._inner

    @property
    def layered(self) -> bool:
        return self._inner.layered

    def put(self, entry: Entry, content: Content | None) -> bool | None:
        """Put a file. A device 0/0 cannot be kept: it becomes a whiteout and a loss.

        Raises MissingFacet; InvalidInput for a name or metadata that an image cannot hold; Exhausted.
        """
        posix = entry.posix
        if posix is None:
            raise MissingFacet(entry.path, "POSIX")
        encode_name(entry.path)
        if is_whiteout(entry):
            self._losses.record(Loss(entry.path, "character device 0:0", "an overlay would take it for a whiteout"))
            self._lost.add(entry.path)
            return self._inner.whiteout(entry.path)
        fits = drop_unsupported(entry, posix, self._losses)
        if fits is not posix:
            entry = replace(entry, posix=fits)
        stored: StoredContent | None = None
        if entry.kind is Kind.FILE and content is not None:
            stored = WrittenContent(self._image, self._image.place(entry.path, content, len(pack_xattrs(fits.xattrs))))
        return self._inner.put(entry, stored)

    def link(self, path: LayerPath, target: LayerPath) -> bool | None:
        if target in self._lost:
            self._losses.record(Loss(path, "hard link", f"its target {target!r} is not kept"))
            self._lost.add(path)
            return self._inner.whiteout(path)
        encode_name(path)
        return self._inner.link(path, target)

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """Record a loss."""
        del content
        self._losses.record(Loss(path, f"alternate data stream {name!r}", "an EROFS image has none"))

    def whiteout(self, path: LayerPath) -> bool | None:
        return self._inner.whiteout(path)

    def opaque(self, path: LayerPath, record: PutRecord) -> bool | None:
        return self._inner.opaque(path, record)

    def commit(self) -> Losses:
        """Write the metadata and give the image its name. Raises AlreadyExists, Exhausted."""
        if self.more:
            self._inner = MemorySink(self._tree)
            return self._losses
        self._image.finish(self._root())
        self._close()
        return self._losses

    def abort(self) -> None:
        """May be called again."""
        self._image.abort()
        self._close()

    def _close(self) -> None:
        if self._below is not None:
            self._below.close()

    def _root(self) -> NewInode:
        """The inodes of the image: all files, or the differences from the parents."""
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
            files[split(path)[0]].children[encode_name(path)] = inode
        return root

    def _inode(self, entry: Entry, content: Content | None) -> NewInode:
        posix = entry.posix
        assert posix is not None  # noqa: S101  # put refuses others
        placed: Placed | None = None
        if content is not None:
            if isinstance(content, WrittenContent):
                placed = content.placed
            else:  # a lower file with another name or other metadata in this layer
                placed = self._image.place(entry.path, content, len(pack_xattrs(posix.xattrs)))
        return new_inode(entry, posix, placed)
