# SPDX-License-Identifier: Apache-2.0
"""The content store of a namespace: blobs by digest, and ingests."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import FileIO
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from msgspec.structs import replace

from lamella.digests import Digest, parse_digest
from lamella.errors import AlreadyExists, Integrity, InvalidInput, LamellaError, NotFound, from_os
from lamella.store.content.files import SweptFiles, is_whole, open_blob, remove_unnamed, sweep
from lamella.store.content.ingest import LocalIngest, delete_ingest, find_blob, open_ingest_file, remove_folder
from lamella.store.contract import ContentRecord, IngestStatus, Labels
from lamella.store.disk_layout import DATA, ingest_path
from lamella.store.gc.labels import CONTENT, INGESTS
from lamella.store.metadata.filters import Lookup, Path, label_at, parse_filters
from lamella.store.metadata.labels import check_key, decode_labels, encode_labels, merge_labels
from lamella.store.metadata.leases import add_to_lease
from lamella.store.metadata.namespaces import SHAREABLE, ensure_namespace
from lamella.times import SECOND

if TYPE_CHECKING:
    from lamella.store.context import StoreContext

LIFETIME: Final = 24 * 3600 * SECOND
"""Nanoseconds after its last opening from which an ingest without a lease may be collected."""

_PAGE: Final = 2000
_SELECT: Final = "SELECT ref, folder, total, expected, started, updated FROM ingest WHERE namespace = ?"


class LocalContent:
    """The blobs of a namespace (`ContentStore`)."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._root = context.root
        self._database = context.database
        self._namespace = context.namespace
        self._lease = context.lease
        self._clock = context.clock

    def info(self, digest: Digest) -> ContentRecord:
        with self._database.read() as connection:
            row = find_blob(connection, self._namespace, digest)
        if row is None:
            raise _no_blob(digest)
        return _record(digest, *row)

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob; readable until closed, even after its deletion. Raises NotFound, Integrity (file damaged)."""
        size = self.info(digest).size
        try:
            return cast("BinaryIO", open_blob(self._root, digest, size))
        except FileNotFoundError:
            self.info(digest)  # deleted meanwhile?
            raise Integrity(f"the file of blob {digest} is missing", hint="lamella store check --repair") from None

    def walk(self, filters: Sequence[str] = ()) -> Iterator[ContentRecord]:
        """Yield the blobs that pass any of ``filters``, by digest; filters know ``digest`` and ``labels.KEY``.

        Reads in pages, so that the store can be changed meanwhile. Raises InvalidInput.
        """
        wanted = parse_filters(filters)
        return self._walk(None if wanted.everything else wanted.matches)

    def _walk(self, passes: Callable[[Lookup], bool] | None) -> Iterator[ContentRecord]:
        last = ""
        while True:
            with self._database.read() as connection:
                rows = connection.execute(
                    "SELECT digest, size, created, updated, labels FROM blob"
                    " WHERE namespace = ? AND digest > ? ORDER BY digest LIMIT ?",
                    (self._namespace, last, _PAGE),
                ).fetchall()
            for digest, size, created, updated, labels in rows:
                record = _record(Digest(digest), size, created, updated, labels)
                if passes is None or passes(_Fields(record)):
                    yield record
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def update(self, digest: Digest, labels: Labels, fields: Sequence[str] = ()) -> ContentRecord:
        with self._database.write() as connection:
            row = find_blob(connection, self._namespace, digest)
            if row is None:
                raise _no_blob(digest)
            size, created, updated, old = row
            kept = merge_labels(decode_labels(old), labels, fields)
            now = max(self._clock(), updated + 1)
            connection.execute(
                "UPDATE blob SET labels = ?, updated = ? WHERE namespace = ? AND digest = ?",
                (encode_labels(kept), now, self._namespace, digest),
            )
        return ContentRecord(digest, size, created, now, kept)

    def delete(self, digest: Digest) -> None:
        with self._database.write(frees=True) as connection:
            gone = connection.execute("DELETE FROM blob WHERE namespace = ? AND digest = ?", (self._namespace, digest))
            if not gone.rowcount:
                raise _no_blob(digest)
        # In a second transaction: the deletion of the row must be durable before the file is removed.
        remove_unnamed(self._root, self._database, digest)

    def sweep(self) -> SweptFiles:
        """Remove files that no row names, in all namespaces (`content.files.sweep`)."""
        return sweep(self._root, self._database)

    def ingest(self, ref: str, *, total: int = 0, expected: Digest | None = None) -> LocalIngest:
        """Open or resume the ingest ``ref``; a different ``total`` starts it over.

        It starts complete if another namespace shares the blob ``expected``. Without a lease it may be collected
        `LIFETIME` after it was opened. Raises Unavailable (open elsewhere), AlreadyExists (the namespace has
        ``expected``), InvalidInput, NotFound (lease), Exhausted.
        """
        check_key(ref, "the reference of an ingest")
        if not 0 <= total < 1 << 63:
            raise InvalidInput(f"the ingest {ref!r} has an invalid size: {total} bytes")
        if expected is not None and self._has_blob(ref, expected):
            raise AlreadyExists(f"blob {expected} exists already")
        with ExitStack() as undo:
            status, folder, file, shared = self._open(ref, total, expected, undo)
            undo.pop_all()
        return LocalIngest(self._context, folder, file, status, shared)

    def _open(
        self, ref: str, total: int, expected: Digest | None, undo: ExitStack
    ) -> tuple[IngestStatus, str, FileIO, FileIO | None]:
        """Open the row and the files of an ingest; ``undo`` receives what an error must undo."""
        now = self._clock()
        expires = None if self._lease is not None else now + LIFETIME
        try:
            with self._database.write(durable=False) as connection:
                ensure_namespace(connection, self._namespace)
                add_to_lease(connection, self._namespace, self._lease, INGESTS, ref)
                row = connection.execute(f"{_SELECT} AND ref = ?", (self._namespace, ref)).fetchone()
                if row is None:
                    folder = secrets.token_hex(8)
                    undo.callback(remove_folder, self._path(folder))
                    file = undo.enter_context(open_ingest_file(self._path(folder), ref))
                    status = IngestStatus(ref, 0, total, expected, now, now)
                    connection.execute(
                        "INSERT INTO ingest (namespace, ref, folder, total, expected, started, updated, expires)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (self._namespace, ref, folder, total, expected or "", now, now, expires),
                    )
                else:
                    folder = row[1]
                    file = undo.enter_context(open_ingest_file(self._path(folder), ref))
                    status = self._status(row)
                    if total and status.total and total != status.total:
                        os.ftruncate(file.fileno(), 0)
                    status = replace(status, total=total or status.total, expected=expected or status.expected)
                    connection.execute(
                        "UPDATE ingest SET total = ?, expected = ?, expires = ? WHERE namespace = ? AND ref = ?",
                        (status.total, status.expected or "", expires, self._namespace, ref),
                    )
                shared = None if status.expected is None else self._open_shared(connection, status.expected)
                if shared is not None:
                    undo.enter_context(shared)
        except OSError as problem:
            raise from_os(problem, f"open the ingest {ref!r}") from problem
        return status, folder, file, shared

    def statuses(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """Return the ingests in progress, by reference; filters know ``ref``. Raises InvalidInput."""
        wanted = parse_filters(filters)
        with self._database.read() as connection:
            rows = connection.execute(f"{_SELECT} ORDER BY ref", (self._namespace,)).fetchall()
        return [
            self._status(row)
            for row in rows
            if wanted.matches(lambda path, ref=row[0]: ref if path == ("ref",) else None)  # type: ignore[misc]
        ]

    def status(self, ref: str) -> IngestStatus:
        with self._database.read() as connection:
            row = connection.execute(f"{_SELECT} AND ref = ?", (self._namespace, ref)).fetchone()
        if row is None:
            raise _no_ingest(ref)
        return self._status(row)

    def abort(self, ref: str) -> None:
        try:
            with self._database.write(durable=False, frees=True) as connection:
                row = connection.execute(f"{_SELECT} AND ref = ?", (self._namespace, ref)).fetchone()
                if row is None:
                    raise _no_ingest(ref)
                path = self._path(row[1])
                open_ingest_file(path, ref).close()
                delete_ingest(connection, self._namespace, ref, row[1])
        except OSError as problem:
            raise from_os(problem, f"abort the ingest {ref!r}") from problem
        remove_folder(path)

    def _has_blob(self, ref: str, digest: Digest) -> bool:
        """Return whether the namespace has the blob that an ingest expects; add it to the lease and abort the ingest.

        False if the file is damaged, so that the blob can be sent again.
        """
        with self._database.read() as connection:
            row = find_blob(connection, self._namespace, digest)
        if row is None or not is_whole(self._root, digest, row[0]):
            return False
        if self._lease is not None:
            with self._database.write() as connection:
                if find_blob(connection, self._namespace, digest) is None:
                    return False
                add_to_lease(connection, self._namespace, self._lease, CONTENT, digest)
        try:
            self.abort(ref)
        except LamellaError:
            pass  # there is none, or it is open elsewhere
        return True

    def _open_shared(self, connection: sqlite3.Connection, digest: Digest) -> FileIO | None:
        """Open the file of a blob that another namespace shares with this one; None if there is none."""
        rows = connection.execute(
            "SELECT blob.size, coalesce(namespace.labels, '{}') FROM blob"
            " LEFT JOIN namespace ON namespace.name = blob.namespace WHERE blob.digest = ?",
            (digest,),
        )
        for size, labels in rows:
            if not self._context.isolated or decode_labels(labels).get(SHAREABLE) == "true":
                try:
                    return open_blob(self._root, digest, size)
                except (OSError, LamellaError):
                    return None  # receiving the bytes repairs the file
        return None

    def _path(self, folder: str) -> str:
        return f"{ingest_path(self._root, folder)}/{DATA}"

    def _status(self, row: tuple[str, str, int, str, int, int]) -> IngestStatus:
        ref, folder, total, expected, started, updated = row
        try:
            file = os.stat(self._path(folder), follow_symlinks=False)
        except FileNotFoundError:
            size = 0
        else:
            size = file.st_size
            updated = max(updated, file.st_mtime_ns)
        return IngestStatus(ref, size, total, parse_digest(expected) if expected else None, started, updated)


class _Fields:
    """Looks up the fields of a blob for filters."""

    __slots__ = ("_record",)

    def __init__(self, record: ContentRecord) -> None:
        self._record = record

    def __call__(self, path: Path) -> str | None:
        match path:
            case ("digest",):
                return self._record.digest
            case ("labels", *rest):
                return label_at(self._record.labels, tuple(rest))
            case _:
                return None


def _record(digest: Digest, size: int, created: int, updated: int, labels: str) -> ContentRecord:
    return ContentRecord(digest, size, created, updated, decode_labels(labels))


def _no_blob(digest: str) -> NotFound:
    return NotFound(f"there is no blob {digest}")


def _no_ingest(ref: str) -> NotFound:
    return NotFound(f"there is no ingest {ref!r}")
