# SPDX-License-Identifier: Apache-2.0
"""The directories of snapshots: made aside, put in place by renaming, and taken away by way of the store's trash.

Whoever makes or removes a directory has it locked (flock(2)), which ends with the process, so that what was left
behind can be told from what is being worked on.
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
from lamella.layers.directory.dirfd_cache import remove_tree

_NEW: Final = "new-"
_TRASH: Final = "snapshot-"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def locked(directory: Path, *, wait: bool = True) -> Iterator[bool]:
    """Have a directory for oneself among those who ask; whether that came to be, which it always does with ``wait``.

    Raises OSError, as FileNotFoundError where it is not there.
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


class Places:
    """The directories of one snapshotter's snapshots."""

    def __init__(self, home: Path, trash: Path, release: Callable[[Path], None]) -> None:
        """``release`` is called with each directory that is about to be removed, where nobody reaches it any more."""
        self._home = home
        self._trash = trash
        self._release = release

    def of(self, number: int) -> Path:
        """Where the snapshot with this number is."""
        return self._home / str(number)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """A new directory that is gone when the block ends, unless `put` has given it its place. Raises OSError."""
        if not self._home.exists():
            self._home.mkdir(mode=0o700, exist_ok=True)
            _fsync(self._home.parent)
        left: str | None = None
        try:
            with ExitStack() as held:
                path = self._new(held)
                try:
                    yield path
                finally:
                    left = self.to_trash(path)
        finally:
            if left is not None:
                self._empty(left)  # which is nobody's only when the lock is gone

    def _new(self, held: ExitStack) -> Path:
        """A new directory, locked as long as ``held`` lasts."""
        while True:
            path = self._home / f"{_NEW}{secrets.token_hex(8)}"
            path.mkdir(mode=0o700)
            with ExitStack() as stack:
                try:
                    stack.enter_context(locked(path))
                except FileNotFoundError:  # swept before it was locked
                    continue
                if path.exists():
                    held.push(stack.pop_all())
                    return path

    def put(self, fresh: Path, number: int) -> None:
        """Give a new directory its place, to be on the disk before the row that names it; inside that change.

        Raises OSError.
        """
        _fsync(fresh)
        place = self.of(number)
        try:
            os.rename(fresh, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Of a row that never came to be, whose number is free again.
            self._discard(place)
            os.rename(fresh, place)
        _fsync(self._home)

    def discard(self, path: Path) -> None:
        """Remove a directory that no row names (any more). What resists stays in the trash, for `sweep` to tell of."""
        try:
            self._discard(path)
        except (OSError, LamellaError):
            pass

    def evict(self, numbers: Container[int]) -> None:
        """Move to the trash what belongs to none of ``numbers``, and that nobody is at work on.

        Inside a change of the database, so that nothing is given its place meanwhile. Raises OSError.
        """
        try:
            names = os.listdir(self._home)
        except FileNotFoundError:
            return
        for name in names:
            path = self._home / name
            if name.isascii() and name.isdigit():
                if int(name) not in numbers:
                    self.to_trash(path)
            elif name.startswith(_NEW):
                try:
                    with locked(path, wait=False) as ours:
                        if ours:
                            self.to_trash(path)
                except FileNotFoundError:
                    pass

    def sweep(self) -> None:
        """Remove what is left in the trash and nobody is at work on. Raises OSError."""
        for name in os.listdir(self._trash):
            if name.startswith(_TRASH):
                self._empty(name)

    def to_trash(self, path: Path) -> str | None:
        """Move a directory into the trash; its name there, or None where it is gone already. Raises OSError."""
        name = f"{_TRASH}{secrets.token_hex(8)}"
        try:
            os.rename(path, self._trash / name)
        except FileNotFoundError:
            return None
        return name

    def _discard(self, path: Path) -> None:
        name = self.to_trash(path)
        if name is not None:
            self._empty(name)

    def _empty(self, name: str) -> None:
        try:
            with locked(self._trash / name, wait=False) as ours:
                if ours:
                    self._release(self._trash / name)
                    trash = os.open(self._trash, _OPEN)
                    try:
                        remove_tree(trash, name)
                    finally:
                        os.close(trash)
        except FileNotFoundError:
            pass  # another was quicker


def _fsync(path: Path) -> None:
    directory = os.open(path, _OPEN)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
