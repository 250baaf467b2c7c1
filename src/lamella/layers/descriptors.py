# SPDX-License-Identifier: Apache-2.0
"""Open directories beneath one root: reached component by component, never through a link."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from lamella.errors import Conflict, from_os

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST: Final = 800


def _budget() -> int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(8, min(_MOST, soft // 2))


class Descriptors:
    """A bounded cache of open directories by canonical path; it owns them and the root's descriptor.

    ``opened`` is told of each directory that comes into the cache, before anybody can change something in it.
    """

    __slots__ = ("_most", "_opened", "known")

    def __init__(
        self, root: int, opened: Callable[[str, int], object] | None = None, *, most: int | None = None
    ) -> None:
        self._opened = opened
        self.known: dict[str, int] = {"": root}
        """For hot loops to look into first; what is not in here is asked of `open`."""
        self._most = _budget() if most is None else most

    @property
    def root(self) -> int:
        """The descriptor of the root."""
        return self.known[""]

    def open(self, path: str) -> int:
        """The descriptor of the directory ``path``, open until the next call of any method here.

        Raises OSError: ENOENT, ENOTDIR or ELOOP where a component is not there, or is no directory.
        """
        known = self.known
        descriptor = known.get(path)
        if descriptor is not None:
            return descriptor
        if len(known) >= self._most:
            self._evict()
        at, pending = path, []
        while (descriptor := known.get(at)) is None:
            at, _, name = at.rpartition("/")
            pending.append(name)
        temporary = -1
        # Of the directories on the way only the nearest are kept: a path of thousands of components must not push
        # everything else out, and a walk that climbs back up such a path must not start at the root each time.
        keep = max(16, self._most // 4)
        try:
            while pending:
                name = pending.pop()
                descriptor = os.open(name, _OPEN, dir_fd=descriptor)
                if temporary >= 0:
                    os.close(temporary)
                    temporary = -1
                at = f"{at}/{name}" if at else name
                if len(pending) < keep:
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
        """Close what is open at ``path`` and beneath: it is being removed or replaced."""
        prefix = path + "/"
        known = self.known
        for key in [key for key in known if key == path or key.startswith(prefix)]:
            os.close(known.pop(key))

    def close(self) -> None:
        """Close everything, the root too."""
        known = self.known
        while known:
            os.close(known.popitem()[1])

    def _evict(self) -> None:
        known = self.known
        for key in [key for key in known if key][: self._most // 2]:
            os.close(known.pop(key))


def open_root(root: str | os.PathLike[str]) -> int:
    """Open the directory that is to be a root; a link that leads to it is followed. Raises LamellaError."""
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise Conflict(f"{os.fspath(root)!r} is not a directory") from error
        raise from_os(error, f"open directory {os.fspath(root)!r}") from error


_NESTING: Final = 48


def remove_tree(parent: int, name: str) -> None:
    """Remove ``name`` in the open directory ``parent``, with all beneath it if it is a directory.

    Links are not followed.
    Needs a bounded number of descriptors and linear time, however deep the tree: what lies deep is moved up first.
    Raises OSError; EBUSY where something is mounted beneath.
    """
    try:
        os.unlink(name, dir_fd=parent)
    except IsADirectoryError:
        pass
    except PermissionError:  # what unlink(2) of a directory gives on some systems
        if not _is_directory(parent, name):
            raise
    else:
        return
    lifted = 0
    todo = [name]
    while todo:
        top = todo[-1]
        lifted = _empty(parent, top, lifted, todo)
        if todo[-1] == top:
            os.rmdir(top, dir_fd=parent)
            todo.pop()


def _empty(parent: int, top: str, lifted: int, todo: list[str]) -> int:
    """Empty the directory ``top``; directories too deep in it are moved beside it and noted in ``todo``."""
    stack: list[tuple[int, str, list[str]]] = []
    descriptor = os.open(top, _OPEN, dir_fd=parent)
    try:
        stack.append((descriptor, top, _unlink_all(descriptor)))
        while stack:
            descriptor, name, directories = stack[-1]
            if directories:
                below = directories.pop()
                if len(stack) >= _NESTING:
                    lifted += 1
                    moved = f".lamella-removing-{os.getpid()}-{lifted}"
                    os.rename(below, moved, src_dir_fd=descriptor, dst_dir_fd=parent)
                    todo.append(moved)
                    continue
                child = os.open(below, _OPEN, dir_fd=descriptor)
                try:
                    inside = _unlink_all(child)
                except BaseException:
                    os.close(child)
                    raise
                stack.append((child, below, inside))
                continue
            stack.pop()
            os.close(descriptor)
            if stack:
                os.rmdir(name, dir_fd=stack[-1][0])
    finally:
        for descriptor, _, _ in stack:
            os.close(descriptor)
    return lifted


def _unlink_all(directory: int) -> list[str]:
    """Unlink all but directories, whose names are returned."""
    try:
        with os.scandir(directory) as scan:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan]
    except PermissionError:
        os.fchmod(directory, 0o700)
        with os.scandir(directory) as scan:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan]
    directories = []
    for name, is_directory in found:
        if is_directory:
            directories.append(name)
        else:
            try:
                os.unlink(name, dir_fd=directory)
            except PermissionError:
                os.fchmod(directory, 0o700)
                os.unlink(name, dir_fd=directory)
    return directories


def _is_directory(parent: int, name: str) -> bool:
    import stat

    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
