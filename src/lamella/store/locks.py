# SPDX-License-Identifier: Apache-2.0
"""Locks by name: one thread of one process at a time does a piece of work in a store."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamella.errors import from_os
from lamella.store.disk_layout import LOCKS

if TYPE_CHECKING:
    from lamella.progress import Cancellation

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_SHORTEST: Final = 0.005
_LONGEST: Final = 0.1
"""Seconds between attempts."""


@contextmanager
def exclusive_lock(root: Path, name: str, cancel: Cancellation | None = None) -> Iterator[None]:
    """Hold the lock ``name`` of the store at ``root`` for the block, exclusive among all threads and processes.

    Waits for the holder. The kernel releases the lock when the holder's process ends. Raises Cancelled, Denied,
    Exhausted.
    """
    path = f"{root}/{LOCKS}/{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    try:
        file = _acquire(path, cancel)
    except OSError as problem:
        raise from_os(problem, f"lock {path!r}") from problem
    try:
        yield
    finally:
        try:
            os.unlink(path)  # before releasing it: waiters compare their open file with the path
        except OSError:
            pass
        os.close(file)


def _acquire(path: str, cancel: Cancellation | None) -> int:
    import fcntl

    pause = _SHORTEST
    while True:
        file = os.open(path, _FLAGS, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except BlockingIOError:
            if cancel is not None:
                cancel.check()
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST)
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove_stale_locks(root: Path) -> None:
    """Remove the lock files that killed processes have left. Raises OSError."""
    import fcntl

    folder = f"{root}/{LOCKS}"
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        try:
            file = os.open(path, _FLAGS & ~os.O_CREAT)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                os.unlink(path)
        except BlockingIOError:
            pass
        finally:
            os.close(file)
