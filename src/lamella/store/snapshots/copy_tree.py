# SPDX-License-Identifier: Apache-2.0
"""Exact copies of file trees, with shared blocks if the file system can; and the disk usage of trees."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from lamella import host
from lamella.errors import from_os
from lamella.host.linux import clone_file
from lamella.layers.directory.dirfd_cache import Descriptors, grant_access, open_root
from lamella.store.contract import Usage

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL: Final = 1 << 16
_STEP: Final = 1 << 30
_OPEN_DIRECTORIES: Final = 128
_NO_COPY_IN_KERNEL: Final = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_GONE: Final = (FileNotFoundError, NotADirectoryError)
_OVERLAY_MARKS: Final = ("trusted.overlay.", "user.overlay.")


def copy_tree(source: Path, target: Path) -> None:
    """Copy the directory ``source``, with its metadata, to the new directory ``target``.

    Keeps owners, modes, times, extended attributes, hard links within the tree, holes and devices; follows no symbolic
    links. For a user other than root, the modes of unreadable files in ``source`` change during the copy; the caller
    excludes other readers. Raises NotFound, AlreadyExists, Denied, Exhausted; an incomplete copy stays.
    """
    origin = Descriptors(open_root(source), most=_OPEN_DIRECTORIES)
    try:
        os.mkdir(target, 0o700)
        copy = _Copy(origin, Descriptors(open_root(target), most=_OPEN_DIRECTORIES))
        try:
            copy.run()
        finally:
            copy.close()
    except OSError as error:
        raise from_os(error, f"copy {os.fspath(source)!r} to {os.fspath(target)!r}") from error
    finally:
        origin.close()


def copy_root_metadata(source: Path, target: Path) -> None:
    """Copy owner, mode, mtime and extended attributes, without those of overlayfs, from ``source`` to ``target``.

    Raises OSError.
    """
    status = os.stat(source)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(target, status.st_uid, status.st_gid)
    for name in host.list_xattrs(str(source)) if _supports_xattrs(target) else ():
        if not name.startswith(_OVERLAY_MARKS):
            _set_xattr(str(target), name, host.get_xattr(str(source), name))
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))


class TreeUsage(Struct, frozen=True):
    """Disk usage of a tree."""

    usage: Usage
    sparse: int
    """Bytes of the largest sparse file; 0 if there is none."""
    own: Usage
    """Usage of the root directory."""

    @property
    def below_root(self) -> Usage:
        """Usage without the root directory."""
        return Usage(self.usage.size - self.own.size, self.usage.inodes - self.own.inodes)


def measure(root: Path) -> TreeUsage:
    """Measure the tree at ``root``, including ``root``; files with several names count once.

    Skips unreadable directories, and files that are removed meanwhile. Raises NotFound, Denied.
    """
    own = _root_usage(root)
    size, inodes, sparse = own.size, own.inodes, 0
    seen: set[tuple[int, int]] = set()
    directories = Descriptors(open_root(root), most=_OPEN_DIRECTORIES)
    todo = [""]
    try:
        while todo:
            directory = todo.pop()
            try:
                descriptor = directories.open(directory)
            except (PermissionError, *_GONE):
                if not directory:
                    raise
                continue
            prefix = f"{directory}/" if directory else ""
            with os.scandir(descriptor) as scan:
                for entry in scan:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        todo.append(prefix + entry.name)
                    elif status.st_nlink > 1:
                        identity = (status.st_dev, status.st_ino)
                        if identity in seen:
                            continue
                        seen.add(identity)
                    size += status.st_blocks * 512
                    inodes += 1
                    if status.st_size - status.st_blocks * 512 >= _SMALL:
                        sparse = max(sparse, status.st_size)
    except OSError as error:
        raise from_os(error, f"measure {os.fspath(root)!r}") from error
    finally:
        directories.close()
    return TreeUsage(Usage(size, inodes), sparse, own)


def add_root_usage(root: Path, below_root: Usage) -> Usage:
    """Return the usage of a tree whose `TreeUsage.below_root` is known. Raises NotFound, Denied."""
    try:
        own = _root_usage(root)
    except OSError as error:
        raise from_os(error, f"measure {os.fspath(root)!r}") from error
    return Usage(own.size + below_root.size, own.inodes + below_root.inodes)


def _root_usage(root: Path) -> Usage:
    return Usage(os.lstat(root).st_blocks * 512, 1)


class _Copy:
    """One copy in progress."""

    def __init__(self, source: Descriptors, target: Descriptors) -> None:
        self._source = source
        self._target = target
        self._clones = True
        self._in_kernel = True
        self._root = os.geteuid() == 0
        self._uid = os.geteuid()
        self._links: dict[tuple[int, int], str] = {}
        self._directories: list[tuple[str, os.stat_result, list[tuple[str, bytes]]]] = []
        self._opened_up: list[tuple[str, int]] = []

    def close(self) -> None:
        self._target.close()

    def run(self) -> None:
        top = self._source.root
        names = _xattr_names(lambda _: host.list_xattrs(top), "")
        self._directories.append(("", os.fstat(top), self._attributes(top, names)))
        try:
            todo = [""]
            while todo:
                todo += self._directory(todo.pop())
        finally:
            for path, mode in reversed(self._opened_up):
                parent, _, name = path.rpartition("/")
                host.chmod_beneath(self._source.open(parent), name, mode)
        # Bottom up: the final mode of a directory may make it unreachable.
        for path, status, attributes in reversed(self._directories):
            descriptor = self._target.open(path)
            self._own(descriptor, status)
            for name, value in attributes:
                _set_xattr(descriptor, name, value)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _directory(self, path: str) -> list[str]:
        """Copy the entries of a directory; return its subdirectories, which are still empty."""
        source, target = self._source.open(path), self._target.open(path)
        prefix = f"{path}/" if path else ""
        attributes_of = host.xattr_lister(source)
        below: list[str] = []
        for name in os.listdir(source):
            status = os.stat(name, dir_fd=source, follow_symlinks=False)
            form = stat.S_IFMT(status.st_mode)
            at = host.path_beneath(source, name)
            if form == stat.S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=target)
                names = _xattr_names(attributes_of, name)
                self._directories.append((prefix + name, status, self._attributes(at, names)))
                if not self._root and status.st_mode & 0o500 != 0o500:
                    self._opened_up.append((prefix + name, grant_access(source, name)))
                below.append(prefix + name)
                continue
            if status.st_nlink > 1:
                first = self._links.setdefault((status.st_dev, status.st_ino), prefix + name)
                if first != prefix + name:
                    self._link(first, path, name)
                    # `_link` may have evicted both descriptors from the caches.
                    source, target = self._source.open(path), self._target.open(path)
                    attributes_of = host.xattr_lister(source)
                    continue
            names = _xattr_names(attributes_of, name)
            if form == stat.S_IFREG:
                self._file(source, target, name, status, self._attributes(at, names))
                continue
            if form == stat.S_IFLNK:
                os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            else:
                os.mknod(name, form | 0o600, status.st_rdev, dir_fd=target)
            self._finish(target, name, status, self._attributes(at, names))
        return below

    def _link(self, first: str, path: str, name: str) -> None:
        parent, _, first_name = first.rpartition("/")
        held = os.dup(self._target.open(parent))
        try:
            target = self._target.open(path)
            os.link(first_name, name, src_dir_fd=held, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(held)

    def _file(
        self, source: int, target: int, name: str, status: os.stat_result, attributes: list[tuple[str, bytes]]
    ) -> None:
        reading = self._open(source, name, status)
        try:
            writing = os.open(name, _CREATE, 0o600, dir_fd=target)
            try:
                self._content(reading, writing, status)
                self._own(writing, status)
                for key, value in attributes:
                    _set_xattr(writing, key, value)
                os.fchmod(writing, stat.S_IMODE(status.st_mode))
                os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _open(self, directory: int, name: str, status: os.stat_result) -> int:
        try:
            return os.open(name, _READ, dir_fd=directory)
        except PermissionError:
            if status.st_uid != self._uid:
                raise
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            at = host.path_of(handle)
            os.chmod(at, stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
            try:
                return os.open(at, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.chmod(at, stat.S_IMODE(status.st_mode))
        finally:
            os.close(handle)

    def _finish(self, directory: int, name: str, status: os.stat_result, attributes: list[tuple[str, bytes]]) -> None:
        """Set the metadata of a symbolic link or a special file."""
        actual = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (actual.st_uid, actual.st_gid) != (status.st_uid, status.st_gid):
            os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
        at = host.path_beneath(directory, name)
        for key, value in attributes:
            _set_xattr(at, key, value)
        if not stat.S_ISLNK(status.st_mode):
            host.chmod_beneath(directory, name, stat.S_IMODE(status.st_mode))
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _own(self, descriptor: int, status: os.stat_result) -> None:
        if not self._root:  # the owner is right, except for a group inherited from a set-gid directory
            actual = os.fstat(descriptor)
            if (actual.st_uid, actual.st_gid) == (status.st_uid, status.st_gid):
                return
        os.fchown(descriptor, status.st_uid, status.st_gid)

    def _attributes(self, file: int | str, names: Iterable[str]) -> list[tuple[str, bytes]]:
        return [(name, host.get_xattr(file, name)) for name in names]

    def _content(self, reading: int, writing: int, status: os.stat_result) -> None:
        size = status.st_size
        if not size:
            return
        if self._clones:
            if clone_file(reading, writing):
                return
            self._clones = False
        if status.st_blocks * 512 < size:
            at = 0
            while at < size:
                try:
                    start = os.lseek(reading, at, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # a hole up to the end
                        raise
                    break
                at = os.lseek(reading, start, os.SEEK_HOLE)
                self._range(reading, writing, start, at)
            os.ftruncate(writing, size)
        else:
            self._range(reading, writing, 0, size)

    def _range(self, reading: int, writing: int, at: int, end: int) -> None:
        if self._in_kernel and end - at > _SMALL:
            try:
                while at < end:
                    done = os.copy_file_range(reading, writing, min(end - at, _STEP), at, at)
                    if not done:  # unsupported by the file system, or the file was truncated
                        break
                    at += done
            except OSError as error:
                if error.errno not in _NO_COPY_IN_KERNEL:
                    raise
                self._in_kernel = False
        while at < end:
            chunk = os.pread(reading, min(end - at, 1 << 20), at)
            if not chunk:
                break
            view = memoryview(chunk)
            while view:
                done = os.pwrite(writing, view, at)
                view = view[done:]
                at += done


def _xattr_names(attributes_of: Callable[[str], list[str]], name: str) -> list[str]:
    """Return the names of a file's extended attributes; none if the file system has none."""
    try:
        return attributes_of(name)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def _supports_xattrs(path: Path) -> bool:
    try:
        host.list_xattrs(str(path))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return False
        raise
    return True


def _set_xattr(file: int | str, name: str, value: bytes) -> None:
    try:
        host.set_xattr(file, name, value)
    except OSError as error:
        # Security modules label new files themselves, and refuse most other labels.
        by_module = name.startswith("security.") and name != "security.capability"
        if not by_module or error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
