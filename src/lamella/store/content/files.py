# SPDX-License-Identifier: Apache-2.0
"""Blob files: read-only, named by digest, shared by all namespaces.

Files are renamed into place and removed inside write transactions, so that no file is removed while its row is being
written.
"""

from __future__ import annotations

import fcntl
import os
import stat
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.digests import Digest
from lamella.errors import Integrity, from_os
from lamella.host.durability import sync_directory
from lamella.store.disk_layout import (
    BLOBS,
    DATA,
    INGEST,
    blob_path,
    empty_trash,
    move_to_trash,
)

if TYPE_CHECKING:
    import sqlite3

    from lamella.store.database import Database

MODE: Final = 0o444


def open_blob(root: Path, digest: Digest, size: int) -> FileIO:
    """Open the file of a blob, unbuffered. Raises FileNotFoundError, Integrity (not a file of that size)."""
    path = blob_path(root, digest)
    try:
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise from_os(problem, f"open blob {digest}") from problem
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        file.close()
        raise Integrity(
            f"blob {digest}: the store has {status.st_size} bytes of {size}", hint="lamella store check --repair"
        )
    return file


def is_whole(root: Path, digest: Digest, size: int) -> bool:
    """Return whether a blob has a file of the right size."""
    try:
        status = os.stat(blob_path(root, digest), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def install_blob(root: Path, path: str, digest: Digest) -> None:
    """Rename a durable file to the path of a blob, and make the rename durable. Raises OSError."""
    target = blob_path(root, digest)
    folder = os.path.dirname(target)
    try:
        os.rename(path, target)
    except FileNotFoundError:
        os.mkdir(folder, 0o700)
        sync_directory(os.path.dirname(folder))
        os.rename(path, target)
    sync_directory(folder)


def is_named(connection: sqlite3.Connection, digest: Digest) -> bool:
    """Return whether any namespace has the blob."""
    return connection.execute("SELECT 1 FROM blob WHERE digest = ?", (digest,)).fetchone() is not None


def remove_unnamed(root: Path, database: Database, digest: Digest) -> None:
    """Remove the file of a blob, unless a namespace has the blob (again)."""
    with database.write(durable=False, frees=True) as connection:
        if is_named(connection, digest) or not move_to_trash(root, blob_path(root, digest)):
            return
    empty_trash(root)


class SweptFiles(Struct, frozen=True):
    """Result of a sweep."""

    files: int
    size: int
    """Bytes."""


def sweep(root: Path, database: Database) -> SweptFiles:
    """Remove the files of blobs and ingests that no row names: leftovers of collections and of interrupted work.

    Skips ingests that are open. Raises as `Database.write`.
    """
    files = size = 0
    try:
        with database.write(durable=False, frees=True) as connection:
            rows = connection.execute("SELECT DISTINCT digest FROM blob")
            named = {f"{root}/{BLOBS}/{digest.replace(':', '/', 1)}" for (digest,) in rows}
            unnamed = [
                file
                for algorithm in os.scandir(f"{root}/{BLOBS}")
                if algorithm.is_dir(follow_symlinks=False)
                for file in os.scandir(algorithm.path)
                if file.path not in named
            ]
            folders = {folder for (folder,) in connection.execute("SELECT folder FROM ingest")}
            for entry in os.scandir(f"{root}/{INGEST}"):
                if entry.name not in folders and not _is_open(f"{entry.path}/{DATA}"):
                    size += _size(f"{entry.path}/{DATA}")
                    files += move_to_trash(root, entry.path)
            for file in unnamed:
                size += _size(file.path)
                files += move_to_trash(root, file.path)
        empty_trash(root)
    except OSError as problem:
        raise from_os(problem, "remove unused files") from problem
    return SweptFiles(files, size)


def _size(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _is_open(path: str) -> bool:
    """Return whether a writer has the file of an ingest locked."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
