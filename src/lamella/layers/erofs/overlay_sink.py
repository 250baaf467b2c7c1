# SPDX-License-Identifier: Apache-2.0
"""Applies a layer to a new EROFS image, in one pass. The image is mounted as a lower layer of an overlay.

The lower layers are read only at the paths of the layer (`lamella.layers.overlay.rules`), so the time depends on the
size of the layer and not on the size of its parents.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from lamella.changes.apply import apply
from lamella.changes.contracts import Seen
from lamella.changes.losses import Loss, Losses
from lamella.changes.model import KIND_BY_TYPE_BITS, Change, Content, Entry, Kind, Put, Whiteout, implied_directory
from lamella.errors import InvalidInput, MissingFacet, from_os
from lamella.formats.erofs.structures import pack_xattrs
from lamella.formats.erofs.writer import NewInode, restate_inode
from lamella.host import file_io
from lamella.layers.erofs.image_writer import NewImage, drop_unsupported, encode_name, new_inode
from lamella.layers.erofs.tree import OPAQUE, ErofsChanges, ErofsImage, ErofsLayer, ErofsStack
from lamella.layers.overlay.rules import WHITEOUT, OverlayRules
from lamella.layers.policy import Devices, Owners, Policy
from lamella.layers.stack import LayerStack
from lamella.paths import ROOT, LayerPath, split

_LINK_MODE: Final = 0o777
"""The mode of every symbolic link on Linux."""


class ErofsUpperSink(OverlayRules):
    """Applies a layer to the new image ``layer``, which appears at `commit`.

    The tree is kept in memory (`NewInode`) and written by `commit`; contents are written to the image as they arrive.
    An empty stack of ``parents`` means a base layer, None that the parents are unknown.
    """

    def __init__(
        self,
        layer: ErofsLayer,
        *,
        parents: LayerStack[ErofsLayer] | None,
        policy: Policy | None = None,
        losses: Losses | None = None,
    ) -> None:
        """Open the parents. Raises AlreadyExists, and what reading the parents raises.

        Writing owners and devices to an image takes no privileges, so ``policy`` matters only if it ignores owners or
        skips devices.
        """
        below = ErofsStack(parents) if parents is not None and len(parents) else None
        losses = losses if losses is not None else Losses()
        super().__init__(below, parents_known=parents is not None, losses=losses)
        try:
            self._image = NewImage(layer.path)
            try:
                root = below.lookup(ROOT) if below is not None else None
                entry = root if root is not None else implied_directory(ROOT)
                assert entry.posix is not None  # noqa: S101  # images and implied directories have the POSIX facet
                self._root = new_inode(entry, entry.posix, None)
            except BaseException:
                self._image.abort()
                raise
        except BaseException:
            self.close_below()
            raise
        self._near: dict[str, NewInode] = {"": self._root}
        """Cache of the upper layer's directories, by path."""
        policy = policy if policy is not None else Policy()
        self._ignore = policy.owners is Owners.IGNORE
        self._skip = policy.devices is Devices.SKIP

    @property
    def view(self) -> ErofsUpperSink:
        return self

    def stream(self, path: LayerPath, name: str, content: Content) -> None:
        """Record a loss."""
        del content
        self._losses.record(Loss(path, f"alternate data stream {name!r}", "an EROFS image has none"))

    def commit(self) -> Losses:
        """Write the metadata and give the image its name. Raises AlreadyExists, Exhausted."""
        self.settle()
        self._image.finish(self._root)
        self.close_below()
        return self._losses

    def abort(self) -> None:
        """May be called again."""
        self._image.abort()
        self.close_below()

    def names(self, directory: LayerPath) -> Iterable[tuple[str, bool]]:
        children = self._directory(directory).children
        return [(_text(name), stat.S_ISDIR(inode.mode)) for name, inode in children.items()]

    # The upper layer, as `OverlayRules` needs it

    def _look(self, path: LayerPath) -> Seen | None:
        inode = self._find(path)
        if inode is None:
            return None
        if _is_whiteout(inode):
            return WHITEOUT
        return Seen(KIND_BY_TYPE_BITS[stat.S_IFMT(inode.mode)], _text(inode.target))

    def _put(self, entry: Entry, content: Content | None) -> bool | None:
        posix, path = entry.posix, entry.path
        if posix is None:
            raise MissingFacet(path, "POSIX")
        posix = drop_unsupported(entry, posix, self._losses)
        if entry.kind is Kind.SYMLINK and posix.mode != _LINK_MODE:
            posix = replace(posix, mode=_LINK_MODE)
        if self._ignore:
            posix = replace(posix, uid=os.geteuid(), gid=os.getegid())
        if self._skip and entry.kind in (Kind.CHARACTER, Kind.BLOCK):
            self._losses.record(Loss(path, entry.kind.phrase, "devices are skipped by choice"))
            return self.whiteout(path)
        if not path:
            self._restate(self._root, new_inode(entry, posix, None))
            return None
        key = encode_name(path)
        children = self._directory(path.rpartition("/")[0]).children
        old = children.get(key)
        if entry.kind is Kind.DIRECTORY and old is not None and stat.S_ISDIR(old.mode):
            self._restate(old, new_inode(entry, posix, None))
            return None
        placed = None
        if entry.kind is Kind.FILE and content is not None:
            placed = self._image.place(path, content, len(pack_xattrs(posix.xattrs)))
        new = children[key] = new_inode(entry, posix, placed)
        reshaped = None if old is None else self._forget(old) or entry.kind is Kind.DIRECTORY
        if entry.kind is Kind.DIRECTORY:
            self._lacking = None
            self._near[path] = new
        return reshaped

    def _link(self, path: LayerPath, target: LayerPath) -> bool | None:
        inode = self._find(target)
        assert inode is not None  # noqa: S101  # the upper layer has it
        if stat.S_ISDIR(inode.mode):
            raise InvalidInput(f"hard link {path!r}: its target {target!r} is a directory")
        if target.startswith(f"{path}/"):
            raise InvalidInput(f"hard link {path!r}: it would replace its own target {target!r}")
        key = encode_name(path)
        children = self._directory(split(path)[0]).children
        old = children.get(key)
        children[key] = inode
        return None if old is None else self._forget(old)

    def _drop(self, path: LayerPath) -> bool | None:
        parent, name = split(path)
        old = self._directory(parent).children.pop(name.encode("utf-8", "surrogateescape"), None)
        return None if old is None else self._forget(old)

    def _make_whiteout(self, path: LayerPath) -> None:
        key = encode_name(path)
        children = self._directory(split(path)[0]).children
        old = children.get(key)
        children[key] = NewInode(stat.S_IFCHR)
        if old is not None:
            self._forget(old)

    def _make_opaque(self, path: LayerPath) -> None:
        directory = self._directory(path)
        directory.xattrs = {**directory.xattrs, OPAQUE: b"y"}

    # The files of the upper layer

    def _find(self, path: str) -> NewInode | None:
        if not path:
            return self._root
        parent, _, name = path.rpartition("/")
        directory = self._near.get(parent)
        if directory is None:
            directory = self._find_directory(parent)
            if directory is None:
                return None
        return directory.children.get(name.encode("utf-8", "surrogateescape"))

    def _find_directory(self, path: str) -> NewInode | None:
        """Find a directory from its nearest cached parent; None if it does not exist."""
        if self._lacks(path):
            return None
        near, way = self._near, [path]
        while (at := way[-1].rpartition("/")[0]) not in near:
            way.append(at)
        directory = near[at]
        for step in reversed(way):
            inode = directory.children.get(step.rpartition("/")[2].encode("utf-8", "surrogateescape"))
            if inode is None or not stat.S_ISDIR(inode.mode):
                self._lacking = step
                return None
            directory = near[step] = inode
        return directory

    def _directory(self, path: str) -> NewInode:
        """The directory ``path``, copied up if only the parents have it."""
        directory = self._near.get(path)
        if directory is None:
            directory = self._find(path)
            if directory is None:
                self._copy_up_directory(LayerPath(path))
                directory = self._find(path)
            assert directory is not None  # noqa: S101  # it was copied up
            self._near[path] = directory
        return directory

    def _restate(self, directory: NewInode, stated: NewInode) -> None:
        """Replace the metadata of a directory; keep its opaque marker."""
        mark = {OPAQUE: directory.xattrs[OPAQUE]} if OPAQUE in directory.xattrs else {}
        directory.mode, directory.uid, directory.gid = stated.mode, stated.uid, stated.gid
        directory.mtime, directory.xattrs = stated.mtime, {**stated.xattrs, **mark}

    def _forget(self, old: NewInode) -> bool:
        """Clear the cache if a directory was replaced. Return whether ``old`` was a directory or a symbolic link."""
        if stat.S_ISDIR(old.mode):
            self._near = {"": self._root}
            return True
        return stat.S_ISLNK(old.mode)


def _is_whiteout(inode: NewInode) -> bool:
    return stat.S_ISCHR(inode.mode) and inode.device == (0, 0)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


# What changes in an image whose parents were unknown while it was written, once they are known

_REWRITTEN: Final = ".rewritten"
"""Suffix of an image that replaces another one."""


def is_root_unstated(layer: ErofsLayer) -> bool:
    """Whether the root has the metadata of an implied directory, as if none was stated. Raises as `ErofsImage`."""
    with ErofsImage(layer) as image:
        root = image.lookup(ROOT)
    return root is not None and root.posix == implied_directory(ROOT).posix


def copy_root_metadata(layer: ErofsLayer, below: LayerStack[ErofsLayer]) -> None:
    """Copy the metadata of the root of ``below`` to the root of ``layer``, an image written by `ErofsUpperSink`.

    The image is changed in place, or rewritten if there are extended attributes; nothing else may use it meanwhile.
    Raises FormatError, Exhausted, Denied.
    """
    with ErofsStack(below) as tree:
        root = tree.lookup(ROOT)
    assert root is not None  # noqa: S101  # a tree has a root
    assert root.posix is not None  # noqa: S101  # images have the POSIX facet
    if root.posix.xattrs:  # they need space in the image
        _rewrite(layer, lambda changes: _replace_root(changes, root))
        return
    with ErofsImage(layer) as image:
        at, raw = image.reader.raw(image.reader.superblock.root)
    posix = root.posix
    try:
        file = os.open(layer.path, os.O_WRONLY | file_io.O_NOFOLLOW | file_io.O_CLOEXEC | file_io.O_BINARY)
        try:
            os.pwrite(file, restate_inode(raw, posix.mode, posix.uid, posix.gid, posix.mtime), at)
        finally:
            os.close(file)
    except OSError as error:
        raise from_os(error, f"write the root of {os.fspath(layer.path)!r}") from error


def drop_whiteouts(layer: ErofsLayer, paths: Iterable[LayerPath]) -> None:
    """Remove the whiteouts at ``paths``, which hide nothing; other files stay. Rewrites the image.

    Raises FormatError, Exhausted, Denied.
    """
    gone = frozenset(paths)
    _rewrite(layer, lambda changes: (one for one in changes if not isinstance(one, Whiteout) or one.path not in gone))


def _rewrite(layer: ErofsLayer, change: Callable[[Iterable[Change]], Iterable[Change]]) -> None:
    other = ErofsLayer(layer.path.with_name(layer.path.name + _REWRITTEN))
    other.path.unlink(missing_ok=True)  # left by an interrupted call
    with ErofsChanges(layer) as changes:
        apply(change(changes), ErofsUpperSink(other, parents=None))
    os.replace(other.path, layer.path)


def _replace_root(changes: Iterable[Change], root: Entry) -> Iterator[Change]:
    for change in changes:
        yield Put(root, None) if isinstance(change, Put) and not change.entry.path else change
