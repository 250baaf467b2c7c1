# SPDX-License-Identifier: Apache-2.0
"""The store's metadata: one SQLite file, one writer at a time, and every change whole or not at all.

Times are in nanoseconds since the Unix epoch, labels are JSON objects. Files come before the rows that name them, and
rows go before the files they named; files are put in place and taken away only inside `Database.write`, so that the
two cannot cross.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from lamella.store.disk_layout import folders_with_files, spend_reserve

VERSION: Final = 1
"""Of the schema. A store of a higher one is refused, a store of a lower one is brought up to it."""

PATIENCE: Final = 120.0
"""Seconds to wait for somebody else's change."""

_KEPT: Final = 4
"""Connections that are kept open while nobody uses them."""

_LATER: Final = "somebody else is changing the store; try again later"

_FIRST: Final = """
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

_STEPS: Final = (_FIRST,)
"""The change that leads to each version from the one before it."""


class Database:
    """The file, with as many connections as threads are at work on it at the same time."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open the file at ``path``, made where it is missing, and bring its schema up to date.

        Raises NotFound (missing, and ``readonly``), Denied, Exhausted, Integrity, Unsupported (a newer schema).
        """
        self._path = path
        self._readonly = readonly
        self._local = threading.local()
        self._all: WeakSet[_Held] = WeakSet()
        self._idle: deque[_Held] = deque()
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False
        if readonly and not path.exists():
            raise NotFound(f"there is no store at {str(path.parent)!r}")
        try:
            self._migrate()
        except BaseException:
            self.close()  # whoever holds the error would hold the file open
            raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One unchanging picture of the store, as long as the block lasts; inside `write`, that change's own."""
        around = self._around()
        if around is not None:
            yield around
            return
        with self._lent() as connection, _told(self._path):
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()

    @contextmanager
    def write(self, *, durable: bool = True, frees: bool = False) -> Iterator[sqlite3.Connection]:
        """One change, which nobody else's crosses. It is on the disk when the block ends; an exception undoes it.

        A change that is not ``durable`` may be lost with power, and never alone: all that came after it goes too.
        One that ``frees`` space is given some where there is none, for a change of the database takes some first.
        Not to be nested. Raises Unavailable where somebody else's does not come to an end, Exhausted, Denied.
        """
        if self._readonly:
            raise Denied(f"the store {str(self._path.parent)!r} is open for reading only")
        if self._around() is not None:
            raise RuntimeError("a change of the store within another")
        if frees:
            spend_reserve(self._path.parent)
        with self._in_turn(), self._lent() as connection, _told(self._path):
            if not durable:
                connection.execute("PRAGMA synchronous = NORMAL")
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.commit()
                except BaseException:
                    connection.rollback()
                    raise
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Close all connections, those that other threads are at work with when they are done. May be called again."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    def _around(self) -> sqlite3.Connection | None:
        """The connection of the block that this thread is in, if it is in one."""
        block: _Block | None = getattr(self._local, "block", None)
        held = None if block is None else block.held
        return None if held is None or held.process != os.getpid() else held.connection

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One change of this process after the other, so that only processes have to ask the file again and again."""
        self._see_to_it()
        turn = self._turn
        if not turn.acquire(timeout=PATIENCE):
            raise Unavailable(f"the store's database {str(self._path)!r} is being changed", hint=_LATER)
        try:
            yield
        finally:
            turn.release()

    @contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """A connection that is this thread's as long as the block lasts."""
        self._see_to_it()
        try:
            held = self._idle.pop()  # what was used last has the most in its caches
        except IndexError:
            held = self._connect()
        block = self._local.block = _Block(held)
        try:
            yield held.connection
        finally:
            block.held = None
            with self._lock:
                if kept := not self._closed and len(self._idle) < _KEPT and held.process == self._process:
                    self._idle.append(held)
            if not kept:
                held.close()

    def _see_to_it(self) -> None:
        """Make sure that there can be connections. Raises RuntimeError where the store is closed."""
        if self._closed:
            raise RuntimeError("the store is closed")
        if self._process != os.getpid():  # SQLite's connections do not survive a fork, and nobody is left to let go
            _INHERITED.extend(self._all)
            self._all = WeakSet()
            self._idle = deque()
            self._turn = threading.Lock()
            self._lock = threading.Lock()
            self._process = os.getpid()

    def _connect(self, mode: str = "mode=rw") -> _Held:
        with self._lock, _told(self._path):
            if self._readonly:
                mode = "mode=ro"
                if not os.access(self._path.parent, os.W_OK) and not _exists(f"{self._path}-wal"):
                    mode += "&immutable=1"  # even a reader of WAL wants to write beside it, unless nobody does
            held = _Held(
                sqlite3.connect(
                    f"{self._path.absolute().as_uri()}?{mode}",
                    uri=True,
                    timeout=PATIENCE,
                    isolation_level=None,
                    check_same_thread=False,
                )
            )
            self._all.add(held)
            connection = held.connection
            try:
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA synchronous = FULL")  # WAL's usual NORMAL loses the last changes with power
            except BaseException:
                held.close()  # whoever holds the error would hold the file open
                raise
        return held

    def _migrate(self) -> None:
        refuse_lost(self._path)  # before SQLite opens an empty file, and deletes the write-ahead log beside it
        if not self._readonly and not self._path.exists():
            # SQLite makes the file: to open and close it here would end the locks that other threads have on it.
            self._idle.append(self._connect("mode=rwc"))
        with self.read() as connection:
            version = _version(connection)
            foreign = version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None
        if version == 0:
            refuse_lost(self._path, self._schema_loss)
        if foreign:
            raise Conflict(f"{str(self._path)!r} is the database of something else")
        if version > VERSION:
            raise Unsupported(
                f"the store {str(self._path.parent)!r} has schema {version}, and this Lamella knows up to {VERSION}",
                hint="use the Lamella that wrote it, or a newer one",
            )
        if version == VERSION:
            return
        if self._readonly:
            raise Unsupported(
                f"the store {str(self._path.parent)!r} has schema {version}, and is to be opened for reading only",
                hint="open it once for writing, which brings it up to date",
            )
        if version == 0:
            self._prepare()
        with self.write() as connection:
            for number in range(_version(connection), VERSION):  # asked again: another process may have been first
                for statement in _statements(_STEPS[number]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number + 1}")

    def _schema_loss(self) -> str:
        with self.read() as connection:
            return "" if _version(connection) else "has schema version 0"

    def _prepare(self) -> None:
        """What holds for the file from its beginning."""
        try:
            os.chmod(self._path, 0o600)
        except OSError as problem:
            raise from_os(problem, f"make the store's database {str(self._path)!r}") from problem
        patience = time.monotonic() + PATIENCE
        while True:  # SQLite does not wait by itself here
            try:
                with self._lent() as connection, _told(self._path):
                    connection.execute("PRAGMA journal_mode = WAL")
                return
            except Unavailable:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.01)


def refuse_lost(path: Path, loss: Callable[[], str] | None = None) -> None:
    """Raise Integrity if the database at ``path`` is lost while the store has files, which the next sweep would delete.

    ``loss`` says what is wrong with the database, as in ``is empty``, or nothing; by default it looks at the file.
    """
    look = loss or (lambda: _file_loss(path))
    if not look() or not (folders := folders_with_files(path.parent)):
        return
    # The schema is committed before the first file. If another process has just made the store, the schema shows now.
    if found := look():
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


_INHERITED: Final[list[_Held]] = []
"""Connections of the process that this one was forked from, kept so that nothing closes them here."""


class _Block:
    """A thread's use of a connection, None once it has ended, in whatever thread it did."""

    __slots__ = ("held",)

    def __init__(self, held: _Held | None) -> None:
        self.held = held


class _Held:
    """A connection, which is closed when nobody refers to it any more."""

    __slots__ = ("__weakref__", "close", "connection", "process")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.process = os.getpid()
        # Where a cycle is collected, a connection may be taken apart before what has it in a __del__ closes it.
        self.close = finalize(self, _close, connection, self.process)
        self.close.atexit = False


def _close(connection: sqlite3.Connection, process: int) -> None:
    if process == os.getpid():
        connection.close()


def _exists(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def _version(connection: sqlite3.Connection) -> int:
    row = connection.execute("PRAGMA user_version").fetchone()
    return int(row[0])


def _statements(script: str) -> Iterator[str]:
    """Each statement by itself, since executescript would commit."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Put SQLite's failures into the categories."""
    try:
        yield
    except sqlite3.Error as problem:
        raise _error(problem, path) from problem


def _error(problem: sqlite3.Error, path: Path) -> LamellaError:
    code = getattr(problem, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    text = f"the store's database {str(path)!r}: {problem}"
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) and not _is_reading(code):
        return Exhausted(text, hint="free some space in the store's file system and run again")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable(text, hint=_LATER)
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return Denied(text)
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR):
        return Integrity(text)
    return LamellaError(text)


def _is_reading(code: int | None) -> bool:
    return code in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
