# SPDX-License-Identifier: Apache-2.0
"""Cache of open directories beneath one root, opened component by component without following links.

Also removes trees (`remove_tree`) through descriptors, at any depth and with a bounded number of them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Final

from lamella import host
from lamella.errors import Conflict, Unsupported, from_os
from lamella.host import file_io

_OPEN: Final = os.O_RDONLY | file_io.O_DIRECTORY | file_io.O_NOFOLLOW | file_io.O_CLOEXEC
_MOST: Final = 256
_LEAST: Final = 8
"""Bounds of the directories in one cache."""
_SHARE: Final = 8
"""One cache takes at most 1/8 of RLIMIT_NOFILE: an operation has up to four caches, and other files."""
_SPACING: Final = frozenset(4**power for power in range(1, 16))
"""Levels above a deep directory at which its ancestors stay open: a walk back up costs O(n log n), not O(n^2)."""


def _budget() -> int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(_LEAST, min(_MOST, soft // _SHARE))


class Descriptors:
    """A bounded cache of open directories by canonical path; it owns their descriptors and that of the root.

    It holds about ``most`` directories, and at most about an eighth of RLIMIT_NOFILE; the first opened are evicted
    first. ``opened`` receives path and descriptor of each directory that enters the cache, for a first time or again,
    before the caller can change anything in it: a sink records its times there.
    """

    __slots__ = ("_most", "_opened", "known")

    def __init__(
        self, root: int, opened: Callable[[str, int], object] | None = None, *, most: int | None = None
    ) -> None:
        self._opened = opened
        self.known: dict[str, int] = {"": root}
        """Descriptors by path: a hot loop looks here before it calls `open`."""
        self._most = _budget() if most is None else min(most, _budget())

    @property
    def root(self) -> int:
        return self.known[""]

    def open(self, path: str) -> int:
        """The descriptor of the directory ``path``, open until the next call of any method.

        Raises OSError: ENOENT, ENOTDIR or ELOOP if a component is missing or no directory.
        """
        known = self.known
        descriptor = known.get(path)
        if descriptor is not None:
            return descriptor
        if len(known) >= self._most:
            self._evict(path)
        at, pending = path, []
        while (descriptor := known.get(at)) is None:
            at, _, name = at.rpartition("/")
            pending.append(name)
        temporary = -1
        # The nearest directories on the way are kept, and few others: a path of thousands of components must not evict
        # everything else, and a walk back up must not start at the root each time.
        keep = max(1, self._most // 4)
        try:
            while pending:
                name = pending.pop()
                descriptor = os.open(name, _OPEN, dir_fd=descriptor)
                if temporary >= 0:
                    os.close(temporary)
                    temporary = -1
                at = f"{at}/{name}" if at else name
                if len(pending) < keep or len(pending) in _SPACING:
                    known[at] = descriptor
                    if self._opened is not None:
                        self._opened(at, descriptor)
                else:
                    temporary = descriptor
        except OSError:
            if temporary >= 0:
                os.close(temporary)
            raise
        return descriptor

    def forget(self, path: str) -> None:
        """Close ``path`` and the directories beneath it, which the caller is about to remove or replace."""
        prefix = path + "/"
        known = self.known
        for key in [key for key in known if key == path or key.startswith(prefix)]:
            os.close(known.pop(key))

    def close(self) -> None:
        """Close all directories, the root included."""
        known = self.known
        while known:
            os.close(known.popitem()[1])

    def _evict(self, path: str) -> None:
        """Close half of the directories: those not above ``path`` first, and of these the first opened first."""
        known = self.known
        leading: list[str] = []
        others: list[str] = []
        for key in known:
            if key:
                (leading if path.startswith(key) and path[len(key)] == "/" else others).append(key)
        for key in (others + leading)[: len(known) - self._most // 2]:
            os.close(known.pop(key))


def open_root(root: str | os.PathLike[str]) -> int:
    """Open a root directory; if it is a symbolic link, the link is followed.

    Raises LamellaError; Unsupported if Python would encode file names other than as UTF-8.
    """
    file_io.require_descriptors()
    if sys.getfilesystemencoding() != "utf-8":
        raise Unsupported(
            f"the names of files would be written in the encoding {sys.getfilesystemencoding()!r}",
            hint="set PYTHONUTF8=1 in the environment",
        )
    try:
        return os.open(root, os.O_RDONLY | file_io.O_DIRECTORY | file_io.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise Conflict(f"{os.fspath(root)!r} is not a directory") from error
        raise from_os(error, f"open directory {os.fspath(root)!r}") from error


_NESTING: Final = 48
"""Levels that `remove_tree` descends to; a deeper directory is first moved up, into the top one."""


def remove_tree(parent: int, name: str) -> None:
    """Remove ``name`` in the open directory ``parent``, recursively if it is a directory.

    Links are not followed, and mount points are not entered. Directories of this user are made accessible first. The
    number of descriptors is bounded and the time linear at any depth: deep directories are moved up within the tree.
    Raises OSError; EBUSY at a mount point.
    """
    try:
        os.unlink(name, dir_fd=parent)
        return
    except IsADirectoryError:
        pass
    except PermissionError:  # unlink(2) of a directory on some systems
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
    if _remove_empty(parent, name):
        return
    top = _enter(parent, name)
    stack: list[tuple[int, str, list[str]]] = [(top, name, [])]
    try:
        stack[0][2].extend(_unlink_files(top))
        while stack:
            descriptor, name, directories = stack[-1]
            if not directories:
                os.rmdir(name, dir_fd=stack[-2][0] if len(stack) > 1 else parent)
                stack.pop()
                os.close(descriptor)
                continue
            below = directories.pop()
            if _remove_empty(descriptor, below):
                continue
            child = _enter(descriptor, below)
            if len(stack) < _NESTING:
                inside: list[str] = []
                stack.append((child, below, inside))
                inside.extend(_unlink_files(child))
            else:
                os.close(child)
                # A name that no layer can guess: rename(2) silently replaces an empty directory.
                lifted = f".lamella-{os.urandom(8).hex()}"
                os.rename(below, lifted, src_dir_fd=descriptor, dst_dir_fd=top)
                stack[0][2].append(lifted)
    finally:
        for descriptor, _, _ in stack:
            os.close(descriptor)


def remove_path(path: str | os.PathLike[str]) -> None:
    """Remove ``path`` as `remove_tree` does; by paths on a system without openat(2). Raises OSError."""
    if not file_io.HAS_DESCRIPTORS:
        from shutil import rmtree

        try:
            os.unlink(path)
        except (IsADirectoryError, PermissionError):
            rmtree(path)
        return
    above, name = os.path.split(path)
    parent = os.open(above or os.curdir, os.O_RDONLY | file_io.O_DIRECTORY | file_io.O_CLOEXEC)
    try:
        remove_tree(parent, name)
    finally:
        os.close(parent)


def grant_access(parent: int | None, name: str | os.PathLike[str]) -> int:
    """Add mode 0700 to the directory ``name`` in ``parent``, which this user owns.

    Returns the old mode. Raises OSError.
    """
    handle = os.open(name, file_io.O_PATH | file_io.O_NOFOLLOW | file_io.O_DIRECTORY | file_io.O_CLOEXEC, dir_fd=parent)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        host.chmod_open(handle, mode | 0o700)
    finally:
        os.close(handle)
    return mode


def _remove_empty(parent: int, name: str) -> bool:
    """Remove a directory if it is empty.

    This also finds mount points: rmdir(2) checks them first and fails with EBUSY, and nothing else shows a bind mount
    of the same file system.
    """
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _enter(parent: int, name: str) -> int:
    """Open a directory to remove its content; grant this user the permissions to do so, if it is the owner."""
    try:
        descriptor = os.open(name, _OPEN, dir_fd=parent)
    except PermissionError:
        grant_access(parent, name)
        descriptor = os.open(name, _OPEN, dir_fd=parent)
    user = os.geteuid()
    if user:
        try:
            status = os.fstat(descriptor)
            if status.st_mode & 0o300 != 0o300 and status.st_uid == user:
                os.fchmod(descriptor, 0o700)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def _unlink_files(directory: int) -> list[str]:
    """Unlink all files of a directory; returns the names of its subdirectories."""
    directories = []
    with os.scandir(directory) as scan:
        for entry in scan:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return directories
