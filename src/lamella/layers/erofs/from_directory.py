# SPDX-License-Identifier: Apache-2.0
"""Writes an EROFS image of a directory, with the whiteouts and attributes of an overlay."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from lamella import host
from lamella.changes.model import Buffer
from lamella.errors import from_os
from lamella.formats.erofs.structures import pack_xattrs
from lamella.formats.erofs.writer import NewInode
from lamella.host import file_io
from lamella.layers.directory.content import REPLACED, changed, data_extents
from lamella.layers.directory.dirfd_cache import Descriptors, open_root
from lamella.layers.erofs.image_writer import NewImage

_OPEN_DIRECTORIES: Final = 128
_STEP: Final = 1 << 20
_NOT_KEPT: Final = frozenset(
    f"{prefix}.overlay.{mark}"
    for prefix in ("trusted", "user")
    for mark in ("origin", "impure", "nlink", "uuid", "upper", "index")
)
"""Attributes that an overlay sets in an upper directory and ignores in a lower one."""


def write_image(root: Path, image: Path) -> None:
    """Write the new image ``image`` of the directory ``root``. Equal trees give equal bytes.

    Owners, modes, times, extended attributes, hard links, holes, devices and sockets are kept; symbolic links are not
    followed. Raises AlreadyExists, Conflict (a file changes meanwhile), Exhausted, InvalidInput (metadata that an image
    cannot hold), Denied.
    """
    new = NewImage(image)
    try:
        directories = Descriptors(open_root(root), most=_OPEN_DIRECTORIES)
        try:
            new.finish(_Walk(directories, new).run())
        finally:
            directories.close()
    except OSError as error:
        raise from_os(error, f"make an image of {os.fspath(root)!r}") from error
    finally:
        new.abort()


class _Walk:
    """One pass over the directory."""

    def __init__(self, directories: Descriptors, image: NewImage) -> None:
        self._directories = directories
        self._image = image
        self._links: dict[tuple[int, int], NewInode] = {}

    def run(self) -> NewInode:
        top = self._directories.root
        root = self._inode(os.fstat(top), _xattrs(top))
        todo = [("", root)]
        while todo:
            path, directory = todo.pop()
            todo.extend(self._fill(path, directory))
        return root

    def _fill(self, path: str, directory: NewInode) -> list[tuple[str, NewInode]]:
        """Add the entries of a directory to ``directory``. Return its subdirectories, last first."""
        descriptor = self._directories.open(path)
        prefix = f"{path}/" if path else ""
        below: list[tuple[str, NewInode]] = []
        for name in sorted(os.listdir(descriptor), key=os.fsencode):
            try:
                self._add(descriptor, prefix + name, name, directory, below)
            except OSError as error:
                if error.errno in REPLACED:
                    raise changed(prefix + name) from error
                raise
        below.reverse()
        return below

    def _add(
        self, descriptor: int, path: str, name: str, directory: NewInode, below: list[tuple[str, NewInode]]
    ) -> None:
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        identity = (status.st_dev, status.st_ino)
        kind = stat.S_IFMT(status.st_mode)
        several = status.st_nlink > 1 and kind != stat.S_IFDIR
        inode = self._links.get(identity) if several else None
        if inode is None:
            inode = self._new_inode(descriptor, path, name, status)
            if several:
                self._links[identity] = inode
            if kind == stat.S_IFDIR:
                below.append((path, inode))
        directory.children[os.fsencode(name)] = inode

    def _new_inode(self, directory: int, path: str, name: str, status: os.stat_result) -> NewInode:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            file = os.open(name, file_io.READ_FILE, dir_fd=directory)
            try:
                return self._file(file, path, status)
            finally:
                os.close(file)
        inode = self._inode(status, _xattrs(host.path_beneath(directory, name)))
        if kind == stat.S_IFLNK:
            inode.target = os.fsencode(os.readlink(name, dir_fd=directory))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            inode.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        return inode

    def _file(self, file: int, path: str, listed: os.stat_result) -> NewInode:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != (listed.st_dev, listed.st_ino):
            raise changed(path)
        inode = self._inode(status, _xattrs(file))
        if status.st_size:
            inode.content = self._image.place(path, _Content(file, path, status), len(pack_xattrs(inode.xattrs)))
        now = os.fstat(file)
        if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise changed(path)
        return inode

    def _inode(self, status: os.stat_result, xattrs: dict[str, bytes]) -> NewInode:
        return NewInode(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)


class _Content:
    """The content of an open file, of the size that it had at first. Raises Conflict if it became shorter."""

    __slots__ = ("extents", "file", "path", "size")

    def __init__(self, file: int, path: str, status: os.stat_result) -> None:
        self.file = file
        self.path = path
        self.size = status.st_size
        self.extents: Sequence[tuple[int, int]] | None = None
        if status.st_blocks * 512 < self.size and self.size >= 4096:
            self.extents = tuple(data_extents(file, self.size))

    @property
    def stored(self) -> Literal[True]:
        return True

    def chunks(self) -> Iterable[Buffer]:
        extents = self.extents
        return self._read([(0, self.size)] if extents is None else extents)

    def _read(self, extents: Sequence[tuple[int, int]]) -> Iterator[Buffer]:
        for start, length in extents:
            at, end = start, start + length
            while at < end:
                piece = os.pread(self.file, min(end - at, _STEP), at)
                if not piece:
                    raise changed(self.path)
                yield piece
                at += len(piece)


def _xattrs(file: int | str) -> dict[str, bytes]:
    try:
        names = host.list_xattrs(file)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}
    return {name: host.get_xattr(file, name) for name in names if name not in _NOT_KEPT}
