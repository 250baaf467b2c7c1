# SPDX-License-Identifier: Apache-2.0
"""The metadata: changes whole or not at all, by one at a time, in a file of a version."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.unit.store.conftest import Mount, fill

from lamella.errors import Conflict, Denied, Exhausted, Integrity, LamellaError, NotFound, Unavailable, Unsupported
from lamella.store import database as module
from lamella.store.database import VERSION, Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lamella.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    opened = Database(path)
    yield opened
    opened.close()


def add(database: Database, name: str, *, durable: bool = True) -> None:
    with database.write(durable=durable) as connection:
        connection.execute("INSERT INTO namespace (name) VALUES (?)", (name,))


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return [name for (name,) in connection.execute("SELECT name FROM namespace ORDER BY name")]


def pragma(path: Path, text: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA {text}")
    connection.commit()
    connection.close()


# Changes


def test_a_transaction_is_committed_when_its_block_ends(database: Database, path: Path) -> None:
    add(database, "a")
    add(database, "b", durable=False)
    assert names(database) == ["a", "b"]
    other = Database(path, readonly=True)
    assert names(other) == ["a", "b"]
    other.close()


def test_an_exception_rolls_a_transaction_back(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO namespace (name) VALUES ('a')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(database) == []
    add(database, "b")
    assert names(database) == ["b"]


def test_nested_write_transactions_are_refused(database: Database) -> None:
    with database.write() as connection:
        connection.execute("INSERT INTO namespace (name) VALUES ('a')")
        assert names(database) == ["a"]
        with pytest.raises(RuntimeError), database.write():
            pass
    assert names(database) == ["a"]


def test_a_read_transaction_sees_one_state(database: Database, path: Path) -> None:
    other = Database(path)
    with database.read():
        assert names(database) == []
        add(other, "a")
        assert names(database) == []
    assert names(database) == ["a"]
    other.close()


def test_every_transaction_is_durable_unless_asked_otherwise(database: Database) -> None:
    with database.write(durable=False) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
    with pytest.raises(ZeroDivisionError), database.write(durable=False):
        raise ZeroDivisionError
    with database.write() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_write_transactions_run_one_after_another(database: Database) -> None:
    def work(start: int) -> None:
        for n in range(start, start + 25):
            add(database, f"{n:03}")

    threads = [threading.Thread(target=work, args=(n * 25,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(database) == [f"{n:03}" for n in range(100)]


def test_waiting_too_long_for_another_process_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.05)
    one, two = Database(path), Database(path)
    with one.write(), pytest.raises(Unavailable), two.write():
        pass
    add(two, "a")
    one.close()
    two.close()


def test_a_closed_database_is_closed_for_all(database: Database) -> None:
    errors: list[BaseException] = []

    def look() -> None:
        try:
            names(database)
        except RuntimeError as error:
            errors.append(error)

    database.close()
    database.close()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    look()
    assert [str(error) for error in errors] == ["the store is closed"] * 2


def test_a_transaction_in_progress_completes_after_the_close(database: Database, path: Path) -> None:
    began, closed = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def change() -> None:
        try:
            with database.write() as connection:
                began.set()
                closed.wait(30)
                connection.execute("INSERT INTO namespace (name) VALUES ('a')")
        except BaseException as problem:  # noqa: BLE001 told by the main thread
            failures.append(problem)

    thread = threading.Thread(target=change)
    thread.start()
    began.wait(30)
    database.close()
    closed.set()
    thread.join()
    assert failures == []
    assert str(path) not in [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    other = Database(path)
    assert names(other) == ["a"]
    other.close()


def test_threads_share_an_idle_connection(database: Database) -> None:
    for n in range(20):
        thread = threading.Thread(target=add, args=(database, str(n)))
        thread.start()
        thread.join()
    assert len(database._all) == 1


def test_surplus_connections_of_concurrent_readers_are_closed(database: Database) -> None:
    with ExitStack() as stack:
        threads = [threading.Thread(target=stack.enter_context, args=(database.read(),)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(database._all) == 20
    assert len(database._all) == len(database._idle) == module.MAX_IDLE
    assert names(database) == []


def test_a_transaction_that_another_thread_ends_is_over_in_the_first_thread(database: Database) -> None:
    with ExitStack() as stack:
        stack.enter_context(database.read())
        thread = threading.Thread(target=stack.close)
        thread.start()
        thread.join()
        add(database, "a")  # not within the other block
        assert names(database) == ["a"]


def test_waiting_too_long_for_another_thread_is_an_error(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.05)
    began, told = threading.Event(), threading.Event()

    def hold() -> None:
        with database.write():
            began.set()
            told.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    began.wait(30)
    try:
        with pytest.raises(Unavailable, match="is being changed"), database.write():
            pass
    finally:
        told.set()
        thread.join()
    add(database, "a")


def test_a_forked_child_opens_its_own_connection(database: Database) -> None:
    add(database, "parent")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            add(database, "child")
            code = 0 if names(database) == ["child", "parent"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    add(database, "parent again")
    assert names(database) == ["child", "parent", "parent again"]


# Versions


def test_a_newer_schema_is_refused_and_unchanged(path: Path) -> None:
    Database(path).close()
    pragma(path, f"user_version = {VERSION + 1}")
    before = path.read_bytes()
    for readonly in (False, True):
        with pytest.raises(Unsupported, match=f"schema {VERSION + 1}") as caught:
            Database(path, readonly=readonly)
        assert caught.value.hint is not None
    assert path.read_bytes() == before


def test_an_older_schema_is_migrated_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Database(path)
    add(first, "a")
    first.close()
    monkeypatch.setattr(module, "VERSION", VERSION + 1)
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, "ALTER TABLE namespace ADD COLUMN more TEXT;\n"))
    with pytest.raises(Unsupported, match="for reading only"):
        Database(path, readonly=True)
    for _ in range(2):
        later = Database(path)
        with later.read() as connection:
            assert connection.execute("SELECT name, more FROM namespace").fetchall() == [("a", None)]
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION + 1,)
        later.close()


def test_a_failed_migration_leaves_the_schema_unchanged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Database(path).close()
    monkeypatch.setattr(module, "VERSION", VERSION + 1)
    monkeypatch.setattr(
        module, "MIGRATIONS", (*module.MIGRATIONS, "CREATE TABLE new (x);\nCREATE TABLE namespace (x);\n")
    )
    with pytest.raises(Exception, match="already exists"):
        Database(path)
    monkeypatch.undo()
    database = Database(path)
    with database.read() as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'new'").fetchone() is None
    database.close()


def test_the_database_of_another_program_is_refused_and_unchanged(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Conflict, match="another program"):
        Database(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("garbage", [b"not a database at all" * 500, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_file_that_is_no_database_is_reported(path: Path, garbage: bytes) -> None:
    path.write_bytes(garbage)
    for readonly in (False, True):
        with pytest.raises(Integrity):
            Database(path, readonly=readonly)
    assert path.read_bytes() == garbage


def test_a_damaged_page_is_reported(path: Path) -> None:
    database = Database(path)
    with database.write() as connection:
        connection.executemany("INSERT INTO namespace (name) VALUES (?)", ((f"name {n:06}",) for n in range(5000)))
    database.close()
    with open(path, "r+b") as file:
        for at in range(8192, path.stat().st_size, 4096):
            file.seek(at)
            file.write(b"\xa5" * 4096)
    damaged = Database(path)
    with pytest.raises(Integrity):
        names(damaged)
    damaged.close()


# Rights and space


def test_reading_only_changes_nothing(path: Path) -> None:
    with pytest.raises(NotFound):
        Database(path, readonly=True)
    Database(path).close()
    database = Database(path, readonly=True)
    assert names(database) == []
    with pytest.raises(Denied, match="for reading only"):
        add(database, "a")
    database.close()


def held_open(place: Path) -> list[str]:
    """The files beneath ``place`` that this process has open."""
    names = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    return [name for name in names if name.startswith(f"{place}/")]


@pytest.mark.root
def test_a_store_on_a_readonly_file_system_can_be_opened(tmpfs: Mount) -> None:
    place = tmpfs("size=4m")
    database = Database(place / "lamella.db")
    add(database, "a")
    database.close()
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    reader = Database(place / "lamella.db", readonly=True)
    assert names(reader) == ["a"]
    reader.close()
    with pytest.raises(Denied) as caught:
        Database(place / "lamella.db")
    assert str(place) in str(caught.value)
    assert held_open(place) == []


def test_a_failed_opening_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "lamella.db"
    path.touch()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE else_where (name TEXT)")
    connection.close()
    with pytest.raises(Conflict) as caught:
        Database(path)
    assert str(path) in str(caught.value)
    assert held_open(tmp_path) == []


@pytest.mark.root
def test_a_full_disk_rolls_back_that_transaction_only(tmpfs: Mount) -> None:
    place = tmpfs("size=1m")
    database = Database(place / "lamella.db")
    add(database, "a")
    filler = fill(place)

    def change() -> None:
        for n in range(1000):
            with database.write() as connection:
                connection.execute("INSERT INTO namespace VALUES (?, ?)", (f"b{n}", "x" * 4000))

    with pytest.raises(Exhausted) as caught:
        change()
    assert caught.value.hint is not None
    known = names(database)
    assert "a" in known
    filler.unlink()
    add(database, "c")
    assert names(database) == [*known, "c"]
    database.close()
    again = Database(place / "lamella.db")
    assert names(again) == [*known, "c"]
    again.close()


def failing(code: int, text: str) -> sqlite3.OperationalError:
    """Return an error as SQLite raises it."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


IO_ERRORS = [name for name in dir(sqlite3) if name.startswith("SQLITE_IOERR")]


@pytest.mark.parametrize("name", IO_ERRORS)
def test_an_io_error_on_a_disk_with_space_is_not_a_full_disk(database: Database, name: str) -> None:
    with pytest.raises(LamellaError) as caught, database.read():
        raise failing(getattr(sqlite3, name), "disk I/O error")
    damaged = name in ("SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA")
    assert type(caught.value) is (Integrity if damaged else LamellaError)
    assert "disk I/O error" in str(caught.value)


def test_only_a_full_disk_is_said_to_be_full(database: Database) -> None:
    with pytest.raises(Exhausted), database.read():
        raise failing(sqlite3.SQLITE_FULL, "database or disk is full")


@pytest.mark.root
@pytest.mark.parametrize("name", ["SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_CANTOPEN", "SQLITE_READONLY"])
def test_a_readonly_file_system_is_denied(tmpfs: Mount, name: str) -> None:
    place = tmpfs("size=4m")
    Database(place / "lamella.db").close()
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    reader = Database(place / "lamella.db", readonly=True)
    with pytest.raises(Denied, match="the file system is read-only"), reader.read():
        raise failing(getattr(sqlite3, name), "disk I/O error")
    reader.close()


def test_what_a_command_wrote_is_in_the_database_file_itself_when_it_ends(path: Path, tmp_path: Path) -> None:
    server = Database(path)  # whose open connection keeps SQLite from the checkpoint of the last one to close
    add(server, "a")
    command = Database(path)
    add(command, "b")
    command.close()
    alone = tmp_path / "copy" / "lamella.db"
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    copied = Database(alone)
    assert names(copied) == ["a", "b"]
    copied.close()
    server.close()


# Processes

ADD = """
import sys
from pathlib import Path
from lamella.store.database import Database
database = Database(Path(sys.argv[1]))
for n in range(15):
    with database.write() as connection:
        connection.execute("INSERT INTO namespace (name) VALUES (?)", (f"{sys.argv[2]}{n:02}",))
database.close()
"""


def test_several_processes_create_and_change_one_database(path: Path) -> None:
    children = [subprocess.Popen([sys.executable, "-c", ADD, path, name]) for name in "abc"]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    database = Database(path)
    assert names(database) == [f"{name}{n:02}" for name in "abc" for n in range(15)]
    database.close()
