# SPDX-License-Identifier: Apache-2.0
"""Ingests: a growing file, the hash of its content, and a lock that ends with the process.

The order of a commit survives a loss of power: the bytes become durable (fsync of the file), then their name (rename,
fsync of the directory), then the row (commit of the transaction).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from io import FileIO
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from lamella.digests import Digest
from lamella.errors import AlreadyExists, Conflict, Integrity, InvalidInput, LamellaError, Unavailable, from_os
from lamella.store.content.files import MODE, install_blob, is_named, is_whole
from lamella.store.contract import NO_LABELS, Buffer, ContentRecord, IngestStatus, Labels
from lamella.store.disk_layout import DATA, blob_path, ingest_path
from lamella.store.gc.labels import CONTENT, INGESTS
from lamella.store.metadata.labels import encode_labels, normalize_labels
from lamella.store.metadata.leases import add_to_lease
from lamella.store.metadata.namespaces import ensure_namespace

if TYPE_CHECKING:
    from hashlib import _Hash

    from lamella.store.context import StoreContext

_CHUNK: Final = 1 << 20
_USUAL: Final = "sha256"


class LocalIngest:
    """An ingest whose file this process has open and locked (`Ingest`).

    ``shared`` is the file of the expected blob in another namespace. Such an ingest starts complete, with an empty file
    of its own; any other call than `commit` copies the shared bytes first.
    """

    def __init__(
        self, context: StoreContext, folder: str, file: FileIO, status: IngestStatus, shared: FileIO | None
    ) -> None:
        self.ref = status.ref
        self._context = context
        self._path = f"{ingest_path(context.root, folder)}/{DATA}"
        self._folder = folder
        self._file = file
        self._shared = shared
        self._total = status.total
        self._expected = status.expected
        self._started = status.started_at
        self._updated = status.updated_at
        self._algorithm = _USUAL if status.expected is None else status.expected.algorithm
        try:
            if shared is None:
                self._offset = os.fstat(file.fileno()).st_size
                self._state = _hash(file, self._offset, self._algorithm)
            else:
                os.ftruncate(file.fileno(), 0)
                self._offset = os.fstat(shared.fileno()).st_size
                self._state = hashlib.new(self._algorithm)
        except OSError as problem:
            self.close()
            raise from_os(problem, f"read the ingest {self.ref!r}") from problem

    def status(self) -> IngestStatus:
        return IngestStatus(self.ref, self._offset, self._total, self._expected, self._started, self._updated)

    def digest(self) -> Digest:
        if self._shared is not None and self._expected is not None:
            return self._expected
        return Digest.finish(self._state)

    def write(self, data: Buffer) -> int:
        """Append all of ``data``, or nothing after an error; return the new offset. Raises Exhausted."""
        self._check_open()
        rest = memoryview(data)
        if rest.format != "B" or rest.ndim != 1:
            rest = rest.cast("B")
        if not rest:
            return self._offset
        self._copy_shared(self._offset)
        offset = self._offset
        try:
            with rest:
                written = os.pwrite(self._file.fileno(), rest, offset)
                while written < len(rest):  # a short write: beyond 2 GiB, or on a nearly full disk
                    written += os.pwrite(self._file.fileno(), rest[written:], offset + written)
                self._state.update(rest)
        except OSError as problem:
            self._truncate_after_error(offset)
            raise from_os(problem, f"write to the ingest {self.ref!r}") from problem
        self._offset = offset + written
        self._updated = self._context.clock()
        return self._offset

    def truncate(self, offset: int = 0) -> None:
        self._check_open()
        if not 0 <= offset <= self._offset:
            raise InvalidInput(f"the ingest {self.ref!r} has {self._offset} bytes and cannot be truncated to {offset}")
        self._copy_shared(offset)
        if offset == self._offset:
            return
        try:
            os.ftruncate(self._file.fileno(), offset)
            self._state = _hash(self._file, offset, self._algorithm)
        except OSError as problem:
            raise from_os(problem, f"truncate the ingest {self.ref!r}") from problem
        self._offset = offset
        self._updated = self._context.clock()

    def commit(self, total: int = 0, expected: Digest | None = None, labels: Labels = NO_LABELS) -> ContentRecord:
        """Turn the ingest into a blob, durably, and free the reference.

        Raises Conflict if ``total`` or ``expected``, given here or at the opening, differ; NotFound (lease);
        InvalidInput (labels); Exhausted: the ingest stays. Raises AlreadyExists if the namespace has the blob: the
        ingest is removed.
        """
        self._check_open()
        kept = normalize_labels(labels)
        digest = self._check_digest(total or self._total, expected or self._expected)
        try:
            try:
                record = self._install(digest, kept)
            except _SharedBlobGoneError:
                self._copy_shared(self._offset)
                record = self._install(digest, kept)
        except OSError as problem:
            raise from_os(problem, f"commit the ingest {self.ref!r}") from problem
        self.close()
        remove_folder(self._path)
        if record is None:
            raise AlreadyExists(f"blob {digest} exists already")
        return record

    def close(self) -> None:
        self._file.close()
        if self._shared is not None:
            self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._file.closed:
            raise Conflict(f"the ingest {self.ref!r} is closed")

    def _copy_shared(self, size: int) -> None:
        """Copy ``size`` bytes of the shared blob, if there is one, to the ingest's file."""
        shared = self._shared
        if shared is None:
            return
        try:
            shared.seek(0)
            at = 0
            state = hashlib.new(self._algorithm)
            while at < size:
                chunk = shared.read(min(_CHUNK, size - at))
                if not chunk:
                    raise Integrity(f"the file of blob {self._expected} is too short")
                state.update(chunk)
                at += os.pwrite(self._file.fileno(), chunk, at)
                shared.seek(at)
        except OSError as problem:
            self._truncate_after_error(0)
            raise from_os(problem, f"write to the ingest {self.ref!r}") from problem
        self._shared = None
        self._offset = size
        self._state = state
        shared.close()

    def _truncate_after_error(self, offset: int) -> None:
        """Remove the bytes of a failed write; if that fails too, the next write overwrites them."""
        try:
            os.ftruncate(self._file.fileno(), offset)
        except OSError:
            pass

    def _check_digest(self, total: int, expected: Digest | None) -> Digest:
        if total > 0 and total != self._offset:
            raise Conflict(f"the ingest {self.ref!r} has {self._offset} bytes, expected {total}")
        if expected is not None and expected.algorithm != self.digest().algorithm:
            self._copy_shared(self._offset)
            self._algorithm = expected.algorithm
            try:
                self._state = _hash(self._file, self._offset, self._algorithm)
            except OSError as problem:
                raise from_os(problem, f"read the ingest {self.ref!r}") from problem
        digest = self.digest()
        if expected is not None and digest != expected:
            raise Conflict(f"the ingest {self.ref!r} has digest {digest}, expected {expected}")
        return digest

    def _install(self, digest: Digest, labels: dict[str, str]) -> ContentRecord | None:
        """Install the file and insert its row; delete the ingest's row. Return None if the namespace has the blob."""
        context = self._context
        root, namespace = context.root, context.namespace
        if self._shared is None:
            os.fchmod(self._file.fileno(), MODE)
            os.fsync(self._file.fileno())
        moved = False
        try:
            with context.database.write() as connection:
                ensure_namespace(connection, namespace)
                add_to_lease(connection, namespace, context.lease, CONTENT, digest)
                delete_ingest(connection, namespace, self.ref, self._folder)
                named = is_named(connection, digest)
                if self._shared is not None and not named:
                    raise _SharedBlobGoneError
                if self._shared is None and not (named and is_whole(root, digest, self._offset)):
                    moved = True
                    install_blob(root, self._path, digest)
                if named and find_blob(connection, namespace, digest) is not None:
                    return None
                now = context.clock()
                connection.execute(
                    "INSERT INTO blob (namespace, digest, size, created, updated, labels) VALUES (?, ?, ?, ?, ?, ?)",
                    (namespace, digest, self._offset, now, now, encode_labels(labels)),
                )
        except BaseException:
            if moved:
                self._revert_install(digest)
            raise
        return ContentRecord(digest, self._offset, now, now, labels)

    def _revert_install(self, digest: Digest) -> None:
        """Rename the blob back to the ingest's file, since its row was not written."""
        path = blob_path(self._context.root, digest)
        try:
            os.fchmod(self._file.fileno(), 0o600)
            with self._context.database.write(durable=False) as connection:
                ours = os.path.samestat(os.fstat(self._file.fileno()), os.stat(path, follow_symlinks=False))
                if ours and not is_named(connection, digest):
                    os.rename(path, self._path)
        except (OSError, LamellaError):
            pass  # the next sweep removes the file, and the ingest starts over


class _SharedBlobGoneError(Exception):
    """The other namespace has deleted the shared blob; its open file is still readable."""


def open_ingest_file(path: str, ref: str) -> FileIO:
    """Open the file of an ingest, made if it is missing, and lock it. Raises Unavailable (open elsewhere), OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.mkdir(os.path.dirname(path), 0o700)
        opened = os.open(path, flags, 0o600)
    except PermissionError:
        os.chmod(path, 0o600)  # left read-only by an interrupted commit
        opened = os.open(path, flags, 0o600)
    file = FileIO(opened, "r+")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        file.close()
        if isinstance(problem, BlockingIOError):
            raise Unavailable(
                f"the ingest {ref!r} is open elsewhere", hint="wait until the other writer has finished"
            ) from None
        raise
    return file


def find_blob(connection: sqlite3.Connection, namespace: str, digest: str) -> tuple[int, int, int, str] | None:
    """Return size, times and labels from the row of a blob; None if there is none."""
    row: tuple[int, int, int, str] | None = connection.execute(
        "SELECT size, created, updated, labels FROM blob WHERE namespace = ? AND digest = ?", (namespace, digest)
    ).fetchone()
    return row


def delete_ingest(connection: sqlite3.Connection, namespace: str, ref: str, folder: str) -> None:
    """Delete the row of an ingest, and its entries in leases, unless the reference names another folder now."""
    gone = connection.execute(
        "DELETE FROM ingest WHERE namespace = ? AND ref = ? AND folder = ?", (namespace, ref, folder)
    )
    if gone.rowcount:
        connection.execute("DELETE FROM held WHERE namespace = ? AND type = ? AND id = ?", (namespace, INGESTS, ref))


def remove_folder(path: str) -> None:
    """Remove an ingest's file and its folder. A sweep removes what this cannot."""
    try:
        os.unlink(path)
    except OSError:
        pass
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass


def _hash(file: FileIO, size: int, algorithm: str) -> _Hash:
    """Hash the first ``size`` bytes of a file. Raises OSError."""
    state = hashlib.new(algorithm)
    buffer = memoryview(bytearray(min(_CHUNK, size)))
    at = 0
    while at < size:
        count = os.preadv(file.fileno(), [buffer[: size - at]], at)
        if not count:
            raise OSError(0, "the file was truncated")
        state.update(buffer[:count])
        at += count
    return state
