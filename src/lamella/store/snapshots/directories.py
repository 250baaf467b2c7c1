# SPDX-License-Identifier: Apache-2.0
"""Directories of snapshots: made under a temporary name, renamed into place, and removed through the store's trash.

A process that makes or removes a directory holds a lock on it (flock(2)). The lock ends with the process, so that
leftovers can be distinguished from work in progress.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from lamella.errors import LamellaError
from lamella.host.durability import sync_directory
from lamella.layers.directory.dirfd_cache import remove_tree

_NEW: Final = "new-"
_TRASH: Final = "snapshot-"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def locked(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a directory; the value is whether it was acquired, which is always so with ``wait``.

    Raises OSError; FileNotFoundError if the directory does not exist.
    """
    import fcntl

    descriptor = os.open(directory, _OPEN)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


class SnapshotDirectories:
    """The directories of one snapshotter's snapshots, each named by the number of its row."""

    def __init__(self, root: Path, trash: Path, release: Callable[[Path], None]) -> None:
        """``release`` is called with each directory before its removal, after it was moved to ``trash``."""
        self._root = root
        self._trash = trash
        self._release = release

    def path(self, number: int) -> Path:
        """Return the directory of a snapshot."""
        return self._root / str(number)

    @contextmanager
    def create(self) -> Iterator[Path]:
        """Make a directory, which is removed at the end of the block unless `install` has renamed it.

        Raises OSError.
        """
        if not self._root.exists():
            self._root.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._root.parent)
        left: str | None = None
        try:
            with ExitStack() as locks:
                path = self._make_locked(locks)
                try:
                    yield path
                finally:
                    left = self._move_to_trash(path)
        finally:
            if left is not None:
                self._remove_from_trash(left)  # after the lock has ended

    def _make_locked(self, locks: ExitStack) -> Path:
        """Make a directory, locked until ``locks`` ends."""
        while True:
            path = self._root / f"{_NEW}{secrets.token_hex(8)}"
            path.mkdir(mode=0o700)
            with ExitStack() as stack:
                try:
                    stack.enter_context(locked(path))
                except FileNotFoundError:  # a sweep came before the lock
                    continue
                if path.exists():
                    locks.push(stack.pop_all())
                    return path

    def install(self, new: Path, number: int) -> None:
        """Rename a new directory to its number. Durable before the row that names it; call inside that change.

        Raises OSError.
        """
        sync_directory(new)
        path = self.path(number)
        try:
            os.rename(new, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # The directory of a row that was never committed; its number is free again.
            self._remove(path)
            os.rename(new, path)
        sync_directory(self._root)

    def remove(self, path: Path) -> None:
        """Remove a directory that no row names. What cannot be removed stays in the trash, for `empty_trash`."""
        try:
            self._remove(path)
        except (OSError, LamellaError):
            pass

    def evict(self, numbers: Container[int]) -> None:
        """Move to the trash each directory whose number is not in ``numbers``, and abandoned new directories.

        Call inside a change of the database, so that no directory is installed meanwhile. Raises OSError.
        """
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:
            return
        for name in names:
            path = self._root / name
            if name.isascii() and name.isdigit():
                if int(name) not in numbers:
                    self._move_to_trash(path)
            elif name.startswith(_NEW):
                try:
                    with locked(path, wait=False) as acquired:
                        if acquired:
                            self._move_to_trash(path)
                except FileNotFoundError:
                    pass

    def empty_trash(self) -> None:
        """Remove the directories in the trash that no other process is removing. Raises OSError."""
        for name in os.listdir(self._trash):
            if name.startswith(_TRASH):
                self._remove_from_trash(name)

    def _move_to_trash(self, path: Path) -> str | None:
        """Move a directory to the trash; return its name there, or None if it does not exist. Raises OSError."""
        name = f"{_TRASH}{secrets.token_hex(8)}"
        try:
            os.rename(path, self._trash / name)
        except FileNotFoundError:
            return None
        return name

    def _remove(self, path: Path) -> None:
        name = self._move_to_trash(path)
        if name is not None:
            self._remove_from_trash(name)

    def _remove_from_trash(self, name: str) -> None:
        try:
            with locked(self._trash / name, wait=False) as acquired:
                if acquired:
                    self._release(self._trash / name)
                    trash = os.open(self._trash, _OPEN)
                    try:
                        remove_tree(trash, name)
                    finally:
                        os.close(trash)
        except FileNotFoundError:
            pass  # another process was first
