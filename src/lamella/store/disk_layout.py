# SPDX-License-Identifier: Apache-2.0
"""Directory of a store: names and paths of its files, the disk reserve and the trash.

::

    lamella.db                          the database: `lamella.store.database`
    blobs/ALGORITHM/HEX                 blobs, immutable once in place
    ingest/FOLDER/data                  unfinished blobs
    snapshots/SNAPSHOTTER/NUMBER/       files of snapshots
    locks/                              lock files: `lamella.store.locks`
    trash/                              files and directories being removed
    reserve                             space that a full disk gives up, so that a removal can write to the database

The database is authoritative. A file that no row names is left over from interrupted work, and the next sweep removes
it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from lamella.digests import Digest

DATABASE: Final = "lamella.db"
BLOBS: Final = "blobs"
INGEST: Final = "ingest"
SNAPSHOTS: Final = "snapshots"
LOCKS: Final = "locks"
TRASH: Final = "trash"
RESERVE: Final = "reserve"

DATA: Final = "data"
"""The file in an ingest's folder."""

RESERVE_SIZE: Final = 1 << 20
"""Bytes; enough for the database to record the removal of some thousand objects."""

_TRASH_PREFIX: Final = "content-"


def blob_path(root: Path, digest: Digest) -> str:
    """Return the path of a blob's file."""
    return f"{root}/{BLOBS}/{digest.algorithm}/{digest.hex}"


def ingest_path(root: Path, folder: str) -> str:
    """Return the path of an ingest's folder."""
    return f"{root}/{INGEST}/{folder}"


def snapshotter_path(root: Path, snapshotter: str) -> Path:
    """Return the directory that holds the snapshots of a snapshotter."""
    return root / SNAPSHOTS / snapshotter


def folders_with_files(root: Path) -> list[str]:
    """Return which of `BLOBS` and `SNAPSHOTS` hold a blob or a snapshot, with a row in the database or without one."""
    return [folder for folder in (BLOBS, SNAPSHOTS) if _has_grandchild(root / folder)]


def keep_reserve(root: Path) -> None:
    """Create the reserve file if it is missing and the disk has plenty of space."""
    path = root / RESERVE
    if path.exists() or _free_space(root) < 8 * RESERVE_SIZE:
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # another process was first, or the store has to do without a reserve
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, RESERVE_SIZE)
    except OSError:
        pass
    finally:
        os.close(file)


def spend_reserve(root: Path) -> None:
    """Remove the reserve file if the disk is nearly full, so that a removal has space to write to the database."""
    if is_nearly_full(root):
        try:
            os.unlink(root / RESERVE)
        except OSError:
            pass


def is_nearly_full(root: Path) -> bool:
    """Whether the disk may lack the space for the files that the database keeps while it is open."""
    return _free_space(root) < RESERVE_SIZE


def is_read_only(root: Path) -> bool:
    """Whether the file system is mounted read-only, as the kernel remounts one after errors."""
    try:
        return bool(os.statvfs(root).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def move_to_trash(root: Path, path: str) -> bool:
    """Move a file or directory of the store at ``root`` into the trash; return False if it does not exist."""
    try:
        os.rename(path, os.path.join(root, TRASH, f"{_TRASH_PREFIX}{os.urandom(8).hex()}"))
    except FileNotFoundError:
        return False
    return True


def empty_trash(root: Path) -> None:
    """Remove what `move_to_trash` has moved, in any process. What cannot be removed stays for the next call."""
    from lamella.layers.directory.dirfd_cache import remove_path

    trash = os.path.join(root, TRASH)
    for name in os.listdir(trash):
        if not name.startswith(_TRASH_PREFIX):
            continue
        with suppress(OSError):
            remove_path(os.path.join(trash, name))


def _free_space(root: Path) -> int:
    try:
        found = os.statvfs(root)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _has_grandchild(folder: Path) -> bool:
    try:
        with os.scandir(folder) as children:
            return any(not child.is_dir(follow_symlinks=False) or os.listdir(child.path) for child in children)
    except FileNotFoundError:
        return False
