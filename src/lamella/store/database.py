# SPDX-License-Identifier: Apache-2.0
"""The store's database: one SQLite file, one writer at a time, atomic transactions.

Times are in nanoseconds since the Unix epoch; labels are JSON objects. A file exists before the row that names it, and
is removed after the row. Files are renamed into place and to the trash only inside `Database.write`, so that a writer
and a sweep exclude each other.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet, finalize

from lamella.errors import (
    Conflict,
    Denied,
    Exhausted,
    Integrity,
    LamellaError,
    NotFound,
    Unavailable,
    Unsupported,
    from_os,
)
from lamella.store.disk_layout import folders_with_files, is_nearly_full, is_read_only, spend_reserve

VERSION: Final = 1
"""Version of the schema. A higher version is refused, a lower one is migrated."""

BUSY_TIMEOUT: Final = 120.0
"""Seconds to wait for the transactions of other writers."""

MAX_IDLE: Final = 4
"""Idle connections that are kept open."""

_HINT: Final = "another process is changing the store; try again later"

_SCHEMA: Final = """
CREATE TABLE namespace (
    name TEXT PRIMARY KEY,
    labels TEXT NOT NULL DEFAULT '{}'
) WITHOUT ROWID;

CREATE TABLE blob (
    namespace TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (namespace, digest)
) WITHOUT ROWID;
CREATE INDEX blob_by_digest ON blob (digest);

CREATE TABLE ingest (
    namespace TEXT NOT NULL,
    ref TEXT NOT NULL,
    folder TEXT NOT NULL UNIQUE,           -- below ingest/
    total INTEGER NOT NULL DEFAULT 0,
    expected TEXT NOT NULL DEFAULT '',
    started INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    expires INTEGER,                       -- NULL while a lease holds it
    PRIMARY KEY (namespace, ref)
) WITHOUT ROWID;

CREATE TABLE image (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    target TEXT NOT NULL,                  -- a descriptor, as JSON
    labels TEXT NOT NULL DEFAULT '{}',
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID;

CREATE TABLE lease (
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    created INTEGER NOT NULL,
    PRIMARY KEY (namespace, id)
) WITHOUT ROWID;

CREATE TABLE held (
    namespace TEXT NOT NULL,
    lease TEXT NOT NULL,
    type TEXT NOT NULL,                    -- content, ingests, images, snapshots/NAME
    id TEXT NOT NULL,
    PRIMARY KEY (namespace, lease, type, id),
    FOREIGN KEY (namespace, lease) REFERENCES lease (namespace, id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY AUTOINCREMENT,   -- names its directory
    namespace TEXT NOT NULL,
    snapshotter TEXT NOT NULL,
    name TEXT NOT NULL,
    parent INTEGER REFERENCES snapshot (number),
    kind TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    labels TEXT NOT NULL DEFAULT '{}',
    size INTEGER,                          -- of a committed one
    inodes INTEGER,
    UNIQUE (namespace, snapshotter, name)
);
CREATE INDEX snapshot_by_parent ON snapshot (parent);
"""

MIGRATIONS: Final = (_SCHEMA,)
"""The statements that lead to each version from the one before it."""


class Database:
    """The database file, with one connection for each concurrent transaction."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open the file at ``path``, make it if it is missing, and migrate its schema.

        Raises NotFound (missing, and ``readonly``), Denied, Exhausted, Integrity, Unsupported (a newer schema).
        """
        self._path = path
        self._readonly = readonly
        self._local = threading.local()
        self._all: WeakSet[_PooledConnection] = WeakSet()
        self._idle: deque[_PooledConnection] = deque()
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        self._written = False
        if readonly and not path.exists():
            raise NotFound(f"there is no store at {str(path.parent)!r}")
        try:
            self._migrate()
        except BaseException:
            self.close()  # the exception's traceback would keep the file open
            raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Run a read transaction; inside `write`, use that transaction."""
        current = self._current()
        if current is not None:
            yield current
            return
        with self._connection() as connection, _translate_errors(self._path):
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()

    @contextmanager
    def write(self, *, durable: bool = True, frees: bool = False) -> Iterator[sqlite3.Connection]:
        """Run a write transaction. It is durable at the end of the block; an exception rolls it back.

        One that is not ``durable`` may be lost with power, together with all later ones. One that ``frees`` space may
        use the disk reserve, since it takes space in the database first. Must not be nested. Raises Unavailable
        (another writer does not finish), Exhausted, Denied.
        """
        if self._readonly:
            raise Denied(f"the store {str(self._path.parent)!r} is open for reading only")
        if self._current() is not None:
            raise RuntimeError("nested write transactions")
        if frees:
            spend_reserve(self._path.parent)
        with self._write_turn(), self._connection() as connection, _translate_errors(self._path):
            if not durable:
                connection.execute("PRAGMA synchronous = NORMAL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.commit()
                    self._written = True
                except BaseException:
                    connection.rollback()
                    raise
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Close idle connections now, those in use after their transactions. May be called again.

        What this object wrote moves from the write-ahead log to the database file, so that a lost log loses little.
        SQLite does so by itself only when no other process has the database open.
        """
        with self._lock:
            self._closed = True
            while self._idle:
                pooled = self._idle.pop()
                if self._written and pooled.process == os.getpid():
                    self._written = False
                    with suppress(sqlite3.Error):  # the log stays, and the next close tries again
                        pooled.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                pooled.close()

    def _current(self) -> sqlite3.Connection | None:
        """Return the connection of this thread's current transaction; None outside of one."""
        block: _Block | None = getattr(self._local, "block", None)
        pooled = None if block is None else block.pooled
        return None if pooled is None or pooled.process != os.getpid() else pooled.connection

    @contextmanager
    def _write_turn(self) -> Iterator[None]:
        """Serialise the writers of this process; only other processes make SQLite poll the file."""
        self._check_open()
        turn = self._turn
        if not turn.acquire(timeout=BUSY_TIMEOUT):
            raise Unavailable(f"the store's database {str(self._path)!r} is being changed", hint=_HINT)
        try:
            yield
        finally:
            turn.release()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Take an idle connection, or open one, for this thread."""
        self._check_open()
        try:
            pooled = self._idle.pop()  # the most recently used one has the fullest caches
        except IndexError:
            pooled = self._connect()
        block = self._local.block = _Block(pooled)
        try:
            yield pooled.connection
        finally:
            block.pooled = None
            with self._lock:
                if kept := not self._closed and len(self._idle) < MAX_IDLE and pooled.process == self._process:
                    self._idle.append(pooled)
            if not kept:
                pooled.close()

    def _check_open(self) -> None:
        """Raise RuntimeError if the store is closed; start over without connections after a fork."""
        if self._closed:
            raise RuntimeError("the store is closed")
        if self._process != os.getpid():
            # SQLite connections must not be used, nor closed, after a fork; their locks are the parent's
            _INHERITED.extend(self._all)
            self._all = WeakSet()
            self._idle = deque()
            self._turn = threading.Lock()
            self._lock = threading.Lock()
            self._process = os.getpid()

    def _connect(self, mode: str = "mode=rw") -> _PooledConnection:
        with self._lock, _translate_errors(self._path):
            if self._readonly:
                mode = "mode=ro"
                if not self._can_share_memory() and not _has_bytes(f"{self._path}-wal"):
                    mode += "&immutable=1"
            pooled = _PooledConnection(
                sqlite3.connect(
                    f"{self._path.absolute().as_uri()}?{mode}",
                    uri=True,
                    timeout=BUSY_TIMEOUT,
                    isolation_level=None,
                    check_same_thread=False,
                )
            )
            self._all.add(pooled)
            connection = pooled.connection
            try:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute(
                    "PRAGMA synchronous = FULL"
                )  # in WAL mode, NORMAL loses the last transactions with power
            except BaseException:
                pooled.close()  # the exception's traceback would keep the file open
                raise
        return pooled

    def _can_share_memory(self) -> bool:
        """Whether a reader can write the shared memory file beside the database, as SQLite needs in WAL mode.

        On a full disk, the file exists while another process has the database open. Otherwise the reserve makes room
        for it if the write-ahead log of a killed process must be read.
        """
        root = self._path.parent
        if not os.access(root, os.W_OK):
            return False
        if not is_nearly_full(root) or _has_bytes(f"{self._path}-shm"):
            return True
        if _has_bytes(f"{self._path}-wal"):
            spend_reserve(root)
            return True
        return False

    def _migrate(self) -> None:
        refuse_lost(self._path)  # before SQLite opens an empty file, and deletes the write-ahead log beside it
        if not self._readonly and not self._path.exists():
            # SQLite creates the file: closing a descriptor of it here would drop the locks of other threads (fcntl(2)).
            self._idle.append(self._connect("mode=rwc"))
        with self.read() as connection:
            version = _version(connection)
            foreign = version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None
        if version == 0:
            refuse_lost(self._path, self._schema_loss)
        if foreign:
            raise Conflict(f"{str(self._path)!r} is the database of another program")
        if version > VERSION:
            raise Unsupported(
                f"the store {str(self._path.parent)!r} has schema {version}, and this Lamella knows up to {VERSION}",
                hint="use the Lamella that wrote it, or a newer one",
            )
        if version == VERSION:
            return
        if self._readonly:
            raise Unsupported(
                f"the store {str(self._path.parent)!r} has schema {version}, and is opened for reading only",
                hint="open it once for writing, which migrates it",
            )
        if version == 0:
            self._prepare()
        with self.write() as connection:
            for number in range(_version(connection), VERSION):  # read again: another process may have migrated it
                for statement in _statements(MIGRATIONS[number]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number + 1}")

    def _schema_loss(self) -> str:
        with self.read() as connection:
            return "" if _version(connection) else "has schema version 0"

    def _prepare(self) -> None:
        """Set the mode and the journal mode of a new file."""
        try:
            os.chmod(self._path, 0o600)
        except OSError as problem:
            raise from_os(problem, f"make the store's database {str(self._path)!r}") from problem
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:  # SQLite's busy timeout does not apply here
            try:
                with self._connection() as connection, _translate_errors(self._path):
                    connection.execute("PRAGMA journal_mode = WAL")
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def refuse_lost(path: Path, loss: Callable[[], str] | None = None) -> None:
    """Raise Integrity if the database at ``path`` is lost while the store has files, which the next sweep would delete.

    ``loss`` returns what is wrong with the database, as in ``is empty``, or the empty text; by default it checks the
    file.
    """
    find_loss = loss or (lambda: _file_loss(path))
    if not find_loss() or not (folders := folders_with_files(path.parent)):
        return
    # The schema is committed before the first file. In a store that was just made, it is visible now.
    if found := find_loss():
        filled = " and ".join(f"{folder}/" for folder in folders)
        verb = "is" if len(folders) == 1 else "are"
        raise Integrity(
            f"the store's database {str(path)!r} {found}, but {filled} {verb} not empty",
            hint=f"move {path.parent} aside, then restore the store from a backup or import its images again",
        )


def _file_loss(path: Path) -> str:
    try:
        return "" if path.stat().st_size else "is empty"
    except FileNotFoundError:
        return "is missing"


_INHERITED: Final[list[_PooledConnection]] = []
"""Connections of the parent process, kept so that this process never closes them."""


class _Block:
    """A transaction of a thread. Its connection is None after the end, even if another thread has ended it."""

    __slots__ = ("pooled",)

    def __init__(self, pooled: _PooledConnection | None) -> None:
        self.pooled = pooled


class _PooledConnection:
    """A connection that is closed when the last reference to it is gone."""

    __slots__ = ("__weakref__", "close", "connection", "process")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.process = os.getpid()
        # A finalizer, not __del__: in a collected cycle, the connection may be cleared before __del__ runs.
        self.close = finalize(self, _close, connection, self.process)
        self.close.atexit = False


def _close(connection: sqlite3.Connection, process: int) -> None:
    if process == os.getpid():
        connection.close()


def _has_bytes(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def _version(connection: sqlite3.Connection) -> int:
    row = connection.execute("PRAGMA user_version").fetchone()
    return int(row[0])


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements; executescript would commit."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Translate SQLite's errors to the categories of `lamella.errors`."""
    try:
        yield
    except sqlite3.Error as problem:
        raise _translate(problem, path) from problem


def _translate(problem: sqlite3.Error, path: Path) -> LamellaError:
    code = getattr(problem, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    text = f"the store's database {str(path)!r}: {problem}"
    if primary == sqlite3.SQLITE_FULL or (code in _SPACELESS and is_nearly_full(path.parent)):
        return Exhausted(text, hint="free some space in the store's file system and run again")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(text, hint=_HINT)
    if primary in _REFUSED and is_read_only(path.parent):
        return Denied(f"{text}: the file system is read-only")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return Denied(text)
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code in _DAMAGED or _is_malformed_text(problem):
        return Integrity(text)
    if primary == sqlite3.SQLITE_IOERR:
        return LamellaError(text, hint="the disk may be failing: see the log of the kernel")
    return LamellaError(text)


def _is_malformed_text(problem: sqlite3.Error) -> bool:
    """Whether a text is not UTF-8. The error is of Python's module, and has no code."""
    return getattr(problem, "sqlite_errorcode", None) is None and "decode to UTF-8" in str(problem)


_SPACELESS: Final = (sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_CANTOPEN)
"""Errors in making the files beside the database; SQLite does not tell a full disk from other causes."""

_REFUSED: Final = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)

_DAMAGED: Final = (
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_DATA,
)
"""Errors in reading the file."""
