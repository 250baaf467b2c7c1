# SPDX-License-Identifier: Apache-2.0
"""Takes away what a check has found to be broken, so that it can be brought again."""

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
from lamella.store.check.check import DATABASE, ROOT, Finding, Report
from lamella.store.contract import SnapshotKind
from lamella.store.disk_layout import blob_path, fsync_directory
from lamella.store.gc.collect import sweep_files
from lamella.store.gc.labels import CONTENT, IMAGES, SNAPSHOTS

if TYPE_CHECKING:
    from lamella.store.store import Store

QUARANTINE: Final = "quarantine"
"""The folder in the store that damaged files are moved to."""


class Repaired(Struct, frozen=True):
    """What came of a repair."""

    done: tuple[str, ...]
    """What was done, in words."""
    left: tuple[Finding, ...]
    """Faults that are still there."""
    missing: tuple[Digest, ...]
    """What is to be fetched again."""


def repair(store: Store, report: Report) -> Repaired:
    """Put right what ``report`` has found, as far as that loses nothing that is not lost already.

    Files of damaged blobs go to `QUARANTINE`, their rows go, and so do snapshots whose files are missing or wrong, with
    what lies on them, unless that is an active one. Raises Denied, Exhausted.
    """
    left: list[Finding] = []
    missing = dict.fromkeys(digest for finding in report.faults for digest in finding.missing)
    blobs = dict.fromkeys(finding.id for finding in report.faults if finding.type == CONTENT)
    done = [_drop_blob(store, parse_digest(digest)) for digest in blobs]
    for finding in report.faults:
        if finding.type == ROOT:
            os.chmod(store.root, 0o700)
            done.append(f"{store.root}: mode 0700 again")
        elif finding.type.startswith(SNAPSHOTS):
            said = _drop_snapshot(store, finding)
            if said:
                done.append(said)
            else:
                left.append(finding)
        elif finding.type == DATABASE:
            left.append(finding)
        elif finding.type == IMAGES:
            left.append(finding)  # whole again once what is missing has been fetched
    with store.database.write(frees=True) as connection:
        gone = connection.execute(
            "DELETE FROM held WHERE NOT EXISTS"
            " (SELECT 1 FROM lease WHERE lease.namespace = held.namespace AND lease.id = held.lease)"
        ).rowcount
    if gone > 0:
        done.append(f"{gone} rows of leases that are gone removed")
        left = [finding for finding in left if (finding.type, finding.id) != (DATABASE, "held")]
    try:
        sweep_files(store)
    except LamellaError as problem:
        left.append(Finding("", ROOT, os.fspath(store.root), f"what is left over resists: {problem}"))
    return Repaired(tuple(done), tuple(left), tuple(missing))


def _drop_blob(store: Store, digest: Digest) -> str:
    """The file goes first, so that nobody can read it; a row without a file is found again should this be cut short.

    It is read again before: since the check, somebody may have deleted the blob and brought a sound one.
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
                return f"blob {digest} was brought again meanwhile; check once more"
            if sound and seen is not None:
                sizes = connection.execute("SELECT DISTINCT size FROM blob WHERE digest = ?", (digest,)).fetchall()
                if sizes in ([], [(seen[2],)]):
                    return f"blob {digest} is sound by now"
            if seen is not None:
                kept = folder / f"{digest.algorithm}-{digest.hex}-{secrets.token_hex(4)}"
                os.rename(path, kept)
                fsync_directory(folder)
                fsync_directory(os.path.dirname(path))
                where = f", its file is {os.fspath(kept)}"
            connection.execute("DELETE FROM blob WHERE digest = ?", (digest,))
    except OSError as problem:
        raise from_os(problem, f"put blob {digest} aside") from problem
    return f"blob {digest} dropped{where}"


def _identity(path: str | os.PathLike[str]) -> tuple[int, int, int, int] | None:
    """What tells a file from another one at the same place: device, inode, size, time of change; None without one."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def _digest(path: str | os.PathLike[str], algorithm: str) -> Digest | None:
    """Of a regular file; None for anything else, and for one that cannot be read."""
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


def _drop_snapshot(store: Store, finding: Finding) -> str:
    """Remove a snapshot and all that lies on it; nothing, and no words, where changes of somebody would go with it."""
    kind = finding.type.removeprefix(SNAPSHOTS)
    with store.database.write(frees=True) as connection:
        row = connection.execute(
            "SELECT number, kind FROM snapshot WHERE namespace = ? AND snapshotter = ? AND name = ?",
            (finding.namespace, kind, finding.id),
        ).fetchone()
        if row is None:
            return f"snapshot {finding.id} is gone already"
        numbers = _family(connection, row[0])
        if any(state == SnapshotKind.ACTIVE.value for number, state in numbers if number != row[0]):
            return ""
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.executemany("DELETE FROM snapshot WHERE number = ?", [(number,) for number, _ in numbers])
    others = f", with {len(numbers) - 1} that lay on it" if len(numbers) > 1 else ""
    return f"snapshot {finding.id} of {kind} removed{others}"


def _family(connection: sqlite3.Connection, number: int) -> list[tuple[int, str]]:
    return connection.execute(
        "WITH RECURSIVE family (number, kind) AS (SELECT number, kind FROM snapshot WHERE number = ?"
        " UNION SELECT s.number, s.kind FROM snapshot s JOIN family f ON s.parent = f.number)"
        " SELECT number, kind FROM family",
        (number,),
    ).fetchall()
