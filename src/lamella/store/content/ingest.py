# SPDX-License-Identifier: Apache-2.0
"""A blob in the making: a file that grows, the hash of what is in it, and a lock that ends with its process.

What is on the disk when, so that a loss of power loses nothing that was reported done: the bytes (fsync of the file),
then their name (rename, fsync of the directory), then the row that says so (the database's commit).
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
from lamella.store.content.files import MODE, is_named, is_whole, put_in_place
from lamella.store.contract import NO_LABELS, Buffer, ContentRecord, IngestStatus, Labels
from lamella.store.disk_layout import DATA, blob_path, ingest_path
from lamella.store.gc.labels import CONTENT, INGESTS
from lamella.store.metadata.labels import encode, settled
from lamella.store.metadata.leases import hold
from lamella.store.metadata.namespaces import ensure

if TYPE_CHECKING:
    from hashlib import _Hash

    from lamella.store.context import StoreContext

_CHUNK: Final = 1 << 20
_USUAL: Final = "sha256"


class LocalIngest:
    """An ingest whose file this process has open and locked (`lamella.store.contract.Ingest`).

    ``lent`` is the file of the blob that is expected, which another namespace has: the ingest begins as a whole one
    and its own file is empty, until something other than a commit is asked for.
    """

    def __init__(
        self, context: StoreContext, folder: str, file: FileIO, status: IngestStatus, lent: FileIO | None
    ) -> None:
        self.ref = status.ref
        self._context = context
        self._path = f"{ingest_path(context.root, folder)}/{DATA}"
        self._folder = folder
        self._file = file
        self._lent = lent
        self._total = status.total
        self._expected = status.expected
        self._started = status.started_at
        self._updated = status.updated_at
        self._algorithm = _USUAL if status.expected is None else status.expected.algorithm
        try:
            if lent is None:
                self._offset = os.fstat(file.fileno()).st_size
                self._state = _hashed(file, self._offset, self._algorithm)
            else:
                os.ftruncate(file.fileno(), 0)
                self._offset = os.fstat(lent.fileno()).st_size
                self._state = hashlib.new(self._algorithm)
        except OSError as problem:
            self.close()
            raise from_os(problem, f"read the ingest {self.ref!r}") from problem

    def status(self) -> IngestStatus:
        """Where it stands."""
        return IngestStatus(self.ref, self._offset, self._total, self._expected, self._started, self._updated)

    def digest(self) -> Digest:
        """Of the bytes so far."""
        if self._lent is not None and self._expected is not None:
            return self._expected
        return Digest.finish(self._state)

    def write(self, data: Buffer) -> int:
        """Append all of ``data``; the result is the new offset. Raises Exhausted, and nothing is appended then."""
        self._check_open()
        rest = memoryview(data)
        if rest.format != "B" or rest.ndim != 1:
            rest = rest.cast("B")
        if not rest:
            return self._offset
        self._own(self._offset)
        offset = self._offset
        try:
            with rest:
                written = os.pwrite(self._file.fileno(), rest, offset)
                while written < len(rest):  # cut short: beyond 2 GiB, or on a disk nearly full
                    written += os.pwrite(self._file.fileno(), rest[written:], offset + written)
                self._state.update(rest)
        except OSError as problem:
            self._cut(offset)
            raise from_os(problem, f"write to the ingest {self.ref!r}") from problem
        self._offset = offset + written
        self._updated = self._context.clock()
        return self._offset

    def truncate(self, offset: int = 0) -> None:
        """Drop what is beyond ``offset``. Raises InvalidInput where less is there."""
        self._check_open()
        if not 0 <= offset <= self._offset:
            raise InvalidInput(f"the ingest {self.ref!r} has {self._offset} bytes and cannot be cut to {offset}")
        self._own(offset)
        if offset == self._offset:
            return
        try:
            os.ftruncate(self._file.fileno(), offset)
            self._state = _hashed(self._file, offset, self._algorithm)
        except OSError as problem:
            raise from_os(problem, f"cut the ingest {self.ref!r}") from problem
        self._offset = offset
        self._updated = self._context.clock()

    def commit(self, total: int = 0, expected: Digest | None = None, labels: Labels = NO_LABELS) -> ContentRecord:
        """Make the bytes a blob, on the disk before its name; the reference is free again.

        ``total`` and ``expected``, given here or when the ingest was opened, are checked: Conflict where they differ,
        and the ingest stays. Raises AlreadyExists where the blob is there, and the ingest is gone then; NotFound
        (lease), InvalidInput (labels), Exhausted, and the ingest stays.
        """
        self._check_open()
        kept = settled(labels)
        digest = self._checked(total or self._total, expected or self._expected)
        try:
            try:
                record = self._record(digest, kept)
            except _LenderGoneError:
                self._own(self._offset)
                record = self._record(digest, kept)
        except OSError as problem:
            raise from_os(problem, f"commit the ingest {self.ref!r}") from problem
        self.close()
        remove_folder(self._path)
        if record is None:
            raise AlreadyExists(f"blob {digest} is there already")
        return record

    def close(self) -> None:
        """Let go of the reference; what was written stays. May be called again, and after `commit`."""
        self._file.close()
        if self._lent is not None:
            self._lent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._file.closed:
            raise Conflict(f"the ingest {self.ref!r} is closed")

    def _own(self, size: int) -> None:
        """Copy ``size`` bytes of the blob that was lent, where one was."""
        lent = self._lent
        if lent is None:
            return
        try:
            lent.seek(0)
            at = 0
            state = hashlib.new(self._algorithm)
            while at < size:
                chunk = lent.read(min(_CHUNK, size - at))
                if not chunk:
                    raise Integrity(f"the file of blob {self._expected} is cut short")
                state.update(chunk)
                at += os.pwrite(self._file.fileno(), chunk, at)
                lent.seek(at)
        except OSError as problem:
            self._cut(0)
            raise from_os(problem, f"write to the ingest {self.ref!r}") from problem
        self._lent = None
        self._offset = size
        self._state = state
        lent.close()

    def _cut(self, offset: int) -> None:
        """Drop what a failed write has left. Should even that fail, the next write goes over it."""
        try:
            os.ftruncate(self._file.fileno(), offset)
        except OSError:
            pass

    def _checked(self, total: int, expected: Digest | None) -> Digest:
        if total > 0 and total != self._offset:
            raise Conflict(f"the ingest {self.ref!r} has {self._offset} bytes, and is to have {total}")
        if expected is not None and expected.algorithm != self.digest().algorithm:
            self._own(self._offset)
            self._algorithm = expected.algorithm
            try:
                self._state = _hashed(self._file, self._offset, self._algorithm)
            except OSError as problem:
                raise from_os(problem, f"read the ingest {self.ref!r}") from problem
        digest = self.digest()
        if expected is not None and digest != expected:
            raise Conflict(f"the ingest {self.ref!r} has digest {digest}, and is to have {expected}")
        return digest

    def _record(self, digest: Digest, labels: dict[str, str]) -> ContentRecord | None:
        """Put the file in place and write its row; None where the namespace has the blob, and the row is gone then."""
        context = self._context
        root, namespace = context.root, context.namespace
        if self._lent is None:
            os.fchmod(self._file.fileno(), MODE)
            os.fsync(self._file.fileno())
        moved = False
        try:
            with context.database.write() as connection:
                ensure(connection, namespace)
                hold(connection, namespace, context.lease, CONTENT, digest)
                drop_ingest(connection, namespace, self.ref, self._folder)
                named = is_named(connection, digest)
                if self._lent is not None and not named:
                    raise _LenderGoneError
                if self._lent is None and not (named and is_whole(root, digest, self._offset)):
                    moved = True
                    put_in_place(root, self._path, digest)
                if named and find_blob(connection, namespace, digest) is not None:
                    return None
                now = context.clock()
                connection.execute(
                    "INSERT INTO blob (namespace, digest, size, created, updated, labels) VALUES (?, ?, ?, ?, ?, ?)",
                    (namespace, digest, self._offset, now, now, encode(labels)),
                )
        except BaseException:
            if moved:
                self._take_back(digest)
            raise
        return ContentRecord(digest, self._offset, now, now, labels)

    def _take_back(self, digest: Digest) -> None:
        """Make the file an ingest's again, since its row was not written."""
        path = blob_path(self._context.root, digest)
        try:
            os.fchmod(self._file.fileno(), 0o600)
            with self._context.database.write(durable=False) as connection:
                ours = os.path.samestat(os.fstat(self._file.fileno()), os.stat(path, follow_symlinks=False))
                if ours and not is_named(connection, digest):
                    os.rename(path, self._path)
        except (OSError, LamellaError):
            pass  # then the next sweep takes it, and the ingest starts over


class _LenderGoneError(Exception):
    """The namespace whose blob was to be shared has deleted it, which the open file does not mind."""


def open_file(path: str, ref: str) -> FileIO:
    """The file of an ingest, made where it is missing, and locked. Raises Unavailable where another has it open."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.mkdir(os.path.dirname(path), 0o700)
        opened = os.open(path, flags, 0o600)
    except PermissionError:
        os.chmod(path, 0o600)  # a commit was broken off
        opened = os.open(path, flags, 0o600)
    file = FileIO(opened, "r+")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        file.close()
        if isinstance(problem, BlockingIOError):
            raise Unavailable(f"the ingest {ref!r} is open elsewhere", hint="wait until it is done") from None
        raise
    return file


def find_blob(connection: sqlite3.Connection, namespace: str, digest: str) -> tuple[int, int, int, str] | None:
    """Size, times and labels of a blob, as its row has them."""
    row: tuple[int, int, int, str] | None = connection.execute(
        "SELECT size, created, updated, labels FROM blob WHERE namespace = ? AND digest = ?", (namespace, digest)
    ).fetchone()
    return row


def drop_ingest(connection: sqlite3.Connection, namespace: str, ref: str, folder: str) -> None:
    """Remove the row of an ingest, and what leases say of it, unless the reference has become another's."""
    gone = connection.execute(
        "DELETE FROM ingest WHERE namespace = ? AND ref = ? AND folder = ?", (namespace, ref, folder)
    )
    if gone.rowcount:
        connection.execute("DELETE FROM held WHERE namespace = ? AND type = ? AND id = ?", (namespace, INGESTS, ref))


def remove_folder(path: str) -> None:
    """Remove an ingest's file and its folder. A sweep takes what this leaves."""
    try:
        os.unlink(path)
    except OSError:
        pass
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass


def _hashed(file: FileIO, size: int, algorithm: str) -> _Hash:
    """The hash of the first ``size`` bytes of a file."""
    state = hashlib.new(algorithm)
    buffer = memoryview(bytearray(min(_CHUNK, size)))
    at = 0
    while at < size:
        count = os.preadv(file.fileno(), [buffer[: size - at]], at)
        if not count:
            raise OSError(0, "the file has become shorter")
        state.update(buffer[:count])
        at += count
    return state
