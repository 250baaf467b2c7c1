# SPDX-License-Identifier: Apache-2.0
"""Repair of a store: removes what a check has found broken, so that it can be imported again."""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import stat
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from lamella.digests import Digest, parse_digest
from lamella.errors import LamellaError, from_os
from lamella.host.durability import sync_directory
from lamella.store.check.check import DATABASE, ROOT, Finding, Report
from lamella.store.contract import SnapshotKind
from lamella.store.disk_layout import blob_path
from lamella.store.gc.collect import sweep_files
from lamella.store.gc.labels import CONTENT, IMAGES, SNAPSHOTS

if TYPE_CHECKING:
    from lamella.store.store import Store

QUARANTINE: Final = "quarantine"
"""The directory of the store that receives damaged files."""


class Repaired(Struct, frozen=True):
    """The result of a repair."""

    done: tuple[str, ...]
    """The actions, in words."""
    left: tuple[Finding, ...]
    """The faults that remain."""
    missing: tuple[Digest, ...]
    """Blobs to fetch again."""


def repair(store: Store, report: Report) -> Repaired:
    """Repair the faults of ``report`` without losing intact data.

    Moves the files of damaged blobs to `QUARANTINE` and deletes their rows; removes broken snapshots and their
    descendants, unless one of those is active. Raises Denied, Exhausted.
    """
    left: list[Finding] = []
    missing = dict.fromkeys(digest for finding in report.faults for digest in finding.missing)
    blobs = dict.fromkeys(finding.id for finding in report.faults if finding.type == CONTENT)
    done = [_remove_blob(store, parse_digest(digest)) for digest in blobs]
    for finding in report.faults:
        if finding.type == ROOT:
            os.chmod(store.root, 0o700)
            done.append(f"{store.root}: mode set to 0700")
        elif finding.type.startswith(SNAPSHOTS):
            action = _remove_snapshot(store, finding)
            if action:
                done.append(action)
            else:
                left.append(finding)
        elif finding.type in (DATABASE, IMAGES):  # an image is complete once its missing blobs are fetched
            left.append(finding)
    with store.database.write(frees=True) as connection:
        gone = connection.execute(
            "DELETE FROM held WHERE NOT EXISTS"
            " (SELECT 1 FROM lease WHERE lease.namespace = held.namespace AND lease.id = held.lease)"
        ).rowcount
    if gone > 0:
        done.append(f"{gone} entries of deleted leases removed")
        left = [finding for finding in left if (finding.type, finding.id) != (DATABASE, "held")]
    try:
        sweep_files(store)
    except LamellaError as problem:
        left.append(Finding("", ROOT, os.fspath(store.root), f"leftovers cannot be removed: {problem}"))
    return Repaired(tuple(done), tuple(left), tuple(missing))


def _remove_blob(store: Store, digest: Digest) -> str:
    """Move the file away, then delete the rows; if that is interrupted, the next check finds rows without a file.

    Reads the file again first: since the check, the blob may have been deleted and stored anew.
    """
    path = blob_path(store.root, digest)
    folder = store.root / QUARANTINE
    try:
        seen = _identity(path)
        sound = seen is not None and _digest(path, digest.algorithm) == digest
        folder.mkdir(mode=0o700, exist_ok=True)
        with store.database.write(frees=True) as connection:
            where = ""
            if _identity(path) != seen:
                return f"blob {digest} was stored again meanwhile; run the check again"
            if sound and seen is not None:
                sizes = connection.execute("SELECT DISTINCT size FROM blob WHERE digest = ?", (digest,)).fetchall()
                if sizes in ([], [(seen[2],)]):
                    return f"blob {digest} is intact now"
            if seen is not None:
                kept = folder / f"{digest.algorithm}-{digest.hex}-{secrets.token_hex(4)}"
                os.rename(path, kept)
                sync_directory(folder)
                sync_directory(os.path.dirname(path))
                where = f", its file is {os.fspath(kept)}"
            connection.execute("DELETE FROM blob WHERE digest = ?", (digest,))
    except OSError as problem:
        raise from_os(problem, f"quarantine blob {digest}") from problem
    return f"blob {digest} removed{where}"


def _identity(path: str | os.PathLike[str]) -> tuple[int, int, int, int] | None:
    """Return device, inode, size and ctime of a file; None if it is missing."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def _digest(path: str | os.PathLike[str], algorithm: str) -> Digest | None:
    """Return the digest of a regular file; None for anything else, and if it is unreadable."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(file, "rb", buffering=0) as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        try:
            return Digest.finish(hashlib.file_digest(opened, algorithm))
        except OSError:
            return None


def _remove_snapshot(store: Store, finding: Finding) -> str:
    """Remove a snapshot and its descendants; return the action, empty if an active descendant prevents it."""
    kind = finding.type.removeprefix(SNAPSHOTS)
    with store.database.write(frees=True) as connection:
        row = connection.execute(
            "SELECT number, kind FROM snapshot WHERE namespace = ? AND snapshotter = ? AND name = ?",
            (finding.namespace, kind, finding.id),
        ).fetchone()
        if row is None:
            return f"snapshot {finding.id} does not exist any more"
        numbers = _descendants(connection, row[0])
        if any(state == SnapshotKind.ACTIVE.value for number, state in numbers if number != row[0]):
            return ""
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.executemany("DELETE FROM snapshot WHERE number = ?", [(number,) for number, _ in numbers])
    others = f", with {len(numbers) - 1} above it" if len(numbers) > 1 else ""
    return f"snapshot {finding.id} of {kind} removed{others}"


def _descendants(connection: sqlite3.Connection, number: int) -> list[tuple[int, str]]:
    return connection.execute(
        "WITH RECURSIVE family (number, kind) AS (SELECT number, kind FROM snapshot WHERE number = ?"
        " UNION SELECT s.number, s.kind FROM snapshot s JOIN family f ON s.parent = f.number)"
        " SELECT number, kind FROM family",
        (number,),
    ).fetchall()
